"""Sites may be called anything: forty names through tree, files, pictures and page."""

import re

import arviz_base
import matplotlib.pyplot as plt
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
import xarray
from closed_form import Exact, Product

import ebm_pp
from ebm_pp import Circle, EnergyModel, plots
from ebm_pp.data import columns
from ebm_pp.datatree import to_datatree
from ebm_pp.files import read_rows, write_rows
from ebm_pp.names import RESERVED, column_names, file_name, variable_names
from ebm_pp.report import pictures

NAMES = [
    *sorted(RESERVED), "time", "term", "energy", "acceptance", "joint", "log_q", "model", "x [mm]",
    "wind/dir", "a$_b$c", "$x", "100%", "a%2Fb", "rate, per day", 'say "x"', "it's", "two\nlines",
    "tab\tbed", " led by space", ".hidden", "..", "a.b", "a/b", "/", "класс", "π²", "风速",
    "class", "lambda", "None", "CON", "file", "allow_pickle", "x" * 120, "v_dim_0", "a\\b",
    "x{1}", "<b>", "a:b", "a;b", "=1+1", "0", "1.5", "nan", "#", "obs|x",
]  # fmt: skip
PAIRS = [
    ("a/b", "a.b"), ("a/b", "a.b_"), ("draw", "draw_"), ("v", "v_dim_0"), ("x", "x[0]"),
    ("x", "x(0)"), ("x[0]", "x"), ("a.b", "a/b"), ("log_weight", "log_weight_"), ("x", "X"),
]  # fmt: skip


def fit_of(names, shapes):
    laws = {n: dist.Normal(torch.full(s, 5.0), 2.0).to_event(len(s)) for n, s in
            zip(names, shapes, strict=True)}  # fmt: skip

    def program():
        for name, law in laws.items():
            pyro.sample(name, law)

    return Exact(EnergyModel(program), Product(laws), 0.0)


def rows_of(fit, n=60):
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return fit.generator.rsample_and_log_prob(n)[0]


@pytest.mark.parametrize("names", [*[(name,) for name in NAMES], *PAIRS], ids=repr)
def test_no_value_is_lost(names, tmp_path):
    shapes = [(2,), ()][: len(names)] if len(names) == 2 else [()]
    fit = fit_of(names, shapes)
    rows = rows_of(fit)
    # The tree, and NetCDF.
    tree = to_datatree(fit, data=rows, n=80)
    assert set(tree.children) >= {"posterior", "proposal", "observed_data", "log_likelihood"}
    tree.to_netcdf(tmp_path / "tree.nc", engine="h5netcdf")
    keys = variable_names(names)
    with xarray.open_datatree(tmp_path / "tree.nc", engine="h5netcdf") as again:
        for found in (tree, again):
            for name in names:
                value = found["observed_data"].dataset[keys[name]]
                np.testing.assert_array_equal(value.to_numpy(), rows[name].numpy())
                assert found["posterior"].dataset[keys[name]].dims[:2] == ("chain", "draw")
                drawn = found["proposal"].dataset[keys[name]].to_numpy()
                assert drawn.mean() == pytest.approx(5.0, abs=1.0)
                assert found["proposal"].dataset["log_weight"].shape == (1, 80)
    assert arviz_base.extract(tree).sizes["sample"] == 80
    # Tables and arrays.
    for ending in (".csv", ".csv.gz", ".parquet", ".npz"):
        path = tmp_path / f"rows{ending}"
        write_rows(rows, path)
        again = fit.model.check(read_rows(path, fit.model))
        for name in names:
            torch.testing.assert_close(again[name], rows[name])
    # Statistics of a report.
    report = ebm_pp.diagnose(fit, rows, n=200)
    size = sum(site.dim for site in fit.model.sites.values())
    assert len(report.evidence.data.gaps) == 2 * size + len(names)
    assert len(columns(rows)) == size


DRAWN = ["wind/dir", "a$_b$c", "$x", "100%", "two\nlines", "..", "<b>", "π²", "a\\b", "draw"]


