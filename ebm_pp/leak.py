"""Mass of p_theta where q practically never draws, looked for where nothing else looks.

The draws come from the base measure mu and the outskirts o (outskirts.py),

    m = 1/2 mu + 1/2 o        (o alone where mu is improper),

and a draw is beyond the reach of q if its p~ / q is e times the largest of q's own draws. The mass
found is Z_beyond = mean of p~ / m over all draws, zero within reach; as a share of all mass

    share = Z_beyond / (Z + Z_beyond),    Z as the draws of q have it.

A lump is small beside the outskirts: few draws find it and their mean is mostly noise. So the
check looks again, from a mixture that has a third of its draws near those that carried the mass,
until the error of the share is a fifth of it (an adaptive importance sampler; Cappe et al. 2004,
doi:10.1198/106186004X12803). Only the last look counts, whose draws did not choose the mixture.
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
NEAR = 64  # draws that a look again is centred at
WIDTHS = (0.05, 0.2, 0.8)  # of the kernels round them, in the spreads of the outskirts
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
) -> Leak:
    """Looks for mass beyond the reach of q; from the random stream as it stands.

    Args:
        model: the density and its base measure.
        generator: q.
        outer: the outskirts.
        log_weights: log p~ - log q of draws of q, of which as many are drawn at a look.
        log_partition: log Z as the draws of q have it.
    """
    n, ceiling = len(log_weights), log_weights.max().item() + MARGIN
    centres: Tensor | None = None
    for _ in range(LOOKS):
        z, log_m = _look(model, outer, centres, n)
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
        if relative < PRECISE:
            break
        centres = some[:NEAR].unique(dim=0)
    return Leak(share, error, some)


def _look(
    model: EnergyModel, outer: Outskirts, centres: Float[Tensor, "k d"] | None, n: int
) -> tuple[Float[Tensor, "n d"], Float[Tensor, " n"]]:
    """`n` unconstrained draws of m, a third of them near the centres if there are any; log m."""
    n_near = 0 if centres is None else n // 3
    n_base = (n - n_near) // 2 if model.proper else 0
    parts = [outer.sample(n - n_near - n_base)]
    if n_base:
        parts.append(model.unconstrain(model.sample_base(n_base))[0])
    if centres is not None:
        at = centres[torch.randint(len(centres), (n_near,))]
        width = torch.tensor(WIDTHS, dtype=at.dtype)[torch.randint(len(WIDTHS), (n_near, 1))]
        parts.append(at + outer.spread * width.to(at.device) * torch.randn_like(at))
    z = torch.cat(parts)
    logs = [outer.log_prob(z) + math.log((n - n_near - n_base) / n)]
    if n_base:
        x, log_jacobian = model.constrain(z)
        bad = ~model.inside(x)
        log_base = model.log_base(with_stand_ins(x, bad)) + log_jacobian
        log_base = torch.where(bad | log_base.isnan(), -math.inf, log_base)
        logs.append(log_base + math.log(n_base / n))
    if centres is not None:
        logs.append(_log_near(z, centres, outer.spread) + math.log(n_near / n))
    return z, torch.stack(logs).logsumexp(0)


def _log_near(
    z: Float[Tensor, "n d"], centres: Float[Tensor, "k d"], spread: Float[Tensor, " d"]
) -> Float[Tensor, " n"]:
    """Log density of the kernels: normals of three widths round every centre."""
    squared = torch.cdist((z / spread).double(), (centres / spread).double()).square()
    d = z.shape[1]
    volume = spread.double().log().sum() + 0.5 * d * math.log(2 * math.pi)
    parts = [-0.5 * squared / w**2 - d * math.log(w) for w in WIDTHS]
    count = math.log(len(WIDTHS) * len(centres))
    return (torch.cat(parts, 1).logsumexp(1) - volume - count).to(z.dtype)
