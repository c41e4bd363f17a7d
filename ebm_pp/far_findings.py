"""Far rows and codes in words: which, how far, and what slip would explain them."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int

from ebm_pp.circle import TURN
from ebm_pp.codes import Coded, coded_rows
from ebm_pp.far_rows import (
    LEAST,
    LESS_RARE,
    VERY_FAR,
    Far,
    beyond_gap,
    bulk,
    far_rows,
    joint_distances,
    responsible,
    wrong_sign,
)
from ebm_pp.judged import Column, Finding, few, table_of
from ebm_pp.program import Sites
from ebm_pp.slips import Slip, remedy_of
from ebm_pp.ties import relations

MOST_NAMED = 20  # far rows on a finding
ROWS_SHOWN = 5  # row numbers in a text
TURNS = 2.5  # from the median to an angle that is no slip of a phase
EXACT = 1e-6  # of a column's standard deviation: less left open by others is rounding


def find_far(
    columns: Sequence[Column], numbers: Int[np.ndarray, " n"], x: Sites
) -> tuple[list[Finding], Bool[np.ndarray, " n"]]:
    """Rows far from all others, in a column or in several together; and a mask of them."""
    away = np.zeros(len(numbers), bool)
    found: list[tuple[Far, str, str, str | None]] = []
    for column in columns:
        far = _among_angles(column) if column.circular else _with_slips(_in_column(column), column)
        if far is not None:
            away[far.rows] = True
            hint = _degrees(far, column) if column.circular else None
            found.append((far, column.site, _far_text(far, numbers, column), hint))
    shown = [column for column in columns if not column.implied]
    names, table = [column.name for column in shown], table_of(columns)
    near = bulk(table) & ~away
    independent = [r.column for r in relations(table[near], EXACT) if r.left > EXACT]
    if near.sum() < 5 * len(independent) + LEAST:
        independent = []  # too few rows for a covariance
    if len(independent) > 1:
        distance = joint_distances(table, independent, near)
        far = _jointly_far(np.where(away, -1.0, distance), len(independent))
        if far is not None:
            away[far.rows] = True
            most = [shown[j] for j in responsible(table, independent, near, int(far.rows[0]))]
            found.append((far, most[0].site, _jointly_far_text(far, numbers, most), None))
    angles = [j for j, column in enumerate(shown) if column.circular]
    findings = []
    for far, site, text, hint in found:
        slip = None
        if hint is None:  # of angles that are far only as they came the table has those wrapped
            slip = remedy_of(table, names, independent, near, table[far.rows], angles=angles)
        findings.append(_far_finding(far, site, text, slip, hint or "", numbers, x))
    return findings, away


def _in_column(column: Column) -> Far | None:
    """Rows far from the others in the values given, in the unconstrained coordinate, or in sign.

    None where a code for a missing value is all that is far: that is said of it in its own words.
    """
    some = [far_rows(column.given), wrong_sign(column.given)]
    if column.free is not None:
        free = far_rows(column.free)
        some.append(free and free._replace(free=True))
    found = [far for far in some if far is not None]
    far = min(found, key=lambda far: (not far.certain, far.chance), default=None)
    if far is not None and not far.certain:
        codes = [coded.rows for coded in coded_rows(column.given)]
        return None if any(np.isin(far.rows, rows).all() for rows in codes) else far
    return far


def _with_slips(far: Far | None, column: Column) -> Far | None:
    """More far rows than are rare, where one slip explains them all.

    A mode of so many rows is usual: only one very far away can be a slip whatever the column.
    """
    more = far_rows(column.given, LESS_RARE)
    if more is None or (far is not None and len(more.rows) <= len(far.rows)):
        return far
    table, among = column.given[:, None], np.ones(len(column.given), bool)
    among[more.rows] = False
    narrow = more.distance < VERY_FAR
    slip = remedy_of(table, [column.name], [], among, table[more.rows], narrow=narrow)
    return far if slip is None or not slip.telling else more


def _among_angles(column: Column) -> Far | None:
    """Angles beyond a gap, turns away from all others: degrees, or codes; no slip of a phase."""
    turns = _as_shown(column)
    far = far_rows(turns)
    least = TURNS * column.period
    if far is None or np.abs(turns[far.rows] - np.median(turns)).min() < least:
        return None
    return far


def _jointly_far(distance: Float[np.ndarray, " n"], d: int) -> Far | None:
    """Rows beyond a gap of Mahalanobis distances, which are then told in usual ones, the median.

    A slip moves a row in one direction, where a standard deviation is 1 whatever the dimension d.
    Of clusters that the covariance does not describe it is more: as the median is to sqrt(d).
    """
    usual = float(np.median(distance))
    scale = max(1.0, usual / math.sqrt(d))
    far = beyond_gap(distance, scale)
    if far is None:
        return None
    return far._replace(distance=far.distance * scale / usual, next=far.next * scale / usual)


def _as_shown(column: Column) -> Float[np.ndarray, " n"]:
    """The values as they came."""
    return column.given if column.turns is None else column.turns


def _far_text(far: Far, numbers: Int[np.ndarray, " n"], column: Column) -> str:
    shown = _as_shown(column)
    values = shown[far.rows]
    what = f"{column.name} = {values[0]:.6g}"
    if len(values) > 1 and not far.repeated:
        what = f"{column.name} from {values.min():.6g} to {values.max():.6g}"
    least = "" if len(values) == 1 else "at least "
    free = " of the unconstrained coordinate" if far.free else ""
    return (
        f"{_rows(numbers[far.rows])} {'has' if len(values) == 1 else 'have'} {what}, "
        f"{least}{far.distance:.3g} robust standard deviations{free} from the median "
        f"{np.median(shown):.4g}; the next row is {far.next:.3g} away"
    )


def _degrees(far: Far, column: Column) -> str:
    """What would explain angles that are turns away: degrees among radians, if they can be."""
    turns = _as_shown(column)[far.rows]
    if column.period != TURN or far.repeated or np.abs(turns).max() > 360:
        return ""
    return " Degrees among radians? Convert them, x * (2 * math.pi / 360)."


def _jointly_far_text(far: Far, numbers: Int[np.ndarray, " n"], columns: Sequence[Column]) -> str:
    values = ", ".join(
        f"{column.name} = {_as_shown(column)[far.rows[0]]:.6g}" for column in columns
    )
    first = "" if len(far.rows) == 1 else f" (row {numbers[far.rows[0]]})"
    return (
        f"{_rows(numbers[far.rows])} {'is' if len(far.rows) == 1 else 'are'} unlike all others in "
        f"{few([column.name for column in columns])} together: {values}{first}, "
        f"{far.distance:.3g} times the usual distance from the middle by covariance, the next row "
        f"{far.next:.3g} times"
    )


def _far_finding(
    far: Far,
    site: str,
    text: str,
    slip: Slip | None,
    hint: str,
    numbers: Int[np.ndarray, " n"],
    x: Sites,
) -> Finding:
    many = len(far.rows) > 1
    advice = "A heavy tail or a rare mode can do that: check " + ("them." if many else "it.")
    certain = far.certain or (slip is not None and slip.telling)
    if certain:
        advice = (
            f"Look at {'these rows' if many else 'this row'}: a typing error, another unit, or a "
            f"code for a missing value? Correct or drop {'them' if many else 'it'}."
        )
    if slip is not None:
        one = f"{'the first' if many else 'it'} would be an ordinary row"
        would = "they would be ordinary rows" if len(slip.rows) > 1 else one
        advice += f" With {slip.words} {would}."
    text, advice = f"site {site!r}: {text}", advice + hint
    return Finding("far_rows", site, text, advice, certain, *_named(far.rows, numbers, x))


def coded_finding(
    column: Column, coded: Coded, numbers: Int[np.ndarray, " n"], x: Sites
) -> Finding:
    """Rows with a code for a missing value, in words; fatal where it is out of range for sure."""
    many = len(coded.rows) > 1
    where = ", and none is beyond it" if coded.beyond else ""
    text = (
        f"site {column.site!r}: {_rows(numbers[coded.rows])} {'have' if many else 'has'} "
        f"{column.name} = {coded.value:.6g}, where other values hardly repeat and are not "
        f"whole{where}"
    )
    advice = (
        f"Most likely a code for a missing value: drop {'these rows' if many else 'this row'}. If "
        "it was measured it has a probability of its own, and no density: model it apart."
    )
    if coded.beyond and not coded.apart:
        advice = (
            "A code for a missing value, or the end of a scale (none at all, a clipped reading)? "
            f"In the first case drop {'these rows' if many else 'this row'}; in the second the "
            "value has a probability of its own, and no density: model it apart."
        )
    named = _named(coded.rows, numbers, x)
    return Finding("coded_rows", column.site, text, advice, coded.apart, *named)


def _named(
    rows: Int[np.ndarray, " m"], numbers: Int[np.ndarray, " n"], x: Sites
) -> tuple[tuple[int, ...], dict[str, list[Any]]]:
    """Numbers and values of the first rows."""
    at = rows[:MOST_NAMED]
    shown = torch.as_tensor(at.copy())
    values = {name: value[shown.to(value.device)].tolist() for name, value in x.items()}
    return tuple(numbers[at].tolist()), values


def _rows(numbers: Int[np.ndarray, " m"]) -> str:
    """Row numbers, in words."""
    if len(numbers) == 1:
        return f"row {numbers[0]}"
    dots = ", ..." if len(numbers) > ROWS_SHOWN else ""
    return f"{len(numbers)} rows ({', '.join(map(str, numbers[:ROWS_SHOWN]))}{dots})"
