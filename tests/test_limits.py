"""Every limit of `diagnose` and of a status: just inside nothing is said, just outside it is."""

import dataclasses
import math

import pytest
import torch
from closed_form import LOG_Z, evidence, exact, normal, rows

from ebm_pp import FitConfig, Status, training
from ebm_pp import evidence as measurements
from ebm_pp.diagnostics import MISSED, Report, _problems, _rows
from ebm_pp.evidence import USABLE_ESS, measure
from ebm_pp.explanation import explain
from ebm_pp.fitted import Fit
from ebm_pp.leak import Leak
from ebm_pp.moments import Gap
from ebm_pp.reach import Spread
from ebm_pp.sampling import propose

NONE = torch.zeros(0, 2)


def leak(share, error=0.0, rows=1000, beyond=0):
    side = {"beyond": torch.arange(rows) < beyond}
    return {"leak": Leak(share, error, NONE), "side": side}


def far(forward=0.01, beyond=3, **more):
    side = {"forward_ess": forward, "beyond": torch.arange(1000) < beyond}
    return {"side": side, **more}


def gap(z, size, slack=0.0, **others):
    return {"data": {"gaps": {"a": Gap(z, size), **others}, "slack": slack}}


def gain(value, error=0.0, **more):
    return {"data": {"gain": value, "gain_error": error, **more}}


def offset(value, error=0.0):
    return {"data": {"offset_gap": value, "offset_error": error}}


def without_rows(share, error=0.0, **more):
    return {"leak": Leak(share, error, NONE), "data": False, **more}


# name: (changes just inside the limit, just outside of it, the problem there)
LIMITS = {
    "share of a leak": (leak(0.0099), leak(0.0101), "leaked_mass"),
    "error of a leak": (leak(0.05, 0.0251), leak(0.05, 0.0249), "leaked_mass"),
    "a large leak of any error": (leak(0.099, 0.09), leak(0.101, 0.09), "leaked_mass"),
    "rows that lack it": (leak(0.02, rows=249), leak(0.02, rows=251), "leaked_mass"),
    "rows that have some of it": (
        leak(0.02, rows=399, beyond=1), leak(0.02, rows=401, beyond=1), "leaked_mass"
    ),
    "a leak without rows": (without_rows(0.0099), without_rows(0.0101), "heavy_tail"),
    "forward ESS": (far(0.081), far(0.079), "heavy_tail"),
    "forward ESS against a lower one": (
        far(0.041, log_z={"ess": 0.4}), far(0.039, log_z={"ess": 0.4}), "heavy_tail"
    ),
    "rows beyond reach": (far(beyond=2), far(beyond=3), "heavy_tail"),
    "rows behind a barrier": (far(behind_barrier=0.49), far(behind_barrier=0.51), "dropped_mode"),
    "a barrier without rows": (
        without_rows(0.02, behind_barrier=0.49), without_rows(0.02, behind_barrier=0.51),
        "dropped_mode",
    ),
    "spread": (
        far(spread=Spread("x", 1.29, 1.3)), far(spread=Spread("x", 1.31, 1.3)), "narrow_proposal"
    ),
    "a heavy tail": ({"log_z": {"heavy": False}}, {"log_z": {"heavy": True}}, "heavy_tail"),
    "a tail": ({}, {"log_z": {"pareto_k": math.nan}}, "undetermined_tail"),
    "raw and smoothed": (
        {"log_z": {"smoothed": 1.5299}}, {"log_z": {"smoothed": 1.5301}}, "single_draw"
    ),
    "raw below smoothed": (
        {"log_z": {"smoothed": 1.4701}}, {"log_z": {"smoothed": 1.4699}}, "single_draw"
    ),
    "ESS": ({"log_z": {"ess": 0.101}}, {"log_z": {"ess": 0.099}}, "low_ess"),
    "size of a gap": (gap(10.0, 0.049), gap(10.0, 0.051), "wrong_factor"),
    "size of a gap below": (gap(-10.0, -0.049), gap(-10.0, -0.051), "wrong_factor"),
    "slack of a gap": (gap(10.0, 0.149, 0.1), gap(10.0, 0.151, 0.1), "wrong_factor"),
    "standard errors": (gap(2.99, 1.0), gap(3.01, 1.0), "wrong_factor"),
    "standard errors of two": (  # erfc^-1(.0027 / 2)
        gap(3.2, 1.0, b=Gap(0.0, 0.0)), gap(3.21, 1.0, b=Gap(0.0, 0.0)), "wrong_factor"
    ),
    "gain": (gain(-0.049), gain(-0.051), "underfit_energy"),
    "gain beside its error": (gain(-0.089, 0.03), gain(-0.091, 0.03), "underfit_energy"),
    "gain above": (gain(5.0), gain(-5.0), "underfit_energy"),
    "gain at rows seen": (gain(-5.0, seen=True), gain(-5.0), "underfit_energy"),
    "gain of trajectories": (gain(-5.0, of_trajectories=True), gain(-5.0), "underfit_energy"),
    "offset": (offset(0.099), offset(0.101), "offset_gap"),
    "offset below": (offset(-0.099), offset(-0.101), "offset_gap"),
    "offset beside its error": (offset(0.399, 0.1), offset(0.401, 0.1), "offset_gap"),
    "log Z": (
        {"log_z": {"standard_error": 0.049}}, {"log_z": {"standard_error": 0.051}},
        "imprecise_log_partition",
    ),
    "an unknown error": ({}, {"log_z": {"standard_error": math.nan}}, "imprecise_log_partition"),
    "r-hat": ({"max_rhat": 1.029}, {"max_rhat": 1.031}, "poor_mixing"),
    "draws of the chains": ({"min_ess": 401.0}, {"min_ess": 399.0}, "poor_mixing"),
    "an unknown r-hat": ({}, {"max_rhat": math.nan}, "poor_mixing"),
}  # fmt: skip


