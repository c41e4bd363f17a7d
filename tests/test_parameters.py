import copy
import pickle

import programs
import programs_with_parameters
import pyro
import pyro.distributions as dist
import pytest
import torch
from oracle import by_trace, compiled, double, inside
from programs_with_parameters import VALID

from ebm_pp.density import EnergyModel


@pytest.mark.parametrize("name", ["PyroNetwork", "param_statements", "network_as_argument"])
def test_instances_do_not_share_and_a_cleared_store_does_not_hurt(name):
    pyro.clear_param_store()
    pyro.param("mine", torch.tensor(3.0))
    one, other = compiled(VALID[name]), compiled(VALID[name])
    x = {"x": torch.randn(4, 2)}
    other.load_state_dict(one.state_dict())
    before = other.log_density(x)
    torch.testing.assert_close(one.log_density(x), before)
    with torch.no_grad():
        for p in one.parameters():
            p.add_(0.5)
    assert not torch.allclose(one.log_density(x), before)
    torch.testing.assert_close(other.log_density(x), before)
    assert list(pyro.get_param_store().keys()) == ["mine"]
    pyro.clear_param_store()
    torch.testing.assert_close(other.log_density(x), before)


def test_names_of_parameters():
    assert dict(compiled(VALID["param_statements"]).named_parameters()).keys() == {
        "param:w",
        "param:a%2Escale",
    }
    assert set(compiled(VALID["PyroNetwork"]).state_dict()) == {
        *(f"program.net.{i}.{kind}" for i in (0, 2) for kind in ("weight", "bias")),
        *(f"program.inner.{kind}" for kind in ("weight", "bias")),
        "program.loc",
        "program.scale_unconstrained",
        "program.shift_unconstrained",
    }


@pytest.mark.parametrize("name", ["PyroNetwork", "param_statements", "network_in_partial"])
def test_gradient_steps_move_every_parameter(name):
    model = compiled(VALID[name])
    x = {"x": torch.randn(8, 2)}
    optimiser = torch.optim.SGD(model.parameters(), 0.1)
    before = {k: v.clone() for k, v in model.named_parameters()}
    density = model.log_density(x)
    density.mean().backward()
    optimiser.step()
    # A constant of the energy has the gradient one; no parameter has none.
    assert all(not torch.equal(before[k], v) for k, v in model.named_parameters())
    assert not torch.allclose(model.log_density(x), density)


@pytest.mark.parametrize(
    "name",
    ["PyroNetwork", "param_statements", "network_in_partial", "many_supports", "Recurrent"],
)
def test_copies(name):
    model = compiled(VALID[name])
    x = inside(model, 4)
    before = model.log_density(x).detach()
    clones = [copy.deepcopy(model)]
    if name != "many_supports":
        clones.append(pickle.loads(pickle.dumps(model)))
    for clone in clones:
        assert not {id(p) for p in clone.parameters()} & {id(p) for p in model.parameters()}
        with torch.no_grad():
            for p in clone.parameters():
                p.add_(0.1)
        torch.testing.assert_close(model.log_density(x), before)
        if list(model.parameters()):
            assert not torch.allclose(clone.log_density(x), before)
        clone.load_state_dict(model.state_dict())
        torch.testing.assert_close(clone.log_density(x), before)
        torch.testing.assert_close(clone.constrain(clone.unconstrain(x)[0])[0], x)


@pytest.mark.parametrize("name", ["PyroNetwork", "interval", "observed", "param_statements"])
def test_double_is_exact_in_default_single(name):
    model = compiled(VALID[name]).double()
    assert model.dtype == torch.float64
    x = inside(model, 4)
    assert all(value.dtype == torch.float64 for value in x.values())
    result = model.log_density(x)
    assert result.dtype == torch.float64
    with double():
        torch.testing.assert_close(sum(by_trace(model, x).values()), result.detach())
    assert torch.get_default_dtype() == torch.float32
    assert next(iter(model.sample_base(3).values())).dtype == torch.float64


def test_bounds_follow_the_dtype():
    def program():
        pyro.sample("x", dist.Uniform(0.0, 0.3))

    model = EnergyModel(program).double()
    x, _ = model.constrain(torch.full((1, 1), 30.0, dtype=torch.float64))
    assert x["x"].item() <= 0.3
    assert torch.isfinite(model.log_density(x)).all()


def test_the_global_stream_is_left_alone():
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    EnergyModel(programs.many_supports)
    assert torch.equal(torch.rand(2), expected)


def test_random_starts_follow_the_users_seed():
    starts = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        starts.append(next(compiled(VALID["random_start"]).parameters()).detach())
    assert torch.equal(starts[0], starts[1])
    assert not torch.equal(starts[0], starts[2])


def test_compiling_leaves_parameters_as_they_are():
    network = programs_with_parameters.PyroNetwork()
    before = copy.deepcopy(network.state_dict())
    torch.testing.assert_close(EnergyModel(network).program.state_dict(), before, rtol=0, atol=0)
