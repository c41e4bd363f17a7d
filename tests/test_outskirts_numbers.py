"""Outskirts, pool and leak against their formulas, written out with every constant's number."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from closed_form import Exact, Product
from torch.distributions import constraints

from ebm_pp import EnergyModel, leak
from ebm_pp.leak import Leak, find_leak, with_lumps_found
from ebm_pp.outskirts import outskirts, outskirts_of
from ebm_pp.pool import draw_pool, pick

F64 = torch.float64
LINE = torch.tensor([False, False])


def points(*values):
    return torch.tensor(values, dtype=F64)


def cross(at, d=2):
    """Rows at distance `at` from the middle on every half axis, and enough nearer it."""
    axes = torch.cat([torch.eye(d, dtype=F64), -torch.eye(d, dtype=F64)])
    return torch.cat([at * axes, torch.randn(200, d, dtype=F64)])


# The outskirts' own density --------------------------------------------------------------------
def log_normal(squared, h, d):
    return -squared / (2 * h**2) - d * math.log(h) - d / 2 * math.log(2 * math.pi)


def density(o, z):
    """Of one point, by plain loops; the numbers of the module's text."""
    line = [j for j in range(len(z)) if not o.circular[j]]
    u = [((z[j] - o.centre[j]) / o.spread[j]).item() for j in line]
    scale = math.prod(o.spread[j].item() for j in line) * (2 * math.pi) ** int(o.circular.sum())
    squared = sum(value**2 for value in u)
    total = sum(math.exp(log_normal(squared, s, len(u))) for s in (1.5, 3.0, 6.0)) / 3
    if len(o.starts):
        ways = 0.0
        for a, b in zip(o.starts.tolist(), o.ends.tolist(), strict=True):
            length = math.dist(a, b)
            along = sum((x - p) * (q - p) for x, p, q in zip(u, a, b, strict=True)) / length
            across = max(math.dist(u, a) ** 2 - along**2, 0.0)
            phi = dist.Normal(torch.zeros((), dtype=F64), 0.25).cdf(
                torch.tensor([along, along - length], dtype=F64)
            )
            ways += (
                (phi[0] - phi[1]).item() / length * math.exp(log_normal(across, 0.25, len(u) - 1))
            )
        total = total / 2 + ways / len(o.starts) / 2
    total /= scale
    if not len(o.lumps):
        return total
    near = 0.0
    for lump in o.lumps:
        for h in (0.05, 0.2, 0.8):
            value = 1.0
            for j in range(len(z)):
                turns = range(-1, 2) if o.circular[j] else (0,)
                off = min(abs((z[j] - lump[j]).item() + 2 * math.pi * k) for k in turns)
                width = h * o.spread[j].item()
                value *= math.exp(log_normal(off**2, width, 1))
            near += value / 3 / len(o.lumps)
    return total / 3 + 2 / 3 * near


@pytest.mark.parametrize("lumps", [[], [[2.0, 3.1, -1.0], [0.5, -3.0, 1.0]]])
@pytest.mark.parametrize("circular", [[False] * 3, [False, True, False], [True] * 3])
def test_the_density_is_its_formula(circular, lumps):
    circular, base = torch.tensor(circular), 2 * torch.randn(300, 3, dtype=F64) + 0.5
    o = outskirts(circular, torch.cat([cross(7.0, 3), cross(1.0, 3)]), base)
    o = o.with_lumps(torch.tensor(lumps, dtype=F64).reshape(-1, 3))
    near = o.lumps + 0.3 * torch.randn(len(o.lumps), 3, dtype=F64)
    z = torch.cat([4 * torch.randn(30, 3, dtype=F64), near, o.lumps])
    z[:, circular] = torch.remainder(z[:, circular] + math.pi, 2 * math.pi) - math.pi
    expected = [math.log(density(o, row)) for row in z]
    assert o.log_prob(z).tolist() == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("distance", [3.9, 4.1, 7.9, 8.1, 40.0])
def test_a_way_is_cut_where_the_distance_doubles(distance):
    bulk = torch.linspace(-1.349, 1.349, 101, dtype=F64)[:, None]  # of spread 1
    o = outskirts(torch.tensor([False]), torch.cat([bulk, points([distance])]), None)
    cuts = [0.0, *(cut for cut in (4.0, 8.0, 16.0, 32.0) if cut < distance)]
    end = o.ends[: len(cuts), 0].max().item()
    assert o.starts[: len(cuts), 0].tolist() == pytest.approx(cuts, rel=1e-6)
    assert o.ends[: len(cuts), 0].tolist() == pytest.approx([*cuts[1:], end], rel=1e-6)
    assert end == pytest.approx(distance, rel=1e-6)


