"""Mass of p_theta where q practically never draws, looked for where nothing else looks.

The draws come from the base measure mu and the outskirts o (outskirts.py),

    m = 1/2 mu + 1/2 o        (o alone where mu is improper),

and a draw is beyond the reach of q if its p~ / q is e times the largest of q's own draws. The mass
found is Z_beyond = mean of p~ / m over all draws, zero within reach; as a share of all mass

    share = Z_beyond / (Z + Z_beyond),    Z as the draws of q have it.

A lump is small beside the outskirts: few draws find it and their mean is mostly noise. So the
check looks again, from outskirts that have lumps where draws carried the mass, until the error of
the share is a fifth of it (an adaptive importance sampler; Cappe et al. 2004,
doi:10.1198/106186004X12803). Only the last look counts, whose draws did not choose the mixture.

A fit looks too, at every diagnosis: what it finds are lumps of its outskirts until the next one,
so that the pool has draws there and the energy is pushed down.
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from ebm_pp.density import EnergyModel
from ebm_pp.generator import Generator
from ebm_pp.outskirts import Outskirts
from ebm_pp.sampling import log_ratio, score, with_stand_ins

MARGIN = 1.0  # nats above the largest weight of a draw
LOOKS = 4
MANY = 16_384  # draws of a look, where they cost little: of the outskirts a lump can be 1/1000
A_ROUND = 2048  # of a look at a round's energy: there are many rounds
SMALL = 0.01  # share of a lump that a fit needs no draws at
PRECISE = 0.2  # of the share: its error when no further look is needed
TRIED = 100  # draws beyond reach that are returned


class Leak(NamedTuple):
    """Mass of p_theta beyond the reach of q.

    * share: of the mass of p_theta, in [0, 1).
    * standard_error: of `share`, by the delta method.
    * z: unconstrained draws beyond reach, by the mass they carry, with replacement; none if no
      mass was found. Shape (k, d).
    """

    share: float
    standard_error: float
    z: Float[Tensor, "k d"]


@torch.no_grad()
def find_leak(
    model: EnergyModel,
    generator: Generator,
    outer: Outskirts,
    log_weights: Float[Tensor, " n"],
    log_partition: float,
    n: int,
    least: float = 0.0,
) -> Leak:
    """Looks for mass beyond the reach of q; from the random stream as it stands.

    Args:
        model: the density and its base measure.
        generator: q.
        outer: the outskirts.
        log_weights: log p~ - log q of draws of q.
        log_partition: log Z as the draws of q have it.
        n: draws of a look.
        least: a share that is not looked at again.
    """
    ceiling = log_weights.max().item() + MARGIN
    for _ in range(LOOKS):
        z, log_m = _look(model, outer, n)
        x, log_jacobian = model.constrain(z)
        log_p, bad = score(model, x, torch.zeros_like(log_jacobian))
        if bad.all():
            return Leak(0.0, 0.0, z[:0])
        x = with_stand_ins(x, bad)
        beyond = log_p - generator.log_prob(x) > ceiling
        log_p = torch.where(beyond & ~bad, log_p + log_jacobian, -math.inf)
        log_w = log_ratio(log_p, log_m).double()
        if not (log_w > -math.inf).any():
            return Leak(0.0, 0.0, z[:0])
        log_mass = (log_w.logsumexp(0) - math.log(n)).item() - log_partition
        shares = log_w.softmax(0)
        relative = math.sqrt(max(shares.square().sum().item() - 1 / n, 0.0))
        share = 1 / (1 + math.exp(-log_mass)) if log_mass > -700 else 0.0
        error = (1 - share) * share * relative
        some = z[torch.multinomial(shares, TRIED, replacement=True)]
        if relative < PRECISE or share < least:
            break
        outer = outer.with_lumps(some.unique(dim=0))
    return Leak(share, error, some)


def with_lumps_found(
    model: EnergyModel,
    generator: Generator,
    outer: Outskirts,
    log_weights: Float[Tensor, " n"],
    log_partition: float,
) -> Outskirts:
    """The outskirts with the lumps of a round's energy, and without those of earlier rounds.

    Kept for longer they would take the draws from where the next lump rises.
    """
    outer = outer.with_lumps(outer.lumps[:0])
    leak = find_leak(model, generator, outer, log_weights, log_partition, A_ROUND, SMALL)
    return outer if leak.share < SMALL else outer.with_lumps(leak.z.unique(dim=0))


def _look(
    model: EnergyModel, outer: Outskirts, n: int
) -> tuple[Float[Tensor, "n d"], Float[Tensor, " n"]]:
    """`n` unconstrained draws of m, and log m."""
    n_base = n // 2 if model.proper else 0
    z = outer.sample(n - n_base)
    if not n_base:
        return z, outer.log_prob(z)
    z = torch.cat([z, model.unconstrain(model.sample_base(n_base))[0]])
    x, log_jacobian = model.constrain(z)
    bad = ~model.inside(x)
    log_base = model.log_base(with_stand_ins(x, bad)) + log_jacobian
    log_base = torch.where(bad | log_base.isnan(), -math.inf, log_base)
    share = n_base / n
    return z, torch.logaddexp(outer.log_prob(z) + math.log1p(-share), log_base + math.log(share))
