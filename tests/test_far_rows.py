import math

import numpy as np
import pytest
import torch

from ebm_pp import far_rows as module
from ebm_pp.far_rows import (
    CERTAIN,
    DOUBTFUL,
    Far,
    beyond_gap,
    bulk,
    centre_and_scale,
    far_rows,
    farthest,
    joint_distances,
    responsible,
    wrong_sign,
)
from ebm_pp.slips import Others, Slip, _alike, _temperatures, remedy_of


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


# Every limit: just inside, and just outside ------------------------------------------------------
def chance_of(y, m, k):
    """Of the gap below the m-th largest, by the formula of the module with its numbers."""
    y = sorted(y, reverse=True)
    log = [math.log(max(value, 1e-3)) for value in y]
    total = sum(j * (log[j - 1] - log[j]) for j in range(m + 1, m + k + 1))
    return m**2 * (1 + m * (log[m - 1] - log[m]) / max(total, k / 50)) ** -k


@pytest.mark.parametrize(
    ("n", "k"), [(20, 8), (96, 8), (119, 9), (120, 10), (600, 50), (1200, 50)]
)
@pytest.mark.parametrize("far", [1, 3])
def test_a_twelfth_of_the_rows_tell_the_tail_at_least_8_and_at_most_50(n, k, far):
    y = np.random.default_rng(n).pareto(6.0, n) + 1
    y[:far] = 1000 * np.arange(1, far + 1)
    found = beyond_gap(y, 1.0)
    assert len(found.rows) == far
    assert found.chance == pytest.approx(chance_of(y, far, k), rel=1e-9)


def test_near_the_middle_distances_count_as_a_thousandth():
    y = np.r_[1e4, 2e-3 * np.ones(4), 10.0 ** -np.arange(9.0, 40.0)]
    assert beyond_gap(y, 1.0).chance == pytest.approx(chance_of(y, 1, 8))


def test_no_tail_is_steeper_than_50():
    y = np.r_[30.0, np.ones(40)]
    assert beyond_gap(y, 1.0).chance == pytest.approx((1 + math.log(30.0) / (8 / 50)) ** -8)


@pytest.mark.parametrize(
    ("others", "inside", "outside"),
    [
        ((0.5, 1.0), 7.9, 8.1),  # robust standard deviations
        ((5.0, 5.15), 8.14, 8.16),  # 3 of them to the next
        ((19.0, 20.0), 29.9, 30.1),  # one and a half times as far
    ],
)
def test_where_a_gap_begins(others, inside, outside):
    y = np.linspace(*others, 200)
    for scale in (1.0, 7.0):
        assert beyond_gap(np.r_[scale * inside, scale * y], scale) is None
        assert beyond_gap(np.r_[scale * outside, scale * y], scale).rows.tolist() == [0]


@pytest.mark.parametrize(("chance", "found"), [(0.0099, True), (0.0101, False)])
def test_a_gap_of_a_hundredth_is_worth_a_look(chance, found):
    """Below the gap every scaled spacing is 1: its chance is (1 + g / k)^-k, k = 16."""
    log = np.r_[np.cumsum(1 / np.arange(199.0, 1.0, -1))[::-1], 0.0]
    gap = 16 * (chance ** (-1 / 16) - 1)
    far = beyond_gap(np.exp(np.r_[log[0] + gap, log]), 1.0)
    assert (far is not None) == found
    assert far is None or far.chance == pytest.approx(chance, rel=1e-6)


# rows, distance, chance, repeated, n: whether they are errors for sure
SURE = {
    "chance": (1, 20.0, 0.99e-4, False, 1000, True),
    "no chance": (1, 20.0, 1.01e-4, False, 1000, False),
    "three": (3, 20.0, 0.0, False, 1000, True),
    "four": (4, 20.0, 0.0, False, 1000, False),
    "two of 200": (2, 20.0, 0.0, False, 200, True),
    "two of 199": (2, 20.0, 0.0, False, 199, False),
    "one of 20": (1, 20.0, 0.0, False, 20, True),
    "copies": (90, 20.0, 0.0, True, 1000, True),
    "near": (10, 49.9, 0.0, False, 1000, False),
    "very far": (10, 50.1, 0.0, False, 1000, True),
    "very far by chance": (10, 50.1, 1.01e-4, False, 1000, False),
}


