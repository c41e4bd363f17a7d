"""Stable-Baselines3's policies as generators: their densities, and the cost that they are paid."""

import math

import numpy as np
import pytest
import torch

gymnasium = pytest.importorskip("gymnasium", reason="the extra ebm-pp[gym] is not installed")
sb3 = pytest.importorskip("stable_baselines3", reason="the extra ebm-pp[sb3] is not installed")

import pyro  # noqa: E402
from gymnasium import spaces  # noqa: E402

from ebm_pp.density import EnergyModel  # noqa: E402
from ebm_pp.environment import from_gymnasium  # noqa: E402
from ebm_pp.errors import GeneratorError, ProgramError  # noqa: E402
from ebm_pp.stable_baselines import ActorPolicy, costed, train_policy  # noqa: E402
from ebm_pp.trajectory import trajectory  # noqa: E402

HORIZON = 4


class Line(gymnasium.Env):
    """x' = x + a from 0; ends where `end` says."""

    observation_space = spaces.Box(-np.inf, np.inf, (1,), np.float32)
    action_space = spaces.Box(-1.0, 3.0, (1,), np.float32)

    def __init__(self, end=None, actions=None):
        self.end = end
        self.action_space = actions or self.action_space

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.x, self.t = 0.0, 0
        return np.array([self.x], np.float32), {}

    def step(self, action):
        self.x, self.t = self.x + float(np.asarray(action).reshape(-1)[0]), self.t + 1
        return np.array([self.x], np.float32), 99.0, self.t == self.end, False, {}


def program_of(dynamics):
    def program():
        tau = trajectory(dynamics, HORIZON)
        with pyro.plate("time", HORIZON):
            pyro.factor("cost", -tau.states[1:, 0] - 0.5 * tau.actions.reshape(HORIZON).square())
        pyro.factor("terminal", -10 * tau.states[-1, 0].square())

    return program


def model_of(make=Line, **how):
    return EnergyModel(program_of(from_gymnasium(make, HORIZON, num_envs=2, **how)))


def actor_of(model, make, algorithm):
    learner = getattr(sb3, algorithm)("MlpPolicy", costed(model, make()), seed=0, device="cpu")
    actor = learner.actor if algorithm == "SAC" else learner.policy
    return ActorPolicy(actor, model.layout)


def test_the_environment_pays_the_programs_terms():
    model = model_of()
    env = costed(model, Line())
    actions, paid = [0.5, -1.0, 2.0, 3.0], []
    observation, _ = env.reset()
    seen = [observation]
    for action in actions:
        observation, reward, ended, cut, _ = env.step(np.array([action], np.float32))
        seen.append(observation)
        paid.append(reward)
        assert (ended, cut) == (len(paid) == HORIZON, False)
    states = np.cumsum([0.0, *actions])
    exact = [-x - 0.5 * a * a for x, a in zip(states[1:], actions, strict=True)]
    exact[-1] -= 10 * states[-1] ** 2
    assert paid == pytest.approx(exact)
    assert np.allclose(seen, np.stack([states, np.arange(5) / HORIZON], 1))


def test_an_early_end_pays_for_the_rest():
    """A dead trajectory stays at 0 and does nothing; only its way there cost something."""
    model = model_of(lambda: Line(end=2), absorbing=True)
    env = costed(model, Line(end=2))
    env.reset()
    env.step(np.array([1.0], np.float32))
    _, paid, ended, _, _ = env.step(np.array([2.0], np.float32))
    assert ended
    assert paid == pytest.approx(-0.5 * 4)
    impatient = costed(model_of(), Line(end=2))
    impatient.reset()
    impatient.step(np.array([1.0], np.float32))
    with pytest.raises(ProgramError, match="ended after 2 steps; expected 4"):
        impatient.step(np.array([1.0], np.float32))


def test_sacs_density_is_its_own_and_integrates_to_one():
    policy = actor_of(model_of(), Line, "SAC")
    torch.nn.init.constant_(policy.actor.mu.bias, 0.4)
    torch.nn.init.constant_(policy.actor.log_std.bias, -0.3)
    states, time = torch.randn(5, 1), torch.arange(5) % HORIZON
    law = policy(states, time)
    grid = torch.linspace(-1, 3, 20_001)[1:-1]
    density = law.log_prob(grid[:, None, None].expand(-1, 5, 1)).exp()
    assert torch.allclose(density.sum(0) * 4 / 20_000, torch.ones(5), atol=2e-3)
    rows = torch.cat([states, time[:, None] / HORIZON], 1)
    squashed, log_prob = policy.actor.action_log_prob(rows)  # on (-1, 1), so per half a width
    ours = law.log_prob(-1 + 4 * (squashed + 1) / 2)
    assert torch.allclose(ours, log_prob - math.log(2.0), atol=1e-3)


