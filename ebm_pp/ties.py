"""Values that rows share, and columns that determine one another: where no density exists.

How often values repeat is the chance that two rows agree, sum_v c_v (c_v - 1) / (n (n - 1)), whose
mean does not depend on n (Simpson 1949): 0 for a density, h / (2 sqrt(pi)) for a standard Gaussian
rounded to steps of h, 1/48 for half hours of a day, .21 for counts of mean 2.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

ATOMS = 3  # values that are looked at as ones that stand out
STANDS_OUT = 5.0  # times the typical share of a value of the column


class Ties(NamedTuple):
    """How values of a column repeat.

    distinct: how many there are.
    agree: chance that two rows agree that do not have one of the values that stand out.
    atoms: values that stand out, each with its share of the rows.
    common: the most frequent values with their shares.
    step: between neighbouring values, the median.
    whole: whether all are whole numbers.
    """

    distinct: int
    agree: float
    atoms: list[tuple[float, float]]
    common: list[tuple[float, float]]
    step: float
    whole: bool


def ties(values: Float[np.ndarray, " n"], least: float) -> Ties:
    """How the values of one column repeat.

    Args:
        values: one number a row.
        least: share of the rows that a value needs to stand out.
    """
    distinct, counts = np.unique(values, return_counts=True)
    n, order = len(values), np.argsort(-counts, kind="stable")
    rest = counts[order[ATOMS:]]
    typical = np.square(rest).sum() / rest.sum() if len(rest) else np.inf
    stand_out = [
        at for at in order[:ATOMS] if counts[at] >= max(STANDS_OUT * typical, least * n, 2)
    ]
    others = np.delete(counts, stand_out)
    shares = [(float(distinct[at]), float(counts[at] / n)) for at in order[:ATOMS]]
    return Ties(
        len(distinct),
        agreement(others) * (others.sum() / n) ** 2,
        shares[: len(stand_out)],
        shares,
        float(np.median(np.diff(distinct))) if len(distinct) > 1 else 0.0,
        bool((distinct == np.round(distinct)).all()),
    )


def agreement(counts: np.ndarray) -> float:
    """The chance that two different rows have one value, from the counts of every value."""
    n = int(counts.sum())
    return float((counts * (counts - 1.0)).sum() / (n * (n - 1.0))) if n > 1 else 0.0


def row_counts(table: Float[np.ndarray, "n c"]) -> np.ndarray:
    """How many rows each distinct row stands for, by a hash of their bits."""
    bits = np.ascontiguousarray(table + 0.0).view(np.uint64)  # -0 becomes 0
    odd = np.random.default_rng(0).integers(2**63, size=table.shape[1], dtype=np.uint64) * 2 + 1
    mixed = (bits ^ (bits >> np.uint64(32))) * odd
    return np.unique((mixed ^ (mixed >> np.uint64(29))).sum(1), return_counts=True)[1]


class Relation(NamedTuple):
    """How far the columns before a column determine it.

    column: its number.
    left: the standard deviation that they leave open, of its own; 0 for a constant.
    by: the columns before it that a linear relation needs; empty unless it is close.
    """

    column: int
    left: float
    by: list[int]


def relations(table: Float[np.ndarray, "n c"], close: float) -> list[Relation]:
    """The linear relation of every column to those before it that are not determined themselves.

    Args:
        table: rows; by elimination in their correlations, exact to a `left` of about 1e-7.
        close: the `left` up to which a column counts as determined.
    """
    scale = table.std(0)
    u = (table - table.mean(0)) / np.where(scale > 0, scale, 1.0)
    correlation = u.T @ u / len(u)
    open_ = correlation.copy()
    found, used = [], []
    for j in range(len(open_)):
        left = float(np.sqrt(max(open_[j, j], 0.0)))
        by: list[int] = []
        if left > close:
            used.append(j)
            open_[j + 1 :, j + 1 :] -= np.outer(open_[j + 1 :, j], open_[j, j + 1 :]) / open_[j, j]
        elif scale[j] > 0:
            weights = np.linalg.solve(correlation[np.ix_(used, used)], correlation[used, j])
            by = [i for i, w in zip(used, weights, strict=True) if abs(w) > 0.01]
        found.append(Relation(j, left, by))
    return found


def same_order(table: Float[np.ndarray, "n c"], close: float) -> list[Relation]:
    """Columns that are monotone functions of one before them: their ranks are related."""
    ranks = np.stack([np.unique(column, return_inverse=True)[1] for column in table.T], 1)
    scale = ranks.std(0)
    u = (ranks - ranks.mean(0)) / np.where(scale > 0, scale, 1.0)
    left = np.sqrt(np.maximum(1 - np.square(u.T @ u / len(u)), 0.0))
    pairs = [
        (int(i), j) for j in range(len(left)) for i in np.flatnonzero(left[j, :j] <= close)[:1]
    ]
    return [Relation(j, float(left[j, i]), [i]) for i, j in pairs]
