"""Mass where neither the generator nor the base measure draws."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from closed_form import Exact, Product, exact, mixture, normal, rows
from torch import nn

import ebm_pp
from ebm_pp import EnergyModel, FitConfig, diagnose
from ebm_pp.leak import find_leak, with_lumps_found
from ebm_pp.outskirts import END, MOST_LUMPS, base_away, outskirts, outskirts_of
from ebm_pp.pool import OUTER, draw_pool
from ebm_pp.sampling import propose

F64 = torch.float64
LINE = torch.tensor([False, False])


# The density -----------------------------------------------------------------------------------
@pytest.mark.parametrize("far", [None, (6.0, 1.0), (60.0, 10.0)])
def test_it_integrates_to_one(far):
    z = torch.randn(200, 2, dtype=F64)
    if far:
        z[3] = torch.tensor(far, dtype=F64)
    o = outskirts(LINE, z, None)
    side = torch.linspace(-90, 110, 1001, dtype=F64)
    grid = torch.cartesian_prod(side, side[:901] + 10)
    total = sum(o.log_prob(part).exp().sum().item() for part in grid.split(400_000)) * 0.04
    assert total == pytest.approx(1.0, abs=2e-3)  # the widest normal has 6 spreads


@pytest.mark.parametrize("lumps", [[], [[2.9, -2.9], [1.0, 1.0]]])
@pytest.mark.parametrize("circular", [[False, False], [False, True], [True, True]])
def test_draws_follow_the_density(circular, lumps):
    """E_o[1 / o] over a box is its volume."""
    z = torch.randn(500, 2, dtype=F64).clamp(-3, 3)
    o = outskirts(torch.tensor(circular), z, 2 * torch.randn(500, 2, dtype=F64))
    o = o.with_lumps(torch.tensor(lumps, dtype=F64).reshape(-1, 2))
    draws = o.sample(200_000)
    inside = (draws.abs() < 3.0).all(1)
    ratio = torch.where(inside, (-o.log_prob(draws)).exp(), 0.0)
    error = ratio.std().item() / math.sqrt(len(ratio))
    assert abs(ratio.mean().item() - 36.0) < 4 * error
    assert error < 1.0


def test_ways_lead_to_the_farthest_rows_and_end_where_doubles_do():
    z = torch.randn(500, 2, dtype=F64)
    z[7] = torch.tensor([1e9, 0.0], dtype=F64)
    o = outskirts(LINE, z, None)
    assert o.ends.norm(dim=1).max().item() == pytest.approx(END)
    x = o.sample(20_000)
    # From the centre outwards every doubling of the distance has its share.
    for low in (10.0, 100.0, 1000.0):
        along = (x[:, 0] > low) & (x[:, 0] < 2 * low) & (x[:, 1].abs() < 2)
        assert along.double().mean() > 0.005
    assert o.log_prob(x).isfinite().all()


def test_the_wider_of_data_and_base_sets_the_spread():
    narrow, wide = torch.randn(4000, 2, dtype=F64), 7 * torch.randn(4000, 2, dtype=F64) + 3
    assert outskirts(LINE, narrow, wide).spread.tolist() == pytest.approx([7.0, 7.0], rel=0.1)
    assert outskirts(LINE, wide, narrow).spread.tolist() == pytest.approx([7.0, 7.0], rel=0.1)
    assert outskirts(LINE, narrow, wide).centre.tolist() == pytest.approx([3.0, 3.0], abs=0.6)


def test_the_pool_is_a_mixture_with_them():
    """E over the draws of f / q_mix is the integral of f, here that of a normal far out."""
    model = EnergyModel(lambda: pyro.sample("x", dist.Normal(torch.zeros(2), 1.0).to_event(1)))
    generator = Product({"x": normal(0.0, 1.0)})
    data = rows(normal(0.0, 1.0), 1000)
    outer = outskirts_of(model, data)
    far = dist.Normal(torch.tensor([3.0, -3.0]), 1.0).to_event(1)
    pools = [draw_pool(model, generator, data, 8192, 0.2, outer) for _ in range(20)]
    assert pools[0].n_outer == round(OUTER * round(0.2 * 8192))
    found = []
    for pool in pools:
        at = slice(pool.n_data, None)
        found.append((far.log_prob(pool.x["x"][at]) - pool.log_q[at]).exp().mean())
    found = torch.stack(found)
    assert abs(found.mean().item() - 1) < 4 * found.std().item() / math.sqrt(20)
    assert found.std().item() < 0.5


# The check -------------------------------------------------------------------------------------
def lumpy(at, weight):
    """N(0, I) and a lump that the base measure N(0, 1.5^2 I) does not reach."""
    return mixture([0.0, at], [1 - weight, weight])


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("at", "weight"), [(6.0, 0.15), (8.0, 0.03), (10.0, 0.5)])
def test_a_lump_that_nobody_draws_is_named_with_its_share(at, weight, seed):
    fit = exact(lumpy(at, weight), normal(0.0, 1.0), normal(0.0, 1.5))
    report = diagnose(fit, rows(normal(0.0, 1.0), 2000, seed), seed=seed)
    assert report.problems[0] == "leaked_mass"
    leak = report.evidence.leak
    assert abs(leak.share - weight) < 4 * leak.standard_error
    assert leak.standard_error < 0.25 * leak.share
    row = next(row for row in report.rows if row.name == "log Z")
    assert row.verdict == "not to be trusted"
    assert "base measure" in report.verdict


def test_the_stated_error_of_a_share_is_neither_too_small_nor_too_large():
    fit = exact(lumpy(6.0, 0.15), normal(0.0, 1.0), normal(0.0, 1.5))
    outer = outskirts_of(fit.model, rows(normal(0.0, 1.0), 2000))
    z = []
    for seed in range(60):
        torch.manual_seed(seed)
        weights = propose(fit, 2000).log_weights
        log_z = weights.logsumexp(0).item() - math.log(2000)
        leak = find_leak(fit.model, fit.generator, outer, weights, log_z, 2000)
        z.append((leak.share - 0.15) / leak.standard_error)
    z = torch.tensor(z)
    assert 0.7 < z.std().item() < 1.4
    assert abs(z.mean().item()) < 0.5


def test_lumps_that_a_round_finds_have_draws_in_the_next_pool():
    fit = exact(lumpy(6.0, 0.15), normal(0.0, 1.0), normal(0.0, 1.5))
    outer = outskirts_of(fit.model, rows(normal(0.0, 1.0), 2000))
    torch.manual_seed(0)
    weights = propose(fit, 2000).log_weights
    log_z = weights.logsumexp(0).item() - math.log(2000)
    found = with_lumps_found(fit.model, fit.generator, outer, weights, log_z)
    assert 8 < len(found.lumps) <= MOST_LUMPS
    at = found.lumps.median(0).values
    inside = [((o.sample(4000) - at).abs() < 1.0).all(1).double().mean() for o in (outer, found)]
    assert inside[0] < 0.05 < 0.2 < inside[1]
    clean = exact(normal(0.0, 1.0), normal(0.0, 1.0), normal(0.0, 1.5))
    weights = propose(clean, 2000).log_weights
    again = with_lumps_found(clean.model, clean.generator, found, weights, log_z)
    assert len(again.lumps) == 0  # once they are gone the draws are needed elsewhere


@pytest.mark.parametrize("height", [49.0, 800.0, 5000.0])
def test_no_share_is_above_one_and_no_number_has_a_hundred_digits(height):
    def declared():
        x = pyro.sample("x", dist.Normal(torch.zeros(2), 1.5).to_event(1))
        lump = height - 0.5 * ((x - 9.0) ** 2).sum()
        pyro.factor("energy", torch.logaddexp(-0.2 * x.square().sum(), lump))

    fit = Exact(EnergyModel(declared), Product({"x": normal(0.0, 1.0)}), 0.0)
    report = diagnose(fit, rows(normal(0.0, 1.0), 1000))
    assert report.evidence.leak.share == pytest.approx(1.0)
    assert report.problems[0] == "leaked_mass"
    assert "100%" in report.verdict
    assert max(map(len, str(report).splitlines())) < 400


@pytest.mark.parametrize("seed", range(10))
def test_a_fit_without_a_lump_is_not_accused(seed):
    fit = exact(normal(0.0, 1.0), None, normal(0.0, 1.5), n_train=2000)
    report = diagnose(fit, rows(normal(0.0, 1.0), 2000, seed), seed=seed)
    assert report.ok
    assert report.evidence.leak.share < 0.005


def test_an_improper_base_is_looked_at_too():
    def declared():
        x = pyro.sample("x", dist.ImproperUniform(dist.constraints.real, (), ()))
        pyro.factor("energy", torch.logaddexp(-0.5 * x**2, -0.5 * (x - 9.0) ** 2))

    fit = Exact(EnergyModel(declared), Product({"x": dist.Normal(0.0, 1.0)}), 0.0)
    report = diagnose(fit, {"x": torch.randn(1000, generator=torch.Generator().manual_seed(0))})
    assert report.problems[0] == "leaked_mass"
    assert report.evidence.leak.share == pytest.approx(0.5, abs=0.1)


def test_the_outskirts_of_the_training_rows_are_kept_and_saved(tmp_path):
    class Shift(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.zeros(()))

        def forward(self):
            pyro.factor("f", self.w * pyro.sample("x", dist.Normal(0.0, 2.0)))

    data = {"x": torch.randn(600, generator=torch.Generator().manual_seed(0))}
    data["x"][5] = 40.0
    config = FitConfig(
        rounds=2, pool=512, batch=128, warm_start_steps=10, energy_steps=5, progress=False
    )
    fit = ebm_pp.fit(EnergyModel(Shift()), data, config=config)
    assert fit.outskirts.ends.max().item() > 10  # the row at 40, in spreads of the base
    ebm_pp.save(fit, tmp_path / "fit.pt")
    again = ebm_pp.load(tmp_path / "fit.pt", Shift())
    for one, two in zip(fit.outskirts, again.outskirts, strict=True):
        assert torch.equal(one, two)
    assert str(diagnose(fit, data, n=500)) == str(diagnose(again, data, n=500))


@pytest.mark.parametrize("far", [0.0, 40.0, 1e7])
def test_rows_that_the_ways_lead_to_are_known_again(far):
    z = torch.randn(500, 3, generator=torch.Generator().manual_seed(0))
    z[7] += far
    circular = torch.tensor([False, True, False])
    outer = outskirts(circular, z[:400], None)
    u = ((z - outer.centre) / outer.spread)[:, ~circular]
    farthest = u[:400].norm(dim=1).argsort(descending=True)
    assert outer.among(z[:400])
    assert outer.among(z[farthest[:2].sort().values])
    assert not outer.among(z[400:])
    assert not outer.among(z[farthest[8:]])
    assert not outer.among(z[farthest[:8]] + 1e-3)


def test_without_a_defensive_mixture_there_are_none():
    data = {"x": torch.randn(600, 2)}

    class Plain(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.zeros(()))

        def forward(self):
            x = pyro.sample("x", dist.Normal(torch.zeros(2), 2.0).to_event(1))
            pyro.factor("f", -self.w * x.square().sum())

    config = FitConfig(
        rounds=1, pool=512, batch=128, warm_start_steps=5, energy_steps=2, base_share=0.0,
        progress=False,
    )  # fmt: skip
    assert ebm_pp.fit(EnergyModel(Plain()), data, config=config).outskirts is None


# A base measure far from the rows --------------------------------------------------------------
def test_how_far_the_base_measure_is_from_the_rows():
    def program():
        pyro.sample("near", dist.Normal(1.0, 3.0))
        pyro.sample("far", dist.Normal(torch.zeros(2), torch.tensor([1.0, 2.0])).to_event(1))
        pyro.sample("angle", ebm_pp.Circle())

    model = ebm_pp.EnergyModel(program)
    z = torch.tensor([-11.0, 7.0, 30.0, 2.0]) + torch.zeros(51, 4)
    z[0] = 1e9  # by medians: no single row counts
    away = base_away(model, z)
    assert away.name == "far[1]"
    assert away.spreads == pytest.approx(15, rel=0.1)


def test_without_a_base_on_the_line_nothing_is_far():
    def angle():
        pyro.sample("angle", ebm_pp.Circle())

    assert base_away(ebm_pp.EnergyModel(angle), torch.zeros(9, 1)) is None


@pytest.mark.parametrize(("at", "far"), [(-185.0, False), (-215.0, True)])
def test_the_advice_names_a_base_that_does_not_reach_the_rows(at, far):
    """p~ leaks half of its mass to where neither rows nor draws are; the base is N(0, 10)."""
    fit = exact(mixture([at, 0.0]), normal(at, 1.0), normal(0.0, 10.0))
    report = diagnose(fit, rows(normal(at, 1.0), 2000, 0))
    assert report.problems[0] == "leaked_mass"
    assert ("Give that site the data's location and scale" in report.verdict) is far
    away = report.evidence.away.spreads
    assert away == pytest.approx(-at / 10, rel=0.05)
    assert (f"{away:.0f} or more of its spreads" in report.verdict) is far


def test_rows_far_wider_than_the_base_measure_are_far_from_it():
    model = ebm_pp.EnergyModel(lambda: pyro.sample("x", dist.Normal(0.0, 1.0)))
    z = 100 * torch.randn(4001, 1, generator=torch.Generator().manual_seed(0))
    assert base_away(model, z).spreads == pytest.approx(67.4, rel=0.1)  # half of a normal's rows
