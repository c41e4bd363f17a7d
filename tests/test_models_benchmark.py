"""The benchmark's targets against grids, quadrature and closed forms, in float64.

Where draws are compared with an exact mean, 4.5 standard errors are allowed; seeds are fixed.
"""

import math
import sys
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy import integrate

from ebm_pp.density import EnergyModel
from models import digits, funnel, mixture, planar, student_t
from models.mixture import MIXTURES

Z_LIMIT = 4.5
N = 50_000


@pytest.fixture(autouse=True)
def _float64():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


def assert_mean(values, exact):
    """The mean of `values` (n, ...) is the exact one, within its standard errors."""
    error = (values.std(0) / math.sqrt(len(values))).clamp_min(1e-12)
    z = (values.mean(0) - exact).abs() / error
    assert z.max().item() < Z_LIMIT, z


class OfTheWholePlane:
    """A log density of sites, as `grid_log_partition` wants it."""

    def __init__(self, log_density):
        self.log_density = log_density


def entropy_on_grid(log_density, half_width, cells):
    """Minus the integral of p log p, by the midpoint rule on a square."""
    step = 2 * half_width / cells
    edge = (torch.arange(cells) + 0.5) * step - half_width
    log_p = log_density({"x": torch.cartesian_prod(edge, edge)})
    return -torch.where(log_p > -700, log_p.exp() * log_p, 0.0).sum().item() * step**2


# the plane


@pytest.mark.parametrize("name", ["pinwheel", "spirals"])
def test_planar_densities_are_normalised_and_are_those_of_the_draws(name):
    target = planar.TARGETS[name]
    log_z = planar.grid_log_partition(OfTheWholePlane(target.log_density), 5.5, 350)
    assert log_z == pytest.approx(0, abs=2e-7)
    x = target.draws(N, 0)
    assert_mean(target.log_density(x), -entropy_on_grid(target.log_density, 5.5, 350))
    # A density turned, mirrored or unwound the other way has the same entropy, not the same cells.
    edges = torch.tensor([-5.5, -2.0, -1.0, 0.0, 1.0, 2.0, 5.5])
    for low, high in pairwise(edges.tolist()):
        inside = (x["x"][:, 0] > low) & (x["x"][:, 0] < high) & (x["x"][:, 1] > 0.3)
        assert_mean(inside.double(), mass_above(target.log_density, low, high))


def mass_above(log_density, low, high):
    """Mass of low < x_0 < high, x_1 > .3, by Gauss-Legendre in 150 by 150 points."""
    node, weight = (torch.from_numpy(a) for a in np.polynomial.legendre.leggauss(150))
    first, second = (low + high) / 2 + (high - low) / 2 * node, 2.9 + 2.6 * node
    p = log_density({"x": torch.cartesian_prod(first, second)}).exp().reshape(150, 150)
    return (weight @ p @ weight).item() * (high - low) / 2 * 2.6


# mixtures


@pytest.mark.parametrize(("name", "mean_log"), [("nine", -3.8311), ("forty", -6.8592)])
def test_plane_mixtures_have_the_entropy_of_record(name, mean_log):
    given = MIXTURES[name]
    assert_mean(mixture.log_density(given, mixture.draws(given, N, 0)), mean_log)
    half_width, cells = {"nine": (9.0, 300), "forty": (50.0, 800)}[name]
    density = OfTheWholePlane(lambda x: mixture.log_density(given, x))
    log_z = planar.grid_log_partition(density, half_width, cells)
    assert log_z == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("name", MIXTURES)
def test_mixture_density_is_that_of_torch(name):
    given = MIXTURES[name]
    components = torch.distributions.MultivariateNormal(given.means, scale_tril=given.factors)
    exact = torch.distributions.MixtureSameFamily(
        torch.distributions.Categorical(given.weights), components
    )
    x = mixture.draws(given, 300, 0)
    torch.testing.assert_close(mixture.log_density(given, x), exact.log_prob(x["x"]))
    assert given.weights.sum().item() == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("name", MIXTURES)
def test_mixture_draws_have_its_moments_and_shares(name):
    given = MIXTURES[name]
    x = mixture.draws(given, N, 0)
    assert_mean(x["x"], given.weights @ given.means)
    covariances = given.factors @ given.factors.mT
    second = covariances + given.means[:, :, None] * given.means[:, None, :]
    exact = (given.weights[:, None, None] * second).sum(0)
    assert_mean(x["x"][:, :, None] * x["x"][:, None, :], exact)
    assert_mean(mixture.responsibilities(given, x), given.weights)
    shares = torch.bincount(mixture.modes(given, x), minlength=len(given.weights)) / N
    torch.testing.assert_close(shares, given.weights, rtol=0.1, atol=0.003)


def test_data_mixtures_have_unequal_weights_and_modes_apart():
    for name, (k, d) in {"ten": (8, 10), "thirty": (12, 30)}.items():
        given = MIXTURES[name]
        assert given.means.shape == (k, d)
        assert 0.04 <= given.weights.min() < given.weights.max() / 2
        difference = given.means[:, None] - given.means[None]
        gap = difference.norm(dim=-1) + 1e9 * torch.eye(k)
        along = difference / gap[..., None]
        scale = (along[:, :, None, :] @ given.factors[:, None]).norm(dim=-1).squeeze(-1)
        sds = gap / ((scale + scale.T) / 2)
        assert 3.5 < sds.min() < sds.min(1).values.max() < 6.5


