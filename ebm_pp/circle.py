"""The circle: a constraint, a flat distribution on it, and the wrap to [-pi, pi).

Pyro gives `VonMises` the support `real`, so a flow would see a line with a seam at +-pi.
Here an angle is any real number modulo a period, 2 pi unless told otherwise; densities are per
unit of its values. Its unconstrained coordinate is z = 2 pi x / period, in radians.
"""

import math
from collections.abc import Sequence

import torch
from pyro.distributions import (
    ExpandedDistribution,
    MaskedDistribution,
    SineBivariateVonMises,
    SineSkewed,
)
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.distributions import (
    Distribution,
    Independent,
    MixtureSameFamily,
    VonMises,
    biject_to,
    constraints,
)
from torch.distributions.transforms import Transform, identity_transform

from ebm_pp.errors import ProgramError

TURN = 2 * math.pi


class _Circular(constraints.Constraint):
    """The real line modulo a period: every finite number is an angle."""

    def __init__(self, period: float = TURN) -> None:
        super().__init__()
        self.period = period

    def check(self, value: Tensor) -> Tensor:
        return torch.isfinite(value)

    def __repr__(self) -> str:
        return "circular" if self.period == TURN else f"circular(period={self.period:g})"


circular = _Circular()


@biject_to.register(_Circular)
def _circular_bijection(constraint: constraints.Constraint) -> Transform:
    return identity_transform


class Circle(TorchDistribution):
    """The uniform distribution on the circle, with density 1 / period at every real number.

    `Circle()` is one angle; `Circle().expand((3,)).to_event(1)` is a vector of three. In radians
    draws lie in [-pi, pi); of another period in [0, period), as compass degrees and hours do. An
    energy sees the values in their own unit: `(2 * pi * x / 360).cos()`.

    Args:
        batch_shape: Shape of independent angles.
        period: What a whole turn is: 360 for degrees, 24 for hours, 2 pi by default.
        validate_args: As everywhere in Pyro.

    Raises:
        ProgramError: The period is not a positive finite number.
    """

    arg_constraints: dict[str, constraints.Constraint] = {}  # noqa: RUF012  Pyro's own form
    has_rsample = True

    def __init__(
        self,
        batch_shape: tuple[int, ...] = (),
        *,
        period: float = TURN,
        validate_args: bool | None = None,
    ) -> None:
        if isinstance(period, bool | str) or not 0 < float(period) < math.inf:
            raise ProgramError(
                f"Circle(period={period!r}): expected a positive number, the length of a turn.\n  "
                "Use 360 for degrees, 24 for hours; leave it out for radians."
            )
        self.period = float(period)
        super().__init__(torch.Size(batch_shape), validate_args=validate_args)

    @property
    def support(self) -> constraints.Constraint:
        """Every real number, modulo the period."""
        return circular if self.period == TURN else _Circular(self.period)

    def expand(self, batch_shape: Sequence[int], _instance: object = None) -> "Circle":
        """The same distribution over a larger `batch_shape`."""
        torch.broadcast_shapes(self.batch_shape, batch_shape)
        return Circle(tuple(batch_shape), period=self.period, validate_args=self._validate_args)

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Angles of shape `sample_shape + batch_shape`, in one turn."""
        turn = torch.rand(torch.Size(sample_shape) + self.batch_shape)
        return wrap(TURN * turn) if self.period == TURN else self.period * turn

    def log_prob(self, value: Tensor) -> Tensor:
        """-log period at every real number."""
        if self._validate_args:
            self._validate_sample(value)
        shape = torch.broadcast_shapes(value.shape, self.batch_shape)
        return torch.full_like(value, -math.log(self.period)).expand(shape)


def to_radians(value: Tensor, period: float) -> Tensor:
    """An angle of any winding as radians in [-pi, pi)."""
    if period == TURN:
        return wrap(value)
    return wrap((value - period * torch.floor(value / period)) * (TURN / period))


def from_radians(z: Tensor, period: float) -> Tensor:
    """Radians as an angle of a period: in [-pi, pi) of 2 pi, in [0, period) of others."""
    if period == TURN:
        return wrap(z)
    turned = wrap(z) * (period / TURN)
    turned = torch.where(turned < 0, turned + period, turned)
    return torch.where(turned >= period, turned - period, turned)  # rounding at the seam


def wrap(angle: Tensor) -> Tensor:
    """The same angle in [-pi, pi), exact where it lies there already; gradient one.

    Args:
        angle: Radians, any shape.

    Returns:
        Radians of the same shape.
    """
    turned = angle - 2 * math.pi * torch.round(angle / (2 * math.pi))
    # Rounding can leave a value one unit outside either end.
    turned = torch.where(turned < -math.pi, turned + 2 * math.pi, turned)
    return torch.where(turned >= math.pi, turned - 2 * math.pi, turned)


def layers(fn: Distribution) -> list[Distribution]:
    """A distribution and those inside it: `to_event`, `expand`, `mask`, a mixture's parts."""
    found = [fn]
    while True:
        if isinstance(found[-1], Independent | ExpandedDistribution | MaskedDistribution):
            found.append(found[-1].base_dist)
        elif isinstance(found[-1], MixtureSameFamily):
            found.append(found[-1].component_distribution)
        else:
            return found


def innermost(fn: Distribution) -> Distribution:
    """The distribution inside `to_event`, `expand`, `mask` and a mixture."""
    return layers(fn)[-1]


def is_circular(fn: Distribution) -> bool:
    """Whether every coordinate of a site with this distribution is an angle."""
    return isinstance(innermost(fn), Circle | VonMises | SineBivariateVonMises | SineSkewed)
