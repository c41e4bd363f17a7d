"""How good a density is: held-out KL from the truth with an exact or estimated log Z.

Everything takes `log_density`, an unnormalised log p~ of rows (n, d), whatever library made it.
"""

import math
import time
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributions import Independent, Normal

from ebm_pp.generator import Generator
from ebm_pp.partition import Estimate, log_partition_from_weights
from ebm_pp.sampling import ROWS_AT_ONCE, seeded
from experiments.benchmark.annealed import Start, annealed_log_partition, gaussian_mixture
from experiments.benchmark.problems import LogDensity, Problem, Rows

CELL = 0.02  # side of the grid's cells among the data; the thinnest shape is .08 wide
GROWTH, REACH = 1.1, 50.0  # cells grow by this factor outside, as far as 50 standard deviations
BAD_K = 0.7  # k-hat above which an estimate of log Z can't be trusted
OWN_DRAWS = 20_000  # of a generator, for its ESS and modes
SHOWN_DRAWS = 64  # of a generator, for pictures


class Effort(NamedTuple):
    """How much is spent on log Z beyond the plane.

    draws: for importance sampling.
    chains: for annealing, and its temperatures.
    careful: whether to anneal where importance sampling failed.
    """

    draws: int
    chains: int
    temperatures: int
    careful: bool


ON_THE_WAY, AT_THE_END = Effort(10_000, 256, 100, False), Effort(50_000, 512, 600, True)


class Proposal(NamedTuple):
    """One component of an importance-sampling mixture: its draws, and its log density."""

    draws: Rows
    log_prob: LogDensity


@torch.no_grad()
def evaluate(log_density: LogDensity, x: Rows) -> Float[Tensor, "n"]:
    """log p~ in float64, in slices that bound memory."""
    return torch.cat([log_density(part).double() for part in x.split(ROWS_AT_ONCE)])


def grid_log_partition(log_density: LogDensity, rows: Rows, cell: float = CELL) -> Estimate:
    """Log Z in the plane, by the midpoint rule on a grid.

    Cells are squares of side `cell` in the box of the rows, one standard deviation wider; outside
    each is 10 % longer than the one before, out to 50 standard deviations: the far ones are only
    there to see mass that is far away.

    Args:
        log_density: log p~.
        rows: data, shape (n, 2).
        cell: side of the cells among the data.

    Returns:
        log Z; `pareto_k` is nan, and `standard_error` the change when cells are twice as large.
    """
    value = _midpoint(log_density, rows, cell)
    error = abs(value - _midpoint(log_density, rows, 2 * cell))
    return Estimate(value, error, math.nan, math.nan)


def _midpoint(log_density: LogDensity, rows: Rows, cell: float) -> float:
    axes = [_axis(column.double(), cell) for column in rows.T]
    points = torch.cartesian_prod(*[middle for middle, _ in axes])
    log_area = torch.cartesian_prod(*[width.log() for _, width in axes]).sum(1)
    return (evaluate(log_density, points.to(rows)) + log_area).logsumexp(0).item()


def _axis(column: Float[Tensor, "n"], cell: float) -> tuple[Tensor, Tensor]:
    """Middles and widths of the cells of one axis."""
    spread = column.std().item()
    low, high = column.min().item() - spread, column.max().item() + spread
    inner = torch.arange(low, high + cell, cell, dtype=torch.float64)
    n_outer = math.ceil(math.log1p(REACH * spread * (GROWTH - 1) / cell) / math.log(GROWTH))
    growing = cell * GROWTH ** torch.arange(n_outer, dtype=torch.float64)
    reach = growing.cumsum(0)
    edges = torch.cat([inner[0] - reach.flip(0), inner, inner[-1] + reach])
    return (edges[1:] + edges[:-1]) / 2, edges.diff()


