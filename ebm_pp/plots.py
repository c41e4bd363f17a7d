"""Pictures of a fit. Every function returns its matplotlib figure."""

import math
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from ebm_pp.data import columns
from ebm_pp.density import EnergyModel, Sites
from ebm_pp.diagnostics import Report
from ebm_pp.moments import family_threshold
from ebm_pp.pareto import threshold
from ebm_pp.partition import log_partition_from_weights
from ebm_pp.reach import data_side
from ebm_pp.training import Fit

DATA, DRAWS = "#3b6ea5", "#d1663c"  # blue and orange: told apart by most colour-blind readers
BINS = 48


def plot_training(fit: Fit) -> Figure:
    """Round by round: held-out log-likelihood, ESS fraction, k-hat, offset gap, J, moment gap.

    Of trajectories without held-out ones, the discriminator's accuracy in place of the first.
    """
    history = fit.history
    rounds = [info["round"] for info in history]
    panels: list[tuple[str, str, float | None]] = [
        ("held_out", "held-out log-likelihood (nats)", None),
        ("ess", "ESS / n of the draws", fit.config.ess_target),
        ("pareto_k", "Pareto k-hat of the draws", threshold(fit.config.pool)),
        ("offset_gap", "offset b - log Z (nats)", 0.0),
        ("max_moment_gap", "largest moment gap (SE)", None),
        ("generator_steps", "generator steps J", None),
    ]
    if fit.model.layout is not None:
        if all(math.isnan(info["held_out"]) for info in history):
            panels[0] = ("accuracy", "discriminator's accuracy", 0.5)
        panels[1] = ("ess", "ESS / n of whole trajectories", None)
    figure, axes = plt.subplots(2, 3, figsize=(12, 6), layout="constrained", sharex=True)
    for ax, (name, label, line) in zip(axes.flat, panels, strict=True):
        values = np.array([info[name] for info in history], dtype=float)
        ax.plot(rounds, values, color=DATA, lw=1.5)
        if name == "held_out":
            error = np.array([info["held_out_se"] for info in history], dtype=float)
            ax.fill_between(rounds, values - error, values + error, color=DATA, alpha=0.2, lw=0)
        if line is not None:
            ax.axhline(line, color="0.5", ls="--", lw=1)
        if np.isnan(values).all():
            ax.text(0.5, 0.5, "not measured", transform=ax.transAxes, ha="center", color="0.5")
        ax.set_title(label, fontsize=10)
    for ax in axes[1]:
        ax.set_xlabel("round")
    figure.suptitle(fit.status.value.split(":")[0].split(";")[0], fontsize=11)
    return figure


def plot_pairs(
    model: EnergyModel, data: Sites, draws: Sites, sites: list[str] | None = None
) -> Figure:
    """Data beside draws of p_theta for every pair of sites.

    Below the diagonal the data, above it the draws, on the same axes and colours, transposed; on
    the diagonal both, an angle as a rose. A site of several coordinates gives one row each.

    Args:
        model: says which sites are angles.
        data: rows of data.
        draws: draws of p_theta (resampled or MH-corrected), of any number.
        sites: only these sites.
    """
    names = sites or list(model.sites)
    left, right = _columns(data, names), _columns(draws, names)
    labels = list(left)
    d = len(labels)
    figure = plt.figure(figsize=(2.3 * d + 1, 2.3 * d + 0.6), layout="constrained")
    grid = figure.add_gridspec(d, d)
    edges = {label: _edges(left[label], right[label], _is_angle(model, label)) for label in labels}
    for i, row in enumerate(labels):
        for j, column in enumerate(labels):
            if i == j and _is_angle(model, row):
                ax = figure.add_subplot(grid[i, j], projection="polar")
                _rose(ax, left[row], right[row])
                ax.set_title(row, fontsize=10)
                continue
            ax = figure.add_subplot(grid[i, j])
            if i == j:
                _marginal(ax, left[row], right[row], edges[row])
            else:
                part = left if i > j else right
                ax.hist2d(
                    part[column], part[row], bins=[edges[column], edges[row]], density=True,
                    cmap="Blues" if i > j else "Oranges",
                )  # fmt: skip
            ax.tick_params(labelsize=7)
            if i == d - 1:
                ax.set_xlabel(column)
            if i == j:
                ax.set_title(row, fontsize=10)
            if j == 0:
                ax.set_ylabel(row if i != j else "density")
    figure.suptitle("data (blue, below the diagonal) beside draws (orange, above)", fontsize=11)
    return figure


