"""`compare`: elpd, its errors and weights against closed forms, and ArviZ's plot of them."""

import math
from types import SimpleNamespace

import arviz_plots
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

from ebm_pp import DataError, EnergyModel, compare


class Normal(nn.Module):
    """N(mean, 1), unnormalised by `constant`: log Z is exactly `constant`."""

    def __init__(self, mean, constant=0.0, site="x"):
        super().__init__()
        self.mean, self.constant, self.site = mean, constant, site

    def forward(self):
        x = pyro.sample(self.site, dist.Normal(0.0, 1.0))
        pyro.factor("shift", self.mean * x - self.mean**2 / 2 + self.constant)


class Wide:
    """A proposal of standard deviation `scale`, so that log Z has an error."""

    has_rsample = True

    def __init__(self, mean, scale, site="x"):
        self.law, self.site = torch.distributions.Normal(mean, scale), site

    def rsample_and_log_prob(self, n):
        x = self.law.sample((n,))
        return {self.site: x}, self.law.log_prob(x)

    def log_prob(self, x):
        return self.law.log_prob(x[self.site])


def fitted(mean, constant=0.0, scale=1.0, site="x"):
    model = EnergyModel(Normal(mean, constant, site))
    return SimpleNamespace(model=model, generator=Wide(mean, scale, site))


def exact(mean, x):
    return torch.distributions.Normal(mean, 1.0).log_prob(x).double()


def test_exact_models_have_exact_elpds_whatever_their_constants():
    torch.manual_seed(0)
    x = 0.3 + torch.randn(500)
    table = compare({"zero": fitted(0.0, 5.0), "right": fitted(0.3, -2.0)}, {"x": x}, n=100)
    assert list(table.index) == ["right", "zero"]
    assert list(table["rank"]) == [0, 1]
    zero, right = exact(0.0, x), exact(0.3, x)
    assert table.elpd["right"] == pytest.approx(right.sum().item(), rel=1e-5)
    assert table.elpd["zero"] == pytest.approx(zero.sum().item(), rel=1e-5)
    gap = right - zero
    assert table.elpd_diff["zero"] == pytest.approx(gap.sum().item(), rel=1e-3)
    assert table.dse["zero"] == pytest.approx(gap.std().item() * 500**0.5, rel=1e-3)
    assert table.se["right"] == pytest.approx(right.std().item() * 500**0.5, rel=1e-3)
    assert table.elpd_diff["right"] == table.dse["right"] == 0
    assert not table.warning.any()


def test_errors_of_log_partition_are_in_both_errors():
    """Many equal rows: all that is uncertain is log Z, by as much as repetitions scatter."""
    x = {"x": torch.zeros(2000)}
    found, stated = [], []
    for seed in range(100):
        fits = {"a": fitted(0.0, scale=1.5), "b": fitted(0.1, scale=2.5)}
        table = compare(fits, x, n=500, seed=seed)
        sign = 1 if table.index[0] == "a" else -1
        found.append(sign * table.elpd_diff.max() / 2000)
        stated.append(table.dse.max() / 2000)
    truth = (exact(0.0, torch.zeros(1)) - exact(0.1, torch.zeros(1))).item()
    z = (torch.tensor(found) - truth) / torch.tensor(stated)
    # Draws of one seed are shared, so that errors of log Z partly cancel: dse is on the safe side.
    assert z.abs().mean() < 1
    assert 0.2 < z.std() < 1.2
    alone = table.se["b"] / 2000
    assert alone == pytest.approx(table.log_partition_se["b"], rel=1e-6)


def test_weights_are_those_of_the_best_mixture():
    torch.manual_seed(1)
    x = torch.cat([torch.randn(300) - 2, torch.randn(700) + 2])
    table = compare({"left": fitted(-2.0), "right": fitted(2.0)}, {"x": x}, n=100)
    left, right = exact(-2.0, x), exact(2.0, x)
    w = torch.linspace(0.001, 0.999, 999, dtype=torch.float64)[:, None]
    best = w[torch.logaddexp(left + w.log(), right + (1 - w).log()).sum(1).argmax()].item()
    assert table.weight["left"] == pytest.approx(best, abs=2e-3)
    assert table.weight.sum() == pytest.approx(1)


def test_groups_widen_the_errors():
    torch.manual_seed(2)
    x = torch.randn(100).repeat(9)
    fits = {"a": fitted(0.0), "b": fitted(0.5)}
    naive = compare(fits, {"x": x}, n=100)
    honest = compare(fits, {"x": x}, n=100, groups=torch.arange(100).repeat(9))
    assert honest.dse.max() == pytest.approx(3 * naive.dse.max(), rel=0.02)
    assert honest.se.iloc[0] == pytest.approx(3 * naive.se.iloc[0], rel=0.02)


def test_bad_weights_warn():
    fits = {"good": fitted(0.0), "bad": fitted(0.0, scale=0.2)}
    table = compare(fits, {"x": torch.randn(50)}, n=2000)
    assert table.warning["bad"]
    assert not table.warning["good"]
    assert math.isnan(table.p.iloc[0])


def test_arviz_plots_it():
    table = compare({"a": fitted(0.0), "b": fitted(1.0)}, {"x": torch.randn(50)}, n=100)
    (ax,) = arviz_plots.plot_compare(table, backend="matplotlib").viz["figure"].item().axes
    assert [text.get_text() for text in ax.get_yticklabels()] == list(table.index)
    assert {"a", "b"} == set(table.index)


def test_what_cannot_be_compared():
    with pytest.raises(ValueError, match="two or more"):
        compare({"one": fitted(0.0)}, {"x": torch.zeros(3)})
    with pytest.raises(DataError, match=r"'b' has the sites \['y'\]"):
        compare({"a": fitted(0.0), "b": fitted(0.0, site="y")}, {"x": torch.zeros(3)})
