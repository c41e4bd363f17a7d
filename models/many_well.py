"""Many-Well: a given density with 2^(d/2) modes of unequal weight and a known log Z.

For even d the density is a product of d / 2 copies of

    p~(a, b) = exp(-a^4 + 6 a^2 + a / 2 - b^2 / 2),

so each even-numbered coordinate (0, 2, ...) has one well at about -1.7 and a deeper one at about
1.7, and each odd-numbered one is standard normal. Nothing is learned in the energy, and there are
no data: the base is the flat, improper measure on R^d. Known exactly, from quadrature in one
dimension:

* log Z = d/2 [log int exp(-a^4 + 6 a^2 + a/2) da + 1/2 log 2 pi] = 41.17391883 for d = 8;
* P(a < 0) = .1556929, hence the share of each mode, a mode being a pattern of signs;
* independent draws, by rejection: -a^4 + 6 a^2 = 9 - (a^2 - 3)^2, and on either side of zero
  (a^2 - 3)^2 >= 3 (|a| - sqrt 3)^2, a Gaussian envelope.

References:
    Midgley et al. 2023, Flow Annealed Importance Sampling Bootstrap, arXiv:2208.01893.
    Noe et al. 2019, Boltzmann generators, Science 365 (whose double well this is).
"""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from jaxtyping import Float, Int
from scipy.special import roots_legendre
from torch import Tensor
from torch.distributions import constraints

from ebm_pp.density import Sites


def many_well(d: int = 8) -> None:
    """The program: site `x`, real, shape (d,), on a flat improper base; factor `wells`.

    Args:
        d: dimensions, even.

    Raises:
        ValueError: d is odd or not positive.
    """
    pairs = _pairs(d)
    x = pyro.sample("x", dist.ImproperUniform(constraints.real_vector, (), (2 * pairs,)))
    a, b = x[..., 0::2], x[..., 1::2]
    pyro.factor("wells", (_log_well(a) - 0.5 * b.square()).sum(-1))


def log_partition(d: int = 8) -> float:
    """Exact log Z, by quadrature in float64.

    Args:
        d: dimensions, even.

    Returns:
        log Z; 10.29347971 for d = 2, 41.17391883 for 8, 82.34783766 for 16, 164.69567531 for 32.
    """
    log_z_of_a = _log_mass_below(math.inf)
    return _pairs(d) * (log_z_of_a + 0.5 * math.log(2 * math.pi))


def draws(n: int, seed: int, d: int = 8) -> Sites:
    """Exact independent draws, by rejection.

    Args:
        n: number of draws.
        seed: of a private generator; the global streams are left alone.
        d: dimensions, even.

    Returns:
        Site `x`, shape (n, d), in torch's default dtype.
    """
    random, pairs = np.random.default_rng(seed), _pairs(d)
    x = random.standard_normal((n, 2 * pairs))
    x[:, 0::2] = _double_well(n * pairs, random).reshape(n, pairs)
    return {"x": torch.from_numpy(x).to(torch.get_default_dtype())}


def modes(x: Sites) -> Int[Tensor, "n"]:
    """The mode each draw lies in: the signs of its wells, read as a binary number.

    Args:
        x: site `x`, shape (n, d).

    Returns:
        Numbers from 0 to 2^(d/2) - 1; bit i is set if the i-th well's coordinate is positive.
    """
    positive = (x["x"][:, 0::2] > 0).long()
    return (positive << torch.arange(positive.shape[1], device=positive.device)).sum(-1)


def count_modes(x: Sites) -> int:
    """How many of the 2^(d/2) modes (16 for d = 8) hold at least one draw."""
    return len(modes(x).unique())


def mode_shares(d: int = 8) -> Float[Tensor, "modes"]:
    """Exact probability of each mode, in the order of `modes`, in float64.

    Args:
        d: dimensions, even; the result has 2^(d/2) entries, so 65,536 for d = 32.

    Returns:
        Probabilities that sum to 1.
    """
    left = math.exp(_log_mass_below(0.0) - _log_mass_below(math.inf))
    shares = torch.ones(1, dtype=torch.float64)
    for _ in range(_pairs(d)):
        shares = torch.cat([shares * left, shares * (1 - left)])
    return shares


def _pairs(d: int) -> int:
    if d < 2 or d % 2:
        raise ValueError(f"many_well needs an even number of dimensions, 2 or more; got d = {d}")
    return d // 2


def _log_well(a: Tensor) -> Tensor:
    return -a.pow(4) + 6 * a.square() + 0.5 * a


def _log_mass_below(upper: float) -> float:
    """Log of the integral of exp(_log_well) below a bound; at |a| = 6 the integrand is e^-1080."""
    node, weight = roots_legendre(400)
    low, high = -6.0, min(upper, 6.0)
    a = torch.from_numpy(0.5 * (high - low) * (node + 1) + low)
    log_weight = torch.from_numpy(np.log(0.5 * (high - low) * weight))
    return (_log_well(a) + log_weight).logsumexp(0).item()


def _double_well(n: int, random: np.random.Generator) -> np.ndarray:
    """Draws of exp(-a^4 + 6 a^2 + a / 2): a Gaussian of variance 1/6 per side, then rejection."""
    root, accepted = math.sqrt(3), np.empty(0)
    while len(accepted) < n:
        # On side s: exp(a/2 - 3 (a - s root)^2) ~ N(s root + 1/12, 1/6) times exp(s root / 2).
        side = np.where(random.random(2 * n) < 1 / (1 + math.exp(-root)), 1.0, -1.0)
        a = side * root + 1 / 12 + random.standard_normal(2 * n) / math.sqrt(6)
        log_accept = 3 * (np.abs(a) - root) ** 2 - (a**2 - 3) ** 2
        keep = (a * side > 0) & (np.log(random.random(2 * n)) < log_accept)
        accepted = np.concatenate([accepted, a[keep]])
    return accepted[:n]
