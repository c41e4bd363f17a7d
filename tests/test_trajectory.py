"""Trajectory sites: two ways to declare, what each step costs, and what is refused."""

import copy

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

from ebm_pp import (
    Dynamics,
    EnergyModel,
    FlowGenerator,
    GeneratorError,
    Opaque,
    PolicyGenerator,
    ProgramError,
    Space,
    trajectory,
)

T = 4
A = torch.tensor([[1.0, 0.1], [0.0, 1.0]])
START = dist.Normal(torch.zeros(2), 1.0).to_event(1)


def noisy(states, actions):
    return dist.Normal(states @ A.T + 0.3 * actions, 0.2).to_event(1)


WORLD = Dynamics(START, noisy, Space.real(1))


class Packed(nn.Module):
    def __init__(self, world=WORLD):
        super().__init__()
        self.world, self.weight = world, nn.Parameter(torch.tensor([1.0, 0.5, 2.0]))

    def forward(self):
        tau = trajectory(self.world, T)
        with pyro.plate("time", T):
            pyro.factor("state", -self.weight[0] * tau.states[:-1, 0].square())
            pyro.factor("effort", -self.weight[1] * tau.actions[:, 0].square())
        pyro.factor("end", -self.weight[2] * tau.states[-1].square().sum())


class Unrolled(Packed):
    def forward(self):
        s = pyro.sample("s_0", self.world.start_site())
        for t in range(T):
            a = pyro.sample(f"a_{t}", self.world.control_site())
            pyro.factor(f"state_{t}", -self.weight[0] * s[0].square())
            pyro.factor(f"effort_{t}", -self.weight[1] * a[0].square())
            s = pyro.sample(f"s_{t + 1}", self.world.next_site(s, a))
        pyro.factor("end", -self.weight[2] * s.square().sum())


def draws(n=50):
    torch.manual_seed(0)
    states = torch.randn(n, T + 1, 2)
    return states, torch.randn(n, T, 1)


def direct_cost(states, actions):
    steps = states[:, :-1, 0].square() + 0.5 * actions[..., 0].square()
    return steps, 2 * states[:, -1].square().sum(-1)


@pytest.mark.parametrize("program", [Packed, Unrolled])
def test_costs_of_steps_are_the_programs(program):
    model = EnergyModel(program())
    states, actions = draws()
    x = model.layout.unpack(states, actions)
    steps, end = direct_cost(states, actions)
    stages = model.stage_log_density(x)
    assert torch.allclose(stages[:, :-1], -steps, atol=1e-5)
    assert torch.allclose(stages[:, -1], -end, atol=1e-5)
    assert torch.allclose(model.step_log_density(x)[:, -1], -steps[:, -1] - end, atol=1e-5)
    assert torch.allclose(model.log_density(x), -steps.sum(1) - end, atol=1e-5)
    assert torch.allclose(model.energy(x), steps.sum(1) + end, atol=1e-5)
    assert (model.log_base(x) == 0).all()


def test_packed_and_unrolled_give_one_log_weight():
    packed, unrolled = EnergyModel(Packed()), EnergyModel(Unrolled())
    q = PolicyGenerator(packed)
    nn.init.normal_(q.policy.linear.weight)
    same = PolicyGenerator(unrolled, policy=q.policy)
    x, log_q = q.rsample_and_log_prob(100)
    y = unrolled.layout.unpack(*packed.layout.pack(x))
    one = packed.log_density(x) - log_q
    other = unrolled.log_density(y) - same.log_prob(y)
    assert torch.allclose(one, other, atol=1e-4)
    z, again = same.rsample_and_log_prob(5)
    assert set(z) == set(unrolled.sites)
    assert torch.allclose(again, same.log_prob(z), atol=1e-5)


def test_the_loop_evaluates_the_same():
    model, loop = EnergyModel(Packed()), EnergyModel(Packed(), batching="loop")
    x = model.layout.unpack(*draws(5))
    assert torch.allclose(model.stage_log_density(x), loop.stage_log_density(x), atol=1e-6)


def test_dynamics_drop_out_by_name():
    """Another noise leaves log p~ and log q of the same rows alone."""
    other = Dynamics(START, lambda s, a: dist.Normal(s, 3.0).to_event(1), Space.real(1))
    one, two = EnergyModel(Packed()), EnergyModel(Packed(other))
    x = one.layout.unpack(*draws())
    q = PolicyGenerator(one)
    assert torch.equal(one.log_density(x), two.log_density(x))
    assert torch.equal(q.log_prob(x), PolicyGenerator(two, policy=q.policy).log_prob(x))


