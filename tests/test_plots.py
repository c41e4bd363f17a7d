"""Pictures show the numbers they claim to show."""

import math

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from closed_form import exact, normal, rows

import ebm_pp
from ebm_pp import Circle, plots
from ebm_pp.density import EnergyModel
from ebm_pp.sampling import Draws
from ebm_pp.training import Fit, Status

mpl.use("agg")


@pytest.fixture(autouse=True)
def _close():
    yield
    plt.close("all")


def program():
    """One site of every kind of axes."""
    angle = pyro.sample("angle", Circle())
    speed = pyro.sample("speed", dist.LogNormal(1.0, 0.7))
    mixed = pyro.sample("mixed", dist.Dirichlet(torch.tensor([2.0, 3.0, 4.0])))
    x = pyro.sample("x", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    share = pyro.sample("share", dist.Beta(2.0, 3.0))
    pyro.factor("turn", angle.cos() + 0.3 * speed.log() * angle.sin())
    pyro.factor("bend", -0.5 * (x[..., 1] - x[..., 0] ** 2) ** 2 - mixed[..., 0] * share)


@pytest.fixture(scope="module")
def model():
    return EnergyModel(program)


@pytest.fixture(scope="module")
def data(model):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return model.sample_base(900)


def test_axes_follow_the_supports(model, data):
    figure = plots.plot_pairs(model, data, model.sample_base(700))
    drawn = {ax.get_title(): ax for ax in figure.axes}
    assert len(figure.axes) == 8 * 8 - 3 * 3 + 1  # one ternary plot in place of a block
    assert drawn["angle"].name == "polar"
    assert drawn["speed"].get_xscale() == "log"
    assert drawn["x[0]"].get_xscale() == "linear"
    assert drawn["share"].get_xscale() == "linear"
    below = next(ax for ax in figure.axes if ax.get_xlabel() == "speed")
    assert (below.get_xscale(), below.get_yscale()) == ("log", "linear")
    ternary = next(ax for ax in figure.axes if not ax.axison)
    points = ternary.lines[-1].get_xydata()
    assert len(points) == 700
    # Barycentric coordinates give the parts back.
    corners = np.array([[0, 0, 1], [1, 0, 1], [0.5, math.sqrt(0.75), 1]])
    data_points = ternary.lines[-2].get_xydata()
    parts = np.c_[data_points, np.ones(900)] @ np.linalg.inv(corners)
    np.testing.assert_allclose(parts, data["mixed"], atol=1e-6)


def test_shares_of_a_panel_sum_to_what_it_shows(model, data):
    figure = plots.plot_pairs(model, data, data, ["speed", "x"])
    panel = figure.axes[3]  # x[0] against speed, of the data
    assert float(panel.collections[0].get_array().sum()) == pytest.approx(1.0, abs=0.02)


def test_an_angle_is_periodic(model, data):
    figure = plots.plot_energy_slice(model, data, "angle", rows=3)
    line, polar = figure.axes
    assert polar.name == "polar"
    assert len(line.lines) == 3
    for curve in line.lines:
        y = np.asarray(curve.get_ydata())
        assert y[0] == pytest.approx(y[-1], abs=1e-4)
        assert y.min() == 0.0
    x = data["speed"][0].log() * 0.3  # the first row's curve, in closed form
    around = np.radians(line.lines[0].get_xdata())
    wanted = -np.cos(around) - float(x) * np.sin(around)
    np.testing.assert_allclose(line.lines[0].get_ydata(), wanted - wanted.min(), atol=1e-4)


def test_other_slices_are_inside_the_support(model, data):
    along = plots.plot_energy_slice(model, data, "share").axes[0].lines[0].get_xdata()
    assert min(along) > 0
    assert max(along) < 1
    assert plots.plot_energy_slice(model, data, "speed").axes[0].get_xscale() == "log"


@pytest.mark.parametrize("name", ["mixed[0]", "nothing", "x"])
def test_a_coordinate_must_be_free(model, data, name):
    with pytest.raises(ValueError, match="expected one of"):
        plots.plot_energy_slice(model, data, name)


def test_the_map_is_the_energy(model, data):
    figure = plots.plot_energy_map(model, data, "x[0]", "x[1]")
    ax = figure.axes[0]
    mesh = ax.collections[0]
    shown = np.asarray(mesh.get_array())
    # Corners are cell edges; centres of the grid follow from the limits.
    across = mesh.get_coordinates()[0, :, 0]
    up = mesh.get_coordinates()[:, 0, 1]
    x0, x1 = (0.5 * (edge[1:] + edge[:-1]) for edge in (across, up))
    energy = 0.5 * (x1[:, None] - x0[None, :] ** 2) ** 2
    energy = energy - energy.min()
    inside = energy < 0.9 * shown.max()
    np.testing.assert_allclose(shown[inside], energy[inside], atol=2e-2)
    assert shown.min() == 0.0


def test_weights_move_draws(model):
    base = model.sample_base(2000)
    # A weight of zero for every positive x[0]: nothing may be left there.
    weights = torch.where(base["x"][:, 0] > 0, -torch.inf, 0.0)
    figure = plots.plot_reweighting(model, base, Draws(base, weights), ["x"])
    ax = figure.axes[0]
    before, after = (patch.get_xy() for patch in ax.patches[-2:])
    assert after[after[:, 0] > 0.1][:, 1].max() == pytest.approx(0.0, abs=1e-12)
    assert before[before[:, 0] > 0.1][:, 1].max() > 0.01


def drawn(figure):
    """u minus its uniform distribution function, as the picture has it."""
    curve = max(figure.axes[0].lines, key=lambda line: len(line.get_xdata()))  # 1.x draws 0 too
    return np.asarray(curve.get_ydata(), dtype=float)


def test_calibration_of_a_true_model_stays_in_the_band():
    fit = exact(normal(0.0, 1.0), normal(0.0, 1.2))
    good = plots.plot_calibration(fit, rows(normal(0.0, 1.0), 1000))
    assert abs(drawn(good)).max() < 1.6 / math.sqrt(1000)  # Kolmogorov's 99 %
    wide = plots.plot_calibration(fit, rows(normal(0.0, 1.3), 1000))
    assert drawn(wide).max() > 0.1  # more rows than expected at low densities
    narrow = plots.plot_calibration(fit, rows(normal(0.0, 0.7), 1000))
    assert drawn(narrow).min() < -0.1


def test_few_effective_draws_judge_few_rows():
    fit = exact(normal(0.0, 1.0), normal(0.0, 1.2))
    figure = plots.plot_calibration(fit, rows(normal(0.0, 1.0), 1000), n=2000)
    shown = int(figure.axes[0].get_title().split()[0])
    assert 100 < shown <= 200


def test_everything_is_drawn_where_it_is_asked(model, data):
    history = tuple(
        {"round": i, "held_out": 0.0, "held_out_se": 0.1, "ess": 0.5, "pareto_k": 0.2}
        | {"offset_gap": 0.0, "max_moment_gap": 1.0, "generator_steps": 2}
        for i in range(3)
    )
    fit = exact(normal(0.0, 1.0), normal(0.0, 1.2))
    test = rows(normal(0.0, 1.0), 300)
    log_weights = fit.model.log_density(test) - fit.generator.log_prob(test)
    report = ebm_pp.diagnose(fit, test)
    record = Fit(model, fit.generator, history, Status.FINISHED, ebm_pp.FitConfig(), 0.0, 10)
    on_axes = [
        lambda ax: plots.plot_weights(log_weights, log_weights, ax=ax),
        lambda ax: plots.plot_factors(model, data, data, ax=ax),
        lambda ax: plots.plot_moment_gaps(report, ax=ax),
        lambda ax: plots.plot_energy_map(model, data, "x[0]", "x[1]", ax=ax),
        lambda ax: plots.plot_calibration(fit, test, ax=ax),
    ]
    whole = plt.figure(layout="constrained")
    parts = whole.subfigures(3, 3).flat
    for draw in on_axes:
        part = next(parts)
        ax = part.add_subplot()
        assert draw(ax) is whole
        assert ax.has_data()
    on_figure = [
        lambda part: plots.plot_training(record, figure=part),
        lambda part: plots.plot_pairs(model, data, data, ["x"], figure=part),
        lambda part: plots.plot_energy_slice(model, data, "speed", figure=part),
        lambda part: plots.plot_reweighting(
            model, data, Draws(data, torch.zeros(900)), ["x"], figure=part
        ),
    ]
    for draw in on_figure:
        part = next(parts)
        assert draw(part) is whole
        assert part.axes
    whole.canvas.draw()
    assert plt.get_fignums() == [whole.number]
