"""Fitting: one loop of rounds for every program, objective and generator.

A round draws a pool (pool.py), takes K energy steps on the discriminator's loss, diagnoses itself
with ArviZ, and takes J generator steps (game.py). The diagnosis sets J and ends the run.
"""

import enum
import html
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from ebm_pp.best import Best
from ebm_pp.config import FitConfig
from ebm_pp.density import EnergyModel, Sites
from ebm_pp.errors import DataError, ProgramError
from ebm_pp.findings import Finding, blamed, look_at, warn
from ebm_pp.game import Game, energy_steps, generator_steps, generator_target, start
from ebm_pp.generator import Generator
from ebm_pp.pareto import threshold
from ebm_pp.policy_steps import project, refit
from ebm_pp.pool import Pool, diagnose_round, draw_pool, n_rows, require_finite
from ebm_pp.rows import columns_as_html
from ebm_pp.stored import Data, representative

USABLE_ESS = 0.1  # ESS fraction under which draws are called unusable, whatever their k-hat


class Status(enum.Enum):
    """How a run ended, in a sentence."""

    CONVERGED = (
        "Converged: the draws are healthy, and later rounds brought nothing better (in held-out "
        "log-likelihood; for a given density, in ESS)."
    )
    FINISHED = (
        "All rounds ran and the round returned was healthy; more rounds may still improve it."
    )
    LAGGING = (
        "All rounds ran, but the generator lags behind the energy (low ESS or high k-hat): draws "
        "and log Z are not to be trusted. Raise rounds or generator_steps_max, or try a flow with "
        "base='student_t'; of long trajectories only the weights of single steps may be usable."
    )
    TEMPERING = (
        "All rounds ran before the annealed target reached the given density: draws are of a "
        "flattened one. Raise rounds or generator_steps_max, or start wider."
    )
    NON_FINITE = (
        "A number stopped being finite; the best parameters of the finite rounds were kept. Most "
        "likely an energy that falls without bound: bound it, lower energy_lr, or raise "
        "base_share."
    )
    INTERRUPTED = "Interrupted; the best parameters so far were kept."


@dataclass(frozen=True, repr=False)
class Fit:
    """A fitted model.

    Attributes:
        model: the program with its learned energy.
        generator: q, the learned proposal.
        history: one record a diagnosed round (see `pool.diagnose_round`).
        status: how the run ended; `status.value` is a sentence.
        config: what it ran with.
        offset: b of the discriminator; a gauge, not log Z.
        n_train: rows of training data; 0 for a given density.
        best_round: the round whose parameters these are (-1: none was diagnosed).
        detail: where it ended, e.g. the step whose loss was not finite.
        findings: what is wrong with the training rows themselves (`findings.py`).
    """

    model: EnergyModel
    generator: Generator
    history: tuple[dict[str, Any], ...]
    status: Status
    config: FitConfig
    offset: float
    n_train: int = 0
    best_round: int = -1
    detail: str = ""
    findings: tuple[Finding, ...] = ()

    def __repr__(self) -> str:
        lines = [f"{self.status.value} {self.detail}".strip()]
        if self.history:
            last = self.history[-1]
            numbers = ", ".join(f"{name} {value}" for name, value in _postfix(last).items())
            lines.append(f"Round {last['round'] + 1} of {self.config.rounds}: {numbers}.")
        return "\n".join([*lines, "Next: diagnose(fit, held_out_rows)."])

    def _repr_html_(self) -> str:
        """The status sentence first, then the program and the round that was returned."""
        found = [info for info in self.history if info["round"] == self.best_round]
        numbers = {"round": [f"{self.best_round + 1} of {self.config.rounds}"]} | {
            name: [value] for info in found for name, value in _postfix(info).items()
        }
        status = f"{self.status.value} {self.detail}".strip()
        return (
            f"<p><strong>{html.escape(status)}</strong></p>"
            + self.model._repr_html_()
            + columns_as_html(numbers, "Next: diagnose(fit, held_out_rows).")
        )


