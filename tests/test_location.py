"""Location and scale against plain moments and against the truth, with far rows and without."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

from ebm_pp import EnergyModel, EnergyNet, FitConfig, FlowGenerator, fit
from ebm_pp.location import location_and_scale
from ebm_pp.sampling import log_prob


def moons(n):
    angle, upper = math.pi * torch.rand(n), torch.rand(n) < 0.5
    curve = torch.stack([angle.cos(), angle.sin()], 1)
    other = torch.stack([1 - angle.cos(), 0.5 - angle.sin()], 1)
    return torch.where(upper[:, None], curve, other) + 0.1 * torch.randn(n, 2)


CLEAN = {
    "normal": lambda n: torch.randn(n, 2),
    "moons": moons,
    "uniform": lambda n: torch.rand(n, 2),
    "two modes": lambda n: torch.randn(n, 2) + 9 * torch.sign(torch.randn(n, 1)),
    "laplace": lambda n: dist.Laplace(0.0, 1.0).sample((n, 2)),
    "log of gamma": lambda n: dist.Gamma(2.0, 1.0).sample((n, 2)).log(),
    "exponential": lambda n: -torch.rand(n, 2).log(),
    "mostly zeros": lambda n: torch.randn(n, 2).exp() * (torch.rand(n, 2) < 0.2),
}


@pytest.mark.parametrize("correction", [0, 1])
@pytest.mark.parametrize("name", CLEAN)
def test_clean_rows_have_plain_moments_bit_for_bit(name, correction):
    x = CLEAN[name](4000)
    loc, scale = location_and_scale(x, correction)
    assert torch.equal(loc, x.mean(0))
    assert torch.equal(scale, x.std(0, correction=correction))


@pytest.mark.parametrize("far", [30.0, 1e4, -1e9, 1e30])
@pytest.mark.parametrize("count", [1, 20])
def test_far_rows_move_neither(far, count):
    x = 3 + 2 * torch.randn(4000, 2, dtype=torch.float64)
    dirty = x.clone()
    dirty[:count, 1] = far
    if far == 30.0 and count == 1:  # thirteen standard deviations: not yet a tenth of the spread
        return
    loc, scale = location_and_scale(dirty, 0)
    assert torch.equal(loc[0], x[:, 0].mean())
    assert abs(loc[1] - 3) < 0.2
    assert abs(scale[1] - 2) < 0.4


def test_against_a_plain_loop():
    x = dist.StudentT(2.0).sample((501, 3)).double()
    loc, scale = location_and_scale(x, 1)
    for j, column in enumerate(x.numpy().T):
        ordered = np.sort(column)
        low, high = ordered[125], ordered[375]
        clipped = np.clip(column, low - 3 * (high - low), high + 3 * (high - low))
        reach = max(ordered[490] - clipped.mean(), clipped.mean() - ordered[10]) / 5
        spread = max(clipped.std(ddof=1), reach)
        moved = column.std(ddof=1) > 1.1 * spread
        assert loc[j].item() == pytest.approx(clipped.mean() if moved else column.mean())
        assert scale[j].item() == pytest.approx(spread if moved else column.std(ddof=1))


def test_a_small_mode_far_away_stays_within_reach_of_the_splines():
    for share in (0.05, 0.1, 0.3):
        x = torch.randn(8000, 1) + 20.0 * (torch.rand(8000, 1) < share)
        loc, scale = location_and_scale(x, 0)
        assert ((20 - loc) / scale < 5).all()


def test_the_bulk_of_cauchy_rows_has_unit_order():
    x = dist.Cauchy(0.0, 1.0).sample((6000, 2))
    loc, scale = location_and_scale(x, 1)
    assert (x.std(0) > 20).all()
    assert ((scale > 1) & (scale < 4)).all()
    assert (loc.abs() < 0.3).all()


def test_equal_rows_have_no_spread_at_all():
    x = torch.full((500, 2), 0.1)
    x[0, 0] = 0.2
    _, scale = location_and_scale(x, 1)
    assert scale[0] > 0
    assert scale[1] == 0


def test_of_many_rows_the_quantiles_are_those_of_some(monkeypatch):
    monkeypatch.setattr("ebm_pp.location.MOST_ROWS", 1000)
    x = torch.randn(50_000, 2)
    x[7] = 1e6
    loc, scale = location_and_scale(x, 0)
    assert (loc.abs() < 0.05).all()
    assert ((scale - 1).abs() < 0.05).all()


def test_net_and_flow_stand_on_the_bulk():
    torch.manual_seed(0)
    x = torch.randn(3000, 2)
    x[5] = 1e4

    def program():
        pyro.sample("x", dist.Normal(torch.zeros(2), 1.0).to_event(1))

    flow, net = FlowGenerator(EnergyModel(program), {"x": x}), EnergyNet(x)
    for scale in (flow.scale, net.scale):
        assert ((scale - 1).abs() < 0.05).all()
    for loc in (flow.loc, net.loc):
        assert (loc.abs() < 0.05).all()


def test_one_row_far_away_costs_the_others_nothing():
    """At 10,000 standard deviations; a plain standard deviation cost them 1.3 nats."""
    torch.manual_seed(0)
    rows = torch.randn(3000, 2)
    rows[5] = 1e4

    class Program(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = EnergyNet(rows[:2000])

        def forward(self):
            x = pyro.sample("x", dist.Normal(torch.zeros(2), 3.0).to_event(1))
            pyro.factor("shape", -self.net(x))

    config = FitConfig.fast(rounds=4, progress=False)
    with pytest.warns(UserWarning, match=r"row 5 has x\[0\] = 10000"):
        result = fit(EnergyModel(Program()), {"x": rows[:2000]}, config=config)
    clean = {"x": rows[2000:]}
    truth = dist.Normal(0.0, 1.0).log_prob(rows[2000:]).sum(1).mean()
    assert abs(log_prob(result, clean, n=4000, seed=0).values.mean() - truth) < 0.1
    assert abs(result.generator.log_prob(clean).mean() - truth) < 0.1
