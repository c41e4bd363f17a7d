"""Rows of a circular site in another unit, against angles as they are."""

import math
import warnings

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
import xarray as xr

from ebm_pp import DataError, EnergyModel
from ebm_pp.circle import Circle, circular
from ebm_pp.findings import look_at
from ebm_pp.program import Site
from ebm_pp.units import check_unit, suspected_unit

TURN = 2 * math.pi
MODEL = EnergyModel(lambda: pyro.sample("a", Circle()))


def shuffled(x):
    return x[torch.randperm(len(x))]


def normal(n):
    return torch.randn(n, dtype=torch.float64)


def uniform(n):
    return torch.rand(n, dtype=torch.float64)


def turns(n, most):
    return TURN * torch.randint(-most, most + 1, (n,)).double()


RADIANS = {
    "narrow": lambda n: 1 + 0.2 * normal(n),
    "not wrapped": lambda n: 2 * normal(n),
    "of a few turns": lambda n: 4 * normal(n),
    "0 to 2 pi": lambda n: TURN * uniform(n),
    "-pi to pi": lambda n: TURN * uniform(n) - math.pi,
    "half a circle": lambda n: math.pi * uniform(n),
    "0 to 1": uniform,
    "turns of a direction": lambda n: 0.5 * normal(n) + turns(n, 5),
    "turns of none": lambda n: TURN * uniform(n) + turns(n, 5),
    "turns upward": lambda n: TURN * uniform(n) + turns(n, 4) + 4 * TURN,
    "far winding": lambda n: 0.5 * normal(n) + 40 * math.pi,
    "far winding of none": lambda n: TURN * uniform(n) + 20 * math.pi,
    "walk": lambda n: normal(n).cumsum(0),
    "small steps": lambda n: 0.1 * normal(n).cumsum(0),
    "walk, shuffled": lambda n: shuffled(normal(n).cumsum(0)),
    "walk with a drift": lambda n: (normal(n) + 0.1).cumsum(0),
    "some of a walk": lambda n: shuffled(normal(2 * n).cumsum(0))[:n],
    "ramp": lambda n: torch.linspace(0, 50, n).double(),
    "ramp to 360": lambda n: torch.linspace(0, 360, n).double(),
    "ramp downwards": lambda n: torch.linspace(180, -180, n).double(),
    "ramp, shuffled": lambda n: shuffled(torch.linspace(0, 300, n).double()),
    "noisy ramp": lambda n: torch.linspace(10, 90, n).double() + 0.3 * normal(n),
    "quarters of a ramp": lambda n: torch.arange(n).double() / 4,
    "tens of degrees": lambda n: torch.randint(36, (n,)).double() * math.pi / 18,
    "rounded": lambda n: (100 * (1 + normal(n))).round() / 100,
    "coarsely rounded": lambda n: (10 * (1 + normal(n))).round() / 10,
    "huge": lambda n: 1e4 * normal(n),
    "constant": lambda n: torch.ones(n),
    "two": lambda n: torch.randint(2, (n,)).double(),
    "few": lambda n: torch.tensor([10.0, 90.0, 180.0, 270.0, 300.0]),
}


@pytest.mark.filterwarnings("ignore:the data:UserWarning")  # coarse or constant: see findings
@pytest.mark.parametrize("n", [60, 3000])
@pytest.mark.parametrize("name", RADIANS)
def test_angles_pass(name, n):
    x = RADIANS[name](n)
    assert torch.equal(MODEL.check({"a": x})["a"], x.float())


OTHERS = {
    "degrees, whole": (lambda n: (360 * uniform(n)).floor(), 360),
    "tens of degrees": (lambda n: 10 * (36 * uniform(n)).floor(), 360),
    "degrees": (lambda n: (90 + 60 * normal(n)) % 360, 360),
    "degrees at north": (lambda n: (10 * normal(n)) % 360, 360),
    "degrees, -180 to 180": (lambda n: (90 + 60 * normal(n) + 180) % 360 - 180, 360),
    "degrees at south": (lambda n: (30 * normal(n)) % 360 - 180, 360),
    "degrees of no direction": (lambda n: 360 * uniform(n), 360),
    "a series of degrees": (lambda n: (8 * normal(n)).cumsum(0) % 360, 360),
    "hours": (lambda n: (8 + 5 * normal(n)) % 24, 24),
    "hours of the night": (lambda n: (23 + 2 * normal(n)) % 24, 24),
    "hours, whole": (lambda n: (24 * uniform(n)).floor(), 24),
    "days of the year": (lambda n: (366 * uniform(n)).floor() + 1, 366),
    "months": (lambda n: (12 * uniform(n)).floor() + 1, 12),
    "weekdays": (lambda n: (7 * uniform(n)).floor(), 7),
    "minutes": (lambda n: (5 + 15 * normal(n)) % 60, 60),
    "minutes, whole": (lambda n: (60 * uniform(n)).floor(), 60),
    "gradians": (lambda n: (100 + 80 * normal(n)) % 400, 400),
    "fractions of a turn": (lambda n: (0.1 + 0.2 * normal(n)) % 1, 1),
    "fractions, -1/2 to 1/2": (lambda n: (0.1 * normal(n)) % 1 - 0.5, 1),
    "minutes of the day": (lambda n: (600 + 400 * normal(n)) % 1440, 1440),
    "seconds of the day": (lambda n: 86400 * uniform(n), 86400),
}