@pytest.mark.parametrize("limit", LIMITS)
def test_a_problem_begins_at_its_limit(limit):
    inside, outside, problem = LIMITS[limit]
    assert problem not in _problems(evidence(**inside))
    assert _problems(evidence(**outside))[0] == problem


def words(found, problems=None):
    problems = _problems(found) if problems is None else problems
    return {row.name: row.verdict for row in _rows(found, problems)}


# name: (row, changes, its word)
WORDS = {
    "k-hat of the data": ("data: Pareto k-hat", {"side": {"pareto_k": 0.99}}, "ok"),
    "k-hat without a mean": ("data: Pareto k-hat", {"side": {"pareto_k": 1.01}}, "tail too heavy"),
    "k-hat unknown": ("data: Pareto k-hat", {"side": {"pareto_k": math.nan}}, "cannot tell"),
    "k-hat of a light tail": (
        "proposal: Pareto k-hat", {"log_z": {"pareto_k": 1.2, "tail": 0.001}}, "ok: 0.1% of w"
    ),
    "forward ESS": ("data: forward ESS/n", far(0.081), "ok"),
    "low forward ESS": ("data: forward ESS/n", far(0.079), "low"),
    "rows beyond reach": ("data: beyond reach", far(beyond=2), "ok"),
    "three rows beyond reach": ("data: beyond reach", far(beyond=3), "beyond reach"),
    "ESS": ("proposal: ESS/n", {"log_z": {"ess": 0.101}}, "ok"),
    "low ESS": ("proposal: ESS/n", {"log_z": {"ess": 0.099}}, "low"),
    "no leak": ("base: mass beyond reach", leak(0.0099), "ok"),
    "a leak": ("base: mass beyond reach", leak(0.0101), "beyond reach"),
    "a leak perhaps": ("base: mass beyond reach", leak(0.05, 0.0251), "cannot tell"),
    "few rejected": ("draws without a density", {"rejected": 4}, "ok"),
    "many rejected": ("draws without a density", {"rejected": 5}, "many"),
    "a small gap": ("largest moment gap", gap(10.0, 0.049), "real but small"),
    "a gap by chance": ("largest moment gap", gap(2.99, 1.0), "ok"),
    "a gap": ("largest moment gap", gap(3.01, 1.0), "too large"),
    "gain": ("log-likelihood of rows", gain(-0.049), ""),
    "a loss": ("log-likelihood of rows", gain(-0.051), "below q"),
    "offset": ("offset b - log Z", offset(-0.399, 0.1), "ok"),
    "offset astray": ("offset b - log Z", offset(-0.401, 0.1), "not converged"),
    "log Z": ("log Z", {"log_z": {"standard_error": 0.049}}, "ok"),
    "log Z by chance": ("log Z", {"log_z": {"standard_error": 0.051}}, "imprecise"),
    "log Z of a few": ("log Z", {"log_z": {"ess": 0.0249}}, "not to be trusted"),
    "log Z of a hundred": ("log Z", {"log_z": {"ess": 0.0251}}, "ok"),
    "log Z of one": ("log Z", {"log_z": {"smoothed": 1.6}}, "not to be trusted"),
    "chains": ("chains: r-hat, ESS", {"max_rhat": 1.029, "min_ess": 401.0}, "ok"),
    "chains apart": ("chains: r-hat, ESS", {"max_rhat": 1.031}, "mixes poorly"),
    "chains at rest": ("chains: r-hat, ESS", {"min_ess": 399.0}, "mixes poorly"),
}  # fmt: skip