def fit(
    model: EnergyModel,
    data: Mapping[str, Any] | None = None,
    generator: Generator | None = None,
    config: FitConfig | None = None,
    *,
    held_out: Mapping[str, Any] | None = None,
    callback: Callable[[int, dict[str, Any]], None] | None = None,
) -> Fit:
    """Fits the energy to data and the generator to the energy ([F16] sections 3 and 4).

    Args:
        model: the program; its parameters are trained in place.
        data: rows of every site, `(n, *site_shape)`, of arrays or tensors. They stay where they
            are: of a memory-mapped file (`np.load(path, mmap_mode="r")`) only the rows in use are
            in memory. None: the density is given and only the generator learns.
        generator: any object with the three names of `Generator`; by default a `FlowGenerator`
            standardised by the data (else by the base measure). Trained in place if it is an
            `nn.Module`, left as it is otherwise.
        config: see `FitConfig`.
        held_out: rows that are never trained on (at most 100,000 are used): the round with their
            best log-likelihood is returned, and training ends when it no longer rises.
        callback: called as `callback(round, info)` after every diagnosis.

    Returns:
        The fit with the best parameters so far. A run that failed says so in `status`. What is
        wrong with the rows is in `findings`; a `UserWarning` names what makes a fit meaningless.

    Raises:
        ProgramError: data are given but the program has no parameters to train.
        DataError: data or held-out rows do not fit the program, or fewer rows than a batch; or
            no generator can follow a column.
        GeneratorError: the generator's draws and `log_prob` disagree, or its loss can't be used.
    """
    if not isinstance(model, EnergyModel):
        raise ProgramError(
            f"fit was given a {type(model).__name__}; expected an EnergyModel.\n"
            "  Wrap the program: fit(EnergyModel(program), data)."
        )
    if config is None:
        config = FitConfig() if data is not None else FitConfig.given()
        if model.layout is not None:
            config = FitConfig.trajectories(
                model.layout.horizon, opaque=model.layout.dynamics.opaque
            )
    rows, some_held_out = _checked(model, data, held_out, config)
    findings = () if rows is None else look_at(model, rows)
    bar = tqdm(total=config.rounds, desc="fit", unit="round", disable=not config.progress)
    with torch.random.fork_rng(), _without_denormals(), bar:
        torch.manual_seed(config.seed)
        with blamed(findings):
            game = start(model, rows, some_held_out, generator, config)

        def report(info: dict[str, Any]) -> None:
            bar.update(info["round"] + 1 - bar.n)
            bar.set_postfix(_postfix(info))
            if callback is not None:
                callback(info["round"], info)

        warn(findings)
        return replace(_rounds(game, some_held_out, report), findings=findings)


@contextmanager
def _without_denormals() -> Iterator[None]:
    """Numbers below 1e-38 count as 0: the weights of far draws, at a hundred times the cost."""
    kept = bool(torch.tensor(1e-40) * 1)  # torch can set this state, but not tell it
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(not kept)


