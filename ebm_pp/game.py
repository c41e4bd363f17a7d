"""The two players of a round, and the steps they take.

The energy descends one of the objectives of losses.py on minibatches of the pool. The generator
is fitted to the energy's moving average, by maximum likelihood on the pool's weighted rows or on
draws of its own.
"""

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ebm_pp import losses
from ebm_pp.capture import NOT_CAPTURED, Captured, capture
from ebm_pp.checks import holding, put
from ebm_pp.config import PER_STEP, FitConfig
from ebm_pp.density import EnergyModel, Sites
from ebm_pp.errors import GeneratorError
from ebm_pp.generator import FlowGenerator, Generator
from ebm_pp.generator_checks import check_generator
from ebm_pp.given import Annealed, annealed, default_flow, step_losses
from ebm_pp.outskirts import Outskirts, outskirts_of
from ebm_pp.partition import bridge
from ebm_pp.players import Player, player_by_adam, with_decay
from ebm_pp.policy import PolicyGenerator
from ebm_pp.policy_steps import (
    OBJECTIVES,
    SCALAR,
    log_weights_of,
    policy_steps,
    resolve,
    soft_value_for,
)
from ebm_pp.pool import LOST, Pool, n_rows, pick
from ebm_pp.sampling import log_ratio, with_stand_ins
from ebm_pp.soft_value import Projection, SoftValue
from ebm_pp.stored import Data, representative

# Adam's second memory for costs of trajectories: their first gradients, at a policy that does not
# know the cost yet, are a hundred times the later ones and would slow these for 1,000 steps.
BETA2 = 0.98
# A prior of lambda/2 |W|^2 nats a datum on the matrices of energy and flow, lambda n =
# 1.64 (d - 1): one prior, whatever the rows; more dimensions leave more room to overfit. From
# 8,192 rows on it falls no further: a round's pool is no larger.
PRIOR, ROWS = 1.64, 8192
OFFSET_DAMPING = 0.3  # of a Newton step on one minibatch: averages over its neighbours


@dataclass(frozen=True)
class Game:
    """Everything that stays the same objects through a run."""

    model: EnergyModel
    mean: list[Tensor]  # the moving average of its parameters: evaluated, and what q is fitted to
    generator: Generator
    energy: Player | None  # None: the density is given
    proposal: Player | None  # None: the generator is fixed noise
    offset: Tensor
    data: Data | None
    config: FitConfig
    soft_value: SoftValue | None = None  # of trajectories: refitted to every pool
    captured: Captured = NOT_CAPTURED  # log p~ of as many rows as an energy step has
    outer: Outskirts | None = None  # with data, where neither q nor the base measure draws
    interrupted: bool = False  # in the warm start, by the user

    @property
    def conditional(self) -> bool:
        """Whether the density that is evaluated has the soft value in it."""
        return self.soft_value is not None and self.config.objective not in SCALAR

    @contextmanager
    def averaged(self) -> Iterator[EnergyModel]:
        """The model at the averaged parameters, its soft value in the density."""
        with holding([*self.model.parameters()], self.mean):
            self.model.soft_value = self.soft_value if self.conditional else None
            try:
                yield self.model
            finally:
                self.model.soft_value = None


