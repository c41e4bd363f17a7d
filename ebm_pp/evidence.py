"""The measurements behind a report; what they mean is said in diagnostics.py."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ebm_pp.chains import Chains, walk
from ebm_pp.density import EnergyModel, Sites
from ebm_pp.errors import DataError
from ebm_pp.findings import Finding, look_at
from ebm_pp.labels import Labels, rows_and_labels
from ebm_pp.leak import MANY, Leak, find_leak
from ebm_pp.moments import (
    Gap,
    compare_moments,
    mean_squared_error,
    site_statistics,
    trajectory_statistics,
)
from ebm_pp.outskirts import Away, base_away, outskirts_of
from ebm_pp.pareto import chain_statistics
from ebm_pp.partition import Estimate, log_partition_from_weights, sandwich
from ebm_pp.policy import PolicyGenerator
from ebm_pp.reach import DataSide, Spread, behind_barrier, data_side, widest, widest_action
from ebm_pp.sampling import Fitted, Proposed, propose, slices
from ebm_pp.step_weights import StepWeights, soft_value_of, step_log_weights, weigh_steps

ROWS_TRIED = 100  # rows beyond reach that are looked at more closely
USABLE_ESS = 0.1  # fraction; below it ten draws are worth less than one
ENOUGH = 100  # effective draws: of fewer no tail can be told
CONDITIONAL = "the soft-optimal policy's, start states given"
JOINT = "joint density of trajectories, one log Z for all starts"


@runtime_checkable
class Diagnosable(Fitted, Protocol):
    """What a diagnosis needs of a `Fit`."""

    @property
    def offset(self) -> float:
        """The discriminator's b."""
        ...

    @property
    def n_train(self) -> int:
        """Rows fitted to; 0 if none."""
        ...


@dataclass(frozen=True)
class AtData:
    """What rows of data say.

    Attributes:
        side: the importance weights, seen from the data.
        gaps: the moment gap of every site statistic and term.
        offset_gap: b - log Z, nats; nan where no offset was learned.
        offset_error: its standard error.
        accuracy: of the discriminator, on data against draws.
        log_likelihood: mean of log p~ - log Z over the rows, nats.
        log_likelihood_error: its standard error, that of log Z included.
        of_trajectories: whether the rows are trajectories.
        slack: sd of a statistic that its gap may have by the policy's own distance from the
            optimum, where moments are compared with its own draws: k nats move the mean of T
            squared Gaussians by at most sqrt(2k) + k sqrt(2 / T) sd (Boucheron, Lugosi, Massart
            2013, Concentration Inequalities, on sub-gamma variables).
        gain: mean of log p_theta - log q over the rows: by how much the energy improves on q.
        gain_error: its standard error, that of log Z included.
        seen: whether rows of the training are among them, or may be: such rows q can know by
            heart, and describe better than any energy.
    """

    side: DataSide
    gaps: dict[str, Gap]
    offset_gap: float
    offset_error: float
    accuracy: float
    log_likelihood: float
    log_likelihood_error: float
    gain: float
    gain_error: float
    seen: bool
    of_trajectories: bool = False
    slack: float = 0.0


