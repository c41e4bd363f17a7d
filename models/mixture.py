"""Gaussian mixtures: exact draws, log densities and shares, in two to thirty dimensions.

A mixture is p(x) = sum_k w_k N(x; m_k, L_k L_k'). `MIXTURES` has four:

* `nine`: means {-5, 0, 5}^2, sd .5477, equal weights; E log p = -3.8311.
* `forty`: means uniform in (-40, 40)^2 (torch's stream of seed 0), sd softplus(1) = 1.3133, equal
  weights; E log p = -6.8592.
* `ten` and `thirty`, named by their dimensions: 8 and 12 components with weights of at least .04,
  in random directions sds between .4 and 1, and means whose nearest neighbours are 3.8 to 6.2 of
  these sds away: the modes are apart, and no coordinate alone tells them apart.

`GivenMixture` is the program of a given density with log Z = 0. Its normal base only says where to
look first: the factor divides it out again.

References:
    Midgley et al. 2023, Flow Annealed Importance Sampling Bootstrap, arXiv:2208.01893 (`forty`).
"""

import math
from typing import NamedTuple

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import softplus

from ebm_pp.density import Sites


class Mixture(NamedTuple):
    """A mixture of k Gaussians in d dimensions, in float64.

    weights: of the components, shape (k,); sum 1.
    means: shape (k, d).
    factors: lower Cholesky factors of the covariances, shape (k, d, d).
    """

    weights: Float[Tensor, "k"]
    means: Float[Tensor, "k d"]
    factors: Float[Tensor, "k d d"]


class GivenMixture(nn.Module):
    """The program: site `x` of shape (d,), factor `mixture`; the log density is that of p.

    Args:
        mixture: what is given.
        base_scale: standard deviation of the normal base.
    """

    means: Tensor
    whiteners: Tensor
    constants: Tensor
    base_mean: Tensor
    base_scale: Tensor

    def __init__(self, mixture: Mixture, base_scale: float) -> None:
        super().__init__()
        dtype, d = torch.get_default_dtype(), mixture.means.shape[1]
        for name, value in zip(("means", "whiteners", "constants"), _terms(mixture), strict=True):
            self.register_buffer(name, value.to(dtype))
        self.register_buffer("base_mean", torch.zeros(d))
        self.register_buffer("base_scale", torch.full((d,), base_scale))

    def forward(self) -> None:
        """Declare one draw."""
        base = dist.Normal(self.base_mean, self.base_scale).to_event(1)
        x = pyro.sample("x", base)
        # As a sum of products: under vmap einsum would copy the whiteners for every draw.
        white = (self.whiteners * (x - self.means).unsqueeze(-2)).sum(-1)
        log_mixture = (self.constants - white.square().sum(-1) / 2).logsumexp(-1)
        pyro.factor("mixture", log_mixture - base.log_prob(x))


def draws(mixture: Mixture, n: int, seed: int) -> Sites:
    """Exact independent draws.

    Args:
        mixture: of which.
        n: number of draws.
        seed: of a private generator; the global streams are left alone.

    Returns:
        Site `x`, shape (n, d), in torch's default dtype.
    """
    random, k = np.random.default_rng(seed), len(mixture.weights)
    at = torch.from_numpy(random.choice(k, n, p=mixture.weights.numpy()))
    x = torch.from_numpy(random.standard_normal((n, mixture.means.shape[1])))
    for component in range(k):
        rows = at == component
        x[rows] = mixture.means[component] + x[rows] @ mixture.factors[component].T
    return {"x": x.to(torch.get_default_dtype())}


def log_density(mixture: Mixture, x: Sites) -> Float[Tensor, "n"]:
    """Normalised log density at site `x`, in float64."""
    return _log_parts(mixture, x).logsumexp(-1)


def responsibilities(mixture: Mixture, x: Sites) -> Float[Tensor, "n k"]:
    """Probability of each component given a draw; its mean over p is exactly `weights`."""
    return _log_parts(mixture, x).softmax(-1)


def modes(mixture: Mixture, x: Sites) -> Int[Tensor, "n"]:
    """The most likely component of each draw.

    Its shares are `weights` up to the overlap of the components; exactly those of
    `responsibilities` are.
    """
    return _log_parts(mixture, x).argmax(-1)


def nine() -> Mixture:
    """Nine equal modes on a lattice of side 5, in the plane."""
    line = torch.tensor([-5.0, 0.0, 5.0], dtype=torch.float64)
    return _isotropic(torch.cartesian_prod(line, line), math.sqrt(0.3))


def forty() -> Mixture:
    """Forty equal modes, scattered over (-40, 40)^2."""
    stream = torch.Generator().manual_seed(0)
    means = (torch.rand(40, 2, generator=stream, dtype=torch.float32) - 0.5) * 80
    return _isotropic(means.double(), softplus(torch.ones((), dtype=torch.float64)).item())


def random_mixture(k: int, d: int, spread: float, seed: int = 0) -> Mixture:
    """A seeded mixture with full covariances, scales and weights that differ.

    Args:
        k: components, at most 20.
        d: dimensions.
        spread: standard deviation of the means' coordinates; component sds are .4 to 1.
        seed: of a private generator.

    Returns:
        Weights of .04 or more, means and Cholesky factors.
    """
    random = np.random.default_rng(seed)
    weights = 0.04 + (1 - 0.04 * k) * random.dirichlet(np.ones(k))
    means = spread * random.standard_normal((k, d))
    rotations = np.linalg.qr(random.standard_normal((k, d, d)))[0]
    scaled = rotations * np.exp(random.uniform(math.log(0.4), 0, (k, 1, d)))
    factors = np.linalg.cholesky(scaled @ scaled.swapaxes(1, 2))
    return Mixture(*map(torch.from_numpy, (weights, means, factors)))


def _isotropic(means: Float[Tensor, "k d"], scale: float) -> Mixture:
    k, d = means.shape
    weights = torch.full((k,), 1 / k, dtype=torch.float64)
    return Mixture(weights, means, scale * torch.eye(d, dtype=torch.float64).expand(k, d, d))


def _terms(mixture: Mixture) -> tuple[Tensor, Tensor, Tensor]:
    """Means, inverse Cholesky factors, and log w_k - log det L_k - d/2 log 2 pi."""
    whiteners = torch.linalg.inv(mixture.factors)
    log_det = mixture.factors.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    half_log = 0.5 * mixture.means.shape[1] * math.log(2 * math.pi)
    return mixture.means, whiteners, mixture.weights.log() - log_det - half_log


def _log_parts(mixture: Mixture, x: Sites) -> Float[Tensor, "n k"]:
    """Log of w_k N(x; m_k, L_k L_k'), component by component: no (n, k, d) in memory."""
    means, whiteners, constants = _terms(mixture)
    rows = x["x"].double()
    white = [((rows - m) @ w.T).square().sum(-1) for m, w in zip(means, whiteners, strict=True)]
    return constants - torch.stack(white, -1) / 2


MIXTURES: dict[str, Mixture] = {
    "nine": nine(),
    "forty": forty(),
    "ten": random_mixture(8, 10, 1.0),
    "thirty": random_mixture(12, 30, 0.6),
}
