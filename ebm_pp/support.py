"""Bijections between unconstrained coordinates and the supports that Pyro knows.

As in Pyro, `biject_to(support)`, with three additions: lower-triangular and positive-definite
matrices, which Pyro's registry leaves out of the bijections (their coordinates are the lower
triangle, row by row, with the logarithm on the diagonal), and an inverse of stick breaking
that stays exact where the last parts are small.
"""

import math
from typing import Any

import torch
from pyro.distributions import TransformedDistribution as PyroTransformed
from pyro.distributions.transforms import CholeskyTransform
from torch import Tensor
from torch.distributions import (
    Distribution,
    TransformedDistribution,
    biject_to,
    constraints,
    transforms,
)
from torch.distributions.constraints import MixtureSameFamilyConstraint
from torch.distributions.transforms import ComposeTransform, StickBreakingTransform, Transform
from torch.nn.functional import logsigmoid, pad

from ebm_pp.circle import innermost


class StickBreaking(StickBreakingTransform):
    """Pyro's stick breaking in logarithms, so that small parts keep their relative precision.

    With u_k = z_k - log(K - k): part y_k = sigmoid(u_k) r_k and rest r_{k+1} = sigmoid(-u_k) r_k,
    r_1 = 1. The inverse sums the remaining parts instead of taking the used ones from one.
    """

    def _call(self, x: Tensor) -> Tensor:
        u = x - _log_left(x)
        rest = pad(logsigmoid(-u).cumsum(-1), [1, 0])
        return (pad(logsigmoid(u), [0, 1]) + rest).exp()

    def _inverse(self, y: Tensor) -> Tensor:
        rest = y.flip(-1).cumsum(-1).flip(-1)[..., 1:]
        return y[..., :-1].log() - rest.log() + _log_left(rest)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """Sum over k of log sigmoid(u_k) + log sigmoid(-u_k) + log r_k."""
        u = x - _log_left(x)
        turns = torch.arange(x.shape[-1], 0, -1, device=x.device).to(x)
        return (logsigmoid(u) + turns * logsigmoid(-u)).sum(-1)


def _log_left(x: Tensor) -> Tensor:
    """log(K - k), the number of parts that remain at each of K - 1 breaks."""
    return torch.arange(x.shape[-1], 0, -1, device=x.device).to(x).log()


