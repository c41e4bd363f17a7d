"""Cost of a round against dimension, rows of data and size of the energy network.

`python -m experiments.benchmark.scaling [--short]`. Every setting is a process of its own with one
thread: `fit` at the default `FitConfig` on rows of a memory-mapped float32 file, a few rounds of
it, the functions of its loop timed where it calls them. One setting varies, the others stay at
those of `Setting`. Exponents: least squares in log-log over the upper half of a sweep.
"""

import argparse
import dataclasses
import json
import math
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import torch

from ebm_pp import EnergyModel, fit, game, training
from ebm_pp.config import FitConfig
from experiments.table import RESULTS, Row, write_table
from models.network import Network

SWEEPS: dict[str, tuple[int, ...]] = {
    "dimension": (2, 4, 8, 16, 32, 64, 128, 256),
    "rows": (1_000, 3_000, 10_000, 30_000, 100_000, 300_000, 1_000_000, 10_000_000),
    "width": (32, 64, 128, 256, 512, 1024),
    "depth": (1, 2, 3, 4),
}
SHORT: dict[str, tuple[int, ...]] = {
    "dimension": (2, 8, 32),
    "rows": (1_000, 30_000, 1_000_000),
    "width": (64, 256),
}
PARTS = {  # name in the loop of fit: name in the table
    "draw_pool": "pool",
    "energy_steps": "50 energy steps",
    "diagnose_round": "diagnosis",
    "generator_steps": "10 generator steps",
}
OTHERS = ("draw_pool", "energy_steps", "diagnose_round")
ROUND = "round"
MODES = 8


@dataclasses.dataclass(frozen=True)
class Setting:
    """What stays while another varies."""

    dimension: int = 16
    rows: int = 100_000
    width: int = 128
    depth: int = 2
    rounds: int = 5  # the first is not counted
    warm_start_steps: int = 20  # of 500: only the time of one is wanted


def write_rows(path: Path, n: int, d: int) -> None:
    """A mixture of eight Gaussians, sd 1, in pieces."""
    random = np.random.default_rng(0)
    means = 2 * random.standard_normal((MODES, d))
    file = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(n, d))
    for start in range(0, n, 10_000):
        part = file[start : start + 10_000]
        part[:] = means[random.integers(MODES, size=len(part))] + random.standard_normal(
            part.shape
        )


class Clock:
    """CPU ms of every call of some functions."""

    def __init__(self) -> None:
        self.times: dict[str, list[float]] = {}

    def watch(self, module: Any, name: str, inner: Callable[..., Any] | None = None) -> None:
        """Times `module.name`, or what is put in its place."""
        function = inner or getattr(module, name)

        def timed(*args: Any) -> Any:
            start = time.process_time()
            result = function(*args)
            self.times.setdefault(name, []).append(1e3 * (time.process_time() - start))
            return result

        setattr(module, name, timed)


def ten_generator_steps(*args: Any) -> float:
    """Of `fit`'s arguments: J = 10 in every round, also where `fit` would take more or none."""
    the_game, memory, *_, round_ = args
    pool, _ = memory[-1]
    weights = torch.zeros_like(pool.log_q)
    return game.generator_steps(the_game, memory, pool.x, weights, 10, round_)