@dataclass(frozen=True)
class Evidence:
    """All measurements of one diagnosis.

    Attributes:
        n: draws of q.
        log_z: from draws of q alone.
        rejected: draws of q that have no density, which have weight zero.
        bounds: below and above log Z, in expectation.
        acceptance: of independence-MH chains over the draws.
        min_ess: effective draws of the chains, in the worst coordinate.
        max_rhat: r-hat in the worst coordinate.
        spread: the coordinate where data (or the chains) are widest against the draws.
        leak: mass that draws of the base measure and of the outskirts find; None without both.
        behind_barrier: of the rows beyond reach (of the data, or without data of the base measure)
            the fraction that a barrier of p~ separates from the draws; nan if there is none, and
            for trajectories, which have no straight ways between them.
        data: None without data.
        steps: of a policy, the weights of single steps.
        law: of trajectories, which one the weights are about; empty for other programs.
        heavy_base: whether the generator's base has heavy tails already.
        keeps_modes: whether the generator was trained by weighted forward KL.
        own: whether moments are compared with the policy's own draws instead of weighted ones:
            weights of whole trajectories are unusable, though every single step is fine.
        away: how far the base measure is from the rows; None where its draws are dear.
        findings: what is wrong with rows themselves, each with whose rows these are.
    """

    n: int
    log_z: Estimate
    rejected: int
    bounds: tuple[float, float]
    acceptance: float
    min_ess: float
    max_rhat: float
    spread: Spread
    leak: Leak | None
    behind_barrier: float
    data: AtData | None
    steps: StepWeights | None = None
    law: str = ""
    own: bool = False
    heavy_base: bool = False
    keeps_modes: bool = False
    away: Away | None = None
    findings: tuple[tuple[str, Finding], ...] = ()


@torch.no_grad()
def measure(
    fit: Diagnosable,
    data: Mapping[str, Any] | None,
    n: int,
    chains: int,
    groups: Labels | None = None,
) -> Evidence:
    """Every measurement, from `n` draws of q; uses the random stream as it stands.

    Of more than 100,000 rows of data so many are taken, spread over all.

    Raises:
        DataError: the data do not fit the program.
        ProgramError: most draws have no density.
        GeneratorError: no draw has any weight.
    """
    model = fit.model
    rows, labels = None, None
    if data is not None:
        rows, labels = rows_and_labels(model, data, groups)
    drawn = propose(fit, n)
    log_weights = drawn.log_weights
    log_z = log_partition_from_weights(log_weights)
    walked = walk(drawn.values, drawn.log_density, drawn.log_q, chains)
    if model.layout is not None:
        return _of_trajectories(fit, rows, drawn, walked, labels)
    massive = drawn.with_mass()
    z, _ = model.unconstrain(massive.values)
    z_walk, _ = model.unconstrain({k: v.flatten(0, 1) for k, v in walked.values.items()})
    ess, rhat = _mixing(model, walked, z_walk)
    z_data = z_walk if rows is None else model.unconstrain(rows)[0]
    at_data = None if rows is None else _at_data(fit, rows, drawn, log_z, labels)
    leak = _leak(fit, rows, log_weights, log_z.value)
    z_leak = z[:0] if leak is None else leak.z
    outside = z_leak if at_data is None else z_data[at_data.side.beyond]
    some = outside[torch.randperm(len(outside))[:ROWS_TRIED]]
    loss = getattr(getattr(fit, "config", None), "generator_loss", "")
    return Evidence(
        n=n,
        log_z=log_z,
        rejected=drawn.rejected,
        bounds=sandwich(log_weights),
        acceptance=walked.acceptance,
        min_ess=ess,
        max_rhat=rhat,
        spread=widest(model, z_data, z),
        leak=leak,
        behind_barrier=behind_barrier(model, some, z) if len(some) else math.nan,
        data=at_data,
        heavy_base=getattr(fit.generator, "raw_df", None) is not None,
        keeps_modes=loss in ("auto", "weighted_forward_kl"),
        away=base_away(model, z_data) if rows is not None and model.batching != "loop" else None,
    )


def findings_of(
    fit: Diagnosable, data: Mapping[str, Any] | None, numbers: Int[Tensor, " rows"] | None = None
) -> tuple[tuple[str, Finding], ...]:
    """What is wrong with the rows a fit was trained on, and with the rows given, by `numbers`."""
    trained = getattr(fit, "findings", ())  # a stand-in for a fit need not have any
    given = () if data is None else look_at(fit.model, fit.model.stored(data), numbers)
    return (
        *(("training rows", finding) for finding in trained),
        *(("these rows", finding) for finding in given),
    )


