"""Draws of learned parameters, for the model checks that ask for a posterior.

Around the learned theta the likelihood of n rows is nearly normal, and so is the posterior under
a flat prior (Laplace's approximation; Gelman et al. 2013, *Bayesian Data Analysis*, chapter 4),

    theta_s ~ N(theta, A^-1 / n),

with the A of uncertainty.py. Every theta_s has its own log Z, from the same draws y_j of q,

    log Z(theta_s) = log mean_j p~_theta_s(y_j) / q(y_j),

and with it log-likelihoods of rows, and rows drawn anew by those weights. Parameters that are not
among the theta (networks, mostly) stay as they are, so leave-one-out counts them as known.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributions import transform_to

from ebm_pp.checks import holding
from ebm_pp.density import EnergyModel, Sites
from ebm_pp.pareto import psis
from ebm_pp.partition import log_partition_from_weights
from ebm_pp.pool import pick
from ebm_pp.sampling import log_density_of
from ebm_pp.uncertainty import Uncertainty, constraint, readable


class ParameterDraws(NamedTuple):
    """What follows from every theta_s; the leading dimensions are (chains, draws).

    values: each parameter as the program sees it, by its readable name.
    log_likelihood: log p_theta_s of each row, normalised.
    log_partition, ess: log Z(theta_s), and the ESS fraction of the weights behind it.
    replicates: rows drawn from p_theta_s, of the first few draws of each chain.
    """

    values: dict[str, Tensor]
    log_likelihood: Float[Tensor, "chains draws rows"]
    log_partition: Float[Tensor, "chains draws"]
    ess: Float[Tensor, "chains draws"]
    replicates: Sites


@torch.no_grad()
def parameter_draws(
    model: EnergyModel,
    x: Sites,
    found: Uncertainty,
    y: Sites,
    log_q: Float[Tensor, " m"],
    size: tuple[int, int],
    replicates: tuple[int, int],
) -> ParameterDraws:
    """Draws of the parameters from the random stream as it stands.

    Args:
        model: the program at the learned parameters.
        x: rows to take the likelihood of.
        found: of `standard_errors`.
        y: draws of the generator.
        log_q: of these draws.
        size: chains and draws a chain; all are independent.
        replicates: of how many draws a chain rows are drawn anew, and how many rows.
    """
    named = dict(model.named_parameters())
    thetas = [named[name] for name in found.parameters]
    free = _free(thetas, found, size)
    anew, n_anew = replicates
    log_likelihood, estimates, index = [], [], []
    for s, theta in enumerate(free):
        parts = theta.to(thetas[0]).split([part.numel() for part in thetas])
        values = [part.reshape(own.shape) for part, own in zip(parts, thetas, strict=True)]
        with holding(thetas, values):
            log_weights = log_density_of(model, y) - log_q
            at_rows = log_density_of(model, x)
        log_z = log_partition_from_weights(log_weights)
        estimates.append((log_z.value, log_z.ess))
        log_likelihood.append(at_rows - log_z.value)
        if s % size[1] < anew:
            weights = psis(log_weights.double())[0].exp()
            index.append(torch.multinomial(weights, n_anew, replacement=True))
    drawn = pick(y, torch.cat(index))
    log_partition, ess = torch.tensor(estimates, dtype=torch.float64).T.unflatten(1, size)
    return ParameterDraws(
        values=_as_seen(model, found, thetas, free.unflatten(0, size)),
        log_likelihood=torch.stack(log_likelihood).unflatten(0, size),
        log_partition=log_partition,
        ess=ess,
        replicates={k: v.unflatten(0, (size[0], anew, n_anew)) for k, v in drawn.items()},
    )


def _free(
    thetas: list[torch.nn.Parameter], found: Uncertainty, size: tuple[int, int]
) -> Float[Tensor, "draws m"]:
    """Normal draws of the unconstrained numbers, by the Cholesky factor of their precision."""
    centre = torch.cat([theta.flatten().double() for theta in thetas])
    root = torch.linalg.cholesky(found.rows * found.information)
    noise = centre.new_empty(len(centre), size[0] * size[1]).normal_()
    return centre + torch.linalg.solve_triangular(root.T, noise, upper=True).T


def _as_seen(
    model: EnergyModel,
    found: Uncertainty,
    thetas: list[torch.nn.Parameter],
    free: Float[Tensor, "chains draws m"],
) -> dict[str, Tensor]:
    """Constrained parameters by their readable names."""
    parts = free.split([theta.numel() for theta in thetas], -1)
    return {
        readable(name): transform_to(constraint(model, name))(
            part.reshape(*part.shape[:-1], *theta.shape)
        )
        for name, theta, part in zip(found.parameters, thetas, parts, strict=True)
    }
