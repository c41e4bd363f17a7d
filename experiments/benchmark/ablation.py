"""The default recipe, and what each of its parts is worth: one change a row.

`python -m experiments.benchmark.ablation [--short] [--variants ...] [--workers 2]`. KL from the
truth on held-out rows, ESS/n of the generator, CPU seconds; medians over seeds with their range.
Rows go to a file as they end, and runs that are there already are not run again.
"""

import argparse
import json
import math
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any

import torch

from ebm_pp import EnergyModel, FitConfig, FlowGenerator, fit
from experiments.benchmark.measure import Look
from experiments.benchmark.problems import PROBLEMS
from experiments.benchmark.recipes import on_rows
from experiments.table import RESULTS, Row, write_table
from models.network import Network


@dataclass(frozen=True)
class Settings:
    """What is run."""

    problems: tuple[str, ...] = ("moons", "eight_gaussians", "checkerboard", "many_well_8")
    seeds: tuple[int, ...] = (10, 11)  # not those of the benchmark


@dataclass(frozen=True)
class Variant:
    """One change of the default: of the configuration, the energy network or the flow."""

    config: dict[str, Any] = field(default_factory=dict)
    network: dict[str, Any] = field(default_factory=dict)
    flow: dict[str, Any] = field(default_factory=dict)


VARIANTS: dict[str, Variant] = {
    "default": Variant(),
    "network: no waves": Variant(network={"waves": 0}),
    "network: no wells": Variant(network={"wells": 0}),
    "network: plain": Variant(network={"waves": 0, "wells": 0}),
    "network: frequency 3": Variant(network={"frequency": 3.0}),
    "network: curved in the plane too": Variant(network={"curved": True}),
    "network: not curved": Variant(network={"curved": False}),
    "network: width 64": Variant(network={"width": 64}),
    "network: width 256": Variant(network={"width": 256}),
    "energy_decay 0": Variant({"energy_decay": 0.0}),
    "energy_decay 1e-3": Variant({"energy_decay": 1e-3}),
    "nu 1": Variant({"nu": 1.0}),
    "nu 8": Variant({"nu": 8.0}),
    "base_share 0": Variant({"base_share": 0.0}),
    "base_share .5": Variant({"base_share": 0.5}),
    "K 25": Variant({"energy_steps": 25}),
    "J 10, always": Variant({"generator_steps_max": 10, "ess_target": 1.1}),
    "J 40, always": Variant({"generator_steps": 40, "ess_target": 1.1}),
    "reverse KL": Variant({"generator_loss": "reverse_kl"}),
    "Jensen-Shannon": Variant({"generator_loss": "jensen"}),
    "energy_lr 3e-3": Variant({"energy_lr": 3e-3}),
    "offset by gradient": Variant({"offset": "gradient"}),
    "no moving average": Variant({"average": 0.0}),
    "moving average 1/3": Variant({"average": 1 / 3}),
    "warm start 200": Variant({"warm_start_steps": 200}),
    "batch 256": Variant({"batch": 256}),
    "importance objective": Variant({"objective": "importance"}),
    "flow: 4 splines of 8 bins": Variant(flow={"splines": 4, "bins": 8, "hidden": (64, 64)}),
    "flow: 4 splines of 16 bins": Variant(flow={"splines": 4, "bins": 16, "hidden": (64, 64)}),
}
SHORT = ("default", "network: plain", "energy_decay 0", "reverse KL")
LOG = RESULTS / "benchmark_ablation.jsonl"


def run(name: str, problem_name: str, seed: int) -> dict[str, Any]:
    """One fit."""
    torch.set_num_threads(1)
    variant, problem = VARIANTS[name], PROBLEMS[problem_name](seed)
    torch.manual_seed(seed)
    look = Look(problem, seed, math.inf, curve=False)
    data = {"x": problem.train}
    model = EnergyModel(Network(problem.train, **variant.network))
    config = FitConfig(seed=seed, progress=False, **variant.config)
    result = fit(model, data, FlowGenerator(model, data, **variant.flow), config)
    found = look(on_rows(model), result.generator, last=True)
    kept = {key: found[key] for key in ("kl", "ess", "cpu", "log_z_pareto_k")}
    return {"variant": name, "problem": problem_name, "seed": seed, **kept}


def table(rows: list[dict[str, Any]], settings: Settings) -> str:
    """One row a variant, three columns a problem."""
    lines: list[Row] = []
    for name in VARIANTS:
        line: Row = {"change": name}
        for problem in settings.problems:
            found = [r for r in rows if (r["variant"], r["problem"]) == (name, problem)]
            if found:
                kl, ess, cpu = (sorted(r[key] for r in found) for key in ("kl", "ess", "cpu"))
                line[f"{problem}: KL"] = f"{median(kl):.4f} ({kl[0]:.4f} .. {kl[-1]:.4f})"
                line["ESS/n" + " " * len(line)] = f"{median(ess):.3f}"
                line["CPU s" + " " * len(line)] = round(median(cpu))
        if len(line) > 1:
            lines.append(line)
    return write_table(
        "benchmark_ablation",
        "Ablation of the default recipe",
        "python -m experiments.benchmark.ablation",
        lines,
        f"KL in nats, held-out, paired; median and range over seeds {settings.seeds}, which no "
        "setting was chosen on. One change of the default a row.\nThe defaults: "
        + ", ".join(
            f"{key} {value}"
            for key, value in asdict(FitConfig()).items()
            if key not in ("seed", "progress")
        ),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--short", action="store_true", help="four variants, one problem")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--problems", nargs="+", default=list(Settings.problems))
    parser.add_argument("--seeds", nargs="+", type=int, default=list(Settings.seeds))
    parser.add_argument("--workers", type=int, default=1)
    options = parser.parse_args()
    if options.short:
        options.variants, options.problems, options.seeds = SHORT, ["moons"], [10]
    settings = Settings(tuple(options.problems), tuple(options.seeds))
    lines = LOG.read_text().splitlines() if LOG.exists() else []
    rows = [json.loads(line) for line in lines]
    done = {(r["variant"], r["problem"], r["seed"]) for r in rows}
    todo = [
        key
        for seed in settings.seeds
        for problem in settings.problems
        for name in options.variants
        if (key := (name, problem, seed)) not in done
    ]
    with ProcessPoolExecutor(options.workers) as pool, LOG.open("a") as log:
        for row in pool.map(run, *zip(*todo, strict=True)) if todo else ():
            rows.append(row)
            print(row, flush=True)
            log.write(json.dumps(row) + "\n")
            log.flush()
    print(table(rows, settings))


if __name__ == "__main__":
    main()
