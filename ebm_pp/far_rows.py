"""Rows far from all others: typing errors, other units, codes for missing values.

Honest tails leave gaps too, heavy ones large ones. If the distances y_1 >= y_2 >= ... from the
centre fall as a power, the scaled logarithmic spacings m log(y_m / y_{m+1}) are independent and
exponential with one mean (Rényi 1953), which the k spacings below tell (Hill 1975): with
S = sum_{j = m+1}^{m+k} j log(y_j / y_{j+1}) the chance of a gap as large as that above y_{m+1} is

    P = (1 + m log(y_m / y_{m+1}) / S)^(-k).

For a Cauchy law this is exact up to its centre; for lighter tails the true chance is smaller, so
that no honest tail of a power, a lognormal or a Gaussian is called an error more often than said.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

LEAST = 20  # rows: of fewer none can be told from a tail
WINDOW = (8, 50)  # spacings that tell the tail, at least and at most
FAR = 8.0  # robust standard deviations: nearer rows do no harm
GAP = 3.0  # of them between a far row and the next: less is no gap
FARTHER = 1.5  # times as far as the next row: the far side of another mode is not
# Chances of a gap in an honest tail: what is an error for sure, and what is worth a look.
CERTAIN, DOUBTFUL = 1e-4, 1e-2
FEW = 3  # rows, and 1/100: more that are no copies of one value can be a mode, unless VERY_FAR
VERY_FAR = 50.0  # robust standard deviations
RARE, REPEATED = 100, 3  # far are at most 1/100 of the rows, or 1/3 with one value
LESS_RARE = 20  # 1/20 of them, where a slip explains all
NEAREST = 1e-3  # robust standard deviations: nearer the centre distances count as that
STEEPEST = 50.0  # a tail of counts or clipped readings has spacings of 0: no index above this
TIMES = 6  # rounds of taking far rows away and looking again: one may hide another
SHOWN = 4  # columns that are named for a row
BULK = 10.0  # robust standard deviations, within which scales and relations are measured


class Far(NamedTuple):
    """Rows beyond a gap.

    rows: their numbers, the farthest first.
    distance: of the nearest of them, in robust standard deviations.
    next: of the farthest row before the gap.
    chance: of such a gap in an honest tail, times m^2 for m rows: many gaps were looked at.
    repeated: whether they all have one value, and are several.
    n: rows that were looked at.
    free: whether the distances are those of the unconstrained coordinate.
    """

    rows: Int[np.ndarray, " m"]
    distance: float
    next: float
    chance: float
    repeated: bool
    n: int
    free: bool = False

    @property
    def certain(self) -> bool:
        """Whether no honest tail, and no rare mode, explains them."""
        few = len(self.rows) <= max(1, min(FEW, self.n // RARE))
        return (few or self.repeated or self.distance >= VERY_FAR) and self.chance <= CERTAIN


def centre_and_scale(values: Float[np.ndarray, "n c"]) -> Float[np.ndarray, "2 c"]:
    """Median and robust standard deviation (1.4826 times the median deviation) of every column.

    Where more than half of a column is one value its deviation is 0: that of the others is taken.
    """
    centre = np.median(values, 0)
    away = np.abs(values - centre)
    scale = np.median(away, 0)
    for j in np.flatnonzero(scale == 0):
        others = away[away[:, j] > 0, j]
        scale[j] = np.median(others) if len(others) else 0.0
    return np.stack([centre, 1.4826 * scale])


def far_rows(values: Float[np.ndarray, " n"], rare: int = RARE) -> Far | None:
    """Rows of one column beyond a gap at either end, or at both together.

    Args:
        values: one number a row.
        rare: of so many rows one can be far.

    Returns:
        The far rows, those of the least chance if several gaps are; None if there are none.
    """
    centre, scale = centre_and_scale(values[:, None])[:, 0]
    if len(values) < LEAST or not scale > 0:
        return None
    away = (values - centre) / scale
    found = None
    for _ in range(TIMES):
        near = np.ones(len(values), bool)
        if found is not None:
            near[found.rows] = False
        more = _outermost(away, near, rare)
        if more is None:
            break
        found = more if found is None else _together(found, more)
    return found


def _together(one: Far, more: Far) -> Far:
    """Far rows, and those that were found once they had been taken away."""
    return Far(
        np.concatenate([one.rows, more.rows]),
        min(one.distance, more.distance),
        more.next,
        min(one.chance, more.chance),
        one.repeated and more.repeated,
        one.n,
    )


def _outermost(
    away: Float[np.ndarray, " n"], near: Bool[np.ndarray, " n"], rare: int
) -> Far | None:
    """The gap of the least chance on one side or on both, among the rows still `near`."""
    sides = [np.abs(away), away, -away]
    found = [far for y in sides if (far := beyond_gap(np.where(near, y, -np.inf), 1.0, rare))]
    return min(found, key=lambda far: (far.chance, -far.distance), default=None)


def beyond_gap(y: Float[np.ndarray, " n"], scale: float, rare: int = RARE) -> Far | None:
    """Rows whose distance `y` from the centre lies beyond a gap that no honest tail leaves.

    Args:
        y: distances; rows where it is not positive are on the other side, and not looked at.
        scale: a robust standard deviation, in which distances are told.
        rare: of so many rows one can be far.
    """
    gaps = _gaps(y, scale, rare)
    if gaps is None:
        return None
    top, m = gaps.top, gaps.m
    apart = (top[m - 1] >= FAR * scale) & (top[m - 1] - top[m] >= GAP * scale)
    apart &= top[m - 1] >= FARTHER * top[m]
    found = np.flatnonzero(apart & (gaps.chance <= DOUBTFUL))
    return gaps.far(int(found[-1]), scale) if len(found) else None


def wrong_sign(values: Float[np.ndarray, " n"]) -> Far | None:
    """The few rows with another sign than all others, beyond a gap that no honest tail leaves.

    They need not be far: that no other row is near zero on their side is enough. So a lost sign
    is found among positive numbers, but not where both signs are usual.
    """
    if len(values) < LEAST:
        return None
    sign = 1.0 if np.median(values) > 0 else -1.0
    centre, scale = centre_and_scale(values[:, None])[:, 0]
    few = int((sign * values < 0).sum())
    if not 0 < few <= max(FEW, len(values) // RARE) or not scale > 0:
        return None
    gaps = _gaps(sign * (centre - values), scale, RARE)
    if gaps is None or few > len(gaps.m) or gaps.chance[:few].min() > CERTAIN:
        return None
    return gaps.far(few - 1, scale)._replace(chance=float(gaps.chance[:few].min()))


class _Gaps(NamedTuple):
    """The gaps between the farthest rows, and the chance of each in an honest tail.

    order: rows by distance, the farthest first; `top` their distances.
    m: how many rows lie beyond a gap.
    chance: of the gap, times m^2.
    copies: how many rows share the largest distance.
    n: rows that were looked at.
    """

    order: Int[np.ndarray, " p"]
    top: Float[np.ndarray, " p"]
    m: Int[np.ndarray, " g"]
    chance: Float[np.ndarray, " g"]
    copies: int
    n: int

    def far(self, at: int, scale: float) -> Far:
        """The rows beyond the gap number `at`."""
        m = int(self.m[at])
        return Far(
            self.order[:m],
            float(self.top[m - 1] / scale),
            float(self.top[m] / scale),
            float(self.chance[at]),
            m > 1 and self.copies >= m,
            self.n,
        )


def _gaps(y: Float[np.ndarray, " n"], scale: float, rare: int) -> _Gaps | None:
    """The gaps beyond which few rows lie; None of too few rows."""
    order = np.argsort(-y)[: int((y > 0).sum())]
    n = len(order)
    k = min(max(n // 12, WINDOW[0]), WINDOW[1])
    top = y[order]
    copies = int((top == top[0]).sum()) if n else 0
    most = max(FEW, n // rare)
    m = np.arange(1, min(max(most, copies if copies <= n // REPEATED else 0), n - k - 1) + 1)
    m = m[(m <= most) | (m == copies)]
    if not len(m):
        return None
    log = np.log(np.maximum(top, NEAREST * scale))
    scaled = np.arange(1, n) * -np.diff(log)
    total = np.concatenate([[0.0], np.cumsum(scaled)])
    spacings = np.maximum(total[m + k] - total[m], k / STEEPEST)
    chance = m**2 * np.exp(-k * np.log1p(scaled[m - 1] / spacings))
    return _Gaps(order, top, m, chance, copies, len(y))


def bulk(values: Float[np.ndarray, "n c"]) -> Bool[np.ndarray, " n"]:
    """Rows within ten robust standard deviations in every column, at least the nearest half."""
    centre, scale = centre_and_scale(values)
    moving = scale > 0
    if not moving.any():
        return np.ones(len(values), bool)
    most = (np.abs(values - centre)[:, moving] / scale[moving]).max(1)
    return most <= max(BULK, float(np.median(most)))


def joint_distances(
    values: Float[np.ndarray, "n c"],
    independent: list[int],
    among: Bool[np.ndarray, " n"],
    rows: Float[np.ndarray, "m c"] | None = None,
) -> Float[np.ndarray, " m"]:
    """Mahalanobis distances from the mean of the rows `among`, by their covariance.

    Args:
        values: a table.
        independent: its columns that do not determine one another.
        among: the rows that set mean and covariance.
        rows: whose distances; those of `values` by default.
    """
    used = values[:, independent]
    mean, scale = used[among].mean(0), used[among].std(0)
    u = (used[among] - mean) / scale
    factor = np.linalg.cholesky(u.T @ u / len(u))
    moved = ((used if rows is None else rows[:, independent]) - mean) / scale
    return np.sqrt(np.square(np.linalg.solve(factor, moved.T)).sum(0))


def responsible(
    values: Float[np.ndarray, "n c"],
    independent: list[int],
    among: Bool[np.ndarray, " n"],
    row: int,
) -> list[int]:
    """The columns that make most of a row's Mahalanobis distance, four fifths of its square."""
    used = values[:, independent]
    mean, scale = used[among].mean(0), used[among].std(0)
    u = (used - mean) / scale
    correlation = u[among].T @ u[among] / among.sum()
    share = u[row] * np.linalg.solve(correlation, u[row])
    order = np.argsort(-share)
    most = int(np.searchsorted(np.cumsum(share[order]), 0.8 * share.sum())) + 1
    return [independent[j] for j in order[: max(min(most, SHOWN), 2)]]


@torch.no_grad()
def farthest(z: Float[Tensor, "n d"], most: int = 20) -> Int[Tensor, " m"]:
    """Numbers of the rows farthest from all others, the farthest first.

    Args:
        z: rows, best in unconstrained coordinates.
        most: how many at most.

    Returns:
        Rows by their largest distance from a median, in robust standard deviations. Columns that
        are constant do not count.
    """
    values = z.detach().double().cpu().numpy()
    centre, scale = centre_and_scale(values)
    away = np.abs(values - centre) / np.where(scale > 0, scale, math.inf)
    order = np.argsort(-away.max(1), kind="stable")[:most]
    return torch.as_tensor(order.copy(), device=z.device)
