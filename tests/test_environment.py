"""gymnasium's environments as dynamics: tiny ones whose every state is known."""

import numpy as np
import pytest
import torch

gymnasium = pytest.importorskip("gymnasium", reason="the extra ebm-pp[gym] is not installed")

import pyro  # noqa: E402
from gymnasium import spaces  # noqa: E402

from ebm_pp.demonstrations import pad  # noqa: E402
from ebm_pp.density import EnergyModel  # noqa: E402
from ebm_pp.environment import from_gymnasium  # noqa: E402
from ebm_pp.errors import DataError, ProgramError  # noqa: E402
from ebm_pp.policy import PolicyGenerator  # noqa: E402
from ebm_pp.trajectory import trajectory  # noqa: E402
from models import pendulum  # noqa: E402

FAR = 100.0  # every reset starts here or higher, so a state below 1 was not reset


class Counter(gymnasium.Env):
    """x' = x + a + 1 from x = 100 r at the r-th reset; ends at `end` steps, if given."""

    observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float64)
    action_space = spaces.Box(-1.0, 1.0, (1,), np.float32)

    def __init__(self, end=None, cut=None, broken=None):
        self.end, self.cut, self.broken, self.resets = end, cut, broken, 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.resets += 1
        self.x, self.t = FAR * self.resets, 0
        return self._observe(), {}

    def step(self, action):
        self.x, self.t = self.x + float(action[0]) + 1, self.t + 1
        return self._observe(), 0.0, self.t == self.end, self.t == self.cut, {}

    def _observe(self):
        x = np.nan if self.t == self.broken and self.broken else self.x
        return np.array([x, self.t], np.float64)


class Shift(gymnasium.Env):
    """Integers on a ring of 5, numbered from 3; action 7 stays, 8 goes on."""

    observation_space = spaces.Discrete(5, start=3)
    action_space = spaces.Discrete(2, start=7)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.x = 1
        return self.x + 3, {}

    def step(self, action):
        assert action in (7, 8)
        self.x = (self.x + action - 7) % 5
        return self.x + 3, 0.0, False, False, {}


class Odd(Counter):
    """Counter with spaces to be refused."""

    def __init__(self, observations=None, actions=None):
        super().__init__()
        self.observation_space = observations or self.observation_space
        self.action_space = actions or self.action_space


def run(dynamics, actions):
    """States of one portion under given actions `(num_envs, T, *)`."""
    states = [dynamics.reset(len(actions))]
    for t in range(actions.shape[1]):
        states.append(dynamics.advance(states[-1], actions[:, t]))
    return torch.stack(states, 1)


def counted(actions, resets):
    """What Counter must observe."""
    n, horizon = actions.shape[:2]
    moved = torch.cat([torch.zeros(n, 1), (actions[..., 0] + 1).cumsum(1)], 1)
    times = torch.arange(horizon + 1.0).expand(n, -1)
    return torch.stack([FAR * resets + moved, times], -1)


def program(dynamics, horizon):
    def run_once():
        tau = trajectory(dynamics, horizon)
        with pyro.plate("time", horizon):
            pyro.factor("cost", -(tau.actions.reshape(horizon, -1).sum(-1) ** 2))

    return run_once


# what comes out


@pytest.mark.parametrize("horizon", [1, 7])
def test_states_are_the_environments(horizon):
    dynamics = from_gymnasium(Counter, horizon, num_envs=3)
    for resets in (1, 2, 3):
        actions = 2 * torch.rand(3, horizon, 1) - 1
        found = run(dynamics, actions)
        assert torch.allclose(found.float(), counted(actions, resets), atol=1e-4)


def test_a_vector_env_is_taken_as_it_is():
    env = gymnasium.vector.SyncVectorEnv([Counter] * 4)
    dynamics = from_gymnasium(env, 5, num_envs=99)
    assert dynamics.blocks(9) == [4, 4, 4]
    actions = torch.zeros(4, 5, 1)
    assert torch.equal(run(dynamics, actions).float(), counted(actions, 1))


def test_spaces():
    dynamics = from_gymnasium(Counter, 5, edges=True, deterministic=True)
    assert dynamics.opaque
    assert dynamics.deterministic
    assert not dynamics.resettable
    assert not dynamics.differentiable
    assert dynamics.space.shape == (2,)
    assert dynamics.actions.edges
    assert dynamics.actions.low.tolist() == [-1.0]
    real = lambda: Odd(actions=spaces.Box(-np.inf, np.inf, (3,), np.float32))  # noqa: E731
    assert from_gymnasium(real, 5).actions == from_gymnasium(real, 5).actions.real(3)
    assert from_gymnasium(Counter, 5, absorbing=True).space.shape == (3,)
    assert not from_gymnasium(Counter, 5).deterministic