@pytest.mark.parametrize("name", SURE)
def test_what_is_an_error_for_sure(name):
    m, distance, chance, repeated, n, certain = SURE[name]
    assert Far(np.arange(m), distance, 1.0, chance, repeated, n).certain == certain


@pytest.mark.parametrize(("n", "rare", "most"), [(1000, 100, 10), (200, 100, 3), (1000, 20, 50)])
def test_far_are_a_hundredth_of_the_rows_or_three(n, rare, most):
    y = np.linspace(0.5, 1.0, n)
    for m in (most, most + 1):
        y[:m] = 100 + np.arange(m) / 1000
        found = beyond_gap(y, 1.0, rare) if rare != 100 else beyond_gap(y, 1.0)
        assert (found is not None) == (m == most)


@pytest.mark.parametrize("n", [300, 301, 302])
def test_copies_are_at_most_a_third(n):
    for m, seen in ((100, True), (101, False)):
        y = np.linspace(0.5, 1.0, n)
        y[:m] = 100.0
        assert (beyond_gap(y, 1.0) is not None) == seen


def test_twenty_rows_can_be_judged():
    y = np.linspace(-1, 1, 20)
    y[3] = 1e3
    assert far_rows(y).rows.tolist() == [3]
    assert far_rows(np.delete(y, 10)) is None
    y = 100 + np.linspace(-1, 1, 20)
    y[3] = -1e30
    assert wrong_sign(y).rows.tolist() == [3]
    assert wrong_sign(np.delete(y, 10)) is None


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_a_lost_sign_is_that_of_three_rows_or_a_hundredth_of_those_below_the_median(sign):
    for n, most in ((200, 3), (1000, 5), (2000, 10)):
        for m in (1, most, most + 1):
            y = sign * np.linspace(50.0, 60.0, n)
            y[:m] *= -1
            found = wrong_sign(y)
            assert (found is not None) == (m <= most)
            assert found is None or sorted(found.rows) == list(range(m))


def test_a_far_row_is_looked_for_six_times(monkeypatch):
    asked = []

    def outermost(away, near, rare):
        asked.append(np.flatnonzero(~near).tolist())
        return Far(np.array([len(asked)]), 10.0, 1.0, 1e-6, False, len(away))

    monkeypatch.setattr(module, "_outermost", outermost)
    assert far_rows(column()).rows.tolist() == [1, 2, 3, 4, 5, 6]
    assert asked == [list(range(1, k)) for k in range(1, 7)]


def test_the_bulk_ends_at_ten():
    y = np.linspace(-1.0, 1.0, 401) / (0.5 * 1.4826)  # of scale 1
    for value, near in ((9.9, True), (10.1, False), (-9.9, True), (-10.1, False)):
        assert bulk(np.r_[y, value][:, None])[-1] == near


def test_two_to_four_columns_are_responsible():
    z = np.random.default_rng(0).normal(size=(1000, 6))
    near = np.arange(1000) != 5
    z[5] = [9.0, 0, 0, 0, 0, 0]
    assert len(responsible(z, [*range(6)], near, 5)) == 2
    z[5] = 9.0
    assert len(responsible(z, [*range(6)], near, 5)) == 4
    z[5] = [9.0, 9.0, 9.0, 0, 0, 0]
    assert sorted(responsible(z, [*range(6)], near, 5)) == [0, 1, 2]


# Slips -------------------------------------------------------------------------------------------
def told(others, rows):
    """The words for rows of one column beside others."""
    table = np.r_[others, rows][:, None]
    among = np.arange(len(table)) < len(others)
    slip = remedy_of(table, ["x"], [], among, table[~among])
    return slip and (slip.words, slip.telling)


STEADY = 500 + np.linspace(-1.0, 1.0, 101)


@pytest.mark.parametrize("power", range(1, 7))
def test_powers_of_ten_to_a_million(power):
    assert told(STEADY, [500.0 * 10**power]) == (f"x divided by {10.0**power:.7g}", True)
    assert told(STEADY, [500.0 / 10**power]) == (f"x multiplied by {10.0**power:.7g}", True)
    assert told(STEADY, [500.0 * 10**7]) is None
    assert told(STEADY, [500.0 * 10**7 / 2]) is None