@pytest.mark.filterwarnings("ignore:Glyph .* missing:UserWarning")
@pytest.mark.parametrize("names", [*[(name,) for name in DRAWN], *PAIRS[:6]], ids=repr)
def test_pictures_are_drawn_and_saved(names, tmp_path):
    shapes = [(2,), ()][: len(names)] if len(names) == 2 else [()]
    fit = fit_of(names, shapes)
    rows = rows_of(fit)
    figures = [
        plots.plot_pairs(fit.model, rows, rows),
        plots.plot_factors(fit.model, rows, rows),
        plots.plot_moment_gaps(ebm_pp.diagnose(fit, rows, n=200)),
        plots.plot_reweighting(fit.model, rows, ebm_pp.importance_sample(fit, 100, seed=0)),
        plots.plot_energy_slice(fit.model, rows, next(iter(columns(rows)))),
    ]
    for i, figure in enumerate(figures):
        figure.savefig(tmp_path / f"{i}.png", dpi=30)
        plt.close(figure)
    assert "\x00" not in file_name(names[0])
    assert not set('/\\:*?"<>| ') & set(file_name(names[0]))


def test_a_formula_is_shown_as_it_is_written():
    fit = fit_of(("a$_b$c",), [()])
    figure = plots.plot_pairs(fit.model, rows_of(fit), rows_of(fit))
    assert "a$_b$c" in [ax.get_title() for ax in figure.axes]
    assert not any(ax.title.get_parse_math() for ax in figure.axes)
    plt.close(figure)


def test_names_of_everything_at_once_stay_apart():
    assert len({*variable_names(NAMES).values()}) == len(NAMES)
    unchanged = [name for name, key in variable_names(NAMES).items() if name == key]
    assert len(unchanged) >= 35
    assert len({file_name(name).lower() for name in NAMES}) == len(NAMES)
    assert all(re.fullmatch(r"[\w.%-]+", file_name(name)) for name in NAMES)
    labels = column_names({"x": 2, "x[0]": 1, "x(1)": 1, "y": 2})
    assert labels == {
        "x": ["x{0}", "x{1}"], "x[0]": ["x[0]"], "x(1)": ["x(1)"], "y": ["y[0]", "y[1]"],
    }  # fmt: skip


# Angles ----------------------------------------------------------------------------------------
def test_angles_given_from_zero_to_two_pi_are_drawn_whole():
    law = dist.VonMises(torch.tensor(3.0), torch.tensor(2.0))

    def program():
        a = pyro.sample("a", Circle())
        pyro.factor("f", 2 * (a - 3.0).cos())

    model = EnergyModel(program)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        a = law.sample((500,))
    turned = a % (2 * torch.pi)
    assert (turned > torch.pi).float().mean() > 0.3
    shapes = []
    for value in (a, turned, a + 20 * torch.pi):
        figure = plots.plot_pairs(model, {"a": value}, {"a": value})
        (ax,) = figure.axes
        shapes.append([bar.get_height() for bar in ax.patches])
        plt.close(figure)
    areas = np.square(shapes).sum(1)
    assert areas == pytest.approx(1.0, abs=1e-6)  # a petal's area is its share: none is lost
    np.testing.assert_allclose(shapes[1], shapes[0], atol=0.1)


# Pictures that can't be drawn ------------------------------------------------------------------
def test_one_picture_that_fails_costs_no_other(monkeypatch):
    from ebm_pp import report as page

    def broken(*_, **__):
        raise ValueError("autodetected range of [nan, nan] is not finite")

    fit = fit_of(("x",), [()])
    rows = rows_of(fit, 200)
    monkeypatch.setattr(page, "plot_factors", broken)
    fit = ebm_pp.Fit(
        fit.model, fit.generator, (), ebm_pp.Status.FINISHED, ebm_pp.FitConfig(), 0.0, 200
    )
    shown, missing = pictures(fit, rows, ebm_pp.diagnose(fit, rows), 0)
    assert {"weights", "pairs", "moments"} <= {picture.name for picture in shown}
    assert missing == [
        "Terms of the density: not drawn (ValueError: autodetected range of [nan, nan] is not "
        "finite)"
    ]
    for picture in shown:
        plt.close(picture.figure)
