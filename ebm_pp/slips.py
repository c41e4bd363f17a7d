"""What slip would make far rows ordinary: a decimal point, a sign, columns exchanged, a unit."""

from collections.abc import Collection, Iterator, Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from ebm_pp.far_rows import FAR, FEW, centre_and_scale, joint_distances

PAIRED = 20  # columns: of more no two are exchanged on trial
NARROW = 10.0  # all others within such a factor: a heavy tail can always be divided into them
MOST = 0.8  # of several far rows: one of them may be odd in itself
# Of more than FEW rows, once a slip is undone: how far their median and their spread may be from
# those of the others, in robust standard deviations. An honest mode would have to be lucky twice.
MIDDLE, SPREAD = 2.0, (0.2, 3.0)
POWERS = tuple(10.0**power for power in range(1, 7))
# How many of one unit make another: inches and cm, feet and cm or m, pounds and kg, km and miles,
# m/s and km/h, knots or mph, minutes and seconds, hours, days, months, mercury, degrees.
UNITS = (2.54, 25.4, 30.48, 3.28084, 2.20462, 1.609344, 3.6, 1.943844, 2.236936, 1.852, 60.0,
         3600.0, 24.0, 12.0, 33.8639, 1.333224, 57.29578)  # fmt: skip

# Temperatures outdoors, indoors and of bodies, and the most that they spread, by a tenth at least.
CELSIUS, FAHRENHEIT, KELVINS = (-90.0, 60.0), (-130.0, 140.0), (183.0, 333.0)
WIDEST = 25.0


class Slip(NamedTuple):
    """One way in which rows may have gone wrong.

    words: what undoes it, `height divided by 10`.
    column: the one that it changes, or one of two.
    rows: the far rows with the slip undone.
    telling: whether that they are ordinary then says something; of so many units one often fits a
        single row, or a mode.
    """

    words: str
    column: int
    rows: Float[np.ndarray, "m c"]
    telling: bool = True


class Others(NamedTuple):
    """What rows that are not far are like, column by column.

    low, high: their range.
    centre, scale: median and robust standard deviation.
    """

    low: Float[np.ndarray, " c"]
    high: Float[np.ndarray, " c"]
    centre: Float[np.ndarray, " c"]
    scale: Float[np.ndarray, " c"]


def remedy_of(
    values: Float[np.ndarray, "n c"],
    names: Sequence[str],
    independent: list[int],
    among: Bool[np.ndarray, " n"],
    rows: Float[np.ndarray, "m c"],
    *,
    narrow: bool = False,
    angles: Collection[int] = (),
) -> Slip | None:
    """The slip that, undone, makes far rows ordinary; None if none of them does.

    Ordinary is a row within the range of all others in every column, and no farther than they are
    in Mahalanobis distance. Of up to three rows the first is tried, of more all of them: most must
    be ordinary, and together about where the others are and as wide.

    Args:
        values: the table.
        names: of its columns.
        independent: its columns that do not determine one another; fewer than two of them are not
            looked at together.
        among: the rows that are not far.
        rows: the far rows, the farthest first.
        narrow: whether factors are tried only where all others lie within a factor of ten.
        angles: columns that no slip is told of: any number is an angle, so that all would fit.
    """
    some = values[among]
    others = Others(some.min(0), some.max(0), *centre_and_scale(some))
    limit = np.inf
    if len(independent) > 1:
        limit = joint_distances(values, independent, among)[among].max()
    tried = rows if len(rows) > FEW else rows[:1]
    scale = others.scale.copy()
    scale[list(angles)] = 0.0
    light = len(rows) > FEW and not narrow
    for kind in _slips(tried, names, others._replace(scale=scale), light=light):
        good = []
        for slip in kind:
            inside = (slip.rows >= others.low) & (slip.rows <= others.high)
            fits = inside.all(1)
            if limit < np.inf and fits.any():
                moved = np.where(inside, slip.rows, others.centre)
                fits &= joint_distances(values, independent, among, moved) <= limit
            if fits.mean() >= MOST and (len(rows) <= FEW or _alike(slip, others)):
                good.append(slip)
        if good:
            return min(good, key=lambda slip: _off(slip, others))
    return None


