"""Small inputs of users that once gave a wrong number, a wrong cause or torch's own error.

What no other test holds is here; the rest, by subject, is in these (test_ left off):

    degrees given to a circle    units::another_unit_is_an_error_whose_advice_helps
                                 circle::a_fit_in_degrees_is_the_fit_in_radians
    a masked array               arrays::what_the_object_calls_missing_is_refused_by_row
    sites called draw, row ...   names::no_value_is_lost
    a module keeps a tensor      here; capture::a_model_that_cannot_be_copied_is_fitted
    heavy tails                  here; location::the_bulk_of_cauchy_rows_has_unit_order
    one row far away             location::one_row_far_away_costs_the_others_nothing
                                 findings::the_report_names_them_first
    small spread far from zero   here; findings::lost_digits_are_an_error_of_the_data
    a base on the edge           ancestral::no_draw_is_on_the_edge
                                 ancestral::a_fit_over_a_base_on_the_edge_is_finite
    columns that follow others   findings::columns_that_determine_one_another_are_named
    counts, ratings, zeros       findings::ties_are_named
    rows of an EnergyNet         energy_net::rows_that_can_not_be_are_named
                                 arrays::an_energy_network_takes_the_same_containers
    a site changed in place      state::a_value_changed_in_place_is_the_programs_alone
    gradients off, autocast      surroundings::a_fit_is_the_same_wherever_it_is_called
    groups of days               here; labels::the_same_groups_from_every_kind
                                 labels::missing_labels_are_named_by_row
    log Z of few draws           here; partition::too_few_draws_state_no_error
    spectral_norm                state::spectral_norm_is_refused_whatever_the_start
                                 state::the_norm_that_is_advised_is_one_after_training
    fits in two threads          surroundings::fits_in_two_threads_equal_the_fit_alone
    an interrupt, early or late  surroundings::an_interrupted_fit_can_be_used
    pad, integer states          demonstrations::pad_takes_the_numbers_of_a_table
                                 demonstrations::pad_refuses
    command line: names          here
    command line: numbers        files::a_number_out_of_range_is_exit_code_2
    command line: broken files   files::a_bad_file_is_exit_code_2_and_names_the_cause
    rows outside the support     arrays::outside_the_support_no_density_is_finite
    rows of any container        arrays::unchecked_doors_convert
    an end that is learned       support::an_end_that_is_learned_is_refused
    a shifted, truncated base    here; support::the_support_is_where_the_draws_are
                                 declared::a_support_that_is_not_true_is_named
    an embedding                 here
    a base that is learned       here
"""

import math
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from closed_form import exact, normal, rows
from torch import nn
from torch.distributions.transforms import AffineTransform

import ebm_pp
from ebm_pp import EnergyModel, FitConfig, cli
from ebm_pp.files import find_program, read_rows

SHORT = FitConfig(
    rounds=2, batch=128, pool=512, warm_start_steps=50, energy_steps=10, progress=False
)


def test_the_tests_of_the_table_exist():
    named = re.findall(r"(\w+)::(\w+)", __doc__)
    assert len(named) > 25
    for file, name in named:
        text = (Path(__file__).parent / f"test_{file}.py").read_text()
        assert f"\ndef test_{name}(" in text, name


# A module that keeps a computed tensor ---------------------------------------------------------
class Keeps(nn.Sequential):
    def forward(self, x):
        self.features = torch.tanh(self[0](x))
        return self[1](self.features).squeeze(-1)


class Forgets(nn.Sequential):
    def forward(self, x):
        return self[1](torch.tanh(self[0](x))).squeeze(-1)


def test_a_tensor_that_a_module_keeps_changes_no_number():
    def program(net):
        pyro.factor("f", -net(pyro.sample("x", normal(0.0, 2.0))))

    x = rows(normal(0.0, 1.0), 600)
    energies = []
    for kind in (Keeps, Forgets):
        torch.manual_seed(0)
        model = EnergyModel(program, kind(nn.Linear(2, 16), nn.Linear(16, 1)))
        start = model.energy(x).detach()
        energies.append(ebm_pp.fit(model, x, config=SHORT).model.energy(x).detach())
        assert not torch.allclose(energies[-1], start, atol=0.01)
    assert torch.equal(*energies)


