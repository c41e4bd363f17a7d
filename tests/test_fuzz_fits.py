"""Tiny fits of rows and settings of every kind: they end with a status, or an error of ours."""

import math
import tempfile
from pathlib import Path

import torch
from fuzzing import as_users_call, same, tried, weighing
from hypothesis import given
from hypothesis import strategies as st
from test_fuzz_entrance import Program, small

import ebm_pp
from ebm_pp import EnergyModel, FitConfig, Status

SCRATCH = tempfile.TemporaryDirectory(prefix="ebm_pp_fuzz_")

# Name: a column from standard normal numbers.
COLUMNS = {
    "normal": lambda z: z,
    "constant": lambda z: torch.full_like(z, 1.5),
    "coarse": lambda z: (z * 2).round() / 2,
    "integers": lambda z: (z * 20).round(),
    "two values": lambda z: (z > 0).double(),
    "one far": lambda z: torch.where(torch.arange(len(z)) == 1, 1e4, z),
    "very far": lambda z: torch.where(torch.arange(len(z)) == 1, 1e12, z),
    "Cauchy": lambda z: z / z.flip(0).abs(),
    "tiny": lambda z: z * 1e-20,
    "huge": lambda z: z * 1e15,
    "beyond": lambda z: z * 1e30,
    "offset": lambda z: z + 1e5,
    "lost digits": lambda z: z + 1e9,
    "repeated": lambda z: z[torch.arange(len(z)) % 5],
    "two modes": lambda z: z + 8 * z.sign(),
    "sorted": lambda z: z.sort().values,
    "same as before": lambda z: z.new_tensor(float("nan")).expand(len(z)),
}


@st.composite
def data(draw):
    """Rows of x, two columns, and y, above zero; as double precision."""
    n = draw(st.sampled_from([2, 3, 5, 16, 19, 40, 64]))
    random = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    columns = []
    for kind in draw(st.lists(st.sampled_from(sorted(COLUMNS)), min_size=3, max_size=3)):
        column = COLUMNS[kind](torch.randn(n, dtype=torch.float64, generator=random))
        if kind == "same as before":
            column = columns[-1] if columns else torch.zeros(n, dtype=torch.float64)
        columns.append(column)
    y = columns[2].abs() if columns[2].abs().max() > 50 else columns[2].exp()
    return {"x": torch.stack(columns[:2], 1), "y": y}


SETTINGS = st.fixed_dictionaries(
    {
        "rounds": st.integers(1, 3), "pool": st.sampled_from([16, 32, 128]),
        "batch": st.sampled_from([1, 2, 16]), "energy_steps": st.integers(1, 3),
        "generator_steps": st.integers(0, 3), "generator_steps_max": st.integers(0, 3),
        "warm_start_steps": st.integers(0, 3), "progress": st.just(False),
    },
    optional={
        "objective": st.sampled_from(["discriminator", "importance", "normalised", "causal"]),
        "generator_loss": st.sampled_from(
            ["weighted_forward_kl", "reverse_kl", "score_function", "jensen"]
        ),
        "nu": st.sampled_from([1e-3, 0.3, 1.0, 30.0]),
        "base_share": st.sampled_from([0.0, 0.5, 0.99]),
        "ess_target": st.sampled_from([0.0, 1e6]),
        "energy_lr": st.sampled_from([0.0, 1.0, 1e3]),
        "generator_lr": st.sampled_from([0.0, 1.0, 1e3]),
        "energy_decay": st.sampled_from([0.0, 1e6]),
        "offset": st.just("gradient"), "offset_lr": st.sampled_from([0.0, 1e3]),
        "warm_start_lr": st.sampled_from([0.0, 1e3]),
        "likelihood_weight": st.sampled_from([1.0, 1e6]),
        "clip": st.sampled_from([1e-9, 1e12]), "average": st.sampled_from([0.0, 1.0]),
        "patience": st.just(1), "diagnose_every": st.sampled_from([2, 99]),
        "memory": st.just(1), "temper_ess": st.sampled_from([0.0, 1.0]),
        "seed": st.integers(0, 2**63 - 1),
    },
)  # fmt: skip


def made(rows, settings, held_out):
    torch.manual_seed(3)
    model = EnergyModel(Program())
    generator = small(model)
    with as_users_call():
        return ebm_pp.fit(model, rows, generator, FitConfig(**settings), held_out=held_out)


def parameters(fit):
    return {
        **fit.model.state_dict(),
        **{f"q {k}": v for k, v in fit.generator.state_dict().items()},
    }


@weighing(1)
@given(data(), SETTINGS, st.booleans())
def test_a_fit_ends_with_a_status_or_an_error_of_ours(rows, settings, held):
    held_out = {name: value[: len(value) // 2 + 1] for name, value in rows.items()}
    held_out = held_out if held else None
    fit = tried(made, rows, settings, held_out)
    if fit is None:
        return
    after = torch.random.get_rng_state()
    torch.manual_seed(3)
    small(EnergyModel(Program()))
    assert torch.equal(after, torch.random.get_rng_state())  # a fit leaves the global stream alone
    assert isinstance(fit.status, Status)
    assert str(fit.status.value) in str(fit)
    assert all(value.isfinite().all() for value in parameters(fit).values())
    assert fit.n_train == len(rows["y"])
    assert len(fit.history) <= settings["rounds"]
    assert math.isfinite(fit.offset)
    again = made(rows, settings, held_out)
    assert same(parameters(fit), parameters(again))
    assert (fit.status, fit.detail) == (again.status, again.detail)
    judged(fit, rows)
    path = Path(SCRATCH.name) / "fit.pt"
    ebm_pp.save(fit, path)
    loaded = ebm_pp.load(path, Program())
    assert same(parameters(fit), parameters(loaded))
    assert str(fit) == str(loaded)


def judged(fit, rows):
    report = tried(ebm_pp.diagnose, fit, rows, 100)
    if report is None:
        return
    found = report.evidence
    assert report.ok == (not report.problems)
    assert report.verdict in str(report).replace("\n", " ") or report.verdict in str(report)
    assert 0 < found.log_z.ess <= 1 + 1e-9
    low, high = found.bounds
    assert low - 1e-6 <= found.log_z.value <= high + 1e-6
    draws = tried(ebm_pp.importance_sample, fit, 50, seed=0)
    if draws is None:  # of a generator gone astray some hundred draws may be just enough
        return
    kept = ebm_pp.resample(draws, 20, seed=0)
    assert fit.model.inside(kept).all()
    assert not draws.log_weights.isnan().any()
    tried(ebm_pp.standard_errors, fit, rows, ["w"], n=200)
    tried(ebm_pp.to_datatree, fit, data=rows, n=40)


@weighing(0.5)
@given(SETTINGS)
def test_a_given_density_is_fitted_or_refused(settings):
    def program():
        Program.forward(holder)

    holder = Program().requires_grad_(False)
    torch.manual_seed(3)
    with as_users_call():
        model = EnergyModel(program)
        config = tried(lambda: FitConfig.given(**settings))
        fit = tried(ebm_pp.fit, model, None, small(model), config)
    if fit is not None:
        assert isinstance(fit.status, Status)
        assert fit.n_train == 0
        judged(fit, None)
