"""Every limit of what is said of rows: just inside nothing is said, just outside it is."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from closed_form import normal

from ebm_pp import DataError, EnergyModel
from ebm_pp.circle import Circle
from ebm_pp.codes import CODES, coded_rows
from ebm_pp.far_findings import find_far
from ebm_pp.findings import look_at
from ebm_pp.judged import columns_of
from ebm_pp.ties import ties
from ebm_pp.units import PERIODS, _candidates, _directed, _wrapped, check_unit

F64 = torch.float64
RNG = np.random.default_rng(0)


def model_of(base):
    return EnergyModel(lambda: pyro.sample("x", base))


LINE, PLANE = model_of(dist.Normal(0.0, 1.0)), model_of(normal(0.0, 1.0))
ANGLE = model_of(Circle())


def said(x, model=LINE):
    """(kind, whether fatal) of every finding."""
    found = look_at(model, model.stored({"x": torch.as_tensor(x)}))
    return [(finding.kind, finding.fatal) for finding in found]


def fine(n=1000):
    """Values without a code, none twice, none far, hardly any whole."""
    return RNG.permutation(np.linspace(-1.0, 1.0, n) + 1e-4) * math.e


def with_copies(n, groups, size, values=None):
    """Of n values so many groups of equal ones, each of a size."""
    x = fine(n) if values is None else values.copy()
    x[: groups * size] = np.repeat(x[:groups], size)
    return x


# Ties ------------------------------------------------------------------------------------------
# name: (inside, outside, what is said there)
TIED = {
    "agreement of .005": (  # groups of 9, each below a hundredth: 72 g / 999,000
        with_copies(1000, 69, 9), with_copies(1000, 70, 9), ("tied_rows", False)
    ),
    "agreement of .04": (  # .0390 and .0407
        with_copies(1000, 25, 40), with_copies(960, 24, 40), ("tied_rows", True)
    ),
    "five pairs": (  # agreement .0051 and more
        with_copies(40, 4, 2), with_copies(40, 5, 2), ("tied_rows", False)
    ),
    "a value of a hundredth": (
        with_copies(1000, 1, 9), with_copies(1000, 1, 11), ("tied_rows", False)
    ),
    "a value of 3 in 100": (
        with_copies(1000, 1, 29), with_copies(1000, 1, 31), ("tied_rows", True)
    ),
    "whole numbers": (3.0 * np.arange(1000), 2.0 * np.arange(1000), ("whole_numbers", False)),
}  # fmt: skip


@pytest.mark.parametrize("name", TIED)
def test_ties_begin_at_their_limit(name):
    inside, outside, what = TIED[name]
    assert what not in said(inside)
    assert said(outside) == [what]


def scales(n_others, copies):
    """A value that often, beside others that are each there once."""
    return np.r_[np.full(copies, 100.5), np.arange(n_others) + 0.25]


@pytest.mark.parametrize(("n_others", "copies", "atoms"), [
    (10, 50, 1), (9, 50, 0), (9, 73, 0), (9, 99, 1)  # the last: .917 of all rows
])  # fmt: skip
def test_of_fewer_than_ten_other_values_none_stands_out(n_others, copies, atoms):
    assert len(ties(scales(n_others, copies), 0.01).atoms) == atoms


@pytest.mark.parametrize(("copies", "atoms"), [(49, 0), (51, 1)])
def test_a_value_stands_out_at_five_times_the_usual(copies, atoms):
    x = np.r_[np.full(copies, 100.5), np.repeat(np.arange(100.0), 10)]
    assert len(ties(x, 0.01).atoms) == atoms


def test_three_values_are_looked_at():
    x = np.r_[np.repeat([100.5, 200.5, 300.5, 400.5], 300), np.arange(1800.0)]
    found = ties(x, 0.01)
    assert [value for value, _ in found.atoms] == [100.5, 200.5, 300.5]
    assert len(found.common) == 3
    rest = (300 * 299) / (2100 * 2099)  # of the rows without these values
    assert found.agree == pytest.approx(rest * (2100 / 3000) ** 2)


# Columns of one another, copies, digits --------------------------------------------------------
def sheet(left, n=1000):
    """Two columns; of the second's standard deviation so much is left open by the first."""
    x = np.linspace(-1.0, 1.0, n)
    e = RNG.permutation(x)
    e -= x * (x @ e) / (x @ x)
    e /= e.std() / x.std()
    return np.stack([x, math.sqrt(1 - left**2) * x + left * e], 1)


