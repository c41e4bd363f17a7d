"""Policies trained by Stable-Baselines3 on a program's cost, as generators.

For large environments, where the library's own policy steps are too weak: the environment pays
minus the program's cost, Stable-Baselines3 trains, and the result is a `PolicyGenerator` like any
other, with an exact density, to be fitted on, corrected and diagnosed. (In this file alone minus
a cost is called by its name there, reward.)

What they maximise, beside E_q[sum_t (-c_t - log pi_t)], the library's objective:

* SAC with `ent_coef=1` and `gamma=1`, as here: the same, the entropy inside the return;
* PPO: sum_t -c_t, plus `ent_coef` times the entropy in the states it happens to visit, which is
  no part of the return: it does not seek states where it can stay random. `ent_coef=1` here, but
  its fixed point is another; let `fit` or `importance_sample` correct it.

Episodes have T steps (fewer where the dynamics are absorbing), and the policy sees t / T, so that
gamma = 1 is well posed.
Source: Haarnoja et al. 2018, arXiv:1812.05905; Schulman et al. 2017, arXiv:1707.06347.
"""

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import torch
from pyro.distributions import Categorical
from torch import Tensor, nn
from torch.distributions import Distribution
from torch.nn.functional import one_hot

from ebm_pp.density import EnergyModel
from ebm_pp.errors import GeneratorError, ProgramError
from ebm_pp.policy import CensoredNormal, PolicyGenerator, SquashedNormal
from ebm_pp.trajectory import Layout


def train_policy(
    model: EnergyModel,
    make_env: Callable[[], Any],
    algorithm: Literal["SAC", "PPO"] = "SAC",
    steps: int = 100_000,
    *,
    seed: int = 0,
    **options: Any,  # noqa: ANN401
) -> PolicyGenerator:
    """A policy for the program's present cost, trained by Stable-Baselines3.

    Args:
        model: the program; its parameters are left alone.
        make_env: a new gymnasium environment, the one of the program's dynamics. What it pays is
            not looked at.
        algorithm: "SAC" for boxes without edges; "PPO" for integers and boxes with edges (it
            clips its actions). Stable-Baselines3 refuses unbounded actions.
        steps: of the environment.
        seed: of everything; Stable-Baselines3 sets the global streams.
        **options: of `stable_baselines3.SAC` or `PPO`, e.g. `learning_rate`, `gamma`.

    Returns:
        The generator. Its policy is an `nn.Module` of the trained actor and can be trained on.

    Raises:
        GeneratorError: Stable-Baselines3 is missing, or its algorithm has no density here.
        ProgramError: the program has no trajectory, or the environment observes something else.
    """
    try:
        import stable_baselines3
    except ImportError as error:
        raise GeneratorError(
            "train_policy needs stable-baselines3, which is not installed.\n"
            "  Install it: pip install 'ebm-pp[sb3]'."
        ) from error
    if model.layout is None:
        raise ProgramError(
            f"train_policy: the program's sites {list(model.sites)} make no trajectory; expected "
            "states and actions.\n  Declare them with trajectory(dynamics, T)."
        )
    _require_density(algorithm, model.layout)
    env = costed(model, make_env())
    chosen: dict[str, Any] = {"gamma": 1.0, "ent_coef": 1.0, "device": "cpu", **options}
    learner = getattr(stable_baselines3, algorithm)("MlpPolicy", env, seed=seed, **chosen)
    learner.learn(steps)
    actor = learner.actor if algorithm == "SAC" else learner.policy
    policy = ActorPolicy(actor, model.layout).to(model.device, model.dtype)
    return PolicyGenerator(model, policy=policy)


class ActorPolicy(nn.Module):
    """A Stable-Baselines3 actor as a policy, for `PolicyGenerator(model, policy=...)`.

    Args:
        actor: `SAC(...).actor`, or `PPO(...).policy`; trained on `costed` environments.
        layout: of the program.

    SAC's action is low + width (tanh v + 1) / 2 with v ~ N(m, s), and tanh v = 2 sigmoid(2 v) - 1,
    so it is the `SquashedNormal` of 2 m, 2 s. PPO clips its Gaussian: a `CensoredNormal`.
    """

    def __init__(self, actor: nn.Module, layout: Layout) -> None:
        super().__init__()
        self.actor, self.layout = actor, layout

    def forward(self, states: Tensor, time: Tensor) -> Distribution:
        """The law of the action in states `(*batch, *state)` at times `(*batch)`."""
        actor: Any = self.actor
        space = self.layout.dynamics.actions
        rows = observe(states, time, self.layout).to(next(actor.parameters()).dtype)
        flat, shape = rows.flatten(0, -2), rows.shape[:-1]
        if hasattr(actor, "get_action_dist_params"):
            mean, log_sd, _ = actor.get_action_dist_params(flat)
            mean, sd = mean.unflatten(0, shape), log_sd.exp().unflatten(0, shape)
            return SquashedNormal(2 * mean, 2 * sd, space)
        law = actor.get_distribution(flat).distribution
        if space.n:
            return Categorical(logits=law.logits.unflatten(0, shape))
        mean, sd = law.mean.unflatten(0, shape), law.stddev.unflatten(0, shape)
        return CensoredNormal(mean, sd, space)