# Heavy tails -----------------------------------------------------------------------------------
def test_cauchy_rows_have_their_quartiles_and_a_report_that_is_not_healthy():
    law = dist.Cauchy(torch.zeros(2), 1.0).to_event(1)
    train, test = rows(law, 3000), rows(law, 1000, seed=1)

    class Program(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = ebm_pp.EnergyNet(train["x"])

        def forward(self):
            x = pyro.sample("x", dist.Cauchy(torch.zeros(2), 2.0).to_event(1))
            pyro.factor("shape", -self.net(x))

    config = FitConfig.fast(rounds=4, progress=False)
    fit = ebm_pp.fit(EnergyModel(Program()), train, config=config)
    report = ebm_pp.diagnose(fit, test, n=4000)
    assert not report.ok
    far_out = ("Heavy tail", "Leaking energy")  # both are true of so short a fit
    assert report.verdict.startswith(far_out)
    drawn = ebm_pp.resample(ebm_pp.importance_sample(fit, 20_000, seed=0), 10_000, seed=0)["x"]
    chances = torch.tensor([0.25, 0.5, 0.75])
    truth = (math.pi * (chances - 0.5)).tan()[:, None].expand(3, 2)
    torch.testing.assert_close(drawn.quantile(chances, 0), truth, rtol=0, atol=0.15)


# A small spread far from zero ------------------------------------------------------------------
@pytest.mark.parametrize(
    ("loc", "scale", "double"),
    [(1.7e9, 1000.0, True), (5.3e6, 2.0, True), (101_325.0, 1.0, True), (101_325.0, 1.0, False)],
)
@pytest.mark.filterwarnings("ignore:the data.*single precision:UserWarning")
def test_a_small_spread_far_from_zero_has_the_gaussians_log_likelihood(loc, scale, double):
    z = torch.randn(2000, dtype=torch.float64)
    z = (z - z.mean()) / z.std(correction=0)
    x = {"t": loc + scale * z}

    def program():
        t = pyro.sample("t", dist.Normal(loc, 3 * scale))
        pyro.factor("f", -pyro.param("w", torch.tensor(0.4)) * ((t - loc) / scale) ** 2)

    model = EnergyModel(program).double() if double else EnergyModel(program)
    fit = ebm_pp.fit(model, x, config=SHORT)
    found = ebm_pp.log_prob(fit, x, n=4000, seed=0).values.mean().item()
    gaussian = -0.5 * math.log(2 * math.pi * math.e) - math.log(scale)
    assert found == pytest.approx(gaussian, abs=0.02)


# Groups of days, and few draws -----------------------------------------------------------------
@pytest.mark.parametrize("kind", ["strings", "dates", "categories"])
def test_days_of_any_kind_give_the_errors_of_their_numbers(kind):
    law = normal(0.0, 1.0)
    fit, x = exact(law, n_train=1000), rows(law, 400)
    days = np.arange(400) // 40
    labels = {
        "strings": [f"2013-01-{d + 1:02}" for d in days],
        "dates": pd.Series(pd.to_datetime("2013-01-01") + pd.to_timedelta(days, "D")),
        "categories": pd.Series(days.astype(str), dtype="category"),
    }[kind]
    errors = [
        ebm_pp.diagnose(fit, x, 500, groups=g).evidence.data.log_likelihood_error
        for g in (days, labels)
    ]
    assert errors[0] == errors[1]


@pytest.mark.parametrize("n", [1, 2, 3, 10])
def test_few_draws_have_a_log_z_and_no_error(n):
    law = normal(0.0, 1.0)
    fit = exact(law, normal(0.0, 1.2))
    z = ebm_pp.log_partition(fit, n, seed=0)
    weights = ebm_pp.importance_sample(fit, n, seed=0).log_weights
    assert z.value == pytest.approx((weights.logsumexp(0) - math.log(n)).item(), abs=1e-5)
    of_rows = ebm_pp.log_prob(fit, rows(law, 5), n=n, seed=0).log_partition
    assert math.isnan(z.standard_error)
    assert math.isnan(of_rows.standard_error)


# Columns of any name, on the command line ------------------------------------------------------
NAMED = """
import ebm_pp, pyro, pyro.distributions as dist, torch

def program():
    for name in NAMES:
        pyro.sample(name, dist.Normal(100.0, 2.0))
    angle = pyro.sample("wind/dir", ebm_pp.Circle())
    pyro.factor("f", pyro.param("k", torch.tensor(0.0)) * angle.cos())
"""
NAMES = ["x[0]", "row"]


def test_columns_of_any_name_are_fitted_and_drawn_by_the_command_line(tmp_path, capsys):
    (tmp_path / "named.py").write_text(NAMED.replace("NAMES", repr(NAMES)))
    table = {name: 100 + 2 * torch.randn(400).numpy() for name in NAMES}
    table["wind/dir"] = dist.VonMises(0.0, 2.0).sample((400,)).numpy()
    pd.DataFrame(table).to_csv(tmp_path / "t.csv", index=False)
    spec, out = f"{tmp_path}/named.py:program", str(tmp_path / "run")
    words = ["fit", spec, "--data", str(tmp_path / "t.csv"), "--out", out, "--rounds", "1"]
    assert cli.main([*words, "--batch", "64", "--quiet"]) in (0, 1)
    assert cli.main(["sample", out, "--n", "300", "--out", str(tmp_path / "d.csv")]) in (0, 1)
    assert "Wrote 300 draws" in capsys.readouterr().out
    model = EnergyModel(find_program(spec))
    drawn = read_rows(tmp_path / "d.csv", model)
    assert drawn.keys() == table.keys()
    for name in NAMES:
        assert drawn[name].mean().item() == pytest.approx(100.0, abs=1.0)


# Shifted and truncated bases -------------------------------------------------------------------
class Box(dist.TorchDistribution):
    """Uniform between its ends, as a class of one's own."""

    arg_constraints, has_rsample = {}, False
    support = dist.constraints.interval(0.5, 3.0)

    def __init__(self):
        super().__init__(torch.Size(), torch.Size(), validate_args=False)

    def sample(self, sample_shape=()):
        return torch.empty(sample_shape).uniform_(0.5, 3.0)

    def log_prob(self, value):
        return torch.full_like(value, -math.log(2.5))


def moved(base, *at):
    return dist.TransformedDistribution(base, [AffineTransform(*at)])


ENDS = {
    "3 - Exponential": (lambda: moved(dist.Exponential(1.0), 3.0, -1.0), -math.inf, 3.0),
    "2.5 - HalfNormal": (lambda: moved(dist.HalfNormal(1.0), 2.5, -1.0), -math.inf, 2.5),
    "HalfNormal - 2.5": (lambda: moved(dist.HalfNormal(3.0), -2.5, 1.0), -2.5, math.inf),
    "5 Beta - 2.5": (lambda: moved(dist.Beta(2.0, 2.0), -2.5, 5.0), -2.5, 2.5),
    "Exponential + .5": (lambda: moved(dist.Exponential(1.0), 0.5, 1.0), 0.5, math.inf),
    "one's own": (Box, 0.5, 3.0),
    "improper": (lambda: dist.ImproperUniform(dist.constraints.greater_than(0.5), (), ()), 0.5,
                 math.inf),
}  # fmt: skip


@pytest.mark.parametrize("name", ENDS)
def test_log_z_of_a_base_that_ends_is_that_of_quadrature(name):
    make, low, high = ENDS[name]

    def program():
        x = pyro.sample("x", make())
        pyro.factor("f", -0.3 * (x - 1).abs())

    config = FitConfig.given(rounds=6, pool=1024, batch=128, progress=False)
    fit = ebm_pp.fit(EnergyModel(program), None, config=config)
    drawn = ebm_pp.importance_sample(fit, 4000, seed=0).values["x"]
    assert ((drawn >= low) & (drawn <= high)).all()
    x = torch.linspace(max(low, -30), min(high, 100), 400_001, dtype=torch.float64)
    x, step = (x[1:] + x[:-1]) / 2, (x[1] - x[0]).item()
    log_p = -0.3 * (x - 1).abs()
    if name != "improper":
        log_p = log_p + make().log_prob(x.float()).double()
    truth = log_p.exp().sum().item() * step
    found = ebm_pp.log_partition(fit, 8000, seed=0)
    assert abs(found.value - math.log(truth)) < 4 * found.standard_error + 1e-3
    assert found.standard_error < 0.05


# A histogram by an embedding, and a base measure that is learned -------------------------------
class Histogram(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(4, 1)

    def forward(self):
        x = pyro.sample("x", dist.Uniform(0.0, 1.0))
        pyro.factor("bin", self.table((4 * x).long().clamp(max=3)).squeeze(-1))


class Learned(nn.Module):
    def __init__(self):
        super().__init__()
        self.loc, self.log_scale = nn.Parameter(torch.zeros(())), nn.Parameter(torch.zeros(()))

    def forward(self):
        pyro.sample("x", dist.Normal(self.loc, self.log_scale.exp()))


LONG = FitConfig(
    objective="importance", nu=8.0, rounds=8, pool=2048, batch=256, warm_start_steps=100,
    energy_lr=3e-2, progress=False,
)  # fmt: skip


def test_a_histogram_has_the_shares_of_its_bins():
    bins = torch.multinomial(torch.tensor([0.1, 0.4, 0.2, 0.3]), 3000, replacement=True)
    x = ((bins + torch.rand(3000)) / 4).clamp(1e-6, 1 - 1e-6)
    model = EnergyModel(Histogram())
    assert model.batching == "vmap"
    ebm_pp.fit(model, {"x": x}, config=LONG)
    found = model.program.table.weight[:, 0].softmax(0)
    truth = (4 * x).long().bincount() / 3000
    torch.testing.assert_close(found, truth, rtol=0, atol=0.02)


def test_a_learned_base_has_the_maximum_likelihood():
    x = 1.5 + 0.7 * torch.randn(3000)
    model = EnergyModel(Learned())
    ebm_pp.fit(model, {"x": x}, config=LONG)
    assert model.program.loc.item() == pytest.approx(x.mean().item(), abs=0.03)
    assert model.program.log_scale.exp().item() == pytest.approx(x.std().item(), abs=0.03)