def _off(slip: Slip, others: Others) -> float:
    """How far the median is from that of the others, in robust standard deviations."""
    middle = np.median(slip.rows[:, slip.column]) - others.centre[slip.column]
    return float(abs(middle) / others.scale[slip.column])


def _alike(slip: Slip, others: Others) -> bool:
    """Whether rows lie where the others do, and are about as wide."""
    width = centre_and_scale(slip.rows[:, [slip.column]])[1, 0] / others.scale[slip.column]
    return bool(_off(slip, others) <= MIDDLE and SPREAD[0] <= width <= SPREAD[1])


def _slips(
    rows: Float[np.ndarray, "m c"], names: Sequence[str], others: Others, *, light: bool
) -> Iterator[Iterator[Slip]]:
    """What may have been typed wrong, a kind at a time, the likelier first.

    A factor is tried where all others lie within a factor of ten; if `light`, also where none of
    them is far: elsewhere a heavy tail would be ordinary too, once it is divided often enough.
    Values that were exchanged are both out of place, or neither is: if one is, that one is wrong.
    Columns without a scale are left as they are.
    """
    low, high, centre, scale = others
    sizes = np.sort(np.abs([low, high]), 0)
    possible = (low * high > 0) & (sizes[1] < NARROW * sizes[0])
    if light:
        possible |= np.maximum(high - centre, centre - low) < FAR * scale
    several = len(rows) > 1
    factors = np.flatnonzero(possible & (scale > 0)).tolist()
    yield (slip for j in factors for slip in _scaled(rows, j, names[j], POWERS, telling=True))
    moving = np.flatnonzero(scale > 0).tolist()
    yield (
        Slip(f"the sign of {names[j]} changed", j, _with(rows, [j], -rows[:, [j]])) for j in moving
    )
    astray = ((rows < low) | (rows > high)).mean(0) >= MOST
    yield (
        Slip(f"{names[i]} and {names[j]} exchanged", i, _with(rows, [i, j], rows[:, [j, i]]))
        for i, j in combinations(moving if len(names) <= PAIRED else [], 2)
        if astray[i] == astray[j]
    )
    yield (slip for j in factors for slip in _scaled(rows, j, names[j], UNITS, telling=False))
    for j in moving:
        yield _temperatures(rows, j, names[j], others, telling=several)


def _scaled(
    rows: Float[np.ndarray, "m c"], j: int, name: str, factors: Sequence[float], *, telling: bool
) -> Iterator[Slip]:
    """A column divided and multiplied."""
    for factor in factors:
        for way, by in (("divided", 1 / factor), ("multiplied", factor)):
            words = f"{name} {way} by {factor:.7g}"
            with np.errstate(over="ignore"):
                yield Slip(words, j, _with(rows, [j], rows[:, [j]] * by), telling)


def _temperatures(
    rows: Float[np.ndarray, "m c"], j: int, name: str, others: Others, *, telling: bool
) -> Iterator[Slip]:
    """Degrees Celsius, Fahrenheit and kelvins for one another, where the others can be them."""
    t = rows[:, [j]]
    for (least, most), words, other, far in (
        (CELSIUS, f"{name} less 273.15", t - 273.15, True),
        (KELVINS, f"{name} plus 273.15", t + 273.15, True),
        (CELSIUS, f"({name} - 32) / 1.8 for {name}", (t - 32) / 1.8, False),
        (FAHRENHEIT, f"32 + 1.8 {name} for {name}", 32 + 1.8 * t, False),
    ):
        wide = WIDEST / 10 <= others.scale[j] <= WIDEST
        if least <= others.low[j] and others.high[j] <= most and wide:
            yield Slip(words, j, _with(rows, [j], other), telling and far)


def _with(
    rows: Float[np.ndarray, "m c"], at: list[int], values: Float[np.ndarray, "m k"]
) -> Float[np.ndarray, "m c"]:
    """A copy with other values in some columns."""
    changed = rows.copy()
    changed[:, at] = values
    return changed