def plot_energy_on_circle(fit: Fit, data: Sites, site: str, rows: int = 6) -> Figure:
    """The energy along an angle, every other site held at a row of the data.

    Args:
        fit: the fit.
        data: rows to hold the other sites at: `rows` of them, evenly spaced.
        site: an angle of shape ().
        rows: curves.

    Raises:
        ValueError: the site is no angle.
    """
    if site not in fit.model.sites or not fit.model.sites[site].circular:
        angles = [name for name, known in fit.model.sites.items() if known.circular]
        raise ValueError(f"site {site!r} is no angle of this program; its angles: {angles}.")
    n = 361
    around = np.linspace(-math.pi, math.pi, n)
    angle = torch.from_numpy(around).to(data[site])
    chosen = np.linspace(0, len(data[site]) - 1, rows).round().astype(int)
    figure = plt.figure(figsize=(10, 4.2), layout="constrained")
    line_ax = figure.add_subplot(1, 2, 1)
    polar_ax = figure.add_subplot(1, 2, 2, projection="polar")
    for colour, row in zip(
        plt.get_cmap("viridis")(np.linspace(0, 0.9, rows)), chosen, strict=True
    ):
        x = {name: value[row].expand(n, *value.shape[1:]) for name, value in data.items()}
        x[site] = angle
        with torch.no_grad():
            energy = fit.model.energy(x).cpu().numpy()
        line_ax.plot(np.degrees(around), energy - energy.min(), color=colour, lw=1.4)
        polar_ax.plot(around, energy - energy.min(), color=colour, lw=1.2)
    line_ax.set(xlabel=f"{site} (degrees)", ylabel="energy above its minimum (nats)")
    line_ax.set_xticks([-180, -90, 0, 90, 180])
    line_ax.set_title("both ends agree: no seam", fontsize=10)
    _compass(polar_ax)
    polar_ax.set_title(f"the same round the circle; {rows} rows of data", fontsize=10)
    return figure


def _columns(x: Sites, names: list[str]) -> dict[str, NDArray[Any]]:
    """One column per coordinate of the constrained sites."""
    found = columns({name: x[name].detach().cpu().double() for name in names})
    return {label: column.numpy() for label, column in found.items()}


def _is_angle(model: EnergyModel, label: str) -> bool:
    return model.sites[label.split("[")[0]].circular


def _edges(data: NDArray[Any], draws: NDArray[Any], angle: bool) -> NDArray[Any]:
    if angle:
        return np.linspace(-math.pi, math.pi, BINS + 1)
    low, high = np.quantile(data, [0.001, 0.999])
    margin = 0.08 * (high - low)
    low, high = max(low - margin, min(data.min(), draws.min())), high + margin
    return np.linspace(low, min(high, max(data.max(), draws.max())), BINS + 1)


def _marginal(ax: Axes, data: NDArray[Any], draws: NDArray[Any], edges: NDArray[Any]) -> None:
    ax.hist(data, edges.tolist(), density=True, color=DATA, alpha=0.45, label="data")
    ax.hist(
        draws, edges.tolist(), density=True, histtype="step", color=DRAWS, lw=1.5, label="draws"
    )
    ax.set_yticks([])


def _rose(ax: Axes, data: NDArray[Any], draws: NDArray[Any], petals: int = 36) -> None:
    """A wind rose: how often each direction; the area of a petal is its share."""
    edges = np.linspace(-math.pi, math.pi, petals + 1)
    centre = (edges[1:] + edges[:-1]) / 2
    share = [np.histogram(part, edges)[0] / len(part) for part in (data, draws)]
    ax.bar(centre, np.sqrt(share[0]), 2 * math.pi / petals, color=DATA, alpha=0.45, label="data")
    around = np.append(centre, centre[0] + 2 * math.pi)
    ax.plot(around, np.sqrt(np.append(share[1], share[1][0])), color=DRAWS, lw=1.5, label="draws")
    _compass(ax)
    ax.set_yticklabels([])


def _compass(ax: Any) -> None:  # noqa: ANN401 - polar axes have methods that Axes lack
    """North up, clockwise, as on a map."""
    ax.set_theta_zero_location("N")
    ax.set_theta_direction(-1)
    ax.tick_params(labelsize=7)


