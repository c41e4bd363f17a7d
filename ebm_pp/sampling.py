"""Draws of p_theta = p~ / Z, by correcting draws of the proposal q.

With w = p~ / q, one number per draw:

    importance sampling    E_p[f] = sum_i w_i f(x_i) / sum_i w_i,           x_i ~ q
    resampling             x_i kept with probability proportional to w_i

They see only what q reaches, as do the chains of `independence_mh` (chains.py); `neutra_hmc`
(neutra.py) can leave it.

Every function that draws takes `seed`. It works on its own random stream and leaves the global one
alone; `seed=None` starts from fresh entropy.
"""

import contextlib
import math
from collections.abc import Iterator
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ebm_pp.counts import count, seed_of
from ebm_pp.data import columns
from ebm_pp.density import EnergyModel, Rows, Sites
from ebm_pp.errors import GeneratorError, ProgramError
from ebm_pp.generator import Generator
from ebm_pp.partition import Estimate, log_partition_from_weights
from ebm_pp.rows import columns_as_html
from ebm_pp.surroundings import alone

ROWS_AT_ONCE = 16_384  # densities are evaluated in slices of this many rows, to bound memory


@runtime_checkable
class Fitted(Protocol):
    """What sampling needs of a `Fit`: an unnormalised density and its proposal."""

    @property
    def model(self) -> EnergyModel:
        """The density."""
        ...

    @property
    def generator(self) -> Generator:
        """The proposal."""
        ...


class Draws(NamedTuple):
    """Draws of q.

    * values: each site, shape (n, *site_shape).
    * log_weights: log p~ - log q, shape (n,), not normalised; -inf is a zero weight.
    * rejected: how many of them have no density (see `propose`); their weight is zero.
    """

    values: Sites
    log_weights: Float[Tensor, " n"]
    rejected: int = 0

    def _repr_html_(self) -> str:
        """What the draws are worth, and the weighted mean and spread of every site's numbers."""
        log_z, n = log_partition_from_weights(self.log_weights), len(self.log_weights)
        kept = self.log_weights > -math.inf
        weights = torch.softmax(self.log_weights[kept].double(), 0)
        named = columns({name: value[kept] for name, value in self.values.items()})
        x = torch.stack([column.double() for column in named.values()], 1)
        mean, square = weights @ x, weights @ (x - weights @ x).square()
        texts = [[f"{v:.4g}" for v in part.tolist()] for part in (mean, square.sqrt())]
        table = {"site": list(named), "mean": texts[0], "sd": texts[1]}
        worth = f"worth {n * log_z.ess:.0f}; Pareto k {log_z.pareto_k:.2f}."
        if self.rejected:
            worth += f" {self.rejected} of them have no density: weight zero."
        return columns_as_html(table, f"{n} draws of q, {worth}")


class LogProb(NamedTuple):
    """Normalised log densities of rows.

    * values: log p~ - log Z, shape (n,), nats in the sites' own units.
    * log_partition: log Z with its standard error, which all rows share.
    """

    values: Float[Tensor, " n"]
    log_partition: Estimate


def require_fit(what: str, fit: object) -> None:
    """Refuses what has neither density nor proposal.

    Raises:
        ProgramError: naming the function and what it was given.
    """
    if not (isinstance(getattr(fit, "model", None), EnergyModel) and hasattr(fit, "generator")):
        fix = "fit it first, fit(model, data)" if isinstance(fit, EnergyModel) else "pass a fit"
        raise ProgramError(
            f"{what} was given a {type(fit).__name__}; expected a fit, or anything with a `model` "
            f"and a `generator`.\n  Most likely another argument in its place: {fix}."
        )


@contextlib.contextmanager
def seeded(seed: int | None) -> Iterator[None]:
    """A random stream of its own, from `seed` or fresh entropy; the global one stays as it was.

    Raises:
        DataError: the seed is no whole number.
    """
    seed = seed_of(seed)
    devices = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
    with alone(), torch.random.fork_rng(devices):
        if seed is None:
            torch.seed()
        else:
            torch.manual_seed(seed)
        yield


