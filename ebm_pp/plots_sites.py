"""Pictures of sites: data beside draws, and draws before and after weighting.

Axes follow the supports: a rose for an angle, logarithmic axes for a positive number, a ternary
plot for a simplex of three parts. A coordinate is named as in `columns`: `speed`, `x[1]`.
"""

import math
from itertools import pairwise
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import LogLocator, NullFormatter
from numpy.typing import NDArray
from torch.distributions import constraints

from ebm_pp.circle import to_radians
from ebm_pp.data import columns
from ebm_pp.density import EnergyModel, Site, Sites
from ebm_pp.names import column_names
from ebm_pp.sampling import Draws
from ebm_pp.support import plain

DATA, DRAWS = "#3b6ea5", "#d1663c"  # blue and orange: told apart by most colour-blind readers
BINS = 48
POINTS = 1500  # of a ternary plot: more would hide each other
TRIANGLE = np.array([[0.0, 0.0], [1.0, 0.0], [0.5, math.sqrt(0.75)]])

Canvas = Figure | SubFigure
# Names of sites are names: a `$` in them starts no formula.
as_written = mpl.rc_context({"text.parse_math": False})


@as_written
def plot_pairs(
    model: EnergyModel,
    data: Sites,
    draws: Sites,
    sites: list[str] | None = None,
    *,
    figure: Canvas | None = None,
) -> Figure:
    """Data beside draws of p_theta for every pair of sites.

    Below the diagonal the data, above it the draws, on the same axes and colours, transposed; on
    the diagonal both, an angle as a rose. A site of several coordinates gives one row each; a
    simplex of three parts one ternary plot instead of its block.

    Args:
        model: says which supports the sites have.
        data: rows of data.
        draws: draws of p_theta (resampled or MH-corrected), of any number.
        sites: only these sites.
        figure: to draw on; by default a new one.
    """
    names = sites or list(model.sites)
    left, right = numbers_of(model, data, names), numbers_of(model, draws, names)
    labels = list(left)
    d = len(labels)
    figure = figure_or_new(figure, (2.3 * d + 1, 2.3 * d + 0.6))
    grid = figure.add_gridspec(d, d)
    edges = {label: _edges(model, label, left[label], right[label]) for label in labels}
    inside = set()
    for name in names:
        parts = labels_of(model)[name]
        if model.sites[name].shape == (3,) and kind_of(model, parts[0]) == "simplex":
            i = labels.index(parts[0])
            inside |= {(i + row, i + column) for row in range(3) for column in range(3)}
            ax = figure.add_subplot(grid[i : i + 3, i : i + 3])
            _ternary(ax, parts, _points(left, parts), _points(right, parts))
    for i, row in enumerate(labels):
        for j, column in enumerate(labels):
            if (i, j) in inside:
                continue
            if i == j and kind_of(model, row) == "angle":
                ax = figure.add_subplot(grid[i, j], projection="polar")
                _rose(ax, left[row], right[row])
                ax.set_title(row, fontsize=10)
                continue
            ax = figure.add_subplot(grid[i, j])
            if i == j:
                _marginal(ax, left[row], right[row], edges[row])
                ax.set_title(row, fontsize=10, y=0.82)  # inside: above, it would label another
            else:
                part, colours = (left, "Blues") if i > j else (right, "Oranges")
                _hist(ax, part[column], part[row], edges[column], edges[row], colours)
                scale_axes(ax, model, y=row)
            scale_axes(ax, model, x=column)
            ax.tick_params(labelsize=7)
            if i == d - 1:
                ax.set_xlabel(column)
            if j == 0:
                ax.set_ylabel(row if i != j else "share")
    figure.suptitle("data (blue, below the diagonal) beside draws (orange, above)", fontsize=11)
    return figure.figure


