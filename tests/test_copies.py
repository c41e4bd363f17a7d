"""Copies and files of generators hold what is theirs, and no model."""

import copy
import io

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

from ebm_pp import Dynamics, EnergyModel, FlowGenerator, PolicyGenerator, Space, tilt, trajectory

WIDE = 300  # 90,000 parameters, ten times a flow's


def network():
    return nn.Sequential(nn.Linear(2, WIDE), nn.Tanh(), nn.Linear(WIDE, WIDE), nn.Linear(WIDE, 1))


class Box(nn.Module):
    def __init__(self):
        super().__init__()
        self.energy = network()

    def forward(self):
        x = pyro.sample("x", dist.Uniform(torch.zeros(2), 3.0).to_event(1))
        pyro.factor("energy", -self.energy(x).squeeze(-1))


def still(states, actions):
    return states


class Path(nn.Module):
    def __init__(self):
        super().__init__()
        start = dist.Normal(torch.zeros(2), 1.0).to_event(1)
        self.energy, self.dynamics = network(), Dynamics(start, still, Space.real(2))

    def forward(self):
        tau = trajectory(self.dynamics, 3)
        with pyro.plate("time", 3):
            pyro.factor("cost", self.energy(tau.states[:-1]).squeeze(-1))


def flow_of(model):
    return FlowGenerator(model, model.sample_base(100), hidden=(16, 16), bins=4)


def policy_of(model):
    return PolicyGenerator(model, hidden=(16, 16))


def tilted(model):
    return tilt(model.program, copy.deepcopy(flow_of(model))).flow


KINDS = {"flow": (Box, flow_of), "policy": (Path, policy_of), "tilt": (Box, tilted)}


def saved(thing):
    file = io.BytesIO()
    torch.save(thing, file)
    return file


@pytest.mark.parametrize("kind", KINDS)
def test_a_generator_takes_no_model_into_its_file(kind):
    program, make = KINDS[kind]
    model = EnergyModel(program())
    generator = make(model)
    file = saved(generator)
    own = len(saved(generator.state_dict()).getvalue())
    assert len(saved(model.program.energy).getvalue()) > 4 * own
    assert len(file.getvalue()) < own + 60_000  # bytes: code of layers, supports, no network
    file.seek(0)
    again = torch.load(file, weights_only=False)
    x, log_q = generator.rsample_and_log_prob(10)
    torch.testing.assert_close(again.log_prob(x), log_q, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_a_copy_of_a_generator_is_its_own_and_stays_right_when_either_moves(kind):
    program, make = KINDS[kind]
    model = EnergyModel(program())
    generator = make(model)
    twin = copy.deepcopy(generator)
    theirs = {id(p) for p in [*model.parameters(), *generator.parameters()]}
    assert not theirs & {id(p) for p in twin.parameters()}
    x, log_q = generator.rsample_and_log_prob(10)
    x, log_q = {name: value.detach() for name, value in x.items()}, log_q.detach()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    torch.testing.assert_close(twin.log_prob(x), log_q, rtol=1e-4, atol=1e-4)
    model.double()
    torch.testing.assert_close(twin.log_prob(x), log_q, rtol=1e-4, atol=1e-4)
    assert twin.rsample_and_log_prob(3)[1].dtype == torch.float32


@pytest.mark.parametrize("kind", KINDS)
def test_a_copy_moves_to_double_without_the_model(kind):
    program, make = KINDS[kind]
    generator = make(EnergyModel(program()))
    twin = copy.deepcopy(generator).double()
    x, log_q = twin.rsample_and_log_prob(10)
    assert {value.dtype for value in [*x.values(), log_q]} == {torch.float64}
    torch.testing.assert_close(twin.log_prob(x), log_q, rtol=1e-6, atol=1e-6)
    again = generator.log_prob(x)
    assert again.dtype == torch.float32
    torch.testing.assert_close(again.double(), log_q, rtol=1e-3, atol=1e-3)