def plot_weights(log_weights_draws: Tensor, log_weights_data: Tensor) -> Figure:
    """Both sides of the diagnosis: log weights of draws of q, and of rows of data.

    Where the generator is right both are one narrow peak. Data far to the right of all draws are
    where it misses a mode.
    """
    log_z = log_partition_from_weights(log_weights_draws)
    side = data_side(log_weights_data, log_weights_draws, log_z.value)
    centre = log_z.value
    figure, ax = plt.subplots(figsize=(6, 3.6), layout="constrained")
    both = torch.cat([log_weights_draws, log_weights_data]) - centre
    low, high = np.quantile(both[both.isfinite()].cpu().numpy(), [0.001, 0.999])
    edges = np.linspace(low, high, 80).tolist()
    for part, colour, label in (
        (log_weights_draws, DRAWS, f"draws of q: ESS/n {log_z.ess:.3f}, k {log_z.pareto_k:.2f}"),
        (log_weights_data, DATA, f"data: ESS/n {side.forward_ess:.3f}, k {side.pareto_k:.2f}"),
    ):
        values = (part - centre).cpu().numpy()
        ax.hist(values, edges, density=True, color=colour, alpha=0.5, label=label)
    ax.set(xlabel="log w - log Z (nats)", ylabel="density")
    ax.set_ylim(top=1.3 * ax.get_ylim()[1])  # room for the legend
    ax.legend(frameon=False, fontsize=8)
    if beyond := int(side.beyond.sum()):
        ax.set_title(f"{beyond} rows of data beyond the reach of all draws", fontsize=9)
    return figure


@torch.no_grad()
def plot_factors(model: EnergyModel, data: Sites, draws: Sites) -> Figure:
    """What every term of log p~ contributes: its values at data and at draws of p_theta, in nats.

    Each from the 5th to the 95th percentile, with the mean as a dot. A term that is the same
    everywhere does nothing; one whose means differ is not learned yet, or can't move enough.

    Args:
        model: the program.
        data: rows of data.
        draws: draws of p_theta (resampled or MH-corrected), of any number.
    """
    parts = [(model.terms(data), DATA, 0.16, "data"), (model.terms(draws), DRAWS, -0.16, "draws")]
    names = list(parts[0][0])
    at = np.arange(len(names))[::-1]
    figure, ax = plt.subplots(figsize=(7, 0.45 * len(names) + 1.2), layout="constrained")
    for terms, colour, shift, label in parts:
        values = np.stack([terms[name].cpu().double().numpy() for name in names])
        low, high = np.quantile(values, [0.05, 0.95], axis=1)
        ax.hlines(at + shift, low, high, color=colour, lw=3, alpha=0.5)
        ax.plot(values.mean(1), at + shift, "o", color=colour, ms=5, label=label)
    ax.set_yticks(at, names, fontsize=9)
    ax.set_xlabel("log base density of a site, or minus the energy of a factor (nats)")
    ax.legend(frameon=False, fontsize=8)
    return figure


def plot_moment_gaps(report: Report, most: int = 30) -> Figure:
    """The moment gap of every statistic in standard errors, the largest first.

    Args:
        report: of `diagnose` with data.
        most: show at most so many.

    Raises:
        ValueError: the report was made without data.
    """
    data = report.evidence.data
    if data is None:
        raise ValueError("the report has no moment gaps; expected one of diagnose(fit, data).")
    limit = family_threshold(len(data.gaps))
    largest = sorted(data.gaps.items(), key=lambda item: -abs(item[1].z))[:most]
    names, gaps = zip(*reversed(largest), strict=True)
    z = np.array([gap.z for gap in gaps])
    at = np.arange(len(z))
    figure, ax = plt.subplots(figsize=(7, 0.26 * len(z) + 1.2), layout="constrained")
    ax.errorbar(z, at, xerr=1, fmt="none", ecolor="0.6", lw=1)
    colours = np.where(np.abs(z) > limit, DRAWS, DATA)
    ax.scatter(z, at, c=colours.tolist(), s=22, zorder=3)
    ax.axvline(0, color="0.3", lw=1)
    for side in (-limit, limit):
        ax.axvline(side, color="0.5", ls="--", lw=1)
    ax.set_yticks(at, names, fontsize=8)
    ax.set_ylim(-0.7, len(z) - 0.3)
    ax.set_xlabel("mean over data above the model's (standard errors)")
    if len(data.gaps) > most:
        ax.set_title(f"the {most} largest of {len(data.gaps)}", fontsize=9)
    return figure
