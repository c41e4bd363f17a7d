import pyro
import pyro.distributions as dist
import pytest
import torch
from oracle import compiled
from programs_with_parameters import VALID

from ebm_pp import FitConfig, fit
from ebm_pp.density import EnergyModel
from ebm_pp.errors import ProgramError
from ebm_pp.training import Status


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


# On the edge -----------------------------------------------------------------------------------
EDGY = {
    "LogNormal(0, 30)": lambda: dist.LogNormal(0.0, 30.0),
    "Beta(.05, .05)": lambda: dist.Beta(0.05, 0.05),
    "Beta(.5, .5)": lambda: dist.Beta(0.5, 0.5),
    "Gamma(.01)": lambda: dist.Gamma(0.01, 1.0),
    "HalfCauchy": lambda: dist.HalfCauchy(1.0),
    "HalfNormal": lambda: dist.HalfNormal(1.0),
    "InverseGamma": lambda: dist.InverseGamma(0.1, 1.0),
    "Uniform": lambda: dist.Uniform(-1.0, 2.0),
    "Pareto": lambda: dist.Pareto(2.0, 0.2),
    "3 - Gamma": lambda: dist.TransformedDistribution(
        dist.Gamma(0.05, 1.0), [torch.distributions.AffineTransform(3.0, -1.0)]
    ),
    "Dirichlet(.05)": lambda: dist.Dirichlet(torch.full((3,), 0.05)),
    "Dirichlet(1)": lambda: dist.Dirichlet(torch.ones(3)),
    "LKJ(3, .1)": lambda: dist.LKJCholesky(3, torch.tensor(0.1)),
    "LKJ(3, .1) matrix": lambda: dist.LKJ(3, torch.tensor(0.1)),
    "LKJ(20, .5)": lambda: dist.LKJCholesky(20, torch.tensor(0.5)),
    "InverseGamma(.01)": lambda: dist.InverseGamma(0.01, 1.0),
    "Kumaraswamy(.1, .1)": lambda: dist.Kumaraswamy(torch.tensor(0.1), torch.tensor(0.1)),
    "StudentT(.05)": lambda: dist.StudentT(torch.tensor(0.05)),
    "Cauchy": lambda: dist.Cauchy(0.0, 1e36),
    "Weibull(.05)": lambda: dist.Weibull(1.0, 0.05),
    "FisherSnedecor": lambda: dist.FisherSnedecor(torch.tensor(0.1), torch.tensor(0.1)),
    "Exponential + 10,000": lambda: dist.TransformedDistribution(
        dist.Exponential(1.0), [torch.distributions.AffineTransform(1e4, 1.0)]
    ),
    "tanh": lambda: dist.TransformedDistribution(
        dist.Normal(0.0, 5.0), [torch.distributions.TanhTransform()]
    ),
    "ordered": lambda: dist.TransformedDistribution(
        dist.Normal(torch.zeros(3), 10.0).to_event(1), [dist.transforms.OrderedTransform()]
    ),
    "RelaxedOneHot": lambda: dist.RelaxedOneHotCategorical(
        torch.tensor(0.1), probs=torch.ones(3) / 3
    ),
    "LKJ(3, 1)": lambda: dist.LKJCholesky(3, torch.tensor(1.0)),
    "Wishart": lambda: dist.Wishart(torch.tensor(3.1), torch.eye(3)),
}


@pytest.mark.parametrize("name", EDGY)
@pytest.mark.filterwarnings("ignore:.*were on an edge of their support, or had no:UserWarning")
@pytest.mark.filterwarnings("ignore:Singular sample detected:UserWarning")
def test_no_draw_is_on_the_edge(name):
    torch.manual_seed(0)

    def program():
        x = pyro.sample("x", EDGY[name]())
        pyro.factor("f", -0.1 * x.flatten()[0].abs().log1p())

    model = EnergyModel(program)
    x = model.sample_base(20_000)
    assert model.inside(x).all()
    z, log_jacobian = model.unconstrain(x)
    assert z.isfinite().all()
    assert log_jacobian.isfinite().all()
    assert model.log_base(x).isfinite().all()
    with torch.random.fork_rng():
        torch.set_flush_denormal(True)
        assert model.inside(x).all()
        torch.set_flush_denormal(False)


def test_a_share_that_is_drawn_again_is_told_once():
    model = EnergyModel(lambda: pyro.sample("x", dist.Cauchy(0.0, 1e37)))
    with pytest.warns(UserWarning, match=r"(?s)of 5000 draws .* in float32;.*model.double\(\)"):
        model.sample_base(5000)
    model.sample_base(5000)  # a second warning would be an error


@pytest.mark.parametrize(
    "name", ["LKJ(3, .1)", "Wishart", "LogNormal(0, 30)", "InverseGamma(.01)"]
)
@pytest.mark.filterwarnings("ignore:the data:UserWarning")  # draws on an edge are ties
@pytest.mark.filterwarnings("ignore:.*were on an edge of their support, or had no:UserWarning")
@pytest.mark.filterwarnings("ignore:Singular sample detected:UserWarning")
def test_a_fit_over_a_base_on_the_edge_is_finite(name):
    def program():
        x = pyro.sample("x", EDGY[name]())
        w = pyro.param("w", torch.tensor(0.0))
        pyro.factor("f", -w * x.flatten()[0].abs().log1p())

    torch.manual_seed(0)
    model = EnergyModel(program)
    rows = model.sample_base(300)
    config = FitConfig(
        rounds=2, batch=64, pool=256, warm_start_steps=20, energy_steps=5, progress=False
    )
    fitted = fit(model, rows, config=config)
    assert fitted.status is not Status.NON_FINITE


def test_a_nudge_moves_nothing_else():
    model = EnergyModel(lambda: pyro.sample("x", dist.Gamma(2.0, 1.0)))
    torch.manual_seed(0)
    x = model.sample_base(1000)["x"]
    torch.manual_seed(0)
    assert torch.equal(x, dist.Gamma(2.0, 1.0).sample((1000,)))


class Elsewhere(dist.Exponential):
    """Says that it is above 5."""

    support = dist.constraints.greater_than(5.0)


def test_draws_outside_the_declared_support_are_named():
    def program():
        x = pyro.sample("x", Elsewhere(torch.ones(2)).to_event(1))
        pyro.factor("f", -x.sum())

    with pytest.raises(ProgramError, match="draws of Elsewhere are outside the support it"):
        EnergyModel(program)