def test_integers_are_numbered_from_zero():
    dynamics = from_gymnasium(Shift, 6, num_envs=2)
    actions = torch.tensor([[1, 1, 1, 1, 0, 1], [0, 0, 1, 0, 0, 0]])
    assert run(dynamics, actions).tolist() == [[1, 2, 3, 4, 0, 0, 1], [1, 1, 1, 2, 2, 2, 2]]
    x, log_q = PolicyGenerator(EnergyModel(program(dynamics, 6))).rsample_and_log_prob(5)
    assert x["states"].dtype == torch.long
    moved = (x["states"][:, :-1] + x["actions"]) % 5
    assert torch.equal(moved, x["states"][:, 1:])
    assert torch.allclose(log_q, torch.full((5,), -6 * np.log(2.0), dtype=log_q.dtype))


@pytest.mark.parametrize("ending", ["cut", "end"])
def test_an_end_at_the_horizon_shows_its_last_state(ending):
    """gymnasium 0.29 hands out the next episode's first observation there."""
    dynamics = from_gymnasium(lambda: Counter(**{ending: 4}), 4, num_envs=2)
    for resets in (1, 3):  # in 0.29 each end has cost the copy one more reset
        actions = torch.full((2, 4, 1), 0.5)
        found = run(dynamics, actions)
        moved = found[:, :, 0] - found[:, :1, 0]
        assert torch.equal(moved.float(), counted(actions, 0)[..., 0]), resets
        assert found[:, -1, 1].tolist() == [4.0, 4.0]


def test_absorbing_states_are_zero_after_the_end_and_nothing_leaks():
    ends = iter([2, None, 4, 5])
    dynamics = from_gymnasium(lambda: Counter(end=next(ends)), 5, absorbing=True, num_envs=4)
    actions = torch.rand(4, 5, 1)
    found = run(dynamics, actions)
    exact = counted(actions, 1)
    lengths = [2, 5, 4, 5]  # one that ends at T itself is whole, as in pad
    rows = [exact[i, : n + 1].double() for i, n in enumerate(lengths)]
    padded = pad(rows, [actions[i, :n] for i, n in enumerate(lengths)], 5)["states"]
    assert torch.allclose(found, padded, atol=1e-4)
    again = run(dynamics, actions)
    assert (again[:, 0, -1] == 1).all()
    assert torch.allclose(again[1, :, 0] - found[1, :, 0], torch.full((6,), FAR).double())


def test_a_policy_draws_whole_portions_and_keeps_its_dead_still():
    ends = iter([2, None, 3])
    dynamics = from_gymnasium(lambda: Counter(end=next(ends)), 4, absorbing=True, num_envs=3)
    generator = PolicyGenerator(EnergyModel(program(dynamics, 4)))
    assert not generator.has_rsample
    x, log_q = generator.rsample_and_log_prob(7)
    assert x["states"].shape == (7, 5, 3)
    assert (x["actions"][0, 2:] == 0).all()
    assert (x["states"][0, 2:] == 0).all()
    assert torch.allclose(log_q, generator.log_prob(x), atol=1e-4)


def test_seeds():
    make = lambda seed: from_gymnasium("Pendulum-v1", 3, seed=seed, num_envs=2).reset(2)  # noqa: E731
    assert torch.equal(make(5), make(5))
    assert not torch.equal(make(5), make(6))


def test_double_precision_rows_are_recognised():
    dynamics = from_gymnasium("Pendulum-v1", 3, num_envs=2)
    state = dynamics.reset(2).double()
    moved = dynamics.advance(state, torch.zeros(2, 1).double())
    assert moved.dtype == torch.float64


# errors


def test_stepping_from_elsewhere():
    dynamics = from_gymnasium(Counter, 5, num_envs=2)
    state = dynamics.reset(2)
    elsewhere = state.clone()
    elsewhere[1, 0] = 7.0
    with pytest.raises(ProgramError, match=r"trajectory 1 at \[7.0, 0.0\], where it gave \[100"):
        dynamics.advance(elsewhere, torch.zeros(2, 1))
    with pytest.raises(ProgramError, match=r"does not stand in \(shape \(1, 2\)\)"):
        dynamics.advance(state[:1], torch.zeros(1, 1))
    with pytest.raises(ProgramError, match=r"asked for 3 start states; expected 2"):
        dynamics.reset(3)


def test_stepping_beyond_the_horizon_or_before_a_reset():
    dynamics = from_gymnasium(Counter, 2, num_envs=2)
    with pytest.raises(ProgramError, match="expected a reset"):
        dynamics.advance(torch.zeros(2, 2), torch.zeros(2, 1))
    state = run(dynamics, torch.zeros(2, 2, 1))[:, -1]
    with pytest.raises(ProgramError, match="stepped 2 times, the horizon, and once more"):
        dynamics.advance(state, torch.zeros(2, 1))


