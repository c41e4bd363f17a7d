"""Slips in a table of weather are named by row; what a clean table holds is not."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch

import ebm_pp
from ebm_pp.codes import coded_rows
from ebm_pp.findings import look_at

N = 1544


def program():
    pyro.sample("speed", dist.LogNormal(2.0, 1.0))
    pyro.sample("temperature", dist.Normal(15.0, 20.0))
    pyro.sample("pressure", dist.Normal(1013.0, 20.0))
    pyro.sample("age", dist.Normal(35.0, 40.0))
    pyro.sample("direction", ebm_pp.Circle())


MODEL = ebm_pp.EnergyModel(program)


def clean():
    z = torch.randn(N, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return {
        "speed": (2.1 + 0.48 * z[:, 0]).exp(),
        "temperature": 15 + 8 * z[:, 1],
        "pressure": 1013 + 8 * z[:, 2],
        "age": (3.5 + 0.4 * z[:, 3]).exp(),
        "direction": torch.remainder(0.5 + 0.6 * z[:, 4] + math.pi, 2 * math.pi) - math.pi,
    }


# name: (site, the slip, kind, words of the finding)
SLIPS = {
    "a digit held down": ("speed", lambda v: 0 * v + 1e9, "far_rows", "speed = 1e+09"),
    "code 9999": ("speed", lambda v: 0 * v + 9999, "far_rows", "speed = 9999"),
    "code -999": ("temperature", lambda v: 0 * v - 999, "far_rows", "temperature = -999"),
    "code 99.9": ("temperature", lambda v: 0 * v + 99.9, "", "temperature = 99.9"),
    "code -1": ("age", lambda v: 0 * v - 1, "coded_rows", "age = -1"),
    "0 for missing": ("age", lambda v: 0 * v, "coded_rows", "age = 0"),
    "kelvins": ("temperature", lambda v: v + 273.15, "far_rows", "less 273.15"),
    "pascals": ("pressure", lambda v: 100 * v, "far_rows", "pressure divided by 100 "),
    "comma": ("pressure", lambda v: (10 * v).round(), "far_rows", "pressure divided by 10 "),
    "point lost": ("speed", lambda v: 1000 * v, "far_rows", "speed from "),
    "sign": ("pressure", lambda v: -v, "far_rows", "the sign of pressure changed"),
    "a date": ("temperature", lambda v: 20130415 + torch.arange(len(v)), "far_rows", "e+07"),
    "degrees": ("direction", lambda v: 100 + 20.0 * torch.arange(len(v)), "far_rows", "direction"),
    "code on a circle": ("direction", lambda v: 0 * v + 999, "far_rows", "direction = 999"),
}


@pytest.mark.parametrize("name", SLIPS)
@pytest.mark.parametrize("k", [3, 10])
def test_a_slip_is_named_by_row(name, k):
    site, slip, kind, words = SLIPS[name]
    x = clean()
    rows = torch.arange(17, N, 150)[:k]
    x[site][rows] = slip(x[site][rows]).double()
    found = [finding for finding in look_at(MODEL, MODEL.stored(x)) if finding.rows]
    told = {row for finding in found for row in finding.rows}
    if name == "degrees" and k == 10:
        assert told == set(rows.tolist())  # so many are perhaps a mode: named as a caution
        return
    assert told == set(rows.tolist())
    assert any(f.fatal and f.kind.startswith(kind) for f in found)
    assert any(words in str(f) + " " for f in found) or (k == 3 and "less" in words)


def test_a_clean_table_is_left_alone():
    assert look_at(MODEL, MODEL.stored(clean())) == ()


def test_codes_need_fine_values_and_a_place_or_copies():
    fine = clean()["age"].numpy()
    assert coded_rows(fine) == []
    one = fine.copy()
    one[7] = 0.0
    assert [(c.value, c.rows.tolist(), c.beyond) for c in coded_rows(one)] == [(0.0, [7], True)]
    inside = fine.copy()
    inside[7] = 99.0
    assert coded_rows(inside) == []
    inside[[8, 9]] = 99.0
    assert [(c.rows.tolist(), c.beyond) for c in coded_rows(inside)] == [([7, 8, 9], False)]
    assert coded_rows(one.round()) == []


def with_slip(site, rows, value):
    x = clean()
    x[site][rows] = torch.as_tensor(value, dtype=torch.float64)
    return look_at(MODEL, MODEL.stored(x))


def test_a_value_out_of_place_is_not_exchanged_for_one_in_place():
    (found,) = with_slip("temperature", [17], 85.5)  # would be an age, and the age a temperature
    assert found.rows == (17,)
    assert "exchanged" not in found.advice


def test_angles_are_explained_by_degrees_alone():
    rows = torch.arange(17, N, 150)[:10]
    (found,) = with_slip("direction", rows, 100 + 20.0 * torch.arange(10))
    assert "would be" not in found.advice
    assert found.advice.endswith("Degrees among radians? Convert them, x * (2 * math.pi / 360).")
    (found,) = with_slip("direction", rows, 999.0)
    assert "egrees" not in found.advice


def test_a_distance_is_said_of_the_coordinate_it_is_in():
    (found,) = with_slip("speed", [17], 1e-9)
    assert "standard deviations of the unconstrained coordinate from the median" in found.text
    (found,) = with_slip("speed", [17], 1e9)
    assert "unconstrained" not in found.text


def test_the_end_of_a_scale_is_no_code_for_sure():
    fine = clean()["age"] / 100
    concave = torch.where(torch.arange(N) < 5, 0.0, fine**4)  # others come near 0
    (found,) = look_at(MODEL, MODEL.stored(clean() | {"age": concave}))
    assert (found.kind, found.fatal, found.rows) == ("coded_rows", False, (0, 1, 2, 3, 4))
    assert "or the end of a scale" in found.advice
    of_cosines = torch.where(torch.arange(N) < 5, -1.0, (5 * clean()["direction"]).cos())
    (found,) = look_at(MODEL, MODEL.stored(clean() | {"temperature": of_cosines}))
    assert (found.kind, found.fatal) == ("coded_rows", False)


def test_measured_zeros_of_real_rows_are_cautions():
    """Thirteen tumours without a concave point: no missing values, and no rows to drop."""
    datasets = pytest.importorskip("sklearn.datasets")
    rows = datasets.load_breast_cancer().data[:, [6, 7]]

    def declared():
        pyro.sample("x", dist.Normal(torch.zeros(2), 1.0).to_event(1))

    model = ebm_pp.EnergyModel(declared)
    found = look_at(model, model.stored({"x": rows}))
    assert {finding.kind for finding in found} == {"tied_rows", "repeated_rows"}
    assert not any(finding.fatal for finding in found)
    assert "(0 in 2.3%)" in found[0].text