def energy_steps(game: Game, pool: Pool, projection: Projection | None) -> dict[str, float]:
    """K steps of the energy on minibatches of the pool; the offset follows by Newton's method."""
    if game.energy is None:
        return {"loss": math.nan, "accuracy": math.nan}
    config, offset, n = game.config, game.offset, len(pool.log_q)
    objective = getattr(losses, OBJECTIVES.get(config.objective, config.objective))
    log_weights_at = log_weights_of(game, pool, projection)
    n_batch = min(config.batch, pool.n_data)
    mean = game.mean
    present = [p.detach() for p in game.model.parameters()]
    memory = max(config.average * config.rounds * config.energy_steps, 1.0)  # steps
    total = correct = 0.0
    for _ in range(config.energy_steps):
        i = torch.arange(n_batch)  # all rows, or some
        if n_batch < pool.n_data:
            i = torch.randint(pool.n_data, (n_batch,))
        j = torch.randint(pool.n_data, n, (_n_draws(n_batch, config),))
        at = torch.cat([i, j])
        try:
            data, draws = map(torch.flatten, log_weights_at(at).tensor_split([n_batch]))
            total += game.energy.step(objective(data, draws, offset, config.nu))
        except FloatingPointError:
            fewer = without_undefined(game.model, pool)
            if fewer is None:
                raise
            pool = fewer
            log_weights_at = log_weights_of(game, pool, projection)
            continue
        with torch.no_grad():
            logit_data = losses.discriminator_logit(data, offset, config.nu)
            logit_draws = losses.discriminator_logit(draws, offset, config.nu)
            correct += (
                (logit_data > 0).double().mean() + (logit_draws < 0).double().mean()
            ).item()
            if config.offset == "newton":
                offset -= _newton_step(logit_data, logit_draws, config)
            torch._foreach_lerp_(mean, present, 1 / memory)
    steps = config.energy_steps
    return {"loss": total / steps, "accuracy": correct / (2 * steps)}


def _n_draws(n_batch: int, config: FitConfig) -> int:
    """Draws beside a batch; the loss weighs their mean by nu, however many they are."""
    return max(round(config.nu * n_batch), 1)


def _newton_step(logit_data: Tensor, logit_draws: Tensor, config: FitConfig) -> Tensor:
    """A damped step of b towards the minimum of the objective over b, on one minibatch."""
    if config.objective == "normalised":  # argmin b = log E_q[w]
        log_mean = logit_draws.logsumexp(0) + math.log(config.nu / len(logit_draws))
        return -(OFFSET_DAMPING * log_mean).clamp(-2, 2)
    d_data, d_draws = torch.sigmoid(logit_data), torch.sigmoid(logit_draws)
    slope = (1 - d_data).mean() - config.nu * d_draws.mean()
    curvature = (d_data * (1 - d_data)).mean() + config.nu * (d_draws * (1 - d_draws)).mean()
    return (OFFSET_DAMPING * slope / curvature).nan_to_num(0.0).clamp(-2, 2)


@torch.no_grad()
def without_undefined(model: EnergyModel, pool: Pool) -> Pool | None:
    """The pool without draws whose log p~ is not finite, which spoil gradients; None if none is.

    A draw without mass counts in no loss: its D is 0.
    """
    if model.layout is not None:
        return None
    undefined = ~(model.log_density(pool.x).isfinite() | pool.rejected)
    both = pool.rejected | undefined
    if not undefined.any() or undefined[: pool.n_data].any() or both.double().mean() > LOST:
        return None
    return pool._replace(x=with_stand_ins(pool.x, both), rejected=both)


def generator_target(memory: list[tuple[Pool, Tensor]], game: Game, round_: int) -> Annealed:
    """The rows and log weights that stand for p_theta where the generator is fitted to it.

    With data: the pool under [F16]'s mixture of data and draws. With a given density: draws with
    weights w^beta, beta the largest power in [0, 1] that leaves the newest pool an ESS fraction of
    `temper_ess`; at beta = 1 past pools serve too.

    Returns:
        Rows, weights, beta. No rows, in the first half of a run, while the energy is a worse model
        of the data than q, which would only forget what its warm start has learned.
    """
    pool, log_density = memory[-1]
    config, log_weights = game.config, log_ratio(log_density, pool.log_q)
    if pool.n_data:
        at_data, at_draws = log_weights.tensor_split([pool.n_data])
        b = bridge(at_data, at_draws, config.nu)
        if config.offset == "newton" and config.objective not in PER_STEP:
            game.offset.fill_(b)
        log_z = at_draws.logsumexp(0) - math.log(len(at_draws))
        early = round_ < config.rounds / 2 and config.generator_loss == "weighted_forward_kl"
        if early and at_data.mean() < log_z:
            return Annealed(pick(pool.x, slice(0)), at_data[:0], at_data[:0], 1.0)
        weights = losses.mixture_log_weights(log_density, pool.log_q, b, pool.n_data)
        return Annealed(pool.x, weights, pool.log_q, 1.0)
    if config.generator_loss != "weighted_forward_kl":
        return Annealed(pool.x, log_weights, pool.log_q, 1.0)
    return annealed(memory, config.temper_ess)