def test_of_an_ordinary_row_no_slip_is_told():
    assert told(STEADY, [500.3]) is None


@pytest.mark.parametrize("factor", [
    2.54, 25.4, 30.48, 3.28084, 2.20462, 1.609344, 3.6, 1.943844, 2.236936, 1.852, 60.0, 3600.0,
    24.0, 12.0, 33.8639, 1.333224, 57.29578,
])  # fmt: skip
def test_units(factor):
    assert told(STEADY, [500.0 * factor]) == (f"x divided by {factor:.7g}", False)
    assert told(STEADY, [500.0 / factor]) == (f"x multiplied by {factor:.7g}", False)


@pytest.mark.parametrize(("high", "words"), [(9.9, "x divided by 10"), (10.1, None)])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_factors_are_tried_where_others_lie_within_ten(high, words, sign):
    found = told(sign * np.linspace(1.0, high, 101), [sign * 95.0])
    assert (found and found[0]) == words


@pytest.mark.parametrize(("ordinary", "found"), [(8, True), (7, False)])
def test_most_of_several_rows_are_ordinary_once_the_slip_is_undone(ordinary, found):
    rows = 100 * np.linspace(499.5, 500.5, 10)
    rows[ordinary:] = 9e7
    assert (told(STEADY, rows) is not None) == found


@pytest.mark.parametrize(
    ("middle", "width", "alike"),
    [
        (1.99, 1.0, True), (2.01, 1.0, False), (-1.99, 1.0, True), (-2.01, 1.0, False),
        (0.0, 0.201, True), (0.0, 0.199, False), (0.0, 2.99, True), (0.0, 3.01, False),
    ],
)  # fmt: skip
def test_undone_rows_lie_where_the_others_do(middle, width, alike):
    ones = np.ones(1)
    others = Others(-9 * ones, 9 * ones, 5 * ones, 2 * ones)
    rows = 5 + 2 * (middle + width / 1.4826 * np.array([[-1.0], [0.0], [1.0]]))
    assert _alike(Slip("", 0, rows), others) == alike


@pytest.mark.parametrize(("columns", "found"), [(20, True), (21, False)])
def test_of_more_than_twenty_columns_none_are_exchanged_on_trial(columns, found):
    table = 1000 * np.arange(1.0, columns + 1) + np.linspace(-1, 1, 50)[:, None]
    table[7, [0, 2]] = table[7, [2, 0]]
    names = [f"x{j}" for j in range(columns)]
    slip = remedy_of(table, names, [], np.arange(50) != 7, table[[7]])
    assert (slip and slip.words) == ("x0 and x2 exchanged" if found else None)


DEGREES = {  # what others can be: their least and most, and the words
    "Celsius": (-90.0, 60.0, ["t less 273.15", "(t - 32) / 1.8 for t"]),
    "Fahrenheit": (-130.0, 140.0, ["32 + 1.8 t for t"]),
    "kelvins": (183.0, 333.0, ["t plus 273.15"]),
}


@pytest.mark.parametrize("name", DEGREES)
def test_temperatures(name):
    least, most, words = DEGREES[name]
    rows, ones = np.array([[100.0]]), np.ones(1)

    def tried(low, high, scale):
        others = Others(low * ones, high * ones, 0 * ones, scale * ones)
        return {slip.words: slip.rows[0, 0] for slip in _temperatures(rows, 0, "t", others,
                                                                      telling=True)}  # fmt: skip

    within = tried(least + 0.1, most - 0.1, 10.0)
    assert set(words) <= set(within)
    undone = {"t less 273.15": -173.15, "t plus 273.15": 373.15,
              "(t - 32) / 1.8 for t": 68 / 1.8, "32 + 1.8 t for t": 212.0}  # fmt: skip
    for word, value in within.items():
        assert value == pytest.approx(undone[word])
    for low, high in ((least - 0.1, most - 0.1), (least + 0.1, most + 0.1)):
        assert not set(words) & set(tried(low, high, 10.0))
    for scale, wide in ((2.49, False), (2.51, True), (24.9, True), (25.1, False)):
        assert set(words) <= set(found) if (found := tried(least, most, scale)) else not wide
