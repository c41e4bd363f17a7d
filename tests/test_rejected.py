"""A draw without a density is a rejected proposal; a row of data without one is an error."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from closed_form import Exact, Product
from torch import nn

import ebm_pp
from ebm_pp import EnergyModel, FitConfig, Status
from ebm_pp.game import without_undefined
from ebm_pp.pool import draw_pool, scored
from ebm_pp.sampling import log_ratio, propose

SHORT = FitConfig(
    rounds=4, pool=1024, batch=128, warm_start_steps=50, energy_steps=10, progress=False
)
NORMAL = Product({"x": dist.Normal(0.0, 1.0)})
CUT = 3.0  # P(x > 3) = .00135


def no_density(value, above=CUT):
    """N(0, 1), but with no density above a value."""

    def declared():
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        pyro.factor("broken", torch.where(x > above, value, 0.0))

    return EnergyModel(declared)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_draws_without_a_density_have_weight_zero_and_are_counted(value):
    fit = Exact(no_density(value), NORMAL, 0.0)
    draws = ebm_pp.importance_sample(fit, 20_000, seed=0)
    above = draws.values["x"] > CUT
    assert draws.rejected == int(above.sum()) > 0
    assert torch.equal(draws.log_weights == -math.inf, above)
    # Z = P(x < 3): the mean is over all draws, the rejected among them.
    log_z = ebm_pp.log_partition(fit, 20_000, seed=0)
    assert log_z.value == pytest.approx(math.log(1 - above.double().mean().item()), abs=1e-5)
    assert str(draws.rejected) in draws._repr_html_()
    assert (ebm_pp.resample(draws, 1000, seed=0)["x"] <= CUT).all()
    chains = ebm_pp.independence_mh(fit, draws, seed=0)
    assert (chains.values["x"] <= CUT).all()
    assert chains.log_weights.isfinite().all()


def test_a_share_above_one_in_a_thousand_has_a_word_in_the_report():
    many = ebm_pp.diagnose(Exact(no_density(math.nan, 2.0), NORMAL, 0.0), None)
    row = next(row for row in many.rows if row.name == "draws without a density")
    assert row.value == pytest.approx(0.02275, abs=0.01)  # P(x > 2)
    assert row.verdict == "many"
    few = ebm_pp.diagnose(Exact(no_density(math.nan, 3.6), NORMAL, 0.0), None, n=10_000)
    row = next(row for row in few.rows if row.name == "draws without a density")
    assert row.verdict == "ok"
    none = ebm_pp.diagnose(Exact(no_density(math.nan, 9.0), NORMAL, 0.0), None)
    assert not [row for row in none.rows if row.name == "draws without a density"]


def test_most_draws_without_a_density_are_an_error():
    far = Exact(no_density(math.nan), Product({"x": dist.Normal(6.0, 1.0)}), 0.0)
    with pytest.raises(ebm_pp.ProgramError, match=r"\d+ of 1000 have no density"):
        ebm_pp.log_partition(far, 1000, seed=0)


def test_a_zero_density_is_never_nan_by_subtraction():
    zero, one = torch.tensor([-math.inf, 0.0]), torch.tensor([-math.inf, -math.inf])
    assert log_ratio(zero, one).tolist() == [-math.inf, math.inf]


def test_independence_mh_takes_draws_with_zero_weights():
    def walled():
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        pyro.factor("wall", torch.where(x.abs() > 2.2, -math.inf, -0.1 * x**2))

    fit = Exact(EnergyModel(walled), NORMAL, 0.0)
    draws = ebm_pp.importance_sample(fit, 2000, seed=0)
    assert draws.rejected == 0  # no mass is not no density
    assert (draws.log_weights == -math.inf).any()
    one, two = (ebm_pp.independence_mh(fit, given, seed=0) for given in (draws, 2000))
    assert one.acceptance == pytest.approx(two.acceptance, abs=0.05)
    assert (one.values["x"].abs() <= 2.2).all()


def test_the_mixture_with_mass_is_normalised_again():
    proposed = propose(Exact(no_density(math.nan, 2.0), NORMAL, 0.0), 20_000)
    kept = proposed.with_mass()
    share = len(kept.log_q) / 20_000
    assert share < 1
    assert kept.log_weights.exp().mean().item() == pytest.approx(share, rel=1e-4)
    assert proposed.log_weights.exp().mean().item() == pytest.approx(share, rel=1e-4)


# In training -----------------------------------------------------------------------------------
class Rooted(nn.Module):
    """-w x^2 over N(0, 2), and a factor that is no number above 5: P(x > 5) = .006."""

    def __init__(self, above=5.0):
        super().__init__()
        self.w, self.above = nn.Parameter(torch.zeros(())), above

    def forward(self):
        x = pyro.sample("x", dist.Normal(0.0, 2.0))
        pyro.factor("well", -self.w * x**2)
        pyro.factor("root", 0.0 * (self.above - x).sqrt())


def test_a_fit_goes_on_and_says_how_many_were_rejected():
    data = {"x": torch.randn(2000, generator=torch.Generator().manual_seed(0))}
    config = FitConfig(
        rounds=12, pool=2048, batch=256, warm_start_steps=100, energy_steps=20, progress=False
    )
    model = EnergyModel(Rooted())
    result = ebm_pp.fit(model, data, config=config)
    assert result.status is not Status.NON_FINITE
    # 1 / (2 var) = 1/8 + w
    truth = 0.5 / data["x"].square().mean().item() - 0.125
    assert model.program.w.item() == pytest.approx(truth, rel=0.1)
    assert any(info["rejected"] > 0 for info in result.history)
    assert all(info["rejected"] < 0.02 for info in result.history)


def test_a_fit_whose_draws_have_no_density_ends():
    def broken():
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        # Numbers at the probes of the compiler, which are within -2 and 2, and nowhere else.
        pyro.factor("f", torch.where(x.abs() > 2.5, math.nan, 0.0) * 1.0)

    wide = dist.Normal(0.0, 30.0)
    result = ebm_pp.fit(EnergyModel(broken), None, Product({"x": wide}), SHORT)
    assert result.status is Status.NON_FINITE
    assert "have no density" in result.detail
    assert "'f' is nan" in result.detail


@pytest.mark.parametrize("value", [5.5, 1e30])
def test_a_row_of_data_without_a_density_is_an_error_that_names_it(value):
    data = {"x": torch.randn(600)}
    data["x"][17] = value
    name = "root" if value < 6 else "x"
    with pytest.raises(ebm_pp.DataError, match=rf"at row 17 the term '{name}'"):
        ebm_pp.fit(EnergyModel(Rooted()), data, config=SHORT)
    fit = Exact(EnergyModel(Rooted()), Product({"x": dist.Normal(0.0, 2.0)}), 0.0)
    with pytest.raises(ebm_pp.DataError, match="at row 17"):
        ebm_pp.diagnose(fit, data)


def test_the_pool_keeps_count_and_stands_good_rows_in():
    model = no_density(math.nan, 2.0)
    pool = draw_pool(model, NORMAL, None, 4000, 0.0)
    assert not pool.rejected.any()
    pool, terms, log_density = scored(model, pool)
    above = pool.x["x"] > 2.0
    assert torch.equal(pool.rejected, above)
    assert pool.rejected_share == pytest.approx(above.double().mean().item())
    assert torch.equal(log_density == -math.inf, above)
    assert terms.keys() == {"x", "broken"}
    fewer = without_undefined(model, pool._replace(rejected=torch.zeros_like(above)))
    assert (fewer.x["x"] <= 2.0).all()
    assert torch.equal(fewer.rejected, above)
    assert without_undefined(model, fewer) is None


class Edgy(Product):
    """Draws of which a tenth are outside the support, or on its edge, or no number."""

    def rsample_and_log_prob(self, n):
        x, log_q = super().rsample_and_log_prob(n)
        value = x["s"].clone()
        value[::30], value[1::30], value[2::30] = 0.0, math.inf, -1.0
        log_q = log_q.clone()
        log_q[3::30] = math.nan
        return {"s": value}, log_q


def test_draws_outside_their_supports_are_not_shown_to_the_program():
    def positive():
        s = pyro.sample("s", dist.LogNormal(0.0, 1.0))
        assert bool((s > 0).all()) if not torch._C._functorch.is_batchedtensor(s) else True
        pyro.factor("f", -s.log())

    fit = Exact(EnergyModel(positive), Edgy({"s": dist.LogNormal(0.0, 1.0)}), 0.0)
    draws = ebm_pp.importance_sample(fit, 3000, seed=0)
    assert draws.rejected == 400
    log_z = ebm_pp.log_partition(fit, 30_000, seed=0)
    exact = 0.5 + math.log(1 - 4 / 30)  # E[1 / s] = e^(1/2), of the share that is left
    assert abs(log_z.value - exact) < 4 * log_z.standard_error
    assert ebm_pp.fit(fit.model, None, fit.generator, SHORT).status is not Status.NON_FINITE
