import math

import numpy as np
import pytest

from ebm_pp.ties import agreement, relations, row_counts, same_order, ties


def test_agreement_is_the_share_of_pairs():
    assert agreement(np.array([3, 1, 2])) == pytest.approx((3 + 1) / 15)
    assert agreement(np.array([1, 1, 1])) == 0.0
    assert agreement(np.array([1])) == 0.0


@pytest.mark.parametrize("step", [0.05, 0.2, 0.5])
def test_a_rounded_gaussian_agrees_as_said(step):
    x = np.random.default_rng(0).normal(size=20_000)
    found = ties(np.round(x / step) * step, 0.01)
    assert found.agree == pytest.approx(step / (2 * math.sqrt(math.pi)), rel=0.03)
    assert found.step == pytest.approx(step)
    assert found.atoms == []
    assert not found.whole
    few = [ties(np.round(some / step) * step, 0.01).agree for some in x.reshape(200, 100)]
    assert np.mean(few) == pytest.approx(found.agree, rel=0.05)  # whatever n


def test_a_value_that_stands_out_is_told_from_rounding():
    random = np.random.default_rng(0)
    x = random.normal(size=3000)
    x[:900] = 0.0
    found = ties(x, 0.01)
    assert found.atoms == [(0.0, 0.3)]
    assert found.agree == 0.0
    counts = ties(random.poisson(2.0, 3000).astype(float), 0.01)
    assert counts.atoms == []
    assert counts.whole
    assert counts.agree == pytest.approx(math.exp(-4) * 11.3019, rel=0.05)  # e^-4 I_0(4)
    assert ties(np.r_[np.ones(99), 5.0], 0.01).atoms == [(1.0, 0.99)]


def test_rows_are_counted_whole():
    table = np.random.default_rng(0).normal(size=(50, 3)).repeat([1, 4] * 25, 0)
    assert sorted(row_counts(table)) == [1] * 25 + [4] * 25
    assert row_counts(np.array([[0.0, 1.0], [-0.0, 1.0], [1.0, 0.0]])).tolist().count(2) == 1
    swapped = np.array([[1.0, 2.0], [2.0, 1.0]])
    assert row_counts(swapped).tolist() == [1, 1]


def test_relations_leave_open_what_regression_leaves():
    random = np.random.default_rng(0)
    table = random.normal(size=(2000, 3))
    table[:, 2] = 2 * table[:, 0] - table[:, 1] + 0.05 * table[:, 2] + 7
    found = relations(table, 0.1)
    design = np.c_[table[:, :2], np.ones(2000)]
    rest = table[:, 2] - design @ np.linalg.lstsq(design, table[:, 2], rcond=None)[0]
    assert found[2].left == pytest.approx(rest.std() / table[:, 2].std())
    assert found[2].by == [0, 1]
    assert found[0].by == found[1].by == []
    assert found[0].left == pytest.approx(1.0)


def test_a_copy_names_its_original_alone():
    x = np.random.default_rng(0).normal(size=(500, 4))
    x[:, 3] = 32 + 1.8 * x[:, 1]
    assert relations(x, 1e-3)[3].by == [1]
    assert relations(x, 1e-3)[3].left < 1e-6
    x[:, 2] = 5.0
    assert relations(x, 1e-3)[2] == (2, 0.0, [])  # a constant follows from nothing


def test_order_is_seen_through_any_curve():
    x = np.random.default_rng(0).normal(size=500)
    y = np.random.default_rng(1).normal(size=500)
    found = same_order(np.stack([x, y, np.exp(3 * x), -np.arctan(y)], 1), 1e-3)
    assert [(r.column, r.by) for r in found] == [(2, [0]), (3, [1])]
    assert same_order(np.stack([x, x + 0.05 * y], 1), 1e-2) == []
