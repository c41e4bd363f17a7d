"""Shapes in the plane: seeded draws, exact log densities, and a network to learn them with.

`Planar` is the program: site `x` in R^2 on a normal base, and one factor `energy`, a network. The
true laws are in `TARGETS`, each a pair of `draws(n, seed)` and `log_density(x)`, normalised:

* `moons`: two half circles of radius 1, blurred by N(0, noise^2 I); the integral along the arcs is
  taken by Gauss-Legendre quadrature, exact to rounding.
* `eight_gaussians`: equal weights, means at radius 4 / 1.414, sd .5 / 1.414.
* `checkerboard`: uniform on eight squares of side 2; log density -log 32 inside, -inf outside.
* `rings` (radii .75, 1.5, 2.25, 3, sd .08) and `circles` (radii 1.5, 3, sd .24): uniform on
  circles of equal weight, blurred by N(0, sd^2 I), so that at radius r a circle of radius R has
  density exp(-(r^2 + R^2) / (2 sd^2)) I_0(r R / sd^2) / (2 pi sd^2), I_0 the modified Bessel
  function. (Normal in radius alone would give circles an entropy of 3.2640, not 3.2681.)
* `pinwheel`: five arms, N((1, 0), diag(.3^2, .1^2)), each turned by its angle 2 pi k / 5 and bent
  by the angle exp(r) / 4 at radius r, all times 2. Turning by an angle that depends on the radius
  keeps radius and area, so the density is the mixture's at the point turned back. (FFJORD's bends
  by exp of the coordinate along the arm, which for arms so thin is nearly the radius.)
* `spirals`: two arms (-t cos t, t sin t) / 3 and their mirror images, t in (0, 3 pi) with density
  2 t / (3 pi)^2, blurred by N(0, .1^2 I); the integral along the arms as for moons.

References:
    Grathwohl et al. 2019, FFJORD, arXiv:1810.01367 (whose toy data these shapes follow).
"""

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from jaxtyping import Float
from scipy.special import roots_legendre
from torch import Tensor, nn

from ebm_pp.density import Sites

RADIUS, SCALE = 4 / 1.414, 0.5 / 1.414
RINGS, RING_SCALE = (0.75, 1.5, 2.25, 3.0), 0.08
CIRCLES, CIRCLE_SCALE = (1.5, 3.0), 0.24
ARMS, ARM_SCALE, BEND = 5, (0.3, 0.1), 0.25
TURN, SPIRAL_SCALE = 3 * math.pi, 0.1


class Planar(nn.Module):
    """The program: site `x` of shape (2,) on N(0, base_scale^2 I); factor `energy`, a network.

    The last layer starts at zero, so the model starts at its base measure.

    Args:
        width: units of the two hidden layers.
        base_scale: standard deviation of the base; must cover the data.
    """

    base_mean: Tensor
    base_scale: Tensor

    def __init__(self, width: int = 128, base_scale: float = 2.5) -> None:
        super().__init__()
        last = nn.Linear(width, 1)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.net = nn.Sequential(
            nn.Linear(2, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), last
        )
        self.register_buffer("base_mean", torch.zeros(2))
        self.register_buffer("base_scale", torch.full((2,), base_scale))

    def forward(self) -> None:
        """Declare one draw."""
        x = pyro.sample("x", dist.Normal(self.base_mean, self.base_scale).to_event(1))
        pyro.factor("energy", -self.net(x).squeeze(-1))


class Target(NamedTuple):
    """A known law on the plane."""

    draws: Callable[..., Sites]
    log_density: Callable[..., Float[Tensor, "n"]]


@runtime_checkable
class Density(Protocol):
    """Anything with an unnormalised log density of sites, such as an EnergyModel."""

    def log_density(self, x: Sites) -> Tensor:
        """Log density of n draws, shape (n,)."""


def moons(n: int, seed: int, noise: float = 0.1) -> Sites:
    """Draws of the two moons.

    Args:
        n: number of draws.
        seed: of a private generator; the global streams are left alone. The same holds below.
        noise: standard deviation of the blur, in the units of the arcs' radius 1.

    Returns:
        Site `x`, shape (n, 2), in torch's default dtype.
    """
    random = np.random.default_rng(seed)
    centres = _arcs(random.uniform(0, math.pi, n), random.random(n) < 0.5)
    return _sites(centres + noise * random.standard_normal((n, 2)))


