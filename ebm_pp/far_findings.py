"""Far rows in words: which, how far, and what slip would explain them."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float, Int

from ebm_pp.far_rows import (
    LEAST,
    Far,
    beyond_gap,
    bulk,
    far_rows,
    joint_distances,
    remedy_of,
    responsible,
)
from ebm_pp.judged import Column, Finding, few, table_of
from ebm_pp.program import Sites
from ebm_pp.ties import relations

MOST_NAMED = 20  # far rows on a finding
ROWS_SHOWN = 5  # row numbers in a text
EXACT = 1e-6  # of a column's standard deviation: less left open by others is rounding


def find_far(
    columns: Sequence[Column], numbers: Int[np.ndarray, " n"], x: Sites
) -> tuple[list[Finding], Bool[np.ndarray, " n"]]:
    """Rows far from all others, in a column or in several together; and a mask of them."""
    away = np.zeros(len(numbers), bool)
    found: list[tuple[Far, Column | None]] = []
    for column in columns:
        both = [column.given] + ([] if column.free is None else [column.free])
        some = [far for values in both if (far := far_rows(values)) is not None]
        if some and not column.circular:
            far = min(some, key=lambda far: (not far.certain, far.chance))
            away[far.rows] = True
            found.append((far, column))
    table, names = table_of(columns), [column.name for column in columns if not column.implied]
    near = bulk(table) & ~away
    independent = [r.column for r in relations(table[near], EXACT) if r.left > EXACT]
    if near.sum() < 5 * len(independent) + LEAST:
        independent = []  # too few rows for a covariance
    if len(independent) > 1:
        distance = joint_distances(table, independent, near)
        joint = beyond_gap(np.where(away, -1.0, distance), float(np.median(distance)))
        if joint is not None:
            found.append((joint, None))
            away[joint.rows] = True
    findings = []
    for far, of in found:
        if of is None:
            most = responsible(table, independent, near, int(far.rows[0]))
            text = _jointly_far_text(far, numbers, [(names[j], table[:, j]) for j in most])
            site = next(column.site for column in columns if column.name == names[most[0]])
        else:
            text, site = _far_text(far, numbers, of), of.site
        remedy = remedy_of(table, names, independent, near, int(far.rows[0]))
        findings.append(_far_finding(far, site, text, remedy, numbers, x))
    return findings, away


def _far_text(far: Far, numbers: Int[np.ndarray, " n"], column: Column) -> str:
    values = column.given[far.rows]
    some = f"{_rows(numbers[far.rows])} {'has' if len(values) == 1 else 'have'}"
    if len(values) == 1 or far.repeated:
        what = f"{column.name} = {values[0]:.6g}"
    else:
        what = f"{column.name} from {values.min():.6g} to {values.max():.6g}"
    least = "" if len(values) == 1 else "at least "
    return (
        f"{some} {what}, {least}{far.distance:.3g} robust standard deviations from the median "
        f"{np.median(column.given):.4g}; the next row is {far.next:.3g} away"
    )


def _jointly_far_text(
    far: Far, numbers: Int[np.ndarray, " n"], shown: list[tuple[str, Float[np.ndarray, " n"]]]
) -> str:
    values = ", ".join(f"{name} = {column[far.rows[0]]:.6g}" for name, column in shown)
    first = "" if len(far.rows) == 1 else f" (row {numbers[far.rows[0]]})"
    return (
        f"{_rows(numbers[far.rows])} {'is' if len(far.rows) == 1 else 'are'} unlike all others in "
        f"{few([name for name, _ in shown])} together: {values}{first}, {far.distance:.3g} times "
        f"the usual distance from the middle by covariance, the next row {far.next:.3g} times"
    )


def _far_finding(
    far: Far, site: str, text: str, remedy: str, numbers: Int[np.ndarray, " n"], x: Sites
) -> Finding:
    shown = torch.as_tensor(far.rows[:MOST_NAMED].copy())
    many = len(far.rows) > 1
    if remedy:
        remedy = f" With {remedy} {'the first' if many else 'it'} would be an ordinary row."
    certain = far.certain or bool(remedy)
    if certain:
        advice = "Look at " + ("these rows" if many else "this row") + ": a typing error, another "
        advice += "unit, or a code for a missing value? Correct or drop " + (
            "them." if many else "it."
        )
    else:
        advice = "A heavy tail or a rare mode can do that: check " + ("them." if many else "it.")
    return Finding(
        "far_rows",
        site,
        f"site {site!r}: {text}",
        advice + remedy,
        certain,
        tuple(numbers[far.rows[:MOST_NAMED]].tolist()),
        {name: value[shown.to(value.device)].tolist() for name, value in x.items()},
    )


def _rows(numbers: Int[np.ndarray, " m"]) -> str:
    """Row numbers, in words."""
    if len(numbers) == 1:
        return f"row {numbers[0]}"
    dots = ", ..." if len(numbers) > ROWS_SHOWN else ""
    return f"{len(numbers)} rows ({', '.join(map(str, numbers[:ROWS_SHOWN]))}{dots})"
