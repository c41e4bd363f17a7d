"""The data sets of the benchmark, each with all that is known exactly about its law.

Training rows come from seed 100 + s, test rows from 200 + s, rows for measurements from 300 + s.
"""

from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import one_hot

from ebm_pp.density import Sites
from models import digits, many_well, mixture, planar
from models.network import Network

TRAIN, TEST = 8192, 10_000  # rows
VALIDATION = 287  # of the digits' 1,437 training rows, one in five

Rows = Float[Tensor, "n d"]
LogDensity = Callable[[Rows], Float[Tensor, "n"]]


class Problem(NamedTuple):
    """A data set.

    name: of the problem.
    train: rows to learn from, shape (n, d).
    test: rows to be scored.
    validation: rows to stop by, where data are so few that everything overfits; else None.
    base: settings of the program's base measure.
    log_density: of the truth, normalised, in float64; None if unknown.
    draws: of the truth, from n and a seed; None if there are no more than the rows.
    shares: true probability of each mode, shape (m,); None if there are no separate modes.
    members: how much of each row belongs to each mode, (n, m), a mean of `shares` over the truth.
    """

    name: str
    train: Rows
    test: Rows
    log_density: LogDensity | None = None
    draws: Callable[[int, int], Rows] | None = None
    shares: Float[Tensor, "m"] | None = None
    members: Callable[[Rows], Float[Tensor, "n m"]] | None = None
    validation: Rows | None = None
    base: Mapping[str, Any] = MappingProxyType({})

    def program(self, **settings: int | float) -> Network:
        """The program, the same for every recipe, its parameters from torch's random stream."""
        return Network(self.train, **self.base, **settings)

    @property
    def dim(self) -> int:
        """d."""
        return self.train.shape[1]


Modes = tuple[Float[Tensor, "m"] | None, Callable[[Rows], Float[Tensor, "n m"]] | None]
NO_MODES: Modes = (None, None)


def known(
    name: str,
    draws: Callable[[int, int], Sites],
    log_density: Callable[[Sites], Tensor],
    modes: Modes,
    seed: int,
) -> Problem:
    """A problem whose law is known."""

    def rows(n: int, seed: int) -> Rows:
        return draws(n, seed)["x"]

    def log_truth(x: Rows) -> Tensor:
        return log_density({"x": x.double()})

    train, test = rows(TRAIN, 100 + seed), rows(TEST, 200 + seed)
    return Problem(name, train, test, log_truth, rows, *modes)


def images(seed: int) -> Problem:
    """The digits; what is reported of them is held-out log-likelihood, not KL."""
    rows, test = digits.load_digits(seed)
    train, validation = rows["x"].tensor_split((VALIDATION,))[::-1]
    base = MappingProxyType({"spread": 1.0, "correlated": True})
    return Problem("digits", train, test["x"], validation=validation, base=base)


def nearest(centres: Float[Tensor, "m d"]) -> Modes:
    """Equal modes, each row in that of the nearest centre."""
    m = len(centres)

    def members(x: Rows) -> Tensor:
        return one_hot(torch.cdist(x.double(), centres).argmin(1), m).double()

    return torch.full((m,), 1 / m, dtype=torch.float64), members


def ring_modes() -> Modes:
    """Each row on the nearest ring; the rings are 9 standard deviations apart."""
    radii = torch.tensor(planar.RINGS, dtype=torch.float64)

    def members(x: Rows) -> Tensor:
        distance = (x.double().norm(dim=1, keepdim=True) - radii).abs()
        return one_hot(distance.argmin(1), len(radii)).double()

    return torch.full((len(radii),), 1 / len(radii), dtype=torch.float64), members


def checkerboard_modes() -> Modes:
    """The eight squares; a row outside them belongs to none."""
    edge = torch.arange(-4, 4, 2.0, dtype=torch.float64) + 1
    centres = torch.cartesian_prod(edge, edge)
    centres = centres[planar.log_checkerboard({"x": centres}).isfinite()]

    def members(x: Rows) -> Tensor:
        return ((x.double()[:, None] - centres).abs() <= 1).all(2).double()

    return torch.full((8,), 1 / 8, dtype=torch.float64), members


def well_modes(d: int) -> Modes:
    """The patterns of signs for d = 8; beyond, where most are too rare to see, every well's sides.

    The 2 (d / 2) sides are not disjoint: each row is on one side of each well.
    """
    if d <= 8:
        shares = many_well.mode_shares(d)

        def pattern(x: Rows) -> Tensor:
            return one_hot(many_well.modes({"x": x}), len(shares)).double()

        return shares, pattern
    left, right = many_well.mode_shares(2)

    def sides(x: Rows) -> Tensor:
        positive = (x[:, 0::2] > 0).double()
        return torch.cat([1 - positive, positive], 1)

    return torch.stack([left, right]).repeat_interleave(d // 2), sides


def wells(d: int, seed: int) -> Problem:
    """Exact draws of Many-Well, as data."""
    log_z = many_well.log_partition(d)

    def draws(n: int, seed: int) -> Sites:
        return many_well.draws(n, seed, d)

    def log_density(x: Sites) -> Tensor:
        a, b = x["x"][:, 0::2], x["x"][:, 1::2]
        return (-a.pow(4) + 6 * a.square() + 0.5 * a - 0.5 * b.square()).sum(1) - log_z

    return known(f"many_well_{d}", draws, log_density, well_modes(d), seed)


def mixed(name: str, seed: int) -> Problem:
    """A Gaussian mixture; a mode's share is the mean responsibility of its component."""
    law = mixture.MIXTURES[name]

    def draws(n: int, seed: int) -> Sites:
        return mixture.draws(law, n, seed)

    def log_density(x: Sites) -> Tensor:
        return mixture.log_density(law, x)

    def members(x: Rows) -> Tensor:
        return mixture.responsibilities(law, {"x": x})

    return known(f"mixture_{law.means.shape[1]}", draws, log_density, (law.weights, members), seed)


def plane(name: str, modes: Callable[[], Modes], seed: int) -> Problem:
    """A shape in the plane."""
    return known(name, *planar.TARGETS[name], modes(), seed)


PLANAR = ("moons", "eight_gaussians", "checkerboard", "rings", "pinwheel", "spirals")
HIGH = ("many_well_8", "many_well_16", "many_well_32", "mixture_10", "mixture_30", "digits")
PLANAR_MODES: dict[str, Callable[[], Modes]] = {
    "eight_gaussians": lambda: nearest(planar._eight_centres()),
    "checkerboard": checkerboard_modes,
    "rings": ring_modes,
}
PROBLEMS: dict[str, Callable[[int], Problem]] = {
    **{name: partial(plane, name, PLANAR_MODES.get(name, lambda: NO_MODES)) for name in PLANAR},
    **{f"many_well_{d}": partial(wells, d) for d in (8, 16, 32)},
    "mixture_10": partial(mixed, "ten"),
    "mixture_30": partial(mixed, "thirty"),
    "digits": images,
}