@pytest.mark.parametrize("name", MIXTURES)
def test_given_mixture_divides_its_base_out(name):
    given = MIXTURES[name]
    model = EnergyModel(mixture.GivenMixture(given, 3.0))
    assert model.batching == "vmap"
    assert model.proper
    x = mixture.draws(given, 200, 0)
    torch.testing.assert_close(model.log_density(x), mixture.log_density(given, x))
    base = torch.distributions.Normal(0.0, 3.0).log_prob(x["x"]).sum(-1)
    torch.testing.assert_close(model.log_base(x), base)


# funnel and Student-t


def test_funnel_draws_have_its_entropy_and_its_scales():
    assert funnel.mean_log_density() == pytest.approx(-15.2880, abs=5e-5)
    x = funnel.draws(N, 0)
    assert_mean(funnel.log_density(x), funnel.mean_log_density())
    assert_mean(x["x"][:, 0].square(), 9.0)
    scaled = x["x"][:, 1:] * (-x["x"][:, :1] / 2).exp()
    assert_mean(scaled.square(), 1.0)
    assert_mean(scaled[:, :1] * scaled[:, 1:], 0.0)


def test_funnel_is_normalised():
    def density(x_1, x_0):
        return funnel.log_density({"x": torch.tensor([[x_0, x_1]])}).exp().item()

    def bound(x_0):
        return 9 * math.exp(x_0 / 2)

    mass, _ = integrate.dblquad(density, -9, 9, lambda t: -bound(t), bound, epsabs=1e-4)
    assert mass == pytest.approx(0.9973002, abs=1e-4)  # x_0 within three standard deviations


def test_funnel_program_is_its_density():
    model = EnergyModel(funnel.funnel)
    x = funnel.draws(100, 0)
    assert model.batching == "vmap"
    assert not model.proper
    torch.testing.assert_close(model.log_density(x), funnel.log_density(x))
    with pytest.raises(ValueError, match="got d = 1"):
        EnergyModel(funnel.funnel, 1)


def test_student_t_log_partition_by_quadrature_and_its_density_by_torch():
    mass, _ = integrate.quad(lambda t: (1 + t * t / 3) ** -2, -math.inf, math.inf)
    assert student_t.log_partition(5) == pytest.approx(5 * math.log(mass), abs=1e-10)
    assert student_t.log_partition() == pytest.approx(8.00711, abs=1e-5)
    x = student_t.draws(N, 0)
    exact = torch.distributions.StudentT(3.0).log_prob(x["x"]).sum(-1)
    torch.testing.assert_close(student_t.log_density(x), exact)
    assert_mean(exact, -8 * torch.distributions.StudentT(3.0).entropy().item())
    model = EnergyModel(student_t.student_t)
    found = model.log_density({"x": x["x"][:100]}) - student_t.log_partition()
    torch.testing.assert_close(found, exact[:100])


@pytest.mark.parametrize(("d", "df"), [(0, 3.0), (4, 0.0), (4, math.nan)])
def test_student_t_refuses_what_it_cannot_be(d, df):
    with pytest.raises(ValueError, match="needs positive dimensions and df"):
        student_t.log_partition(d, df)


# digits


def test_digits_are_the_images_and_their_split():
    pytest.importorskip("sklearn")
    from sklearn.datasets import load_digits

    train, held_out = digits.load_digits(0)
    assert train["x"].shape == (1437, 64)
    assert held_out["x"].shape == (360, 64)
    pixels = torch.cat([digits.to_pixels(train), digits.to_pixels(held_out)])
    levels = (pixels * 17).floor().long()
    originals = torch.from_numpy(load_digits().data).long()
    assert sorted(map(tuple, levels.tolist())) == sorted(map(tuple, originals.tolist()))
    jitter = pixels * 17 - levels
    assert_mean(jitter.flatten(), 0.5)
    other, _ = digits.load_digits(1)
    assert not torch.equal(other["x"], train["x"])


def test_digits_jacobian_is_that_of_the_logit():
    pixels = torch.linspace(0.001, 0.999, 128).reshape(2, 64)
    x = {"x": digits.from_pixels(pixels)}
    torch.testing.assert_close(digits.to_pixels(x), pixels)
    slopes = torch.func.vmap(torch.func.jacrev(lambda p: digits.from_pixels(p[None])[0]))(pixels)
    torch.testing.assert_close(digits.log_jacobian(x), slopes.logdet())


def test_digits_say_what_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(ModuleNotFoundError, match="pip install scikit-learn"):
        digits.load_digits()


# every target


@pytest.mark.parametrize(
    "draw",
    [
        planar.pinwheel,
        planar.spirals,
        lambda n, seed: mixture.draws(MIXTURES["ten"], n, seed),
        funnel.draws,
        student_t.draws,
    ],
)
def test_draws_are_seeded_and_leave_the_global_streams_alone(draw):
    state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    first, again, other = draw(50, 1), draw(50, 1), draw(50, 2)
    assert torch.equal(first["x"], again["x"])
    assert not torch.equal(first["x"], other["x"])
    assert torch.equal(torch.get_rng_state(), state)
    assert np.array_equal(np.random.get_state()[1], numpy_state)