def test_an_early_end():
    with pytest.raises(ProgramError, match=r"(?s)terminated after 2 steps.*absorbing=True"):
        run(from_gymnasium(lambda: Counter(end=2), 5, num_envs=2), torch.zeros(2, 5, 1))
    cut = from_gymnasium(lambda: Counter(cut=3), 5, absorbing=True, num_envs=2)
    with pytest.raises(ProgramError, match=r"(?s)cut it off after 3 steps.*max_episode_steps=5"):
        run(cut, torch.zeros(2, 5, 1))


def test_a_broken_observation():
    made = iter([None, 3])
    dynamics = from_gymnasium(lambda: Counter(broken=next(made)), 5, num_envs=2)
    with pytest.raises(DataError, match=r"trajectory 1, step 3: the environment observed \[nan"):
        run(dynamics, torch.zeros(2, 5, 1))


@pytest.mark.parametrize(
    ("observations", "actions", "said"),
    [
        (spaces.Dict({"x": spaces.Discrete(2)}), None, "observation space Dict.*Flatten"),
        (spaces.Box(0, 255, (8, 8, 3), np.uint8), None, r"shape \(8, 8, 3\) is no vector"),
        (None, spaces.MultiDiscrete([2, 3]), "action space MultiDiscrete"),
        (None, spaces.Box(0.0, np.inf, (1,), np.float32), "RescaleAction"),
    ],
)
def test_spaces_that_are_refused(observations, actions, said):
    with pytest.raises(ProgramError, match=f"(?s){said}"):
        from_gymnasium(lambda: Odd(observations, actions), 5)


def test_what_is_no_environment():
    with pytest.raises(ProgramError, match="given a Counter; expected an id, a callable"):
        from_gymnasium(Counter(), 5)
    with pytest.raises(ProgramError, match="no coordinate to say that it has ended"):
        from_gymnasium(Shift, 5, absorbing=True)


def test_demonstrations_of_another_world():
    """The world shapes the program, so its own checks say what does not fit."""
    model = EnergyModel(program(from_gymnasium(Counter, 3), 3))
    with pytest.raises(DataError, match=r"site 'states'.*\(2, 4, 3\)|'states'"):
        model.check({"states": torch.zeros(2, 4, 3), "actions": torch.zeros(2, 3, 1)})
    with pytest.raises(DataError, match="action 2 is outside the box"):
        model.check({"states": torch.zeros(2, 4, 2), "actions": torch.full((2, 3, 1), 2.0)})


# the pendulum


def test_the_pendulum_moves_as_gymnasiums():
    dynamics = from_gymnasium("Pendulum-v1", 50, num_envs=8, deterministic=True)
    state = dynamics.reset(8)
    for _ in range(50):
        torque = 4 * torch.rand(8, 1) - 2
        expected = pendulum.step(state.double(), torque.double())
        state = dynamics.advance(state, torque)
        assert torch.allclose(state.double(), expected, atol=1e-5)


def test_the_pendulums_cost_is_gymnasiums():
    env = gymnasium.make("Pendulum-v1", disable_env_checker=True)
    state, _ = env.reset(seed=3)
    for _ in range(20):
        torque = env.action_space.sample()
        rows = torch.tensor(state).double(), torch.tensor(torque).double()
        cost = pendulum.features(*rows) @ torch.tensor(pendulum.TRUE).double()
        state, minus_cost, *_ = env.step(torque)
        assert -cost.item() == pytest.approx(minus_cost, abs=1e-5)


def test_the_pendulums_expert_is_soft_optimal():
    """Its log weights are log Z(s_0); a policy of another temperature falls short by the KL."""
    horizon, grid, weights = 10, pendulum.Grid(240, 241, 41), pendulum.true_weights(2.0)
    dynamics = from_gymnasium("Pendulum-v1", horizon, num_envs=200, deterministic=True)
    model = EnergyModel(pendulum.Pendulum(dynamics, horizon, tuple(weights.tolist())))
    gaps = {}
    for beta in (2.0, 8.0):
        expert = pendulum.GridPolicy(pendulum.true_weights(beta), horizon, grid)
        with torch.no_grad():
            x, log_q = PolicyGenerator(model, policy=expert).rsample_and_log_prob(200)
            optimal = pendulum.GridPolicy(weights, horizon, grid)
            log_z = optimal.value(x["states"][:, 0], torch.zeros(200, dtype=torch.long))
            gaps[beta] = model.log_density(x) - log_q - log_z
    assert gaps[2.0].mean().abs() < 0.05
    assert gaps[2.0].std() < 0.3
    assert gaps[8.0].mean() < -0.3
