"""Draws from where neither the generator nor the base measure draws, though mass may hide there.

A free energy can raise a lump beyond the base measure, or on the way to a row far from all others:
no draw of q or mu ever finds it, and weights, moments and log Z look healthy without it. So a few
draws come from a density o of our own, in u = (z - centre) / spread, z unconstrained:

    wide    u ~ 1/3 sum_s N(0, s^2 I),  s in WIDTHS
    ways    u = (1 - t) a + t b + THICK eps,  t ~ U(0, 1),  eps ~ N(0, I)

with (a, b) one of the K pieces of the straight ways from the centre to each of the farthest rows,
cut where the distance doubles, and from each of these rows to the next. With L = |b - a|, s the
distance from a along the way and r that from the way, in d coordinates of the line,

    o(u) = 1/K sum_k [Phi(s / h) - Phi((s - L) / h)] / L * N_{d-1}(r; h),     h = THICK.

Angles are uniform, and on the ways too. Where lumps were found (leak.py), two thirds of the draws
are near them, on the kernels

    k(z) = mean over lumps l and widths h in KERNELS of N(z; l, (h spread)^2),

of angles with the nearest winding.
"""

import math
from itertools import pairwise
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ebm_pp.circle import wrap
from ebm_pp.density import EnergyModel, Sites
from ebm_pp.moments import coordinate_names

WIDTHS = (1.5, 3.0, 6.0)  # of the wide part, in the wider spread of base measure and data
THICK = 0.25  # of a way
BULK = 4.0  # a way begins to be cut here; nearer the centre every draw has been
FARTHEST = 8  # rows whose ways are walked
BASE = 2000  # draws of the base measure, for its middle and spread
END = 1e5  # spreads: where a way ends at the latest, while double precision knows its distances
KERNELS = (0.05, 0.2, 0.8)  # widths of the kernels round a lump, in spreads
NEAR = 2 / 3  # of the draws, where there are lumps
MOST_LUMPS = 64  # that have kernels
SAME = 1e-6  # of its distance: nearer to a far row is that row
LOG_2PI = math.log(2 * math.pi)


