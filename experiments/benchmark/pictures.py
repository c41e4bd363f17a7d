"""Pictures of the benchmark: quality against CPU seconds, and digits beside data."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np

from experiments.benchmark.problems import Rows
from experiments.table import RESULTS
from models.digits import to_pixels

FLOOR = 1e-3  # nats: smaller KLs are within their errors
COLOURS = (
    "#000000", "#777777", "#444444", "#d62728", "#ff9896", "#e377c2", "#1f77b4", "#17becf",
    "#2ca02c", "#bcbd22", "#8c564b", "#c49c94", "#ff7f0e", "#9467bd",
)  # fmt: skip


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
        for recipe, colour in zip(recipes, COLOURS, strict=False):
            _draw(ax, _curves(rows, name, recipe), recipe, colour)
        ax.set_title(name.replace("_", " "))
        ax.set_xscale("log")
        ax.set_yscale("linear" if name == "digits" else "log")
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
    if not seeds:
        return
    log_times = [np.log(curve[:, 0]) for curve in seeds]
    first, last = max(t[0] for t in log_times), min(t[-1] for t in log_times)
    grid = np.linspace(first, max(last, first), 60)
    values = [np.interp(grid, t, curve[:, 1]) for t, curve in zip(log_times, seeds, strict=True)]
    values = np.maximum(values, FLOOR) if np.min(values) > -1 else np.array(values)
    bold = recipe.startswith("ebm_pp")
    ax.plot(np.exp(grid), np.median(values, 0), color=colour, label=recipe,
            linewidth=2.5 if bold else 1.3, zorder=3 if bold else 2)  # fmt: skip
    ax.plot(np.exp(grid[-1]), np.median(values[:, -1]), "o", color=colour, markersize=4)
    ax.fill_between(np.exp(grid), values.min(0), values.max(0), color=colour, alpha=0.12, lw=0)


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