@pytest.mark.parametrize("name", WORDS)
def test_a_row_of_the_report_has_the_word_of_its_limit(name):
    row, changes, word = WORDS[name]
    assert words(evidence(**changes))[row] == word


def test_bounds_are_told_by_their_width():
    (row,) = (row for row in _rows(evidence(bounds=(-0.4, 1.6)), ()) if "between" in row.name)
    assert (row.value, row.text) == (2.0, "-0.400 and 1.600")


@pytest.mark.parametrize("problem", [*MISSED, "wrong_factor", "offset_gap", "poor_mixing"])
def test_log_z_is_trusted_where_the_generator_reaches_the_mass(problem):
    found = words(evidence(), (problem,))
    missed = problem in {"leaked_mass", "dropped_mode", "narrow_proposal", "heavy_tail",
                         "undetermined_tail", "single_draw"}  # fmt: skip
    assert (found["log Z"] == "not to be trusted") == missed
    assert (found["largest moment gap"] == "see the verdict") == missed


@pytest.mark.parametrize(("ess", "told"), [(0.0249, "raise n"), (0.0251, "holds within its")])
def test_of_fewer_than_a_hundred_effective_draws_no_tail_is_told(ess, told):
    found = evidence(log_z={"ess": ess})
    assert told in explain(("low_ess",), found, "a", Gap(0.0, 0.0))[1]


def test_signs_are_said():
    for z, size, side in ((9.0, 0.5, "above"), (-9.0, -0.5, "below")):
        found = evidence(**gap(z, size))
        text = explain(("wrong_factor",), found, "a", Gap(z, size))[1]
        assert f"the data's mean of 'a' is 0.50 sd {side} the model's (9.0 " in text
    text = explain(("underfit_energy",), evidence(**gain(-0.25, 0.01)), "a", Gap(0.0, 0.0))[1]
    assert "own density is 0.25 +- 0.01 nats a row better" in text


