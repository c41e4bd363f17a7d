"""A Gaussian potential over a standard normal base: everything about it is known in closed form.

The base measure is N(0, I) in d dimensions and three factors tilt it,

    -E(x) = sum_i f_i x_i - 1/2 sum_i a_i x_i^2 - sum_i c_i x_i x_{i+1},

the weights being `field` f, `curvature` a and `coupling` c of neighbours: 3d - 1 numbers, so that
even d = 32 is a matter of 95 weights. With the tridiagonal precision L = I + diag(a) + offdiag(c),

    p = N(L^-1 f, L^-1),    log Z = 1/2 f' L^-1 f - 1/2 log det L.

The base is normalised, so log Z = 0 at zero weights. p is an exponential family with statistics
x_i, -x_i^2 / 2 and -x_i x_{i+1}. Its graph is a chain, hence maximum likelihood is in closed form
too: the inverse covariances of the neighbouring pairs, less those of the sites they share.

References:
    Lauritzen 1996, Graphical Models, proposition 5.9 (decomposable Gaussian models).
"""

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from jaxtyping import Float
from torch import Tensor, nn

from ebm_pp.density import Sites
from models import exponential_family
from models.exponential_family import Parameters


class Gaussian(nn.Module):
    """The program: site `x`, real, shape (d,); factors `field`, `curvature`, `coupling`.

    All weights start at zero, so the model starts at its base measure.

    Args:
        d: dimensions, at least 1. With d = 1 there is no factor `coupling`.
    """

    mean: Tensor

    def __init__(self, d: int = 2) -> None:
        super().__init__()
        self.field_weights = nn.Parameter(torch.zeros(d))
        self.curvature_weights = nn.Parameter(torch.zeros(d))
        self.coupling_weights = nn.Parameter(torch.zeros(d - 1))
        self.register_buffer("mean", torch.zeros(d))

    def forward(self) -> None:
        """Declare one draw."""
        x = pyro.sample("x", dist.Normal(self.mean, 1.0).to_event(1))
        pyro.factor("field", (self.field_weights * x).sum(-1))
        pyro.factor("curvature", -0.5 * (self.curvature_weights * x.square()).sum(-1))
        if len(self.mean) > 1:
            products = x[..., :-1] * x[..., 1:]
            pyro.factor("coupling", -(self.coupling_weights * products).sum(-1))


def true_parameters(d: int) -> Parameters:
    """A fixed truth for each d: sites wider and narrower than the base, couplings of both signs.

    Args:
        d: dimensions.

    Returns:
        Weights by the names of `Gaussian`'s parameters, in float64. The precision is diagonally
        dominant (0.7 to 1.3 against at most 0.5), so its inverse exists for every d.
    """
    i = torch.arange(d, dtype=torch.float64)
    return {
        "field_weights": 0.6 * torch.sin(i + 1),
        "curvature_weights": 0.3 * torch.cos(1.3 * i),
        "coupling_weights": 0.25 * torch.cos(2.1 * i[:-1] + 1),
    }


def moments(parameters: Parameters) -> tuple[Float[Tensor, "d"], Float[Tensor, "d d"]]:
    """Exact mean and covariance of x.

    Args:
        parameters: weights by name.

    Returns:
        The mean and the covariance, in float64.

    Raises:
        ValueError: the precision is not positive definite, so there is no density.
    """
    factor = _cholesky(parameters)
    field = parameters["field_weights"].double()
    return torch.cholesky_solve(field[:, None], factor)[:, 0], torch.cholesky_inverse(factor)


def log_partition(parameters: Parameters) -> Float[Tensor, ""]:
    """Exact log Z = 1/2 f' L^-1 f - 1/2 log det L, differentiable in the weights.

    Args:
        parameters: weights by name.

    Returns:
        log Z in float64.

    Raises:
        ValueError: the precision is not positive definite, so Z is infinite.
    """
    factor = _cholesky(parameters)
    field = parameters["field_weights"].double()
    half = torch.linalg.solve_triangular(factor, field[:, None], upper=False)
    return 0.5 * half.square().sum() - factor.diagonal().log().sum()


def draws(parameters: Parameters, n: int, seed: int) -> Sites:
    """Exact independent draws.

    Args:
        parameters: weights by name.
        n: number of draws.
        seed: of a private generator; the global streams are left alone.

    Returns:
        Site `x`, shape (n, d), in torch's default dtype.

    Raises:
        ValueError: the precision is not positive definite.
    """
    mean, covariance = moments(parameters)
    noise = torch.from_numpy(np.random.default_rng(seed).standard_normal((n, len(mean))))
    x = mean + noise @ torch.linalg.cholesky(covariance).T
    return {"x": x.to(torch.get_default_dtype())}


def maximum_likelihood(x: Sites) -> Parameters:
    """The weights of highest likelihood, in closed form.

    Args:
        x: data, site `x` of shape (n, d) with n > 2.

    Returns:
        Weights by name, in float64. The model's mean, variances and covariances of neighbours
        then equal those of the data.
    """
    data = x["x"].double()
    d = data.shape[1]
    mean, covariance = data.mean(0), torch.cov(data.T, correction=0).reshape(d, d)
    precision = torch.zeros(d, d, dtype=torch.float64)
    for i in range(d - 1):
        pair = slice(i, i + 2)
        precision[pair, pair] += torch.linalg.inv(covariance[pair, pair])
    for i in range(1, d - 1):
        precision[i, i] -= 1 / covariance[i, i]
    if d == 1:
        precision = 1 / covariance
    return {
        "field_weights": precision @ mean,
        "curvature_weights": precision.diagonal() - 1,
        "coupling_weights": precision.diagonal(1).clone(),
    }


def standard_errors(parameters: Parameters, n: int) -> Parameters:
    """Exact Cramer-Rao standard errors of the weights from n draws.

    Args:
        parameters: weights by name, usually the true ones.
        n: number of draws.

    Returns:
        Standard errors by the same names.
    """
    return exponential_family.standard_errors(log_partition, parameters, n)


def _cholesky(parameters: Parameters) -> Float[Tensor, "d d"]:
    curvature, coupling = parameters["curvature_weights"], parameters["coupling_weights"]
    precision = torch.diag(1 + curvature.double())
    if len(coupling):
        precision = precision + coupling.double().diag(1) + coupling.double().diag(-1)
    factor, failed = torch.linalg.cholesky_ex(precision)
    if failed:
        raise ValueError(
            "the precision I + diag(curvature) + offdiag(coupling) is not positive definite; "
            "expected all its eigenvalues above zero, or Z is infinite. "
            "Use larger curvature_weights or smaller coupling_weights."
        )
    return factor
