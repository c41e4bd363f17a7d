"""log Z of given densities by FAB's protocol, and whether its standard errors are honest.

`python -m experiments.benchmark.given [--short] [--targets T ...] [--seeds S ...] [--workers N]`.
No data: the generator alone learns, at `FitConfig.given()` and the default flow, from draws of the
base measure where there is one, else from three times the unit scale. Then, for each fit, 100
estimates of log Z from 2,000 draws each: the mean absolute error of the first ten is FAB's figure
(Midgley et al. 2023, arXiv:2208.01893), and of all hundred the stated standard error should cover
the truth in about 95 (the log of a mean is too low by half its variance, which is part of it).
Rows are kept in a file as they end, and runs that are there already are not run again.
"""

import argparse
import json
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch

from ebm_pp import EnergyModel, FitConfig, fit, importance_sample
from ebm_pp.density import Sites
from ebm_pp.partition import log_partition_from_weights
from experiments.table import RESULTS, Row, write_table
from models import funnel, many_well, student_t
from models.mixture import MIXTURES, GivenMixture, responsibilities


@dataclass(frozen=True)
class Settings:
    """What is run."""

    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    protocol: int = 2_000  # draws an estimate
    batches: int = 10  # estimates in FAB's figure
    repetitions: int = 100  # estimates for the coverage


@dataclass(frozen=True)
class Given:
    """A density with its exact log Z, and the smallest share of a mode in its true share."""

    model: Callable[[], EnergyModel]
    log_partition: float
    worst_mode: Callable[[Sites, torch.Tensor], float] | None = None
    published: str = ""


def of_mixture(name: str) -> Callable[[Sites, torch.Tensor], float]:
    """Shares by responsibility."""
    law = MIXTURES[name]

    def worst(x: Sites, weights: torch.Tensor) -> float:
        return ((weights @ responsibilities(law, x)) / law.weights).min().item()

    return worst


def of_wells(x: Sites, weights: torch.Tensor) -> float:
    """Shares of the sides of every single well."""
    right = weights @ (x["x"][:, 0::2] > 0).double()
    left_true, right_true = many_well.mode_shares(2).double()
    return torch.minimum(right / right_true, (1 - right) / left_true).min().item()


GIVEN: dict[str, Given] = {
    "nine modes": Given(
        lambda: EnergyModel(GivenMixture(MIXTURES["nine"], 5.0)), 0.0, of_mixture("nine")
    ),
    "forty modes": Given(
        lambda: EnergyModel(GivenMixture(MIXTURES["forty"], 25.0)), 0.0, of_mixture("forty")
    ),
    "funnel, 10": Given(lambda: EnergyModel(funnel.funnel), 0.0),
    "Student-t, 8": Given(lambda: EnergyModel(student_t.student_t), student_t.log_partition()),
    "Many-Well, 8": Given(
        lambda: EnergyModel(many_well.many_well, 8), many_well.log_partition(8), of_wells
    ),
    "Many-Well, 32": Given(
        lambda: EnergyModel(many_well.many_well, 32),
        many_well.log_partition(32),
        of_wells,
        "FAB .032",
    ),
}
LOG = RESULTS / "benchmark_given.jsonl"


def run(name: str, seed: int, short: bool) -> dict[str, Any]:
    """One fit and its estimates."""
    torch.set_num_threads(1)
    settings, given = Settings(), GIVEN[name]
    torch.manual_seed(seed)
    model = given.model()
    changes = {"rounds": 15} if short else {}
    start = time.process_time()
    result = fit(model, None, config=FitConfig.given(seed=seed, progress=False, **changes))
    cpu = time.process_time() - start
    n = settings.protocol * settings.repetitions
    draws = importance_sample(result, n, seed=seed)
    whole = log_partition_from_weights(draws.log_weights)
    parts = [log_partition_from_weights(w) for w in draws.log_weights.split(settings.protocol)]
    errors = torch.tensor([part.value - given.log_partition for part in parts])
    stated = torch.tensor([part.standard_error for part in parts])
    weights = torch.softmax(draws.log_weights.double(), 0)
    return {
        "target": name,
        "seed": seed,
        "error": errors[: settings.batches].abs().mean().item(),
        "bias": whole.value - given.log_partition,
        "bias_se": whole.standard_error,
        "coverage": (errors.abs() < 1.96 * stated).double().mean().item(),
        "ess": whole.ess,
        "pareto_k": whole.pareto_k,
        "worst_mode": given.worst_mode(draws.values, weights) if given.worst_mode else None,
        "cpu": cpu,
        "status": result.status.name.lower(),
    }


def line(name: str, rows: list[dict[str, Any]]) -> Row:
    """Medians over seeds, with smallest and largest."""

    def spread(key: str, digits: int) -> str:
        values = [row[key] for row in rows if row[key] is not None]
        if not values:
            return ""
        low, high = min(values), max(values)
        return f"{median(values):.{digits}f} ({low:.{digits}f}..{high:.{digits}f})"

    return {
        "density": name,
        "seeds": len(rows),
        "mean absolute error": f"{sum(row['error'] for row in rows) / len(rows):.4f}",
        "by seed": spread("error", 4),
        "log Z off, 200,000 draws": spread("bias", 4),
        "its SE": f"{median(row['bias_se'] for row in rows):.4f}",
        "covered by 1.96 SE": spread("coverage", 2),
        "ESS/n": spread("ess", 2),
        "k-hat": spread("pareto_k", 2),
        "worst mode": spread("worst_mode", 2),
        "CPU s": spread("cpu", 0),
        "published": GIVEN[name].published,
        "status": "; ".join(dict.fromkeys(row["status"] for row in rows)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--short", action="store_true", help="one seed, 15 rounds, no table")
    parser.add_argument("--targets", nargs="+", choices=list(GIVEN), default=list(GIVEN))
    parser.add_argument("--seeds", nargs="+", type=int, default=list(Settings.seeds))
    parser.add_argument("--workers", type=int, default=1)
    options = parser.parse_args()
    if options.short:
        for name in options.targets:
            print(run(name, 0, True), flush=True)
        return
    rows = [json.loads(text) for text in LOG.read_text().splitlines()] if LOG.exists() else []
    done = {(row["target"], row["seed"]) for row in rows}
    todo = [(t, s) for t in options.targets for s in options.seeds if (t, s) not in done]
    with ProcessPoolExecutor(options.workers) as pool, LOG.open("a") as log:
        for job in [pool.submit(run, *task, False) for task in todo]:
            rows.append(job.result())
            print(rows[-1], flush=True)
            log.write(json.dumps(rows[-1]) + "\n")
            log.flush()
    groups = [(name, [row for row in rows if row["target"] == name]) for name in GIVEN]
    print(
        write_table(
            "benchmark_given",
            "log Z of given densities: FAB's protocol",
            "python -m experiments.benchmark.given",
            [line(name, found) for name, found in groups if found],
            "`mean absolute error`: of log Z from 2,000 draws, ten estimates a seed, over seeds. "
            "`covered`: share of 100 such estimates whose stated 1.96 standard errors cover the "
            "truth; one fit each, so the fit's own shortcomings are in it. `worst mode`: smallest "
            "share of a mode in its true share, of weighted draws (Many-Well: of one side of one "
            "well). Medians over seeds, smallest and largest in brackets.",
        )
    )


if __name__ == "__main__":
    main()
