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

from ebm_pp.pareto import psis


@dataclass(frozen=True)
class Estimate:
    """A number with its error.

    Attributes:
        value: the estimate (nats for log Z).
        standard_error: one standard error, in the unit of `value`.
        ess: effective sample size as a fraction of the draws used, in (0, 1].
        pareto_k: Pareto k-hat of the weights; above 0.7 the standard error can't be trusted.
    """

    value: float
    standard_error: float
    ess: float
    pareto_k: float

    def __str__(self) -> str:
        return (
            f"{self.value:.4f} +- {self.standard_error:.4f} "
            f"(ESS/n {self.ess:.3f}, Pareto k {self.pareto_k:.2f})"
        )


def ess_fraction(log_weights: Float[Tensor, " n"]) -> float:
    """(sum w)^2 / (n sum w^2), in (0, 1] (Kong 1992); nan if no weight is finite."""
    twice = 2 * log_weights.logsumexp(0) - (2 * log_weights).logsumexp(0)
    return math.exp(twice.item()) / len(log_weights)


def log_partition_from_weights(log_weights: Float[Tensor, " n"]) -> Estimate:
    """Log Z = log mean w from draws of q alone, w = p~ / q.

    The value is from the raw weights (their mean is unbiased for Z where q covers p~). The
    standard error is by the delta method, sd(w) / (mean(w) sqrt n), on the Pareto-smoothed weights
    (Vehtari et al. 2024, arXiv:1507.02646), which do not understate a heavy tail.
    """
    log_weights = log_weights.detach().double()
    n = len(log_weights)
    smoothed, k = psis(log_weights)
    relative = n * (2 * smoothed).logsumexp(0).exp().item() - 1
    return Estimate(
        value=(log_weights.logsumexp(0) - math.log(n)).item(),
        standard_error=math.sqrt(max(relative, 0.0) / n),  # max: rounding at equal weights
        ess=ess_fraction(log_weights),
        pareto_k=k,
    )


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


def sandwich(
    log_weights_draws: Float[Tensor, " n"], log_weights_model: Float[Tensor, " m"]
) -> tuple[float, float]:
    """(E_q[log w], E_p[log w]): below and above log Z, in expectation (Grosse et al. 2015).

    Args:
        log_weights_draws: log w of draws of q.
        log_weights_model: log w of draws of p_theta (resampled or MH-corrected).

    The width is KL(q || p_theta) + KL(p_theta || q), nats.
    """
    return log_weights_draws.mean().item(), log_weights_model.mean().item()
