"""Neal's funnel: a given density whose scale spans e^-4.5 to e^4.5, with log Z = 0.

    x_0 ~ N(0, 3^2),   x_i | x_0 ~ N(0, e^{x_0}),   i = 1 ... d - 1,

in ten dimensions unless told otherwise. There are no data and nothing to learn in the energy: the
base is the flat, improper measure on R^d. E log p = -15.2880 for d = 10.

References:
    Neal 2003, Slice sampling, Annals of Statistics 31.
"""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributions import constraints

from ebm_pp.density import Sites

SCALE = 3.0  # of x_0


def funnel(d: int = 10) -> None:
    """The program: site `x`, real, shape (d,), on a flat improper base; factor `funnel`.

    Args:
        d: dimensions, 2 or more.

    Raises:
        ValueError: d is below 2.
    """
    x = pyro.sample("x", dist.ImproperUniform(constraints.real_vector, (), (_checked(d),)))
    pyro.factor("funnel", _log_density(x))


def draws(n: int, seed: int, d: int = 10) -> Sites:
    """Exact independent draws.

    Args:
        n: number of draws.
        seed: of a private generator; the global streams are left alone.
        d: dimensions.

    Returns:
        Site `x`, shape (n, d), in torch's default dtype.
    """
    x = np.random.default_rng(seed).standard_normal((n, _checked(d)))
    x[:, 0] *= SCALE
    x[:, 1:] *= np.exp(x[:, :1] / 2)
    return {"x": torch.from_numpy(x).to(torch.get_default_dtype())}


def log_density(x: Sites) -> Float[Tensor, "n"]:
    """Normalised log density at site `x`, in float64."""
    return _log_density(x["x"].double())


def mean_log_density(d: int = 10) -> float:
    """E log p, minus the entropy: -d/2 (log 2 pi + 1) - log 3, since x_0 has mean 0."""
    return -0.5 * _checked(d) * (math.log(2 * math.pi) + 1) - math.log(SCALE)


def _log_density(x: Tensor) -> Tensor:
    first, rest = x[..., 0], x[..., 1:]
    log_first = -0.5 * (first / SCALE).square() - math.log(SCALE)
    log_rest = -0.5 * (rest.square().sum(-1) * (-first).exp() + rest.shape[-1] * first)
    return log_first + log_rest - 0.5 * x.shape[-1] * math.log(2 * math.pi)


def _checked(d: int) -> int:
    if d < 2:
        raise ValueError(f"funnel needs 2 dimensions or more; got d = {d}")
    return d
