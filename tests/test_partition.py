import math

import pytest
import torch
from scipy.optimize import brentq
from torch.distributions import Normal, kl_divergence
from torch.nn.functional import logsigmoid

from ebm_pp.losses import discriminator
from ebm_pp.pareto import psis
from ebm_pp.partition import Estimate, bridge, ess_fraction, log_partition_from_weights, sandwich

F64 = torch.float64
LOG_Z = 3.2  # of p~ = exp(LOG_Z) p


def normal(loc, scale):
    return Normal(torch.tensor(loc, dtype=F64), torch.tensor(scale, dtype=F64))


def log_weights(p, q, x):
    """log p~ - log q, summed over coordinates."""
    return (p.log_prob(x) - q.log_prob(x)).sum(-1) + LOG_Z


@pytest.mark.parametrize("d", [1, 2, 8])
def test_importance_against_the_closed_form(d):
    p, q = normal(0.2, 0.8), normal(0.0, 1.0)
    x = q.sample((20_000, d))
    estimate = log_partition_from_weights(log_weights(p, q, x))
    assert abs(estimate.value - LOG_Z) < 3 * estimate.standard_error
    # E_q[w^2] / Z^2 of one coordinate by quadrature: ESS/n is its inverse to the power d, and the
    # relative variance is that less one.
    grid = torch.linspace(-12, 12, 4001, dtype=F64)
    square = ((2 * p.log_prob(grid) - q.log_prob(grid)).exp().sum() * (grid[1] - grid[0])).item()
    assert estimate.ess == pytest.approx(square**-d, rel=0.05)
    assert estimate.standard_error == pytest.approx(math.sqrt((square**d - 1) / 20_000), rel=0.05)
    assert estimate.pareto_k < 0.5


def test_standard_error_covers_the_truth_as_often_as_it_says():
    p, q = normal(0.3, 0.9), normal(0.0, 1.1)
    weights = log_weights(p, q, q.sample((600, 1000, 2)))
    estimates = [log_partition_from_weights(w) for w in weights]
    z = torch.tensor([(e.value - LOG_Z) / e.standard_error for e in estimates])
    # One standard error of a coverage from 600 repetitions is .019 and .009.
    assert (z.abs() < 1).double().mean().item() == pytest.approx(0.683, abs=0.057)
    assert (z.abs() < 1.96).double().mean().item() == pytest.approx(0.950, abs=0.027)
    assert abs(z.mean().item()) < 3 / math.sqrt(600) + 0.02  # log is concave: a bias of se / 2


def test_a_heavy_tail_is_flagged():
    p, q = normal(0.0, 1.0), normal(0.0, 0.3)  # w has 1 / (1 - .09) = 1.1 moments: k = .91
    estimate = log_partition_from_weights(log_weights(p, q, q.sample((10_000, 1))))
    assert estimate.pareto_k > 0.7


def test_the_numbers_are_those_of_their_formulas():
    weights = torch.randn(500, dtype=F64) * 1.5
    estimate = log_partition_from_weights(weights)
    smoothed, k = psis(weights)
    assert estimate.pareto_k == k
    raw = weights.exp()
    assert estimate.value == pytest.approx(raw.mean().log().item())
    relative = (raw / raw.mean()).var(correction=0).item()
    assert estimate.standard_error == pytest.approx(math.sqrt(relative / 500))
    assert estimate.ess == pytest.approx((raw.sum() ** 2 / raw.square().sum()).item() / 500)
    # Smoothing leaves the body of the weights alone, so that a ratio there gives the scale.
    i = int(weights.argsort()[250])
    other = smoothed.exp() * (raw[i] / smoothed[i].exp())
    assert estimate.smoothed == pytest.approx(other.mean().log().item())
    relative = (other / other.mean()).var(correction=0).item()
    assert estimate.smoothed_error == pytest.approx(math.sqrt(relative / 500))
    assert estimate.agrees