def importance_sample(fit: Fitted, n: int, *, seed: int | None = None) -> Draws:
    """`n` draws of the generator with their importance weights.

    Args:
        fit: a fit, or anything with `model` and `generator`.
        n: number of draws.
        seed: see the module.

    Raises:
        DataError: n is below 1.
        ProgramError: most draws have no density.
    """
    require_fit("importance_sample", fit)
    with seeded(seed):
        proposed = propose(fit, n)
    return Draws(proposed.values, proposed.log_weights, proposed.rejected)


class Proposed(NamedTuple):
    """Draws of q and what they were scored with.

    * values: each site, shape (n, *site_shape).
    * log_density: log p~, shape (n,); -inf of a draw without mass, or one that was rejected.
    * log_q: log q, shape (n,); where a draw was rejected it may not be a number.
    * rejected: how many were.
    """

    values: Sites
    log_density: Float[Tensor, " n"]
    log_q: Float[Tensor, " n"]
    rejected: int

    @property
    def log_weights(self) -> Float[Tensor, " n"]:
        """Log p~ - log q; a zero density is a weight of -inf, whatever log q."""
        return log_ratio(self.log_density, self.log_q)

    def with_mass(self) -> "Proposed":
        """The draws with mass, as draws of q given that: a density 1 / share times as high."""
        kept = self.log_density > -math.inf
        share = kept.double().mean().log().item()
        values = {name: value[kept] for name, value in self.values.items()}
        return Proposed(values, self.log_density[kept], self.log_q[kept] - share, 0)


