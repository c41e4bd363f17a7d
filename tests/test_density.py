import copy
import dataclasses
import math
import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from oracle import by_trace, compiled, double, inside, load_parameters
from programs_invalid import INVALID
from programs_with_parameters import VALID
from pyro import poutine
from pyro.infer.autoguide import init_to_value
from pyro.infer.mcmc.util import initialize_model

from ebm_pp.density import EnergyModel
from ebm_pp.errors import ProgramError


def test_there_are_many_programs():
    assert len(VALID) >= 40
    assert len(INVALID) >= 25


@pytest.mark.parametrize("name", VALID)
def test_valid_program_equals_a_loop(name):
    entry = VALID[name]
    with double():
        model = compiled(entry).double()
        assert model.batching == entry.batching
        x = inside(model, 3)
        expected = by_trace(model, x)
        terms = model.terms(x)
        assert list(terms) == list(expected)
        for key, term in terms.items():
            assert term.shape == (3,)
            torch.testing.assert_close(term, expected[key], rtol=1e-9, atol=1e-9)
        total = sum(expected.values())
        base = sum(expected[site] for site in model.sites)
        torch.testing.assert_close(model.log_density(x), total, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(model.log_base(x), base, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(model.energy(x), base - total, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", INVALID)
def test_invalid_program_is_refused(name):
    entry = INVALID[name]
    with pytest.raises(ProgramError) as caught:
        EnergyModel(entry.make(), *entry.args)
    for phrase in entry.phrases:
        assert phrase in str(caught.value)


@pytest.mark.parametrize("name", [name for name in VALID if VALID[name].pyro_knows])
def test_potential_is_pyros(name):
    entry = VALID[name]
    with double(), pyro.get_param_store().scope(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pyro's own, about plates
        model = compiled(entry, batching="loop").double()
        load_parameters(model)
        z = torch.randn(2, model.dim)
        x, log_jacobian = model.constrain(z)
        _, potential, transforms, _ = initialize_model(
            model.program,
            model.args,
            model.kwargs,
            max_plate_nesting=2,
            init_strategy=init_to_value(values={k: v[0].detach() for k, v in x.items()}),
        )
        ours = -(model.log_density(x) + log_jacobian)
        for i in range(2):
            free = {site: transforms[site](x[site][i]) for site in model.sites}
            theirs = potential({k: v.detach() for k, v in free.items()}).detach()
            torch.testing.assert_close(ours[i].detach(), theirs, rtol=1e-6, atol=1e-6)


GRADIENTS = ["many_supports", "Network", "PyroNetwork", "param_statements", "funnel", "Recurrent"]


@pytest.mark.parametrize("name", GRADIENTS)
def test_gradients_are_those_of_a_loop(name):
    with double():
        model = compiled(VALID[name]).double()
        loop = copy.deepcopy(model)
        loop._compiled = dataclasses.replace(loop._compiled, batching="loop")
        results = []
        for candidate in (model, loop):
            torch.manual_seed(1)
            x = {k: v.requires_grad_() for k, v in inside(candidate, 3).items()}
            inputs = [*x.values(), *candidate.parameters()]
            out = (candidate.log_density(x) * torch.tensor([1.0, -2.0, 0.5])).sum()
            results.append(torch.autograd.grad(out, inputs))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-10)


def test_signs():
    def program():
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        pyro.factor("reward", 3.0 * x)
        pyro.sample("y", dist.Normal(x, 1.0), obs=torch.tensor(2.0))

    model, x = EnergyModel(program), {"x": torch.tensor([0.0, 1.0])}
    normal = torch.distributions.Normal(0.0, 1.0)
    seen = normal.log_prob(2.0 - x["x"])
    terms = model.terms(x)
    torch.testing.assert_close(terms["reward"], 3 * x["x"])
    torch.testing.assert_close(terms["x"], normal.log_prob(x["x"]))
    torch.testing.assert_close(terms["y"], seen)
    torch.testing.assert_close(model.energy(x), -3 * x["x"] - seen)
    torch.testing.assert_close(model.log_base(x), normal.log_prob(x["x"]))
    torch.testing.assert_close(model.log_density(x), model.log_base(x) - model.energy(x))


def test_without_factors_the_energy_is_zero():
    model = compiled(VALID["no_factor"])
    assert model.energy(model.sample_base(4)).tolist() == [0.0] * 4


# --- Pyro around the model --------------------------------------------------------------------


def test_outer_handlers_see_and_change_nothing():
    model = compiled(VALID["plate_vectorised"])
    x = inside(model, 3)
    expected = model.log_density(x)
    with pyro.plate("outer", 7), poutine.scale(scale=3.0), poutine.trace() as outer:
        torch.testing.assert_close(model.log_density(x), expected)
    assert not outer.trace.nodes


def test_validation_is_put_back():
    model = compiled(VALID["real"])
    for state in (True, False):
        with pyro.validation_enabled(state):
            model.log_density({"x": torch.zeros(2)})
            assert dist.is_validation_enabled() is state


def test_a_program_can_train_a_guide_that_uses_the_model():
    # Pyro's SVI asks parameters for their unconstrained form after the model has run.
    model = compiled(VALID["PyroNetwork"])

    def target():
        x = pyro.sample("x", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.factor("e", -model.energy({"x": x[None]})[0])

    pyro.clear_param_store()
    guide = pyro.infer.autoguide.AutoNormal(target)
    svi = pyro.infer.SVI(target, guide, pyro.optim.Adam({"lr": 0.01}), pyro.infer.Trace_ELBO())
    assert all(math.isfinite(svi.step()) for _ in range(2))
    pyro.clear_param_store()