# The measurements ------------------------------------------------------------------------------
def test_what_rows_say_is_its_formula():
    """The same draws, and every number from them written out."""
    p, q, n = normal(0.0, 1.0), normal(0.3, 1.2), 900
    fit = exact(p, q, offset=LOG_Z + 0.1, n_train=500)
    x = rows(p, 400)
    torch.manual_seed(7)
    weights = propose(fit, n).log_weights.double()
    torch.manual_seed(7)
    found = measure(fit, x, n, 4)
    log_z = weights.logsumexp(0).item() - math.log(n)
    error = ((weights - log_z).exp().std(correction=0) / math.sqrt(n)).item()
    assert found.log_z.value == pytest.approx(log_z, abs=1e-5)
    assert found.log_z.standard_error == pytest.approx(error, rel=1e-3)
    log_p, log_q = (p.log_prob(x["x"]) + LOG_Z).double(), q.log_prob(x["x"]).double()
    data = found.data
    assert data.gain == pytest.approx((log_p - log_q).mean().item() - log_z, abs=1e-5)
    assert data.gain > 0  # E_p[log p - log q]
    assert data.log_likelihood == pytest.approx(log_p.mean().item() - log_z, abs=1e-5)
    for name, values in (("gain_error", log_p - log_q), ("log_likelihood_error", log_p)):
        own = values.std().item() / math.sqrt(400)
        assert getattr(data, name) == pytest.approx(math.hypot(own, error), rel=1e-3)
    assert data.offset_gap == pytest.approx(LOG_Z + 0.1 - log_z, abs=1e-5)
    assert data.offset_error == pytest.approx(math.sqrt(error**2 + 1 / n + 1 / 500), rel=1e-3)
    right = (log_p - log_q > fit.offset).double().mean() + (weights < fit.offset).double().mean()
    assert data.accuracy == pytest.approx(right.item() / 2)
    assert data.accuracy > 0.5
    assert data.seen
    assert not measure(dataclasses.replace(fit, n_train=0), x, n, 4).data.seen


@pytest.mark.parametrize(("n", "batching", "tried"), [
    (4000, "vmap", 16_384), (20_000, "vmap", 20_000), (500, "loop", 500)
])  # fmt: skip
def test_how_many_draws_look_for_a_leak(n, batching, tried, monkeypatch):
    asked = []

    def look(model, generator, outer, log_weights, log_partition, n):
        asked.append((n, log_partition))
        return Leak(0.0, 0.0, NONE)

    monkeypatch.setattr(measurements, "find_leak", look)
    fit = exact(normal(0.0, 1.0))
    fit.model.batching = batching
    measurements._leak(fit, rows(normal(0.0, 1.0), 100), torch.zeros(n), 1.5)
    assert asked == [(tried, 1.5)]


def test_a_hundred_rows_beyond_reach_are_looked_at(monkeypatch):
    asked = []

    def barrier(model, z_rows, z_draws):
        asked.append((len(z_rows), (z_rows > 50).all().item()))
        return 0.5

    monkeypatch.setattr(measurements, "behind_barrier", barrier)
    x = rows(normal(0.0, 1.0), 1000)
    x["x"][:300] += 100.0
    found = measure(exact(normal(0.0, 1.0), normal(0.0, 0.8)), x, 500, 4)
    assert asked == [(100, True)]
    assert found.behind_barrier == 0.5


# The status ------------------------------------------------------------------------------------
CONFIG = FitConfig(rounds=2, pool=300, progress=False)
INFO = {"round": 0, "rejected": 0.0, "ess": 0.5, "heavy_tail": False, "beta": 1.0}
ENERGYS = ("leaked_mass", "wrong_factor", "other_start", "underfit_energy", "offset_gap",
           "constant_column", "another_unit", "collinear", "tied_rows", "repeated_rows",
           "far_rows", "coded_rows", "precision")  # fmt: skip
GENERATORS = ("dropped_mode", "narrow_proposal", "heavy_tail", "undetermined_tail",
              "single_draw", "low_ess", "imprecise_log_partition", "poor_mixing")  # fmt: skip


def judged(monkeypatch, *told, info=INFO, rows=None):
    """The fit as `_judged` leaves it, where `diagnose` says of each part of the rows what is told.

    told: (problems, where) of every call.
    """
    asked = []

    def diagnose(fit, x, n, *, seed):
        problems, where = told[len(asked)]
        asked.append((None if x is None else len(x["x"]), n, seed))
        return Report((), f"verdict {len(asked)}", problems, where, evidence())

    monkeypatch.setattr(training, "diagnose", diagnose)
    plain = exact(normal(0.0, 1.0))
    fit = Fit(plain.model, plain.generator, (info,), Status.FINISHED, CONFIG, 0.0, best_round=0)
    parts = [{"x": torch.zeros(n, 2)} for n in ([1000] * len(told) if rows is None else rows)]
    return training._judged(fit, parts), asked


