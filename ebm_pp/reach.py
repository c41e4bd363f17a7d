"""Does the generator reach the mass? Evidence that draws of q alone cannot give.

The weights w = p~ / q of q's own draws look perfect if q misses a mode: nothing was drawn there.
Rows that did not come from q can tell:

* data: with x ~ p, the average of w / Z is E_q[w^2] / Z^2, the inverse of the ESS fraction. Seen
  from the data it is the *forward* ESS; if it is far lower than the proposal's, q misses mass;
* the base measure and its outskirts: mass of p~ where neither data nor q go (leak.py).

A row is beyond reach if its weight is e times larger than the largest of all draws of q. What is
there, the density itself tells: on the straight way back to the nearest draw p~ first falls if q
dropped a mode (a barrier); in a tail it only rises.
"""

import math
from contextlib import suppress
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ebm_pp.circle import wrap
from ebm_pp.density import EnergyModel, Sites
from ebm_pp.leak import MARGIN
from ebm_pp.moments import coordinate_names
from ebm_pp.pareto import psis
from ebm_pp.policy import PolicyGenerator

STOPS = 17  # points on a way, both ends included
# Relative standard error of an interquartile range of n Gaussian draws, times sqrt(n).
IQR_ERROR = 1.166


class DataSide(NamedTuple):
    """The weights, seen from the data.

    pareto_k: tail index of w at the data; below 1 their mean is finite. If w has index k under q
        it has k / (1 - k) under p, so 1 stands for the proposal's 1/2 (finite variance).
    forward_ess: Z / mean of w at the data: the ESS fraction as the data see it.
    beyond: which rows are beyond reach.
    """

    pareto_k: float
    forward_ess: float
    beyond: Bool[Tensor, " n"]

    @property
    def share(self) -> float:
        """The fraction of rows beyond reach."""
        return self.beyond.double().mean().item()


def data_side(
    log_weights_data: Float[Tensor, " n"],
    log_weights_draws: Float[Tensor, " m"],
    log_partition: float,
) -> DataSide:
    """How the data see the weights.

    The forward ESS takes Z from the draws instead of from 1 / mean of 1/w at the data: that is a
    harmonic mean, and falls to zero for data wider than p_theta, whatever the generator.

    Args:
        log_weights_data: log p~ - log q at the data.
        log_weights_draws: the same at draws of q.
        log_partition: log Z as the draws have it.
    """
    log_mean = (log_weights_data.double().logsumexp(0) - math.log(len(log_weights_data))).item()
    beyond = log_weights_data > log_weights_draws.max() + MARGIN
    forward = torch.tensor(log_partition - log_mean).exp().item()  # inf where it overflows
    return DataSide(psis(log_weights_data)[1], forward, beyond)


class Spread(NamedTuple):
    """The coordinate in which the data are widest against the draws of q.

    name: of the unconstrained coordinate.
    ratio: interquartile range of the data over that of the draws.
    limit: what sampling error alone, and a harmless 15 %, can explain.
    """

    name: str
    ratio: float
    limit: float


def widest(
    model: EnergyModel, z_data: Float[Tensor, "n d"], z_draws: Float[Tensor, "m d"]
) -> Spread:
    """Compares central spreads, which tails do not touch; angles about the data's mean direction.

    Args:
        model: names the coordinates and says which are angles.
        z_data: unconstrained rows of data.
        z_draws: unconstrained draws of q.
    """
    centre = torch.atan2(z_data.sin().mean(0), z_data.cos().mean(0))
    low, high, low_q, high_q = (
        quarter
        for z in (z_data, z_draws)
        for quarter in _quartiles(torch.where(model.circular, wrap(z - centre), z))
    )
    ratio = (high - low) / (high_q - low_q)
    worst = int(ratio.argmax())
    error = IQR_ERROR * math.sqrt(1 / len(z_data) + 1 / len(z_draws))
    limit = 1.15 * math.exp(4 * error)
    return Spread(coordinate_names(model)[worst], ratio[worst].item(), limit)


def widest_action(generator: PolicyGenerator, data: Sites, draws: Sites) -> Spread:
    """Compares how widely data and policy spread about the policy's own mean action.

    Of continuous actions the interquartile range of a_t - E_pi[a_t | s_t], in pi's standard
    deviations where it knows them, over all steps; of integers, and of a policy that does not know
    its mean, e to the mean surprise -log pi (a perplexity).

    Args:
        generator: the policy.
        data: trajectories of data.
        draws: of the policy.
    """
    layout = generator.layout
    residuals = [_residuals(generator, x) for x in (data, draws)]
    count = [len(layout.pack(x).actions) for x in (data, draws)]
    limit = 1.15 * math.exp(4 * IQR_ERROR * math.sqrt(sum(1 / n for n in count)))
    mine, others = residuals
    if mine is None or others is None:
        surprise = [-generator.step_log_prob(x).double().mean() for x in (data, draws)]
        return Spread("actions", (surprise[0] - surprise[1]).exp().item(), limit)
    low, high = _quartiles(mine)
    low_q, high_q = _quartiles(others)
    ratio = (high - low) / (high_q - low_q)
    ratio = torch.where(high_q > low_q, ratio, 1.0)
    worst = int(ratio.argmax())
    return Spread(f"actions[{worst}]", ratio[worst].item(), limit)


def _residuals(generator: PolicyGenerator, x: Sites) -> Float[Tensor, "k m"] | None:
    """a_t - E_pi[a_t | s_t], in sd, of every step that is alive; None if pi can't say."""
    tau, dynamics = generator.layout.pack(x), generator.layout.dynamics
    n, horizon = tau.actions.shape[:2]
    times = torch.arange(horizon, device=tau.states.device).expand(n, horizon)
    if dynamics.actions.n:
        return None
    law = generator.policy(tau.states[:, :-1], times)
    try:
        residuals = tau.actions - law.mean
    except NotImplementedError:
        return None
    with suppress(NotImplementedError):
        residuals = residuals / law.stddev
    if dynamics.absorbing:
        residuals = residuals[tau.states[:, :-1, -1] > 0]
    return residuals.flatten(0, -2)


def behind_barrier(
    model: EnergyModel, z_rows: Float[Tensor, "n d"], z_draws: Float[Tensor, "m d"]
) -> float:
    """The fraction of rows that a barrier of p~ separates from the nearest draw of q.

    A barrier is a point between the two, on a straight line in the unconstrained coordinates
    (angles along the shorter arc), where log p~ is at least one nat below the row's.

    Args:
        model: the density.
        z_rows: unconstrained rows, at most a few hundred.
        z_draws: unconstrained draws of q.
    """
    scale = z_draws.std(0)
    ways = z_draws - z_rows[:, None]
    ways = torch.where(model.circular, wrap(ways), ways)
    nearest = (ways / scale).square().sum(-1).argmin(1)
    way = ways[torch.arange(len(z_rows)), nearest]
    stops = torch.linspace(0, 1, STOPS, dtype=way.dtype, device=way.device)
    path = z_rows[:, None] + stops[:, None] * way[:, None]
    x, log_jacobian = model.constrain(path.flatten(0, 1))
    height = (model.log_density(x) + log_jacobian).unflatten(0, (len(z_rows), STOPS))
    return (height.min(1).values < height[:, 0] - 1.0).double().mean().item()


def _quartiles(z: Float[Tensor, "n d"]) -> Float[Tensor, "2 d"]:
    return torch.as_tensor(np.quantile(z.double().cpu().numpy(), (0.25, 0.75), axis=0))
