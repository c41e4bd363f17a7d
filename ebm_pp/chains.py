"""Markov chains that propose draws of q: independence Metropolis-Hastings.

From x to x' with probability min(1, w(x') / w(x)), x' ~ q and w = p~ / q. They see only what q
reaches; `neutra_hmc` (neutra.py) can leave it. Source: Tierney 1994.
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ebm_pp.counts import count, steps_each
from ebm_pp.density import Sites
from ebm_pp.sampling import (
    Draws,
    Fitted,
    log_density_of,
    log_ratio,
    propose,
    require_fit,
    require_weight,
    seeded,
)


class Chains(NamedTuple):
    """Markov chains with p_theta as their limit.

    * values: each site, shape (chains, steps, *site_shape).
    * log_density, log_q: log p~ and log q of every state, shape (chains, steps).
    * accepted: whether the state is a new one, shape (chains, steps).
    * acceptance: accepted moves as a fraction of the steps.
    * divergences: steps where NUTS lost the trajectory; wanted 0. Always 0 for independence MH.
    """

    values: Sites
    log_density: Float[Tensor, "chains steps"]
    log_q: Float[Tensor, "chains steps"]
    accepted: Bool[Tensor, "chains steps"]
    acceptance: float
    divergences: int

    @property
    def log_weights(self) -> Float[Tensor, "chains steps"]:
        """Log p~ - log q of every state."""
        return self.log_density - self.log_q


def independence_mh(
    fit: Fitted, draws: Draws | int, chains: int = 4, *, seed: int | None = None
) -> Chains:
    """Independence Metropolis-Hastings: chains that propose fresh draws of q.

    Each chain walks once through its own share of the draws, starting at the first of them that
    has a weight, so chains are independent and r-hat means something. Draws beyond a multiple of
    `chains` are left out.

    Args:
        fit: a fit, or anything with `model` and `generator`.
        draws: of `importance_sample`, or how many to make.
        chains: number of chains.
        seed: see the module.

    Raises:
        DataError: fewer than one draw per chain.
        GeneratorError: no draw has any weight.
        ProgramError: most draws have no density.
    """
    require_fit("independence_mh", fit)
    chains = count("chains", chains)
    with seeded(seed):
        if not isinstance(draws, Draws):
            proposed = propose(fit, draws)
            return walk(proposed.values, proposed.log_density, proposed.log_q, chains)
        massless = draws.log_weights == -math.inf
        log_density = torch.full_like(draws.log_weights, -math.inf)
        some = {name: value[~massless] for name, value in draws.values.items()}
        if len(massless) > int(massless.sum()):
            log_density[~massless] = log_density_of(fit.model, some)
        log_q = torch.where(massless, 0.0, log_density - draws.log_weights)  # never visited
        return walk(draws.values, log_density, log_q, chains)


def walk(
    values: Sites, log_density: Float[Tensor, " n"], log_q: Float[Tensor, " n"], chains: int
) -> Chains:
    """`independence_mh` over scored draws, from the random stream as it stands."""
    log_weights = log_ratio(log_density, log_q)
    require_weight(log_weights)
    steps = steps_each(len(log_weights), chains)
    index, acceptance = metropolis(log_weights[: chains * steps].reshape(chains, steps))
    accepted = torch.ones_like(index, dtype=torch.bool)
    accepted[:, 1:] = index[:, 1:] != index[:, :-1]
    states = {name: value[index] for name, value in values.items()}
    return Chains(states, log_density[index], log_q[index], accepted, acceptance, 0)


def metropolis(
    log_weights: Float[Tensor, "chains steps"],
) -> tuple[Int[Tensor, "chains steps"], float]:
    """Walks along each row of proposals, accepting with probability min(1, w'/w).

    Args:
        log_weights: log p~ - log q of the proposals, in the order they are proposed.

    Returns:
        For every step which proposal the chain is at, as an index into the flattened input; and
        the fraction of moves accepted (nan for a single step).
    """
    chains, steps = log_weights.shape
    log_u = torch.rand(chains, steps, dtype=torch.float64).log().tolist()
    walks, moves = [], 0
    # Plain floats: a step is a comparison, a hundred times cheaper than four tensor operations.
    for chain, proposals in enumerate(log_weights.double().tolist()):
        # A chain starts where there is mass; before that it waits there.
        at = next((i for i, weight in enumerate(proposals) if weight > -math.inf), 0)
        current, walk = proposals[at], [chain * steps + at] * (at + 1)
        for step in range(at + 1, steps):
            if log_u[chain][step] < proposals[step] - current:
                at, current = step, proposals[step]
                moves += 1
            walk.append(chain * steps + at)
        walks.append(walk)
    acceptance = moves / (chains * (steps - 1)) if steps > 1 else math.nan
    return torch.tensor(walks, device=log_weights.device), acceptance
