"""Pictures of a fit. Every function returns its figure, and takes axes or a figure to draw on.

Those of sites are written in plots_sites.py and plots_energy.py, and named here too; those of
trajectories are in plots_trajectory.py.
"""

import math

import arviz_plots
import numpy as np
import torch
import xarray
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from ebm_pp.counts import count
from ebm_pp.density import EnergyModel, Sites
from ebm_pp.diagnostics import Report
from ebm_pp.errors import DataError
from ebm_pp.evidence import Diagnosable
from ebm_pp.fitted import Fit
from ebm_pp.moments import family_threshold
from ebm_pp.pareto import threshold
from ebm_pp.partition import log_partition_from_weights
from ebm_pp.plots_energy import plot_energy_map, plot_energy_slice
from ebm_pp.plots_sites import (
    AS_WRITTEN,
    DATA,
    DRAWS,
    Canvas,
    axes_or_new,
    figure_or_new,
    legible,
    plot_pairs,
    plot_reweighting,
)
from ebm_pp.pool import n_rows, pick
from ebm_pp.reach import data_side
from ebm_pp.sampling import importance_sample, log_density_of

__all__ = [
    "plot_calibration",
    "plot_energy_map",
    "plot_energy_slice",
    "plot_factors",
    "plot_moment_gaps",
    "plot_pairs",
    "plot_reweighting",
    "plot_training",
    "plot_weights",
]


