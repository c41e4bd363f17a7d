"""Numbers that callers pass, and what small pools make of settings."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

from ebm_pp import DataError, EnergyModel, FlowGenerator
from ebm_pp.counts import count, number, seed_of
from ebm_pp.pool import draw_pool


@pytest.mark.parametrize("value", [2.7, "3", True, np.True_, 2**64, -(2**63) - 1, [1], np.nan])
def test_a_seed_is_a_whole_number_of_64_bits(value):
    with pytest.raises(DataError, match=r"seed=.*64 bits"):
        seed_of(value)


@pytest.mark.parametrize("value", [None, 0, -1, 2**64 - 1, np.uint8(7), torch.tensor(7)])
def test_a_seed_is_kept(value):
    assert seed_of(value) == value


@pytest.mark.parametrize("value", [0, -1, True, 1.0, "4", None, 10**12 + 1, 10**30])
def test_a_count_is_in_its_range(value):
    with pytest.raises(DataError, match="n="):
        count("n", value)


@pytest.mark.parametrize("value", [0.0, -1, True, "1", np.nan, np.inf, None, np.ones(2)])
def test_a_number_is_in_its_range(value):
    with pytest.raises(DataError, match="scale="):
        number("scale", value, 0.0, 1e30, open=True)
    assert number("scale", torch.tensor(2.0), 0.0, 1e30) == 2.0


@pytest.mark.parametrize("size", [1, 2, 32, 40])
@pytest.mark.parametrize("share", [0.5, 0.99])
def test_a_pool_has_a_draw_of_the_generator(size, share):
    model = EnergyModel(lambda: pyro.sample("x", dist.Normal(torch.zeros(2), 1.0).to_event(1)))
    pool = draw_pool(model, FlowGenerator(model, hidden=(4,), bins=4), None, size, share)
    assert len(pool.log_q_generator) >= 1
    assert pool.log_q.isfinite().all()
