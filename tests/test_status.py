"""What a fit says of its end: what `diagnose` says of the rows it was trained on, never more."""

import dataclasses

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

import ebm_pp
from ebm_pp import EnergyModel, FitConfig, FlowGenerator, Status, diagnose
from ebm_pp.best import Best
from ebm_pp.training import ENERGY, REJECTED, SEED, _judged

TINY = FitConfig(
    rounds=2, pool=1024, batch=128, warm_start_steps=50, energy_steps=10, progress=False
)
GOOD = (Status.FINISHED, Status.CONVERGED)


class Well(nn.Module):
    """-w |x|^2 / 2 and a field, over N(0, 2^2)."""

    def __init__(self):
        super().__init__()
        self.w, self.h = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2))

    def forward(self):
        x = pyro.sample("x", dist.Normal(torch.zeros(2), 2.0).to_event(1))
        pyro.factor("well", -(self.w * x.square()).sum() / 2)
        pyro.factor("field", (self.h * x).sum())


def data(n=1500, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {"x": torch.randn(n, 2, generator=generator) * torch.tensor([1.0, 0.4]) + 0.5}


RUNS = {
    "too short": TINY,
    "long enough": dataclasses.replace(TINY, rounds=25, energy_steps=30, energy_lr=0.05),
    "no generator steps": dataclasses.replace(
        TINY, rounds=20, warm_start_steps=0, generator_steps=0, generator_steps_max=0
    ),
    "hardly trained": dataclasses.replace(TINY, energy_lr=1e-6),
}


@pytest.mark.parametrize("run", RUNS)
def test_the_status_is_what_diagnose_says_of_the_training_rows(run):
    rows = data()
    fit = ebm_pp.fit(EnergyModel(Well()), rows, config=RUNS[run])
    with torch.random.fork_rng():
        torch.manual_seed(0)
        report = diagnose(fit, rows, seed=SEED)
    assert (fit.status in GOOD) == (run == "long enough")
    if fit.status in GOOD:
        assert fit.detail == ""
    else:
        assert fit.status is (
            Status.UNCONVERGED if report.problems[0] in ENERGY else Status.LAGGING
        )
        assert fit.detail == report.verdict
    assert repr(fit).startswith(fit.status.value)


def test_beside_rows_held_out_moments_count_where_both_tell_the_same():
    """Training may stop before it has its own rows' moments; rows held out may hang together."""
    rows, held_out = data(), data(1000, 1)
    fit = ebm_pp.fit(EnergyModel(Well()), rows, config=RUNS["long enough"], held_out=held_out)
    assert fit.status in GOOD
    shifted, again = ({"x": x["x"] + torch.tensor([0.3, 0.0])} for x in (held_out, data(1000, 2)))
    assert diagnose(fit, shifted, seed=SEED).problems == ("wrong_factor",)
    assert _judged(fit, [shifted]).status is Status.UNCONVERGED
    assert _judged(fit, [shifted, rows]).status in GOOD
    assert _judged(fit, [rows, shifted]).status in GOOD
    judged = _judged(fit, [shifted, again])
    assert judged.status is Status.UNCONVERGED
    assert judged.detail == diagnose(fit, shifted, seed=SEED).verdict


class Stiff(nn.Module):
    """One Gaussian well: what it can't say of two modes, a flow can."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.zeros(()))

    def forward(self):
        x = pyro.sample("x", dist.Normal(0.0, 2.0))
        pyro.factor("well", -self.w * x.square())


def test_rows_of_the_training_that_a_generator_knows_by_heart_are_no_fault_of_the_energy():
    x = 1.5 * torch.randn(1500, generator=torch.Generator().manual_seed(0)).sign()
    x = x + 0.4 * torch.randn(1500, generator=torch.Generator().manual_seed(1))
    config = dataclasses.replace(
        TINY, rounds=2, generator_steps=0, generator_steps_max=0, warm_start_steps=400,
        energy_steps=60, energy_lr=0.05,
    )  # fmt: skip
    fit = ebm_pp.fit(EnergyModel(Stiff()), {"x": x[:1000]}, config=config)
    seen = diagnose(fit, {"x": x[:1000]}).evidence.data
    fresh = diagnose(fit, {"x": x[1000:]}).evidence.data
    assert (seen.seen, fresh.seen) == (True, False)
    assert max(seen.gain, fresh.gain) < -0.1


def test_the_printed_round_is_the_returned_one():
    rows = data()
    held_out = data(500, 1)
    fit = ebm_pp.fit(
        EnergyModel(Well()), rows, config=dataclasses.replace(TINY, rounds=6), held_out=held_out
    )
    fit = dataclasses.replace(fit, best_round=2)
    assert f"Round 3 of 6: held-out {fit.history[2]['held_out']:.3f}" in repr(fit)
    assert f"{fit.history[2]['held_out']:.3f}" in fit._repr_html_()


def test_a_tempered_run_is_not_tempering_where_the_report_is_healthy():
    def cold():
        x = pyro.sample("x", dist.Normal(0.0, 10.0))
        pyro.factor("f", -0.5 * (x / 0.1) ** 2)

    model = EnergyModel(cold)
    lost = ebm_pp.fit(model, None, None, dataclasses.replace(TINY, rounds=1))
    assert lost.status is Status.TEMPERING
    assert not diagnose(lost, None).ok
    # The same record of a round beside a generator that has arrived.
    normal = dist.Normal(0.0, 0.1).icdf(torch.linspace(5e-5, 1 - 5e-5, 10_000))
    exact = FlowGenerator(model, {"x": normal})
    healthy = _judged(dataclasses.replace(lost, generator=exact, status=Status.FINISHED), [])
    assert healthy.status is not Status.TEMPERING
    assert diagnose(healthy, None).ok


def test_many_rejected_draws_have_a_word_in_the_status():
    rows = data()
    fit = ebm_pp.fit(EnergyModel(Well()), rows, config=RUNS["long enough"])
    info = fit.history[-1]
    for share, said in ((0.9 * REJECTED, False), (0.02, True)):
        told = dataclasses.replace(fit, history=({**info, "rejected": share},))
        judged = _judged(dataclasses.replace(told, best_round=info["round"]), [rows])
        assert ("no density: rejected" in judged.detail) == said
        assert ("2.00%" in repr(judged)) == said


def test_of_rounds_that_are_not_healthy_luck_with_log_z_does_not_decide():
    """Two rounds; the second has a log Z too low by chance, which its upper bound gives away."""
    game = dataclasses.make_dataclass("Game", ["soft_value", "data", "mean", "generator", "offset",
                                               "config"])(
        None, {}, [], None, torch.zeros(()), FitConfig())  # fmt: skip
    sober = {"round": 0, "held_out": -10.1, "held_out_least": -10.9, "log_partition_se": 0.1}
    lucky = {"round": 1, "held_out": -8.8, "held_out_least": -12.0, "log_partition_se": 0.1}
    best = Best.of(game, (False, -float("inf")), {"round": -1}, -1)
    best = best.or_better(game, sober, False).or_better(game, lucky, False)
    assert best.info["round"] == 0
    healthy = Best.of(game, (False, -float("inf")), {"round": -1}, -1)
    healthy = healthy.or_better(game, sober, True).or_better(game, lucky, True)
    assert healthy.info["round"] == 1