def generator_steps(game: Game, newest: Pool, target: Annealed, steps: int, round_: int) -> float:
    """J steps of the generator, on the rows that `generator_target` chose; the mean loss.

    The model is at its averaged parameters meanwhile.
    """
    if game.proposal is None or not steps:
        return math.nan
    with game.averaged():
        return _generator_steps(game, game.proposal, newest, target, steps, round_)


def _generator_steps(
    game: Game, proposal: Player, newest: Pool, target: Annealed, steps: int, round_: int
) -> float:
    if game.config.generator_loss == "score_function" and game.soft_value is not None:
        return policy_steps(game, newest, steps)
    config, n_batch = game.config, game.config.batch
    at = torch.zeros(steps * n_batch, dtype=torch.long)
    if config.generator_loss == "weighted_forward_kl":
        if not len(target.log_weights):
            return math.nan
        if game.data is None:
            every = step_losses(game.generator, target, [n_batch] * steps)
            return sum(map(proposal.step, every)) / steps
        at = torch.multinomial(torch.softmax(target.log_weights, 0), len(at), replacement=True)
    total = 0.0
    for step in range(steps):
        batch = pick(target.rows, at[step * n_batch : (step + 1) * n_batch])
        share_left = 1 - round_ / config.rounds
        total += proposal.step(_generator_loss(game, batch, share_left))
    return total / steps


def _generator_loss(game: Game, batch: Sites, share_left: float) -> Tensor:
    """The loss of one generator step; `batch` stands for draws of p_theta."""
    config, generator, density = game.config, game.generator, game.model.log_density
    if config.generator_loss == "weighted_forward_kl":
        log_q = generator.log_prob(batch)
        return losses.weighted_forward_kl(log_q, torch.zeros_like(log_q))
    if config.generator_loss == "score_function":
        with torch.no_grad():
            x, log_q = generator.rsample_and_log_prob(config.batch)
            log_weights = density(x) - log_q
        kept = log_weights.isfinite()
        return losses.score_function(generator.log_prob(pick(x, kept)), log_weights[kept])
    if isinstance(generator, PolicyGenerator):
        states, actions, step_log_q = generator.simulate(config.batch, landing=True)
        x, log_q = generator.layout.unpack(states, actions), step_log_q.sum(1)
    else:
        x, log_q = generator.rsample_and_log_prob(config.batch)
    log_weights = density(x) - log_q
    kept = log_weights.isfinite()
    if not kept.all():  # what has no density has no gradient either
        log_weights = density(pick(x, kept)) - log_q[kept]
    if config.generator_loss == "reverse_kl" and not (config.likelihood_weight and game.data):
        return losses.reverse_kl(log_weights)
    assert game.data is not None, "start() refuses jensen without data"
    data = pick(game.data, torch.randint(n_rows(game.data), (config.batch,)))
    log_q_data = generator.log_prob(data)
    if config.generator_loss == "reverse_kl":
        weight = config.likelihood_weight * share_left
        return losses.reverse_kl(log_weights) - weight * log_q_data.mean()
    return losses.jensen(density(data) - log_q_data, log_weights, game.offset.detach(), 1.0)


