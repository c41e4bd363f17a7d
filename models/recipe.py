"""A bakery's recipe: four kinds of site, two couplings, and exact answers all the same.

| site | support | base measure |
|---|---|---|
| `mix`: shares of butter, flour and sugar | simplex, shape (3,) | Dirichlet(2, 2, 2) |
| `time`: hours in the oven | positive | Gamma(2, rate 1) |
| `yield`: part of the batch that can be sold | (0, 1) | Beta(2, 2) |
| `texture` of three batches: softness | real, plate of 3 | Normal(0, 1) |

    -E = sum_k taste_k log mix_k - haste time + quality_0 log yield + quality_1 log(1 - yield)
         - overbake time yield + richness mix_0 sum_b texture_b

Without the last two factors every site stays in its own conjugate family. The couplings keep it
exact: `texture` given `mix` is N(richness mix_0, 1), `time` given `yield` is a Gamma, so

    log Z = log [B(2 + taste) / B(2, 2, 2)] + log E[exp(3/2 richness^2 m^2)]
          + log [B(2 + quality) / B(2, 2)] + log E[(1 + haste + overbake y)^-2],

where B is the (multivariate) Beta function, m ~ Beta(2 + taste_0, 4 + taste_1 + taste_2) and
y ~ Beta(2 + quality_0, 2 + quality_1). The two means are integrals over one variable, exact to
rounding by the trapezoidal rule in the logit. Exact draws follow by rejection from the same Beta
and Dirichlet. The weights are the natural parameters of an exponential family, so the Fisher
information is the Hessian of log Z.
"""

from collections.abc import Callable

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from ebm_pp.density import Sites
from models import exponential_family
from models.exponential_family import Parameters

BATCHES = 3


class Recipe(nn.Module):
    """The program; all weights start at zero, so the model starts at its base measure."""

    twos: Tensor
    zero: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.taste_weights = nn.Parameter(torch.zeros(3))
        self.haste_weight = nn.Parameter(torch.zeros(()))
        self.quality_weights = nn.Parameter(torch.zeros(2))
        self.overbake_weight = nn.Parameter(torch.zeros(()))
        self.richness_weight = nn.Parameter(torch.zeros(()))
        self.register_buffer("twos", torch.full((3,), 2.0))
        self.register_buffer("zero", torch.zeros(()))

    def forward(self) -> None:
        """Declare one draw."""
        two, one = self.twos[0], self.zero + 1
        mix = pyro.sample("mix", dist.Dirichlet(self.twos))
        time = pyro.sample("time", dist.Gamma(two, one))
        sold = pyro.sample("yield", dist.Beta(two, two))
        pyro.factor("taste", (self.taste_weights * mix.log()).sum(-1))
        pyro.factor("haste", -self.haste_weight * time)
        log_yield = torch.stack([sold.log(), torch.log1p(-sold)], -1)
        pyro.factor("quality", (self.quality_weights * log_yield).sum(-1))
        pyro.factor("overbake", -self.overbake_weight * time * sold)
        with pyro.plate("batches", BATCHES):
            texture = pyro.sample("texture", dist.Normal(self.zero, one))
            pyro.factor("richness", self.richness_weight * mix[..., :1] * texture)


def true_parameters() -> Parameters:
    """The truth of the example: weights by the names of `Recipe`'s parameters, in float64."""
    truth = {
        "taste_weights": [1.0, -0.5, 0.5],
        "haste_weight": 0.7,
        "quality_weights": [0.8, -0.3],
        "overbake_weight": 1.0,
        "richness_weight": 0.8,
    }
    return {name: torch.tensor(value, dtype=torch.float64) for name, value in truth.items()}


def statistics(x: Sites) -> Parameters:
    """The statistics T of the exponential family, one row per draw.

    Args:
        x: sites of n draws.

    Returns:
        float64 tensors of shape (n, *weight shape) by the names of the weights.
    """
    mix, time, sold, texture = (x[name].double() for name in ("mix", "time", "yield", "texture"))
    return {
        "taste_weights": mix.log(),
        "haste_weight": -time,
        "quality_weights": torch.stack([sold.log(), torch.log1p(-sold)], -1),
        "overbake_weight": -time * sold,
        "richness_weight": mix[:, 0] * texture.sum(-1),
    }


def log_partition(parameters: Parameters) -> Float[Tensor, ""]:
    """Exact log Z, differentiable in the weights.

    Args:
        parameters: weights by name.

    Returns:
        log Z in float64; 0 at zero weights.

    Raises:
        ValueError: Z is infinite at these weights.
    """
    p = {name: value.double() for name, value in parameters.items()}
    mix, sold, rate = _checked_shapes(p)
    richness, overbake = p["richness_weight"], p["overbake_weight"]
    log_z_mix = _log_beta(mix) - _log_beta(torch.full_like(mix, 2.0))
    log_z_texture = _log_expectation(
        mix[0], mix[1] + mix[2], lambda m: 0.5 * BATCHES * (richness * m).square()
    )
    log_z_sold = _log_beta(sold) - _log_beta(torch.full_like(sold, 2.0))
    log_z_time = _log_expectation(sold[0], sold[1], lambda y: -2 * (rate + overbake * y).log())
    return log_z_mix + log_z_texture + log_z_sold + log_z_time


