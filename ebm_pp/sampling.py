"""Draws of p_theta = p~ / Z, by correcting draws of the proposal q.

With w = p~ / q, one number per draw:

    importance sampling    E_p[f] = sum_i w_i f(x_i) / sum_i w_i,           x_i ~ q
    resampling             x_i kept with probability proportional to w_i
    independence MH        x -> x' with probability min(1, w(x') / w(x)),   x' ~ q
    neural transport HMC   NUTS on -log p~(T(eps)) - log|det dT/deps|,      T the generator's map

The first three see only what q reaches. The last walks, so it is a second opinion: it is never
part of training. Sources: Tierney 1994 (independence MH); Hoffman et al. 2019, arXiv:1903.03704
(neural transport).

Every function that draws takes `seed`. It works on its own random stream and leaves the global one
alone; `seed=None` starts from fresh entropy.
"""

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from pyro.infer import MCMC, NUTS
from torch import Tensor

from ebm_pp.data import columns
from ebm_pp.density import EnergyModel, Sites
from ebm_pp.errors import GeneratorError, ProgramError
from ebm_pp.generator import Generator
from ebm_pp.partition import Estimate, log_partition_from_weights
from ebm_pp.rows import columns_as_html

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
    """

    values: Sites
    log_weights: Float[Tensor, " n"]

    def _repr_html_(self) -> str:
        """What the draws are worth, and the weighted mean and spread of every site's numbers."""
        log_z, n = log_partition_from_weights(self.log_weights), len(self.log_weights)
        weights = torch.softmax(self.log_weights.double(), 0)
        named = columns(self.values)
        x = torch.stack([column.double() for column in named.values()], 1)
        mean, square = weights @ x, weights @ (x - weights @ x).square()
        texts = [[f"{v:.4g}" for v in part.tolist()] for part in (mean, square.sqrt())]
        table = {"site": list(named), "mean": texts[0], "sd": texts[1]}
        worth = f"worth {n * log_z.ess:.0f}; Pareto k {log_z.pareto_k:.2f}."
        return columns_as_html(table, f"{n} draws of q, {worth}")


class Chains(NamedTuple):
    """Markov chains with p_theta as their limit.

    * values: each site, shape (chains, steps, *site_shape).
    * log_density, log_q: log p~ and log q of every state, shape (chains, steps).
    * accepted: whether the state is a new one, shape (chains, steps).
    * acceptance: accepted moves as a fraction of the steps.
    * divergences: steps where NUTS lost the trajectory; wanted 0. Always 0 for independence MH.
    """

    values: Sites
    log_density: Float[Tensor, "chains steps"]
    log_q: Float[Tensor, "chains steps"]
    accepted: Bool[Tensor, "chains steps"]
    acceptance: float
    divergences: int

    @property
    def log_weights(self) -> Float[Tensor, "chains steps"]:
        """Log p~ - log q of every state."""
        return self.log_density - self.log_q


class LogProb(NamedTuple):
    """Normalised log densities of rows.

    * values: log p~ - log Z, shape (n,), nats in the sites' own units.
    * log_partition: log Z with its standard error, which all rows share.
    """

    values: Float[Tensor, " n"]
    log_partition: Estimate


@contextlib.contextmanager
def seeded(seed: int | None) -> Iterator[None]:
    """A random stream of its own, from `seed` or fresh entropy; the global one stays as it was."""
    devices = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices):
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
        ProgramError: the density or log q of a draw is not a number.
    """
    with seeded(seed):
        values, log_density, log_q = propose(fit, n)
    return Draws(values, log_density - log_q)


@torch.no_grad()
def propose(fit: Fitted, n: int) -> tuple[Sites, Float[Tensor, " n"], Float[Tensor, " n"]]:
    """`n` draws of the generator, log p~ and log q; from the random stream as it stands."""
    if n < 1:
        raise ValueError(f"{n} draws were asked for; expected at least 1.")
    sizes = [ROWS_AT_ONCE] * (n // ROWS_AT_ONCE) + [n % ROWS_AT_ONCE]
    parts = [fit.generator.rsample_and_log_prob(size) for size in sizes if size]
    values = {name: torch.cat([x[name] for x, _ in parts]) for name in parts[0][0]}
    log_q = torch.cat([log_q for _, log_q in parts])
    log_density = torch.cat([fit.model.log_density(x) for x, _ in parts])
    log_weights = log_density - log_q
    bad = log_weights.isnan() | (log_weights == math.inf)
    if bad.any():
        row = int(bad.nonzero()[0])
        raise ProgramError(
            f"draws of the generator: {int(bad.sum())} of {n} have no usable weight (first: draw "
            f"{row}, log density {log_density[row].item()}, log q {log_q[row].item()}); expected "
            "numbers, or log density -inf.\n  Most likely a factor takes the log or root of a "
            "negative number there, or overflows: look at model.terms(x) of that draw."
        )
    return values, log_density, log_q


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
        GeneratorError: no draw has any weight.

    Examples:
        >>> draws = Draws({"x": torch.tensor([1.0, 2.0])}, torch.tensor([0.0, -torch.inf]))
        >>> resample(draws, 3, seed=0)
        {'x': tensor([1., 1., 1.])}
    """
    _require_weight(draws.log_weights)
    weights = torch.softmax(draws.log_weights.double(), 0)
    with seeded(seed):
        index = torch.multinomial(weights, n, replacement=True)
    return {name: value[index] for name, value in draws.values.items()}


