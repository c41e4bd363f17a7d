"""What trajectories add to a round: the soft value, log Z(s_0), and the policy's score steps.

Per-step and whole-trajectory log weights, l_t and their sum, are those of soft_value.py. They
serve the discriminator (objectives `trajectory`, `step`, `causal`), the diagnosis of the round,
and, as soft advantages, the policy.
"""

import dataclasses
import math
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from ebm_pp import losses
from ebm_pp.config import OF_TRAJECTORIES, PER_STEP, FitConfig
from ebm_pp.density import EnergyModel
from ebm_pp.errors import GeneratorError
from ebm_pp.generator import Generator
from ebm_pp.policy import PolicyGenerator
from ebm_pp.pool import Pool, pick
from ebm_pp.soft_value import Projection, SoftValue, affordable

if TYPE_CHECKING:
    from ebm_pp.game import Game

# Objectives of trajectories differ in their log weights; these are the losses on them.
OBJECTIVES = {"trajectory": "discriminator", "step": "discriminator", "causal": "discriminator"}
SCALAR = ("discriminator", "normalised")  # one b for all start states: [F16] to the letter
# How far a soft advantage looks ahead (Schulman et al. 2016, arXiv:1506.02438): 0.95, and for
# longer horizons, where h is rougher, 1 - 1.5 / T.
LAMBDA = 0.95
STEPS = 4096  # steps of trajectories in one score-function update

BIASED = {
    "trajectory": "weighs trajectories by the joint density, as if the expert chose its luck: no "
    "policy reaches it, and costs come out biased",
    "step": "takes the drawn next state for its expectation, as AIRL does: costs come out biased "
    "by the noise of the dynamics",
    "discriminator": "has the joint density and one log Z for all start states: both bias costs",
    "normalised": "has the joint density and one log Z for all start states: both bias costs",
    "importance": "weighs trajectories by the joint density, as if the expert chose its luck",
}


def resolve(config: FitConfig, model: EnergyModel, generator: Generator) -> FitConfig:
    """The objective and generator loss that "auto" stands for.

    Raises:
        GeneratorError: an objective of trajectories without trajectories or without a policy.
    """
    layout = model.layout
    policy = isinstance(generator, PolicyGenerator)
    objective, loss = config.objective, config.generator_loss
    if layout is None or not policy:
        if objective in OF_TRAJECTORIES:
            raise GeneratorError(
                f"objective={objective!r} is of trajectories and policies, but the generator is a "
                f"{type(generator).__name__}; expected a PolicyGenerator.\n  Use "
                "objective='discriminator', or declare a trajectory."
            )
        objective = "discriminator" if objective == "auto" else objective
        loss = "weighted_forward_kl" if loss == "auto" else loss
        return dataclasses.replace(config, objective=objective, generator_loss=loss)
    if objective == "auto":
        objective = "trajectory" if layout.dynamics.deterministic else "causal"
    elif not layout.dynamics.deterministic and objective in BIASED:
        warnings.warn(
            f"objective={objective!r} with stochastic dynamics {BIASED[objective]}. "
            "'causal' has no such bias.",
            UserWarning,
            stacklevel=4,
        )
    if loss == "auto":
        loss = "reverse_kl" if generator.has_rsample else "score_function"
    return dataclasses.replace(config, objective=objective, generator_loss=loss)


def soft_value_for(
    model: EnergyModel, generator: Generator, config: FitConfig
) -> SoftValue | None:
    """The soft value of a game over trajectories; None of other games."""
    if model.layout is None or not isinstance(generator, PolicyGenerator):
        return None
    causal = config.objective in ("causal", "likelihood")
    ridges = affordable(model.layout, config.pool)
    soft_value = SoftValue(model.layout, causal=causal, ridges=ridges)
    return soft_value.to(model.device, model.dtype)


