"""Fitting: one loop of rounds for every program, objective and generator.

A round draws a pool (pool.py), takes K energy steps on the discriminator's loss, diagnoses itself
with ArviZ, and takes J generator steps (game.py). The diagnosis sets J and ends the run.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from ebm_pp.best import Best, changed_by
from ebm_pp.capture import still_right
from ebm_pp.config import FitConfig
from ebm_pp.density import EnergyModel, Sites
from ebm_pp.diagnostics import REJECTED, diagnose
from ebm_pp.errors import ConfigError, DataError, GeneratorError, ProgramError
from ebm_pp.evidence import USABLE_ESS, require_density
from ebm_pp.findings import blamed, look_at, warn
from ebm_pp.findings_verdict import HEADS
from ebm_pp.fitted import Fit, Status, in_short
from ebm_pp.game import Game, energy_steps, generator_steps, generator_target, start
from ebm_pp.generator import Generator
from ebm_pp.leak import with_lumps_found
from ebm_pp.partition import log_partition_from_weights
from ebm_pp.policy_steps import project, refit
from ebm_pp.pool import Pool, diagnose_round, draw_pool, n_rows, scored
from ebm_pp.sampling import log_ratio
from ebm_pp.stored import Data, at_most, representative
from ebm_pp.surroundings import as_called, trainable

DRAWS = 4000  # that judge the returned round
SEED = 1  # of the draws that judge the returned round; no other draws of the run share it
# Problems of `diagnose` that are the energy's or the rows', not the generator's.
ENERGY = (
    "leaked_mass", "wrong_factor", "other_start", "underfit_energy", "offset_gap", *HEADS
)  # fmt: skip


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
        data: rows of every site, `(n, *site_shape)`, of any container. They stay where they
            are: of a memory-mapped file (`np.load(path, mmap_mode="r")`) only the rows in use are
            in memory. None: the density is given and only the generator learns.
        generator: any object with the three names of `Generator`; by default a `FlowGenerator`
            standardised by the data (else by the base measure). Trained in place if it is an
            `nn.Module`, left as it is otherwise.
        config: see `FitConfig`.
        held_out: rows that are never trained on (at most 100,000 are used): the round with their
            best log-likelihood is returned, and training ends when it no longer rises.
        callback: called as `callback(round, info)` after every diagnosis. What it changes in the
            program, attributes, buffers, parameters, is trained, evaluated and returned; rounds
            before the change are then no longer candidates for the best. It must not wait for
            another thread that calls this library: one thread at a time does.

    Returns:
        The fit with the best parameters so far. A run that failed says so in `status`. What is
        wrong with the rows is in `findings`; a `UserWarning` names what makes a fit meaningless.

    Raises:
        ConfigError: `config` is no FitConfig, or `callback` no function.
        ProgramError: data are given but the program has no parameters to train.
        DataError: data or held-out rows do not fit the program, or have no density; fewer rows
            than a batch; or no generator can follow a column.
        GeneratorError: the generator's draws and `log_prob` disagree, or its loss can't be used.
    """
    if not isinstance(model, EnergyModel):
        raise ProgramError(
            f"fit was given a {type(model).__name__}; expected an EnergyModel.\n"
            "  Wrap the program: fit(EnergyModel(program), data)."
        )
    if isinstance(generator, FitConfig):
        raise ConfigError(
            "fit was given a FitConfig as the generator, its third argument.\n"
            "  Name it: fit(model, data, config=...)."
        )
    if config is not None and not isinstance(config, FitConfig):
        raise ConfigError(
            f"fit was given the config {config!r}; expected a FitConfig.\n"
            "  Make one of settings: FitConfig(rounds=30)."
        )
    if callback is not None and not callable(callback):
        raise ConfigError(
            f"fit was given the callback {callback!r}; expected a function (round, info).\n"
            "  Pass the function itself, not what it returns."
        )
    if config is None:
        config = FitConfig() if data is not None else FitConfig.given()
        if model.layout is not None:
            config = FitConfig.trajectories(
                model.layout.horizon, opaque=model.layout.dynamics.opaque
            )
    modes = torch.is_grad_enabled(), torch.get_default_dtype()

    def told(round_: int, info: dict[str, Any]) -> None:
        with as_called(*modes):
            if callback is not None:
                callback(round_, info)

    with trainable(model.dtype):
        return _fit(model, data, generator, config, held_out, told)