@pytest.mark.filterwarnings("ignore:the data:UserWarning")  # coarse or constant: see findings
@pytest.mark.parametrize("name", OTHERS)
def test_another_unit_is_an_error_whose_advice_helps(name):
    make, period = OTHERS[name]
    x = make(3000)
    with pytest.raises(DataError) as caught:
        MODEL.check({"a": x})
    text = str(caught.value)
    assert "site 'a': 3000 rows from" in text
    assert "expected radians" in text
    assert f"Circle(period={float(period)})" in text
    assert f"x * (2 * math.pi / {period:g})" in text
    MODEL.check({"a": x * (2 * math.pi / period)})


WHOLE = {  # of no period: the numbers do not run to its ends
    "halves of degrees": lambda n: (2 * ((90 + 20 * normal(n)) % 360)).round() / 2,
    "days of a summer": lambda n: (200 + 20 * normal(n)).round(),
    "office hours": lambda n: (9 + 8 * uniform(n)).floor(),
}


@pytest.mark.parametrize("name", WHOLE)
def test_whole_numbers_are_no_radians(name):
    with pytest.raises(DataError, match="whole or quarter numbers, which radians are not"):
        MODEL.check({"a": WHOLE[name](500)})


SECTORS = {
    "one sector": lambda n: (90 + 20 * normal(n)) % 360,
    "tenths": lambda n: (900 + 200 * normal(n)).round() / 10,
    "two sectors": lambda n: torch.where(uniform(n) < 0.5, 90.0, 270.0) + 10 * normal(n),
    "west": lambda n: -90 + 15 * normal(n),
}


@pytest.mark.parametrize("name", SECTORS)
def test_degrees_of_a_sector_are_warned_of(name):
    x = SECTORS[name](3000)
    with pytest.warns(UserWarning, match=r"no direction in radians.*Circle\(period=360.0\)"):
        rows = MODEL.check({"a": x})["a"]
    assert torch.equal(rows, x.float())
    MODEL.check({"a": x % (2 * math.pi)})  # what the warning says of phases


@pytest.mark.parametrize("unit", ["degrees", "deg", "hours", "Degree", "gon", "turn"])
def test_the_unit_that_an_object_states(unit):
    x = xr.DataArray(np.linspace(0.1, 3.0, 10), attrs={"units": unit})
    with pytest.raises(DataError, match=f"their unit is '{unit.lower()}'"):
        MODEL.check({"a": x})
    MODEL.check({"a": xr.DataArray(x.values, attrs={"units": "radians"})})
    MODEL.check({"a": xr.DataArray(x.values, attrs={"units": "furlongs"})})
    line = EnergyModel(lambda: pyro.sample("a", dist.Normal(0.0, 1.0)))
    line.check({"a": x})


def test_every_angle_of_a_vector_and_every_circular_law_is_looked_at():
    def program():
        pyro.sample("a", dist.VonMises(torch.zeros(3), 1.0).to_event(1))

    model = EnergyModel(program)
    good = TURN * uniform(300)
    degrees = (360 * uniform(300)).floor()
    model.check({"a": torch.stack([good, TURN * uniform(300), TURN * uniform(300)], 1)})
    with pytest.raises(DataError, match="degrees"):
        model.check({"a": pd.DataFrame({0: good, 1: TURN * uniform(300), 2: degrees})})


def site(period):
    support = type(circular)()
    support.period = period
    return Site("a", (), support, 1, True, True)


@pytest.mark.parametrize(
    "x", [lambda n: TURN * uniform(n), lambda n: (3 + 1.5 * normal(n)) % TURN - math.pi]
)
def test_radians_given_to_a_period_of_ones_own(x):
    with pytest.raises(DataError, match=r"radians: declare the site as Circle\(\)"):
        check_unit(x(1000), site(360.0), "")
    with pytest.raises(DataError, match=r"x \* \(360 / \(2 \* math.pi\)\)"):
        check_unit(x(1000), site(360.0), "")
    with pytest.raises(DataError, match="unit is 'rad'"):
        check_unit(x(1000), site(24.0), "rad")


def test_radians_of_a_sector_given_to_degrees_are_a_caution():
    x = 1 + 0.4 * normal(500)
    text, advice, fatal = suspected_unit(x, x, site(360.0))
    assert "lie in one turn of radians" in text
    assert "If they are radians, declare the site as Circle()" in advice
    assert not fatal
    model = EnergyModel(lambda: pyro.sample("a", Circle(period=360.0)))
    (found,) = look_at(model, model.stored({"a": x}))
    assert (found.kind, found.site, found.fatal) == ("another_unit", "a", False)


def test_a_report_on_degrees_of_a_sector_is_not_healthy():
    x = SECTORS[next(iter(SECTORS))](3000)
    (found,) = look_at(MODEL, MODEL.stored({"a": x}))
    assert (found.kind, found.site, found.fatal) == ("another_unit", "a", True)


@pytest.mark.parametrize("period", [1.0, 24.0, 360.0, 366.0])
def test_values_of_the_period_pass_in_any_winding(period):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for x in (period * uniform(500), (period * uniform(500)).floor(),
                  period * uniform(500) - period / 2, 3 * period * normal(500)):  # fmt: skip
            check_unit(x, site(period), "")


def test_false_alarms_are_rare():
    """Of 20 seeds and every kind of angles none is refused, and few are warned of."""
    warned = 0
    for seed in range(20):
        torch.manual_seed(seed)
        for make in RADIANS.values():
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                MODEL.check({"a": make(400)})
            warned += sum("Most likely degrees" in str(w.message) for w in caught)
    assert warned <= 0.01 * 20 * len(RADIANS)