def _rounds(game: Game, held_out: Sites | None, report: Callable[[dict[str, Any]], None]) -> Fit:
    """The round loop: pool, K energy steps, diagnosis, J generator steps."""
    config, data, averaged = game.config, game.data, game.averaged
    n_train = 0 if data is None else n_rows(data)
    best = Best.of(game, (False, -math.inf), {"round": -1}, -1)
    history: list[dict[str, Any]] = []
    memory: list[tuple[Pool, Tensor]] = []
    status, detail, steps = Status.FINISHED, "", config.generator_steps
    try:
        for r in range(config.rounds):
            pool = draw_pool(averaged, game.generator, data, config.pool, config.base_share)
            projection = project(game, pool)
            info: dict[str, Any] = {"round": r, **energy_steps(game, pool, projection)}
            refit(game, pool, projection)
            with torch.no_grad():
                terms = averaged.terms(pool.x)
            log_density = torch.stack([*terms.values()]).sum(0)
            require_finite(log_density, pool)
            memory = [*memory, (pool, log_density)][-config.memory if data is None else -1 :]
            rows, log_weights, info["beta"] = generator_target(memory, game, r)
            if r % config.diagnose_every == 0 or r == config.rounds - 1:
                with torch.no_grad():
                    score = None if held_out is None else averaged.log_density(held_out)
                info |= diagnose_round(averaged, pool, terms, score, config.nu, n_train)
                steps = info["generator_steps"] = _next_steps(steps, info, config)
                history.append(info)
                best = best.or_better(game, info, _healthy(info, config))
                report(info)
                if r - best.peak >= config.patience and _healthy(info, config):
                    status = Status.CONVERGED
                    break
            if r < config.rounds - 1:
                info["generator_loss"] = generator_steps(game, memory, rows, log_weights, steps, r)
        else:
            status = _verdict(best.info, config)
    except (FloatingPointError, torch.linalg.LinAlgError) as error:
        status, detail = Status.NON_FINITE, f"round {r}: {error}"
    except KeyboardInterrupt:
        status, detail = Status.INTERRUPTED, f"round {r}"
    finally:  # whatever happened, a callback's own error too
        best.restore(game)
    return Fit(
        game.model,
        game.generator,
        tuple(history),
        status,
        config,
        best.offset,
        n_train,
        best.info["round"],
        detail,
    )


def _healthy(info: dict[str, Any], config: FitConfig) -> bool:
    usable = info["pareto_k"] <= threshold(config.pool) and info["ess"] >= USABLE_ESS
    return usable and info["beta"] == 1


def _next_steps(steps: int, info: dict[str, Any], config: FitConfig) -> int:
    """J: doubled while the generator lags, halved while it does not."""
    if info["ess"] < config.ess_target or not _healthy(info, config):
        return min(max(2 * steps, 1), config.generator_steps_max)
    return steps // 2


def _verdict(info: dict[str, Any], config: FitConfig) -> Status:
    if info["beta"] < 1:
        return Status.TEMPERING
    return Status.FINISHED if _healthy(info, config) else Status.LAGGING


def _postfix(info: dict[str, Any]) -> dict[str, str]:
    """The numbers a person wants beside the progress bar."""
    shown = {"ESS/n": info["ess"], "k": info["pareto_k"], "log Z": info["log_partition"]}
    if not math.isnan(info["held_out"]):
        shown = {"held-out": info["held_out"], **shown}
    if not math.isnan(info["offset_gap"]):
        shown["b - log Z"] = info["offset_gap"]
    return {name: f"{value:.3f}" for name, value in shown.items()}


def _checked(
    model: EnergyModel,
    data: Mapping[str, Any] | None,
    held_out: Mapping[str, Any] | None,
    config: FitConfig,
) -> tuple[Data | None, Sites | None]:
    """Data as rows that the program takes."""
    if data is None:
        if held_out is not None:
            raise DataError(
                "held-out rows were given without data to fit.\n"
                "  Pass data too, or neither (a given density: only the generator learns)."
            )
        return None, None
    if not any(p.requires_grad for p in model.parameters()):
        raise ProgramError(
            "data were given, but the program has no parameters to train; expected at least one.\n"
            "  Most likely its networks are not attributes of a PyroModule or nn.Module. Register "
            "them, or fit without data (a given density: only the generator learns)."
        )
    rows = model.stored(data)
    n = n_rows(rows)
    if n < config.batch and model.layout is None:  # of trajectories there are always few
        raise DataError(
            f"the data have {n} rows; expected at least one batch of {config.batch}.\n"
            f"  Set FitConfig(batch={max(n // 2, 1)}) or give more rows."
        )
    return rows, None if held_out is None else representative(model.stored(held_out))
