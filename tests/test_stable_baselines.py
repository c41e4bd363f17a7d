"""stable-baselines3 as a trainer of policies; skipped where it is not installed."""

import math

import pyro
import pytest
import torch
from torch import nn

sb3 = pytest.importorskip("stable_baselines3", reason="stable-baselines3 is not installed")
gymnasium = pytest.importorskip("gymnasium")

from ebm_pp import Dynamics, EnergyModel, Opaque, Space, trajectory  # noqa: E402
from ebm_pp.errors import GeneratorError  # noqa: E402
from ebm_pp.stable_baselines import (  # noqa: E402
    StableBaselinesPolicy,
    step_log_density,
    train_policy,
)

LOW, HIGH = -2.0, 3.0
START = torch.distributions.Independent(torch.distributions.Normal(torch.zeros(2), 1.0), 1)


class World(gymnasium.Env):
    observation_space = gymnasium.spaces.Box(-100.0, 100.0, (2,))
    action_space = gymnasium.spaces.Box(LOW, HIGH, (1,))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.x = self.np_random.normal(size=2).astype("float32")
        return self.x, {}

    def step(self, action):
        self.x = (0.9 * self.x + 0.1 * action).astype("float32")
        return self.x, 123.0, False, False, {}


class Program(nn.Module):
    def __init__(self, actions, horizon=5):
        super().__init__()
        step = Opaque(lambda s, a: 0.9 * s + 0.1 * a, deterministic=True)
        self.world = Dynamics(START, step, actions)
        self.horizon, self.weight = horizon, nn.Parameter(torch.tensor(2.0))

    def forward(self):
        tau = trajectory(self.world, self.horizon)
        with pyro.plate("time", self.horizon):
            clock = torch.arange(1.0, self.horizon + 1)
            pyro.factor("cost", -self.weight * clock * tau.actions[:, 0] ** 2)
        pyro.factor("end", -tau.states[-1].square().sum())


def test_a_step_pays_minus_its_cost():
    model = EnergyModel(Program(Space.box(LOW, HIGH)))
    state, after = torch.tensor([1.0, 2.0]), torch.tensor([3.0, -1.0])
    pay = [step_log_density(model, model.layout, state, [0.5], after, t) for t in range(5)]
    assert pay[:4] == pytest.approx([-0.5, -1.0, -1.5, -2.0])
    assert pay[4] == pytest.approx(-2.5 - 10.0)


def test_sacs_density_is_its_own_in_units_of_the_action():
    learner = sb3.SAC("MlpPolicy", World(), seed=0, learning_starts=1)
    policy = StableBaselinesPolicy(learner.policy, Space.box(LOW, HIGH))
    states = torch.randn(50, 2)
    squashed, log_prob = learner.actor.action_log_prob(states)
    action = LOW + (HIGH - LOW) * (squashed + 1) / 2
    found = policy(states, torch.zeros(50)).log_prob(action)
    assert torch.allclose(found, log_prob - math.log((HIGH - LOW) / 2), atol=1e-2)


def test_ppos_density_is_its_own_inside_the_box():
    learner = sb3.PPO("MlpPolicy", World(), seed=0, n_steps=8, batch_size=8)
    policy = StableBaselinesPolicy(learner.policy, Space.box(LOW, HIGH, edges=True))
    states, action = torch.randn(50, 2), torch.rand(50, 1)
    expected = learner.policy.get_distribution(states).log_prob(action)
    assert torch.allclose(policy(states, torch.zeros(50)).log_prob(action), expected, atol=1e-5)
    with pytest.raises(GeneratorError, match="edges=True"):
        StableBaselinesPolicy(learner.policy, Space.box(LOW, HIGH))


def test_a_trained_policy_is_a_generator():
    model = EnergyModel(Program(Space.box(LOW, HIGH)))
    policy = train_policy(model, World, 60, learning_starts=20)
    x, log_q = policy.rsample_and_log_prob(10)
    assert torch.allclose(log_q, policy.log_prob(x), atol=1e-3)
    assert x["actions"].min() > LOW
    assert x["actions"].max() < HIGH
