import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from closed_form import LOG_Z, Exact, Product, exact, normal, rows

from ebm_pp import sampling
from ebm_pp.chains import independence_mh, metropolis
from ebm_pp.density import EnergyModel
from ebm_pp.errors import DataError, GeneratorError, ProgramError
from ebm_pp.generator import FlowGenerator
from ebm_pp.neutra import neutra_hmc
from ebm_pp.pareto import chain_statistics
from ebm_pp.sampling import (
    Draws,
    importance_sample,
    log_partition,
    log_prob,
    resample,
)

TARGET = normal(1.0, 1.0)
WIDE = exact(TARGET, normal(0.5, 1.5))


def standard_error(values):
    return values.std(0) / math.sqrt(len(values))


def test_weights_are_the_ratio_and_not_its_inverse():
    draws = importance_sample(WIDE, 1000, seed=0)
    x = draws.values["x"]
    expected = TARGET.log_prob(x) + LOG_Z - normal(0.5, 1.5).log_prob(x)
    torch.testing.assert_close(draws.log_weights, expected, atol=1e-4, rtol=1e-4)


CORRECTED = {
    "weights": lambda n: importance_sample(WIDE, n, seed=0),
    "resample": lambda n: resample(importance_sample(WIDE, 4 * n, seed=0), n, seed=1),
    "independence_mh": lambda n: independence_mh(WIDE, n, seed=0).values,
}


@pytest.mark.parametrize("name", CORRECTED)
def test_corrected_draws_have_the_targets_moments(name):
    found = CORRECTED[name](20_000)
    if isinstance(found, Draws):
        weights = torch.softmax(found.log_weights, 0)
        x = found.values["x"]
        mean = weights @ x
        error = ((x - mean) * weights[:, None]).square().sum(0).sqrt()
        square = weights @ (x - 1) ** 2
    else:
        x = found["x"]
        ess = chain_statistics(x).ess.min() if x.dim() == 3 else 20_000
        mean, square = x.flatten(0, -2).mean(0), (x - 1).square().flatten(0, -2).mean(0)
        error = torch.full((2,), 1 / math.sqrt(ess))
    assert ((mean - 1).abs() < 4 * error).all()
    assert ((square - 1).abs() < 4 * math.sqrt(3) * error).all()


def test_resample_is_multinomial():
    log_weights = torch.tensor([0.1, 0.2, 0.7]).log() + 5.0
    draws = Draws({"x": torch.arange(3)}, log_weights)
    counts = torch.bincount(resample(draws, 30_000, seed=0)["x"], minlength=3) / 30_000
    torch.testing.assert_close(counts, torch.tensor([0.1, 0.2, 0.7]), atol=0.01, rtol=0)
    # Multinomial: the count of a row varies from seed to seed by n w (1 - w).
    some = torch.tensor([(resample(draws, 100, seed=s)["x"] == 2).sum() for s in range(400)])
    assert some.double().var() == pytest.approx(21, rel=0.25)