@pytest.mark.parametrize("beta", [1.0, 0.99])
@pytest.mark.parametrize("problem", [*ENERGYS, *GENERATORS])
def test_the_status_of_every_problem(problem, beta, monkeypatch):
    fit, _ = judged(monkeypatch, ((problem,), ""), info={**INFO, "beta": beta})
    wanted = Status.UNCONVERGED if problem in ENERGYS else Status.LAGGING
    if beta < 1 and problem in GENERATORS:
        wanted = Status.TEMPERING
    assert (fit.status, fit.detail) == (wanted, "verdict 1")


def test_a_fit_is_judged_on_4000_draws_of_their_own_and_rows_of_a_pool(monkeypatch):
    assert judged(monkeypatch, ((), ""), ((), ""), rows=[1000, 20])[1] == [
        (300, 4000, 1), (20, 4000, 1),
    ]  # fmt: skip
    assert judged(monkeypatch, ((), ""), rows=[])[1] == [(None, 4000, 1)]


WRONG, LOW = ("wrong_factor",), ("low_ess",)
# name: (what is said of the rows of the training, and of those held out; whose verdict counts)
BESIDE = {
    "both are well": (((), ""), ((), ""), 0),
    "moments of the training rows": ((WRONG, "a"), ((), ""), 0),
    "moments of those held out": (((), ""), (WRONG, "a"), 0),
    "moments of both": ((WRONG, "a"), (WRONG, "a"), 1),
    "moments of two statistics": ((WRONG, "a"), (WRONG, "b"), 0),
    "moments, and a generator": ((WRONG, "a"), (LOW, ""), 2),
    "a generator, and moments": ((LOW, ""), (WRONG, "a"), 1),
    "moments after another problem": ((("leaked_mass", "wrong_factor"), "a"), ((), ""), 1),
    "a generator at those held out": (((), ""), (LOW, ""), 2),
}  # fmt: skip


@pytest.mark.parametrize("name", BESIDE)
def test_beside_rows_held_out_moments_count_where_both_name_one_statistic(name, monkeypatch):
    training_rows, held_out, counts = BESIDE[name]
    fit, asked = judged(monkeypatch, training_rows, held_out)
    assert len(asked) == 2
    assert fit.detail == (f"verdict {counts}" if counts else "")
    assert (fit.status is Status.FINISHED) == (counts == 0)


def test_alone_moments_count(monkeypatch):
    assert judged(monkeypatch, (WRONG, "a"))[0].status is Status.UNCONVERGED


@pytest.mark.parametrize(("share", "said"), [(0.001, False), (0.00101, True)])
def test_rejected_draws_have_a_word_from_one_in_a_thousand(share, said, monkeypatch):
    for told in ((), ""), (LOW, ""):
        fit, _ = judged(monkeypatch, told, info={**INFO, "rejected": share})
        assert fit.detail.startswith("0.10% of the draws had no density") == said


def test_a_round_is_healthy_at_a_tenth_of_its_draws():
    assert USABLE_ESS == 0.1
    for changes, healthy in (
        ({"ess": 0.1}, True), ({"ess": 0.099}, False), ({"heavy_tail": True}, False),
        ({"beta": 0.99}, False),
    ):  # fmt: skip
        assert training._healthy({**INFO, **changes}) == healthy


def test_steps_of_the_generator_double_while_it_lags():
    config = FitConfig(ess_target=0.4, generator_steps_max=50)
    for ess, steps, after in (
        (0.41, 20, 10), (0.41, 1, 0), (0.39, 20, 40), (0.39, 30, 50), (0.39, 0, 1),
    ):  # fmt: skip
        assert training._next_steps(steps, {**INFO, "ess": ess}, config) == after
    assert training._next_steps(20, {**INFO, "heavy_tail": True}, config) == 40