class Outskirts(NamedTuple):
    """The density o, in unconstrained coordinates.

    * centre, spread: of each coordinate, shape (d,).
    * circular: which are angles, shape (d,).
    * starts, ends: a and b of every piece, u's coordinates on the line, shape (k, m); k may be 0.
    * lumps: where mass was found that nothing else draws, shape (l, d); l may be 0.
    """

    centre: Float[Tensor, " d"]
    spread: Float[Tensor, " d"]
    circular: Bool[Tensor, " d"]
    starts: Float[Tensor, "k m"]
    ends: Float[Tensor, "k m"]
    lumps: Float[Tensor, "l d"]

    def with_lumps(self, lumps: Float[Tensor, "l d"]) -> "Outskirts":
        """These, with draws near other lumps."""
        return self._replace(lumps=lumps[:MOST_LUMPS])

    def sample(self, n: int) -> Float[Tensor, "n d"]:
        """`n` draws from the random stream as it stands."""
        n_near = int((torch.rand(n) < NEAR).sum()) if len(self.lumps) else 0
        elsewhere = self._sample_elsewhere(n - n_near)
        if not n_near:
            return elsewhere
        at = self.lumps[torch.randint(len(self.lumps), (n_near,))]
        width = torch.tensor(KERNELS, dtype=at.dtype)[torch.randint(len(KERNELS), (n_near, 1))]
        near = at + self.spread * width.to(at.device) * torch.randn_like(at)
        return torch.cat([elsewhere, torch.where(self.circular, wrap(near), near)])

    def _sample_elsewhere(self, n: int) -> Float[Tensor, "n d"]:
        """Half wide, half on the ways."""
        line = ~self.circular
        m = int(line.sum())
        on_ways = n // 2 if len(self.starts) and m else 0
        widths = torch.tensor(WIDTHS, dtype=torch.float64)[torch.randint(len(WIDTHS), (n,))]
        u = widths[:, None] * torch.randn(n, m, dtype=torch.float64)
        if on_ways:
            k = torch.randint(len(self.starts), (on_ways,))
            t = torch.rand(on_ways, 1, dtype=torch.float64)
            a, b = self.starts.cpu()[k], self.ends.cpu()[k]
            u[:on_ways] = a + t * (b - a) + THICK * torch.randn(on_ways, m, dtype=torch.float64)
        z = 2 * math.pi * torch.rand(n, len(line), dtype=torch.float64) - math.pi
        z[:, line.cpu()] = u
        z = z.to(self.centre.device)
        return torch.where(line, self.centre + self.spread * z, z).to(self.centre.dtype)

    def log_prob(self, z: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
        """Log o, a density of z."""
        elsewhere = self._log_elsewhere(z)
        if not len(self.lumps):
            return elsewhere
        return torch.logaddexp(elsewhere + math.log1p(-NEAR), self._log_near(z) + math.log(NEAR))

    def _log_near(self, z: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
        line, spread = ~self.circular, self.spread.double()
        u, lumps = z.double() / spread, self.lumps.double() / spread
        squared = torch.cdist(u[:, line], lumps[:, line]).square()
        for angle in self.circular.nonzero()[:, 0].tolist():  # their spread is one
            squared = squared + wrap(u[:, angle, None] - lumps[:, angle]).square()
        d = z.shape[1]
        parts = [-0.5 * squared / h**2 - d * (math.log(h) + 0.5 * LOG_2PI) for h in KERNELS]
        count = math.log(len(KERNELS) * len(lumps))
        return (torch.cat(parts, 1).logsumexp(1) - spread.log().sum() - count).to(z.dtype)

    def _log_elsewhere(self, z: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
        line = ~self.circular
        angles = int(self.circular.sum()) * math.log(2 * math.pi)
        u = ((z - self.centre) / self.spread)[:, line].double()
        jacobian = self.spread[line].double().log().sum() + angles
        squared, m = u.square().sum(1), u.shape[1]
        parts = [
            -0.5 * squared / s**2 - m * (math.log(s) + 0.5 * LOG_2PI) - math.log(len(WIDTHS))
            for s in WIDTHS
        ]
        wide = torch.stack(parts).logsumexp(0)
        if not len(self.starts) or not m:
            return (wide - jacobian).to(z.dtype)
        both = torch.stack([wide, self._log_ways(u)]) - math.log(2)
        return (both.logsumexp(0) - jacobian).to(z.dtype)

    def among(self, z: Float[Tensor, "n d"]) -> bool:
        """Whether any of the farthest rows, whose ways these are, is among rows."""
        line = ~self.circular
        u = ((z - self.centre) / self.spread)[:, line].double()
        if not len(self.ends) or not len(u):
            return False
        off = torch.cdist(u, self.ends.to(u), compute_mode="donot_use_mm_for_euclid_dist")
        return bool((off <= SAME * self.ends.norm(dim=1)).any())

    def _log_ways(self, u: Float[Tensor, "n m"]) -> Float[Tensor, " n"]:
        way = self.ends - self.starts
        length = way.norm(dim=1)
        direction = way / length[:, None]
        offset = u @ direction.T - (self.starts * direction).sum(1)  # s, shape (n, k)
        total = u.square().sum(1, keepdim=True) - 2 * u @ self.starts.T
        across = (total + self.starts.square().sum(1) - offset.square()).clamp_min(0.0)
        inside = _log_normal_between(offset / THICK, (offset - length) / THICK)
        m = u.shape[1]
        log_across = -0.5 * across / THICK**2 - (m - 1) * (math.log(THICK) + 0.5 * LOG_2PI)
        return (inside - length.log() + log_across - math.log(len(way))).logsumexp(1)


def _log_normal_between(high: Tensor, low: Tensor) -> Tensor:
    """log[Phi(high) - Phi(low)], high > low, to full relative precision on either side."""
    flip = low > 0  # in the upper tail by symmetry
    high, low = torch.where(flip, -low, high), torch.where(flip, -high, low)
    log_high, log_low = torch.special.log_ndtr(high), torch.special.log_ndtr(low)
    return log_high + torch.log1p(-(log_low - log_high).exp().clamp_max(1.0))


@torch.no_grad()
def outskirts_of(model: EnergyModel, rows: Sites) -> Outskirts:
    """The outskirts of a model and rows of its data; draws from the base measure if it can."""
    z_base = model.unconstrain(model.sample_base(BASE))[0] if model.proper else None
    return outskirts(model.circular, model.unconstrain(rows)[0], z_base)


class Away(NamedTuple):
    """How far the base measure is from the rows.

    * name: the coordinate where it is farthest.
    * spreads: half of the rows are so many of its spreads from its middle, or more.
    """

    name: str
    spreads: float


@torch.no_grad()
def base_away(model: EnergyModel, z_data: Float[Tensor, "n d"]) -> Away | None:
    """How far the base measure is from rows, on the line; None if it is improper or all angles."""
    line = (~model.circular).nonzero()[:, 0]
    if not model.proper or not len(line):
        return None
    base, spread = _middle(model.unconstrain(model.sample_base(BASE))[0][:, line])
    away = ((z_data[:, line] - base) / spread).abs().median(0).values
    farthest = int(away.argmax())
    return Away(coordinate_names(model)[line[farthest]], away[farthest].item())


def outskirts(
    circular: Bool[Tensor, " d"],
    z_data: Float[Tensor, "n d"],
    z_base: Float[Tensor, "m d"] | None,
) -> Outskirts:
    """The outskirts of rows of data and of draws of a base measure.

    Args:
        circular: which coordinates are angles.
        z_data: unconstrained rows, of which the farthest have ways.
        z_base: unconstrained draws of the base measure; None if it is improper.
    """
    centre, spread = _middle(z_data)
    if z_base is not None:
        middle, other = _middle(z_base)
        wider = other > spread
        centre, spread = torch.where(wider, middle, centre), torch.where(wider, other, spread)
    spread = torch.where(circular | (spread <= 0) | ~spread.isfinite(), 1.0, spread)
    centre = torch.where(circular, 0.0, centre)
    u = ((z_data - centre) / spread)[:, ~circular].double()
    far = u[u.square().sum(1).topk(min(FARTHEST, len(u))).indices] if u.shape[1] else u[:0]
    far = far * (END / far.norm(dim=1, keepdim=True)).clamp_max(1.0)
    pieces = _pieces(far)
    starts, ends = (
        torch.stack(part) if part else u.new_empty(0, u.shape[1])
        for part in ([a for a, _ in pieces], [b for _, b in pieces])
    )
    return Outskirts(centre, spread, circular, starts, ends, z_data[:0])


def _middle(z: Float[Tensor, "n d"]) -> tuple[Tensor, Tensor]:
    """Median, and interquartile range in a normal's standard deviations: no single row counts."""
    ordered = z.sort(0).values
    low, middle, high = (ordered[int(q * (len(z) - 1))] for q in (0.25, 0.5, 0.75))
    spread = (high - low) / 1.349
    return middle, torch.where(spread > 0, spread, z.std(0, correction=0))


def _pieces(far: Float[Tensor, "k m"]) -> list[tuple[Tensor, Tensor]]:
    """From the centre to every far row, cut where the distance doubles, and from row to row."""
    found = []
    for row in far:
        distance = row.norm().item()
        cuts, at = [0.0], BULK
        while at < distance:
            cuts.append(at)
            at *= 2
        cuts.append(distance)
        found += [(row * (a / distance), row * (b / distance))
                  for a, b in pairwise(cuts) if distance > 0]  # fmt: skip
    return found + [(a, b) for a, b in pairwise(far) if bool((a != b).any())]