def words(x, model=PLANE):
    return [str(f) for f in look_at(model, model.stored({"x": torch.as_tensor(x)}))]


def test_what_columns_leave_open():
    assert said(sheet(0.0105), PLANE) == []
    assert said(sheet(0.0095), PLANE) == [("collinear", False)]
    assert said(sheet(0.0041), PLANE) == [("collinear", False)]
    assert said(sheet(0.0039), PLANE) == [("collinear", True)]
    assert "(exactly)" in words(sheet(0.9e-6))[0]
    assert "is left open)" in words(sheet(1.1e-6))[0]


def test_copies_of_rows():
    x = np.stack([fine(), fine()], 1)
    for distinct, found in (
        (991, []), (989, [("repeated_rows", False)]), (101, [("repeated_rows", False)]),
        (100, [("repeated_rows", True)]),
    ):  # fmt: skip
        rows = np.concatenate([x[:distinct]] * 10)[:1000]
        assert [one for one in said(rows, PLANE) if one[0] == "repeated_rows"] == found


def test_steps_of_single_precision_within_a_standard_deviation():
    step = torch.finfo(torch.float32).eps
    x = np.linspace(-1.0, 1.0, 1001)
    scale = 0.5 * 1.4826
    for steps, found in (
        (845, []), (835, [("precision", False)]), (65, [("precision", False)]),
        (63, [("precision", True)]),
    ):  # fmt: skip
        for sign in (1.0, -1.0):
            rows = torch.from_numpy(sign * (1e6 + x * steps * step * 1e6 / scale))
            assert said(rows) == found


# Far rows --------------------------------------------------------------------------------------
def test_twenty_rows_are_named_and_five_written():
    for m, dots in ((5, False), (6, True), (50, True)):
        x = fine()
        x[:m] = 1e6
        (found,) = look_at(LINE, LINE.stored({"x": torch.as_tensor(x)}))[:1]
        assert len(found.rows) == len(found.values["x"]) == min(m, 20)
        written = found.text.split("(")[1].split(")")[0].split(", ")
        assert written == [*map(str, found.rows[:5]), *["..."] * dots]


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_an_angle_is_far_at_two_turns_and_a_half(sign):
    x = 0.05 * fine()
    for turns, found in ((2.49, []), (2.51, [("far_rows", True)])):
        x[7] = np.median(x[8:]) + sign * turns * 2 * math.pi
        assert said(x, ANGLE) == found


@pytest.mark.parametrize(("m", "found"), [(50, True), (51, False)])
def test_a_slip_explains_a_twentieth_of_the_rows(m, found):
    x = 1013 + 3 * fine()
    x[:m] *= 100
    told = [f.rows for f in look_at(LINE, LINE.stored({"x": torch.as_tensor(x)})) if f.rows]
    assert bool(told) == found


@pytest.mark.parametrize(("left", "together"), [(0.8e-6, False), (1.25e-6, True)])
def test_rounding_is_no_direction_in_which_a_row_is_far(left, together):
    table = torch.from_numpy(sheet(left))
    table[7, 1] = table[7, 0] + 8e-6  # itself it opens .4e-6
    columns = columns_of(PLANE, {"x": table}, {"x": table})
    found, away = find_far(columns, np.arange(1000), {"x": table})
    assert away.any() == together
    assert bool(found) == together


