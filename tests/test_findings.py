"""Rows that are at fault themselves: each kind by its value, honest rows left in peace."""

import copy
import dataclasses
import math
import re
import warnings

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from closed_form import Exact, exact, normal
from pyro.distributions import constraints

import ebm_pp
from ebm_pp import cli
from ebm_pp.circle import Circle
from ebm_pp.density import EnergyModel
from ebm_pp.diagnostics import diagnose
from ebm_pp.errors import DataError, GeneratorError
from ebm_pp.findings import look_at
from models import linear_quadratic as lq
from models.digits import load_digits
from models.planar import TARGETS
from models.wind import Wind, load_wind

N = 1000


def model_of(base):
    def declared():
        pyro.sample("x", base)

    return EnergyModel(declared)


PLANE = model_of(normal(0.0, 1.0))
LINE = model_of(dist.Normal(0.0, 1.0))
SPACE = model_of(normal(0.0, 1.0, 3))
POSITIVE = model_of(dist.LogNormal(torch.zeros(3), 1.0).to_event(1))
SIMPLEX = model_of(dist.Dirichlet(torch.ones(3)))
ANGLES = model_of(Circle().expand((2,)).to_event(1))


def gaussian(d=2, n=N, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, generator=generator, dtype=torch.float64)


def uniform(d=1, n=N, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(n, d, generator=generator, dtype=torch.float64)


def found_in(model, x):
    return look_at(model, model.stored({"x": x}))


def keys(found, *, fatal=True):
    return {finding.kind for finding in found if finding.fatal == fatal}


def with_value(x, rows, value, column=0):
    changed = x.clone()
    changed[rows, column] = torch.as_tensor(value, dtype=x.dtype)
    return changed


Z = gaussian()
E = gaussian().exp()
PARTS = 100 * torch.softmax(2 * Z @ gaussian(3, 2, 1), 1)
POISSON = torch.poisson(torch.full((N,), 2.0), generator=torch.Generator().manual_seed(0))
STARS = (3 + 0.8 * Z[:, 0]).round().clamp(1, 5)

TIED = {
    "counts": (LINE, POISSON, "all whole numbers"),
    "ratings": (LINE, STARS, "5 different values in 1000 rows"),
    "zeros": (PLANE, with_value(Z, slice(300), 0.0), "701 different values in 1000 rows (0 in 30"),
    "rain": (LINE, torch.where(uniform()[:, 0] < 0.8, 0.0, gaussian(1)[:, 0].exp()), "(0 in "),
    "clipped": (LINE, Z[:, 0].clamp(-1.5, 1.5), "-1.5 in "),
    "code": (LINE, with_value(E, slice(50), -1.0)[:, 0], "(-1 in 5.0%)"),
    "quarters": (LINE, (Z[:, 0] * 4).round() / 4, "width (0.25)"),
    "two values": (LINE, (Z[:, 0] > 0).double(), "2 different values"),
    "eight winds": (ANGLES, (uniform(2) * 8).floor() * math.pi / 4 - 3, "8 different values"),
    "parts in tenths": (SIMPLEX, torch.tensor([[1, 2, 7], [3, 3, 4], [2, 5, 3]])[
        torch.arange(N) % 3].double() / 10, "3 different values"),
    "next to constant": (LINE, with_value(torch.ones(N, 1), [7], 5.0)[:, 0], "(1 in 99.9%)"),
}  # fmt: skip


@pytest.mark.parametrize("name", TIED)
def test_ties_are_named(name):
    model, x, words = TIED[name]
    found = found_in(model, x)
    assert found[0].kind == "tied_rows"
    assert found[0].fatal
    assert any(words in str(finding) for finding in found)
    assert "log-likelihoods mean nothing" in found[0].advice.lower()


@pytest.mark.parametrize(
    ("x", "words"),
    [
        ((uniform()[:, 0] * 48).floor() / 2, "48 different values"),  # half hours
        (Z[:, 0].round(decimals=1), "width (0.1)"),
        (with_value(Z, slice(15), 0.0)[:, 0], "(0 in 1.5%)"),
        ((uniform()[:, 0] * 90).floor(), "all whole numbers"),  # years of age
        ((500 * Z[:, 0]).round(), "every value of x is a whole number"),
    ],
)
def test_fine_rounding_is_a_caution(x, words):
    (found,) = found_in(LINE, x)
    assert not found.fatal
    assert words in str(found)
    assert "mean nothing" not in found.advice


def test_a_few_values_may_be_classes():
    few, more = ((uniform()[:, 0] * k).floor() for k in (5, 6))
    assert "Classes have no density: leave the column out" in str(found_in(LINE, few)[0])
    assert "Classes" not in str(found_in(LINE, more)[0])


def test_jitter_cures_ties():
    jittered = STARS + uniform(seed=5)[:, 0] - 0.5
    assert found_in(LINE, jittered) == ()


TOTAL = torch.cat([Z, Z.sum(1, keepdim=True)], 1)
# name: (model, rows, words after "x[2] follows linearly")
OF_TWO = {
    "total": (SPACE, TOTAL, " from x[0] and x[1] (exactly)"),
    "total, single precision": (SPACE, TOTAL.float(), " from x[0] and x[1]"),
    "total of positive numbers": (POSITIVE, torch.cat([E, E.sum(1, keepdim=True)], 1), " from x"),
    "product": (POSITIVE, torch.cat([E, E.prod(1, keepdim=True)], 1), " in unconstrained coord"),
    "percentages": (SPACE, PARTS, " from x[0] and x[1]"),
    "percentages, rounded": (SPACE, PARTS.round(decimals=1), " from x[0] and x[1] (of its"),
    "difference, one row wrong": (
        SPACE,
        with_value(torch.cat([Z, Z[:, :1] - Z[:, 1:]], 1), [7], 9.0, 2),
        " from x[0] and x[1]",
    ),
}
# name: (model, rows, words after "x[1] ")
OF_ONE = {
    "copy": (PLANE, Z[:, [0, 0]], "follows linearly from x[0] (exactly)"),
    "other unit": (PLANE, torch.stack([Z[:, 0], 32 + 1.8 * Z[:, 0]], 1), "follows linearly"),
    "logarithm": (PLANE, torch.stack([E[:, 0], Z[:, 0]], 1), "is a monotone function of x[0]"),
    "rank": (PLANE, torch.stack([Z[:, 0], Z[:, 0].argsort().argsort().double()], 1), "is a mono"),
    "angle": (ANGLES, (6 * uniform())[:, [0, 0]], "follows linearly from x[0]"),
}
RELATED = {k: (m, x, f"x[2] follows linearly{words}") for k, (m, x, words) in OF_TWO.items()}
RELATED |= {k: (m, x, f"x[1] {words}") for k, (m, x, words) in OF_ONE.items()}


@pytest.mark.parametrize("name", RELATED)
def test_columns_that_determine_one_another_are_named(name):
    model, x, words = RELATED[name]
    (found,) = (f for f in found_in(model, x) if f.kind == "collinear")
    assert found.fatal
    assert words in found.text


def test_sites_that_determine_one_another():
    def declared():
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        pyro.sample("b", dist.Normal(a, 1.0))

    model = EnergyModel(declared)
    (found,) = look_at(model, model.stored({"a": Z[:, 0], "b": 3 - Z[:, 0]}))
    assert (found.kind, found.site, found.fatal) == ("collinear", "b", True)
    assert "b follows linearly from a" in found.text


def test_a_thin_sheet_is_a_caution_and_correlation_is_fine():
    thin = torch.stack([Z[:, 0], Z[:, 0] + 7e-3 * Z[:, 1]], 1)
    (found,) = found_in(PLANE, thin)
    assert (found.kind, found.fatal) == ("collinear", False)
    assert "(of its standard deviation 0.007 is left open)" in found.text
    assert found_in(PLANE, torch.stack([Z[:, 0], Z[:, 0] + 0.03 * Z[:, 1]], 1)) == ()


@pytest.mark.parametrize("value", [0.0, 0.1, -3.7, 1e9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_constant_columns(value, dtype):
    (found,) = found_in(PLANE, with_value(Z, slice(None), value).to(dtype))
    assert (found.kind, found.fatal) == ("constant_column", True)
    assert f"x[0] is {value:.6g} in every row" in found.text


def test_many_findings_of_a_kind_are_counted():
    model = model_of(normal(0.0, 1.0, 9))
    found = found_in(model, torch.cat([torch.ones(N, 8), Z[:, :1]], 1))
    assert [f.kind for f in found] == ["constant_column"] * 3
    assert found[2].text.endswith("; and 5 more columns like that")


@pytest.mark.parametrize(("copies", "fatal"), [(2, False), (4, False), (20, True)])
def test_repeated_rows(copies, fatal):
    (found,) = (
        f for f in found_in(PLANE, Z[: N // copies].repeat(copies, 1)) if f.kind != "tied_rows"
    )
    assert (found.kind, found.fatal) == ("repeated_rows", fatal)
    assert f"of 1000 rows {N // copies} are different" in found.text
    assert f"repeated {copies} times" in found.text
    assert "repeated_rows" not in keys(found_in(PLANE, Z.round(decimals=1)), fatal=False)


LOST = {
    "Unix time": 1.7e9 + 1000 * Z[:, 0],
    "Unix time, array": (1.7e9 + 1000 * Z[:, 0]).numpy(),
    "Unix time, whole seconds": (1.7e9 + 1000 * Z[:, 0]).numpy().astype(np.int64),
    "northing": 5.3e6 + 2 * Z[:, 0],
    "julian day": 2_460_000.5 + 0.5 * Z[:, 0],
    "below zero": -2e6 + Z[:, 0],
    "already single": (1.7e9 + 1000 * Z[:, 0]).float(),
}


@pytest.mark.parametrize("name", LOST)
def test_digits_that_single_precision_loses(name):
    found = found_in(LINE, LOST[name])[0]
    assert (found.kind, found.fatal) == ("precision", True)
    assert "single precision steps by" in found.text
    assert ("model.double()" in found.advice) == (name != "already single")
    if name == "northing":
        assert "leaves 26 of 1000 different values" in found.text
    double = copy.deepcopy(LINE).double()
    assert ("precision" in keys(found_in(double, LOST[name]))) == (name == "already single")


def test_digits_of_logarithms_and_angles():
    pressure = 1e6 + 0.5 * gaussian(3)
    assert keys(found_in(POSITIVE, pressure)) == {"precision"}
    assert keys(found_in(ANGLES, 1e8 + 6 * uniform(2))) == {"precision"}


# A turn in radians, turns, hours, degrees, days, minutes of a week, seconds of a day, of a year.
PERIODS = (2 * math.pi, 1.0, 24.0, 360.0, 365.25, 10_080.0, 86_400.0, 31_557_600.0)


@pytest.mark.parametrize("period", PERIODS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_angles_are_judged_in_their_own_period(period, dtype):
    model = model_of(Circle(period=period))
    for turns in (uniform(), 0.02 * gaussian(1), 0.5 + 0.02 * gaussian(1), 3 + uniform()):
        assert found_in(model, (period * turns[:, 0]).to(dtype)) == ()
    (coarse,) = found_in(model, (period * ((12 * uniform()).floor() / 12))[:, 0].to(dtype))
    assert coarse.kind == "tied_rows"
    assert f"rounding's width ({period / 12:.3g})" in coarse.advice
    lost = found_in(model, (period * (1e6 + uniform()))[:, 0].float())
    (said,) = (finding.text for finding in lost if finding.kind == "precision")
    spread, offset = map(float, re.search(r"spreads by (\S+) about (\S+),", said).groups())
    assert 1 < spread / (period / math.sqrt(12)) < 1.5  # a robust scale of a uniform is wider
    assert offset == pytest.approx(1e6 * period, rel=1e-5)


@pytest.mark.parametrize("offset", [3e4, 1e5])
def test_offsets_up_to_a_hundred_thousand_spreads_are_cautions(offset):
    (found,) = found_in(LINE, offset + gaussian(1, 5000)[:, 0])
    assert (found.kind, found.fatal) == ("precision", False)
    assert found_in(LINE, offset / 10 + gaussian(1, 5000)[:, 0] * 10) == ()


BODY = torch.stack([170 + 8 * Z[:, 0], 70 + 8 * Z[:, 1]], 1)
PLACE = torch.stack([48 + 0.2 * Z[:, 0], 11 + 0.3 * Z[:, 1]], 1)
TIGHT = torch.stack([Z[:, 0], Z[:, 0] + 0.1 * Z[:, 1]], 1)
SPEED = torch.stack([(2.1 + 0.48 * Z[:, 0]).exp(), 15 + 8 * Z[:, 1]], 1)
# name: (rows, the numbers of those mistyped, words of the advice)
MISTYPED = {
    "a digit held down": (with_value(SPEED, [17], 1e9), [17], "typing error"),
    "code -999": (with_value(BODY, [3, 50, 77], -999.0), [3, 50, 77], "missing value"),
    "code 9999": (with_value(BODY, [5], 9999.0, 1), [5], "missing value"),
    "code 0": (with_value(PLACE, [8, 9], 0.0), [8, 9], "missing value"),
    "decimal point lost": (with_value(BODY, [9], 10 * BODY[9, 0]), [9], "x[0] divided by 10 "),
    "two places": (with_value(BODY, [9], 100 * BODY[9, 1], 1), [9], "x[1] divided by 100 "),
    "metres": (with_value(BODY, [4, 40], BODY[[4, 40], 0] / 100), [4, 40], "multiplied by 100"),
    "sign": (with_value(PLACE, [11], -PLACE[11, 1], 1), [11], "the sign of x[1] changed"),
    "exchanged": (with_value(with_value(PLACE, [12], 11.0), [12], 48.0, 1), [12],
                  "x[0] and x[1] exchanged"),
    "jointly": (with_value(TIGHT, [6], TIGHT[6, 0] + 4.0, 1), [6], "typing error"),
    "year": (with_value(2000 + 5 * Z, [6], 20013.0), [6], "divided by 10 "),
    "infinite in single precision almost": (with_value(Z, [2], 3e38), [2], "typing error"),
    "in heavy tails": (
        with_value(torch.tan(math.pi * (uniform(2) - 0.5)), [7], -1e11), [7], "typing error"
    ),
    "two of them": (with_value(with_value(Z, [5], 1e9), [6], 300.0), [5, 6], "typing error"),
    "small": (with_value(1 + 0.01 * Z, [5], 0.1), [5], "multiplied by 10 "),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTYPED)
def test_mistyped_rows_are_named(name):
    x, rows, advice = MISTYPED[name]
    found = [f for f in found_in(PLANE, x) if f.kind == "far_rows"]
    assert all(finding.fatal for finding in found)
    assert sorted({row for finding in found for row in finding.rows}) == rows
    assert any(advice in finding.advice for finding in found)
    at = found[0].rows
    assert found[0].values == {"x": x[list(at)].tolist()}


@pytest.mark.parametrize("name", MISTYPED)
def test_the_report_names_them_first(name):
    x, rows, _ = MISTYPED[name]
    clean = x[[row for row in range(N) if row not in rows]]
    loc, scale = clean.median(0).values.float(), clean.quantile(0.84, 0).float()
    law = dist.Normal(loc, (scale - loc).clamp(min=0.1)).to_event(1)
    base = dist.Normal(loc, 3 * law.base_dist.scale).to_event(1)
    fit = exact(law, law, base, n_train=N)
    trained = dataclasses.replace(WithFindings(**vars(fit)), findings=look_at(fit.model, {"x": x}))
    report = diagnose(trained, {"x": clean[:500].float()}, n=500)
    assert report.problems[0] == "far_rows"
    assert report.where == "x"
    assert not report.ok
    assert report.verdict.startswith("Far rows: training rows, site 'x': ")
    shown = f"row {rows[0]} " if len(rows) == 1 else f"{len(rows)} rows ("
    assert shown in report.verdict
    assert str(report).startswith("data\n  training rows, site 'x': ")
    assert shown in report._repr_html_()


@dataclasses.dataclass(frozen=True)
class WithFindings(Exact):
    findings: tuple = ()


def test_a_mistyped_row_among_the_rows_given():
    fit = exact(normal(0.0, 1.0))
    x = with_value(Z, [21], 1e4).float()
    report = diagnose(fit, {"x": x}, n=500)
    assert report.problems[0] == "far_rows"
    assert "these rows, site 'x': row 21 has x[0] = 10000" in report.verdict


def test_a_caution_is_named_only_before_another_problem():
    fit = exact(normal(0.0, 1.0), n_train=N)
    rounded = Z.round(decimals=1).float()
    good = diagnose(fit, {"x": rounded}, n=2000)
    assert good.ok
    assert good.verdict.startswith("Healthy")
    assert "x[0] has" in str(good)
    assert "(caution)" in str(good)
    bad = diagnose(fit, {"x": rounded + 0.5}, n=2000)
    assert bad.problems == ("wrong_factor",)
    assert bad.verdict.startswith("Perhaps the data: these rows, site 'x': x[0] has")
    assert "Wrong or missing factor" in bad.verdict


def test_data_come_before_the_generator_and_log_z_stays_distrusted():
    fit = exact(normal(0.0, 1.0), normal(0.0, 0.5))
    report = diagnose(fit, {"x": with_value(Z, slice(300), 0.0).float()})
    assert report.problems[:2] == ("tied_rows", "narrow_proposal")
    assert "What follows may come from that. Too narrow proposal" in report.verdict
    assert {row.name: row.verdict for row in report.rows}["log Z"] == "not to be trusted"


HONEST = {
    "normal": dist.Normal(0.0, 1.0),
    "lognormal": dist.LogNormal(0.0, 1.0),
    "very lognormal": dist.LogNormal(0.0, 3.0),
    "Cauchy": dist.Cauchy(0.0, 1.0),
    "t(2)": dist.StudentT(2.0),
    "uniform": dist.Uniform(0.0, 1.0),
    "Pareto": dist.Pareto(1.0, 1.0),
    "exponential": dist.Exponential(1.0),
    "Beta(.5, .5)": dist.Beta(0.5, 0.5),
    "half Cauchy": dist.HalfCauchy(1.0),
    "two modes": dist.MixtureSameFamily(
        dist.Categorical(torch.tensor([0.7, 0.3])), dist.Normal(torch.tensor([-1.0, 60.0]), 1.0)
    ),
}


@pytest.mark.parametrize("name", HONEST)
@pytest.mark.parametrize("n", [60, 300, 3000])
def test_honest_rows_are_never_at_fault(name, n):
    cautions = 0
    for seed in range(8):
        torch.manual_seed(seed)
        found = found_in(PLANE, HONEST[name].sample((n, 2)))
        assert keys(found) == set()
        cautions += bool(found)
    assert cautions <= 2


def test_honest_rows_of_bounded_and_shared_supports():
    torch.manual_seed(0)
    assert found_in(SIMPLEX, dist.Dirichlet(torch.ones(3)).sample((N,))) == ()
    assert found_in(POSITIVE, dist.LogNormal(torch.zeros(3), 2.0).sample((N,))) == ()
    assert found_in(ANGLES, 40 * uniform(2)) == ()
    for base in (
        dist.LKJCholesky(3, 1.0),
        dist.ImproperUniform(constraints.positive_definite, (), (2, 2)),
        dist.ImproperUniform(constraints.ordered_vector, (), (4,)),
        dist.Beta(0.5, 0.5),
        dist.HalfCauchy(1.0),
        dist.HalfNormal(1.0),
    ):
        model = model_of(base)
        x, _ = model.constrain(torch.randn(N, model.dim))
        assert keys(look_at(model, x)) == set()


@pytest.mark.parametrize("name", TARGETS)
def test_planar_rows_are_fine(name):
    torch.manual_seed(0)
    assert look_at(PLANE, TARGETS[name].draws(2000, 0)) == ()


def test_wind_and_digits_are_fine(capsys):
    for rows in load_wind()[:2]:
        assert look_at(EnergyModel(Wind()), rows) == ()
    pytest.importorskip("sklearn")
    for rows in load_digits():
        assert look_at(model_of(normal(0.0, 1.0, 64)), rows) == ()


def test_few_rows_are_not_judged():
    assert found_in(PLANE, torch.ones(19, 2)) == ()
    assert keys(found_in(PLANE, torch.ones(20, 2))) == {"constant_column"}


def test_a_row_of_a_large_file_keeps_its_number():
    x = torch.randn(300_000, 1).double()
    x[::3] = 1e9  # some of them are among the 100,000 rows looked at
    x[1::3] = x[1::3] + 0.0
    rare = torch.randn(300_000)
    rare[120_000:120_600] = 1e9
    (found,) = found_in(LINE, rare)
    assert all(120_000 <= row < 120_600 for row in found.rows)
    assert len(found.rows) == 20


def test_check_warns_once_of_what_is_fatal():
    x = torch.cat([Z, Z[:, :1]], 1)
    x[5, 1] = 1e6
    with pytest.warns(UserWarning, match="the data:") as caught:
        SPACE.check({"x": x})
    assert len(caught) == 1
    text = str(caught[0].message)
    assert "x[2] follows linearly from x[0]" in text
    assert "row 5 has x[1] = 1e+06" in text
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        SPACE.check({"x": gaussian(3).round(decimals=1)})  # cautions


class Quadratic(torch.nn.Module):
    def __init__(self, loc, scale):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.loc, self.scale = loc, scale

    def forward(self):
        x = pyro.sample("x", dist.Normal(self.loc, 3 * self.scale))
        pyro.factor("f", -self.weight * (((x - self.loc) / self.scale) ** 2))


SMALL = ebm_pp.FitConfig.fast(
    rounds=2, pool=256, batch=64, warm_start_steps=20, energy_steps=5, progress=False
)


def test_fit_keeps_findings_and_a_file_too(tmp_path):
    x = with_value(Z[:400], [17], 1e4)[:, 0]
    with pytest.warns(UserWarning, match="row 17 has x = 10000"):
        fit = ebm_pp.fit(EnergyModel(Quadratic(0.0, 1.0)), {"x": x}, config=SMALL)
    (found,) = fit.findings
    assert (found.kind, found.rows, found.values) == ("far_rows", (17,), {"x": [1e4]})
    ebm_pp.save(fit, tmp_path / "fit.pt")
    again = ebm_pp.load(tmp_path / "fit.pt", Quadratic(0.0, 1.0))
    assert again.findings == fit.findings
    report = diagnose(again, {"x": Z[400:, 0].float()}, n=500)
    assert report.problems[0] == "far_rows"
    assert "training rows, site 'x': row 17 has x = 10000" in report.verdict


def test_a_fit_to_good_rows_has_none(tmp_path):
    fit = ebm_pp.fit(EnergyModel(Quadratic(0.0, 1.0)), {"x": Z[:400, 0]}, config=SMALL)
    assert fit.findings == ()


@pytest.mark.parametrize(
    ("loc", "scale"), [(1.7e9, 1000.0), (5.3e6, 2.0), (-2e6, 1.0), (2_460_000.5, 0.5)]
)
def test_lost_digits_are_an_error_of_the_data(loc, scale):
    x = {"x": loc + scale * Z[:, 0]}
    with pytest.raises(DataError, match="single precision steps by") as caught:
        ebm_pp.fit(EnergyModel(Quadratic(loc, scale)), x, config=SMALL)
    assert "or use model.double()." in str(caught.value)
    assert "Jacobian" not in str(caught.value)
    assert isinstance(caught.value.__cause__, GeneratorError)
    fit = ebm_pp.fit(EnergyModel(Quadratic(loc, scale)).double(), x, config=SMALL)
    assert fit.findings == ()
    centred = {"x": x["x"] - loc}
    assert ebm_pp.fit(EnergyModel(Quadratic(0.0, scale)), centred, config=SMALL).findings == ()


@pytest.mark.parametrize("value", [0.0, 0.1, -3.7])
def test_a_constant_column_is_an_error_of_the_data(value):
    with pytest.raises(DataError, match="in every row") as caught:
        ebm_pp.fit(
            EnergyModel(Quadratic(0.0, 1.0)), {"x": torch.full((400,), value)}, config=SMALL
        )
    assert "remove the column" in str(caught.value)


def test_a_wrong_generator_is_still_its_own_fault():
    class Wrong:
        has_rsample = False

        def rsample_and_log_prob(self, n):
            return {"x": torch.randn(n)}, torch.zeros(n)

        def log_prob(self, x):
            return torch.ones(len(x["x"]))

    with pytest.raises(GeneratorError, match="log-determinant"):
        ebm_pp.fit(EnergyModel(Quadratic(0.0, 1.0)), {"x": Z[:, 0]}, Wrong(), SMALL)


def test_trajectories_are_not_judged():
    world = lq.short(0.1, horizon=3)
    model = EnergyModel(lq.LinearQuadratic(world))
    x = lq.draws(world, lq.solve(world), 30, seed=0)
    assert look_at(model, model.stored(x)) == ()


PROGRAM = """
import pyro, pyro.distributions as dist, torch
from torch import nn

class Quadratic(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))

    def forward(self):
        x = pyro.sample("x", dist.Normal(0.0, 3.0))
        pyro.factor("f", -self.weight * x ** 2)
"""


def test_the_command_line_counts_rows_as_the_file_does(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mistyped_program.py").write_text(PROGRAM)
    for row in (17, 18, 19):  # of three, one is in the training part with probability .992
        np.savez("rows.npz", x=with_value(Z[:400], [row], 1e4)[:, 0].numpy())
        words = "fit mistyped_program.py:Quadratic --data rows.npz --out run --rounds 1"
        with pytest.warns(UserWarning, match=f"row {row} has x = 10000") as caught:
            cli.main([*words.split(), "--batch", "32", "--quiet"])
        assert len([w for w in caught if "the data:" in str(w.message)]) == 1
        trained = ebm_pp.load("run/fit.pt", Quadratic(0.0, 1.0)).findings
        if trained:
            break
    assert trained[0].rows == (row,)
    assert (
        f"training rows, site 'x': row {row} has x = 10000"
        in (tmp_path / "run" / "report.txt").read_text()
    )
