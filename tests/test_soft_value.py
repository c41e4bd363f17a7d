"""The soft value against closed forms, and the regression behind it."""

from dataclasses import replace

import pyro.distributions as dist
import pytest
import torch
from torch.nn.functional import pad

from ebm_pp import Dynamics, EnergyModel, Opaque, PolicyGenerator, Space
from ebm_pp.soft_value import SoftValue, expect
from ebm_pp.trajectory import Trajectories
from models import linear_quadratic as lq

N = 1500


def fitted(noise, *, causal, opaque=False, policy=None):
    """The soft value of a policy (by default the best), fitted to draws; and fresh draws."""
    torch.manual_seed(0)
    world = lq.short(noise)
    program = lq.QuadraticCost(world)
    if opaque:
        inner = program.dynamics
        program.dynamics = replace(inner, step=Opaque(inner.advance, deterministic=not noise))
    model = EnergyModel(program).double()
    q = PolicyGenerator(model, policy=lq.LinearGaussianPolicy(policy or lq.solve(world)))
    soft = SoftValue(model.layout, causal=causal).double()
    with torch.no_grad():
        states, actions, log_pi = q.simulate(N)
        projection = soft.project(Trajectories(states, actions), slice(0, N))
        rewards = model.stage_log_density(model.layout.unpack(states, actions))
        rewards = (rewards - pad(log_pi, [0, 1]))[: projection.n]
        soft.keep_(projection, rewards)
        states, actions, log_pi = q.simulate(N)
        steps = model.step_log_density(model.layout.unpack(states, actions)) - log_pi
        tau = Trajectories(states, actions)
        return world, soft, tau, steps + soft(tau), steps


@pytest.mark.parametrize(("noise", "causal"), [(0.0, False), (0.05, True)])
def test_soft_advantages_of_the_best_policy_are_zero(noise, causal):
    world, soft, tau, log_weights, _ = fitted(noise, causal=causal)
    assert log_weights.abs().mean() < 2e-3  # nats; h itself ranges over tens
    exact = lq.log_partition_from(lq.solve(world), tau.states[:, 0])
    assert (soft.start(tau.states[:, 0]) - exact).abs().mean() < 5e-3


def test_a_simulators_expectation_is_learned():
    world, soft, tau, log_weights, _ = fitted(0.05, causal=True, opaque=True)
    _, _, _, drawn, _ = fitted(0.05, causal=False)
    assert log_weights.std() < 0.3 * drawn.std()  # the drawn next state carries all the noise
    exact = lq.log_partition_from(lq.solve(world), tau.states[:, 0])
    assert (soft.start(tau.states[:, 0]) - exact).abs().mean() < 0.1


def test_step_form_telescopes():
    _, soft, tau, log_weights, steps = fitted(0.05, causal=False)
    total = steps.sum(1) - soft.start(tau.states[:, 0])
    assert torch.allclose(log_weights.sum(1), total, atol=1e-6)
    assert torch.allclose(soft.total(tau), -soft.start(tau.states[:, 0]), atol=1e-9)


def test_of_a_worse_policy_it_is_what_that_policy_earns():
    best = lq.solve(lq.short(0.0))
    worse = replace(best, sigma=2 * best.sigma)
    _, soft, tau, _, steps = fitted(0.0, causal=False, policy=worse)
    earned = steps.sum(1) - soft.start(tau.states[:, 0])
    assert abs(earned.mean()) < 4 * earned.std() / N**0.5
    # and below log Z(s_0) by its nats to the optimum, which are T (2 - 1 - log 2) / 2 here
    exact = lq.log_partition_from(best, tau.states[:, 0])
    assert (exact - soft.start(tau.states[:, 0])).mean() > 10 * (1 - 0.6931) / 2 * 0.9


def test_the_gradient_runs_through_h():
    """Of l_t = -w c - h_w - log pi: moving every cost by one number moves no conditional law."""
    world = lq.short(0.0)
    model = EnergyModel(lq.QuadraticCost(world)).double()
    q = PolicyGenerator(model, policy=lq.LinearGaussianPolicy(lq.solve(world)))
    soft = SoftValue(model.layout, causal=False).double()
    torch.manual_seed(0)
    with torch.no_grad():
        states, actions, log_pi = q.simulate(N)
        tau = Trajectories(states, actions)
        projection = soft.project(tau, slice(0, N))
        rewards = model.stage_log_density(model.layout.unpack(states, actions))
        rewards = rewards - pad(log_pi, [0, 1])
    shift = torch.zeros((), dtype=torch.float64, requires_grad=True)
    moved = rewards + shift * pad(torch.ones_like(log_pi), [0, 1])
    steps = moved[:, :-1] + projection.steps(moved[: projection.n], torch.arange(N))
    (gradient,) = torch.autograd.grad(steps.sum(1).square().mean() + steps.sum(1).mean(), shift)
    assert abs(gradient) < 1e-4


@pytest.mark.parametrize("kind", ["independent", "full", "table", "other", "opaque", "certain"])
def test_expectations_of_the_next_state(kind):
    torch.manual_seed(0)
    covariance = torch.tensor([[0.3, 0.1], [0.1, 0.2]])
    start = dist.Normal(torch.zeros(2), 1.0).to_event(1)
    laws = {
        "independent": lambda s, a: dist.Normal(s, covariance.diagonal().sqrt()).to_event(1),
        "full": lambda s, a: dist.MultivariateNormal(s, covariance),
        "other": lambda s, a: dist.Laplace(s, (covariance.diagonal() / 2).sqrt()).to_event(1),
        "opaque": Opaque(lambda s, a: dist.MultivariateNormal(s, covariance).sample()),
        "certain": lambda s, a: s + a,
    }
    if kind == "table":
        table = torch.rand(3, 2, 3)
        table = table / table.sum(-1, keepdim=True)
        world = Dynamics.tabular(table, torch.ones(3) / 3)
        s, a = torch.tensor([0, 1, 2]), torch.tensor([1, 0, 1])
        found = expect(world, lambda s: (s.float() ** 2)[:, None], s, a)[:, 0]
        assert torch.allclose(found, table[s, a] @ torch.tensor([0.0, 1.0, 4.0]), atol=1e-5)
        return
    world = Dynamics(start, laws[kind], Space.real(2))
    s, a = torch.randn(2000, 2), torch.zeros(2000, 2)

    def h(s):
        return s[:, :1] ** 2 + s[:, :1] * s[:, 1:] + s[:, 1:] ** 3

    cross = 0.1 if kind in ("full", "opaque") else 0.0
    exact = s[:, 0] ** 2 + 0.3 + s[:, 0] * s[:, 1] + cross + s[:, 1] ** 3 + 3 * 0.2 * s[:, 1]
    if kind == "certain":
        exact = h(s)[:, 0]
    off = expect(world, h, s, a)[:, 0] - exact
    if kind in ("other", "opaque"):
        assert abs(off.mean()) < 4 * off.std() / 2000**0.5
    else:
        assert off.abs().max() < 1e-4