def _of_trajectories(
    fit: Diagnosable,
    rows: Sites | None,
    drawn: Proposed,
    walked: Chains,
    groups: Int[Tensor, " rows"] | None,
) -> Evidence:
    """The evidence where coordinates are many, constant or integers: by costs, actions, steps."""
    x, log_weights = drawn.values, drawn.log_weights
    log_z = log_partition_from_weights(log_weights)
    at_data = None if rows is None else _at_data(fit, rows, drawn, log_z, groups)
    steps, spread, own = None, Spread("actions", math.nan, math.inf), False
    flat = {name: value.flatten(0, 1) for name, value in walked.values.items()}
    if isinstance(fit.generator, PolicyGenerator):
        soft_value = soft_value_of(fit.model, fit.generator, x)
        steps = weigh_steps(step_log_weights(fit.model, fit.generator, x, soft_value))
        spread = widest_action(fit.generator, flat if rows is None else rows, x)
        usable = not log_z.heavy and log_z.ess >= USABLE_ESS
        own = steps.solved and not usable
        if own and rows is not None:
            nats = max(steps.nats, 0.0)
            slack = math.sqrt(2 * nats) + nats * math.sqrt(2 / len(steps.by_step))
            at_data = _at_data(fit, rows, drawn, log_z, groups, slack)
    ess, rhat = _mixing_of_costs(fit.model, flat, walked)
    return Evidence(
        n=len(log_weights),
        log_z=log_z,
        rejected=drawn.rejected,
        bounds=sandwich(log_weights),
        acceptance=walked.acceptance,
        min_ess=ess,
        max_rhat=rhat,
        spread=spread,
        leak=None,
        behind_barrier=math.nan,
        data=at_data,
        steps=steps,
        law=JOINT if fit.model.soft_value is None else CONDITIONAL,
        own=own,
    )


def _mixing_of_costs(model: EnergyModel, x: Sites, walked: Chains) -> tuple[float, float]:
    """Effective draws and r-hat of the worst cost feature; constant features can't be judged."""
    terms = [value for name, value in _terms(model, x).items() if name not in model.sites]
    moving = [value for value in terms if value.std() > 0]
    if not moving:
        return float(len(terms[0])) if terms else math.inf, 1.0
    values = torch.stack(moving, -1).unflatten(0, tuple(walked.log_q.shape))
    ess, rhat, _ = chain_statistics(values)
    return float(ess.min()), float(rhat.max())


def cost_features(model: EnergyModel, x: Sites) -> dict[str, Float[Tensor, " n"]]:
    """The factors of a program at some rows: its terms but for sites and the soft value."""
    others = {*model.sites, "soft_value"}
    return {name: value for name, value in _terms(model, x).items() if name not in others}


def _mixing(model: EnergyModel, walked: Chains, z: Float[Tensor, "n d"]) -> tuple[float, float]:
    """Effective draws and r-hat in the worst coordinate; an angle is judged by cos and sin."""
    turned = model.circular
    values = torch.cat([z[:, ~turned], z[:, turned].cos(), z[:, turned].sin()], -1)
    ess, rhat, _ = chain_statistics(values.unflatten(0, tuple(walked.log_q.shape)))
    return float(ess.min()), float(rhat.max())


def _seen(fit: Diagnosable, rows: Sites) -> bool:
    """Whether rows of the training are among these: of those the farthest are known."""
    outer = getattr(fit, "outskirts", None)
    return outer is None or outer.among(fit.model.unconstrain(rows)[0])


def _leak(
    fit: Diagnosable, rows: Sites | None, log_weights: Float[Tensor, " n"], log_z: float
) -> Leak | None:
    """Mass that nothing else draws; the outskirts are those of the training rows, if known."""
    outer = getattr(fit, "outskirts", None)
    if outer is None:
        if rows is None and not fit.model.proper:
            return None
        outer = outskirts_of(
            fit.model, fit.model.sample_base(len(log_weights)) if rows is None else rows
        )
    n = len(log_weights) if fit.model.batching == "loop" else max(len(log_weights), MANY)
    return find_leak(fit.model, fit.generator, outer, log_weights, log_z, n)