# Codes -----------------------------------------------------------------------------------------
MISSING = [
    0.0, -1.0, -9.0, 99.0, 999.0, 9999.0, 99999.0, 999999.0, 99.9, 999.9, 9999.9, 99.99, 999.99,
    -99.0, -999.0, -9999.0, -99999.0, -999999.0, -99.9, -999.9, -9999.9, -99.99, -999.99, 32767.0,
    -32767.0, -32768.0, 65535.0, -65535.0, 2147483647.0, -2147483647.0, -2147483648.0, 1e20,
    -1e20, 1e30, -1e30, 9.969209968386869e36, -9.969209968386869e36, 888.0, 8888.0, -888.0,
    -8888.0,
]  # fmt: skip


def coded(values):
    return [(code.value, len(code.rows), code.beyond) for code in coded_rows(np.asarray(values))]


@pytest.mark.parametrize("code", MISSING)
def test_every_customary_code(code):
    huge = abs(code) > 1e15  # all numbers so large are whole
    others = fine(100) if huge else code + (abs(code) / 100 + 1) * fine(100)
    for value in (code, float(np.float32(code))):
        assert coded([*others, value, value, value]) == [(value, 3, huge)]
    assert bool(coded([*others, code, code])) == huge


def test_there_are_no_other_codes():
    assert sorted(CODES) == sorted(MISSING)


@pytest.mark.parametrize(("different", "found"), [(90, True), (89, False)])
def test_nine_in_ten_values_are_different_where_there_are_codes(different, found):
    others = np.concatenate([fine(different)] * 2)[:100]
    assert bool(coded([*others, 0.0, 0.0, 0.0])) == found


@pytest.mark.parametrize(("whole", "found"), [(2, True), (3, False)])
def test_a_hundredth_of_values_may_be_whole_where_there_are_codes(whole, found):
    others = 10 + fine(200)
    others[:whole] = 11 + np.arange(whole)
    assert bool(coded([*others, 0.0, 0.0, 0.0])) == found


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_one_zero_is_a_code_where_values_stay_away_from_it(sign):
    for least, found in ((1.01, True), (0.99, False)):  # of a median of 10
        others = sign * np.r_[np.linspace(least, 9.9, 50), np.linspace(10.1, 30.1, 50)]
        assert coded([*others, 0.0]) == ([(0.0, 1, True)] if found else [])


@pytest.mark.parametrize(("distance", "found"), [(2.99, False), (3.01, True)])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_one_code_is_one_three_deviations_beyond_all_others(distance, found, sign):
    scale = 0.5 * 1.4826  # of -1 to 1
    others = sign * (99.0 - distance * 10 * scale - 10 + 10 * np.linspace(-1.0, 1.0, 101))
    assert bool(coded([*others, sign * 99.0])) == found


def test_one_number_below_zero_is_a_code_among_positive_ones():
    others = np.linspace(0.1, 9.9, 103) ** 2
    assert coded([*others, -1.0]) == [(-1.0, 1, True)]
    assert coded([*(others - 0.2), -1.0]) == []


@pytest.mark.parametrize(("n", "found"), [(20, True), (19, False)])
def test_twenty_values_tell_a_code(n, found):
    assert bool(coded([*(5 + fine(n)), -9.0, -9.0, -9.0])) == found


def test_a_code_that_is_a_spike_is_tied_rows():
    """From a hundredth of the rows; or 3 in 100, if all others lie on one side of it."""
    coded_too = [("coded_rows", True), ("tied_rows", False)]
    for value, m, found in (
        (-9.0, 29, coded_too), (-9.0, 31, [("tied_rows", True)]),
        (99.0, 9, [("coded_rows", False)]), (99.0, 11, [("tied_rows", False)]),
    ):  # fmt: skip
        x = 99 + 20 * fine() if value > 0 else 60 + 20 * fine()
        x[:m] = value
        assert said(x) == found


