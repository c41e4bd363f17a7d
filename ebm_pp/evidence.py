"""The measurements behind a report; what they mean is said in diagnostics.py."""

import math
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ebm_pp.density import EnergyModel, Sites
from ebm_pp.errors import DataError
from ebm_pp.moments import Gap, compare_moments, mean_squared_error, site_statistics
from ebm_pp.pareto import chain_statistics
from ebm_pp.partition import Estimate, log_partition_from_weights, sandwich
from ebm_pp.reach import DataSide, Leak, Spread, behind_barrier, data_side, leaked_mass, widest
from ebm_pp.sampling import Chains, Fitted, propose, slices, walk

ROWS_TRIED = 100  # rows beyond reach that are looked at more closely


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
        gain: mean of log p_theta - log q over the rows: by how much the energy improves on q.
    """

    side: DataSide
    gaps: dict[str, Gap]
    offset_gap: float
    offset_error: float
    accuracy: float
    log_likelihood: float
    log_likelihood_error: float
    gain: float


@dataclass(frozen=True)
class Evidence:
    """All measurements of one diagnosis.

    Attributes:
        n: draws of q.
        log_z: from draws of q alone.
        bounds: below and above log Z, in expectation.
        acceptance: of independence-MH chains over the draws.
        min_ess: effective draws of the chains, in the worst coordinate.
        max_rhat: r-hat in the worst coordinate.
        spread: the coordinate where data (or the chains) are widest against the draws.
        leak: mass that draws of the base measure find; None if the base is improper.
        behind_barrier: of the rows beyond reach (of the data, or without data of the base measure)
            the fraction that a barrier of p~ separates from the draws; nan if there is none.
        data: None without data.
    """

    n: int
    log_z: Estimate
    bounds: tuple[float, float]
    acceptance: float
    min_ess: float
    max_rhat: float
    spread: Spread
    leak: Leak | None
    behind_barrier: float
    data: AtData | None


@torch.no_grad()
def measure(
    fit: Diagnosable,
    data: Sites | None,
    n: int,
    chains: int,
    groups: Int[Tensor, " rows"] | None = None,
) -> Evidence:
    """Every measurement, from `n` draws of q; uses the random stream as it stands.

    Raises:
        DataError: the data do not fit the program.
        ProgramError: the density or log q of a draw is not a number.
        GeneratorError: no draw has any weight.
    """
    model = fit.model
    rows = None if data is None else model.check(data)
    if rows is not None and groups is not None:
        _require_labels(groups, len(next(iter(rows.values()))))
    x, log_density, log_q = propose(fit, n)
    log_weights = log_density - log_q
    log_z = log_partition_from_weights(log_weights)
    walked = walk(x, log_density, log_q, chains)
    z, _ = model.unconstrain(x)
    z_walk, _ = model.unconstrain({k: v.flatten(0, 1) for k, v in walked.values.items()})
    ess, rhat = _mixing(model, walked, z_walk)
    z_data = z_walk if rows is None else model.unconstrain(rows)[0]
    at_data = (
        None if rows is None else _at_data(fit, rows, z_data, x, z, log_weights, log_z, groups)
    )
    leak, z_base = _leak(fit, n, log_weights, log_z.value) if model.proper else (None, z[:0])
    outside = z_base if at_data is None else z_data[at_data.side.beyond]
    some = outside[torch.randperm(len(outside))[:ROWS_TRIED]]
    return Evidence(
        n=n,
        log_z=log_z,
        bounds=sandwich(log_weights, walked.log_weights.flatten()),
        acceptance=walked.acceptance,
        min_ess=ess,
        max_rhat=rhat,
        spread=widest(model, z_data, z),
        leak=leak,
        behind_barrier=behind_barrier(model, some, z) if len(some) else math.nan,
        data=at_data,
    )


def _mixing(model: EnergyModel, walked: Chains, z: Float[Tensor, "n d"]) -> tuple[float, float]:
    """Effective draws and r-hat in the worst coordinate; an angle is judged by cos and sin."""
    turned = model.circular
    values = torch.cat([z[:, ~turned], z[:, turned].cos(), z[:, turned].sin()], -1)
    ess, rhat, _ = chain_statistics(values.unflatten(0, tuple(walked.log_q.shape)))
    return float(ess.min()), float(rhat.max())


def _leak(
    fit: Diagnosable, n: int, log_weights: Float[Tensor, " n"], log_z: float
) -> tuple[Leak, Float[Tensor, "m d"]]:
    """Mass that draws of the base measure find beyond reach, and where: unconstrained rows."""
    base = fit.model.sample_base(n)
    log_density, log_base = fit.model.log_density(base), fit.model.log_base(base)
    leak = leaked_mass(log_density, log_base, fit.generator.log_prob(base), log_weights, log_z)
    z, _ = fit.model.unconstrain(base)
    if not leak.mass:
        return leak, z[:0]
    share = torch.softmax(leak.log_shares, 0)
    return leak, z[torch.multinomial(share, ROWS_TRIED, replacement=True)]


def _at_data(
    fit: Diagnosable,
    rows: Sites,
    z_rows: Float[Tensor, "m d"],
    draws: Sites,
    z_draws: Float[Tensor, "n d"],
    log_weights: Float[Tensor, " n"],
    log_z: Estimate,
    groups: Int[Tensor, " m"] | None,
) -> AtData:
    terms, terms_draws = _terms(fit.model, rows), _terms(fit.model, draws)
    log_density = torch.stack(list(terms.values())).sum(0)
    log_q = torch.cat([fit.generator.log_prob(piece) for piece in slices(rows)])
    at_rows = log_density - log_q
    statistics, statistics_draws = (
        {
            **site_statistics(fit.model, z, like=z_rows),
            **{f"term {name}": value for name, value in found.items()},
        }
        for z, found in ((z_rows, terms), (z_draws, terms_draws))
    )
    n = len(log_weights)
    learned = fit.n_train > 0
    accuracy = (at_rows > fit.offset).double().mean() + (log_weights < fit.offset).double().mean()
    return AtData(
        side=data_side(at_rows, log_weights, log_z.value),
        gaps=compare_moments(statistics, statistics_draws, log_weights, fit.n_train, groups),
        offset_gap=fit.offset - log_z.value if learned else math.nan,
        offset_error=math.hypot(log_z.standard_error, *(n**-0.5, fit.n_train**-0.5))
        if learned
        else math.nan,
        accuracy=accuracy.item() / 2 if learned else math.nan,
        log_likelihood=log_density.double().mean().item() - log_z.value,
        log_likelihood_error=math.hypot(
            mean_squared_error(log_density.double()[None], groups).sqrt().item(),
            log_z.standard_error,
        ),
        gain=at_rows.double().mean().item() - log_z.value,
    )


def _require_labels(groups: Tensor, rows: int) -> None:
    if len(groups) != rows or len(groups.unique()) < 2:
        raise DataError(
            f"groups has {len(groups)} labels, {len(groups.unique())} of them different; expected "
            f"one per row ({rows}), two different ones at least.\n"
            "  Most likely labels of other rows: take them from the same split as the data."
        )


def _terms(model: EnergyModel, x: Sites) -> dict[str, Float[Tensor, " n"]]:
    """Every term of log p~, in slices."""
    pieces = [model.terms(piece) for piece in slices(x)]
    return {name: torch.cat([piece[name] for piece in pieces]) for name in pieces[0]}