def independence_mh(
    fit: Fitted, draws: Draws | int, chains: int = 4, *, seed: int | None = None
) -> Chains:
    """Independence Metropolis-Hastings: chains that propose fresh draws of q.

    Each chain walks once through its own share of the draws, starting at the first of them, so
    chains are independent and r-hat means something. Draws beyond a multiple of `chains` are left
    out.

    Args:
        fit: a fit, or anything with `model` and `generator`.
        draws: of `importance_sample`, or how many to make.
        chains: number of chains.
        seed: see the module.

    Raises:
        ValueError: fewer than one draw per chain.
        GeneratorError: no draw has any weight.
        ProgramError: the density or log q of a draw is not a number.
    """
    with seeded(seed):
        if isinstance(draws, int):
            values, log_density, log_q = propose(fit, draws)
        else:
            values, log_density = draws.values, log_density_of(fit.model, draws.values)
            log_q = log_density - draws.log_weights
        return walk(values, log_density, log_q, chains)


def walk(
    values: Sites, log_density: Float[Tensor, " n"], log_q: Float[Tensor, " n"], chains: int
) -> Chains:
    """`independence_mh` over scored draws, from the random stream as it stands."""
    log_weights = log_density - log_q
    _require_weight(log_weights)
    steps = len(log_weights) // chains
    if steps < 1:
        raise ValueError(f"{len(log_weights)} draws for {chains} chains; expected one each.")
    index, acceptance = metropolis(log_weights[: chains * steps].reshape(chains, steps))
    accepted = torch.ones_like(index, dtype=torch.bool)
    accepted[:, 1:] = index[:, 1:] != index[:, :-1]
    states = {name: value[index] for name, value in values.items()}
    return Chains(states, log_density[index], log_q[index], accepted, acceptance, 0)


def metropolis(
    log_weights: Float[Tensor, "chains steps"],
) -> tuple[Int[Tensor, "chains steps"], float]:
    """Walks along each row of proposals, accepting with probability min(1, w'/w).

    Args:
        log_weights: log p~ - log q of the proposals, in the order they are proposed.

    Returns:
        For every step which proposal the chain is at, as an index into the flattened input; and
        the fraction of moves accepted (nan for a single step).
    """
    chains, steps = log_weights.shape
    log_u = torch.rand(chains, steps, dtype=torch.float64).log().tolist()
    walks, moves = [], 0
    # Plain floats: a step is a comparison, a hundred times cheaper than four tensor operations.
    for chain, proposals in enumerate(log_weights.double().tolist()):
        at, current = 0, proposals[0]
        walk = [chain * steps]
        for step in range(1, steps):
            # Where both weights are zero the difference is nan: the chain stays.
            if log_u[chain][step] < proposals[step] - current:
                at, current = step, proposals[step]
                moves += 1
            walk.append(chain * steps + at)
        walks.append(walk)
    acceptance = moves / (chains * (steps - 1)) if steps > 1 else math.nan
    return torch.tensor(walks, device=log_weights.device), acceptance


