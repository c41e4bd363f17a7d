"""A given density: no data, nothing to learn in the energy, only a generator to fit to it.

Draws of q stand for p~ by their weights w = p~ / q. Where these are too uneven the target is
annealed: w^beta, with beta the largest power that keeps enough of them. A run starts wide and
with heavy tails, since a given density shows only what the draws reach.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from ebm_pp import losses
from ebm_pp.density import EnergyModel, Sites
from ebm_pp.generator import FlowGenerator, Generator
from ebm_pp.partition import ess_fraction
from ebm_pp.pool import Pool, pick, stack
from ebm_pp.sampling import log_ratio

WIDE = 3.0  # scale of the start where the base measure is improper and says none
AFFINE, LOG_SCALE = 8, 5.0  # layers and what each may scale: a funnel's neck is e^-5 narrow
BINS = 16  # beyond the plane


def default_flow(model: EnergyModel, n: int) -> FlowGenerator:
    """The flow that `fit` makes: at the scale of the base measure, of `n` of its draws."""
    base = model.sample_base(n) if model.proper else None
    bins = None if model.dim <= 2 else BINS
    scale = WIDE if base is None else 1.0
    return FlowGenerator(
        model, base, scale=scale, base="student_t", affine=AFFINE, bins=bins, log_scale=LOG_SCALE
    )


class Annealed(NamedTuple):
    """Rows that stand for p~.

    * rows: draws of pools' mixtures m, without those that were rejected.
    * log_weights: log w^beta, w = p~ / m.
    * log_m: log m.
    * beta: the power.
    """

    rows: Sites
    log_weights: Float[Tensor, " n"]
    log_m: Float[Tensor, " n"]
    beta: float


def annealed(memory: list[tuple[Pool, Tensor]], ess: float) -> Annealed:
    """The rows that stand for p~, with log weights log w^beta.

    Args:
        memory: past pools with their log p~, the newest last.
        ess: ESS fraction that the newest pool's weights shall keep.

    Returns:
        The newest pool's, or at beta = 1 those of all pools.

    Raises:
        FloatingPointError: no draw of the newest pool has any mass.
    """
    pool, log_density = memory[-1]
    newest = log_ratio(log_density, pool.log_q)
    massless = newest == -math.inf
    if massless.all():
        raise FloatingPointError("no draw of the pool has any mass: start wider")
    beta = _power(newest[~massless], ess)
    if beta < 1:
        memory = memory[-1:]
    kept = [~old.rejected for old, _ in memory]
    rows = stack(*[pick(old.x, some) for (old, _), some in zip(memory, kept, strict=True)])
    log_m = torch.cat([old.log_q[some] for (old, _), some in zip(memory, kept, strict=True)])
    log_p = torch.cat([log_p[some] for (_, log_p), some in zip(memory, kept, strict=True)])
    log_weights = log_ratio(log_p, log_m)
    annealed_weights = torch.where(log_weights == -math.inf, log_weights, beta * log_weights)
    return Annealed(rows, annealed_weights, log_m, beta)


def step_losses(
    generator: Generator, target: Annealed, sizes: list[int]
) -> Iterator[Float[Tensor, ""]]:
    """The loss of each step, on so many of the rows, every row once before any comes again.

    Args:
        generator: q; to be moved between one loss and the next.
        target: of `annealed`.
        sizes: rows of each step.
    """
    n = len(target.log_weights)
    log_weights = target.log_weights - (target.log_weights.logsumexp(0) - math.log(n))
    order = torch.cat([torch.randperm(n) for _ in range(sum(sizes) // n + 1)])
    for at in order[: sum(sizes)].split(sizes):
        log_q = generator.log_prob(pick(target.rows, at))
        yield losses.generalised_forward_kl(log_q, log_weights[at], target.log_m[at])


def _power(log_weights: Float[Tensor, " n"], ess: float) -> float:
    """The largest beta in [0, 1] at which w^beta has at least this ESS fraction, by bisection."""
    low, high = 0.0, 1.0
    if ess_fraction(log_weights) >= ess:
        return 1.0
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (middle, high) if ess_fraction(middle * log_weights) >= ess else (low, middle)
    return low