def start(
    model: EnergyModel,
    data: Data | None,
    held_out: Sites | None,
    generator: Generator | None,
    config: FitConfig,
) -> Game:
    """The players, the generator warm-started on the data by maximum likelihood."""
    generator = _default_generator(model, data, config) if generator is None else generator
    config = resolve(config, model, generator)
    check_generator(model, generator, config, data is not None)
    offset = torch.zeros((), dtype=model.dtype, device=model.device)
    energy, decay = None, config.energy_decay or 0.0
    if data is not None:
        if config.energy_decay is None:
            decay = PRIOR * (model.dim - 1) / min(n_rows(data), ROWS)
        groups = with_decay(model, decay)
        if config.offset == "gradient":
            offset.requires_grad_(True)
            groups.append({"params": [offset], "lr": config.offset_lr})
        steps = config.rounds * config.energy_steps
        beta2 = 0.999 if model.layout is None else BETA2
        energy = player_by_adam("energy", groups, config.energy_lr, steps, config.clip, beta2)
    proposal, trained = None, []
    if isinstance(generator, nn.Module):
        trained = [p for p in generator.parameters() if p.requires_grad]
    if trained:
        steps = config.rounds * config.generator_steps_max
        groups = [{"params": trained}]
        if data is not None and isinstance(generator, FlowGenerator):
            groups = with_decay(generator, decay)
        proposal = player_by_adam("generator", groups, config.generator_lr, steps, config.clip)
    model.soft_value = None
    captured = NOT_CAPTURED
    if data is not None:
        n_batch = min(config.batch, config.pool, n_rows(data))
        batch = torch.arange(n_batch + _n_draws(n_batch, config)) % n_rows(data)
        captured = capture(model, pick(data, batch))
    mean = [p.detach().clone() for p in model.parameters()]
    soft_value = soft_value_for(model, generator, config)
    outer = _outskirts(model, data, config)
    # Last, so that an interrupt in it leaves a whole game.
    whole = (
        not trained
        or data is None
        or _warm_start(generator, trained, data, held_out, config, decay)
    )
    return Game(
        model, mean, generator, energy, proposal, offset, data, config, soft_value, captured,
        outer, not whole,
    )  # fmt: skip


@torch.no_grad()
def _outskirts(model: EnergyModel, data: Data | None, config: FitConfig) -> Outskirts | None:
    """Where neither q nor the base measure draws; of a learned energy with a defensive mixture."""
    if data is None or model.layout is not None or not config.base_share:
        return None
    return outskirts_of(model, representative(data))


def _default_generator(model: EnergyModel, data: Data | None, config: FitConfig) -> Generator:
    if model.layout is not None:
        return PolicyGenerator(model, None if data is None else pick(data, slice(None)))
    if data is not None:
        return FlowGenerator(model, data)
    return default_flow(model, config.pool)


def _warm_start(
    generator: Any,  # noqa: ANN401 - a Generator that is an nn.Module
    trained: list[nn.Parameter],
    data: Data,
    held_out: Sites | None,
    config: FitConfig,
    decay: float,
) -> bool:
    """Maximum likelihood on the data, keeping the best of ten looks at the held-out rows.

    Without held-out rows a flow puts every tenth of many rows aside: one that has overfitted is
    denser at the training rows than anywhere else, which the energy would then unlearn.

    Returns:
        Whether all steps were taken: false if the user interrupted them.
    """
    steps, n = config.warm_start_steps, n_rows(data)
    aside = held_out is None and isinstance(generator, FlowGenerator) and n >= 1000
    if aside:
        held_out = pick(data, torch.arange(0, n, 10 * math.ceil(n / 10_000)))
    groups = [{"params": trained}]
    if isinstance(generator, FlowGenerator):
        groups = with_decay(generator, decay)
    warming = player_by_adam("warm start", groups, config.warm_start_lr, steps, config.clip)
    best, best_state, whole = -math.inf, None, True
    last = [p.detach().clone() for p in trained]  # of the last whole step
    try:
        for step in range(steps):
            at = torch.randint(n, (config.batch,))
            if aside:
                at = torch.where(at % 10 == 0, (at + 1) % n, at)
            log_q = generator.log_prob(pick(data, at))
            warming.step(losses.weighted_forward_kl(log_q, torch.zeros_like(log_q)))
            put(last, trained)
            if held_out is not None and (step + 1) % max(steps // 10, 1) == 0:
                with torch.no_grad():
                    score = generator.log_prob(held_out).mean().item()
                if score > best:
                    best, best_state = score, copy.deepcopy(generator.state_dict())
    except FloatingPointError as error:
        raise GeneratorError(
            f"{type(generator).__name__} can't score the data: {error}.\n  Most likely it has no "
            "density at some rows; make it from the data's location and scale."
        ) from error
    except KeyboardInterrupt:
        put(trained, last)
        whole = False
    if best_state is not None:
        generator.load_state_dict(best_state)
    return whole
