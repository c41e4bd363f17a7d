"""A round's record, and what reaches the rows, against formulas with every limit's number."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from closed_form import Product
from torch.distributions import constraints

from ebm_pp import EnergyModel, moments, pool
from ebm_pp.outskirts import outskirts_of
from ebm_pp.pareto import psis
from ebm_pp.pool import Pool, diagnose_round, draw_pool, scored
from ebm_pp.reach import behind_barrier, data_side, widest

F64 = torch.float64
Q = Product({"x": dist.Normal(torch.tensor(0.2, dtype=F64), 1.3)})


def model_of(base=None, factor=lambda x: -0.3 * x.square()):
    base = base or dist.Normal(torch.zeros((), dtype=F64), 2.0)

    def declared():
        x = pyro.sample("x", base)
        pyro.factor("f", factor(x))

    return EnergyModel(declared).double()


def test_the_record_of_a_round_is_its_formulas():
    model = model_of()
    data = {"x": torch.randn(300, dtype=F64)}
    drawn = draw_pool(model, Q, data, 1000, 0.2, outskirts_of(model, data))
    drawn, terms, log_density = scored(model, drawn)
    held_out = model.log_density({"x": torch.randn(80, dtype=F64)})
    info = diagnose_round(model, drawn, terms, log_density, held_out, 1.5, 300)
    of_q = (log_density - Q.log_prob(drawn.x))[300 : 300 + len(drawn.log_q_generator)]
    log_z = of_q.exp().mean().log().item()
    assert info["log_partition"] == pytest.approx(log_z)
    b = info["offset"]
    ratio = log_density - drawn.log_q - b - math.log(1.5)  # the logit of the discriminator
    misses, alarms = torch.sigmoid(-ratio[:300]).mean(), torch.sigmoid(ratio[300:]).mean()
    assert misses.item() == pytest.approx(1.5 * alarms.item())
    assert info["offset_gap"] == pytest.approx(b - log_z)
    w = (log_density - drawn.log_q)[300:].exp()  # of all draws, by the mixture
    value = w.mean().log().item()
    error = (w / w.mean()).std(correction=0).item() / math.sqrt(1000)
    assert info["held_out"] == pytest.approx(held_out.mean().item() - value)
    spread = held_out.std().item() / math.sqrt(80)
    assert info["held_out_se"] == pytest.approx(math.hypot(spread, error))
    upper = (w * w.log()).sum().item() / w.sum().item()
    assert info["held_out_least"] == pytest.approx(held_out.mean().item() - upper)
    assert info["held_out_least"] < info["held_out"]
    gaps = moments.compare_moments(
        {name: term[:300] for name, term in terms.items()},
        {name: term[drawn.draws] for name, term in terms.items()}, of_q, 300,
    )  # fmt: skip
    worst = max(gaps, key=lambda name: abs(gaps[name].z))
    assert (info["worst_term"], info["max_moment_gap"]) == (worst, gaps[worst].z)


@pytest.mark.parametrize(("lost", "ends"), [(50, False), (51, True)])
def test_a_run_ends_where_most_draws_are_rejected(lost, ends):
    model = model_of()
    drawn = draw_pool(model, Q, None, 100, 0.0)
    drawn = drawn._replace(rejected=torch.arange(100) < lost)
    if not ends:
        log_density = scored(model, drawn)[2]
        assert torch.equal(log_density == -math.inf, drawn.rejected)
        return
    with pytest.raises(FloatingPointError, match="51% of the draws have no density"):
        scored(model, drawn)


def test_four_chains_watch_the_four_columns_that_weights_move_most(monkeypatch):
    seen = []
    statistics = pool.chain_statistics

    def spy(values):
        seen.append(values)
        return statistics(values)

    monkeypatch.setattr(pool, "chain_statistics", spy)
    watched = torch.randn(402, 7, dtype=F64)
    log_weights = watched[:, [1, 3, 4, 6]].sum(1) / 4
    info = pool._chain_summary(watched, log_weights)
    (values,) = seen
    assert values.shape == (4, 100, 4)
    flat = {tuple(row) for row in watched[:, [1, 3, 4, 6]].sort(1).values.tolist()}
    assert all(tuple(row) in flat for row in values.flatten(0, 1).sort(1).values.tolist())
    ess, rhat, mcse = statistics(values)
    assert (info["min_ess"], info["max_rhat"]) == (ess.min(), rhat.max())
    spread = values.flatten(0, 1).std(0).numpy()
    assert info["max_mcse"] == pytest.approx((mcse / spread).max())
    few = pool._chain_summary(watched[:3], log_weights[:3])
    assert all(math.isnan(value) for value in few.values())


def test_a_pool_names_its_parts():
    x = {"x": torch.arange(10.0)}
    rejected = torch.arange(10) < 4
    some = Pool(x, torch.zeros(10), 3, torch.zeros(4), rejected, 2)
    assert some.x["x"][some.draws].tolist() == [3.0, 4.0, 5.0, 6.0]
    assert some.rejected_share == pytest.approx(1 / 5)  # of rows 3 to 7 the first


# Reach -----------------------------------------------------------------------------------------
@pytest.mark.parametrize(("depth", "barred"), [(0.99, 0.0), (1.01, 1.0)])
def test_a_barrier_is_a_nat_at_one_of_17_points(depth, barred):
    """A dip that only the middle of the way sees."""
    flat = dist.ImproperUniform(constraints.real, (), ())
    model = model_of(flat, lambda x: -depth * (-(((x - 1) / 0.03) ** 2)).exp())
    rows, draws = torch.tensor([[2.0]], dtype=F64), torch.tensor([[0.0], [-0.5]], dtype=F64)
    assert behind_barrier(model, rows, draws) == barred
    assert behind_barrier(model, rows, draws + 1.0) == barred  # the dip at its end


def test_rows_beyond_reach_are_a_nat_above_every_draw():
    draws = torch.tensor([-1.0, 0.5, 2.0], dtype=F64)
    rows = torch.tensor([2.0, 2.99, 3.01, 9.0], dtype=F64)
    side = data_side(rows, draws, 0.7)
    assert side.beyond.tolist() == [False, False, True, True]
    assert side.share == 0.5
    assert side.forward_ess == pytest.approx(math.exp(0.7) / rows.exp().mean().item())


def test_the_widest_coordinate_and_its_limit():
    model = EnergyModel(lambda: pyro.sample("x", dist.Normal(torch.zeros(2), 1.0).to_event(1)))
    u = torch.linspace(-1.0, 1.0, 401, dtype=F64)
    data = torch.stack([u, 3 * u], 1)[torch.randperm(401)]
    draws = torch.stack([u, 2 * u], 1)[::4]
    found = widest(model, data, draws)
    assert (found.name, found.ratio) == ("x[1]", pytest.approx(1.5, rel=1e-3))
    error = 1.166 * math.sqrt(1 / 401 + 1 / 101)
    assert found.limit == pytest.approx(1.15 * math.exp(4 * error))


# Moments and weights ---------------------------------------------------------------------------
@pytest.mark.parametrize(("visits", "named"), [(9, False), (10, True)])
@pytest.mark.parametrize("of_draws", [False, True])
def test_integers_that_ten_trajectories_visit_have_shares(visits, named, of_draws):
    plain, other = torch.zeros(40, 5, dtype=torch.long), torch.zeros(40, 5, dtype=torch.long)
    other[:visits, 2] = 3
    data, draws = (plain, other) if of_draws else (other, plain)
    at_data, at_draws = {}, {}
    moments._integer_shares("states", data, draws, at_data, at_draws)
    assert ("states = 3" in at_data) == named
    assert at_data.keys() == at_draws.keys()
    if named:
        shares = (at_draws if of_draws else at_data)["states = 3"]
        assert shares.tolist() == [0.2] * visits + [0.0] * (40 - visits)


@pytest.mark.parametrize(("apart", "flat"), [(0.9e-4, True), (1.1e-4, False)])
def test_largest_weights_are_equal_to_a_ten_thousandth(apart, flat):
    """Of 400 weights the largest 60 are the tail, over the cut-off."""
    tail = apart * torch.linspace(0.0, 1.0, 61, dtype=F64)
    weights = torch.cat([torch.full((339,), -5.0, dtype=F64), tail])
    assert (psis(weights)[1] == -math.inf) == flat