def draws(n: int, seed: int, parameters: Parameters | None = None) -> Sites:
    """Exact independent draws, by rejection.

    Args:
        n: number of draws.
        seed: of a private generator; the global streams are left alone.
        parameters: weights by name; `true_parameters()` if None.

    Returns:
        Sites `mix` (n, 3), `time` (n,), `yield` (n,), `texture` (n, 3) in torch's default dtype.

    Raises:
        ValueError: Z is infinite at these weights.
    """
    p = {k: v.detach().double() for k, v in (parameters or true_parameters()).items()}
    mix_shape, sold_shape, rate = (value.numpy() for value in _checked_shapes(p))
    richness, overbake = p["richness_weight"].item(), p["overbake_weight"].item()
    random = np.random.default_rng(seed)

    def propose_mix(size: int) -> tuple[np.ndarray, np.ndarray]:
        mix = random.dirichlet(mix_shape, size)
        return mix, 0.5 * BATCHES * richness**2 * (mix[:, 0] ** 2 - 1)

    def propose_sold(size: int) -> tuple[np.ndarray, np.ndarray]:
        sold = random.beta(sold_shape[0], sold_shape[1], size)
        fastest = min(rate, rate + overbake)  # where the acceptance is 1
        return sold, 2 * np.log(fastest / (rate + overbake * sold))

    mix, sold = _reject(propose_mix, n, random), _reject(propose_sold, n, random)
    time = random.gamma(2, 1 / (rate + overbake * sold))
    texture = richness * mix[:, :1] + random.standard_normal((n, BATCHES))
    sites = {"mix": mix, "time": time, "yield": sold, "texture": texture}
    return {k: torch.from_numpy(v).to(torch.get_default_dtype()) for k, v in sites.items()}


def standard_errors(parameters: Parameters, n: int) -> Parameters:
    """Exact Cramer-Rao standard errors of the weights from n draws.

    Args:
        parameters: weights by name, usually the true ones.
        n: number of draws.

    Returns:
        Standard errors by the same names.
    """
    return exponential_family.standard_errors(log_partition, parameters, n)


def maximum_likelihood(x: Sites) -> Parameters:
    """The weights of highest likelihood, by Newton's method on the exact log Z.

    Args:
        x: sites of n draws.

    Returns:
        Weights by name, in float64.
    """
    means = {name: value.mean(0) for name, value in statistics(x).items()}
    return exponential_family.maximum_likelihood(log_partition, means, true_parameters())


def _checked_shapes(p: Parameters) -> tuple[Tensor, Tensor, Tensor]:
    """Shapes of the Dirichlet and the Beta and the rate of the Gamma, if all are positive."""
    mix, sold = 2 + p["taste_weights"], 2 + p["quality_weights"]
    rate = 1 + p["haste_weight"]
    least = torch.cat([mix, sold, rate[None], (rate + p["overbake_weight"])[None]]).min()
    if least <= 0:
        raise ValueError(
            "Z is infinite: expected 2 + taste_weights, 2 + quality_weights, 1 + haste_weight and "
            f"1 + haste_weight + overbake_weight above zero; the least is {least:.3g}"
        )
    return mix, sold, rate


def _log_beta(shape: Float[Tensor, "k"]) -> Float[Tensor, ""]:
    return shape.lgamma().sum() - shape.sum().lgamma()


def _log_expectation(p: Tensor, q: Tensor, log_f: Callable[[Tensor], Tensor]) -> Tensor:
    """Log E[f(u)], u ~ Beta(p, q): the trapezoidal rule in logit u converges geometrically."""
    logit = torch.arange(-60, 60, 0.1, dtype=torch.float64)
    log_u, log_rest = logsigmoid(logit), logsigmoid(-logit)
    log_terms = p * log_u + q * log_rest
    return (log_terms + log_f(log_u.exp())).logsumexp(0) - log_terms.logsumexp(0)


def _reject(
    propose: Callable[[int], tuple[np.ndarray, np.ndarray]], n: int, random: np.random.Generator
) -> np.ndarray:
    """The first n proposals accepted with the log probability that comes with each."""
    accepted: list[np.ndarray] = []
    while sum(map(len, accepted)) < n:
        values, log_accept = propose(2 * n)
        accepted.append(values[np.log(random.random(len(values))) < log_accept])
    return np.concatenate(accepted)[:n]
