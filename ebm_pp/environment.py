"""gymnasium's environments as the dynamics of trajectories: opaque, and stepped where they stand.

A simulator on this side of the fence has a step that can be called for any state. An environment
stands somewhere: it starts where `reset` puts it, steps from there, and can't be asked what would
have happened elsewhere. `from_gymnasium` makes such an environment the `Dynamics` of a program;
the policy's draws then come in portions of as many trajectories as there are copies of it.

gymnasium's vector environments begin a new episode by themselves where one ends. Here an episode
is a trajectory of exactly T actions, so that this never happens inside one: a time limit lies
beyond T, and after a termination the state is absorbing (`absorbing=True`) or an error says so.

Works with gymnasium 0.29 and 1.x (the extra `ebm-pp[gym]`). Its rewards are not looked at: here
the cost is a program's.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Distribution, constraints

from ebm_pp.dynamics import Dynamics, Opaque, Space
from ebm_pp.errors import DataError, ProgramError

# Where vector environments of 0.29 and of 1.x put the observation that ended an episode, if they
# begin the next one within the same step.
FINAL = ("final_observation", "final_obs")


def from_gymnasium(
    env: Any,  # noqa: ANN401 - gymnasium is optional
    horizon: int,
    *,
    absorbing: bool = False,
    deterministic: bool = False,
    edges: bool = False,
    seed: int = 0,
    num_envs: int = 16,
) -> Dynamics:
    """The dynamics of a gymnasium environment.

    Args:
        env: an id ("Pendulum-v1"), a callable that makes one environment, or a
            `gymnasium.vector.VectorEnv`.
        horizon: T, actions per trajectory.
        absorbing: whether episodes may end before T. States then get a last coordinate alive,
            1 or 0; after the end the state is 0, see `Dynamics` and `pad`. An end at T itself
            leaves the trajectory whole.
        deterministic: whether a state (as observed) and an action determine the next state. It
            can't be checked here, and sets the default objective: see `FitConfig.objective`.
        edges: whether actions lie on the ends of their box, as those of a controller that clips
            do; see `Space`.
        seed: of the environment's first reset; the following ones go on from there.
        num_envs: copies stepped side by side; of a VectorEnv its own number.

    Returns:
        Dynamics whose observations are the states: `Box` (one vector) or `Discrete`. Actions: a
        finite `Box` becomes `Space.box`, an infinite one `Space.real`, `Discrete` integers from 0.

    Raises:
        ProgramError: other spaces; at reset or step: an episode ends before T, or the states are
            not those where the environment stands.
        DataError: at reset or step: an observation is NaN or infinite.
    """
    made = _vectorised(env, horizon, num_envs)
    running = _Running(made, horizon, absorbing, seed)
    return Dynamics(
        _Start(running),
        Opaque(running.step, deterministic, copies=made.num_envs),
        _action_space(made.single_action_space, edges),
        running.states,
        absorbing=absorbing,
    )


class _Running:
    """Copies of an environment, and where they stand."""

    def __init__(self, env: Any, horizon: int, absorbing: bool, seed: int) -> None:  # noqa: ANN401
        self.env, self.horizon, self.absorbing = env, horizon, absorbing
        self.seed: int | None = seed
        self.states = _state_space(env.single_observation_space, absorbing)
        self.resets, self.t = 0, horizon  # steps since the last reset
        self.alive = np.ones(env.num_envs, bool)
        self.at = torch.zeros(0)  # the states last given

    def reset(self, n: int) -> Tensor:
        """The states of a new start, `(num_envs, *state)`."""
        if n != self.env.num_envs:
            raise ProgramError(
                f"the environment was asked for {n} start states; expected {self.env.num_envs}, "
                "as many as it has copies.\n  Draw whole portions: Dynamics.blocks(n), or "
                "from_gymnasium(num_envs=...)."
            )
        observations, _ = self.env.reset(seed=self.seed)
        self.seed = None  # its random stream goes on
        self.resets, self.t = self.resets + 1, 0
        self.alive[:] = True
        return self._stand(observations)

    def step(self, states: Tensor, actions: Tensor) -> Tensor:
        """The states after one step of every copy."""
        self._require_standing(states)
        space = self.env.single_action_space
        moves = actions.detach().cpu().numpy().astype(space.dtype) + getattr(space, "start", 0)
        observations, _, terminated, truncated, info = self.env.step(moves)
        self.t += 1
        final = next((info[key] for key in FINAL if key in info), None)
        ended = (terminated | truncated) & self.alive
        if final is not None and ended.any():
            observations = observations.copy()
            for i in np.flatnonzero(ended):
                observations[i] = final[i]
        if self.t < self.horizon and ended.any():
            self._end(terminated, ended)
        return self._stand(observations).to(states)

    def _end(self, terminated: np.ndarray, ended: np.ndarray) -> None:
        """Marks the ended copies; ProgramError unless they may end."""
        first = np.flatnonzero(ended & ~terminated)
        if len(first):
            raise ProgramError(
                f"trajectory {first[0]}: the environment's time limit cut it off after {self.t} "
                f"steps; expected {self.horizon}, the horizon.\n  Make the environment with "
                f"max_episode_steps={self.horizon} or more, or shorten the horizon."
            )
        if not self.absorbing:
            raise ProgramError(
                f"trajectory {np.flatnonzero(ended)[0]}: the environment terminated after "
                f"{self.t} steps; expected {self.horizon}, the horizon.\n  Use "
                "from_gymnasium(absorbing=True) and pad(states, actions, horizon), or an "
                "environment that does not terminate."
            )
        self.alive &= ~ended

    def _stand(self, observations: np.ndarray) -> Tensor:
        """Observations as states, kept as where the environment stands."""
        space = self.env.single_observation_space
        if self.states.n:
            self.at = torch.from_numpy(np.asarray(observations, np.int64) - int(space.start))
            return self.at
        rows = np.asarray(observations)
        rows = rows.astype(rows.dtype if rows.dtype.kind == "f" else np.float32)  # a copy
        rows[~self.alive] = 0
        bad = np.flatnonzero(~np.isfinite(rows).all(1))
        if len(bad):
            raise DataError(
                f"trajectory {bad[0]}, step {self.t}: the environment observed "
                f"{rows[bad[0]].tolist()} ({len(bad)} of {len(rows)} copies, after "
                f"{self.resets} resets); expected finite numbers.\n  Most likely its state "
                "diverged: bound the actions or shorten its time step."
            )
        if self.absorbing:
            rows = np.concatenate([rows, self.alive[:, None].astype(rows.dtype)], 1)
        self.at = torch.from_numpy(rows)
        return self.at

    def _require_standing(self, states: Tensor) -> None:
        """ProgramError unless these are the states last given, and the horizon lies ahead."""
        if self.t >= self.horizon:
            raise ProgramError(
                f"the environment was stepped {self.horizon} times, the horizon, and once more; "
                "expected a reset.\n  Call Dynamics.reset before each trajectory."
            )
        if states.shape == self.at.shape and torch.equal(states, self.at.to(states)):
            return
        got = f"shape {tuple(states.shape)}"
        if states.shape == self.at.shape:
            off = (states != self.at.to(states)).reshape(len(states), -1).any(1)
            i = int(off.nonzero()[0])
            got = f"trajectory {i} at {states[i].tolist()}, where it gave {self.at[i].tolist()}"
        raise ProgramError(
            f"the environment was asked to step from states it does not stand in ({got}); "
            "expected the states of its last reset or step.\n  Most likely two policies share it, "
            "or rows were picked. Make one environment each, or give a step function: Opaque."
        )


class _Start(Distribution):
    """The law of s_0, which only the environment knows: a draw is a reset."""

    arg_constraints: dict[str, constraints.Constraint] = {}  # noqa: RUF012  torch's own form

    def __init__(self, running: _Running) -> None:
        super().__init__(event_shape=torch.Size(running.states.shape), validate_args=False)
        self.running = running

    def sample(self, sample_shape: Any = ()) -> Tensor:  # noqa: ANN401
        """Start states, `(num_envs, *state)`."""
        return self.running.reset(torch.Size(sample_shape).numel())


def _vectorised(env: Any, horizon: int, num_envs: int) -> Any:  # noqa: ANN401
    """A VectorEnv, whatever `env` is."""
    try:
        import gymnasium
    except ImportError as error:
        raise ProgramError(
            "from_gymnasium needs gymnasium, which is not installed.\n"
            "  Install it: pip install 'ebm-pp[gym]'."
        ) from error
    if isinstance(env, gymnasium.vector.VectorEnv):
        return env
    make: Callable[[], Any] = env
    if isinstance(env, str):
        name = env

        def make() -> Any:  # noqa: ANN401
            return gymnasium.make(name, max_episode_steps=horizon + 1, disable_env_checker=True)

    elif isinstance(env, gymnasium.Env) or not callable(env):
        raise ProgramError(
            f"from_gymnasium was given a {type(env).__name__}; expected an id, a callable that "
            "makes one environment, or a VectorEnv.\n  Pass lambda: gymnasium.make(...)."
        )
    return gymnasium.vector.SyncVectorEnv([make] * num_envs)


def _state_space(space: Any, absorbing: bool) -> Space:  # noqa: ANN401
    kind = type(space).__name__
    if kind == "Discrete" and not absorbing:
        return Space.discrete(int(space.n))
    if kind == "Box" and len(space.shape) == 1:
        return Space.real(space.shape[0] + absorbing)
    if kind == "Discrete":
        problem = "has no coordinate to say that it has ended"
        fix = "Observe a vector, e.g. one-hot, or use an environment that does not terminate."
    elif kind == "Box":
        problem = f"of shape {space.shape} is no vector"
        fix = "Flatten it: gymnasium.wrappers.FlattenObservation; of images take features first."
    else:
        problem = "is no state of a program"
        fix = "Wrap it: gymnasium.wrappers.FlattenObservation."
    raise ProgramError(
        f"the environment's observation space {space} {problem}; expected Box of shape (state,), "
        f"or Discrete without absorbing.\n  {fix}"
    )


def _action_space(space: Any, edges: bool) -> Space:  # noqa: ANN401
    kind = type(space).__name__
    if kind == "Discrete":
        return Space.discrete(int(space.n))
    if kind == "Box" and len(space.shape) == 1 and space.dtype.kind == "f":
        ends = np.stack([space.low, space.high])
        if np.isfinite(ends).all():
            return Space.box(space.low.copy(), space.high.copy(), edges=edges)
        if np.isinf(ends).all():
            return Space.real(space.shape[0])
    raise ProgramError(
        f"the environment's action space {space} is none that a policy covers; expected Box of "
        "shape (action,), finite or unbounded, or Discrete.\n  Wrap it: "
        "gymnasium.wrappers.RescaleAction gives a box finite ends."
    )
