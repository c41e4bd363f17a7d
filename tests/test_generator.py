import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from generators import GENERATORS, ON_A_GRID, PROGRAMS, disturb, model_of
from torch import nn

from ebm_pp import Circle, EnergyModel
from ebm_pp.errors import DataError, GeneratorError
from ebm_pp.generator import FlowGenerator, Generator

F64 = torch.float64


def make(generator, model):
    try:
        q = GENERATORS[generator](model).double()
    except GeneratorError as error:
        pytest.skip(str(error))
    return disturb(q, 0.1)


def unconstrained_grid(model):
    """Points z of the unconstrained coordinates and the volume each stands for.

    Even on the circle; z = sinh(u) on the line, which reaches out to 200 for heavy tails.
    """
    n = 4000 if model.dim == 1 else 240
    axes, volumes = [], []
    for angle in model.circular:
        reach = math.pi if angle else 6.0
        step = 2 * reach / n
        u = -reach + step * (torch.arange(n, dtype=F64) + 0.5)
        axes.append(u if angle else u.sinh())
        volumes.append(torch.full_like(u, step) if angle else step * u.cosh())
    z, volume = (torch.cartesian_prod(*parts).reshape(-1, model.dim) for parts in (axes, volumes))
    return z, volume.prod(-1)


def edges(angle):
    """Some edges of the grid's cells along one coordinate."""
    if angle:
        return torch.linspace(-0.6, 0.6, 7, dtype=F64) * math.pi
    return torch.linspace(-1.5, 1.5, 7, dtype=F64).sinh()


def density_of_z(q, model, z):
    """q as a density of the unconstrained coordinates."""
    x, log_jacobian = model.constrain(z)
    return (q.log_prob(x) + log_jacobian).exp()


# What every generator must do ------------------------------------------------------------------
@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize("generator", GENERATORS)
@torch.no_grad()
def test_three_names(generator, program):
    model = model_of(program)
    q = make(generator, model)
    assert isinstance(q, Generator)
    assert isinstance(q.has_rsample, bool)
    x, log_q = q.rsample_and_log_prob(200)
    assert x.keys() == model.sites.keys()
    for name, value in model.check(x).items():  # inside the supports, right shapes
        assert value.shape == (200, *model.sites[name].shape)
    assert log_q.shape == (200,)
    assert log_q.dtype == F64
    scored = q.log_prob(x)
    # A bounded site's last digits are lost in a far tail: |z| = 20 is 2e-9 from its end.
    near = model.unconstrain(x)[0].abs().amax(-1) < 10
    assert near.double().mean() > 0.5
    torch.testing.assert_close(scored[near], log_q[near], rtol=0, atol=1e-7)
    few = {name: value[:7] for name, value in x.items()}
    torch.testing.assert_close(q.log_prob(few), scored[:7], rtol=0, atol=1e-8)
    other, _ = q.rsample_and_log_prob(3)
    assert not any(torch.equal(other[name], x[name][:3]) for name in x)  # it is random


@pytest.mark.parametrize("program", ON_A_GRID)
@pytest.mark.parametrize("generator", GENERATORS)
@torch.no_grad()
def test_density_integrates_to_one(generator, program):
    model = model_of(program)
    q = make(generator, model)
    z, volume = unconstrained_grid(model)
    # Splines have kinks in their slope, so the grid's error is not that of a smooth function.
    assert (density_of_z(q, model, z) @ volume).item() == pytest.approx(1.0, abs=5e-3)


@pytest.mark.parametrize("program", ON_A_GRID)
@pytest.mark.parametrize("generator", GENERATORS)
@torch.no_grad()
def test_draws_follow_the_density(generator, program):
    """Each coordinate's distribution function at a few edges of grid cells, and one joint mean."""
    model, n = model_of(program), 10_000
    q = make(generator, model)
    grid, volume = unconstrained_grid(model)
    mass = density_of_z(q, model, grid) * volume
    z, _ = model.unconstrain(q.rsample_and_log_prob(n)[0])
    for i, angle in enumerate(model.circular):
        for edge in edges(angle):
            expected = mass[grid[:, i] < edge].sum().item()
            got = (z[:, i] < edge).double().mean().item()
            error = math.sqrt(max(expected * (1 - expected), 1 / n) / n)
            # Some 300 comparisons: 4 standard errors, and the error of the grid.
            assert abs(got - expected) < 4 * error + 2e-3, (i, edge)
    wave, of_draws = torch.sin(grid.sum(-1)), torch.sin(z.sum(-1))
    error = of_draws.std().item() / math.sqrt(n)
    assert abs(of_draws.mean().item() - (mass @ wave).item()) < 4 * error + 2e-3