def log_moons(x: Sites, noise: float = 0.1) -> Float[Tensor, "n"]:
    """Log density of `moons` at site `x`, in float64.

    The nodes lie closer together than the noise, so quadrature is exact to rounding.
    """
    node, weight = roots_legendre(max(64, math.ceil(20 / noise)))
    angle, half = (node + 1) * math.pi / 2, torch.from_numpy(np.log(weight / 4))
    centres = np.concatenate([_arcs(angle, np.ones_like(angle) == upper) for upper in (1, 0)])
    return _log_mixture(x["x"], torch.from_numpy(centres), noise, torch.cat([half, half]))


def eight_gaussians(n: int, seed: int) -> Sites:
    """Draws of the eight Gaussians: site `x`, shape (n, 2)."""
    random = np.random.default_rng(seed)
    centres = _eight_centres().numpy()[random.integers(0, 8, n)]
    return _sites(centres + SCALE * random.standard_normal((n, 2)))


def log_eight_gaussians(x: Sites) -> Float[Tensor, "n"]:
    """Log density of `eight_gaussians` at site `x`, in float64."""
    weights = torch.full((8,), -math.log(8), dtype=torch.float64)
    return _log_mixture(x["x"], _eight_centres(), SCALE, weights)


def checkerboard(n: int, seed: int) -> Sites:
    """Draws of the checkerboard: site `x`, shape (n, 2), inside [-4, 4)^2."""
    random = np.random.default_rng(seed)
    first = random.uniform(-2, 2, n)
    second = random.random(n) - 2 * random.integers(0, 2, n) + np.floor(first) % 2
    return _sites(2 * np.stack([first, second], -1))


def log_checkerboard(x: Sites) -> Float[Tensor, "n"]:
    """Log density of `checkerboard` at site `x`, in float64; -inf on the white squares."""
    square = (x["x"].double() / 2).floor()
    black = (square.sum(-1) % 2 == 0) & (square.abs() <= 2).all(-1) & (square < 2).all(-1)
    inside = torch.full(black.shape, -math.log(32.0), dtype=torch.float64)
    return torch.where(black, inside, -math.inf)


def rings(n: int, seed: int, radii: tuple[float, ...] = RINGS, scale: float = RING_SCALE) -> Sites:
    """Draws of concentric circles of equal weight.

    Args:
        n: number of draws.
        seed: of a private generator.
        radii: of the circles.
        scale: standard deviation of the blur.

    Returns:
        Site `x`, shape (n, 2), in torch's default dtype.
    """
    random = np.random.default_rng(seed)
    angle, radius = random.uniform(0, 2 * math.pi, n), np.asarray(radii)
    centres = np.stack([np.cos(angle), np.sin(angle)], -1)
    centres *= radius[random.integers(0, len(radius), n)][:, None]
    return _sites(centres + scale * random.standard_normal((n, 2)))


def log_rings(
    x: Sites, radii: tuple[float, ...] = RINGS, scale: float = RING_SCALE
) -> Float[Tensor, "n"]:
    """Log density of `rings` at site `x`, in float64."""
    r = x["x"].double().norm(dim=-1, keepdim=True)
    radius, variance = torch.tensor(radii, dtype=torch.float64), scale**2
    # i0e(u) = exp(-u) I_0(u) turns the exponent into the square of the distance to the circle.
    bessel = torch.special.i0e(r * radius / variance).log()
    log_densities = bessel - (r - radius).square() / (2 * variance)
    return log_densities.logsumexp(-1) - math.log(len(radii) * 2 * math.pi * variance)


def pinwheel(n: int, seed: int) -> Sites:
    """Draws of the pinwheel: site `x`, shape (n, 2)."""
    random = np.random.default_rng(seed)
    arm = random.standard_normal((n, 2)) * ARM_SCALE + [1.0, 0.0]
    start = 2 * math.pi * random.integers(0, ARMS, n) / ARMS
    return _sites(2 * _turned(arm, start + BEND * np.exp(np.linalg.norm(arm, axis=1))))


def log_pinwheel(x: Sites) -> Float[Tensor, "n"]:
    """Log density of `pinwheel` at site `x`, in float64."""
    bent = x["x"].double() / 2
    back = BEND * bent.norm(dim=-1).exp()
    parts = []
    for k in range(ARMS):
        angle = -(back + 2 * math.pi * k / ARMS)
        along = bent[:, 0] * angle.cos() - bent[:, 1] * angle.sin()
        across = bent[:, 0] * angle.sin() + bent[:, 1] * angle.cos()
        z = torch.stack([(along - 1) / ARM_SCALE[0], across / ARM_SCALE[1]], -1)
        parts.append(-0.5 * z.square().sum(-1))
    constant = math.log(4 * ARMS * 2 * math.pi * ARM_SCALE[0] * ARM_SCALE[1])
    return torch.stack(parts, -1).logsumexp(-1) - constant