@as_written
def plot_reweighting(
    model: EnergyModel,
    data: Sites,
    draws: Draws,
    sites: list[str] | None = None,
    *,
    figure: Canvas | None = None,
) -> Figure:
    """What the weights do: draws of q before and after weighting, beside the data.

    Where the dashed line (before) is off the data and the solid one (after) is on them, the
    energy has learned what its generator could not follow. Where the solid line is ragged, few
    draws carry the weight.

    Args:
        model: says which supports the sites have.
        data: rows of data.
        draws: of `importance_sample`.
        sites: only these sites.
        figure: to draw on; by default a new one.
    """
    names = sites or list(model.sites)
    left, right = numbers_of(model, data, names), numbers_of(model, draws.values, names)
    weights = torch.softmax(draws.log_weights.double(), 0).cpu().numpy()
    across = min(len(left), 4)
    down = math.ceil(len(left) / across)
    figure = figure_or_new(figure, (3.1 * across, 2.4 * down + 0.5))
    for i, label in enumerate(left):
        ax = figure.add_subplot(down, across, i + 1)
        edges = _edges(model, label, left[label], right[label])
        _share(ax, left[label], edges, None, color=DATA, alpha=0.4, label="data")
        _share(ax, right[label], edges, None, histtype="step", color=DRAWS, ls="--",
               label="draws of q")  # fmt: skip
        _share(ax, right[label], edges, weights, histtype="step", color=DRAWS, lw=1.6,
               label="weighted")  # fmt: skip
        scale_axes(ax, model, x=label)
        ax.set_yticks([])
        ax.set_title(label, fontsize=10)
        if i == 0:
            ax.legend(frameon=False, fontsize=7)
    return figure.figure


def figure_or_new(figure: Canvas | None, size: tuple[float, float]) -> Canvas:
    """The figure, or a new one of that size in inches."""
    return plt.figure(figsize=size, layout="constrained") if figure is None else figure


def axes_or_new(ax: Axes | None, size: tuple[float, float]) -> tuple[Figure, Axes]:
    """The axes and their whole figure, or a new one of that size in inches."""
    if ax is None:
        return plt.subplots(figsize=size, layout="constrained")
    return ax.figure.figure, ax  # of a sub-figure too


def numbers_of(model: EnergyModel, x: Sites, names: list[str]) -> dict[str, NDArray[Any]]:
    """One column per coordinate; angles in radians, in [-pi, pi), whatever their unit and turn."""
    values = {name: x[name].detach().cpu().double() for name in x}
    for name in values.keys() & model.sites.keys():
        if model.sites[name].circular:
            values[name] = to_radians(values[name], model.sites[name].period)
    wanted = columns(values)
    sizes = {name: value[0].numel() for name, value in x.items()}
    labels = [label for name in names for label in column_names(sizes)[name]]
    return {label: wanted[label].numpy() for label in labels}


def labels_of(model: EnergyModel) -> dict[str, list[str]]:
    """The columns of every site."""
    return column_names({name: math.prod(site.shape) for name, site in model.sites.items()})


def site_of(model: EnergyModel, label: str) -> Site:
    """The site that a column is of."""
    return next(model.sites[n] for n, labels in labels_of(model).items() if label in labels)


def kind_of(model: EnergyModel, label: str) -> str:
    """What support a coordinate's site has: angle, positive, simplex, bounded, matrix or real."""
    site = site_of(model, label)
    support = plain(site.support)
    if site.circular:
        return "angle"
    if isinstance(support, type(constraints.simplex)):
        return "simplex"
    low, high = (getattr(support, end, None) for end in ("lower_bound", "upper_bound"))
    if low is not None and high is None and bool((torch.as_tensor(low) == 0).all()):
        return "positive"
    if site.dim != math.prod(site.shape):
        return "matrix"
    return "real" if low is None and high is None else "bounded"


def _edges(
    model: EnergyModel, label: str, data: NDArray[Any], draws: NDArray[Any]
) -> NDArray[Any]:
    """Of bins that hold the data, with a margin as far as the draws reach into it."""
    kind = kind_of(model, label)
    if kind == "angle":
        return np.linspace(-math.pi, math.pi, BINS + 1)
    if kind == "positive":
        data, draws = np.log(data), np.log(draws)
    low, high = np.quantile(data, [0.001, 0.999])
    margin = 0.08 * (high - low) or 0.5
    low = max(low - margin, min(data.min(), draws.min()))
    edges = np.linspace(low, min(high + margin, max(data.max(), draws.max())), BINS + 1)
    return np.exp(edges) if kind == "positive" else edges