def test_eight_rows_have_ways_and_each_one_to_the_next():
    z = torch.cat([torch.randn(500, 2, dtype=F64).clamp(-1.5, 1.5), points(*(
        [3.0 * math.cos(k), 3.0 * math.sin(k)] for k in range(12)
    ))])  # fmt: skip
    o = outskirts(LINE, z, None)
    assert len(o.ends) == 8 + 7
    assert torch.equal(o.starts[:8], torch.zeros(8, 2, dtype=F64))
    assert torch.equal(o.starts[8:], o.ends[:7])
    assert torch.equal(o.ends[8:], o.ends[1:8])


def test_a_way_ends_at_a_hundred_thousand_spreads():
    for distance, end in ((0.9e5, 0.9e5), (1.2e5, 1e5), (1e9, 1e5)):
        z = torch.randn(500, 2, dtype=F64)
        spread = outskirts(LINE, z, None).spread[0].item()
        z[7] = points(distance * spread, 0.0)
        assert outskirts(LINE, z, None).ends.norm(dim=1).max().item() == pytest.approx(
            end, rel=0.02
        )


def test_64_lumps_have_kernels():
    o = outskirts(LINE, cross(3.0), None)
    assert len(o.with_lumps(torch.randn(63, 2, dtype=F64)).lumps) == 63
    lumps = torch.randn(99, 2, dtype=F64)
    assert torch.equal(o.with_lumps(lumps).lumps, lumps[:64])


def test_a_far_row_is_known_to_a_millionth_of_its_distance():
    z = cross(10.0)
    o = outskirts(LINE, z, None)
    distance = o.ends.norm(dim=1).max().item()
    for off, known in ((0.9e-6, True), (1.1e-6, False), (-0.9e-6, True), (-1.1e-6, False)):
        shift = torch.zeros(2, dtype=F64)
        shift[1] = off * distance * o.spread[1]
        row = (o.centre + o.spread * o.ends[o.ends.norm(dim=1).argmax()])[None]
        assert o.among(row + shift) == known


def test_spread_is_that_of_a_normal_and_no_single_row_counts():
    z = dist.Normal(3.0, 2.0).icdf(torch.arange(0.5, 4001) / 4001)[:, None].double()
    z[-1] = 1e9
    o = outskirts(torch.tensor([False]), z, None)
    assert o.centre.item() == pytest.approx(3.0, abs=1e-3)
    assert o.spread.item() == pytest.approx(2.0, rel=1e-3)


def test_2000_draws_of_the_base_measure_tell_its_middle(monkeypatch):
    model, asked = positive(), []
    sample = model.sample_base

    def spy(n):
        asked.append(n)
        return sample(n)

    monkeypatch.setattr(model, "sample_base", spy)
    outskirts_of(model, {"x": torch.rand(50, 2, dtype=F64)})
    assert asked == [2000]


@pytest.mark.parametrize("lumps", [[], [[0.0, 500.0], [3.0, 500.0]]])
@pytest.mark.parametrize("box", ["way", "lump"])
def test_draws_far_out_follow_the_density(box, lumps):
    """E_o[1 / o] over a box is its volume, here round a way and round a lump."""
    o = outskirts(LINE, torch.cat([points([400.0, 0.0]), cross(1.0)]), None)
    o = o.with_lumps(torch.tensor(lumps, dtype=F64).reshape(-1, 2))
    low, high = {"way": ([60, -0.2], [380, 0.2]), "lump": ([-1, 499], [1, 501])}[box]
    x = o.sample(60_000)
    inside = ((x > torch.tensor(low)) & (x < torch.tensor(high))).all(1)
    if box == "lump" and not lumps:
        assert not inside.any()
        return
    ratio = torch.where(inside, (-o.log_prob(x)).exp(), 0.0)
    volume = math.prod(b - a for a, b in zip(low, high, strict=True))
    error = ratio.std().item() / math.sqrt(len(ratio))
    assert abs(ratio.mean().item() - volume) < 4 * error < 0.2 * volume


# The mixture of a pool -------------------------------------------------------------------------
def positive(base=None):
    base = base or dist.LogNormal(torch.zeros(2, dtype=F64), 1.5).to_event(1)

    def declared():
        x = pyro.sample("x", base)
        pyro.factor("energy", -0.5 * x.log().square().sum())

    return EnergyModel(declared).double()


GENERATOR = Product({"x": dist.LogNormal(torch.full((2,), 0.3, dtype=F64), 0.8).to_event(1)})


