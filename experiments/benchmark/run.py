"""Every recipe on every data set, side by side: `make bench` and `make bench-full`.

`python -m experiments.benchmark.run [--problems P ...] [--recipes R ...] [--seeds S ...]
[--workers N] [--seconds S] [--peer-share X] [--name NAME] [--full] [--missing] [--table]`.

Rows are appended to results/NAME.jsonl (NAME is benchmark) as runs end, so that a run that is cut
loses nothing; the latest row of a problem, recipe and seed counts. `--missing` runs only what has
no row yet, `--table` runs nothing. Then the table and the pictures are written from all rows.
Recipes without an end of their own are given as many CPU seconds as `ebm_pp` took for the same
problem and seed. Each process has one thread and flushes denormal numbers.
"""

import argparse
import json
import math
import multiprocessing
import os
import time
import traceback
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from experiments.benchmark import pictures, wind
from experiments.benchmark.measure import Look
from experiments.benchmark.peers import PEERS
from experiments.benchmark.problems import HIGH, PLANAR, PROBLEMS
from experiments.benchmark.recipes import RECIPES, Recipe
from experiments.benchmark.tables import write
from experiments.table import RESULTS, commit

OURS = "ebm_pp"
ALL: dict[str, Recipe] = {**RECIPES, **PEERS}


@dataclass(frozen=True)
class Settings:
    """What is run; the defaults are those of `make bench`.

    problems: names in PROBLEMS, or "wind".
    recipes: names in ALL.
    seeds: of data, parameters and training.
    workers: processes.
    seconds: CPU seconds of recipes without an end of their own where `ebm_pp` has no row yet.
    peer_share: CPU seconds of peers, in those of `ebm_pp`.
    name: of the results; may be a path elsewhere, for a trial.
    """

    problems: tuple[str, ...] = ("moons", "eight_gaussians", "many_well_8")
    recipes: tuple[str, ...] = tuple(ALL)
    seeds: tuple[int, ...] = (0,)
    workers: int = 2
    seconds: float = 20.0
    peer_share: float = 1.0
    name: str = "benchmark"


FULL = Settings(problems=(*PLANAR, *HIGH, "wind"), seeds=(0, 1, 2))

Task = tuple[str, str, int]  # problem, recipe, seed


def run_one(task: Task, budget: float) -> dict[str, Any]:
    """One row: a recipe on a problem with a seed. What went wrong is its status."""
    name, recipe, seed = task
    row: dict[str, Any] = {"problem": name, "recipe": recipe, "seed": seed, "budget": budget}
    start = time.perf_counter()
    try:
        if name == "wind":
            row |= wind.RECIPES[recipe](seed, budget)
        else:
            look = Look(PROBLEMS[name](seed), seed, budget)
            row |= ALL[recipe](look.problem, seed, look)
            row |= {"curve": look.curve, "measuring": look.measuring}
            if name == "digits" and recipe == OURS and seed == 0 and look.draws is not None:
                pictures.digits(look.problem.train, look.draws)
    except ModuleNotFoundError as error:
        row["status"] = f"not installed: {error.name}"
    except Exception as error:  # a row of the table, not the end of the others
        traceback.print_exc()
        row["status"] = f"failed: {type(error).__name__}: {str(error).splitlines()[0][:80]}"
    row["all_wall"] = time.perf_counter() - start
    return row


def prepare() -> None:
    """One thread a process; no slow arithmetic on numbers below 1e-38.

    The first optimiser of a process imports for a second, which is no recipe's.
    """
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    torch.optim.Adam([torch.zeros(1, requires_grad=True)])


def read_rows(path: Path) -> dict[Task, dict[str, Any]]:
    """The latest row of every task."""
    if not path.exists():
        return {}
    rows = map(json.loads, path.read_text().splitlines())
    return {(row["problem"], row["recipe"], row["seed"]): row for row in rows}


def run(tasks: Iterable[Task], settings: Settings, version: str) -> None:
    """Run tasks in processes, appending every row as it ends."""
    path = RESULTS / f"{settings.name}.jsonl"
    known = read_rows(path)
    with ProcessPoolExecutor(
        settings.workers, multiprocessing.get_context("spawn"), initializer=prepare
    ) as pool:
        jobs = []
        for task in tasks:
            name, recipe, seed = task
            ours = known.get((name, OURS, seed), {}).get("cpu", settings.seconds)
            share = settings.peer_share if recipe in PEERS else 1.0
            jobs.append(pool.submit(run_one, task, share * ours))
        for job in as_completed(jobs):
            row = _plain(job.result()) | {"commit": version}
            with path.open("a") as file:
                file.write(json.dumps(row) + "\n")
            shown = ("problem", "recipe", "seed", "kl", "cpu", "status")
            print({key: row[key] for key in shown if key in row}, flush=True)


def _plain(value: Any) -> Any:
    """JSON has no nan or infinity; five digits are enough for the curves."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return float(f"{value:.5g}") if math.isfinite(value) else None
    return value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--name", help="of the results; a path elsewhere for a trial")
    parser.add_argument("--full", action="store_true", help="the long version")
    parser.add_argument("--problems", nargs="+", choices=[*PROBLEMS, "wind"])
    parser.add_argument("--recipes", nargs="+", choices=list(ALL))
    parser.add_argument("--seeds", nargs="+", type=int)
    parser.add_argument("--workers", type=int)
    parser.add_argument("--seconds", type=float)
    parser.add_argument("--peer-share", type=float)
    parser.add_argument("--missing", action="store_true", help="only what has no row yet")
    parser.add_argument("--table", action="store_true", help="only write table and pictures")
    options = vars(parser.parse_args())
    full, missing, table = (options.pop(name) for name in ("full", "missing", "table"))
    chosen = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in options.items()
        if value is not None
    }
    settings = replace(FULL if full else Settings(), **chosen)
    os.environ["OMP_NUM_THREADS"] = "1"
    prepare()
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{settings.name}.jsonl"
    known = read_rows(path) if missing else {}
    tasks = [
        (name, recipe, seed)
        for seed in settings.seeds
        for name in settings.problems
        for recipe in settings.recipes
        if (name != "wind" or recipe in wind.RECIPES) and (name, recipe, seed) not in known
    ]
    if not table:
        version = commit()
        # Ours first: it sets the time of the others.
        for ours in (True, False):
            run([task for task in tasks if (task[1] == OURS) == ours], settings, version)
    rows = [row for row in read_rows(path).values() if row["recipe"] in ALL]
    print(write(settings.name, rows, list(ALL), [*PROBLEMS, "wind"]))
    for group, problems in {"planar": PLANAR, "high": HIGH}.items():
        pictures.curves(rows, problems, list(ALL), RESULTS / f"{settings.name}_{group}.png")


if __name__ == "__main__":
    main()