def observe(states: Tensor, time: Tensor, layout: Layout) -> Tensor:
    """What the actor sees, `(*batch, width + 1)`: the state (one-hot if an integer), and t / T."""
    space = layout.dynamics.space
    rows = one_hot(states, space.n).float() if space.n else states
    clock = (time.to(rows) / layout.horizon).unsqueeze(-1)
    return torch.cat([rows, clock.expand(*rows.shape[:-1], 1)], -1)


def costed(model: EnergyModel, env: Any) -> Any:  # noqa: ANN401 - gymnasium is optional
    """The environment with minus the program's cost as its reward, for T steps.

    The reward of step t is factor t of the plate `time`; factors outside it (a terminal cost)
    are paid at the last step. If an absorbing world ends early, what the rest of the horizon
    would cost is paid then. Observations are those of `observe`.
    """
    import gymnasium

    path = _Path(model, env.observation_space, env.action_space)

    class Costed(gymnasium.Wrapper):
        """Pays what the path costs."""

        def __init__(self) -> None:
            super().__init__(env)
            self.observation_space = gymnasium.spaces.Box(
                -np.inf, np.inf, path.seen().shape, np.float32
            )

        def reset(self, **given: Any) -> tuple[np.ndarray, dict]:  # noqa: ANN401
            """The first observation."""
            observation, info = env.reset(**given)
            path.begin(observation)
            return path.seen(), info

        def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict]:  # noqa: ANN401
            """The step's reward is minus its cost."""
            observation, _, ended, cut, info = env.step(action)
            paid = path.go(action, observation, ended, cut)
            # The end at T is one: nothing is paid after it, so nothing must be bootstrapped.
            return path.seen(), paid, ended or path.t == path.layout.horizon, False, info

    return Costed()


class _Path:
    """The trajectory so far, kept whole: a program scores whole trajectories."""

    def __init__(self, model: EnergyModel, observations: Any, actions: Any) -> None:  # noqa: ANN401
        assert model.layout is not None, "train_policy checks it"
        self.model, self.layout = model, model.layout
        self.space, self.absorbing = self.layout.dynamics.space, self.layout.dynamics.absorbing
        self.first_state = int(getattr(observations, "start", 0))
        self.first_action = int(getattr(actions, "start", 0))
        n, width = self.space.n, 0 if self.space.n else self.space.shape[0] - self.absorbing
        whole = hasattr(observations, "n")
        if (whole, observations.n if whole else observations.shape) != (n > 0, n or (width,)):
            raise ProgramError(
                f"the environment observes {observations}; expected the program's states, "
                f"{f'{n} integers' if n else f'vectors of {width}'}.\n  Pass the environment "
                "that the program's dynamics were made from."
            )
        self.begin(self.first_state if n else np.zeros(width))

    def begin(self, observation: Any) -> None:  # noqa: ANN401
        """A new trajectory."""
        horizon, actions = self.layout.horizon, self.layout.dynamics.actions
        dtype = torch.long if actions.n else self.model.dtype
        state = self._state(observation)
        self.t = 0
        self.states = state.expand(horizon + 1, *state.shape).clone()
        self.actions = torch.zeros(horizon, *actions.shape, dtype=dtype)

    def go(self, action: Any, observation: Any, ended: bool, cut: bool) -> float:  # noqa: ANN401
        """Minus the cost of one more step."""
        t, self.t = self.t, self.t + 1
        self.actions[t] = torch.as_tensor(action) - self.first_action
        self.states[t + 1 :] = self._state(observation)
        early = (ended or cut) and self.t < self.layout.horizon
        if early and (cut or not self.absorbing):
            raise ProgramError(
                f"the environment ended after {self.t} steps; expected {self.layout.horizon}, the "
                "horizon.\n  Raise max_episode_steps, or declare absorbing dynamics."
            )
        if early:
            self.states[t + 1 :] = 0
        with torch.no_grad():
            sites = self.layout.unpack(self.states[None], self.actions[None])
            sites = {name: value.to(self.model.device) for name, value in sites.items()}
            steps = self.model.step_log_density(sites)[0]
        return float(steps[t:].sum() if early else steps[t])

    def seen(self) -> np.ndarray:
        """What the actor sees now."""
        rows = observe(self.states[self.t], torch.tensor(self.t), self.layout)
        return rows.float().numpy()

    def _state(self, observation: Any) -> Tensor:  # noqa: ANN401
        if self.space.n:
            return torch.as_tensor(int(observation) - self.first_state)
        state = torch.as_tensor(observation, dtype=self.model.dtype)
        return torch.cat([state, state.new_ones(1)]) if self.absorbing else state


def _require_density(algorithm: str, layout: Layout) -> None:
    space = layout.dynamics.actions
    boxed = space.low is not None
    if (algorithm == "SAC" and boxed and not space.edges) or (
        algorithm == "PPO" and (space.n or space.edges)
    ):
        return
    kind = f"{space.n} integers" if space.n else "R^m" if not boxed else "a box"
    kind += " with edges" if space.edges else ""
    raise GeneratorError(
        f"train_policy: algorithm={algorithm!r} for actions in {kind}; expected SAC for a box "
        "without edges, PPO for integers or a box with edges (it clips its actions, so mass lies "
        "on the ends).\n  Choose the other; for PPO from_gymnasium(edges=True); bound unbounded "
        "actions."
    )