def log_ratio(log_density: Float[Tensor, "*n"], log_q: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """Log p~ - log q; -inf where p~ is zero, and never nan by that subtraction."""
    return torch.where(log_density == -math.inf, -math.inf, log_density - log_q)


@torch.no_grad()
def propose(fit: Fitted, n: int) -> Proposed:
    """`n` draws of the generator, scored; from the random stream as it stands.

    A draw on the edge of its support or beyond it, or one whose log p~ or log q is nan or +inf, is
    rejected as any sampler does with such a proposal: weight zero, counted.

    Raises:
        DataError: n is below 1.
        ProgramError: more than half of the draws are rejected.
    """
    n = count("n", n)
    sizes = [ROWS_AT_ONCE] * (n // ROWS_AT_ONCE) + [n % ROWS_AT_ONCE]
    parts = [_proposed(fit, size) for size in sizes if size]
    values = {name: torch.cat([part.values[name] for part in parts]) for name in parts[0].values}
    log_density = torch.cat([part.log_density for part in parts])
    log_q = torch.cat([part.log_q for part in parts])
    rejected = sum(part.rejected for part in parts)
    if rejected > n / 2:
        raise ProgramError(
            f"draws of the generator: {rejected} of {n} have no density (they are outside their "
            "supports, or log p~ or log q is nan or +inf); expected numbers, or log density "
            "-inf.\n  Most likely a factor takes the log or root of a negative number there, or "
            "overflows: look at model.terms(x) of such a draw."
        )
    return Proposed(values, log_density, log_q, rejected)


def _proposed(fit: Fitted, n: int) -> Proposed:
    x, log_q = fit.generator.rsample_and_log_prob(n)
    log_density, bad = score(fit.model, x, log_q)
    return Proposed(x, log_density, log_q, int(bad.sum()))


@torch.no_grad()
def score(
    model: EnergyModel, x: Sites, log_q: Float[Tensor, " n"]
) -> tuple[Float[Tensor, " n"], Bool[Tensor, " n"]]:
    """Log p~ of draws, -inf of those that are rejected, and which these are."""
    bad = ~(model.inside(x) & log_q.isfinite())
    if bad.all():
        return torch.full_like(log_q, -math.inf), bad
    log_density = model.log_density(with_stand_ins(x, bad))
    bad |= log_density.isnan() | (log_density == math.inf)
    return torch.where(bad, -math.inf, log_density), bad


def with_stand_ins(x: Sites, bad: Bool[Tensor, " n"]) -> Sites:
    """The rows, the bad among them replaced by a good one: programs are run on good rows only."""
    if not bad.any():
        return x
    good = int((~bad).nonzero()[0])
    at = torch.where(bad, good, torch.arange(len(bad), device=bad.device))
    return {name: value[at] for name, value in x.items()}


def resample(draws: Draws, n: int, *, seed: int | None = None) -> Sites:
    """`n` draws of about p_theta: multinomial by weight, with replacement.

    Given the draws, the results are independent; equal rows appear where a weight is large.

    Args:
        draws: of `importance_sample`.
        n: how many to return; more than ESS of them carry no more information.
        seed: see the module.

    Returns:
        Each site, shape (n, *site_shape).

    Raises:
        DataError: n is below 1.
        GeneratorError: no draw has any weight.

    Examples:
        >>> draws = Draws({"x": torch.tensor([1.0, 2.0])}, torch.tensor([0.0, -torch.inf]))
        >>> resample(draws, 3, seed=0)
        {'x': tensor([1., 1., 1.])}
    """
    n = count("n", n)
    if not isinstance(draws, Draws):
        raise GeneratorError(
            f"resample was given a {type(draws).__name__}; expected Draws.\n  Pass "
            "importance_sample(fit, n)."
        )
    require_weight(draws.log_weights)
    weights = torch.softmax(draws.log_weights.double(), 0)
    with seeded(seed):
        index = torch.multinomial(weights, n, replacement=True)
    return {name: value[index] for name, value in draws.values.items()}


def log_partition(fit: Fitted, n: int = 4000, *, seed: int | None = None) -> Estimate:
    """Log Z with its standard error, from `n` draws of q alone (never from the offset b).

    Both are of the raw weights; see `Estimate` for the smoothed ones beside them.

    Args:
        fit: a fit, or anything with `model` and `generator`.
        n: draws of q.
        seed: see the module.

    Returns:
        Log Z in nats, with its standard error.

    Raises:
        DataError: n is below 1.
        ProgramError: most draws have no density.
    """
    require_fit("log_partition", fit)
    return log_partition_from_weights(importance_sample(fit, n, seed=seed).log_weights)


def log_prob(fit: Fitted, x: Rows, n: int = 4000, *, seed: int | None = None) -> LogProb:
    """Normalised log density of given rows, with the error of log Z.

    Args:
        fit: a fit, or anything with `model` and `generator`.
        x: rows of every site, checked like data.
        n: draws of q for log Z.
        seed: see the module.

    Returns:
        log p~ - log Z per row, and log Z. The standard error of a row is that of log Z; of a mean
        over rows, hypot(sd / sqrt(rows), that of log Z).

    Raises:
        DataError: the rows do not fit the program, or n is below 1.
        ProgramError: most draws have no density.
    """
    require_fit("log_prob", fit)
    rows = {name: value[:] for name, value in fit.model.stored(x).items()}
    estimate = log_partition(fit, n, seed=seed)
    return LogProb(log_density_of(fit.model, rows) - estimate.value, estimate)


@torch.no_grad()
def log_density_of(model: EnergyModel, x: Sites) -> Float[Tensor, " n"]:
    """Log p~ of many rows, in slices, without gradients."""
    return torch.cat([model.log_density(rows) for rows in slices(x)])


def slices(x: Sites) -> list[Sites]:
    """The rows of `x` in pieces of at most `ROWS_AT_ONCE`."""
    pieces = zip(*(value.split(ROWS_AT_ONCE) for value in x.values()), strict=True)
    return [dict(zip(x, piece, strict=True)) for piece in pieces]


def require_weight(log_weights: Float[Tensor, " n"]) -> None:
    """Refuses weights of which none can be used.

    Raises:
        GeneratorError: none above -inf, or one is NaN.
    """
    if not (log_weights > -math.inf).any() or log_weights.isnan().any():
        raise GeneratorError(
            f"none of {len(log_weights)} draws has a usable weight; expected log weights above "
            "-inf and none NaN.\n  Most likely the generator draws where the density is zero: fit "
            "it first, or start it from the data."
        )