def scale_axes(ax: Axes, model: EnergyModel, x: str | None = None, y: str | None = None) -> None:
    """Logarithmic axes for positive coordinates, with plain numbers at 1, 2 and 5."""
    for name, set_scale, axis in ((x, ax.set_xscale, ax.xaxis), (y, ax.set_yscale, ax.yaxis)):
        if name is not None and kind_of(model, name) == "positive":
            set_scale("log")
            axis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=8))
            axis.set_major_formatter("{x:g}")
            axis.set_minor_formatter(NullFormatter())


def _hist(
    ax: Axes,
    x: NDArray[Any],
    y: NDArray[Any],
    across: NDArray[Any],
    up: NDArray[Any],
    colours: str,
) -> None:
    """Shares of cells that are equal on the axes as drawn, so colours mean the same everywhere."""
    share = np.full(len(x), 1 / len(x))
    ax.hist2d(x, y, bins=[across, up], weights=share, cmap=colours)


def _share(
    ax: Axes,
    values: NDArray[Any],
    edges: NDArray[Any],
    weights: NDArray[Any] | None,
    **style: Any,  # noqa: ANN401 - matplotlib's own
) -> None:
    if weights is None:
        weights = np.full(len(values), 1 / len(values))
    ax.hist(values, edges.tolist(), weights=weights, **style)


def _marginal(ax: Axes, data: NDArray[Any], draws: NDArray[Any], edges: NDArray[Any]) -> None:
    _share(ax, data, edges, None, color=DATA, alpha=0.45)
    _share(ax, draws, edges, None, histtype="step", color=DRAWS, lw=1.5)
    ax.set_ylim(top=1.3 * ax.get_ylim()[1])
    ax.set_yticks([])


def _points(columns: dict[str, NDArray[Any]], parts: list[str]) -> NDArray[Any]:
    """Three parts as places in a triangle, the first corner for the first part."""
    return np.stack([columns[part][:POINTS] for part in parts], 1) @ TRIANGLE


def _ternary(ax: Axes, parts: list[str], data: NDArray[Any], draws: NDArray[Any]) -> None:
    """A simplex of three parts: at a corner that part is 1, at the side across from it 0."""
    for k, corner in enumerate(TRIANGLE):
        ax.annotate(f"{parts[k]} = 1", corner, ha="center", va="bottom" if k == 2 else "top",
                    xytext=(0, 3 if k == 2 else -3), textcoords="offset points",
                    fontsize=9)  # fmt: skip
    ring = [*TRIANGLE, TRIANGLE[0]]
    for start, end in pairwise(ring):
        ax.plot(*zip(start, end, strict=True), color="0.3", lw=1)
    for share in (0.25, 0.5, 0.75):
        for k in range(3):
            a, b, c = (TRIANGLE[(k + j) % 3] for j in range(3))
            ends = share * a + (1 - share) * b, share * a + (1 - share) * c
            ax.plot(*zip(*ends, strict=True), color="0.85", lw=0.7, zorder=0)
    ax.plot(*data.T, ".", color=DATA, ms=3, alpha=0.5, label="data")
    ax.plot(*draws.T, ".", color=DRAWS, ms=3, alpha=0.5, label="draws")
    ax.set_aspect("equal")
    ax.axis("off")
    ax.legend(loc="upper left", frameon=False, fontsize=8, markerscale=3)


def _rose(ax: Any, data: NDArray[Any], draws: NDArray[Any], petals: int = 36) -> None:  # noqa: ANN401
    """A wind rose: how often each direction; the area of a petal is its share."""
    edges = np.linspace(-math.pi, math.pi, petals + 1)
    centre = (edges[1:] + edges[:-1]) / 2
    share = [np.histogram(part, edges)[0] / len(part) for part in (data, draws)]
    ax.bar(centre, np.sqrt(share[0]), 2 * math.pi / petals, color=DATA, alpha=0.45, label="data")
    around = np.append(centre, centre[0] + 2 * math.pi)
    ax.plot(around, np.sqrt(np.append(share[1], share[1][0])), color=DRAWS, lw=1.5, label="draws")
    turn_to_map(ax)
    ax.set_yticklabels([])


def turn_to_map(ax: Any) -> None:  # noqa: ANN401 - polar axes have methods that Axes lack
    """North up, clockwise, as on a map."""
    ax.set_theta_zero_location("N")
    ax.set_theta_direction(-1)
    ax.tick_params(labelsize=7)
