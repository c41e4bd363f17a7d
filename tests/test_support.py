import math
from math import inf

import programs
import pyro
import pyro.distributions as dist
import pytest
import torch
from oracle import compiled, double
from programs_with_parameters import VALID
from pyro.distributions import constraints
from torch import nn

from ebm_pp import EnergyModel, ProgramError
from ebm_pp.circle import wrap
from ebm_pp.support import plain

TRANSFORMED = [*programs.SUPPORTS, *programs.IMPROPER, *programs.UNKNOWN_TO_PYRO]
TRANSFORMED += ["plates_nested", "plate_of_simplices", "circle_vector_in_plate", "many_supports"]


@pytest.mark.parametrize("name", TRANSFORMED)
def test_round_trip(name):
    with double():
        model = compiled(VALID[name], batching="loop").double()
        z = torch.randn(20, model.dim)
        x, forward = model.constrain(z)
        again, backward = model.unconstrain(x)
    assert forward.shape == backward.shape == (20,)
    assert {k: tuple(v.shape[1:]) for k, v in x.items()} == {
        k: site.shape for k, site in model.sites.items()
    }
    z = torch.where(model.circular, wrap(z), z)
    torch.testing.assert_close(again, z, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(backward, -forward, rtol=1e-8, atol=1e-8)
    model.check(x)


def coordinates(site, value):
    """The numbers of one draw that the reference measure counts."""
    kind = type(site.support)
    if kind is type(constraints.simplex):
        return value[..., :-1].flatten()
    if kind in (type(constraints.lower_cholesky), type(constraints.positive_definite)):
        return value[torch.tril_indices(*value.shape).unbind()]
    if kind in (type(constraints.corr_cholesky), type(constraints.corr_matrix)):
        return value[torch.tril_indices(*value.shape, offset=-1).unbind()]
    return value.flatten()


@pytest.mark.parametrize("name", TRANSFORMED)
def test_log_jacobian_is_autograds(name):
    with double():
        model = compiled(VALID[name], batching="loop").double()
        z = torch.randn(model.dim)

        def flat(z):
            x = model.constrain(z[None])[0]
            return torch.cat([coordinates(s, x[k][0]) for k, s in model.sites.items()])

        jacobian = torch.autograd.functional.jacobian(flat, z)
        assert jacobian.shape == (model.dim, model.dim)
        expected = torch.linalg.slogdet(jacobian).logabsdet
        torch.testing.assert_close(model.constrain(z[None])[1][0], expected, rtol=1e-8, atol=1e-8)


def test_small_parts_of_a_simplex_survive_single_precision():
    model = compiled(VALID["improper_simplex"])
    x = torch.tensor([[0.6, 0.4, 1e-9], [1e-9, 1.0, 1e-12]])
    z, _ = model.unconstrain({"x": x})
    exact = torch.tensor([0.6, 0.4]).log() - torch.tensor([0.4, 1e-9]).log()
    torch.testing.assert_close(z[0], exact + torch.tensor([2.0, 1.0]).log(), rtol=1e-5, atol=0)
    torch.testing.assert_close(model.constrain(z)[0]["x"], x, rtol=1e-5, atol=1e-12)


# The true support ------------------------------------------------------------------------------
def moved(base, *parts):
    return dist.TransformedDistribution(base, list(parts))


AFFINE, T = torch.distributions.transforms.AffineTransform, torch.distributions.transforms
IMAGES = {
    "3 - Exponential": (lambda: moved(dist.Exponential(1.0), AFFINE(3.0, -1.0)), (-inf, 3.0)),
    "Exponential + .5": (lambda: moved(dist.Exponential(1.0), AFFINE(0.5, 1.0)), (0.5, inf)),
    "Gamma - 2": (lambda: moved(dist.Gamma(2.0, 1.0), AFFINE(-2.0, 3.0)), (-2.0, inf)),
    "2.5 - HalfNormal": (lambda: moved(dist.HalfNormal(1.0), AFFINE(2.5, -1.0)), (-inf, 2.5)),
    "HalfCauchy * 2": (lambda: moved(dist.HalfCauchy(1.0), AFFINE(0.0, 2.0)), (0.0, inf)),
    "- LogNormal": (lambda: moved(dist.LogNormal(0.0, 1.0), AFFINE(0.0, -1.0)), (-inf, 0.0)),
    "5 Beta - 2.5": (lambda: moved(dist.Beta(2.0, 2.0), AFFINE(-2.5, 5.0)), (-2.5, 2.5)),
    "1 - 2 Uniform": (lambda: moved(dist.Uniform(0.0, 1.0), AFFINE(1.0, -2.0)), (-1.0, 1.0)),
    "Pareto - 1": (lambda: moved(dist.Pareto(1.0, 3.0), AFFINE(-1.0, 1.0)), (0.0, inf)),
    "exp Uniform": (lambda: moved(dist.Uniform(0.0, 1.0), T.ExpTransform()), (1.0, math.e)),
    "exp Exponential": (lambda: moved(dist.Exponential(1.0), T.ExpTransform()), (1.0, inf)),
    "log Uniform": (lambda: moved(dist.Uniform(1.0, 2.0), T.ExpTransform().inv),
                    (0.0, math.log(2))),
    "sigmoid Normal": (lambda: moved(dist.Normal(0.0, 1.0), T.SigmoidTransform()), (0.0, 1.0)),
    "scaled sigmoid": (lambda: moved(dist.Normal(0.0, 1.0), T.SigmoidTransform(),
                                     AFFINE(0.5, 2.5)), (0.5, 3.0)),
    "composed": (lambda: moved(dist.Normal(0.0, 1.0), T.ComposeTransform(
        [T.ExpTransform(), AFFINE(1.0, -1.0)])), (-inf, 1.0)),
    "tanh Normal": (lambda: moved(dist.Normal(0.0, 1.0), T.TanhTransform()), (-1.0, 1.0)),
    "1 / Gamma": (lambda: moved(dist.Gamma(2.0, 1.0), T.PowerTransform(torch.tensor(-1.0))),
                  (0.0, inf)),
    "Normal moved": (lambda: moved(dist.Normal(0.0, 1.0), AFFINE(3.0, -2.0)), (-inf, inf)),
    "twice": (lambda: moved(moved(dist.Exponential(1.0), AFFINE(3.0, -1.0)), AFFINE(1.0, -1.0)),
              (-2.0, inf)),
    "to_event": (lambda: moved(dist.Exponential(torch.ones(3)), AFFINE(3.0, -1.0)).to_event(1),
                 (-inf, 3.0)),
    "ends of each": (lambda: moved(dist.Exponential(torch.ones(2)), AFFINE(
        torch.tensor([1.0, 2.0]), -1.0)).to_event(1), (-inf, (1.0, 2.0))),
    "expand": (lambda: moved(dist.Exponential(1.0), AFFINE(3.0, -1.0)).expand((2,)).to_event(1),
               (-inf, 3.0)),
    "mask": (lambda: moved(dist.Exponential(1.0), AFFINE(3.0, -1.0)).mask(True), (-inf, 3.0)),
    "mixture": (lambda: dist.MixtureSameFamily(
        dist.Categorical(torch.ones(2)), moved(dist.Exponential(torch.ones(2)),
                                               AFFINE(3.0, -1.0))), (-inf, 3.0)),
    "HalfNormal itself": (lambda: dist.HalfNormal(1.0), (0.0, inf)),
    "Uniform itself": (lambda: dist.Uniform(-1.0, 2.0), (-1.0, 2.0)),
    "Weibull itself": (lambda: dist.Weibull(1.0, 2.0), (0.0, inf)),
    "Kumaraswamy itself": (lambda: dist.Kumaraswamy(2.0, 2.0), (0.0, 1.0)),
}  # fmt: skip


@pytest.mark.parametrize("name", IMAGES)
def test_the_support_is_where_the_draws_are(name):
    make, (low, high) = IMAGES[name]
    torch.manual_seed(0)

    def program():
        x = pyro.sample("x", make())
        pyro.factor("f", -0.1 * x.sum())

    model = EnergyModel(program)
    support = plain(model.sites["x"].support)
    for end, bound in ((low, "lower_bound"), (high, "upper_bound")):
        got = getattr(support, bound, -inf if bound == "lower_bound" else inf)
        torch.testing.assert_close(torch.as_tensor(got) + torch.zeros(()),
                                   torch.as_tensor(end) + torch.zeros(()))  # fmt: skip
    z = 3 * torch.randn(2000, model.dim)
    x, log_jacobian = model.constrain(z)
    assert model.inside(x).float().mean() > 0.98
    assert model.log_density(x)[model.inside(x)].isfinite().float().mean() > 0.99
    draws = make().sample((2000,))
    inside = model.inside({"x": draws}).float().mean()
    assert inside > 0.99
    again, _ = model.unconstrain(x)
    close = (again - z).abs() < 1e-2
    assert close.float().mean() > 0.95
    if model.dim == 1:  # the base measure integrates to one in z, whatever its ends
        grid = torch.linspace(-30, 30, 60_001, dtype=torch.float64)
        model = model.double()
        x, log_jacobian = model.constrain(grid[:, None])
        kept = model.inside(x)
        log_p = (model.log_base({"x": x["x"][kept]}) + log_jacobian[kept]).exp().sum() * 1e-3
        assert log_p.item() == pytest.approx(1.0, abs=5e-3)


LEARNED = {
    "Uniform": lambda end: dist.Uniform(0.0, end),
    "Pareto": lambda end: dist.Pareto(end, 3.0),
    "shifted": lambda end: moved(dist.Exponential(1.0), AFFINE(end, 1.0)),
    "turned": lambda end: moved(dist.HalfNormal(1.0), AFFINE(end, -1.0)),
    "scaled": lambda end: moved(dist.Uniform(0.0, 1.0), AFFINE(0.0, end)),
    "exp of scaled": lambda end: moved(dist.Uniform(0.0, 1.0), AFFINE(0.0, end), T.ExpTransform()),
    "in an event": lambda end: moved(dist.Exponential(torch.ones(2)), AFFINE(end, 1.0)).to_event(
        1
    ),
}


@pytest.mark.parametrize("name", LEARNED)
def test_an_end_that_is_learned_is_refused(name):
    class Program(nn.Module):
        def __init__(self):
            super().__init__()
            self.end = nn.Parameter(torch.tensor(1.5))

        def forward(self):
            pyro.factor("f", -pyro.sample("x", LEARNED[name](self.end)).sum())

    with pytest.raises(ProgramError, match="depends on a parameter; expected fixed bounds"):
        EnergyModel(Program())


@pytest.mark.parametrize("name", LEARNED)
def test_an_end_that_is_kept_is_not(name):
    class Program(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("end", torch.tensor(1.5))
            self.w = nn.Parameter(torch.tensor(0.1))

        def forward(self):
            pyro.factor("f", -self.w * pyro.sample("x", LEARNED[name](self.end)).sum())

    assert EnergyModel(Program()).dim >= 1


def test_a_real_base_with_a_learned_place_is_still_real():
    class Program(nn.Module):
        def __init__(self):
            super().__init__()
            self.loc = nn.Parameter(torch.tensor(1.5))

        def forward(self):
            x = pyro.sample("x", moved(dist.Normal(0.0, 1.0), AFFINE(self.loc, 2.0)))
            pyro.factor("f", -0.1 * x**2)

    assert isinstance(EnergyModel(Program()).sites["x"].support, type(dist.constraints.real))