@pytest.mark.parametrize("giant", [5.0, 6.0, 8.0, 10.0, 20.0, 300.0])
def test_value_and_error_move_together_where_one_draw_is_a_giant(giant):
    weights = 0.2 * torch.randn(4000, dtype=F64)
    body = log_partition_from_weights(weights).value
    weights[7] = giant
    estimate = log_partition_from_weights(weights)
    shift = estimate.value - body
    share = 1 - math.exp(-shift)  # of all weight: the relative error that one draw makes
    assert estimate.standard_error == pytest.approx(share, rel=0.1)
    assert estimate.ess == pytest.approx(1 / 4000 / (share**2 + 1 / 4000), rel=0.1)
    assert not estimate.agrees or estimate.pareto_k == math.inf
    assert abs(estimate.smoothed - body) < 0.05 or estimate.pareto_k == math.inf


@pytest.mark.parametrize("k", [0.1, 0.3, 0.5])
def test_honest_tails_agree(k):
    weights = -k * torch.rand(100, 2000, dtype=F64).log()
    assert sum(log_partition_from_weights(w).agrees for w in weights) >= 98


@pytest.mark.parametrize("n", [1, 2, 10, 24])
def test_too_few_draws_state_no_error(n):
    estimate = log_partition_from_weights(torch.randn(n))
    assert math.isnan(estimate.standard_error)
    assert "too few draws" in str(estimate)
    enough = log_partition_from_weights(torch.randn(25))
    assert enough.standard_error > 0
    assert "+-" in str(enough)


def test_equal_weights_are_exact():
    estimate = log_partition_from_weights(torch.full((100,), 1.5))
    assert estimate.value == pytest.approx(1.5)
    assert estimate.standard_error == pytest.approx(0.0, abs=1e-8)
    assert estimate.ess == pytest.approx(1.0)
    assert estimate.pareto_k == -math.inf


@pytest.mark.parametrize("shift", [-2000.0, 2000.0])  # exp() of these is 0 or inf
def test_huge_and_tiny_weights(shift):
    weights = torch.randn(1000, dtype=F64)
    plain, moved = log_partition_from_weights(weights), log_partition_from_weights(weights + shift)
    assert moved.value == pytest.approx(plain.value + shift)
    assert moved.standard_error == pytest.approx(plain.standard_error)
    assert moved.ess == pytest.approx(plain.ess)


def test_zero_weights():
    half = torch.cat([torch.zeros(50), torch.full((50,), -math.inf)])
    assert log_partition_from_weights(half).value == pytest.approx(math.log(0.5))
    assert ess_fraction(half) == pytest.approx(0.5)
    assert math.isnan(ess_fraction(torch.full((10,), -math.inf)))


def test_estimate_prints_its_four_numbers():
    estimate = Estimate(value=1.23456, standard_error=0.01234, ess=0.8765, pareto_k=0.123)
    assert str(estimate) == "1.2346 +- 0.0123 (ESS/n 0.876, Pareto k 0.12)"


def test_estimate_is_frozen():
    with pytest.raises(AttributeError):
        Estimate(0.0, 0.0, 1.0, 0.0).value = 1.0


# The bridge ------------------------------------------------------------------------------------
def root(data, draws, nu):
    """b of E_p[1 - D] = nu E_q[D], by bracketing the difference of logarithms."""

    def gap(b):
        misses = logsigmoid(b + math.log(nu) - data).logsumexp(0) - math.log(len(data))
        alarms = logsigmoid(draws - b - math.log(nu)).logsumexp(0) - math.log(len(draws))
        return (misses - alarms).item() - math.log(nu)

    return brentq(gap, -1000, 1000, xtol=1e-12)


def rows(*values):
    return torch.tensor(values, dtype=F64)