def test_sacs_actions_are_its_own():
    policy = actor_of(model_of(), Line, "SAC")
    rows = torch.zeros(4000, 1), torch.zeros(4000, dtype=torch.long)
    torch.manual_seed(0)
    ours = policy(*rows).sample()
    theirs = policy.actor(torch.zeros(4000, 2)).detach()
    theirs = -1 + 4 * (theirs + 1) / 2
    error = math.sqrt((ours.var() + theirs.var()).item() / 4000)
    assert abs((ours.mean() - theirs.mean()).item()) < 4 * error
    assert ours.std().item() == pytest.approx(theirs.std().item(), rel=0.1)


@pytest.mark.parametrize("kind", ["edges", "integers"])
def test_ppos_density(kind):
    """Its own log probability, except at the ends, where ours is the mass beyond."""
    spaces_of = {
        "edges": Line.action_space,
        "integers": spaces.Discrete(3),
    }
    make = lambda: Line(actions=spaces_of[kind])  # noqa: E731
    policy = actor_of(model_of(make, edges=kind == "edges"), make, "PPO")
    states, time = torch.randn(6, 1), torch.arange(6) % HORIZON
    law = policy(states, time)
    actions = torch.tensor([0, 1, 2, 0, 1, 2]) if kind == "integers" else 0.5 * torch.ones(6, 1)
    rows = torch.cat([states, time[:, None] / HORIZON], 1)
    _, log_prob, _ = policy.actor.evaluate_actions(rows, actions)
    assert torch.allclose(law.log_prob(actions), log_prob, atol=1e-5)
    if kind == "edges":
        inside = torch.linspace(-1, 3, 4001)[1:-1]
        total = law.log_prob(inside[:, None, None].expand(-1, 6, 1)).exp().sum(0) / 1000
        ends = sum(law.log_prob(torch.full((6, 1), end)).exp() for end in (-1.0, 3.0))
        assert torch.allclose(total + ends, torch.ones(6), atol=2e-3)


def test_a_trained_policy_is_a_generator_near_the_optimum():
    """One step, cost (a - 1)^2 / (2 .09) in a wide box: pi = N(1, .3^2) up to the box."""
    dynamics = from_gymnasium(Line, 1, num_envs=64, deterministic=True)

    def program():
        tau = trajectory(dynamics, 1)
        with pyro.plate("time", 1):
            pyro.factor("cost", -(tau.actions[:, 0] - 1).square() / (2 * 0.09))

    model = EnergyModel(program)
    generator = train_policy(
        model, Line, "SAC", 1_000, learning_rate=3e-3, learning_starts=100, batch_size=128,
        policy_kwargs={"net_arch": [32]},
    )  # fmt: skip
    with torch.no_grad():
        x, log_q = generator.rsample_and_log_prob(2_000)
        gap = math.log(0.3 * math.sqrt(2 * math.pi)) - (model.log_density(x) - log_q)
    assert abs(x["actions"].mean().item() - 1) < 0.15
    assert x["actions"].std().item() == pytest.approx(0.3, rel=0.35)
    assert -0.05 < gap.mean().item() < 0.15
    assert torch.allclose(generator.log_prob(x), log_q, atol=1e-4)


def test_errors():
    with pytest.raises(GeneratorError, match="'PPO' for actions in a box; expected SAC"):
        train_policy(model_of(), Line, "PPO", 1)
    with pytest.raises(GeneratorError, match="'SAC' for actions in a box with edges"):
        train_policy(model_of(edges=True), Line, "SAC", 1)
    wide = lambda: gymnasium.make("Pendulum-v1", disable_env_checker=True)  # noqa: E731
    with pytest.raises(ProgramError, match=r"observes Box.*the program's states, vectors of 1"):
        train_policy(model_of(), wide, "SAC", 1)
    with pytest.raises(ProgramError, match="make no trajectory"):
        train_policy(EnergyModel(_normal), Line, "SAC", 1)


def _normal():
    x = pyro.sample("x", pyro.distributions.Normal(0.0, 1.0))
    pyro.factor("f", -(x**4))