def measure(path: Path, setting: Setting) -> dict[str, float]:
    """Medians over rounds, ms; memory in MB. Run in a process of its own."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    rows = np.load(path, mmap_mode="r")
    some = torch.from_numpy(np.array(rows[:10_000]))
    model = EnergyModel(Network(some, width=setting.width, depth=setting.depth))
    before, start = _peak(), time.process_time()
    model.stored({"x": rows})
    found = {"check": 1e3 * (time.process_time() - start)}
    clock, ends = Clock(), []
    for name in OTHERS:
        clock.watch(training, name)
    clock.watch(training, "generator_steps", ten_generator_steps)
    clock.watch(game, "_warm_start")

    def end_of_round(r: int, info: dict[str, Any]) -> None:
        ends.append((time.process_time(), time.perf_counter()))
        if r + 1 == setting.rounds:
            raise KeyboardInterrupt

    config = FitConfig(warm_start_steps=setting.warm_start_steps, progress=False)
    fit(model, {"x": rows}, config=config, callback=end_of_round)
    for name, shown in PARTS.items():
        found[shown] = statistics.median(clock.times[name][1:])
    found["warm-start step"] = clock.times["_warm_start"][0] / setting.warm_start_steps
    spans = np.diff(np.array(ends), axis=0)  # from callback to callback, inside fit's loop
    parts = [clock.times["generator_steps"], *(clock.times[name][1:] for name in OTHERS)]
    known = np.sum(parts, axis=0)
    found["rest"] = statistics.median(1e3 * spans[:, 0] - known)
    found[ROUND] = found["rest"] + sum(found[shown] for shown in PARTS.values())
    found["wall / CPU"] = statistics.median(spans[:, 1] / spans[:, 0])
    found["peak MB"] = _peak()
    found["above start MB"] = found["peak MB"] - before
    found["file MB"] = path.stat().st_size / 2**20
    return found


def _peak() -> float:
    """Peak resident memory in MB; getrusage would count the process that started this one."""
    text = Path("/proc/self/status").read_text()
    return int(re.findall(r"VmHWM:\s+(\d+) kB", text)[0]) / 1024


def in_its_own_process(setting: Setting) -> dict[str, float]:
    """`measure`, from a file in a temporary folder."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.npy"
        write_rows(path, setting.rows, setting.dimension)
        command = [sys.executable, "-m", "experiments.benchmark.scaling", "--one", str(path)]
        command.append(json.dumps(dataclasses.asdict(setting)))
        text = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    return json.loads(text.splitlines()[-1])