@torch.no_grad()
def project(game: "Game", pool: Pool) -> Projection | None:
    """The soft value's regression on a pool; None without trajectories."""
    if game.soft_value is None or game.model.layout is None:
        return None
    return game.soft_value.project(game.model.layout.pack(pool.x), pool.draws)


@torch.no_grad()
def refit(game: "Game", pool: Pool, projection: Projection | None) -> None:
    """Fits h to the evaluated cost and the present policy."""
    if game.soft_value is not None and projection is not None:
        with game.averaged() as averaged:
            game.soft_value.keep_(projection, _rewards(averaged, pool, projection))


def _rewards(model: EnergyModel, pool: Pool, projection: Projection) -> Float[Tensor, "n stages"]:
    """r_t = -c - log pi of the draws that the regression takes, and minus the terminal cost."""
    assert pool.step_log_q is not None, "draw_pool sets it for policies"
    rows = slice(pool.draws.start, pool.draws.start + projection.n)
    step_log_q = torch.nn.functional.pad(pool.step_log_q[rows], [0, 1])
    rewards = model.stage_log_density(pick(pool.x, rows)) - step_log_q
    if not rewards.isfinite().all():
        raise FloatingPointError("the cost of a step is not finite at a draw of the policy")
    return rewards


def log_weights_of(
    game: "Game", pool: Pool, projection: Projection | None
) -> Callable[[Tensor], Tensor]:
    """From rows of the pool to their log weights under the energy that is being trained.

    `(m,)` for whole draws; `(m, T)` the l_t for objectives of single steps.
    """
    model, objective = game.model, game.config.objective
    if projection is None or objective in SCALAR or pool.step_log_q is None:
        density = game.captured.density or model.log_density

        def whole(at: Tensor) -> Tensor:
            log_weights = density(pick(pool.x, at)) - pool.log_q[at]
            return torch.where(pool.rejected[at], -math.inf, log_weights)

        return whole
    step_log_q = pool.step_log_q

    def conditional(at: Tensor) -> Tensor:
        soft = projection.steps(_rewards(model, pool, projection), at)
        steps = model.step_log_density(pick(pool.x, at)) + soft - step_log_q[at]
        return steps if objective in PER_STEP else steps.sum(1)

    return conditional


def soft_advantages(
    step_log_weights: Float[Tensor, "n T"], decay: float = LAMBDA
) -> Float[Tensor, "n T"]:
    """A_t = sum_k decay^k l_{t+k}: 0 for every trajectory of a soft-optimal policy."""
    found = torch.zeros_like(step_log_weights)
    ahead = torch.zeros_like(step_log_weights[:, 0])
    for t in reversed(range(step_log_weights.shape[1])):
        ahead = step_log_weights[:, t] + decay * ahead
        found[:, t] = ahead
    return found


def policy_steps(game: "Game", pool: Pool, steps: int) -> float:
    """J clipped score-function updates on single steps of the pool's draws; the mean loss."""
    generator, soft = game.generator, game.soft_value
    assert isinstance(generator, PolicyGenerator)
    assert soft is not None
    assert pool.step_log_q is not None
    assert game.proposal is not None
    x, layout = pick(pool.x, pool.draws), generator.layout
    tau, drawn = layout.pack(x), pool.step_log_q[pool.draws]
    with torch.no_grad():
        weights = game.model.step_log_density(x) + soft(tau) - drawn
    n, horizon = drawn.shape
    advantages = soft_advantages(weights, max(LAMBDA, 1 - 1.5 / horizon))
    total = 0.0
    for _ in range(steps):
        i, t = torch.randint(n, (STEPS,)), torch.randint(horizon, (STEPS,))
        states = tau.states[i, t]
        log_pi = generator.policy(states, t.to(states.device)).log_prob(tau.actions[i, t])
        if layout.dynamics.absorbing:
            log_pi = torch.where(states[..., -1] > 0, log_pi, 0.0)
        total += game.proposal.step(losses.clipped_score(log_pi, drawn[i, t], advantages[i, t]))
    return total / steps