def require_density(model: EnergyModel, rows: Sites) -> dict[str, Float[Tensor, " n"]]:
    """Every term of log p~ at rows of data, each of which has a density.

    Raises:
        DataError: log p~ of a row is not finite; the text names row and term.
    """
    terms = _terms(model, rows)
    log_density = torch.stack(list(terms.values())).sum(0)
    bad = ~log_density.isfinite()
    if not bad.any():
        return terms
    row = int(bad.nonzero()[0])
    name = next((k for k, term in terms.items() if not term[row].isfinite()), next(iter(terms)))
    raise DataError(
        f"{int(bad.sum())} of {len(bad)} rows of data have no density: at row {row} the term "
        f"{name!r} is {terms[name][row].item()}; expected finite numbers.\n  Most likely a value "
        "far from all others, or one at which the term takes a logarithm, root or quotient out of "
        "its domain: look at that row, then at that term."
    )


def _at_data(
    fit: Diagnosable,
    rows: Sites,
    drawn: Proposed,
    log_z: Estimate,
    groups: Int[Tensor, " m"] | None,
    slack: float = 0.0,
) -> AtData:
    """What the rows say; with a slack, by moments of the unweighted draws."""
    log_weights, massive = drawn.log_weights, drawn.with_mass()
    terms, terms_draws = require_density(fit.model, rows), _terms(fit.model, massive.values)
    log_density = torch.stack(list(terms.values())).sum(0)
    log_q = torch.cat([fit.generator.log_prob(piece) for piece in slices(rows)])
    at_rows = log_density - log_q
    statistics, statistics_draws = _statistics(fit.model, rows, massive.values, terms, terms_draws)
    moment_weights = torch.zeros_like(massive.log_q) if slack else massive.log_weights
    n = len(log_weights)
    learned = fit.n_train > 0

    def error(values: Tensor) -> float:
        squared = mean_squared_error(values.double()[None], groups)
        return math.hypot(squared.sqrt().item(), log_z.standard_error)

    accuracy = (at_rows > fit.offset).double().mean() + (log_weights < fit.offset).double().mean()
    return AtData(
        side=data_side(at_rows, log_weights, log_z.value),
        gaps=compare_moments(statistics, statistics_draws, moment_weights, fit.n_train, groups),
        offset_gap=fit.offset - log_z.value if learned else math.nan,
        offset_error=math.hypot(log_z.standard_error, *(n**-0.5, fit.n_train**-0.5))
        if learned
        else math.nan,
        accuracy=accuracy.item() / 2 if learned else math.nan,
        log_likelihood=log_density.double().mean().item() - log_z.value,
        log_likelihood_error=error(log_density),
        gain=at_rows.double().mean().item() - log_z.value,
        gain_error=error(at_rows),
        seen=learned and _seen(fit, rows),
        of_trajectories=fit.model.layout is not None,
        slack=slack,
    )


def _statistics(
    model: EnergyModel,
    rows: Sites,
    draws: Sites,
    terms: dict[str, Tensor],
    terms_draws: dict[str, Tensor],
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """What moments are compared of: sites and terms; of trajectories averages over their time."""
    if model.layout is not None:
        found, found_draws = trajectory_statistics(model.layout, rows, draws)
        names = [name for name in terms if name not in model.sites and name != "soft_value"]
    else:
        z_rows, z_draws = model.unconstrain(rows)[0], model.unconstrain(draws)[0]
        found, found_draws = (site_statistics(model, z, like=z_rows) for z in (z_rows, z_draws))
        names = list(terms)
    found |= {f"term {name}": terms[name] for name in names}
    return found, found_draws | {f"term {name}": terms_draws[name] for name in names}


def _terms(model: EnergyModel, x: Sites) -> dict[str, Float[Tensor, " n"]]:
    """Every term of log p~, in slices."""
    pieces = [model.terms(piece) for piece in slices(x)]
    return {name: torch.cat([piece[name] for piece in pieces]) for name in pieces[0]}