def _fit(
    model: EnergyModel,
    data: Mapping[str, Any] | None,
    generator: Generator | None,
    config: FitConfig,
    held_out: Mapping[str, Any] | None,
    callback: Callable[[int, dict[str, Any]], None],
) -> Fit:
    rows, some_held_out = _checked(model, data, held_out, config)
    findings = () if rows is None else look_at(model, rows)
    bar = tqdm(total=config.rounds, desc="fit", unit="round", disable=not config.progress)
    with torch.random.fork_rng(), _without_denormals(), bar:
        torch.manual_seed(config.seed)
        with blamed(findings):
            game = start(model, rows, some_held_out, generator, config)

        def report(info: dict[str, Any]) -> None:
            bar.update(info["round"] + 1 - bar.n)
            bar.set_postfix(in_short(info))
            callback(info["round"], info)

        warn(findings)
        result = replace(_rounds(game, some_held_out, report), findings=findings)
        if result.status in (Status.NON_FINITE, Status.INTERRUPTED):
            return result
        try:
            return _judged(result, [some for some in (rows, some_held_out) if some is not None])
        except KeyboardInterrupt:
            return replace(result, status=Status.INTERRUPTED, detail="in the last diagnosis")


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
    config, data = game.config, game.data
    n_train = 0 if data is None else n_rows(data)
    r = -1
    best = Best.of(game, (False, -math.inf), {"round": -1}, -1)
    history: list[dict[str, Any]] = []
    memory: list[tuple[Pool, Tensor]] = []
    status, detail, steps, due = Status.FINISHED, "", config.generator_steps, True
    try:
        if game.interrupted:
            raise KeyboardInterrupt
        for r in range(config.rounds):
            diagnosed = r % config.diagnose_every == 0 or r == config.rounds - 1
            if diagnosed or due:
                game = replace(game, captured=still_right(game.model, game.captured))
            due = diagnosed
            # At the parameters in training: a policy that is solved from the model answers these.
            # Answering their average, which lags, it would drive them past their optimum.
            pool = draw_pool(
                game.model, game.generator, data, config.pool, config.base_share, game.outer
            )
            projection = project(game, pool)
            info: dict[str, Any] = {"round": r, **energy_steps(game, pool, projection)}
            refit(game, pool, projection)
            with game.averaged() as averaged:
                pool, terms, log_density = scored(averaged, pool)
                score = None
                if diagnosed and held_out is not None:
                    with torch.no_grad():
                        score = averaged.log_density(held_out)
            memory = [*memory, (pool, log_density)][-config.memory if data is None else -1 :]
            target = generator_target(memory, game, r)
            info["beta"] = target.beta
            if diagnosed:
                info["captured"] = game.captured.why
                info |= diagnose_round(
                    game.model, pool, terms, log_density, score, config.nu, n_train
                )
                steps = info["generator_steps"] = _next_steps(steps, info, config)
                history.append(info)
                best = best.or_better(game, info, _healthy(info))
                game = _looked_around(game, pool, log_density)
                if changed_by(report, game, info, pool.x, terms):
                    # No earlier round has a density that can be compared with the present one.
                    memory, best = [], Best.of(game, (False, -math.inf), info, r)
                if r - best.peak >= config.patience and _healthy(info):
                    status = Status.CONVERGED
                    break
            if r < config.rounds - 1:
                info["generator_loss"] = generator_steps(game, pool, target, steps, r)
    except (FloatingPointError, torch.linalg.LinAlgError, ProgramError) as error:
        told = isinstance(error, ProgramError)
        if told and not isinstance(error.__cause__, FloatingPointError | torch.linalg.LinAlgError):
            raise
        status, detail = Status.NON_FINITE, f"round {r}: {error}"
    except KeyboardInterrupt:
        status, detail = Status.INTERRUPTED, f"round {r}" if r >= 0 else "in the warm start"
    finally:  # whatever happened, a callback's own error too
        try:
            best.restore(game)
        except KeyboardInterrupt:
            best.restore(game)  # whole
            status, detail = Status.INTERRUPTED, f"round {r}"
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
        game.outer,
    )


