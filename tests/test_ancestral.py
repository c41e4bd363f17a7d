import pyro
import pyro.distributions as dist
import pytest
import torch
from oracle import compiled
from programs_with_parameters import VALID

from ebm_pp.density import EnergyModel
from ebm_pp.errors import ProgramError


def test_base_moments():
    torch.manual_seed(0)
    n = 20000
    draws = compiled(VALID["many_supports"]).sample_base(n)
    assert {k: tuple(v.shape) for k, v in draws.items()} == {
        "p": (n, 3),
        "r": (n,),
        "u": (n,),
        "x": (n, 2),
    }
    for name, mean in {"p": 1 / 3, "r": 2.0, "u": 0.5, "x": 0.0}.items():
        value = draws[name]
        error = (value.mean(0) - mean).abs() / (value.std(0) / n**0.5)
        assert error.max() < 4


def test_base_of_a_hierarchy_and_of_plates():
    torch.manual_seed(0)
    model = compiled(VALID["plate_vectorised"])
    draws = model.sample_base(20000)
    assert draws["x"].shape == (20000, 4)
    corr = torch.corrcoef(torch.cat([draws["mu"][:, None], draws["x"]], 1).T)
    assert abs(corr[0, 1] - 0.5**0.5) < 0.02  # x = mu + noise
    assert abs(corr[1, 2] - 0.5) < 0.02
    assert draws["x"].std() == pytest.approx(2**0.5, abs=0.03)


def test_base_of_a_chain_whose_first_step_looks_independent():
    # x_0 has the location 0 * mu: its values do not show the dependence, its gradient does.
    draws = compiled(VALID["plate_sequential"]).sample_base(4000)
    slope = (draws["mu"] * draws["x_2"]).mean() / draws["mu"].square().mean()
    assert slope == pytest.approx(2.0, abs=0.1)


def test_base_of_a_rare_dependence():
    model = compiled(VALID["rare_dependence"])
    assert model._compiled.roots == {"x"}
    assert compiled(VALID["many_supports"])._compiled.roots == {"p", "r", "u", "x"}
    # The network after the sites has no batching rule; what it depends on is known all the same.
    assert compiled(VALID["Recurrent"])._compiled.roots == {"x"}


def test_base_without_a_batching_rule():
    def program():
        r = pyro.sample("r", dist.Gamma(20.0, 10.0))
        with pyro.plate("p", 3):
            s = pyro.sample("s", dist.Gamma(2.0, r))
            pyro.sample("x", dist.Normal(torch.zeros(2), s[:, None]).to_event(1))

    draws = EnergyModel(program).sample_base(20000)
    assert {k: tuple(v.shape[1:]) for k, v in draws.items()} == {"r": (), "s": (3,), "x": (3, 2)}
    assert (draws["s"] * draws["r"][:, None]).mean() == pytest.approx(2.0, abs=0.05)
    assert (draws["x"] / draws["s"][..., None]).std() == pytest.approx(1.0, abs=0.02)


def test_base_of_a_program_that_neither_batches_nor_broadcasts():
    def program():
        r = pyro.sample("r", dist.Gamma(torch.tensor([20.0, 20.0]), 10.0).to_event(1))
        pyro.sample("s", dist.Gamma(2.0, r.sum()))
        pyro.factor("e", -(r[0] ** 2))

    draws = EnergyModel(program).sample_base(300)
    assert draws["s"].shape == (300,)
    assert len(draws["s"].unique()) == 300
    assert draws["s"].mean() == pytest.approx(0.5, abs=0.1)


IMPROPER = ["improper_real", "scaled_site", "masked_plate", "masked_distribution"]


@pytest.mark.parametrize("name", IMPROPER)
def test_improper_base(name):
    model = compiled(VALID[name])
    assert not model.proper
    assert not model.sites["x"].proper
    with pytest.raises(ProgramError, match="site 'x' has an improper base measure"):
        model.sample_base(3)


def test_a_sometimes_masked_base_is_improper():
    model = compiled(VALID["value_dependent_mask_of_a_site"])
    assert [site.proper for site in model.sites.values()] == [True, False]
    assert not model.double().proper


def test_improper_base_is_flat():
    model = compiled(VALID["improper_real"])
    assert model.log_base({"x": torch.randn(3, 2)}).tolist() == [0.0] * 3
    assert compiled(VALID["real"]).proper


def test_repr_of_sites():
    site = compiled(VALID["plates_nested"]).sites["b"]
    assert (site.shape, site.dim, site.circular, site.proper) == ((2, 3), 6, False, True)