def exponent(x: list[float], y: list[float]) -> tuple[float, float]:
    """Slope of log y over log x and its standard error, over the upper half of the points."""
    upper = slice(len(x) // 2 if len(x) > 4 else 0, None)
    u, v = np.log(x[upper]), np.log(np.maximum(y[upper], 1e-9))
    u = u - u.mean()
    slope = u @ v / (u @ u)
    residual = v - v.mean() - slope * u
    error = math.sqrt(residual @ residual / (len(u) - 2) / (u @ u)) if len(u) > 2 else math.nan
    return slope, error


def _brief(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _power(x: list[float], y: list[float]) -> str:
    slope, error = exponent(x, y)
    return f"{slope:.2f}" + ("" if math.isnan(error) else f" ± {error:.2f}")


def picture(found: dict[str, dict[int, dict[str, float]]], path: Path) -> None:
    """CPU ms of each part above, memory below."""
    import matplotlib.pyplot as plt

    sweeps = [name for name in found if name != "depth"]
    figure, axes = plt.subplots(
        2, len(sweeps), figsize=(4.9 * len(sweeps), 8.2), layout="constrained",
        height_ratios=(2, 1), sharey="row",
    )  # fmt: skip
    labels = {"rows": "rows of data", "width": "units of a hidden layer"}
    markers = "osD^vX"
    for column, sweep in enumerate(sweeps):
        x = list(found[sweep])
        top, bottom = axes[0, column], axes[1, column]
        for name, marker in zip((ROUND, *PARTS.values(), "rest"), markers, strict=True):
            y = [found[sweep][v][name] for v in x]
            style = {"color": "black", "lw": 2.2} if name == ROUND else {"lw": 1.4}
            top.plot(x, y, marker=marker, ms=5, label=f"{name}: {_power(x, y)}", **style)
        top.set(xscale="log", yscale="log", ylabel="CPU ms" if not column else "")
        top.legend(title="part: exponent of its upper half", fontsize=8, title_fontsize=8,
                   loc="upper left")  # fmt: skip
        memory = {name: [found[sweep][v][name] for v in x] for name in MEMORY}
        for (name, y), style in zip(memory.items(), ("-ok", "--C7"), strict=True):
            bottom.plot(x, y, style, ms=5, label=MEMORY[name])
        bottom.set(xscale="log", yscale="log", ylabel="MB" if not column else "")
        bottom.set_xlabel(labels.get(sweep, sweep))
        bottom.legend(fontsize=8, loc="best")
        for ax in (top, bottom):
            ax.set_xticks(x, [_short(v) for v in x])
            ax.minorticks_off()
            ax.grid(alpha=0.3)
    low, high = axes[0, 0].get_ylim()
    axes[0, 0].set_ylim(low, high * (high / low) ** 0.45)  # room for the legends
    figure.savefig(path, dpi=100)
    plt.close(figure)


MEMORY = {"above start MB": "peak memory above that at the start", "file MB": "file of the rows"}


def _short(value: float) -> str:
    """A label of an axis: 256, 300k, 1M."""
    unit, letter = (1e6, "M") if value >= 1e6 else (1, "") if value % 1e3 else (1e3, "k")
    return f"{value / unit:g}{letter}"


def table(found: dict[str, dict[int, dict[str, float]]]) -> tuple[list[Row], str]:
    """A row per setting, and the exponents as text below."""
    rows: list[Row] = [
        {"varied": sweep, "value": value, **{k: _brief(v) for k, v in numbers.items()}}
        for sweep, by_value in found.items()
        for value, numbers in by_value.items()
    ]
    names = [ROUND, *PARTS.values(), "rest", "warm-start step", "check", "above start MB"]
    lines = ["| exponent of | " + " | ".join(found) + " |", "|" + " --- |" * (len(found) + 1)]
    for name in names:
        powers = [
            _power(list(by_value), [numbers[name] for numbers in by_value.values()])
            for by_value in found.values()
        ]
        lines.append(f"| {name} | " + " | ".join(powers) + " |")
    return rows, "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--short", action="store_true", help="few settings, three rounds each")
    parser.add_argument("--one", nargs=2, metavar=("FILE", "SETTING"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        path, text = options.one
        print(json.dumps(measure(Path(path), Setting(**json.loads(text)))))
        return
    mpl.use("agg")
    torch.set_num_threads(1)
    common = Setting(rounds=3, warm_start_steps=5) if options.short else Setting()
    found: dict[str, dict[int, dict[str, float]]] = {}
    for sweep, values in (SHORT if options.short else SWEEPS).items():
        found[sweep] = {}
        for value in values:
            setting = dataclasses.replace(common, **{sweep: value})
            found[sweep][value] = in_its_own_process(setting)
            print(sweep, value, {k: _brief(v) for k, v in found[sweep][value].items()}, flush=True)
    name = "benchmark_scaling" + ("_short" if options.short else "")
    rows, exponents = table(found)
    picture(found, RESULTS / f"{name}.png")
    print(write_table(name, "Cost of a round", _command(options.short), rows, NOTES + exponents))


def _command(short: bool) -> str:
    return "python -m experiments.benchmark.scaling" + (" --short" if short else "")


NOTES = f"""
CPU ms, medians over rounds but the first. One setting varies, the others are {Setting.dimension}
dimensions, {Setting.rows:,} rows, width {Setting.width}, depth {Setting.depth}; all else is the
default `FitConfig` and the default flow, whose size is fixed. `round`: the parts and the `rest`,
which scores the pool with the new energy; J is 10 in every round. `check`: the pass over all rows
before the fit; `warm-start step`: one of 500. `above start MB`: peak resident memory of the
process less that before the check; pages of the file count while they are mapped. Rows are in a
memory-mapped float32 file; seed 0. Below {FitConfig.pool:,} rows the pool holds fewer rows.
`wall / CPU` above 1: other processes were on the same cores, which costs CPU time too (caches).

Exponents: least squares in log-log over the upper half of each sweep (all of `depth`), ± one
standard error.

"""

if __name__ == "__main__":
    main()