def test_metropolis_follows_its_rule():
    """Two-valued weights have a known acceptance: from high to low w'/w, else 1."""
    torch.manual_seed(0)
    high = torch.rand(8, 5000) < 0.5
    log_weights = torch.where(high, math.log(4.0), 0.0)
    index, acceptance = metropolis(log_weights)
    assert index.shape == (8, 5000)
    assert (index // 5000 == torch.arange(8)[:, None]).all()  # each chain in its own share
    assert (index % 5000 <= torch.arange(5000)).all()  # never a later proposal
    stays_high = high.flatten()[index].double().mean()
    assert stays_high == pytest.approx(0.8, abs=0.01)  # 4 / (1 + 4)
    assert acceptance == pytest.approx(1 - 0.8 * 0.5 * 0.75, abs=0.01)


def test_metropolis_starts_where_there_is_mass_and_never_leaves_it():
    log_weights = torch.tensor([[-math.inf, -math.inf, 0.0, -math.inf, 5.0]])
    assert metropolis(log_weights)[0].tolist() == [[2, 2, 2, 2, 4]]


def test_perfect_proposal_is_always_accepted():
    chains = independence_mh(exact(TARGET), 403, chains=4, seed=0)
    assert chains.values["x"].shape == (4, 100, 2)
    assert chains.acceptance > 0.99  # rounding of the weights may reject a few
    assert chains.log_weights.mean() == pytest.approx(LOG_Z, abs=1e-4)
    assert chains.divergences == 0


def test_independence_mh_of_given_draws():
    draws = importance_sample(WIDE, 400, seed=0)
    given = independence_mh(WIDE, draws, seed=1)
    moved = given.accepted[:, 1:]
    changed = (given.values["x"][:, 1:] != given.values["x"][:, :-1]).any(-1)
    assert torch.equal(moved, changed)
    assert given.acceptance == pytest.approx(moved.double().mean().item())
    x = given.values["x"].flatten(0, 1)
    again = WIDE.generator.log_prob({"x": x}).reshape(4, 100)
    torch.testing.assert_close(given.log_q, again, atol=1e-4, rtol=0)


def test_log_partition_within_its_error():
    errors = []
    for seed in range(20):
        found = log_partition(WIDE, 2000, seed=seed)
        errors.append((found.value - LOG_Z) / found.standard_error)
    errors = torch.tensor(errors)
    assert errors.abs().max() < 4
    assert errors.std() == pytest.approx(1.0, abs=3 / math.sqrt(40))


def test_log_prob_is_normalised():
    x = rows(TARGET, 500)
    found = log_prob(WIDE, x, n=20_000, seed=0)
    error = 4 * found.log_partition.standard_error
    assert found.values.shape == (500,)
    assert (found.values - TARGET.log_prob(x["x"])).abs().max() < error
    with pytest.raises(DataError):
        log_prob(WIDE, {"y": x["x"]})


SEEDED = {
    "importance_sample": lambda seed: importance_sample(WIDE, 50, seed=seed).log_weights,
    "resample": lambda seed: resample(FIXED, 50, seed=seed)["x"],
    "independence_mh": lambda seed: independence_mh(WIDE, 50, seed=seed).values["x"],
    "independence_mh of draws": lambda seed: independence_mh(WIDE, FIXED, seed=seed).values["x"],
    "log_partition": lambda seed: torch.tensor(log_partition(WIDE, 50, seed=seed).value),
    "log_prob": lambda seed: log_prob(WIDE, rows(TARGET, 5), 50, seed=seed).values,
}
FIXED = importance_sample(WIDE, 400, seed=7)


@pytest.mark.parametrize("name", SEEDED)
def test_seeds(name):
    torch.manual_seed(3)
    before = torch.get_rng_state()
    draw = SEEDED[name]
    first, again, other, fresh = draw(1), draw(1), draw(2), draw(None)
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not torch.equal(first, fresh)
    assert not torch.equal(fresh, draw(None))


def test_slices_change_nothing(monkeypatch):
    whole = log_prob(WIDE, rows(TARGET, 50), 50, seed=0).values
    monkeypatch.setattr(sampling, "ROWS_AT_ONCE", 16)
    draws = importance_sample(WIDE, 50, seed=0)
    assert draws.values["x"].shape == (50, 2)
    sliced = sampling.log_density_of(WIDE.model, rows(TARGET, 50))
    shift = sliced - whole
    torch.testing.assert_close(shift, shift[:1].expand(50), atol=1e-5, rtol=0)


def test_draws_carry_no_gradient():
    flow = FlowGenerator(WIDE.model)
    draws = importance_sample(Exact(WIDE.model, flow), 10, seed=0)
    assert not draws.log_weights.requires_grad


class TestNeutra:
    def test_agrees_with_the_target(self):
        """A positive site and an angle: both have a Jacobian that is not constant."""
        speed, direction = dist.Gamma(3.0, 2.0), dist.VonMises(3.0, 2.0)

        def declared():
            pyro.sample("speed", speed)
            pyro.sample("direction", direction)

        model = EnergyModel(declared)
        torch.manual_seed(0)
        start = {"speed": speed.sample((500,)), "direction": direction.sample((500,))}
        fit = Exact(model, FlowGenerator(model, start, affine=2, splines=0))
        before = torch.get_rng_state()
        chains = neutra_hmc(fit, 400, chains=2, warmup=40, seed=0)
        assert torch.equal(before, torch.get_rng_state())
        values = chains.values["speed"]
        assert values.shape == (2, 200)
        turned = torch.cos(chains.values["direction"] - 3.0)
        bessel = 0.6977746579640077  # I_1(2) / I_0(2)
        for found, mean in ((values, 1.5), (turned, bessel)):
            statistics = chain_statistics(found)
            assert statistics.rhat < 1.1
            assert abs(found.mean() - mean) < 4 * statistics.mcse
        expected = speed.log_prob(values) + direction.log_prob(chains.values["direction"])
        torch.testing.assert_close(chains.log_density, expected, atol=1e-3, rtol=1e-4)
        assert 0.5 < chains.acceptance <= 1
        again = neutra_hmc(fit, 8, chains=2, warmup=5, seed=4)
        flat = {name: value.flatten(0, 1) for name, value in again.values.items()}
        torch.testing.assert_close(again.log_q, fit.generator.log_prob(flat).reshape(2, 4))

    def test_without_a_latent_space(self):
        with pytest.raises(GeneratorError, match=r"latent_to_sites[\s\S]*FlowGenerator"):
            neutra_hmc(WIDE, 10)


class TestErrors:
    def test_density_that_is_no_number(self):
        def broken(x):
            return torch.where(x["x"][:, 0] > -0.5, math.nan, 0.0)

        model = WIDE.model
        fit = Exact(model, Product({"x": normal(0.0, 1.0)}))
        original = model.log_density
        model.log_density = lambda x: original(x) + broken(x)
        try:
            with pytest.raises(
                ProgramError, match=r"draws of the generator: \d+ of 100 .*no dens"
            ):
                importance_sample(fit, 100, seed=0)
        finally:
            del model.log_density

    def test_no_draw_has_weight(self):
        draws = Draws({"x": torch.zeros(3)}, torch.full((3,), -math.inf))
        with pytest.raises(GeneratorError, match="none of 3 draws has a usable weight"):
            resample(draws, 3)
        nowhere = FIXED._replace(log_weights=torch.full_like(FIXED.log_weights, -math.inf))
        with pytest.raises(GeneratorError, match="usable weight"):
            independence_mh(WIDE, nowhere)

    def test_more_chains_than_draws(self):
        with pytest.raises(ValueError, match="3 draws for 4 chains"):
            independence_mh(WIDE, 3)
