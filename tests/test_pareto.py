import math

import numpy as np
import pytest
import torch
from arviz_stats.base import array_stats
from pyro.ops.stats import fit_generalized_pareto

from ebm_pp.pareto import chain_statistics, psis, threshold

TAILS = [0.2, 0.5, 0.7, 1.0]


def power_tail(k, n=20_000, seed=0):
    """Log weights of U^-k, whose tail index is k."""
    generator = torch.Generator().manual_seed(seed)
    return -k * torch.rand(n, generator=generator, dtype=torch.float64).log()


def mean_k(k, sign=1.0):
    return np.mean([psis(sign * power_tail(k, seed=seed))[1] for seed in range(10)])


@pytest.mark.parametrize("k", TAILS)
def test_known_tails(k):
    # One estimate scatters by about (1 + k) / sqrt(424) = .06-.10 and leans to 1/2 by its prior.
    assert mean_k(k) == pytest.approx(k, abs=0.08)


@pytest.mark.parametrize("k", TAILS)
def test_flipped_sign_is_seen(k):
    assert abs(mean_k(k, sign=-1.0) - k) > 0.9


@pytest.mark.parametrize("k", TAILS)
def test_agrees_with_pyro(k):
    log_weights = power_tail(k)
    ordered = log_weights.exp().sort().values
    tail = int(3 * len(ordered) ** 0.5)
    pyro_k, _ = fit_generalized_pareto(ordered[-tail:] - ordered[-tail - 1])
    assert psis(log_weights)[1] == pytest.approx(pyro_k, abs=0.02)


def test_smoothing_touches_only_the_tail_and_normalises():
    log_weights = power_tail(0.7, n=4000)
    smoothed, _ = psis(log_weights)
    torch.testing.assert_close(smoothed.logsumexp(0), torch.zeros((), dtype=torch.float64))
    order = log_weights.argsort()
    body = order[: -int(3 * 4000**0.5)]
    shift = smoothed[body] - log_weights[body]
    torch.testing.assert_close(shift, shift[:1].expand_as(shift))
    tail = order[-int(3 * 4000**0.5) :]
    assert not torch.allclose(smoothed[tail], log_weights[tail] + shift[0])
    assert (smoothed[tail].diff() >= 0).all()


def test_shift_and_dtype():
    log_weights = power_tail(0.5, n=1000).float()
    smoothed, k = psis(log_weights)
    moved, moved_k = psis(log_weights + 50.0)
    assert smoothed.dtype == torch.float32
    assert k == pytest.approx(moved_k, abs=1e-3)
    torch.testing.assert_close(smoothed, moved, atol=1e-4, rtol=0)


NORMAL = torch.randn(1000, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
ONE_BIG = torch.zeros(1000).index_fill(0, torch.tensor([7]), 50.0)
TEN_ALIVE = torch.full((1000,), -math.inf).index_fill(0, torch.arange(10), 0.0)
TWO_VALUES = torch.zeros(1000).index_fill(0, torch.arange(50), 1.0)
HONEST = {
    "constant": (torch.zeros(1000), -math.inf),
    "constant up to rounding": (1e-6 * NORMAL, -math.inf),
    "too few to tell": (NORMAL[:24], math.nan),
    "one draw": (NORMAL[:1], math.nan),
    "one draw carries all": (ONE_BIG, math.inf),
    "spread beyond floating point": (1e3 * NORMAL, math.inf),
    "ten draws alive": (TEN_ALIVE, math.inf),
    "no draw alive": (torch.full((1000,), -math.inf), math.inf),
    "ties": (TWO_VALUES, math.nan),
    "nan": (NORMAL.index_fill(0, torch.tensor([3]), math.nan), math.nan),
    "infinite weight": (NORMAL.index_fill(0, torch.tensor([3]), math.inf), math.nan),
}


@pytest.mark.parametrize("case", HONEST)
def test_no_tail_no_invented_number(case):
    log_weights, expected = HONEST[case]
    smoothed, k = psis(log_weights)
    assert k == expected or (math.isnan(k) and math.isnan(expected))
    assert smoothed.shape == log_weights.shape
    if case in {"nan", "infinite weight", "no draw alive"}:
        assert smoothed.isnan().all()
    else:
        assert float(smoothed.exp().sum()) == pytest.approx(1.0, abs=1e-5)


def test_zero_weights_in_the_body_are_kept():
    log_weights = NORMAL.index_fill(0, torch.arange(10), -math.inf)
    smoothed, k = psis(log_weights)
    assert (smoothed[:10] == -math.inf).all()
    assert 0.0 < k < 0.7


def test_threshold():
    assert threshold(100) == pytest.approx(0.5)
    assert threshold(4000) == 0.7
    assert threshold(1) == -math.inf


def test_chain_statistics_are_arviz_own():
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(4, 500, 2, 3, generator=generator)
    ess, rhat, mcse = chain_statistics(values)
    assert ess.shape == rhat.shape == mcse.shape == (2, 3)
    one = values[:, :, 1, 2].double().numpy()
    assert ess[1, 2] == pytest.approx(array_stats.ess(one, chain_axis=0, draw_axis=1))
    assert (abs(rhat - 1) < 0.02).all()
    assert mcse.mean() == pytest.approx(1 / math.sqrt(2000), rel=0.1)


def test_chain_statistics_of_stuck_chains():
    still = chain_statistics(torch.ones(4, 100))
    assert all(np.isnan(statistic) for statistic in still)
    apart = chain_statistics(torch.arange(4.0).repeat_interleave(100).reshape(4, 100))
    assert apart.rhat > 10
    assert apart.ess < 10