def spirals(n: int, seed: int) -> Sites:
    """Draws of the two spirals: site `x`, shape (n, 2)."""
    random = np.random.default_rng(seed)
    centres = _spiral(TURN * np.sqrt(random.random(n)))
    centres *= np.where(random.random(n) < 0.5, 1, -1)[:, None]
    return _sites(centres + SPIRAL_SCALE * random.standard_normal((n, 2)))


def log_spirals(x: Sites) -> Float[Tensor, "n"]:
    """Log density of `spirals` at site `x`, in float64; quadrature as for moons."""
    node, weight = roots_legendre(400)  # 15 long: nodes at most .6 of the blur apart
    t = TURN * (node + 1) / 2
    centres = torch.from_numpy(np.concatenate([_spiral(t), -_spiral(t)]))
    half = torch.from_numpy(np.log(weight * t / TURN / 2))
    return _log_mixture(x["x"], centres, SPIRAL_SCALE, torch.cat([half, half]))


TARGETS: dict[str, Target] = {
    "moons": Target(moons, log_moons),
    "eight_gaussians": Target(eight_gaussians, log_eight_gaussians),
    "checkerboard": Target(checkerboard, log_checkerboard),
    "rings": Target(rings, log_rings),
    "circles": Target(
        partial(rings, radii=CIRCLES, scale=CIRCLE_SCALE),
        partial(log_rings, radii=CIRCLES, scale=CIRCLE_SCALE),
    ),
    "pinwheel": Target(pinwheel, log_pinwheel),
    "spirals": Target(spirals, log_spirals),
}


@torch.no_grad()
def grid_log_partition(
    model: Density,
    half_width: float = 12.5,
    cells: int = 1000,
    dtype: torch.dtype | None = None,
) -> float:
    """Log Z of a density over site `x` of shape (2,), by the midpoint rule on a square grid.

    The default reaches 5 standard deviations of `Planar`'s base (6e-7 of its mass lies beyond) in
    cells of .025, where the midpoint rule is exact for shapes wider than about .05.

    Args:
        model: anything with `log_density`, such as an EnergyModel.
        half_width: the grid covers [-half_width, half_width]^2.
        cells: per side.
        dtype: of the points handed to the model; torch's default if None.

    Returns:
        log Z, summed in float64.
    """
    step = 2 * half_width / cells
    edge = (torch.arange(cells, dtype=torch.float64) + 0.5) * step - half_width
    centres = torch.cartesian_prod(edge, edge).to(dtype or torch.get_default_dtype())
    log_densities = [model.log_density({"x": part}).double() for part in centres.split(50_000)]
    return torch.cat(log_densities).logsumexp(0).item() + 2 * math.log(step)


def _sites(x: np.ndarray) -> Sites:
    return {"x": torch.from_numpy(x).to(torch.get_default_dtype())}


def _arcs(angle: np.ndarray, upper: np.ndarray) -> np.ndarray:
    """Points of the upper or the lower moon, the figure's middle at the origin."""
    first = np.where(upper, np.cos(angle), 1 - np.cos(angle)) - 0.5
    second = np.where(upper, np.sin(angle), 0.5 - np.sin(angle)) - 0.25
    return np.stack([first, second], -1)


def _turned(x: np.ndarray, angle: np.ndarray) -> np.ndarray:
    cos, sin = np.cos(angle), np.sin(angle)
    return np.stack([x[:, 0] * cos - x[:, 1] * sin, x[:, 0] * sin + x[:, 1] * cos], -1)


def _spiral(t: np.ndarray) -> np.ndarray:
    return np.stack([-t * np.cos(t), t * np.sin(t)], -1) / 3


def _eight_centres() -> Float[Tensor, "8 2"]:
    angle = torch.arange(8, dtype=torch.float64) * math.pi / 4
    return RADIUS * torch.stack([angle.cos(), angle.sin()], -1)


def _log_mixture(
    x: Float[Tensor, "n 2"],
    centres: Float[Tensor, "k 2"],
    scale: float,
    log_weights: Float[Tensor, "k"],
) -> Float[Tensor, "n"]:
    """Log density of an isotropic Gaussian mixture, in float64."""
    # -|x - c|^2 / (2 scale^2), expanded: one matrix product, and no (n, k, 2) in memory.
    constant = log_weights - centres.square().sum(-1) / (2 * scale**2)
    parts = [
        torch.addmm(constant, part, centres.T, alpha=scale**-2).logsumexp(-1)
        - part.square().sum(-1) / (2 * scale**2)
        for part in x.double().split(10_000)
    ]
    return torch.cat(parts) - math.log(2 * math.pi * scale**2)
