import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from oracle import compiled, double
from programs_with_parameters import VALID

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
