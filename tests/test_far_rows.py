import math

import numpy as np
import pytest
import torch

from ebm_pp.far_rows import (
    CERTAIN,
    DOUBTFUL,
    beyond_gap,
    bulk,
    centre_and_scale,
    far_rows,
    farthest,
    joint_distances,
    responsible,
)
from ebm_pp.slips import remedy_of


def column(n=500, seed=0):
    return np.random.default_rng(seed).normal(size=n)


def test_centre_and_scale_are_median_and_median_deviation():
    table = np.array([[1.0, 0.0], [2.0, 0.0], [4.0, 0.0], [8.0, 0.0], [9.0, 5.0]])
    centre, scale = centre_and_scale(table)
    assert centre.tolist() == [4.0, 0.0]
    # deviations 3 2 0 4 5; of the second column only one is not 0
    assert scale == pytest.approx([1.4826 * 3.0, 1.4826 * 5.0])
    gaussian = centre_and_scale(column(100_000)[:, None])
    assert gaussian[1, 0] == pytest.approx(1.0, abs=0.02)


def test_chance_of_a_gap_is_the_formula():
    """Against a plain loop, and sum_j j log(y_j / y_{j+1}) written out."""
    y = np.sort(np.random.default_rng(1).pareto(3.0, 200) + 1)[::-1].copy()
    y[0] = 60 * y[1]
    found = beyond_gap(y, 1.0)
    k = 200 // 12
    total = sum(j * math.log(y[j - 1] / y[j]) for j in range(2, k + 2))
    chance = (1 + math.log(y[0] / y[1]) / total) ** -k
    assert found.chance == pytest.approx(chance)
    assert found.rows.tolist() == [0]
    assert (found.distance, found.next) == (y[0], y[1])


@pytest.mark.parametrize("index", [0.5, 1.0, 2.0, 4.0])
def test_chance_is_right_for_honest_tails_of_a_power(index):
    """A gap is seen as often as said: for m rows DOUBTFUL / m^2, 1.64 DOUBTFUL in all."""
    random, reps = np.random.default_rng(int(10 * index)), 1500
    found = [beyond_gap(random.pareto(index, 300) + 1, 1.0) for _ in range(reps)]
    rate = np.mean([far is not None for far in found])
    limit = math.pi**2 / 6 * DOUBTFUL
    assert rate < limit + 4 * math.sqrt(limit / reps)
    if index <= 1:  # near enough to the boundaries in distance: the first gaps all count
        assert rate > DOUBTFUL / 2 - 4 * math.sqrt(DOUBTFUL / reps)
    assert np.mean([far is not None and far.certain for far in found]) < 2e-3 > CERTAIN


@pytest.mark.parametrize("value", [25.0, -25.0, 1e3, -1e9])
def test_a_far_value_is_found_on_either_side(value):
    y = column()
    y[123] = value
    found = far_rows(y)
    assert found.rows.tolist() == [123]
    assert found.distance == pytest.approx(abs(value), rel=0.1)
    assert found.next == pytest.approx(3.0, abs=1.0)


def test_far_values_do_not_hide_one_another():
    y = column()
    y[[3, 70, 200]] = [1e9, -1e3, 40.0]
    assert sorted(far_rows(y).rows) == [3, 70, 200]
    assert far_rows(y).rows[0] == 3


@pytest.mark.parametrize("copies", [3, 20, 100])
def test_a_code_is_found_however_often(copies):
    y = column()
    y[:copies] = -999.0
    found = far_rows(y)
    assert sorted(found.rows) == list(range(copies))
    assert found.repeated
    assert found.certain


def test_a_rare_mode_is_no_error_for_sure():
    y = column(2000)
    y[:10] += 20.0
    found = far_rows(y)
    assert sorted(found.rows) == list(range(10))
    assert not found.certain
    y[:10] += 200.0  # another unit
    assert far_rows(y).certain
    y[:200] = y[200:400] + 20.0  # a mode
    assert far_rows(y) is None


def test_few_rows_and_constants_have_no_far_ones():
    assert far_rows(np.array([0.0] * 10 + [1e9])) is None
    assert far_rows(np.zeros(100)) is None


def test_bulk_leaves_out_what_is_far():
    table = np.stack([column(), column(seed=1)], 1)
    table[7, 1] = 50.0
    assert np.flatnonzero(~bulk(table)).tolist() == [7]
    assert bulk(np.zeros((5, 2))).all()


def test_joint_distances_are_those_of_mahalanobis():
    random = np.random.default_rng(0)
    table = random.normal(size=(400, 3)) @ random.normal(size=(3, 3)) + 5.0
    near = np.ones(400, bool)
    found = joint_distances(table, [0, 1, 2], near)
    precision = np.linalg.inv(np.cov(table.T, bias=True))
    centred = table - table.mean(0)
    expected = np.sqrt(np.einsum("ni,ij,nj->n", centred, precision, centred))
    np.testing.assert_allclose(found, expected)
    other = joint_distances(table, [0, 1, 2], near, table[:5] + 1.0)
    moved = table[:5] + 1.0 - table.mean(0)
    np.testing.assert_allclose(other, np.sqrt(np.einsum("ni,ij,nj->n", moved, precision, moved)))


def test_responsible_columns_are_those_that_disagree():
    x = column(2000)
    table = np.stack([column(2000, 1), x, x + 0.1 * column(2000, 2)], 1)
    table[9] = [0.1, 2.0, -2.0]
    near = np.arange(2000) != 9
    assert sorted(responsible(table, [0, 1, 2], near, 9)) == [1, 2]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda row: [row[0] * 10, row[1]], "height divided by 10"),
        (lambda row: [row[0] / 100, row[1]], "height multiplied by 100"),
        (lambda row: [-row[0], row[1]], "the sign of height changed"),
        (lambda row: [row[1], row[0]], "height and weight exchanged"),
        (lambda row: [3e8, row[1]], None),
    ],
)
def test_the_slip_is_told(change, words):
    table = np.stack([170 + 8 * column(), 70 + 7 * column(seed=1)], 1)
    table[4] = change([171.0, 72.0])
    near = np.arange(500) != 4
    slip = remedy_of(table, ["height", "weight"], [0, 1], near, table[[4]])
    assert (slip and slip.words) == words
    assert slip is None or slip.telling


def test_farthest_rows_come_first():
    z = torch.randn(200, 3)
    z[:, 1] = 2.0  # constant
    z[7, 0], z[9, 2] = 100.0, -40.0
    assert farthest(z, 2).tolist() == [7, 9]
    assert len(farthest(z)) == 20
    assert len(farthest(z[:5])) == 5
