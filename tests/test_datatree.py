import enum
import json
import math

import arviz_base
import arviz_plots
import arviz_stats
import matplotlib.pyplot as plt
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
import xarray
from closed_form import LOG_Z, Exact, Product, exact, normal

from ebm_pp.chains import independence_mh
from ebm_pp.datatree import to_datatree
from ebm_pp.density import EnergyModel
from ebm_pp.errors import DataError
from ebm_pp.sampling import importance_sample, log_prob

LAWS = {
    "speed": dist.LogNormal(0.0, 0.5),
    "mixed": dist.Dirichlet(torch.full((3,), 2.0)),
    "table": dist.Normal(torch.zeros(2, 3), 1.0).to_event(2),
}


class Kind(enum.Enum):
    GOOD = "good"


HISTORY = (
    {"round": 0, "ess": 0.5, "worst_term": "speed", "kind": Kind.GOOD, "j": 2, "more": {"a": 1.0}},
    {"round": 5, "ess": 0.9, "worst_term": "", "kind": Kind.GOOD, "held_out": None, "flag": True},
)


@pytest.fixture(scope="module")
def fit():
    def declared():
        for name, law in LAWS.items():
            pyro.sample(name, law)
        pyro.factor(
            "energy", torch.tensor(LOG_Z) + 0.0 * pyro.sample("x/y", dist.Normal(0.0, 1.0))
        )

    sites = {**LAWS, "x/y": dist.Normal(0.0, 1.2)}
    return Exact(EnergyModel(declared), Product(sites), n_train=7, history=HISTORY)


@pytest.fixture(scope="module")
def data(fit):
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return fit.generator.rsample_and_log_prob(25)[0]


@pytest.fixture(scope="module")
def tree(fit, data):
    return to_datatree(fit, data=data, n=400)


def test_groups_and_dimensions(tree):
    groups = {
        "posterior",
        "sample_stats",
        "posterior_predictive",
        "proposal",
        "observed_data",
        "log_likelihood",
        "training",
    }
    assert set(tree.children) == groups
    posterior = tree["posterior"]
    assert dict(posterior["mixed"].sizes) == {"chain": 4, "draw": 100, "mixed_dim_0": 3}
    assert posterior["table"].dims == ("chain", "draw", "table_dim_0", "table_dim_1")
    assert posterior["x.y"].dims == ("chain", "draw")
    statistics = {"log_density", "log_q", "log_weight", "energy", "acceptance"}
    assert set(tree["sample_stats"].data_vars) == statistics
    assert dict(tree["proposal"]["speed"].sizes) == {"chain": 1, "draw": 400}
    assert dict(tree["proposal"]["log_weight"].sizes) == {"chain": 1, "draw": 400}
    predictive = tree["posterior_predictive"]
    assert dict(predictive["speed"].sizes) == {"chain": 4, "draw": 15, "row": 25}
    assert predictive["table"].dims[2:] == ("row", "table_dim_0", "table_dim_1")
    assert tree["observed_data"]["table"].dims == ("row", "table_dim_0", "table_dim_1")
    assert dict(tree["log_likelihood"]["joint"].sizes) == {"chain": 1, "draw": 1, "row": 25}


