"""Location and scale of rows that a few far ones do not move."""

import torch
from jaxtyping import Float
from torch import Tensor

from ebm_pp.stored import MOST_ROWS, some_rows

FENCE = 3.0  # interquartile ranges beyond the quartiles: Tukey's outer fences
FEW = 0.02  # of the rows at either end, those that may lie beyond reach: no mode is so small
MATTERS = 1.1  # ratio of spreads from which rows outside the fences are clipped
REACH = 5.0  # standard deviations that a flow's splines reach (`FlowGenerator(bound=5)`)


def location_and_scale(
    x: Float[Tensor, "n d"], correction: int
) -> tuple[Float[Tensor, " d"], Float[Tensor, " d"]]:
    """Mean and standard deviation of rows, each coordinate clipped to Tukey's outer fences.

    The fences are [q25 - 3 IQR, q75 + 3 IQR] (Tukey 1977, Exploratory Data Analysis); of a normal
    one row in 400,000 lies outside. Where half of the rows are equal, or those outside make up
    less than a tenth of the spread, the plain moments. A small mode far away is no outlier: all
    but two rows in a hundred at either end stay within five scales.

    Args:
        x: rows, finite. Of more than 100,000 the quantiles are those of as many.
        correction: what the variance subtracts from n, as in `torch.std`.

    Returns:
        Location and scale; a scale of exactly 0 where all rows are equal.
    """
    loc, scale = x.mean(0), x.std(0, correction=correction)
    some = x[some_rows(len(x), MOST_ROWS, torch.Generator().manual_seed(0))]
    first, low, high, last = _quantiles(some, [FEW, 0.25, 0.75, 1 - FEW])
    fence = FENCE * (high - low)
    clipped = x.clamp(low - fence, high + fence)
    near = clipped.mean(0)
    reached = torch.maximum(last - near, near - first) / REACH
    spread = torch.maximum(clipped.std(0, correction=correction), reached)
    moved = (fence > 0) & (scale > MATTERS * spread)
    constant = (x == x[:1]).all(0)  # whose standard deviation rounding can make 1e-9
    scale = torch.where(constant, 0.0, scale)
    return torch.where(moved, near, loc), torch.where(moved, spread, scale)


def _quantiles(x: Float[Tensor, "n d"], levels: list[float]) -> list[Float[Tensor, " d"]]:
    """The order statistics next to these levels, per coordinate."""
    ordered = x.sort(0).values
    return [ordered[round(level * (len(x) - 1))] for level in levels]