STARTS = {
    "overlapping": (torch.linspace(-1, 3, 50, dtype=F64), torch.linspace(-4, 1, 70, dtype=F64)),
    "one row each": (rows(1.0), rows(-0.5)),
    "skew": (rows(0.0, 0.1, 30.0), rows(-40.0, -0.3, 0.2)),
    "separated": (rows(25.0, 30.0), rows(-25.0, -31.0)),
    "saturated": (rows(200.0, 200.0), rows(-200.0, -200.0)),
    "saturated, unequal": (rows(200.0, 190.0), rows(-200.0, -180.0, -100.0)),
    "one miss among saturated": (rows(*[200.0] * 99, -3.0), rows(*[-200.0] * 50)),
    "one alarm among saturated": (rows(*[200.0] * 50), rows(*[-200.0] * 99, 3.0)),
}


@pytest.mark.parametrize("nu", [1.0, 4.0])
@pytest.mark.parametrize("start", STARTS)
def test_bridge_solves_the_bridge_equation(start, nu):
    data, draws = STARTS[start]
    assert bridge(data, draws, nu) == pytest.approx(root(data, draws, nu), abs=1e-7)


def test_bridge_where_everything_is_misclassified():
    data, draws = rows(-200.0, -190.0), rows(200.0, 100.0)
    b = bridge(data, draws, 4.0)
    misses, alarms = torch.sigmoid(b + math.log(4) - data), torch.sigmoid(draws - b - math.log(4))
    assert misses.mean().item() == pytest.approx(4 * alarms.mean().item(), abs=1e-9)
    assert b == pytest.approx(root(data, draws, 4.0), abs=1e-6)
    assert -190 < bridge(data, draws, 1.0) < 100  # flat between: to rounding, all of it solves it


def test_bridge_is_the_minimum_of_the_discriminators_loss():
    data, draws = torch.randn(300, dtype=F64) + 1, torch.randn(500, dtype=F64) * 2
    b = torch.tensor(bridge(data, draws, 4.0), dtype=F64, requires_grad=True)
    (slope,) = torch.autograd.grad(discriminator(data, draws, b, 4.0), b)
    assert abs(slope.item()) < 1e-12


@pytest.mark.parametrize("nu", [1, 4])
def test_bridge_estimates_log_z_where_the_data_are_the_models(nu):
    p, q = normal(0.3, 0.8), normal(0.0, 1.0)
    data, draws = p.sample((4000, 2)), q.sample((4000 * nu, 2))
    b = bridge(log_weights(p, q, data), log_weights(p, q, draws), float(nu))
    # The error of a root: the noise of the equation over its slope in b.
    logits = [log_weights(p, q, x) - LOG_Z - math.log(nu) for x in (data, draws)]
    misses, alarms = torch.sigmoid(-logits[0]), torch.sigmoid(logits[1])
    noise = misses.var() / 4000 + nu**2 * alarms.var() / (4000 * nu)
    slope = (misses * (1 - misses)).mean() + nu * (alarms * (1 - alarms)).mean()
    assert abs(b - LOG_Z) < 3 * (noise.sqrt() / slope).item()


def test_bridge_shifts_with_the_weights_and_takes_float32():
    data, draws = torch.randn(100) + 1, torch.randn(100)
    b = bridge(data, draws)
    assert isinstance(b, float)
    assert bridge(data + 50, draws + 50) == pytest.approx(b + 50, abs=1e-4)


# The sandwich ----------------------------------------------------------------------------------
def test_sandwich_has_log_z_inside_and_the_width_of_two_kl():
    p, q = normal(0.5, 0.8), normal(0.0, 1.0)
    weights = log_weights(p, q, q.sample((40_000, 1)))
    lower, upper = sandwich(weights)
    se_lower = weights.std().item() / 200
    shares = weights.softmax(0)
    se_upper = (shares * (weights - upper)).square().sum().sqrt().item()
    assert lower < LOG_Z < upper
    assert abs(lower - (LOG_Z - kl_divergence(q, p).item())) < 3 * se_lower
    assert abs(upper - (LOG_Z + kl_divergence(p, q).item())) < 3 * se_upper


