"""Far rows in words: which, how far, and what slip would explain them."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool, Int

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
    found: list[tuple[Far, str, str]] = []
    for column in columns:
        far = None if column.circular else _in_column(column)
        if far is not None:
            away[far.rows] = True
            found.append((far, column.site, _far_text(far, numbers, column)))
    shown = [column for column in columns if not column.implied]
    table = table_of(columns)
    near = bulk(table) & ~away
    independent = [r.column for r in relations(table[near], EXACT) if r.left > EXACT]
    if near.sum() < 5 * len(independent) + LEAST:
        independent = []  # too few rows for a covariance
    if len(independent) > 1:
        distance = joint_distances(table, independent, near)
        far = beyond_gap(np.where(away, -1.0, distance), float(np.median(distance)))
        if far is not None:
            away[far.rows] = True
            most = [shown[j] for j in responsible(table, independent, near, int(far.rows[0]))]
            found.append((far, most[0].site, _jointly_far_text(far, numbers, most)))
    findings = []
    for far, site, text in found:
        names = [column.name for column in shown]
        remedy = remedy_of(table, names, independent, near, int(far.rows[0]))
        findings.append(_far_finding(far, site, text, remedy, numbers, x))
    return findings, away


def _in_column(column: Column) -> Far | None:
    """Rows far from the others in the values given, or in the unconstrained coordinate."""
    some = [far_rows(column.given)]
    if column.free is not None:
        some.append(far_rows(column.free))
    found = [far for far in some if far is not None]
    return min(found, key=lambda far: (not far.certain, far.chance), default=None)


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


def _jointly_far_text(far: Far, numbers: Int[np.ndarray, " n"], columns: Sequence[Column]) -> str:
    values = ", ".join(f"{column.name} = {column.given[far.rows[0]]:.6g}" for column in columns)
    first = "" if len(far.rows) == 1 else f" (row {numbers[far.rows[0]]})"
    return (
        f"{_rows(numbers[far.rows])} {'is' if len(far.rows) == 1 else 'are'} unlike all others in "
        f"{few([column.name for column in columns])} together: {values}{first}, "
        f"{far.distance:.3g} times the usual distance from the middle by covariance, the next row "
        f"{far.next:.3g} times"
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
        advice = (
            f"Look at {'these rows' if many else 'this row'}: a typing error, another unit, or a "
            f"code for a missing value? Correct or drop {'them' if many else 'it'}."
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