def test_numbers(tree, fit, data):
    statistics = tree["sample_stats"]
    ratio = statistics["log_density"] - statistics["log_q"]
    np.testing.assert_allclose(statistics["log_weight"], ratio, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(statistics["energy"], -LOG_Z, rtol=1e-6)
    states = tree["posterior"]["speed"].values
    moved = statistics["acceptance"].values[:, 1:] == 1
    assert ((states[:, 1:] != states[:, :-1]) == moved).all()
    found = log_prob(fit, data, 400, seed=0).values
    np.testing.assert_allclose(tree["log_likelihood"]["joint"][0, 0], found, atol=1e-5)
    np.testing.assert_array_equal(tree["observed_data"]["mixed"], data["mixed"])


def test_attributes(tree, fit):
    assert tree.attrs["status"] == "FINISHED"
    assert tree.attrs["status_sentence"] == "All rounds ran."
    assert tree.attrs["log_partition"] == pytest.approx(LOG_Z, abs=0.1)
    assert 0 < tree.attrs["log_partition_standard_error"] < 0.1
    assert 0.9 < tree.attrs["ess_fraction"] <= 1
    assert tree.attrs["pareto_k"] < 0.7
    assert tree.attrs["seed"] == 0
    assert tree.attrs["n_train"] == 7
    assert json.loads(tree.attrs["config"]) == {"rounds": 2, "hidden": [64, 64]}
    assert tree.attrs["torch_version"] == torch.__version__
    assert tree.attrs["arviz_base_version"] == arviz_base.__version__
    assert {"ebm_pp_version", "pyro_version", "created_at"} <= set(tree.attrs)


def test_training(tree):
    training = tree["training"]
    assert training["round"].values.tolist() == [0, 5]
    assert training["ess"].values.tolist() == [0.5, 0.9]
    assert training["worst_term"].values.tolist() == ["speed", ""]
    assert training["kind"].values.tolist() == ["GOOD", "GOOD"]
    assert training["more.a"].values[0] == 1.0
    assert math.isnan(training["more.a"].values[1])
    assert np.isnan(training["held_out"].values).all()
    assert training["flag"].values[1] == 1.0


def test_round_trip(tree, tmp_path):
    path = tmp_path / "draws.nc"
    tree.to_netcdf(path, engine="h5netcdf")
    with xarray.open_datatree(path, engine="h5netcdf") as back:
        assert set(back.children) == set(tree.children)
        for group in tree.children:
            xarray.testing.assert_equal(back[group].to_dataset(), tree[group].to_dataset())
        assert back.attrs == tree.attrs


def test_arviz_reads_it(tree):
    summary = arviz_stats.summary(tree, round_to="none")
    assert {"speed", "x.y"} <= set(summary.index)
    # Independent draws of a healthy proposal: the chains are nearly independent too.
    assert (summary["ess_bulk"] > 100).all()
    assert (summary["r_hat"] < 1.05).all()
    assert summary["mean"]["x.y"] == pytest.approx(0.0, abs=0.3)
    ess = arviz_stats.ess(tree)
    assert ess["table"].shape == (2, 3)
    extracted = arviz_base.extract(tree, group="proposal", keep_dataset=True)
    assert extracted["log_weight"].shape == (400,)


@pytest.mark.parametrize(
    "plot",
    [
        "plot_trace",
        "plot_rank",
        "plot_pair",
        "plot_dist",
        "plot_forest",
        "plot_ess",
        "plot_ppc_dist",
    ],
)
# From inside arviz-plots 0.8, which unstacks chain and draw of plot_ppc_dist.
@pytest.mark.filterwarnings("ignore:Deleting a single level of a MultiIndex:DeprecationWarning")
def test_arviz_plots_it(tree, plot):
    names = ["speed", "x.y"]
    drawn = getattr(arviz_plots, plot)(tree, var_names=names, backend="matplotlib")
    figure = drawn.viz["figure"].item()
    assert figure.axes
    figure.canvas.draw()
    plt.close(figure)


def test_from_draws_and_chains(tmp_path):
    fit = exact(normal(0.0, 1.0), normal(0.0, 1.2))
    draws = importance_sample(fit, 203, seed=0)
    tree = to_datatree(draws, chains=2, seed=3, data={"x": torch.zeros(4, 2)})
    assert set(tree.children) == {"posterior", "sample_stats", "proposal", "observed_data"}
    assert dict(tree["posterior"]["x"].sizes) == {"chain": 2, "draw": 101, "x_dim_0": 2}
    assert tree.attrs["log_partition"] == pytest.approx(LOG_Z, abs=0.2)
    tree.to_netcdf(tmp_path / "draws.nc", engine="h5netcdf")
    chains = to_datatree(independence_mh(fit, 80, seed=0))
    assert set(chains.children) == {"posterior", "sample_stats"}
    assert chains["sample_stats"]["log_q"].shape == (4, 20)


def test_seed_and_stream(fit):
    before = torch.get_rng_state()
    trees = [to_datatree(fit, n=40, seed=seed) for seed in (1, 1, 2)]
    assert torch.equal(before, torch.get_rng_state())
    first, again, other = (tree["posterior"].to_dataset() for tree in trees)
    assert first.equals(again)
    assert not first.equals(other)
    assert "observed_data" not in trees[0].children


def test_data_are_checked(fit):
    with pytest.raises(DataError):
        to_datatree(fit, data={"speed": torch.ones(3)}, n=40)