@pytest.mark.parametrize("giant", [-50.0, 0.0, 17.0, 700.0])
def test_log_z_is_inside_its_bounds_whatever_the_weights(giant):
    weights = torch.randn(1000, dtype=F64)
    weights[3] = giant
    lower, upper = sandwich(weights)
    assert lower <= log_partition_from_weights(weights).value <= upper


def test_draws_without_mass_belong_to_no_bound():
    p, q = normal(0.5, 0.8), normal(0.0, 1.0)
    weights = log_weights(p, q, q.sample((1000, 1)))
    half = torch.cat([weights, torch.full((1000,), -math.inf, dtype=F64)])
    lower, upper = sandwich(weights)
    assert sandwich(half)[0] == pytest.approx(lower + math.log(0.5))
    assert sandwich(half)[1] == pytest.approx(upper)
    assert sandwich(half[1000:]) == (-math.inf, -math.inf)


def test_sandwich_is_tight_where_q_is_the_model():
    p = normal(0.5, 0.8)
    weights = log_weights(p, p, p.sample((100, 2)))
    assert sandwich(weights) == pytest.approx((LOG_Z, LOG_Z))


# The limits --------------------------------------------------------------------------------------
@pytest.mark.parametrize("side", [1.0, -1.0])
def test_raw_and_smoothed_agree_within_three_errors_and_rounding(side):
    for apart, error, agrees in (
        (0.030009, 0.01, True), (0.030011, 0.01, False), (0.9e-5, 0.0, True),
        (1.1e-5, 0.0, False), (math.nan, 0.01, True),
    ):  # fmt: skip
        found = Estimate(2.0, 0.01, 0.9, 0.2, 2.0 + side * apart, error)
        assert found.agrees == agrees


@pytest.mark.parametrize(("share", "heavy"), [(0.0099, False), (0.0101, True)])
def test_a_heavy_tail_counts_from_one_in_a_hundred_of_all_weight(share, heavy):
    """Of 4,000 weights the largest 189 are the tail, here of index 1.2 above equal ones."""
    excess = (torch.arange(0.5, 189, dtype=F64) / 189) ** -1.2 - 1
    body = torch.ones(4000 - 189, dtype=F64)
    scale = share * 4000 / (1 - share) / excess.sum()
    weights = torch.cat([body, 1 + scale * excess]).log()
    found = log_partition_from_weights(weights[torch.randperm(4000)])
    assert found.tail == pytest.approx(share, rel=1e-6)
    assert found.pareto_k > 0.7
    assert found.heavy == heavy


@pytest.mark.parametrize(("k", "heavy"), [(0.55, False), (0.85, True)])
def test_a_tail_is_heavy_above_the_threshold_of_its_draws(k, heavy):
    weights = -k * (torch.arange(0.5, 4000, dtype=F64) / 4000).log()
    assert log_partition_from_weights(weights).heavy == heavy


def test_a_tail_that_does_not_count_leaves_log_z_within_a_twentieth():
    """One draw in twenty has an excess of index .8 over equal weights; what it hides is known."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        u = torch.rand(2000, 4000, dtype=F64)
    for true_share in (0.005, 0.01, 0.02):
        scale = true_share / (1 - true_share) * (1 - 0.8) * 20
        excess = torch.where(u < 0.05, scale * ((u / 0.05) ** -0.8 - 1) / 0.8, 0.0)
        log_z = math.log1p(0.05 * scale / (1 - 0.8))
        found = [log_partition_from_weights(row) for row in torch.log1p(excess)[:200]]
        errors = torch.tensor([one.value - log_z for one in found if not one.heavy])
        assert len(errors) > 5
        assert (errors.abs() < 0.05).double().mean() > 0.95