class LowerCholesky(Transform):
    """A vector of D (D + 1) / 2 numbers to a D x D lower triangle with positive diagonal."""

    domain = constraints.real_vector
    codomain = constraints.lower_cholesky
    bijective = True

    def __eq__(self, other: object) -> bool:
        return isinstance(other, LowerCholesky)

    __hash__ = Transform.__hash__

    def _call(self, x: Tensor) -> Tensor:
        size = _side(x.shape[-1])
        rows, columns = torch.tril_indices(size, size, device=x.device)
        place = torch.zeros(size, size, dtype=torch.long, device=x.device)
        place[rows, columns] = torch.arange(x.shape[-1], device=x.device)
        square = x[..., place]
        return square.tril(-1) + torch.diag_embed(square.diagonal(dim1=-2, dim2=-1).exp())

    def _inverse(self, y: Tensor) -> Tensor:
        size = y.shape[-1]
        rows, columns = torch.tril_indices(size, size, device=y.device)
        triangle = y.tril(-1) + torch.diag_embed(y.diagonal(dim1=-2, dim2=-1).log())
        return triangle[..., rows, columns]

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """Sum of the log diagonal, per matrix."""
        return y.diagonal(dim1=-2, dim2=-1).log().sum(-1)

    def forward_shape(self, shape: torch.Size) -> torch.Size:
        """The shape of the matrix for a vector's shape."""
        size = _side(shape[-1])
        return torch.Size((*shape[:-1], size, size))

    def inverse_shape(self, shape: torch.Size) -> torch.Size:
        """The shape of the vector for a matrix's shape."""
        return torch.Size((*shape[:-2], shape[-1] * (shape[-1] + 1) // 2))


class Root(CholeskyTransform):
    """Pyro's Cholesky factor; nan instead of an error where rounding has left none."""

    def _call(self, x: Tensor) -> Tensor:
        root, failed = torch.linalg.cholesky_ex(x)
        return torch.where(failed[..., None, None] > 0, math.nan, root)


def _side(numbers: int) -> int:
    return (math.isqrt(8 * numbers + 1) - 1) // 2


def bijection(support: constraints.Constraint) -> Transform:
    """The map from unconstrained coordinates onto a support.

    Args:
        support: The constraint of one site, without the leading `n`.

    Returns:
        A bijective transform whose log-Jacobian is known.

    Raises:
        NotImplementedError: No bijection onto this support is known.
    """
    support = plain(support)
    if isinstance(support, type(constraints.simplex)):
        return StickBreaking()
    if type(support) is type(constraints.lower_cholesky):
        return LowerCholesky()
    if type(support) is type(constraints.positive_definite):
        return ComposeTransform([LowerCholesky(), Root().inv])
    return biject_to(support)


def support_of(fn: Distribution) -> Any:  # noqa: ANN401 - torch calls a constraint optional
    """The true support of a distribution.

    torch gives a base behind transforms the codomain of the last of them: all of the real line for
    `3 - Exponential(1)`. Where all maps are monotone in single numbers, the ends of the base's
    support go through them instead. A distribution that declares its own support is believed.

    Args:
        fn: of a site; `to_event`, `expand`, `mask` and mixtures are looked through.
    """
    inner = innermost(fn)
    declared = type(inner).support
    if not isinstance(inner, TransformedDistribution) or declared not in UNDECLARED:
        return fn.support
    ends = _ends(support_of(inner.base_dist))
    if ends is None or not all(_monotone(part) for part in inner.transforms):
        return fn.support
    for part in inner.transforms:
        ends = [_through(part, end) for end in ends]
    low, high = torch.minimum(*ends), torch.maximum(*ends)
    if bool(low.isinf().all()) and bool(high.isinf().all()):
        return constraints.real
    if bool(high.isinf().all()):
        return constraints.greater_than(low)
    if bool(low.isinf().all()):
        return constraints.less_than(high)
    return constraints.interval(low, high)


UNDECLARED = (TransformedDistribution.support, PyroTransformed.support)
MONOTONE = (
    transforms.AffineTransform, transforms.ExpTransform, transforms.SigmoidTransform,
    transforms.TanhTransform, transforms.SoftplusTransform, transforms.PowerTransform,
    transforms.CumulativeDistributionTransform,
)  # fmt: skip


def _ends(support: constraints.Constraint) -> list[Tensor] | None:
    """The lower and upper end of a support on the line; None of another."""
    support = plain(support)
    if isinstance(support, type(constraints.real)):
        ends = [-math.inf, math.inf]
    elif hasattr(support, "lower_bound") or hasattr(support, "upper_bound"):
        bounds = (("lower_bound", -math.inf), ("upper_bound", math.inf))
        ends = [getattr(support, name, open_end) for name, open_end in bounds]
    else:
        return None
    low, high = torch.broadcast_tensors(
        *(torch.as_tensor(end, dtype=torch.get_default_dtype()) for end in ends)
    )
    return [low, high]


def _monotone(transform: Transform) -> bool:
    if isinstance(transform, ComposeTransform):
        return all(_monotone(part) for part in transform.parts)
    if isinstance(transform, transforms._InverseTransform):
        return _monotone(transform.inv)
    domain: Any = transform.domain
    return isinstance(transform, MONOTONE) and domain.event_dim == 0


def _through(transform: Transform, end: Tensor) -> Tensor:
    """The image of an end, without torch's clamping of 0 and 1."""
    if isinstance(transform, ComposeTransform):
        for part in transform.parts:
            end = _through(part, end)
        return end
    if isinstance(transform, transforms.SigmoidTransform):
        return torch.sigmoid(end)
    if isinstance(transform, transforms._InverseTransform) and isinstance(
        transform.inv, transforms.SigmoidTransform
    ):
        return torch.logit(end)
    return transform(end)


def plain(support: constraints.Constraint) -> constraints.Constraint:
    """The constraint itself, without the wrappings of `to_event` and of a mixture."""
    while isinstance(support, constraints.independent | MixtureSameFamilyConstraint):
        support = support.base_constraint
    return support


def describe(support: constraints.Constraint) -> str:
    """A support in a few words, with its bounds."""
    support = plain(support)
    bounds = [getattr(support, name, None) for name in ("lower_bound", "upper_bound")]
    name = type(support).__name__.strip("_")
    numbers = ", ".join(_brief(bound) for bound in bounds if bound is not None)
    return f"{name}({numbers})" if numbers else name


def _brief(bound: int | float | Tensor) -> str:
    if isinstance(bound, Tensor) and bound.numel() > 1:
        return f"{bound.min().item():g}..{bound.max().item():g}"
    return f"{torch.as_tensor(bound).item():g}"


def same_support(one: constraints.Constraint, other: constraints.Constraint) -> bool:
    """Whether two constraints have one type and equal bounds."""
    if type(one) is not type(other):
        return False
    mine, yours = vars(one), vars(other)
    return mine.keys() == yours.keys() and all(_same(mine[k], yours[k]) for k in mine)


def _same(one: object, other: object) -> bool:
    if isinstance(one, constraints.Constraint) and isinstance(other, constraints.Constraint):
        return same_support(one, other)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(_same, one, other))
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return torch.equal(one, other)
    if isinstance(one, Tensor) or isinstance(other, Tensor):
        return False
    return one == other


def bounds_of(support: object) -> list[Tensor]:
    """Every tensor that a constraint holds, for instance the ends of an interval."""
    if isinstance(support, Tensor):
        return [support]
    if isinstance(support, list | tuple):
        return [bound for part in support for bound in bounds_of(part)]
    if isinstance(support, constraints.Constraint):
        return bounds_of(list(vars(support).values()))
    return []
