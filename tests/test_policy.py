"""Policies: densities, gradients of both kinds, and what an opaque step does to them."""

import math
from dataclasses import replace

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn
from torch.distributions import Normal

from ebm_pp import (
    Dynamics,
    EnergyModel,
    FitConfig,
    Opaque,
    PolicyGenerator,
    Space,
    fit,
    trajectory,
)
from ebm_pp.errors import GeneratorError
from ebm_pp.losses import clipped_score, likelihood
from ebm_pp.policy import CensoredNormal, SquashedNormal
from ebm_pp.policy_steps import soft_advantages
from models import linear_quadratic as lq

BOX = Space.box(torch.tensor([-2.0, 0.0]), torch.tensor([2.0, 1.0]))
EDGES = Space.box(-2.0, 2.0, edges=True)


def grid(low, high, n=4001):
    edges = torch.linspace(low, high, n, dtype=torch.float64)
    return (edges[1:] + edges[:-1]) / 2, (high - low) / (n - 1)


@pytest.mark.parametrize(("loc", "scale"), [(0.3, 0.5), (-2.0, 1.2)])
def test_a_squashed_density_integrates_to_one(loc, scale):
    one = Space.box(-2.0, 3.0)
    law = SquashedNormal(
        torch.tensor([loc], dtype=torch.float64), torch.tensor([scale], dtype=torch.float64), one
    )
    x, width = grid(-2.0, 3.0, 40_001)
    assert abs(law.log_prob(x[:, None]).exp().sum().item() * width - 1) < 1e-5
    assert law.log_prob(torch.tensor([[3.0]], dtype=torch.float64)) == -math.inf


def test_a_squashed_density_adds_up_over_coordinates():
    law = SquashedNormal(torch.zeros(5, 2), torch.ones(5, 2), BOX)
    value = law.rsample()
    parts = [
        SquashedNormal(
            torch.zeros(5, 1), torch.ones(5, 1), Space.box(BOX.low[i : i + 1], BOX.high[i : i + 1])
        ).log_prob(value[:, i : i + 1])
        for i in range(2)
    ]
    assert torch.allclose(law.log_prob(value), parts[0] + parts[1], atol=1e-5)


def test_a_censored_law_is_a_density_and_two_masses():
    law = CensoredNormal(torch.tensor([0.8]).double(), torch.tensor([1.5]).double(), EDGES)
    x, width = grid(-2.0, 2.0)
    inside = law.log_prob(x[:, None]).exp().sum().item() * width
    ends = law.log_prob(torch.tensor([[-2.0], [2.0]], dtype=torch.float64)).exp()
    assert abs(inside + ends.sum().item() - 1) < 1e-6
    torch.manual_seed(0)
    draws = torch.stack([law.sample() for _ in range(4000)])
    share = (draws == 2.0).double().mean()
    assert abs(share - ends[1]) < 4 * (ends[1] * (1 - ends[1]) / 4000).sqrt()


class Effort(nn.Module):
    """A program of two states and one action in any space, for any world."""

    def __init__(self, world, horizon=3):
        super().__init__()
        self.world, self.horizon = world, horizon
        self.weight = nn.Parameter(torch.tensor(0.5))

    def forward(self):
        tau = trajectory(self.world, self.horizon)
        with pyro.plate("time", self.horizon):
            drift = tau.states[:-1, 0].square() + tau.actions.reshape(self.horizon, -1).sum(-1)
            pyro.factor("cost", -self.weight * drift)


START = dist.Normal(torch.zeros(2), 1.0).to_event(1)


@pytest.mark.parametrize("space", [Space.real(2), BOX, replace(EDGES), Space.discrete(3)], ids=str)
def test_log_q_of_draws_is_their_log_prob(space):
    def step(s, a):
        return 0.9 * s + 0.1 * a.reshape(len(s), -1).sum(-1, keepdim=True)

    model = EnergyModel(Effort(Dynamics(START, step, space)))
    q = PolicyGenerator(model)
    for p in q.parameters():
        nn.init.normal_(p, std=0.3)
    x, log_q = q.rsample_and_log_prob(200)
    model.check({name: value.detach() for name, value in x.items()})
    assert torch.allclose(log_q, q.log_prob(x), atol=1e-4)
    assert torch.allclose(log_q, q.step_log_prob(x).sum(1), atol=1e-4)
    assert q.has_rsample == (not space.n and not space.edges)


def test_an_opaque_step_makes_score_function_sites():
    world = Dynamics(START, lambda s, a: s + a, Space.real(2))
    hidden = replace(world, step=Opaque(world.advance, deterministic=True))
    open_, closed = (PolicyGenerator(EnergyModel(Effort(w))) for w in (world, hidden))
    assert open_.has_rsample
    assert not closed.has_rsample
    x, _ = closed.rsample_and_log_prob(4)
    assert not any(value.requires_grad for value in x.values())
    config = FitConfig.trajectories(3, generator_loss="reverse_kl", rounds=1, progress=False)
    with pytest.raises(GeneratorError, match="score_function"):
        fit(EnergyModel(Effort(hidden)), None, config=config)


# Gradients of KL(q || p_theta), at a policy away from the optimum -----------------------------