@pytest.mark.parametrize("program", ["line", "gust", "recipe"])
@pytest.mark.parametrize("generator", GENERATORS)
def test_gradient_along_a_direction(generator, program):
    """The gradient of the pathwise, or else the scored, loss against a difference quotient."""
    q = make(generator, model_of(program))
    parameters = list(q.parameters())
    # The degrees of freedom are left alone: a gamma draw at a fixed seed jumps with them. They
    # are many, else draws lie so far out that the quotient is lost to rounding.
    names = [name for name, _ in q.named_parameters()]
    if "raw_df" in names:
        q.raw_df.data.fill_(0.4)
    direction = [
        torch.randn_like(parameter) * (name != "raw_df")
        for name, parameter in zip(names, parameters, strict=True)
    ]
    rows, _ = q.rsample_and_log_prob(50)
    rows = {name: value.detach() for name, value in rows.items()}

    def loss():
        if not q.has_rsample:
            return q.log_prob(rows).mean()
        torch.manual_seed(3)
        x, log_q = q.rsample_and_log_prob(50)
        return log_q.mean() + sum(torch.sin(value).mean() for value in x.values())

    gradient = torch.autograd.grad(loss(), parameters, allow_unused=True)
    slope = sum((g * v).sum() for g, v in zip(gradient, direction, strict=True) if g is not None)
    values, step = [], 1e-8  # so small that hardly a kink of a ReLU lies in between
    for sign in (1, -2):  # to + step, then to - step
        with torch.no_grad():
            for parameter, v in zip(parameters, direction, strict=True):
                parameter.add_(sign * step * v)
            values.append(loss().item())
    assert slope.item() == pytest.approx((values[0] - values[1]) / (2 * step), rel=1e-4, abs=1e-6)
    assert abs(slope.item()) > 1e-4


@pytest.mark.parametrize("generator", GENERATORS)
def test_learns_by_its_log_prob(generator):
    model = model_of("plane")
    q = make(generator, model)
    data = {"x": model.sample_base(200)["x"] + 2.0}
    optimiser = torch.optim.Adam(q.parameters(), lr=0.05)
    before = q.log_prob(data).mean().item()
    for _ in range(15):
        optimiser.zero_grad()
        (-q.log_prob(data).mean()).backward()
        optimiser.step()
    assert q.log_prob(data).mean().item() > before + 0.1


def test_what_is_not_a_generator():
    assert not isinstance(dist.Normal(0.0, 1.0), Generator)
    assert not isinstance(nn.Linear(1, 1), Generator)


# Rounding at an edge ---------------------------------------------------------------------------
def unit_interval(scale):
    """A flow over (0, 1)^2 and an angle, of a given scale, in double precision."""

    def declared():
        pyro.sample("x", dist.Uniform(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("a", Circle())

    return FlowGenerator(EnergyModel(declared).double(), scale=scale)


@pytest.mark.parametrize(("scale", "least"), [(0.1, 1e-4), (1.0, 1e-3), (5.0, 1e-3)])
def test_a_draw_that_rounding_moved_has_the_density_of_where_it_is(scale, least):
    """From a thousandth of a unit, or of the flow's scale; either way."""
    flow = unit_interval(scale)
    assert flow.scale[:2].tolist() == [scale, scale]
    z = scale * torch.randn(4, 3, dtype=torch.float64)
    x, _ = flow.coordinates.constrain(z)
    drawn = torch.arange(4.0, dtype=torch.float64)
    there = flow.log_prob(x)
    for sign in (1.0, -1.0):
        for off, moved in ((0.99, False), (1.01, True)):
            shifted = z.clone()
            shifted[2, 1] += sign * off * least
            shifted[:, 2] += 1.0  # an angle does not count
            expected = drawn.clone()
            if moved:
                expected[2] = there[2]
            torch.testing.assert_close(flow._as_rounded(x, shifted, drawn), expected)
    edge = {"x": x["x"].clone().index_fill_(0, torch.tensor([1]), 1.0), "a": x["a"]}
    assert torch.equal(flow._as_rounded(edge, z, drawn), drawn)  # nothing accepts it


def test_a_flow_has_at_most_1000_layers_and_a_million_units():
    model = EnergyModel(lambda: pyro.sample("x", dist.Normal(0.0, 1.0)))
    for settings, words in (
        ({"affine": 1001}, "at most 1000"), ({"splines": 1001}, "at most 1000"),
        ({"bins": 10**6 + 1}, r"at most 1e\+06"), ({"hidden": (10**6 + 1,)}, r"at most 1e\+06"),
    ):  # fmt: skip
        with pytest.raises(DataError, match=words):
            FlowGenerator(model, **settings)
