"""Log Z by annealed importance sampling, for energies whose mass no proposal at hand covers.

Chains go from a known law q to p~ / Z through q^(1-t) p~^t, with a step of Hamiltonian Monte Carlo
at each t; the mean of exp(sum_k (t_k - t_{k-1}) [log p~ - log q](x_k)) is Z (Neal 2001). As a mean
of few numbers it is too low rather than too high: it can flatter a model, the less the more steps.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal

from ebm_pp.partition import Estimate, log_partition_from_weights
from experiments.benchmark.problems import LogDensity, Rows

Both = Callable[[Rows], tuple[Tensor, Tensor]]  # log q and log p~

LEAPS = 3  # leapfrog steps a temperature
WANTED = 0.75  # accepted share, to which the step size is steered


class Start(NamedTuple):
    """A known law: draws `(n, d)` of it and its log density."""

    draws: Rows
    log_prob: LogDensity


def gaussian_mixture(rows: Rows, n: int, components: int = 10) -> Start:
    """Draws of a Gaussian mixture fitted to rows, its covariances widened by a tenth."""
    from sklearn.mixture import GaussianMixture

    spread = rows.std(0).double()
    units = rows.double() / spread
    found = GaussianMixture(components, reg_covar=0.1, random_state=0).fit(units.numpy())
    weights, means, covariances = map(
        torch.from_numpy, (found.weights_, found.means_, found.covariances_)
    )
    parts = MultivariateNormal(
        (means * spread).to(rows), (covariances * torch.outer(spread, spread)).to(rows)
    )
    law = MixtureSameFamily(Categorical(weights.to(rows)), parts)
    return Start(law.sample((n,)), law.log_prob)


def annealed_log_partition(
    log_density: LogDensity, start: Start, scale: Float[Tensor, "d"], temperatures: int = 500
) -> Estimate:
    """Log Z from one chain for each draw of the start.

    Args:
        log_density: log p~, differentiable in its rows.
        start: where chains begin.
        scale: step sizes of the coordinates in proportion, shape (d,).
        temperatures: steps from q to p~.

    Returns:
        log Z, its standard error over chains, and their k-hat.
    """
    x, log_weights = start.draws, torch.zeros(len(start.draws), dtype=torch.float64)
    step = 0.5 / math.sqrt(x.shape[1])

    def both(x: Rows) -> tuple[Tensor, Tensor]:
        return start.log_prob(x).double(), log_density(x).double()

    for k in range(1, temperatures + 1):
        t = k / temperatures
        with torch.no_grad():
            log_q, log_p = both(x)
            log_weights += (log_p - log_q).nan_to_num(nan=-math.inf) / temperatures
        x, accepted = _move(x, both, t, step * scale)
        step *= 1.05 if accepted > WANTED else 0.95
    return log_partition_from_weights(log_weights)


def _move(x: Rows, both: Both, t: float, step: Float[Tensor, "d"]) -> tuple[Rows, float]:
    """One Hamiltonian proposal on q^(1-t) p~^t, accepted or not."""

    def value_and_slope(x: Rows) -> tuple[Tensor, Tensor]:
        x = x.detach().requires_grad_()
        log_q, log_p = both(x)
        value = (1 - t) * log_q + t * log_p
        return value.detach(), torch.autograd.grad(value.sum(), x)[0]

    momentum = torch.randn_like(x)
    value, slope = value_and_slope(x)
    energy = value - 0.5 * momentum.square().sum(1).double()
    y, p = x, momentum
    for _ in range(LEAPS):
        p = p + 0.5 * step * slope
        y = y + step * p
        new, slope = value_and_slope(y)
        p = p + 0.5 * step * slope
    gain = new - 0.5 * p.square().sum(1).double() - energy
    accepted = torch.rand(len(x), dtype=torch.float64).log() < gain
    return torch.where(accepted[:, None], y, x).detach(), accepted.double().mean().item()
