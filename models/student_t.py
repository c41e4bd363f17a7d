"""Independent Student-t coordinates: a given density with heavy tails and a known log Z.

    p~(x) = prod_i (1 + x_i^2 / nu)^{-(nu + 1) / 2},   nu = 3:

variance 3, and no fourth moment: importance weights of a proposal with Gaussian tails have no
variance. The base is the flat, improper measure on R^d, and

    log Z = d [log Gamma(nu / 2) - log Gamma((nu + 1) / 2) + 1/2 log(nu pi)] = 8.0071 for d = 8.
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

DF = 3.0  # degrees of freedom


def student_t(d: int = 8, df: float = DF) -> None:
    """The program: site `x`, real, shape (d,), on a flat improper base; factor `tails`.

    Args:
        d: dimensions, positive.
        df: degrees of freedom, positive.

    Raises:
        ValueError: d or df is not positive.
    """
    _check(d, df)
    x = pyro.sample("x", dist.ImproperUniform(constraints.real_vector, (), (d,)))
    pyro.factor("tails", _log_kernel(x, df))


def log_partition(d: int = 8, df: float = DF) -> float:
    """Exact log Z."""
    _check(d, df)
    return d * (math.lgamma(df / 2) - math.lgamma((df + 1) / 2) + 0.5 * math.log(df * math.pi))


def draws(n: int, seed: int, d: int = 8, df: float = DF) -> Sites:
    """Exact independent draws.

    Args:
        n: number of draws.
        seed: of a private generator; the global streams are left alone.
        d: dimensions.
        df: degrees of freedom.

    Returns:
        Site `x`, shape (n, d), in torch's default dtype.
    """
    _check(d, df)
    x = np.random.default_rng(seed).standard_t(df, (n, d))
    return {"x": torch.from_numpy(x).to(torch.get_default_dtype())}


def log_density(x: Sites, df: float = DF) -> Float[Tensor, "n"]:
    """Normalised log density at site `x`, in float64."""
    rows = x["x"].double()
    return _log_kernel(rows, df) - log_partition(rows.shape[1], df)


def _log_kernel(x: Tensor, df: float) -> Tensor:
    return -0.5 * (df + 1) * (x.square() / df).log1p().sum(-1)


def _check(d: int, df: float) -> None:
    if d < 1 or not df > 0:
        raise ValueError(f"student_t needs positive dimensions and df; got d = {d}, df = {df}")
