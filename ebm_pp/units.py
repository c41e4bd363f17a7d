"""Whether the rows of a circular site are in its unit: degrees read as radians have no direction.

Any real number is an angle, so only what phases never do tells another unit. Three signs do:

* whole or quarter numbers: hours, days and degrees are counted, radians are not;
* rows that fill a known period, 0 to 360 or -180 to 180, to both ends, the ends as full as one
  another, and lie nowhere beyond: they were wrapped there;
* rows of many turns within 0 to 360, beyond the first turn, without a direction modulo the
  site's own period: degrees of one sector, or phases of many turns. These are told among the
  findings (findings.py).

Unwrapped phases pass: they follow one another without the jump of a wrap, or prefer a direction
(n R^2 of a uniform direction is Exp(1): Rayleigh 1880), or do not stop at a known period.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from ebm_pp.errors import DataError
from ebm_pp.program import Site
from ebm_pp.stored import MOST_ROWS, Stored, representative
from ebm_pp.support import plain

TURN = 2 * math.pi
PERIODS = {  # circumference: what is measured in it
    1.0: "fractions of a turn", TURN: "radians", 7.0: "days of the week",
    12.0: "months, or hours on a dial", 24.0: "hours", 60.0: "minutes", 360.0: "degrees",
    366.0: "days of the year", 400.0: "gradians", 1440.0: "minutes of the day",
    86400.0: "seconds of the day",
}  # fmt: skip
NAMED = {  # as units are written: their circumference
    "deg": 360.0, "degree": 360.0, "degrees": 360.0, "°": 360.0, "degrees_true": 360.0,
    "rad": TURN, "radian": TURN, "radians": TURN, "h": 24.0, "hr": 24.0, "hour": 24.0,
    "hours": 24.0, "min": 60.0, "minute": 60.0, "minutes": 60.0, "gon": 400.0, "grad": 400.0,
    "gradian": 400.0, "gradians": 400.0, "turn": 1.0, "turns": 1.0, "cycle": 1.0, "cycles": 1.0,
    "month": 12.0, "months": 12.0,
}  # fmt: skip
COUNTED = (7.0, 12.0)  # so near to a turn or two that only whole numbers tell
WHOLE = 20  # rows that tell whole numbers
FEWEST = 50  # rows that tell what they fill
EDGE = 0.05  # of a period, at either end
UNIFORM = 10.0  # n R^2 of a uniform direction is above it once in 22,000


def check_unit(value: Tensor | Stored, site: Site, unit: str) -> None:
    """Refuses rows of a circular site that are surely in another unit.

    Args:
        value: rows, finite, `(n, *site_shape)`.
        site: a circular site.
        unit: what the user's object says its unit is; empty if it does not.

    Raises:
        DataError: the rows are in another unit; the text says which, and what to declare.
    """
    period = float(getattr(plain(site.support), "period", TURN))
    said = NAMED.get(unit)
    if said is not None and not math.isclose(said, period):
        raise _wrong(site, period, said, f"the rows say that their unit is {unit!r}")
    some = representative({site.name: value})[site.name].double()
    in_order = value[:MOST_ROWS].double()
    columns = some.reshape(len(some), -1).T, in_order.reshape(len(in_order), -1).T
    for x, series in zip(*columns, strict=True):
        seen = f"{len(x)} rows from {x.min().item():.4g} to {x.max().item():.4g}"
        if period == TURN and _counted(x):
            whole = "are whole or quarter numbers, which radians are not"
            raise _wrong(site, period, _period_counted(x), f"{seen} {whole}")
        if len(x) < FEWEST:
            continue
        for c in _candidates(period):
            if _wrapped(x, c) and not _flows(series, c):
                ends = f"fill a period of {c:.4g} to both ends, and none lies beyond"
                raise _wrong(site, period, c, f"{seen} {ends}")


def _candidates(period: float) -> list[float]:
    """Circumferences that rows may be wrapped at; of a period of one's own, those of radians."""
    if period == TURN:
        return [c for c in PERIODS if c != TURN and c not in COUNTED]
    return [c for c in (1.0, TURN) if not math.isclose(c, period)]


def _counted(x: Float[Tensor, " n"]) -> bool:
    """Whether the rows are whole numbers, or quarters of many turns that do not follow on."""
    if len(x) < WHOLE or len(x.unique()) < 5:
        return False
    many = (x.max() - x.min()).item() > TURN
    quarters = many and torch.equal(4 * x, (4 * x).round()) and not _follows(x)
    return torch.equal(x, x.round()) or quarters


