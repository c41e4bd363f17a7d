"""Policies trained by stable-baselines3 (the extra `ebm-pp[sb3]`), for large environments.

The environment pays minus the program's cost. A soft-optimal policy maximises
E_q[sum_t -c - log pi]: SAC with its entropy coefficient fixed at 1 solves just this, up to its
discount. PPO does not: its entropy is a bonus on the states visited, not part of the return, so
its policies come out too certain; it is here for actions that SAC can't take.

What comes back is a `PolicyGenerator` with the exact log density of the trained policy: draws,
weights and diagnosis are those of any other. Training the cost on it is `fit` with
`FitConfig(generator_steps=0, generator_steps_max=0, warm_start_steps=0)`.

Source: Haarnoja et al. 2018, arXiv:1812.05905 (SAC); Raffin et al. 2021, JMLR 22(268).
"""

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike
from pyro.distributions import Categorical, Independent, Normal
from torch import Tensor, nn
from torch.distributions import Distribution

from ebm_pp.density import EnergyModel
from ebm_pp.dynamics import Space
from ebm_pp.errors import GeneratorError
from ebm_pp.policy import CensoredNormal, PolicyGenerator, SquashedNormal
from ebm_pp.trajectory import Layout


class StableBaselinesPolicy(nn.Module):
    """A trained policy of stable-baselines3 as pi(a | s), for `PolicyGenerator(policy=...)`.

    Args:
        policy: `algorithm.policy` of SAC or PPO.
        actions: the program's; SAC needs a box, PPO a box with `edges`, vectors or integers.
    """

    def __init__(self, policy: Any, actions: Space) -> None:  # noqa: ANN401 - optional package
        super().__init__()
        self.policy, self.actions = policy, actions
        self.squashed = hasattr(policy, "actor")
        unbounded = actions.low is None or actions.edges
        if unbounded == self.squashed:
            kind = "SAC draws inside a box" if self.squashed else "PPO clips to the box's ends"
            raise GeneratorError(
                f"{kind}, but the actions are {actions}; expected "
                f"{'Space.box(low, high)' if self.squashed else 'edges=True, or no box'}."
            )

    def forward(self, states: Tensor, time: Tensor) -> Distribution:
        """The law of the action in states `(*batch, state)`; the time is not looked at."""
        flat = states.reshape(-1, states.shape[-1]).float()
        shape = states.shape[:-1]
        if self.squashed:
            mean, log_sd, _ = self.policy.actor.get_action_dist_params(flat)
            mean, sd = (part.reshape(*shape, -1) for part in (mean, log_sd.exp()))
            # tanh(u) = 2 sigmoid(2 u) - 1
            return SquashedNormal(2 * mean, 2 * sd, self.actions)
        law = self.policy.get_distribution(flat).distribution
        if self.actions.n:
            return Categorical(logits=law.logits.reshape(*shape, -1))
        mean, sd = (part.reshape(*shape, -1) for part in (law.mean, law.stddev))
        if self.actions.edges:
            return CensoredNormal(mean, sd, self.actions)
        return Independent(Normal(mean, sd), 1)


def train_policy(
    model: EnergyModel,
    make_env: Callable[[], Any],
    steps: int,
    *,
    algorithm: Literal["SAC", "PPO"] = "SAC",
    seed: int = 0,
    **settings: Any,  # noqa: ANN401 - the algorithm's own
) -> PolicyGenerator:
    """Trains a policy on the program's present cost.

    Args:
        model: a program with packed trajectory sites whose states are the environment's
            observations.
        make_env: makes one gymnasium environment; its own payments are ignored.
        steps: of the environment.
        algorithm: see the module.
        seed: of training.
        **settings: of the algorithm, for instance `gamma`. SAC's entropy coefficient is 1 unless
            given.

    Returns:
        The trained policy in the model's world.

    Raises:
        ImportError: stable-baselines3 is not installed.
        GeneratorError: no trajectory, or actions that the algorithm's policy does not draw.
    """
    import stable_baselines3

    if model.layout is None:
        raise GeneratorError(
            f"train_policy: the sites {list(model.sites)} make no trajectory; expected states and "
            "actions.\n  Declare them with trajectory(dynamics, T)."
        )
    defaults: dict[str, Any] = {"ent_coef": 1.0} if algorithm == "SAC" else {}
    learner = getattr(stable_baselines3, algorithm)(
        "MlpPolicy", _paid(model, model.layout, make_env()), seed=seed, **(defaults | settings)
    )
    policy = StableBaselinesPolicy(learner.policy, model.layout.dynamics.actions)
    learner.learn(steps)
    return PolicyGenerator(model, policy=policy.eval())


def _paid(model: EnergyModel, layout: Layout, env: Any) -> Any:  # noqa: ANN401
    """The environment, truncated at the horizon, paying minus the program's cost."""
    import gymnasium

    class Paid(gymnasium.Wrapper):
        def reset(self, **options: Any) -> Any:  # noqa: ANN401
            self.t = 0
            self.state, info = self.env.reset(**options)
            return self.state, info

        def step(self, action: Any) -> Any:  # noqa: ANN401
            state, _, terminated, truncated, info = self.env.step(action)
            reward = step_log_density(model, layout, self.state, action, state, self.t)
            self.t += 1
            self.state = state
            return state, reward, terminated, truncated or self.t == layout.horizon, info

    return Paid(env)


@torch.no_grad()
def step_log_density(
    model: EnergyModel,
    layout: Layout,
    state: ArrayLike,
    action: ArrayLike,
    after: ArrayLike,
    t: int,
) -> float:
    """Minus the cost of one step at time t, at the last with the terminal cost; nats.

    Read off a trajectory that stays in this state throughout, whose other steps are not looked at.
    """
    before, last = (torch.as_tensor(np.asarray(s), dtype=model.dtype) for s in (state, after))
    states = torch.cat([before.expand(layout.horizon, -1), last[None]])
    kind = torch.long if layout.dynamics.actions.n else model.dtype
    shape = layout.horizon, *layout.dynamics.actions.shape
    actions = torch.as_tensor(np.asarray(action), dtype=kind).expand(shape)
    stages = model.stage_log_density(layout.unpack(states[None], actions[None]))[0]
    terminal = stages[-1] if t == layout.horizon - 1 else 0.0
    return float(stages[t] + terminal)