def plot_training(fit: Fit, *, figure: Canvas | None = None) -> Figure:
    """Round by round: held-out log-likelihood, ESS fraction, k-hat, offset gap, J, moment gap.

    Of trajectories without held-out ones, the discriminator's accuracy in place of the first.

    Args:
        fit: the fit.
        figure: to draw on; by default a new one.
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
    figure = figure_or_new(figure, (12.0, 6.0))
    axes = figure.subplots(2, 3, sharex=True)
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
    return figure.figure


def plot_weights(
    log_weights_draws: Tensor, log_weights_data: Tensor, *, ax: Axes | None = None
) -> Figure:
    """Both sides of the diagnosis: log weights of draws of q, and of rows of data.

    Where the generator is right both are one narrow peak. Data far to the right of all draws are
    where it misses a mode.

    Args:
        log_weights_draws: log p~ - log q of draws of q, shape (n,).
        log_weights_data: the same of rows of data, shape (m,).
        ax: to draw on; by default a new figure's.
    """
    log_z = log_partition_from_weights(log_weights_draws)
    side = data_side(log_weights_data, log_weights_draws, log_z.value)
    centre = log_z.value
    figure, ax = axes_or_new(ax, (6.0, 3.6))
    both = torch.cat([log_weights_draws, log_weights_data]) - centre
    low, high = np.quantile(both[both.isfinite()].cpu().numpy(), [0.001, 0.999])
    edges = np.linspace(low, high, 80).tolist()
    for part, colour, label in (
        (log_weights_draws, DRAWS, f"draws of q: ESS/n {log_z.ess:.3f}, k {log_z.pareto_k:.2f}"),
        (log_weights_data, DATA, f"data: ESS/n {side.forward_ess:.3f}, k {side.pareto_k:.2f}"),
    ):
        values = (part - centre).cpu().numpy()
        share = np.full(len(values), 1 / len(values))
        ax.hist(values, edges, weights=share, color=colour, alpha=0.5, label=label)
    # Logarithmic: what matters is far from the peak, and may be a few draws or rows.
    ax.set(xlabel="log w - log Z (nats)", ylabel="share of each", yscale="log")
    ax.set_ylim(top=8 * ax.get_ylim()[1])  # room for the legend
    ax.legend(frameon=False, fontsize=8)
    if beyond := int(side.beyond.sum()):
        ax.set_title(f"rows of data beyond the reach of all draws: {beyond}", fontsize=9)
    return figure


@torch.no_grad()
def plot_factors(
    model: EnergyModel, data: Sites, draws: Sites, *, ax: Axes | None = None
) -> Figure:
    """What every term of log p~ contributes: its values at data and at draws of p_theta, in nats.

    Each from the 5th to the 95th percentile, with the mean as a dot. A term that is the same
    everywhere does nothing; one whose means differ is not learned yet, or can't move enough.

    Args:
        model: the program.
        data: rows of data.
        draws: draws of p_theta (resampled or MH-corrected), of any number.
        ax: to draw on; by default a new figure's.
    """
    parts = [(model.terms(data), DATA, 0.16, "data"), (model.terms(draws), DRAWS, -0.16, "draws")]
    names = list(parts[0][0])
    at = np.arange(len(names))[::-1]
    figure, ax = axes_or_new(ax, (7.0, 0.45 * len(names) + 1.2))
    for terms, colour, shift, label in parts:
        values = np.stack([terms[name].cpu().double().numpy() for name in names])
        low, high = np.quantile(values, [0.05, 0.95], axis=1)
        ax.hlines(at + shift, low, high, color=colour, lw=3, alpha=0.5)
        ax.plot(values.mean(1), at + shift, "o", color=colour, ms=5, label=label)
    ax.set_yticks(at, [legible(name) for name in names], fontsize=9, **AS_WRITTEN)
    ax.set_xlabel("log base density of a site, or minus the energy of a factor (nats)")
    ax.legend(frameon=False, fontsize=8)
    return figure


def plot_moment_gaps(report: Report, most: int = 30, *, ax: Axes | None = None) -> Figure:
    """The moment gap of every statistic in standard errors, the largest first.

    Args:
        report: of `diagnose` with data.
        most: show at most so many.
        ax: to draw on; by default a new figure's.

    Raises:
        DataError: the report was made without data.
    """
    data = report.evidence.data
    if data is None:
        raise DataError(
            "the report has no moment gaps; expected one of diagnose(fit, data).\n  Diagnose with "
            "rows of data."
        )
    most = count("most", most)
    limit = family_threshold(len(data.gaps))
    largest = sorted(data.gaps.items(), key=lambda item: -abs(item[1].z))[:most]
    names, gaps = zip(*reversed(largest), strict=True)
    z = np.array([gap.z for gap in gaps])
    at = np.arange(len(z))
    figure, ax = axes_or_new(ax, (7.0, 0.26 * len(z) + 1.2))
    ax.errorbar(z, at, xerr=1, fmt="none", ecolor="0.6", lw=1)
    colours = np.where(np.abs(z) > limit, DRAWS, DATA)
    ax.scatter(z, at, c=colours.tolist(), s=22, zorder=3)
    ax.axvline(0, color="0.3", lw=1)
    for side in (-limit, limit):
        ax.axvline(side, color="0.5", ls="--", lw=1)
    ax.set_yticks(at, [legible(name) for name in names], fontsize=8, **AS_WRITTEN)
    ax.set_ylim(-0.7, len(z) - 0.3)
    ax.set_xlabel("mean over data above the model's (standard errors)")
    if len(data.gaps) > most:
        ax.set_title(f"the {most} largest of {len(data.gaps)}", fontsize=9)
    return figure


def plot_calibration(
    fit: Diagnosable, data: Sites, n: int = 10_000, *, ax: Axes | None = None, seed: int | None = 0
) -> Figure:
    """Are held-out rows as likely as the model says that its own draws are?

    u_i is the probability that a draw of p_theta has a lower density than row i. Where the model
    is right the u_i are uniform, and their distribution function less the diagonal stays in the
    band (arviz-plots' `plot_ecdf_pit`: 99 %, simultaneous, independent rows). Above it at the
    left: more rows in places the model holds for rare than it expects. Below: its draws go there
    more often than data do.

    Args:
        fit: a fit.
        data: rows that it was not trained on. So many are used, spread over all, that the draws
            are worth ten of each: then the draws' own noise hardly shows.
        n: draws of the generator.
        ax: to draw on; by default a new figure's.
        seed: of the draws.

    Raises:
        DataError: the draws are worth too little to judge two rows.

    Source: [S20] Säilynoja, Bürkner & Vehtari 2022, arXiv:2103.10522 (the band).
    """
    draws = importance_sample(fit, n, seed=seed)
    worth = n * log_partition_from_weights(draws.log_weights).ess
    m = min(n_rows(data), int(worth / 10))
    if m < 2:
        raise DataError(
            f"plot_calibration: {n_rows(data)} rows, and {n} draws that are worth {worth:.1f}; "
            "expected 2 rows and a worth of 20.\n  Most likely a generator that does not follow "
            "the energy: diagnose(fit, rows) says why."
        )
    some = torch.linspace(0, n_rows(data) - 1, m).round().long()
    u = _share_below(
        log_density_of(fit.model, draws.values),
        torch.softmax(draws.log_weights.double(), 0),
        log_density_of(fit.model, pick(data, some)),
    )
    figure, ax = axes_or_new(ax, (5.6, 3.6))
    values = xarray.Dataset({"u": (("chain", "draw"), u.cpu().numpy()[None])})
    plot = xarray.Dataset({"u": ((), np.array(ax, dtype=object))})
    onto = arviz_plots.PlotCollection(
        values,
        xarray.DataTree.from_dict({"plot": plot}),
        backend="matplotlib",
    )
    arviz_plots.plot_ecdf_pit(
        xarray.DataTree.from_dict({"pit": values}), group="pit", plot_collection=onto,
        backend="matplotlib", visuals={"title": False, "remove_axis": False},
    )  # fmt: skip
    ax.set_xlabel("u: share of draws with a lower density")
    ax.set_ylabel("share of rows below u, minus u")
    ax.set_title(f"{m} rows of data", fontsize=9)
    return figure


def _share_below(values: Tensor, weights: Tensor, at: Tensor) -> Tensor:
    """Sum of the weights of values below each of `at`, and half of those that equal it."""
    order = values.argsort()
    below = torch.cat([weights.new_zeros(1), weights[order].cumsum(0)])
    left, right = (torch.searchsorted(values[order], at, right=side) for side in (False, True))
    return (0.5 * (below[left] + below[right])).clamp(0.0, 1.0)
