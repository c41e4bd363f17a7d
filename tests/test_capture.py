import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from programs_with_parameters import VALID
from torch import nn

from ebm_pp import EnergyModel
from ebm_pp.capture import RESHAPES, capture
from models.network import Network
from models.recipe import Recipe, draws


def network(n=6, d=3):
    x = torch.randn(n, d, generator=torch.Generator().manual_seed(0))
    model = EnergyModel(Network(x, width=16, waves=4, wells=0))
    return model, {"x": x}


def test_a_network_becomes_plain_linear_layers():
    model, x = network()
    captured = capture(model, x)
    assert captured != model.log_density
    targets = [node.target for node in captured.graph.nodes if node.op == "call_function"]
    linear = [m for m in model.modules() if isinstance(m, nn.Linear) and m.bias is not None]
    assert targets.count(torch.ops.aten.addmm.default) == len(linear)
    assert not {torch.ops.aten.unsqueeze.default, torch.ops.aten._unsafe_view.default} & {*targets}
    assert torch.ops.aten.unsqueeze.default in RESHAPES


@pytest.mark.parametrize("name", [name for name in VALID if VALID[name].batching == "vmap"])
def test_every_program_keeps_its_numbers(name):
    case = VALID[name]
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = EnergyModel(case.make(), *case.args)
        if not model.proper:
            return
        x, others = model.sample_base(6), model.sample_base(6)
    torch.testing.assert_close(capture(model, x)(others), model.log_density(others))


def test_it_follows_the_parameters():
    torch.manual_seed(0)
    model = EnergyModel(Recipe())
    x = draws(50, seed=0)
    captured = capture(model, x)
    assert captured != model.log_density
    others = draws(50, seed=1)
    for _ in range(2):
        torch.testing.assert_close(captured(others), model.log_density(others))
        gradients = [
            torch.autograd.grad(density(others).square().sum(), [*model.parameters()])
            for density in (captured, model.log_density)
        ]
        for got, expected in zip(*gradients, strict=True):
            torch.testing.assert_close(got, expected)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 0.1 * torch.randn_like(parameter)


class Stepwise(torch.autograd.Function):
    """A function whose gradient is not that of the operations in it."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x):
        return x.round()

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, gradient):
        return gradient


def test_a_gradient_that_the_record_would_change_is_noticed():
    weight = nn.Parameter(torch.tensor(1.7))

    class Program(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = weight

        def forward(self):
            x = pyro.sample("x", dist.Normal(0.0, 1.0))
            pyro.factor("energy", -Stepwise.apply(self.weight * x))

    model = EnergyModel(Program())
    x = {"x": torch.linspace(-2, 2, 7)}
    if capture(model, x) == model.log_density:
        return
    captured = capture(model, x)
    got, expected = (
        torch.autograd.grad(density(x).sum(), [*model.parameters()])[0]
        for density in (captured, model.log_density)
    )
    torch.testing.assert_close(got, expected)


def test_a_program_that_runs_as_a_loop_is_left_alone():
    def program(weight):
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        pyro.factor("energy", -weight * x.square())

    model = EnergyModel(program, torch.tensor(2.0), batching="loop")
    assert capture(model, {"x": torch.randn(5)}) == model.log_density
