"""Pictures of the benchmark: quality against CPU seconds, and digits beside data."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from experiments.benchmark.problems import Rows
from experiments.table import RESULTS
from models.digits import to_pixels

FLOOR = 1e-3  # nats: smaller KLs are within their errors
COLOURS = {
    "ebm_pp": "#000000",
    "ebm_pp fast": "#777777",
    "ebm_pp thorough": "#444444",
    "finn2016": "#d62728",
    "NCE, static noise": "#ff9896",
    "NCE, frozen flow": "#e377c2",
    "flow alone": "#1f77b4",
    "ebmkit NCE": "#17becf",
    "ebmkit NCE, plain network": "#9edae5",
    "ebmkit energy discrepancy": "#2ca02c",
    "torchebm CD": "#8c564b",
    "torchebm PCD": "#c49c94",
    "torchebm sliced score matching": "#ff7f0e",
    "torchebm denoising score matching": "#9467bd",
    "zuko flow alone": "#aec7e8",
}


def curves(
    rows: Sequence[dict[str, Any]], problems: Sequence[str], recipes: Sequence[str], path: Path
) -> None:
    """KL against CPU seconds, one panel a problem: median over seeds, and their range."""
    mpl.use("agg")
    import matplotlib.pyplot as plt

    shown = [name for name in problems if any(_curves(rows, name, r) for r in recipes)]
    if not shown:
        return
    columns = min(3, len(shown))
    height = -(-len(shown) // columns)
    figure, axes = plt.subplots(
        height, columns, figsize=(4.6 * columns, 3.6 * height + 1), squeeze=False,
        layout="constrained",
    )  # fmt: skip
    for name, ax in zip(shown, axes.flat, strict=False):
        for recipe in recipes:
            _draw(ax, _curves(rows, name, recipe), recipe, COLOURS.get(recipe, "#bcbd22"))
        ax.set_title(name.replace("_", " "))
        ax.set_xscale("log")
        ax.set_yscale("linear" if name == "digits" else "log")
        for axis in (ax.xaxis,) if name == "digits" else (ax.xaxis, ax.yaxis):
            axis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=12))
            axis.set_major_formatter(StrMethodFormatter("{x:g}"))
            axis.set_minor_formatter(NullFormatter())
        ax.set_xlabel("CPU seconds of training")
        unknown = name == "digits"
        ax.set_ylabel("-log-likelihood / nats" if unknown else "KL(truth || model) / nats")
        ax.grid(alpha=0.3, which="both", linewidth=0.4)
    for ax in axes.flat[len(shown) :]:
        ax.axis("off")
    handles = {
        label: handle
        for ax in axes.flat
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True)
    }
    names = [recipe for recipe in recipes if recipe in handles]
    figure.legend(
        [handles[name] for name in names],
        names,
        loc="outside lower center",
        ncols=(1, 2, 4)[columns - 1],
        fontsize=9,
    )
    figure.savefig(path, dpi=100)
    plt.close(figure)


def _curves(rows: Sequence[dict[str, Any]], name: str, recipe: str) -> list[np.ndarray]:
    """Of every seed (time, KL), shape (k, 2)."""
    found = []
    for row in rows:
        if (row["problem"], row["recipe"]) == (name, recipe) and row.get("curve"):
            points = [(p["cpu"], p["kl"]) for p in row["curve"] if p["kl"] is not None]
            if len(points) > 1:
                found.append(np.array(points))
    return found


def _draw(ax: Any, seeds: list[np.ndarray], recipe: str, colour: str) -> None:
    """Median and range of the looks on the way; a dot, joined by dots, for what was returned."""
    if not seeds:
        return
    ends = np.array([curve[-1] for curve in seeds])
    ends[:, 1] = np.maximum(ends[:, 1], FLOOR)
    bold = recipe.startswith("ebm_pp")
    line = {"color": colour, "linewidth": 2.5 if bold else 1.3, "zorder": 3 if bold else 2}
    end = np.median(ends, 0)
    spread = np.abs(np.array([[ends[:, 1].min()], [ends[:, 1].max()]]) - end[1])
    ax.errorbar(*end, yerr=spread, fmt="o", color=colour, markersize=4, elinewidth=1, zorder=3)
    log_times = [np.log(curve[:-1, 0]) for curve in seeds]
    first, last = max(t[0] for t in log_times), min(t[-1] for t in log_times)
    grid = np.linspace(first, max(last, first), 60)
    values = np.maximum(
        [np.interp(grid, t, curve[:-1, 1]) for t, curve in zip(log_times, seeds, strict=True)],
        FLOOR,
    )
    middle, times = np.median(values, 0), np.exp(grid)
    ax.plot(times, middle, label=recipe, **line)
    ax.plot([times[-1], end[0]], [middle[-1], end[1]], **line | {"linestyle": ":"})
    ax.fill_between(times, values.min(0), values.max(0), color=colour, alpha=0.12, lw=0)


def digits(data: Rows, draws: Rows, side: int = 8) -> None:
    """Images of the data beside draws of the fitted model: results/benchmark_digits.png."""
    mpl.use("agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(8, 4.3), layout="constrained")
    for ax, rows, title in ((axes[0], data, "data"), (axes[1], draws, "draws")):
        pixels = to_pixels({"x": rows[: side**2]}).clamp(0, 1).reshape(side, side, 8, 8)
        tiled = np.pad(pixels.numpy(), ((0, 0), (0, 0), (1, 1), (1, 1)), constant_values=0.3)
        ax.imshow(tiled.transpose(0, 2, 1, 3).reshape(10 * side, 10 * side), cmap="gray")
        ax.set_title(title)
        ax.axis("off")
    figure.savefig(RESULTS / "benchmark_digits.png", dpi=100)
    plt.close(figure)