def _looked_around(game: Game, pool: Pool, log_density: Tensor) -> Game:
    """The game with the lumps that its energy has where nothing draws."""
    if game.outer is None:
        return game
    log_weights = log_ratio(log_density[pool.draws], pool.log_q_generator)
    log_z = log_partition_from_weights(log_weights).value
    with game.averaged() as model:
        outer = with_lumps_found(model, game.generator, game.outer, log_weights, log_z)
    return replace(game, outer=outer)


def _judged(result: Fit, given: Sequence[Data]) -> Fit:
    """The fit with the status that its returned parameters deserve, and what is wrong with them.

    By `diagnose` on the rows of a pool, those of the training first and then those held out, and
    on fresh draws, which did not choose the round. Of trajectories, whose draws may cost a
    simulator, by the round's own; where these look ill it can be the horizon's doing, and of
    known dynamics `diagnose` is asked, on as many draws as a pool's.
    """
    if not result.returned:
        told = "No round's held-out log-likelihood or log Z was a number."
        return replace(result, status=Status.LAGGING, detail=told)
    (info,) = result.returned
    many = f"{info['rejected']:.2%} of the draws had no density: rejected, weight zero."
    words = [many] if info["rejected"] > REJECTED else []
    layout = result.model.layout
    if layout is not None and (_healthy(info) or layout.dynamics.opaque):
        status = result.status if _healthy(info) else Status.LAGGING
        return replace(result, status=status, detail=" ".join(words))
    n = DRAWS if layout is None else result.config.pool
    some: list[Sites | None] = [at_most(rows, result.config.pool) for rows in given]
    try:
        reports = [diagnose(result, rows, n, seed=SEED) for rows in some or [None]]
    except (ProgramError, GeneratorError, DataError) as error:
        return replace(result, status=Status.LAGGING, detail=f"{error}")
    if len(reports) > 1:  # with rows held out
        # Training stops before it has the moments of its own rows, and those held out may hang
        # together, hours of a day, which nobody has said: only both can tell.
        gaps = [report for report in reports if report.problems[:1] == ("wrong_factor",)]
        if len(gaps) < 2 or gaps[0].where != gaps[1].where:
            reports = [report for report in reports if report not in gaps]
    report = next((report for report in reports if not report.ok), None)
    if report is None:
        return replace(result, detail=" ".join(words))
    generator = report.problems[0] not in ENERGY
    status = Status.LAGGING if generator else Status.UNCONVERGED
    if generator and info["beta"] < 1:
        status = Status.TEMPERING
    return replace(result, status=status, detail=" ".join([*words, report.verdict]))


def _healthy(info: dict[str, Any]) -> bool:
    return not info["heavy_tail"] and info["ess"] >= USABLE_ESS and info["beta"] == 1


def _next_steps(steps: int, info: dict[str, Any], config: FitConfig) -> int:
    """J: doubled while the generator lags, halved while it does not."""
    if info["ess"] < config.ess_target or not _healthy(info):
        return min(max(2 * steps, 1), config.generator_steps_max)
    return steps // 2


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
    with torch.no_grad():
        if model.layout is None:
            require_density(model, representative(rows))
    return rows, None if held_out is None else representative(model.stored(held_out))
