"""Draws of parameters, and leave-one-out from them, against a Gaussian known in closed form."""

import math

import arviz_plots
import arviz_stats
import matplotlib.pyplot as plt
import pyro
import pyro.distributions as dist
import pytest
import torch
import xarray
from closed_form import Exact, Product
from torch import nn

import ebm_pp
from ebm_pp.density import EnergyModel
from ebm_pp.errors import DataError

N = 120
WIDE = 9.0  # variance of the base measure


class Line(pyro.nn.PyroModule):
    """N(0, 9) exp(a x - b x^2), b positive: Gaussian, precision tau = 1/9 + 2 b, mean a / tau."""

    def __init__(self, a, b):
        super().__init__()
        self.a = nn.Parameter(a)
        self.b = pyro.nn.PyroParam(b, dist.constraints.positive)

    def forward(self):
        x = pyro.sample("x", dist.Normal(torch.tensor(0.0, dtype=torch.float64), WIDE**0.5))
        pyro.factor("tilt", self.a * x)
        pyro.factor("well", -self.b * x**2)


def precision(b):
    return 1 / WIDE + 2 * b


@pytest.fixture(scope="module")
def rows():
    noise = torch.Generator().manual_seed(0)
    return {"x": 0.7 + torch.randn(N, generator=noise, dtype=torch.float64)}


@pytest.fixture(scope="module")
def fit(rows):
    """At the maximum of the likelihood, with the exact law as generator, a little wider."""
    mean, tau = rows["x"].mean(), 1 / rows["x"].var(correction=0)
    model = EnergyModel(Line(mean * tau, (tau - 1 / WIDE) / 2))
    return Exact(model, Product({"x": dist.Normal(mean, 1.1 / tau.sqrt())}), n_train=N)


@pytest.fixture(scope="module")
def tree(fit, rows):
    found = ebm_pp.standard_errors(fit, rows, n=20_000)
    return ebm_pp.to_datatree(fit, data=rows, uncertainty=found, n=20_000)


def test_parameters_scatter_as_the_inverse_information(tree, rows):
    a, b = (torch.from_numpy(tree["posterior"][name].values).flatten() for name in "ab")
    assert (b > 0).all()
    tau = 1 / rows["x"].var(correction=0)
    mean = rows["x"].mean()
    # Fisher information of (a, b) is the covariance of (x, -x^2); b's logarithm is what is drawn.
    third = 2 * mean / tau
    information = torch.stack(
        [torch.stack([1 / tau, -third]), torch.stack([-third, 2 / tau**2 + 4 * mean**2 / tau])]
    )
    wanted = torch.linalg.inv(information) / N
    centre = (tau - 1 / WIDE) / 2
    found = torch.cov(torch.stack([a, centre * (b / centre).log()]))
    error = wanted.diagonal() * math.sqrt(2 / 400)
    assert ((found - wanted).diagonal().abs() < 4 * error).all()
    correlation = found[0, 1] / found.diagonal().prod().sqrt()
    exact = wanted[0, 1] / wanted.diagonal().prod().sqrt()
    assert abs(correlation - exact) < 4 * (1 - exact**2) / math.sqrt(400)


def test_each_draw_has_its_own_partition_and_likelihood(tree, rows):
    a, b = (torch.from_numpy(tree["posterior"][name].values) for name in "ab")
    tau = precision(b)
    log_z = a**2 / (2 * tau) - 0.5 * (WIDE * tau).log()
    statistics = tree["sample_stats"]
    assert abs(statistics["log_partition"].values - log_z.numpy()).max() < 0.02
    assert statistics["ess_fraction"].values.min() > 0.7
    exact = dist.Normal((a / tau)[..., None], (1 / tau.sqrt())[..., None]).log_prob(rows["x"])
    found = tree["log_likelihood"]["joint"]
    assert found.dims == ("chain", "draw", "row")
    assert abs(found.values - exact.numpy()).max() < 0.02


def test_replicates_follow_their_parameters(tree):
    replicates = tree["posterior_predictive"]["x"]
    assert replicates.shape == (4, 15, N)
    means = torch.from_numpy(replicates.values).mean(-1).flatten()
    a, b = (torch.from_numpy(tree["posterior"][n].values)[:, :15].flatten() for n in "ab")
    expected = a / precision(b)
    z = (means - expected) / (1 / (N * precision(b))).sqrt()
    assert abs(z.mean()) < 3 / math.sqrt(60)
    assert 0.6 < z.std() < 1.4


def test_leave_one_out_is_that_of_refitting(tree, rows):
    x = rows["x"]
    left = x.repeat(N, 1)[~torch.eye(N, dtype=torch.bool)].reshape(N, N - 1)
    refitted = dist.Normal(left.mean(1), left.std(1, correction=0)).log_prob(x)
    result = arviz_stats.loo(tree, pointwise=True)
    # The law of the parameters adds O(1/n) a row; Monte Carlo some hundredths.
    assert result.elpd == pytest.approx(float(refitted.sum()), abs=0.3)
    assert result.p == pytest.approx(2.0, abs=0.5)  # two parameters
    assert float(result.pareto_k.max()) < 0.6


def test_arviz_checks_the_model(tree):
    collections = [
        arviz_plots.plot_khat(arviz_stats.loo(tree, pointwise=True), backend="matplotlib"),
        arviz_plots.plot_ppc_dist(tree, backend="matplotlib"),
        arviz_plots.plot_forest(tree, backend="matplotlib"),
    ]
    for collection in collections:
        figure = collection.viz["figure"].item()
        figure.canvas.draw()
        plt.close(figure)
    assert list(arviz_stats.summary(tree).index) == ["a", "b"]


def test_it_survives_a_file(tree, tmp_path):
    tree.to_netcdf(tmp_path / "fit.nc", engine="h5netcdf")
    with xarray.open_datatree(tmp_path / "fit.nc", engine="h5netcdf") as back:
        assert arviz_stats.loo(back.load()).elpd == pytest.approx(arviz_stats.loo(tree).elpd)


def test_uncertainty_needs_fit_and_data(fit, rows):
    found = ebm_pp.standard_errors(fit, rows)
    with pytest.raises(DataError, match="without a fit and data"):
        ebm_pp.to_datatree(fit, uncertainty=found)
    with pytest.raises(DataError, match="Pass the fit"):
        ebm_pp.to_datatree(ebm_pp.importance_sample(fit, 100), data=rows, uncertainty=found)
