"""Clean tables of the kinds that strangers bring are accused of nothing."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints

import ebm_pp
from ebm_pp.findings import look_at

SEEDS, SIZES = 5, (40, 300, 5000)


def real(*names):
    return {name: dist.ImproperUniform(constraints.real, (), ()) for name in names}


def positive(*names):
    return {name: dist.LogNormal(0.0, 1.0) for name in names}


def model_of(sites):
    def declared():
        for name, law in sites.items():
            pyro.sample(name, law)

    return ebm_pp.EnergyModel(declared)


def wide(random, n, d, rank=3):
    """Columns that share a few causes, each with noise of its own and another scale."""
    causes = random.normal(size=(n, rank)) @ random.normal(size=(rank, d))
    return (causes + 0.5 * random.normal(size=(n, d))) * 10.0 ** random.uniform(-3, 4, d)


def named(names, *values):
    return dict(zip(names, values, strict=True))


def modes(random, n, share, apart):
    """Two modes: this share of the rows lies `apart` standard deviations away."""
    return random.normal(size=n) + apart * (random.uniform(size=n) < share)


# name: (sites, the rows that a generator and n give, the least n: in fewer a mode would be rare)
TABLES = {
    "normal": (real("x"), lambda r, n: {"x": r.normal(size=n)}, 40),
    "lognormal": (positive("x"), lambda r, n: {"x": r.lognormal(size=n)}, 40),
    "lognormal, wide": (positive("x"), lambda r, n: {"x": r.lognormal(0, 2.5, n)}, 40),
    "gamma": (positive("x"), lambda r, n: {"x": r.gamma(0.7, 3, n)}, 40),
    "gamma, a real line": (real("x"), lambda r, n: {"x": r.gamma(0.7, 3, n)}, 40),
    "t(3)": (real("x", "y"), lambda r, n: {k: r.standard_t(3, n) for k in "xy"}, 40),
    "exponential": (positive("x"), lambda r, n: {"x": r.exponential(9, n)}, 40),
    "Weibull": (positive("x"), lambda r, n: {"x": 7 * r.weibull(1.8, n)}, 40),
    "Weibull, steep": (positive("x"), lambda r, n: {"x": 7 * r.weibull(0.5, n)}, 40),
    "uniform": (
        {"x": dist.Uniform(0.0, 1.0)}, lambda r, n: {"x": r.uniform(size=n)}, 40
    ),
    "ten to one": (real("x"), lambda r, n: {"x": modes(r, n, 1 / 11, 30)}, 110),
    "three of a hundred": (real("x"), lambda r, n: {"x": modes(r, n, 0.03, 12)}, 300),
    "correlated": (
        real("x", "y"),
        lambda r, n: named("xy", x := r.normal(size=n), 0.98 * x + 0.2 * r.normal(size=n)),
        40,
    ),
    "twelve": (
        {"x": dist.Normal(torch.zeros(12), 1.0).to_event(1)},
        lambda r, n: {"x": wide(r, n, 12)},
        100,
    ),
    "angles": (
        {"x": ebm_pp.Circle(), "y": ebm_pp.Circle()},
        lambda r, n: {"x": r.vonmises(1.0, 2.0, n), "y": r.uniform(-math.pi, math.pi, n)},
        40,
    ),
    "narrow angles": (
        {"x": ebm_pp.Circle()}, lambda r, n: {"x": r.vonmises(3.0, 50.0, n)}, 40
    ),
    "hours": (
        {"x": ebm_pp.Circle(period=24.0)},
        lambda r, n: {"x": np.mod(r.normal(23.0, 3.0, n), 24.0)},
        40,
    ),
    "degrees": (
        {"x": ebm_pp.Circle(period=360.0)},
        lambda r, n: {"x": np.mod(np.degrees(r.vonmises(5.0, 0.5, n)), 360)},
        40,
    ),
    "weather": (
        real("kelvin", "pascals") | positive("speed"),
        lambda r, n: named(
            ("kelvin", "pascals", "speed"),
            290 + 8 * r.normal(size=n), 101_325 + 800 * r.normal(size=n), 8 * r.weibull(2, n),
        ),
        40,
    ),
    "pascals and kelvins in one vector": (
        {"x": dist.Normal(torch.zeros(2), 1.0).to_event(1)},
        lambda r, n: {"x": np.stack([290 + 8 * r.normal(size=n), r.normal(101325, 800, n)], 1)},
        40,
    ),
    "a year of unix seconds": (
        real("t", "x"),
        lambda r, n: named("tx", r.uniform(1.7e9, 1.7e9 + 3e7, n), r.normal(size=n)),
        40,
    ),
    "places": (
        real("latitude", "longitude"),
        lambda r, n: named(
            ("latitude", "longitude"), r.uniform(-60, 70, n), r.uniform(-180, 180, n)
        ),
        40,
    ),
    "places of a town": (
        real("latitude", "longitude"),
        lambda r, n: named(
            ("latitude", "longitude"), r.normal(48.1, 0.05, n), r.normal(11.6, 0.08, n)
        ),
        40,
    ),
    "percentages": (
        {"x": dist.Uniform(0.0, 100.0)}, lambda r, n: {"x": 100 * r.beta(2, 5, n)}, 40
    ),
    "prices": (
        positive("price", "area"),
        lambda r, n: named(
            ("price", "area"), 3e5 * (area := r.lognormal(0, 0.5, n)) ** 0.8
            * r.lognormal(0, 0.3, n), 80 * area,
        ),
        40,
    ),
    "prices to the cent": (
        positive("price"), lambda r, n: {"price": r.lognormal(3.5, 0.8, n).round(2)}, 40
    ),
    "a random walk": (real("x"), lambda r, n: {"x": r.normal(size=n).cumsum()}, 40),
    "a trend": (
        real("t", "x"),
        lambda r, n: named("tx", t := r.uniform(0, 9, n), 3 * t + r.normal(size=n)),
        40,
    ),
    "clusters": (
        {"x": dist.Normal(torch.zeros(4), 1.0).to_event(1)},
        lambda r, n: {
            "x": (8 * r.normal(size=(5, 4)))[r.integers(5, size=n)] + r.normal(size=(n, 4))
        },
        40,
    ),
    "bodies": (
        positive("height", "weight"),
        lambda r, n: named(
            ("height", "weight"), h := r.normal(170, 9, n), h - 100 + 10 * r.normal(size=n)
        ),
        40,
    ),
    "to the tenth": (
        real("x", "y"), lambda r, n: {k: (20 + 8 * r.normal(size=n)).round(1) for k in "xy"},
        40,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", TABLES)
def test_a_clean_table_has_nothing_to_mend(name):
    sites, draw, least = TABLES[name]
    model = model_of(sites)
    cautions = 0
    for n in (size for size in SIZES if size >= least):
        for seed in range(SEEDS):
            found = look_at(model, model.stored(draw(np.random.default_rng(seed), n)))
            assert [str(finding) for finding in found if finding.fatal] == []
            cautions += bool(found)
    assert cautions <= 1  # of 15: by chance
