"""Pareto-smoothed importance weights, and what ArviZ says of chains.

An average over importance weights w is only as good as the tail of w. Fit a generalised Pareto
distribution to the largest of them, the M = min(n / 5, 3 sqrt n) exceedances over a cut-off u:

    P(w - u > t | w > u) = (1 + k t / sigma)^(-1/k),        k = 0: exponential; k < 0: bounded.

w has 1/k finite moments. Then replace the tail by the quantiles of the fit, never above the
largest raw weight. k > 1/2 means infinite variance; above `threshold(n)` the estimate and its
standard error are not to be trusted whatever the run says.

This module is the only one that calls ArviZ's PSIS, which takes *minus* the log weights (its
leave-one-out convention).

Source: Vehtari, Simpson, Gelman, Yao, Gabry 2024, Pareto smoothed importance sampling,
JMLR 25(72), arXiv:1507.02646.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
from arviz_stats.base import array_stats
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

# Below this number ArviZ has fewer than five draws in the tail and nothing can be fitted.
SMALLEST = 25
# Largest weights that agree to this relative size are equal: float32 densities round here.
EQUAL = 1e-4


def threshold(n: int) -> float:
    """The largest k-hat at which `n` weighted draws can be trusted, min(1 - 1/log10 n, 0.7).

    Source: Vehtari et al. 2024, section 3.2.4.

    Examples:
        >>> threshold(1000), threshold(10**6)
        (0.6666666666666667, 0.7)
    """
    return min(1.0 - 1.0 / math.log10(n), 0.7) if n > 1 else -math.inf


def tail_length(n: int) -> int:
    """M, how many of `n` weights the tail is fitted to."""
    return int(3 * n**0.5) if n > 225 else n // 5


def psis(log_weights: Float[Tensor, "n"]) -> tuple[Float[Tensor, "n"], float]:
    """Smooth importance weights and estimate the index k of their tail (positive is heavy).

    Where no tail can be fitted the weights come back normalised and unsmoothed, and k says why:

    * `-inf`: the largest weights are all equal (to 1e-4): bounded, nothing to smooth;
    * `inf`: so few draws carry the weight that there is no tail to fit: unusable (if no draw has
      any weight, every returned weight is NaN);
    * `nan`: it cannot be told: fewer than 25 draws, ties in the tail, or a weight that is NaN
      or infinite (then every returned weight is NaN).

    Args:
        log_weights: log p~(x) - log q(x) of draws of q, up to a constant; -inf is a zero weight.

    Returns:
        The smoothed log weights with logsumexp 0, shape (n,), and k-hat: good below
        `threshold(n)`, about 0.7; not to be trusted above.

    Examples:
        >>> u = torch.arange(0.5, 4000) / 4000
        >>> smoothed, k = psis(-0.5 * u.log())  # w = u^-k has tail index k
        >>> smoothed.shape, round(k, 1)
        (torch.Size([4000]), 0.5)
    """
    raw = log_weights.detach().double().cpu()
    plain = (log_weights - log_weights.logsumexp(0)).detach()
    if bool(torch.isnan(raw).any()) or bool((raw == math.inf).any()):
        return torch.full_like(plain, math.nan), math.nan
    k = _unfittable(raw)
    if k is not None:
        return plain, k
    smoothed, k_hat = array_stats.psislw(-raw.numpy())  # minus: ArviZ's convention
    return torch.as_tensor(smoothed).to(plain), float(k_hat)


def _unfittable(raw: Float[Tensor, "n"]) -> float | None:
    """The k to report where a generalised Pareto fit is impossible, or None where it is not.

    ArviZ raises, warns or returns about 0.05 (which would read as excellent) in these cases.
    """
    n = len(raw)
    if n < SMALLEST:
        return math.nan
    if raw.max() == -math.inf:
        return math.inf
    tail = tail_length(n)
    ordered = (raw - raw.max()).sort().values
    cutoff, tail_log = ordered[-tail - 1], ordered[-tail:]
    if -cutoff < EQUAL:
        return -math.inf
    excess = tail_log.exp() - cutoff.exp()
    quartile = excess[int(tail / 4 + 0.5) - 1]  # the fit divides by it
    if quartile > torch.finfo(torch.float64).eps * excess[-1]:
        return None
    ties = tail_log[int(tail / 4 + 0.5) - 1] == cutoff and -cutoff < math.log(n)
    return math.nan if bool(ties) else math.inf


class ChainStatistics(NamedTuple):
    """What ArviZ says of chains, one entry per coordinate, in the coordinates' own shape.

    ess: effective number of draws for the mean and centre (bulk); wanted above 100 per chain.
    rhat: rank-normalised split r-hat; wanted below 1.01. inf where chains stand still apart.
    mcse: Monte Carlo standard error of the mean, in the coordinate's own unit.
    All nan where every chain stands still at one value, or has fewer than four steps.
    """

    ess: NDArray[np.float64]
    rhat: NDArray[np.float64]
    mcse: NDArray[np.float64]


def chain_statistics(values: Float[Tensor, "chains steps *shape"]) -> ChainStatistics:
    """Effective size, r-hat and Monte Carlo error of every coordinate of some chains.

    Source: Vehtari, Gelman, Simpson, Carpenter, Buerkner 2021, arXiv:1903.08008; computed by
    arviz_stats.

    Args:
        values: draws, shape (chains, steps, *shape).

    Returns:
        Three arrays of shape `shape`.
    """
    array = values.detach().double().cpu().numpy()
    axes = {"chain_axis": 0, "draw_axis": 1}
    with np.errstate(invalid="ignore", divide="ignore"):
        ess, rhat, mcse = (
            np.asarray(statistic(array, **axes), dtype=np.float64)
            for statistic in (array_stats.ess, array_stats.rhat, array_stats.mcse)
        )
    # ArviZ calls a constant perfectly known (ess = number of draws); a stuck chain looks the same.
    still = (array == array[:1, :1]).all(axis=(0, 1))
    return ChainStatistics(*(np.where(still, np.nan, value) for value in (ess, rhat, mcse)))
