"""Bijections between unconstrained coordinates and the supports that Pyro knows.

As in Pyro, `biject_to(support)`, with three additions: lower-triangular and positive-definite
matrices, which Pyro's registry leaves out of the bijections (their coordinates are the lower
triangle, row by row, with the logarithm on the diagonal), and an inverse of stick breaking
that stays exact where the last parts are small.
"""

import math

import torch
from pyro.distributions import constraints as pyro_constraints
from pyro.distributions.transforms import CorrMatrixCholeskyTransform
from torch import Tensor
from torch.distributions import biject_to, constraints
from torch.distributions.constraints import MixtureSameFamilyConstraint
from torch.distributions.transforms import (
    ComposeTransform,
    CorrCholeskyTransform,
    StickBreakingTransform,
    Transform,
)
from torch.nn.functional import logsigmoid, pad


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
    codomain: constraints.Constraint = constraints.lower_cholesky
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
        """Sum of the log diagonal, per matrix; of `x`, which neither overflows nor vanishes."""
        return _log_diagonal(x).sum(-1)

    def forward_shape(self, shape: torch.Size) -> torch.Size:
        """The shape of the matrix for a vector's shape."""
        size = _side(shape[-1])
        return torch.Size((*shape[:-1], size, size))

    def inverse_shape(self, shape: torch.Size) -> torch.Size:
        """The shape of the vector for a matrix's shape."""
        return torch.Size((*shape[:-2], shape[-1] * (shape[-1] + 1) // 2))


class PositiveDefinite(LowerCholesky):
    """The same vector to the matrix whose Cholesky factor it is; from one without, to nan."""

    codomain: constraints.Constraint = constraints.positive_definite

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PositiveDefinite)

    __hash__ = Transform.__hash__

    def _call(self, x: Tensor) -> Tensor:
        root = super()._call(x)
        return root @ root.mT

    def _inverse(self, y: Tensor) -> Tensor:
        return super()._inverse(root_of(y))

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """D log 2 + sum over i = 1..D of (D - i + 2) log L_ii: Muirhead (1982), theorem 2.1.9."""
        log_diagonal = _log_diagonal(x)
        size = log_diagonal.shape[-1]
        times = torch.arange(size + 1, 1, -1, device=x.device).to(x)
        return size * math.log(2) + (times * log_diagonal).sum(-1)


class CorrelationMatrix(ComposeTransform):
    """Pyro's bijection; nan instead of an error where rounding has left no Cholesky factor."""

    def __init__(self) -> None:
        super().__init__([CorrCholeskyTransform(), _RootOfCorrelation().inv])


class _RootOfCorrelation(CorrMatrixCholeskyTransform):
    def _call(self, x: Tensor) -> Tensor:
        return root_of(x)


def root_of(matrix: Tensor) -> Tensor:
    """The Cholesky factor; nan where rounding has left none."""
    root, failed = torch.linalg.cholesky_ex(matrix)
    return torch.where(failed[..., None, None] > 0, math.nan, root)


def _log_diagonal(x: Tensor) -> Tensor:
    """Where a vector of `LowerCholesky` holds the log diagonal: after 1, 2, ... more numbers."""
    size = _side(x.shape[-1])
    return x[..., torch.arange(1, size + 1, device=x.device).cumsum(0) - 1]


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
        return PositiveDefinite()
    if type(support) is type(pyro_constraints.corr_matrix):
        return CorrelationMatrix()
    return biject_to(support)


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
