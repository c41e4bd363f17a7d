"""Pictures of the energy along one coordinate and over two.

A coordinate is a number of a site, named as in `columns`: `speed`, `x[1]`.
"""

import math
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from ebm_pp.circle import from_radians
from ebm_pp.data import columns
from ebm_pp.density import EnergyModel, Sites
from ebm_pp.errors import DataError
from ebm_pp.plots_sites import (
    POINTS,
    Canvas,
    as_written,
    axes_or_new,
    figure_or_new,
    kind_of,
    labels_of,
    numbers_of,
    scale_axes,
    site_of,
    turn_to_map,
)
from ebm_pp.pool import n_rows
from ebm_pp.sampling import log_density_of

CELLS = 120  # of a map, each way
SEEN = 12.0  # nats below the highest density: colours are kept for what is within them


@as_written
@torch.no_grad()
def plot_energy_slice(
    model: EnergyModel,
    data: Sites,
    coordinate: str,
    rows: int = 6,
    *,
    figure: Canvas | None = None,
) -> Figure:
    """The energy along one coordinate, every other one held at a row of the data.

    An angle is drawn twice, along a line and round the circle.

    Args:
        model: the program.
        data: rows to hold the others at: `rows` of them, evenly spaced.
        coordinate: a number of a site: `speed`, or `x[1]`.
        rows: curves.
        figure: to draw on; by default a new one.

    Raises:
        ValueError: no such coordinate, or one of a simplex or matrix, which can't move alone.
    """
    _require_free(model, data, coordinate)
    angle = kind_of(model, coordinate) == "angle"
    along = _grid(model, coordinate, data, 361)
    chosen = np.linspace(0, n_rows(data) - 1, rows).round().astype(int)
    figure = figure_or_new(figure, (10.0, 4.2) if angle else (6.0, 4.0))
    ax = figure.add_subplot(1, 1 + angle, 1)
    polar = figure.add_subplot(1, 2, 2, projection="polar") if angle else None
    colours = plt.get_cmap("viridis")(np.linspace(0, 0.9, rows))
    for colour, row in zip(colours, chosen, strict=True):
        x = _moved(model, data, int(row), {coordinate: along})
        energy = model.energy(x).cpu().numpy()
        ax.plot(np.degrees(along) if angle else along, energy - energy.min(), color=colour, lw=1.4)
        if polar:
            polar.plot(along, energy - energy.min(), color=colour, lw=1.2)
    ax.set_ylabel("energy above its minimum (nats)")
    ax.set_xlabel(f"{coordinate} (degrees)" if angle else coordinate)
    ax.set_title(f"others held at {rows} rows of data", fontsize=10)
    scale_axes(ax, model, x=coordinate)
    if polar:
        ax.set_xticks([-180, -90, 0, 90, 180])
        turn_to_map(polar)
        polar.set_title("the same round the circle", fontsize=10)
    return figure.figure


@as_written
@torch.no_grad()
def plot_energy_map(
    model: EnergyModel,
    data: Sites,
    x: str,
    y: str,
    *,
    margin: float = 0.15,
    ax: Axes | None = None,
) -> Figure:
    """The energy over two coordinates, with contours of the density.

    Colours end at the highest energy within 12 nats of the highest density: beyond, nobody looks.
    Other coordinates are held at the row of data of median density. Contours are log p~ at 1, 2,
    4 and 8 nats below its highest on the map. Data are shown if there are no other coordinates.

    Args:
        model: the program.
        data: rows of data, which set the map's limits.
        x: a number of a site: `speed`, or `x[1]`.
        y: another.
        margin: how far to look beyond the data, as a share of their range; only where the support
            is unbounded. A large one shows whether the energy leaks.
        ax: to draw on; by default a new figure's.

    Raises:
        ValueError: no such coordinate, or one of a simplex or matrix, which can't move alone.
    """
    for coordinate in (x, y):
        _require_free(model, data, coordinate)
    figure, ax = axes_or_new(ax, (5.6, 4.6))
    across, up = (_grid(model, name, data, CELLS, margin) for name in (x, y))
    first, second = np.meshgrid(across, up)
    row = int(log_density_of(model, data).sort().indices[n_rows(data) // 2])
    cells = _moved(model, data, row, {x: first.ravel(), y: second.ravel()})
    energy = model.energy(cells).cpu().double().reshape(first.shape)
    log_density = log_density_of(model, cells).cpu().double().reshape(first.shape)
    if not log_density.isfinite().any():
        raise DataError(
            "plot_energy_map: the density is a number nowhere on the map; expected some.\n  Most "
            "likely rows far from the base measure: diagnose(fit, rows) says where."
        )
    seen = log_density > log_density[log_density.isfinite()].max() - SEEN
    above = (energy - energy[seen].min()).clamp(
        0.0, float((energy - energy[seen].min())[seen].max())
    )
    mesh = ax.pcolormesh(across, up, above, cmap="viridis_r", shading="nearest", rasterized=True)
    ax.figure.colorbar(mesh, ax=ax, label="energy above its minimum (nats)")
    levels = [float(log_density.max()) - below for below in (8.0, 4.0, 2.0, 1.0)]
    ax.contour(across, up, log_density, levels, colors="0.15", linewidths=0.8, linestyles="-")
    every = numbers_of(model, data, list(data))
    if set(every) == {x, y}:
        some = slice(0, POINTS)
        ax.plot(every[x][some], every[y][some], ".", color="white", ms=2, alpha=0.5)
    ax.set(xlabel=x, ylabel=y)
    scale_axes(ax, model, x=x, y=y)
    return figure


def _grid(
    model: EnergyModel, label: str, data: Sites, n: int, margin: float = 0.15
) -> NDArray[Any]:
    """Places along a coordinate, inside its support."""
    column = numbers_of(model, data, [site_of(model, label).name])[label]
    kind = kind_of(model, label)
    if kind == "angle":
        return np.linspace(-math.pi, math.pi, n)
    low, high = np.quantile(column, [0.001, 0.999])
    if kind == "positive":
        return np.geomspace(low, high, n)
    beyond = margin * (high - low) if kind == "real" else 0.0
    return np.linspace(low - beyond, high + beyond, n)


def _moved(model: EnergyModel, data: Sites, row: int, to: dict[str, NDArray[Any]]) -> Sites:
    """One row of data many times over, some of its coordinates at other values."""
    n = len(next(iter(to.values())))
    x = {name: value[row].expand(n, *value.shape[1:]).clone() for name, value in data.items()}
    for label, values in to.items():
        site = site_of(model, label)
        number, moved = labels_of(model)[site.name].index(label), torch.from_numpy(values)
        if site.circular:
            moved = from_radians(moved, site.period)
        x[site.name].view(n, -1)[:, number] = moved.to(x[site.name])
    return x


def _require_free(model: EnergyModel, data: Sites, label: str) -> None:
    """The coordinate exists and can move without the others of its site."""
    every = columns({name: data[name] for name in model.sites})
    free = [name for name in every if kind_of(model, name) not in ("simplex", "matrix")]
    if label not in free:
        why = "cannot move alone" if label in every else "is no coordinate of this program"
        raise ValueError(f"{label!r} {why}; expected one of {free}.")
