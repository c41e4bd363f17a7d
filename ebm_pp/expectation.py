"""E[h(s') | s, a]: points and weights that stand for the law of the next state.

    E[h(s')] = sum_k w_k h(x_k)

exactly for any h where finitely many values can follow (tables, Bernoulli, one-hot, products and
mixtures of them), and for polynomials of degree 3 where the noise is normal or uniform, or a
mixture of such: 2 m points at sqrt(m) standard deviations along every axis have the moments that
these need (Arasaratnam & Haykin 2009). Elsewhere a few draws stand for it, whose noise is then in
h; `warn_of_draws` says so.
"""

import itertools
import math
import warnings
from collections.abc import Callable

import torch
from jaxtyping import Float
from pyro.distributions import Delta, MaskedDistribution
from torch import Tensor
from torch.distributions import (
    AffineTransform,
    Bernoulli,
    Binomial,
    Categorical,
    Distribution,
    Independent,
    LowRankMultivariateNormal,
    MixtureSameFamily,
    MultivariateNormal,
    Normal,
    OneHotCategorical,
    TransformedDistribution,
    Uniform,
)

from ebm_pp.dynamics import Dynamics

DRAWS = 8  # of the next state, where its expectation has no closed form
FINITE = (Bernoulli, Binomial, Categorical, OneHotCategorical)  # Pyro's are among them
MOST = 256  # combinations of coordinates that are summed over, at most


def expect(
    dynamics: Dynamics, h: Callable[[Tensor], Tensor], states: Tensor, actions: Tensor
) -> Float[Tensor, "n F"]:
    """E[h(s') | s, a] of rows, for h with values `(n, F)`; see above where it is exact."""
    law = None if dynamics.opaque else dynamics.law(states, actions)
    if isinstance(law, Tensor):
        return h(law)
    found = None if law is None else points(law, 1)
    if found is None:
        return torch.stack([h(dynamics.advance(states, actions)) for _ in range(DRAWS)]).mean(0)
    total: Tensor | None = None
    for point, weight in zip(*found, strict=True):
        values = h(dynamics.as_states(point, states))
        part = weight.to(values).unsqueeze(-1) * values
        total = part if total is None else total + part
    assert total is not None, "a law has points"
    return total


def warn_of_draws(dynamics: Dynamics) -> None:
    """A UserWarning if draws stand for the expectation over the law that a step gives."""
    law = dynamics.tried
    if not isinstance(law, Distribution) or points(law, 1) is not None:
        return
    while isinstance(law, Independent | MaskedDistribution):
        law = law.base_dist
    warnings.warn(
        f"the expectation over the next state's law, {type(law).__name__}, has no closed form "
        f"here: {DRAWS} draws stand for it, and their noise is in the soft value. It is exact for "
        f"finite laws (of up to {MOST} combinations of coordinates), and to third order for "
        "normal and uniform noise and mixtures of them.",
        UserWarning,
        stacklevel=2,
    )


def points(law: Distribution, n_lead: int) -> tuple[Tensor, Tensor] | None:
    """What stands for a law: points and weights, or None where no few do.

    Args:
        law: of the next states.
        n_lead: how many dimensions of its batch are rows; the others are coordinates.

    Returns:
        Points `(k, *rows, *coordinates, *event)` and their weights `(k, *rows)`.
    """
    while isinstance(law, Independent | MaskedDistribution):
        law = law.base_dist
    rows, coordinates = law.batch_shape[:n_lead], law.batch_shape[n_lead:]
    if isinstance(law, Normal | Uniform):
        scale = law.stddev if coordinates else law.stddev.unsqueeze(-1)
        return _axes(law.mean, torch.diag_embed(scale), rows)
    if isinstance(law, TransformedDistribution):
        return _moved(law, n_lead)
    if coordinates:
        return _combined(law, n_lead)
    if isinstance(law, MultivariateNormal | LowRankMultivariateNormal):
        return _axes(law.mean, law.scale_tril, rows)
    if isinstance(law, Delta):
        return law.v.unsqueeze(0), law.v.new_ones(1, *rows)
    if isinstance(law, MixtureSameFamily):
        return _mixed(law, n_lead)
    if isinstance(law, FINITE):
        return _every_value(law)
    return None


def _axes(
    mean: Tensor, arms: Float[Tensor, "*rows m m"], rows: torch.Size
) -> tuple[Tensor, Tensor]:
    """2 m points at the same distance from the mean, in units of the covariance's root."""
    m = arms.shape[-1]
    arms = math.sqrt(m) * arms.movedim(-1, 0).reshape(m, *mean.shape)
    return torch.cat([mean + arms, mean - arms]), mean.new_full((2 * m, *rows), 1 / (2 * m))


def _every_value(law: Distribution) -> tuple[Tensor, Tensor] | None:
    """All values that a finite law can take."""
    if isinstance(law, Binomial) and law.total_count.min() != law.total_count.max():
        return None  # rows with different numbers of values
    values = law.enumerate_support()
    return values, law.log_prob(values).exp()


def _mixed(law: MixtureSameFamily, n_lead: int) -> tuple[Tensor, Tensor] | None:
    """The points of all components."""
    found = points(law.component_distribution, n_lead + 1)
    if found is None:
        return None
    shares = law.mixture_distribution.probs
    values, weights = found[0].movedim(n_lead + 1, 0), (found[1] * shares).movedim(-1, 0)
    return values.flatten(0, 1), weights.flatten(0, 1)


def _moved(law: TransformedDistribution, n_lead: int) -> tuple[Tensor, Tensor] | None:
    """Points moved with their law; polynomials stay of their degree only in linear maps."""
    found = points(law.base_dist, n_lead)
    if found is None or not all(isinstance(t, AffineTransform) for t in law.transforms):
        return None
    values = found[0]
    for transform in law.transforms:
        values = transform(values)
    return values, found[1]


def _combined(law: Distribution, n_lead: int) -> tuple[Tensor, Tensor] | None:
    """All combinations of the points of independent coordinates."""
    n_all = len(law.batch_shape)
    found = points(law, n_all)
    if found is None or len(found[0]) ** law.batch_shape[n_lead:].numel() > MOST:
        return None
    values, weights = (part.flatten(1 + n_lead, n_all) for part in found)
    m = values.shape[1 + n_lead]
    chosen = torch.tensor([*itertools.product(range(len(values)), repeat=m)], device=values.device)
    values = torch.stack(
        [values.select(1 + n_lead, i)[chosen[:, i]] for i in range(m)], 1 + n_lead
    )
    by_coordinate = [weights.select(1 + n_lead, i)[chosen[:, i]] for i in range(m)]
    return values, torch.stack(by_coordinate).prod(0)