# Units -----------------------------------------------------------------------------------------
def refused(x, unit=""):
    try:
        check_unit(torch.as_tensor(x, dtype=F64), ANGLE.sites["x"], unit)
    except DataError as error:
        return str(error)
    return ""


NAMES = {
    360.0: ["deg", "degree", "degrees", "°", "degrees_true"], 24.0: ["h", "hr", "hour", "hours"],
    60.0: ["min", "minute", "minutes"], 400.0: ["gon", "grad", "gradian", "gradians"],
    1.0: ["turn", "turns", "cycle", "cycles"], 12.0: ["month", "months"],
}  # fmt: skip


@pytest.mark.parametrize(("period", "unit"), [(p, u) for p, some in NAMES.items() for u in some])
def test_names_of_units(period, unit):
    assert f"Circle(period={period})" in refused(fine(10), unit)


@pytest.mark.parametrize("unit", ["rad", "radian", "radians", "", "V"])
def test_names_of_radians_and_of_nothing(unit):
    assert refused(fine(10), unit) == ""


def test_periods_that_rows_may_be_wrapped_at():
    assert [*PERIODS] == [
        1.0, 2 * math.pi, 7.0, 12.0, 24.0, 60.0, 360.0, 366.0, 400.0, 1440.0, 86400.0,
    ]  # fmt: skip
    assert _candidates(2 * math.pi) == [1.0, 24.0, 60.0, 360.0, 366.0, 400.0, 1440.0, 86400.0]
    assert _candidates(360.0) == [1.0, 2 * math.pi]


def test_phases_within_a_week_or_a_year_of_months_pass():
    for c in (7.0, 12.0):
        assert refused(c * torch.rand(1000, dtype=F64)) == ""


def test_twenty_whole_numbers_are_no_radians():
    for n, told in ((19, False), (20, True)):
        x = RNG.permutation(7.0 * np.arange(n))
        assert ("whole or quarter numbers" in refused(x)) == told


def wrapped(n, c=360.0):
    """Rows of a circle in no order, five within a twentieth of it at either end."""
    ends = np.linspace(0.002, 0.04, 5)
    middle = np.linspace(0.06, 0.94, n - 10)
    return RNG.permutation(c * np.r_[ends, middle, 1 - ends])


def test_fifty_rows_tell_what_they_fill():
    for n, told in ((49, False), (50, True)):
        assert ("fill a period of 360" in refused(wrapped(n))) == told
    sector = 90 + 30 * fine(50)
    for n, found in ((49, []), (50, [("another_unit", True)])):
        assert [one for one in said(sector[:n], ANGLE) if one[0] == "another_unit"] == found


def test_a_few_values_fill_nothing():
    for distinct, told in ((24, False), (25, True)):
        x = torch.as_tensor(np.concatenate([wrapped(distinct)] * 4))
        assert _wrapped(x, 360.0) == told


@pytest.mark.parametrize("side", [0, 1])
def test_an_end_is_a_twentieth_of_the_period_with_four_rows(side):
    for last, told in ((0.0499, True), (0.0501, False)):
        ends = [np.array([0.001, 0.01, 0.02, 0.03]) for _ in range(2)]
        ends[side][-1] = last
        x = 360 * np.r_[ends[0], np.linspace(0.06, 0.94, 50), 1 - ends[1]]
        assert _wrapped(torch.as_tensor(x), 360.0) == told


@pytest.mark.parametrize("harmonic", [1, 2, 3])
def test_a_direction_is_seen_from_ten(harmonic):
    """n R^2 of m rows at one angle among n - m of none is m^2 / n."""
    for m, seen in ((99, False), (101, True)):
        none = torch.arange(1000 - m, dtype=F64) * 2 * math.pi / (1000 - m)
        x = torch.cat([none, 0.3 + 2 * math.pi / harmonic * torch.arange(m).double()])
        assert _directed(x, 2 * math.pi) == seen
