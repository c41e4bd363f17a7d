"""log Z of an unnormalised density, with its error: importance, bridge, sandwich.

With w = p~ / q: E_q[w] = Z (importance); the learned offset b of the discriminator solves
Bennett's bridge equation and is log Z only where the energy has converged (a gauge, never the
answer); E_q[log w] <= log Z <= E_p[log w] for draws of q and of p = p~ / Z (sandwich).
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import logsigmoid

from ebm_pp.pareto import SMALLEST, psis, tail_length, threshold

# Smoothed weights may move log Z by so many of their errors. Of honest tails with k up to 1/2
# fewer than 1 in 200 move it by 2; one of 4,000 draws with 1 % of all weight moves it by 3.
APART = 3.0
ROUNDING = 1e-5  # nats: single precision, summed
# Share of all weight that a tail may have, whatever its k-hat. Of a tail with k .8 forty draws see
# half of the mass (n^(k - 1)): log Z is then off by .01 nats, which an error of .05 covers.
SLIGHT = 0.01


@dataclass(frozen=True)
class Estimate:
    """A number with its error.

    Attributes:
        value: the estimate (nats for log Z).
        standard_error: one standard error, in the unit of `value`; nan if there are too few draws
            to tell.
        ess: effective sample size as a fraction of the draws used, in (0, 1].
        pareto_k: Pareto k-hat of the weights; above 0.7 the standard error can't be trusted.
        smoothed: the same estimate from the Pareto-smoothed weights.
        smoothed_error: its standard error.
        tail: share of all weight by which the largest weights, those that k-hat is about, exceed
            the others.
        heavy: whether k-hat is above `threshold`, or unknown, and the tail more than SLIGHT. Of
            almost equal weights (ESS/n .99) a k-hat of 4,000 draws says nothing: .7 to 1.6 where
            20,000 have -.4 to .4 and log Z is right.
    """

    value: float
    standard_error: float
    ess: float
    pareto_k: float
    smoothed: float = math.nan
    smoothed_error: float = math.nan
    tail: float = math.nan
    heavy: bool = False

    @property
    def agrees(self) -> bool:
        """Whether raw and smoothed weights tell the same: no single draw decides the value."""
        return not abs(self.value - self.smoothed) > APART * self.smoothed_error + ROUNDING

    def __str__(self) -> str:
        error = "(too few draws for an error)"
        if not math.isnan(self.standard_error):
            error = f"+- {self.standard_error:.4f}"
        return f"{self.value:.4f} {error} (ESS/n {self.ess:.3f}, Pareto k {self.pareto_k:.2f})"


def ess_fraction(log_weights: Float[Tensor, " n"]) -> float:
    """(sum w)^2 / (n sum w^2), in (0, 1] (Kong 1992); nan if no weight is finite."""
    twice = 2 * log_weights.logsumexp(0) - (2 * log_weights).logsumexp(0)
    return math.exp(twice.item()) / len(log_weights)


def log_partition_from_weights(log_weights: Float[Tensor, " n"]) -> Estimate:
    """Log Z = log mean w from draws of q alone, w = p~ / q, and its standard error.

    Both are of the raw weights: their mean is unbiased for Z where q covers p~, and the error is
    the delta method's, sd(w) / (mean(w) sqrt n). One draw that holds most of the mass widens the
    error by as much as it moves the value. The Pareto-smoothed weights (Vehtari et al. 2024,
    arXiv:1507.02646) give a second value with an error of its own; where the two are apart
    (`Estimate.agrees`) neither is to be trusted.

    Args:
        log_weights: log p~ - log q; -inf is a draw without mass, or one that was rejected.
    """
    log_weights = log_weights.detach().double()
    smoothed, k = psis(log_weights)
    lowest = log_weights.masked_fill(log_weights == -math.inf, math.inf).argmin()
    smoothed = smoothed + (log_weights[lowest] - smoothed[lowest])  # which smoothing leaves alone
    share = _tail_share(log_weights)
    heavy = not (k <= threshold(len(log_weights)) or share <= SLIGHT)
    return Estimate(
        *_mean_of(log_weights), ess_fraction(log_weights), k, *_mean_of(smoothed), share, heavy
    )


def _tail_share(log_weights: Float[Tensor, " n"]) -> float:
    """Sum (w - u)_+ / sum w, u the largest weight that is not of the tail."""
    shares = log_weights.softmax(0).sort().values
    m = tail_length(len(shares))
    return (shares[-m:] - shares[-m - 1]).sum().item() if m else math.nan


def _mean_of(log_weights: Float[Tensor, " n"]) -> tuple[float, float]:
    """(log mean w, its standard error)."""
    n = len(log_weights)
    log_sum = log_weights.logsumexp(0)
    relative = n * (2 * (log_weights - log_sum)).logsumexp(0).exp().item() - 1
    error = math.sqrt(max(relative, 0.0) / n) if n >= SMALLEST else math.nan  # max: rounding
    return (log_sum - math.log(n)).item(), error


def bridge(
    log_weights_data: Float[Tensor, " n"], log_weights_draws: Float[Tensor, " m"], nu: float = 1.0
) -> float:
    """The offset b that minimises L_D: E_p[1 - D] = nu E_q[D] ([F16] section 3.1; Bennett 1976).

    Newton's method on log E_p[1 - D] - log nu E_q[D], which rises with b and keeps its digits
    where every logit is saturated. A step out of the bracket is replaced by bisection, so no
    start can throw it. Stops at a step below 1e-12 (double) or after 200.
    """
    data, draws = log_weights_data.detach().double(), log_weights_draws.detach().double()
    log_nu = math.log(nu)
    log_share = log_nu + math.log(len(data)) - math.log(len(draws))
    ends = torch.cat([data, draws]).clamp(-1e15, 1e15)  # a zero weight still has a bracket
    low, high = ends.min().item() - abs(log_nu) - 1, ends.max().item() + abs(log_nu) + 1
    c = (data.median() + draws.median()).item() / 2  # c = b + log nu
    c = c if low < c < high else (low + high) / 2
    for _ in range(200):
        misses, alarms = logsigmoid(c - data), logsigmoid(draws - c)
        gap = (misses.logsumexp(0) - alarms.logsumexp(0)).item() - log_share
        slope = misses.softmax(0) @ torch.sigmoid(data - c)
        slope = slope + alarms.softmax(0) @ torch.sigmoid(c - draws)
        low, high = (c, high) if gap < 0 else (low, c)
        step = gap / slope.clamp_min(1e-300).item()
        step = step if low <= c - step <= high else c - (low + high) / 2
        c -= step
        if not abs(step) > 1e-12:
            break
    return c - log_nu


def sandwich(log_weights: Float[Tensor, " n"]) -> tuple[float, float]:
    """Below and above log Z: E_q[log w] and E_p[log w], of one set of draws of q.

    E_p is the self-normalised average sum_i w_i log w_i / sum_i w_i, so that by Jensen's
    inequality log mean w lies between the two whatever the weights. In expectation the ends
    enclose log Z (Grosse et al. 2015, arXiv:1511.02543).

    Draws without mass belong to no q of p's support: with r of n of them E_q is of q given its
    support, whose weights are w (1 - r/n). The width is then KL(q || p_theta) + KL(p_theta || q),
    nats.

    Args:
        log_weights: log w of draws of q.
    """
    kept = log_weights[log_weights > -math.inf].double()
    if not len(kept):
        return -math.inf, -math.inf
    below = kept.mean().item() + math.log(len(kept) / len(log_weights))
    return below, (kept.softmax(0) @ kept).item()