def test_dynamics_know_what_they_are():
    still = Dynamics(START, lambda s, a: s, Space.real(1))
    table = torch.eye(3)[torch.tensor([[1, 2], [2, 0], [0, 1]])]
    tabular = Dynamics.tabular(table, torch.full((3,), 1 / 3))
    assert still.deterministic
    assert still.differentiable
    assert not WORLD.deterministic
    assert WORLD.differentiable
    assert tabular.deterministic
    assert not tabular.differentiable
    assert not Dynamics.tabular(0.9 * table + 0.1 / 3, torch.full((3,), 1 / 3)).deterministic
    box = Dynamics(START, Opaque(lambda s, a: s, deterministic=True), Space.box(-1.0, 1.0))
    assert box.opaque
    assert box.deterministic
    assert not box.differentiable
    assert copy.deepcopy(box) is box
    assert tabular.advance(torch.tensor([0, 2]), torch.tensor([1, 0])).tolist() == [2, 0]


def test_draws_follow_the_dynamics():
    still = Dynamics(START, lambda s, a: s @ A.T + 0.3 * a, Space.real(1))
    model = EnergyModel(Packed(still))
    states, actions, _ = PolicyGenerator(model).simulate(20)
    assert torch.allclose(states[:, 1:], states[:, :-1] @ A.T + 0.3 * actions, atol=1e-6)
    model.check(model.layout.unpack(states.detach(), actions.detach()))


def test_a_model_of_trajectories_moves_to_double():
    model = EnergyModel(Packed()).double()
    assert model.layout.horizon == T
    states, actions = draws()
    x = model.check(model.layout.unpack(states, actions))
    assert model.log_density(x).dtype == torch.float64


def mixed():
    trajectory(WORLD, T)
    pyro.sample("other", dist.Normal(0.0, 1.0))


def out_of_order():
    s = pyro.sample("s_0", WORLD.start_site())
    pyro.sample("s_1", WORLD.next_site(s, torch.zeros(1)))
    pyro.sample("a_0", WORLD.control_site())


def two_worlds():
    other = Dynamics(START, noisy, Space.real(1))
    s = pyro.sample("s_0", WORLD.start_site())
    a = pyro.sample("a_0", other.control_site())
    pyro.sample("s_1", WORLD.next_site(s, a))


@pytest.mark.parametrize(
    ("program", "phrases"),
    [
        (mixed, ["'other'", "beside the trajectory"]),
        (out_of_order, ["order", "start, control, next"]),
        (two_worlds, ["2 dynamics"]),
    ],
)
def test_programs_that_are_no_trajectory_are_refused(program, phrases):
    with pytest.raises(ProgramError) as error:
        EnergyModel(program)
    assert all(phrase in str(error.value) for phrase in phrases), error.value


def test_a_factor_without_its_plate_is_refused():
    def program():
        tau = trajectory(WORLD, T)
        pyro.factor("cost", -tau.actions[:, 0].square())

    with pytest.raises(ProgramError, match=r"expected one number per draw"):
        EnergyModel(program)


@pytest.mark.parametrize(
    ("make", "phrase"),
    [
        (lambda: Dynamics(dist.Normal(0.0, 1.0), noisy, Space.real(1)), "to_event"),
        (lambda: Dynamics(START, lambda s, a: s.sum(0), Space.real(1)), "leading n is lost"),
        (lambda: Dynamics.tabular(torch.ones(2, 2, 2), torch.ones(2) / 2), "rows summing to"),
        (lambda: Space.box(1.0, -1.0), "low < high"),
    ],
)
def test_worlds_that_can_not_be_are_refused(make, phrase):
    with pytest.raises(ProgramError, match=phrase):
        make()


def test_a_flow_refuses_trajectories_and_a_policy_other_programs():
    with pytest.raises(GeneratorError, match="PolicyGenerator"):
        FlowGenerator(EnergyModel(Packed()))
    with pytest.raises(GeneratorError, match="make no trajectory"):
        PolicyGenerator(EnergyModel(lambda: pyro.sample("x", dist.Normal(0.0, 1.0))))


def test_flat_sites_can_not_be_sampled():
    with pytest.raises(ProgramError, match="flat"):
        WORLD.control_site().sample()
    assert WORLD.start_site().sample().shape == (2,)
    assert WORLD.next_site(torch.zeros(2), torch.zeros(1)).sample().shape == (2,)
