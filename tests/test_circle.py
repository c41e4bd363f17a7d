import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from oracle import compiled, double
from programs_with_parameters import VALID

from ebm_pp import FitConfig, ProgramError, fit, importance_sample, log_partition, resample
from ebm_pp.circle import Circle, wrap
from ebm_pp.density import EnergyModel


def test_wrap_is_exact_inside_and_lands_in_the_half_open_interval():
    edge = torch.tensor(math.pi)
    x = torch.tensor([0.0, -math.pi, 1.5, -3.0, 3.1415])
    assert torch.equal(wrap(x), x)
    for dtype in (torch.float32, torch.float64):
        many = torch.cat([torch.linspace(-50, 50, 20001), edge * torch.arange(-21, 22)]).to(dtype)
        near = torch.cat([torch.nextafter(many, many + 1), many, torch.nextafter(many, many - 1)])
        wrapped = wrap(near)
        pi = torch.tensor(math.pi, dtype=dtype)
        assert ((wrapped >= -pi) & (wrapped < pi)).all()
        torch.testing.assert_close(wrapped.cos(), near.cos(), rtol=0, atol=2e-5)


@pytest.mark.parametrize("name", ["von_mises", "circle", "torus", "mixture_of_angles"])
def test_no_seam(name):
    with double():
        model = compiled(VALID[name]).double()
        assert bool(model.circular.all())
        assert all(site.circular for site in model.sites.values())
        eps = 1e-6
        ends = torch.tensor([[math.pi - eps], [-math.pi + eps], [math.pi + eps], [7 * math.pi]])
        x, log_jacobian = model.constrain(ends.expand(4, model.dim))
        assert torch.equal(log_jacobian, torch.zeros(4))
        assert ((x["a"] >= -math.pi) & (x["a"] < math.pi)).all()
        density = model.log_density(x)
        assert (density - density[0]).abs().max() < 1e-4
        turned = {"a": x["a"] + 2 * math.pi}
        torch.testing.assert_close(model.log_density(turned), density, rtol=0, atol=1e-9)
        torch.testing.assert_close(*[model.unconstrain(y)[0] for y in (x, turned)])


def test_circle_distribution():
    fn = Circle().expand((3,)).to_event(1)
    draws = fn.sample((20000,))
    assert draws.shape == (20000, 3)
    assert fn.batch_shape == ()
    assert ((draws >= -math.pi) & (draws < math.pi)).all()
    assert draws.cos().mean(0).abs().max() < 0.02
    torch.testing.assert_close(
        fn.log_prob(draws[:2] + 100), torch.full((2,), -3 * math.log(2 * math.pi))
    )
    with pytest.raises(ValueError, match="circular"):
        Circle(validate_args=True).log_prob(torch.tensor(math.nan))


def test_angles_are_marked_in_order():
    def program():
        pyro.sample("p", dist.Dirichlet(torch.ones(3)))
        pyro.sample("a", Circle())
        pyro.sample("x", dist.Normal(0.0, 1.0))

    model = EnergyModel(program)
    assert model.circular.tolist() == [False, False, True, False]
    assert model.dim == 4
    assert list(model.sites) == ["p", "a", "x"]


# Other periods ---------------------------------------------------------------------------------
PERIODS = [360.0, 24.0, 1.0, 366.0, 400.0, 2 * math.pi]


def turned(period):
    def program():
        a = pyro.sample("a", Circle(period=period))
        pyro.factor("f", 2 * (2 * math.pi * a / period).cos())

    return EnergyModel(program).double()


@pytest.mark.parametrize("period", PERIODS)
def test_a_period_changes_units_and_nothing_else(period):
    model, radians = turned(period), turned(2 * math.pi)
    z = torch.linspace(-9, 9, 37, dtype=torch.float64)
    x = {"a": z * period / (2 * math.pi)}
    shift = math.log(2 * math.pi / period)
    torch.testing.assert_close(model.log_base(x), torch.full_like(z, -math.log(period)))
    torch.testing.assert_close(model.log_density(x), radians.log_density({"a": z}) + shift)
    back, log_jacobian = model.unconstrain(x)
    torch.testing.assert_close(back[:, 0], wrap(z), atol=1e-9, rtol=0)
    torch.testing.assert_close(log_jacobian, torch.full_like(z, shift))
    again, forward = model.constrain(back)
    torch.testing.assert_close(forward, -log_jacobian)
    low = -math.pi if period == 2 * math.pi else 0.0
    assert ((again["a"] >= low) & (again["a"] < low + period)).all()
    gap = (again["a"] - x["a"]) / period
    torch.testing.assert_close(gap, gap.round(), atol=1e-9, rtol=0)
    draws = model.sample_base(1000)["a"]
    assert ((draws >= low) & (draws < low + period)).all()
    assert model.sites["a"].period == period
    assert model.inside(x).all()


def test_a_fit_in_degrees_is_the_fit_in_radians():
    def program():
        a = pyro.sample("direction", Circle(period=360.0))
        k = pyro.param("k", torch.zeros(2))
        angle = 2 * math.pi * a / 360
        pyro.factor("f", k[0] * angle.cos() + k[1] * angle.sin())

    torch.manual_seed(0)
    rows = {"direction": (350 + 25 * torch.randn(3000)) % 360}
    config = FitConfig(
        rounds=25, pool=2048, batch=256, warm_start_steps=200, energy_steps=30, energy_lr=0.1,
        progress=False,
    )  # fmt: skip
    fitted = fit(EnergyModel(program), rows, config=config)
    draws = resample(importance_sample(fitted, 8000, seed=0), 4000, seed=0)["direction"]
    assert ((draws >= 0) & (draws < 360)).all()

    def resultant(degrees):
        angle = degrees * math.pi / 180
        return torch.stack([angle.cos().mean(), angle.sin().mean()])

    torch.testing.assert_close(resultant(draws), resultant(rows["direction"]), atol=0.03, rtol=0)
    # log Z of exp(k . u) / 360 over 360 degrees is log I_0(|k|).
    size = next(fitted.model.parameters()).detach().norm().double()
    exact = torch.special.i0(size).log().item()
    log_z = log_partition(fitted, 8000, seed=1)
    assert abs(log_z.value - exact) < 4 * log_z.standard_error + 1e-4


def test_two_periods_and_vectors():
    def program():
        hours = pyro.sample("hours", Circle(period=24.0).expand((2,)).to_event(1))
        day = pyro.sample("day", Circle(period=366.0))
        angle = 2 * math.pi * hours / 24
        pyro.factor("f", angle.cos().sum() + (2 * math.pi * day / 366).sin())

    model = EnergyModel(program)
    x = model.sample_base(500)
    z, log_jacobian = model.unconstrain(x)
    exact = 2 * math.log(2 * math.pi / 24) + math.log(2 * math.pi / 366)
    torch.testing.assert_close(log_jacobian, torch.full((500,), exact))
    assert x["hours"].max() > 20
    assert x["day"].max() > 300
    again, _ = model.constrain(z)
    torch.testing.assert_close(again["hours"], x["hours"], atol=1e-3, rtol=1e-4)


def test_a_raw_angle_in_degrees_is_named():
    def program():
        pyro.factor("f", -pyro.sample("a", Circle(period=360.0)) / 100)

    with pytest.raises(ProgramError, match="turns by 360"):
        EnergyModel(program)


@pytest.mark.parametrize("period", [0.0, -360.0, math.inf, math.nan])
def test_a_period_is_a_positive_number(period):
    with pytest.raises(ProgramError, match="expected a positive number"):
        Circle(period=period)