def _period_counted(x: Float[Tensor, " n"]) -> float | None:
    """The period that numbers with equal steps run through, if it is known."""
    low, high = x.min().item(), x.max().item()
    step = x.unique().diff().min().item()
    for c in PERIODS:
        for start in (0.0, -c / 2):
            near = start <= low <= start + step and start + c - step <= high <= start + c
            if near and c > TURN:
                return c
    return None


def _wrapped(x: Float[Tensor, " n"], c: float) -> bool:
    """Whether rows fill a period up to both ends, and these are one place: as many at either.

    The gap beyond the last row is at most seven spacings, which it exceeds once in 1,000.
    """
    start = 0.0 if x.min() >= 0 else -c / 2
    below, above = (x.min() - start).item(), (start + c - x.max()).item()
    left = int((x < start + EDGE * c).sum())
    right = int((x > start + c - EDGE * c).sum())
    if below < 0 or above < 0 or min(left, right) < 4:
        return False
    if len(x.unique()) < FEWEST / 2:  # a few values, 0 and 1, fill nothing
        return False
    full = below * left < 7 * EDGE * c and above * right < 7 * EDGE * c
    alike = abs(left - right) < 0.5 * (left + right) + 3
    return full and alike and (c >= TURN or _directed(x, c))


def _directed(x: Float[Tensor, " n"], period: float) -> bool:
    """Whether one of the first three harmonics prefers a direction, by n R^2."""
    angle = torch.outer(torch.tensor([1.0, 2.0, 3.0]).to(x), TURN / period * x)
    strength = angle.cos().mean(1).square() + angle.sin().mean(1).square()
    return bool((len(x) * strength > UNIFORM).any())


def _flows(series: Float[Tensor, " n"], c: float) -> bool:
    """Whether rows follow one another (von Neumann's ratio) and never jump half a period."""
    steps = series.diff()
    return bool(steps.square().mean() < 0.5 * series.var()) and bool((steps.abs() < c / 2).all())


def _follows(series: Float[Tensor, " n"]) -> bool:
    """Whether nearly all steps are below half a turn of radians, as unwrapped phases' are."""
    return bool((series.diff().abs() <= TURN / 2).double().mean() >= 0.95)


def suspected_unit(
    x: Float[Tensor, " n"], series: Float[Tensor, " m"], site: Site
) -> tuple[str, str, bool] | None:
    """What can't be decided: degrees of one sector, and radians where degrees are wanted.

    Args:
        x: rows of one angle, as they came.
        series: the first rows, in their order.
        site: its site.

    Returns:
        What was seen, what to do, and whether another unit is by far the likelier; None if nothing
        was seen.
    """
    if len(x) < FEWEST:
        return None
    period = float(getattr(plain(site.support), "period", TURN))
    low, high = x.min().item(), x.max().item()
    seen = f"site {site.name!r}: {len(x)} rows from {low:.4g} to {high:.4g}"
    one_turn = (low >= 0 and high <= TURN) or (low >= -TURN / 2 and high <= TURN / 2)
    if period >= 100 and one_turn and high - low > TURN / 4:
        text = f"{seen} lie in one turn of radians; the site has the period {period:g}"
        return text, f"If they are radians, {_fix(period, TURN)}", False
    sector = (low >= 0 and high <= 360) or (low >= -180 and high <= 180)
    turns = high - low > 2.5 * TURN and (x.abs() < TURN).double().mean() <= 0.01
    if period == TURN and sector and turns and not _directed(x, TURN) and not _follows(series):
        advice = f"Most likely degrees: {_fix(period, 360.0)} "
        advice += "Phases of many turns: wrap them, x % (2 * math.pi)."
        return f"{seen} have no direction in radians, each read modulo 2 pi", advice, True
    return None


def _fix(period: float, c: float) -> str:
    to = "2 * math.pi" if period == TURN else f"{period:g}"
    of = "(2 * math.pi)" if c == TURN else f"{c:g}"
    site = "Circle()" if c == TURN else f"Circle(period={c})"
    return f"declare the site as {site}, or convert the rows, x * ({to} / {of})."


def _wrong(site: Site, period: float, c: float | None, seen: str) -> DataError:
    wanted = "radians" if period == TURN else f"values with the period {period:g}"
    if c is None:
        cause = "hours, days or degrees: declare the site as Circle(period=...), what a full turn "
        cause += "measures (24.0, 366.0, 360.0), or convert the rows, x * (2 * math.pi / period)."
    else:
        cause = f"{PERIODS[c]}: {_fix(period, c)}"
    return DataError(f"site {site.name!r}: {seen}; expected {wanted}.\n  Most likely {cause}")