def importance_log_partition(log_density: LogDensity, proposals: list[Proposal]) -> Estimate:
    """Log Z by importance sampling from a mixture, the draws of all its components together.

    Weights are p~ / m with m = sum_i (n_i / n) q_i, the same for every draw whichever component it
    is from (the balance heuristic of Veach and Guibas 1995).

    Args:
        log_density: log p~.
        proposals: the components with their draws, in fixed numbers n_i.

    Returns:
        log Z with its standard error and k-hat. Mass where no component is, is not seen.
    """
    x = torch.cat([proposal.draws for proposal in proposals])
    log_shares = [math.log(len(proposal.draws) / len(x)) for proposal in proposals]
    parts = [
        evaluate(proposal.log_prob, x) + log_share
        for proposal, log_share in zip(proposals, log_shares, strict=True)
    ]
    log_m = torch.stack(parts).logsumexp(0)
    return log_partition_from_weights(evaluate(log_density, x) - log_m)


def base_proposal(problem: Problem, n: int) -> Proposal:
    """The base measure of the program `Network`, N(mean, (1.5 sd)^2)."""
    base = Independent(Normal(problem.train.mean(0), 1.5 * problem.train.std(0)), 1)
    return Proposal(base.sample((n,)), base.log_prob)


def generator_proposal(generator: Generator, n: int) -> Proposal:
    """A generator's own draws."""
    with torch.no_grad():
        sizes = [ROWS_AT_ONCE] * (n // ROWS_AT_ONCE) + [n % ROWS_AT_ONCE]
        x = torch.cat([generator.rsample_and_log_prob(m)[0]["x"] for m in sizes if m])
    return Proposal(x, lambda rows: generator.log_prob({"x": rows}))


def reference_log_partition(
    problem: Problem,
    seed: int,
    log_density: LogDensity,
    generator: Generator | None,
    effort: Effort,
) -> tuple[Estimate, str]:
    """Log Z as well as it can be known: a grid in the plane, draws of the truth beyond.

    Of the draws half are of the truth and a fifth of the base measure; the rest are of the
    generator, if there is one, else of the truth too. Where that fails (k-hat above .7) or the
    truth is unknown, chains are annealed from the truth or a Gaussian mixture fitted to the data.

    Returns:
        The estimate, and how it was made: grid, importance or annealing.
    """
    if problem.dim == 2:
        return grid_log_partition(log_density, problem.train), "grid"
    spread = problem.train.std(0)
    if problem.draws is None or problem.log_density is None:
        start = gaussian_mixture(problem.train, effort.chains)
        return (
            annealed_log_partition(log_density, start, spread, effort.temperatures),
            "annealing",
        )
    n_base, n_generator = effort.draws // 5, 0 if generator is None else 3 * effort.draws // 10
    proposals = [base_proposal(problem, n_base)]
    if generator is not None:
        proposals.append(generator_proposal(generator, n_generator))
    n_truth = effort.draws - n_base - n_generator
    proposals.append(Proposal(problem.draws(n_truth, 300 + seed), problem.log_density))
    log_z = importance_log_partition(log_density, proposals)
    if log_z.pareto_k <= BAD_K or not effort.careful:
        return log_z, "importance"
    start = Start(problem.draws(effort.chains, 500 + seed), problem.log_density)
    annealed = annealed_log_partition(log_density, start, spread, effort.temperatures)
    return annealed, "annealing"


def kl(
    problem: Problem, log_density: LogDensity, log_z: Estimate | None = None
) -> tuple[float, float]:
    """KL(truth || p~ / Z) on the test rows, paired, and its standard error; nats.

    Where the truth is unknown: minus the held-out log-likelihood instead, which differs from the
    KL by the entropy.

    Args:
        problem: with its test rows.
        log_density: log p~.
        log_z: its log Z; None if it is normalised.
    """
    score = evaluate(log_density, problem.test)
    gap = -score
    if problem.log_density is not None:
        gap = gap + evaluate(problem.log_density, problem.test)
    value, error = gap.mean().item(), gap.std().item() / math.sqrt(len(gap))
    if log_z is None:
        return value, error
    return value + log_z.value, math.hypot(error, log_z.standard_error)


def own_sampling(
    problem: Problem, log_density: LogDensity, generator: Generator, exact: Estimate | None
) -> tuple[dict[str, float], Rows]:
    """What the generator's draws are worth, and some of them, resampled by their weights.

    Returns:
        ESS and log Z from these draws alone (where the density is not the generator's own), the
        smallest share of a mode in its true share; and draws (64, d).
    """
    proposal = generator_proposal(generator, OWN_DRAWS)
    log_weights = evaluate(log_density, proposal.draws)
    log_weights = log_weights - evaluate(proposal.log_prob, proposal.draws)
    found = {"generator_kl": kl(problem, proposal.log_prob)[0]}
    if exact is not None:
        own = log_partition_from_weights(log_weights)
        found |= {"ess": own.ess, "own_pareto_k": own.pareto_k}
        found |= {"log_z_error": own.value - exact.value, "own_log_z_se": own.standard_error}
    weights = log_weights.softmax(0)
    if problem.members is not None and problem.shares is not None:
        shares = weights @ problem.members(proposal.draws)
        found["smallest_mode"] = (shares / problem.shares).min().item()
    return found, proposal.draws[weights.multinomial(SHOWN_DRAWS, replacement=True)]


class Look:
    """Measures a density while the clock stands still; called by a recipe as it trains.

    Args:
        problem: what is fitted.
        seed: of the measurements' own random stream.
        budget: CPU seconds that recipes with no end of their own train for.
        curve: whether to measure on the way at all.

    Attributes:
        curve: CPU seconds, KL and its standard error of every look.
        measuring: CPU seconds spent on looks.
        draws: of the last look's generator, resampled; shape (64, d), or None.
    """

    def __init__(self, problem: Problem, seed: int, budget: float, *, curve: bool = True) -> None:
        self.problem, self.seed, self.budget = problem, seed, budget
        self.curve: list[dict[str, float]] = []
        self.measuring = 0.0
        self.draws: Rows | None = None
        self._next = 1.0 if curve else math.inf
        self._cpu, self._wall = time.process_time(), time.perf_counter()

    @property
    def seconds(self) -> float:
        """CPU seconds of training so far."""
        return time.process_time() - self._cpu

    def due(self) -> bool:
        """Whether it is time for a point of the curve: at 1, 1.5, 2.25, ... CPU seconds."""
        return self.seconds >= self._next

    def __call__(
        self,
        log_density: LogDensity,
        generator: Generator | None = None,
        *,
        normalised: bool = False,
        last: bool = False,
    ) -> dict[str, Any]:
        """One measurement; the last takes more draws and looks at the generator too."""
        cpu, wall = time.process_time(), time.perf_counter()
        spent = {"cpu": cpu - self._cpu, "wall": wall - self._wall}
        with seeded(400 + self.seed):
            found = self._measure(log_density, generator, normalised, last) | spent
        self.curve.append({name: found[name] for name in ("cpu", "kl", "se")})
        while self._next <= spent["cpu"]:
            self._next *= 1.5
        self.measuring += time.process_time() - cpu
        self._cpu += time.process_time() - cpu
        self._wall += time.perf_counter() - wall
        return found

    def _measure(
        self, log_density: LogDensity, generator: Generator | None, normalised: bool, last: bool
    ) -> dict[str, Any]:
        log_z, how = None, "normalised"
        if not normalised:
            effort = AT_THE_END if last else ON_THE_WAY
            log_z, how = reference_log_partition(
                self.problem, self.seed, log_density, generator, effort
            )
        value, error = kl(self.problem, log_density, log_z)
        found: dict[str, Any] = {"kl": value, "se": error, "log_z_by": how}
        if log_z is not None:
            found |= {"log_z_se": log_z.standard_error, "log_z_pareto_k": log_z.pareto_k}
        if last and generator is not None:
            own, self.draws = own_sampling(self.problem, log_density, generator, log_z)
            found |= own
        return found