@pytest.mark.parametrize("outer", [False, True])
@pytest.mark.parametrize("proper", [False, True])
def test_the_density_of_a_pool_is_that_of_its_mixture(proper, outer):
    """log [.8 q + .184 mu + .016 o |dz/dx|] at every row, data too."""
    improper = dist.ImproperUniform(constraints.positive, (), (2,))
    model = positive(None if proper else improper)
    data = {"x": (0.5 * torch.randn(100, 2, dtype=F64)).exp()}
    o = outskirts_of(model, data) if outer else None
    pool = draw_pool(model, GENERATOR, data, 1000, 0.2, o)
    n_outer = 16 if outer else 0
    n_base = 200 - n_outer if proper else 0
    n_q = 1000 - n_base - n_outer
    assert (pool.n_data, pool.n_outer, len(pool.log_q_generator)) == (100, n_outer, n_q)
    assert len(pool.log_q) == 1100
    assert torch.equal(pool.x["x"][:100], data["x"])
    x = pool.x["x"]
    q = GENERATOR.log_prob(pool.x).exp() * n_q / 1000
    mu = dist.LogNormal(0.0, 1.5).log_prob(x).sum(1).exp() * n_base / 1000
    total = q + mu
    if outer:
        total = total + (o.log_prob(x.log()) - x.log().sum(1)).exp() * n_outer / 1000
    torch.testing.assert_close(pool.log_q, total.log(), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(pool.log_q_generator, GENERATOR.log_prob(pick(pool.x, pool.draws)))


@pytest.mark.parametrize(
    ("size", "share", "n_outer"), [(1000, 0.2, 16), (4000, 0.2, 64), (500, 0.1, 4), (100, 1.0, 8)]
)
def test_eight_hundredths_of_the_base_measures_draws_are_of_the_outskirts(size, share, n_outer):
    model = positive()
    data = {"x": torch.rand(50, 2, dtype=F64)}
    pool = draw_pool(model, GENERATOR, data, size, share, outskirts_of(model, data))
    assert pool.n_outer == n_outer
    assert len(pool.log_q_generator) == max(size - round(share * size), 1)


def test_rejected_draws_are_counted_among_those_of_q_and_of_the_base_measure():
    model = positive()
    data = {"x": torch.rand(50, 2, dtype=F64)}
    pool = draw_pool(model, GENERATOR, data, 1000, 0.2, outskirts_of(model, data))
    bad = torch.zeros(1050, dtype=torch.bool)
    bad[50:60] = bad[-20:-16] = bad[-3:] = True  # of q, of mu, of the outskirts
    assert pool._replace(rejected=bad).rejected_share == pytest.approx(14 / 984)


# The leak --------------------------------------------------------------------------------------
@pytest.mark.parametrize("n", [1000, 1001])
def test_a_look_is_half_of_the_base_measure_and_half_of_the_outskirts(n):
    model = positive()
    o = outskirts_of(model, {"x": torch.rand(50, 2, dtype=F64)})
    z, log_m = leak._look(model, o, n)
    mu = dist.LogNormal(0.0, 1.5).log_prob(z.exp()).sum(1) + z.sum(1)
    share = 500 / n
    total = torch.logaddexp(math.log(share) + mu, math.log(1 - share) + o.log_prob(z))
    torch.testing.assert_close(log_m, total)
    assert len(z) == n
    alone = positive(dist.ImproperUniform(constraints.positive, (), (2,)))
    z, log_m = leak._look(alone, o, n)
    torch.testing.assert_close(log_m, o.log_prob(z))


def test_beyond_a_support_only_the_outskirts_have_draws():
    model = positive()
    o = outskirts(LINE, cross(900.0), None)
    z, log_m = leak._look(model, o, 1000)
    outside = ~model.inside(model.constrain(z)[0])  # exp(710) overflows
    assert 10 < outside.sum() < 500
    expected = o.log_prob(z[outside]) - math.log(2)
    torch.testing.assert_close(log_m[outside], expected)


class Looks:
    """`find_leak` of given looks: `masses` are p~ / m of the draws beyond reach, of n in all.

    The density is 1 within reach, and there are the other draws.
    """

    def __init__(self, monkeypatch, masses, n=1000, ratio=1.5):
        self.calls, self.lumps = 0, []
        log_w = torch.full((n,), -1.0, dtype=F64)
        log_w[: len(masses)] = torch.tensor(masses, dtype=F64).log()
        z = torch.zeros(n, 1, dtype=F64)
        z[: len(masses), 0] = torch.arange(1, len(masses) + 1)
        self.model = EnergyModel(self.declared).double()
        self.generator = self
        self.ratio, self.n = ratio, n
        self.outer = outskirts(torch.tensor([False]), torch.randn(50, 1, dtype=F64), None)

        def look(model, outer, count):
            assert count == n
            self.calls += 1
            self.lumps.append(outer.lumps)
            x, log_jacobian = model.constrain(z)
            return z, model.log_density(x) + log_jacobian - log_w

        monkeypatch.setattr(leak, "_look", look)

    def declared(self):
        x = pyro.sample("x", dist.LogNormal(torch.zeros((), dtype=F64), 1.0))
        pyro.factor("f", 0.3 * x.log())

    has_rsample = False

    def rsample_and_log_prob(self, n):
        raise NotImplementedError

    def log_prob(self, x):
        """log p~ / q is `ratio` where z > 0, and 0 elsewhere."""
        above = torch.where(x["x"] > 1.5, self.ratio, 0.0)
        return self.model.log_density(x) - above

    def found(self, log_partition=0.0, least=0.0):
        weights = torch.zeros(10, dtype=F64)
        args = (self.model, self, self.outer, weights, log_partition, self.n, least)
        return find_leak(*args)


def test_a_leak_is_its_formula(monkeypatch):
    masses = [float(k) for k in range(1, 101)]
    looks = Looks(monkeypatch, masses)
    for log_z in (0.0, 2.0, -3.0):
        found = looks.found(log_z)
        mean = sum(masses) / 1000
        share = mean / (math.exp(log_z) + mean)
        assert found.share == pytest.approx(share)
        # d share / d mean = (1 - share) share / mean, and the standard error of a mean
        spread = torch.tensor(masses + [0.0] * 900, dtype=F64).std(correction=0).item()
        error = share * (1 - share) / mean * spread / math.sqrt(1000)
        assert found.standard_error == pytest.approx(error)
    assert len(found.z) == 100
    assert (found.z > 0).all()
    assert found.z.mean().item() == pytest.approx(67.0, abs=3 * 2.4)  # by mass: sum k^2 / sum k


def test_a_leak_is_a_nat_above_the_largest_weight(monkeypatch):
    assert Looks(monkeypatch, [1.0] * 50, ratio=1.01).found().share > 0.04
    none = Looks(monkeypatch, [1.0] * 50, ratio=0.99).found()
    assert (none.share, none.standard_error, len(none.z)) == (0.0, 0.0, 0)


@pytest.mark.parametrize(("k", "calls"), [(24, 4), (26, 1)])
def test_looks_end_at_a_fifth_of_the_share_and_are_four(k, calls, monkeypatch):
    """Of k equal draws the relative error is k^(-1/2), here .204 and .196."""
    looks = Looks(monkeypatch, [1.0] * k, n=20_000)
    looks.found()
    assert looks.calls == calls
    assert len(looks.lumps[0]) == 0
    assert all(len(lumps) > k / 2 for lumps in looks.lumps[1:])  # those just found


def test_a_share_that_does_not_matter_is_not_looked_at_again(monkeypatch):
    looks = Looks(monkeypatch, [1.0] * 4)  # share .004 / 1.004
    looks.found(least=0.00399)
    assert looks.calls == 1
    looks.found(least=0.00398)
    assert looks.calls == 1 + 4


@pytest.mark.parametrize(("share", "lumps"), [(0.0099, 0), (0.0101, 3)])
def test_a_round_looks_with_2048_draws_for_lumps_of_a_hundredth(share, lumps, monkeypatch):
    asked = []

    def look(model, generator, outer, log_weights, log_partition, n, least):
        asked.append((len(outer.lumps), log_partition, n, least))
        return Leak(share, 0.0, points([1.0], [2.0], [2.0], [3.0]))

    monkeypatch.setattr(leak, "find_leak", look)
    fit = Exact(positive(), GENERATOR)
    o = outskirts(torch.tensor([False]), torch.randn(50, 1, dtype=F64), None)
    found = with_lumps_found(
        fit.model, fit.generator, o.with_lumps(points([9.0])), torch.zeros(10), 0.7
    )
    assert asked == [(0, 0.7, 2048, 0.01)]
    assert len(found.lumps) == lumps


def test_shares_of_repetitions_have_the_mean_and_the_error_that_they_state():
    """N(0, 1) and a lump of .2, each with a random stream of its own; from both sides."""

    def declared():
        x = pyro.sample("x", dist.Normal(0.0, 1.5))
        lump = math.log(0.25) - 0.5 * (x - 12.0) ** 2
        pyro.factor("f", torch.logaddexp(-0.5 * x**2, lump) + 0.5 * (x / 1.5) ** 2)

    model = EnergyModel(declared)
    q = Product({"x": dist.Normal(0.0, 1.0)})
    data = {"x": torch.randn(500)}
    o = outskirts_of(model, data)
    log_z = 0.5 * math.log(2 * math.pi) - 0.5 * math.log(2 * math.pi) - math.log(1.5)
    found = []
    for seed in range(60):
        torch.manual_seed(seed)
        found.append(find_leak(model, q, o, torch.full((10,), log_z), log_z, 2000))
    shares = torch.tensor([leak.share for leak in found], dtype=F64)
    errors = torch.tensor([leak.standard_error for leak in found], dtype=F64)
    assert abs(shares.mean().item() - 0.2) < 4 * errors.mean().item() / math.sqrt(60) + 0.002
    assert 0.7 < (shares.std() / errors.square().mean().sqrt()).item() < 1.3
