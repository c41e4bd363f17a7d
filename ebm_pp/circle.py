"""The circle: a constraint, a flat distribution on it, and the wrap to [-pi, pi).

Pyro gives `VonMises` the support `real`, so a flow would see a line with a seam at +-pi.
Here an angle is any real number modulo 2 pi; densities are per radian.
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


class _Circular(constraints.Constraint):
    """The real line modulo 2 pi: every finite number is an angle."""

    def check(self, value: Tensor) -> Tensor:
        return torch.isfinite(value)

    def __repr__(self) -> str:
        return "circular"


circular = _Circular()


@biject_to.register(circular)
def _circular_bijection(constraint: constraints.Constraint) -> Transform:
    return identity_transform


class Circle(TorchDistribution):
    """The uniform distribution on the circle, with density 1 / (2 pi) at every real number.

    `Circle()` is one angle; `Circle().expand((3,)).to_event(1)` is a vector of three.
    Draws lie in [-pi, pi).

    Args:
        batch_shape: Shape of independent angles.
        validate_args: As everywhere in Pyro.
    """

    arg_constraints: dict[str, constraints.Constraint] = {}  # noqa: RUF012  Pyro's own form
    support = circular
    has_rsample = True

    def __init__(
        self, batch_shape: tuple[int, ...] = (), *, validate_args: bool | None = None
    ) -> None:
        super().__init__(torch.Size(batch_shape), validate_args=validate_args)

    def expand(self, batch_shape: Sequence[int], _instance: object = None) -> "Circle":
        """The same distribution over a larger `batch_shape`."""
        torch.broadcast_shapes(self.batch_shape, batch_shape)
        return Circle(tuple(batch_shape), validate_args=self._validate_args)

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Angles of shape `sample_shape + batch_shape`, in [-pi, pi)."""
        return wrap(2 * math.pi * torch.rand(torch.Size(sample_shape) + self.batch_shape))

    def log_prob(self, value: Tensor) -> Tensor:
        """-log(2 pi) at every real number."""
        if self._validate_args:
            self._validate_sample(value)
        shape = torch.broadcast_shapes(value.shape, self.batch_shape)
        return torch.full_like(value, -math.log(2 * math.pi)).expand(shape)


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