def linear_quadratic(noise, *, opaque):
    world = lq.short(noise)
    best = lq.solve(world)
    program = lq.QuadraticCost(world)
    if opaque:
        inner = program.dynamics
        program.dynamics = replace(inner, step=Opaque(inner.advance, deterministic=not noise))
    model = EnergyModel(program).double()
    policy = lq.LinearGaussianPolicy(replace(best, K=0.7 * best.K, sigma=1.3 * best.sigma))
    return model, PolicyGenerator(model, policy=policy)


def gradients(model, q, batches, size, *, pathwise, landing=False):
    """Gradients in K, k and root, one row per batch of draws."""
    rows = []
    parameters = list(q.policy.parameters())
    for _ in range(batches):
        states, actions, drawn = q.simulate(size, landing=landing)
        x = q.layout.unpack(states, actions)
        if pathwise:
            loss = -(model.log_density(x) - drawn.sum(1)).mean()
        else:
            x = {name: value.detach() for name, value in x.items()}
            with torch.no_grad():
                weights = model.step_log_density(x) - drawn
                baseline = weights.mean(0)
            advantages = soft_advantages(weights - baseline, decay=1.0)
            loss = q.layout.horizon * clipped_score(
                q.step_log_prob(x).flatten(), drawn.detach().flatten(), advantages.flatten()
            )
        rows.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters)]))
    return torch.stack(rows)


def largest_z(one, other):
    """How many standard errors two gradients are apart, at most, and either from zero."""
    error = (one.var(0) / len(one) + other.var(0) / len(other)).sqrt()
    moving = error > 1e-12
    apart, signal = (one.mean(0) - other.mean(0)) / error, one.mean(0) / error
    return apart[moving].abs().max(), signal[moving].abs().max()


@pytest.mark.parametrize("noise", [0.0, 0.05])
def test_pathwise_score_and_opaque_gradients_agree(noise):
    torch.manual_seed(0)
    known, q = linear_quadratic(noise, opaque=False)
    hidden, closed = linear_quadratic(noise, opaque=True)
    pathwise = gradients(known, q, 40, 500, pathwise=True)
    for found in (
        gradients(known, q, 40, 500, pathwise=True, landing=True),
        gradients(known, q, 40, 500, pathwise=False),
        gradients(hidden, closed, 40, 500, pathwise=False),
    ):
        apart, signal = largest_z(pathwise, found)
        assert apart < 5
        assert signal > 5, "nothing to compare"


def test_every_gradient_is_zero_at_the_optimum_without_noise():
    """MATH identity (i), with the score of log q dropped."""
    world = lq.short(0.0)
    model = EnergyModel(lq.QuadraticCost(world)).double()
    q = PolicyGenerator(model, policy=lq.LinearGaussianPolicy(lq.solve(world)))
    assert gradients(model, q, 3, 4, pathwise=True, landing=True).abs().max() < 1e-9
    assert gradients(model, q, 3, 4, pathwise=True).abs().max() > 1e-2


def test_clipped_score_is_the_score_gradient_and_clips():
    torch.manual_seed(0)
    log_pi = torch.randn(6, dtype=torch.float64, requires_grad=True)
    advantages = torch.randn(6, dtype=torch.float64)
    loss = clipped_score(log_pi, log_pi.detach(), advantages)
    (gradient,) = torch.autograd.grad(loss, log_pi)
    assert torch.allclose(gradient, -advantages / 6)
    far = log_pi.detach() - advantages.sign()  # pi has already moved e-fold the right way
    loss = clipped_score(log_pi, far, advantages)
    assert torch.autograd.grad(loss, log_pi)[0].abs().max() == 0
    wrong = log_pi.detach() + advantages.sign()
    assert torch.autograd.grad(clipped_score(log_pi, wrong, advantages), log_pi)[0].all()


def test_soft_advantages_are_discounted_sums():
    steps = torch.tensor([[1.0, 2.0, -3.0]])
    assert torch.allclose(soft_advantages(steps, 0.5), torch.tensor([[1.25, 0.5, -3.0]]))


def test_likelihood_is_the_difference_of_mean_costs():
    data, draws = torch.tensor([-1.0, -3.0]), torch.tensor([-5.0, -6.0, -7.0])
    assert likelihood(data, draws, 0.0) == pytest.approx(2.0 - 6.0)


def test_an_ended_trajectory_has_no_more_actions():
    """Alive is the last coordinate; the world ends where the first one passes 1."""

    def step(s, a):
        moved = s[:, :1] + a.abs()
        alive = s[:, 1:] * (moved < 1)
        return torch.cat([moved * alive, alive], -1)

    start = dist.Delta(torch.tensor([0.0, 1.0]), event_dim=1)
    world = Dynamics(start, step, Space.real(1), absorbing=True)
    model = EnergyModel(Effort(world, horizon=6))
    q = PolicyGenerator(model)
    torch.manual_seed(0)
    states, actions, log_pi = q.simulate(100)
    over = states[:, :-1, 1] == 0
    assert over.any()
    assert (actions[over] == 0).all()
    assert (log_pi[over] == 0).all()
    expected = Normal(0.0, 1.0).log_prob(actions[~over][:, 0])
    assert torch.allclose(log_pi[~over], expected, atol=1e-4)
    x = model.layout.unpack(states, actions)
    assert torch.allclose(q.step_log_prob(x), log_pi, atol=1e-5)