def neutra_hmc(
    fit: Fitted,
    n: int = 1000,
    chains: int = 4,
    warmup: int = 200,
    *,
    max_tree_depth: int = 6,
    seed: int | None = None,
) -> Chains:
    """Pyro's NUTS in the generator's latent space: a sampler that can leave the draws of q.

    The energy is evaluated one state at a time, about 10 to 100 times per draw: slow. Use it to
    check an important result.

    Args:
        fit: a fit whose generator offers `latent_to_sites` (a `FlowGenerator` does).
        n: draws in all, split over the chains.
        chains: number of chains, run one after the other from independent N(0, I) starts.
        warmup: steps per chain spent on step size and mass matrix, not returned.
        max_tree_depth: a trajectory has at most 2^depth leapfrog steps.
        seed: see the module.

    Raises:
        GeneratorError: the generator has no latent space with known Jacobian.

    Source: Hoffman et al. 2019, arXiv:1903.03704.
    """
    to_sites = getattr(fit.generator, "latent_to_sites", None)
    if to_sites is None:
        raise GeneratorError(
            f"neutra_hmc: generator {type(fit.generator).__name__} has no `latent_to_sites`; "
            "expected a smooth map from R^d to the sites with its log-Jacobian.\n"
            "  Use a FlowGenerator, or independence_mh, which needs only draws and log q."
        )

    def potential(state: dict[str, Tensor]) -> Tensor:
        x, log_jacobian = to_sites(state["eps"].unsqueeze(0))
        return -(fit.model.log_density(x) + log_jacobian).squeeze(0)

    steps = max(n // chains, 1)
    with seeded(seed):
        with torch.no_grad():
            like = fit.generator.rsample_and_log_prob(1)[1]
        runs = [
            _nuts(
                potential, like.new_empty(fit.model.dim).normal_(), steps, warmup, max_tree_depth
            )
            for _ in range(chains)
        ]
    eps = torch.stack([states for states, _, _ in runs])
    with torch.no_grad():
        flat, _ = to_sites(eps.flatten(0, 1))
        log_q = fit.generator.log_prob(flat).reshape(chains, steps)
    log_density = log_density_of(fit.model, flat).reshape(chains, steps)
    accepted = torch.ones(chains, steps, dtype=torch.bool, device=eps.device)
    accepted[:, 1:] = (eps[:, 1:] != eps[:, :-1]).any(-1)
    values = {name: v.unflatten(0, (chains, steps)) for name, v in flat.items()}
    acceptance = sum(rate for _, rate, _ in runs) / chains
    return Chains(values, log_density, log_q, accepted, acceptance, sum(d for _, _, d in runs))


def log_partition(fit: Fitted, n: int = 4000, *, seed: int | None = None) -> Estimate:
    """Log Z with its standard error, from `n` draws of q alone (never from the offset b).

    Raises:
        ProgramError: the density or log q of a draw is not a number.
    """
    return log_partition_from_weights(importance_sample(fit, n, seed=seed).log_weights)


def log_prob(fit: Fitted, x: Sites, n: int = 4000, *, seed: int | None = None) -> LogProb:
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
        DataError: the rows do not fit the program.
        ProgramError: the density or log q of a draw is not a number.
    """
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


def _nuts(
    potential: Callable[[dict[str, Tensor]], Tensor],
    start: Float[Tensor, " d"],
    steps: int,
    warmup: int,
    max_tree_depth: int,
) -> tuple[Float[Tensor, "steps d"], float, int]:
    """One NUTS chain: its states, accepted fraction, and number of divergences."""
    found: dict[str, Any] = {}

    def record(kernel: NUTS, state: object, stage: str, step: int) -> None:
        if stage.startswith("Sample"):  # the kernel forgets its statistics when the run ends
            found.update(kernel.diagnostics())

    chain = MCMC(
        NUTS(potential_fn=potential, max_tree_depth=max_tree_depth),
        num_samples=steps,
        warmup_steps=warmup,
        initial_params={"eps": start},
        hook_fn=record,
        disable_progbar=True,
    )
    chain.run()
    rate, divergences = float(found["acceptance rate"]), len(found["divergences"])
    return chain.get_samples()["eps"], rate, divergences


def _require_weight(log_weights: Float[Tensor, " n"]) -> None:
    if not (log_weights > -math.inf).any() or log_weights.isnan().any():
        raise GeneratorError(
            f"none of {len(log_weights)} draws has a usable weight; expected log weights above "
            "-inf and none NaN.\n  Most likely the generator draws where the density is zero: fit "
            "it first, or start it from the data."
        )
