"""Effective draws per CPU second: the learned proposal against NUTS, on the same density.

`python -m experiments.benchmark.sampling [--short]`. Energies are fitted to two moons and to
Many-Well-8 draws; a mixture of nine modes, Many-Well-32 and a funnel are given. On each density:

* `importance_sample`: n ESS/n effective draws, by the weights (Kong 1992);
* `independence_mh`: chains of the same draws;
* `neutra_hmc`: Pyro's NUTS in the generator's latent space;
* Pyro's NUTS, with or without `jit_compile`, whichever was faster in a short trial;
* NumPyro's NUTS on the same density in JAX (nuts.py), 4 chains one after the other or vectorised,
  and many short chains vectorised.

Effective draws of chains are the smaller of ArviZ's bulk and tail ESS in the worst coordinate.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import matplotlib as mpl
import numpy as np
import torch
from arviz_stats.base import array_stats
from jaxtyping import Bool, Float
from torch import Tensor

from ebm_pp import EnergyModel, FitConfig, FlowGenerator, fit, importance_sample
from ebm_pp.chains import independence_mh
from ebm_pp.neutra import neutra_hmc
from ebm_pp.pareto import threshold
from ebm_pp.partition import log_partition_from_weights
from ebm_pp.sampling import seeded
from ebm_pp.training import Fit
from experiments.benchmark.nuts import ONE_CORE, Run, faster_pyro_nuts, numpyro_nuts
from experiments.table import RESULTS, Row, markdown, write_table
from models import funnel, many_well, planar
from models.mixture import MIXTURES, GivenMixture, responsibilities
from models.network import Network

CONVERGED = 1.01  # the largest r-hat of chains that have converged (Vehtari et al. 2021)
OURS = ("importance_sample", "independence_mh")
COMMAND = "python -m experiments.benchmark.sampling"


@dataclass(frozen=True)
class Settings:
    """What is run."""

    densities: tuple[str, ...] = ("moons", "many_well_8", "nine", "many_well_32", "funnel")
    seeds: tuple[int, ...] = (0, 1, 2)
    train: int = 8192  # rows
    rounds: int = FitConfig.rounds
    ours: int = 100_000  # draws, in 4 chains for independence MH
    neutra: tuple[int, int] = (200, 250)  # warm-up and kept steps of each of 4 chains
    pyro: tuple[int, int] = (500, 500)
    numpyro: tuple[int, int] = (1000, 5000)
    many: tuple[int, int, int] = (100, 500, 500)  # chains, and their steps


SHORT = replace(
    Settings(),
    densities=("moons", "many_well_8"),
    seeds=(0,),
    rounds=15,
    neutra=(20, 20),
    pyro=(50, 50),
    numpyro=(500, 1000),
    many=(20, 200, 200),
)


class Case(NamedTuple):
    """A density with its trained proposal.

    parts: tells of each draw `(n, d)` in which of the regions it lies that must not be lost.
    starts: gives first states of chains, `(chains, d)`.
    """

    fit: Fit
    training: float  # CPU seconds
    parts: Callable[[Tensor], Tensor]
    starts: Callable[[int], Tensor]


def moon(x: Float[Tensor, "n 2"]) -> Bool[Tensor, "n 2"]:
    """Which of the two moons is nearer."""
    angle = torch.linspace(0, torch.pi, 200)
    upper = torch.stack([angle.cos() - 0.5, angle.sin() - 0.25], -1)
    near = (torch.cdist(x, upper).amin(-1) < torch.cdist(x, -upper).amin(-1)).unsqueeze(-1)
    return torch.cat([near, ~near], -1)


def wells(x: Float[Tensor, "n d"]) -> Bool[Tensor, "n r"]:
    """All sign patterns of the wells; of more than eight coordinates, either side of each."""
    if x.shape[1] > 8:
        return torch.cat([x[:, 0::2] > 0, x[:, 0::2] <= 0], -1)
    pairs = x.shape[1] // 2
    return torch.nn.functional.one_hot(many_well.modes({"x": x}), 2**pairs).bool()


def nine(x: Float[Tensor, "n 2"]) -> Bool[Tensor, "n 9"]:
    """Which mode is the likeliest."""
    at = responsibilities(MIXTURES["nine"], {"x": x}).argmax(-1)
    return torch.nn.functional.one_hot(at, 9).bool()


def neck(x: Float[Tensor, "n d"]) -> Bool[Tensor, "n 2"]:
    """The funnel's neck and mouth, each beyond one standard deviation of x_0."""
    return torch.stack([x[:, 0] < -funnel.SCALE, x[:, 0] > funnel.SCALE], -1)


def train(name: str, seed: int, settings: Settings) -> Case:
    """Fits the energy and its proposal, or only the proposal of a given density."""
    config = FitConfig(seed=seed, rounds=settings.rounds, progress=False)
    data, generator, model = None, None, None
    torch.manual_seed(seed)
    if name == "moons":
        data, parts = planar.moons(settings.train, 100 + seed), moon
    elif name == "many_well_8":
        data, parts = many_well.draws(settings.train, 100 + seed), wells
    elif name == "nine":
        model, parts = EnergyModel(GivenMixture(MIXTURES["nine"], 8.0)), nine
    elif name == "many_well_32":
        model, parts = EnergyModel(many_well.many_well, 32), wells
        config = replace(config, rounds=2 * config.rounds)
    else:
        model, parts = EnergyModel(funnel.funnel), neck
    if data is not None:
        model = EnergyModel(Network(data["x"]))
    elif not model.proper:
        generator = FlowGenerator(model, scale=3.0)
    begin = time.process_time()
    result = fit(model, data, generator, config)
    training = time.process_time() - begin

    def starts(n: int) -> Tensor:
        with seeded(300 + seed):
            if data is None:  # the peers' own default
                return 4 * torch.rand(n, result.model.dim) - 2
            return data["x"][torch.randperm(len(data["x"]))[:n]].clone()

    return Case(result, training, parts, starts)


def arms(case: Case, settings: Settings, seed: int) -> Iterator[tuple[str, Callable[[], Run]]]:
    """Every chain sampler by name."""

    def walk() -> Run:
        begin = time.process_time()
        chains = independence_mh(case.fit, settings.ours, seed=seed)
        return Run(chains.values["x"], time.process_time() - begin, 0.0, 0.0, 0)

    def neutra() -> Run:
        warmup, steps = settings.neutra
        begin = time.process_time()
        chains = neutra_hmc(case.fit, 4 * steps, 4, warmup, seed=seed)
        spent = time.process_time() - begin
        return Run(chains.values["x"], spent, 0.0, 0.0, chains.divergences)

    model, four = case.fit.model, case.starts(4)
    n, *steps = settings.many
    in_jax = partial(numpyro_nuts, model, seed=seed)
    yield "independence_mh", walk
    yield "neutra_hmc", neutra
    yield "Pyro NUTS", lambda: faster_pyro_nuts(model, four, *settings.pyro, seed)
    yield "NumPyro NUTS", lambda: in_jax(four, *settings.numpyro, vectorised=False)
    yield "NumPyro NUTS, vectorised", lambda: in_jax(four, *settings.numpyro, vectorised=True)
    yield f"NumPyro NUTS, {n} chains", lambda: in_jax(case.starts(n), *steps, vectorised=True)


def run(name: str, seed: int, settings: Settings) -> list[Row]:
    """All samplers on one density."""
    case = train(name, seed, settings)
    importance_sample(case.fit, 10_000, seed=1)  # warm caches: the others' are warm too
    begin = time.process_time()
    draws = importance_sample(case.fit, settings.ours, seed=seed)
    spent = time.process_time() - begin
    log_z = log_partition_from_weights(draws.log_weights)
    weights = draws.log_weights.double().softmax(0).float()
    shares = weights @ case.parts(draws.values["x"]).float()
    shared: Row = {"density": name, "seed": seed, "training, CPU s": case.training}
    rows = [
        shared
        | {"method": "importance_sample", "draws": settings.ours}
        | {"effective": settings.ours * log_z.ess, "k-hat": log_z.pareto_k}
        | {"smallest share": 1.0, "CPU s": spent, "fixed CPU s": 0.0}
        | {"converged": log_z.pareto_k <= threshold(settings.ours)}
    ]
    print(rows[-1], flush=True)
    for method, sample in arms(case, settings, seed):
        try:
            found = sample()
        except ImportError:
            rows.append(shared | {"method": method, "note": "not installed"})
            continue
        found_shares = case.parts(found.values.flatten(0, 1)).float().mean(0)
        rows.append(
            shared
            | {"method": method, "draws": found.values.shape[:2].numel()}
            | judged(found, (found_shares / shares).min().item())
        )
        print(rows[-1], flush=True)
    return rows


def judged(run: Run, smallest: float) -> Row:
    """Effective draws of chains, and whether they can be believed."""
    values, axes = run.values.double().numpy(), {"chain_axis": 0, "draw_axis": 1}
    kinds = ({"method": "bulk"}, {"method": "tail", "prob": (0.05, 0.95)})
    ess = min(float(np.min(array_stats.ess(values, **kind, **axes))) for kind in kinds)
    rhat = float(np.max(array_stats.rhat(values, **axes)))
    return {
        "effective": ess,
        "r-hat": rhat,
        "smallest share": smallest,
        "divergences": run.divergences,
        "CPU s": run.sampling,
        "fixed CPU s": run.warmup + run.compiling,
        "warm-up CPU s": run.warmup,
        "compiling CPU s": run.compiling,
        "converged": rhat <= CONVERGED and smallest >= 0.2,
    }


def rate(row: Row) -> float:
    """Effective draws per CPU second of drawing alone."""
    return float(row["effective"]) / float(row["CPU s"])


def rate_all_in(row: Row) -> float:
    """The same with what the method itself spends before: training, or warm-up and compiling."""
    fixed = row["training, CPU s"] if row["method"] in OURS else row["fixed CPU s"]
    return float(row["effective"]) / (float(row["CPU s"]) + float(fixed))


def break_even(ours: Row, theirs: Row) -> float:
    """How many effective draws it takes until training has paid, against a warmed-up rival."""
    saved = 1 / rate(theirs) - 1 / rate(ours)
    ahead = float(ours["training, CPU s"]) - float(theirs["fixed CPU s"])
    return max(ahead, 0.0) / saved if saved > 0 else float("inf")


def summary(rows: list[Row]) -> list[Row]:
    """Medians over seeds."""
    table: list[Row] = []
    for density, method in dict.fromkeys((row["density"], row["method"]) for row in rows):
        mine = [row for row in rows if (row["density"], row["method"]) == (density, method)]
        line: Row = {"density": density, "method": method}
        if "note" in mine[0]:
            table.append(line | {"draws / CPU s": mine[0]["note"]})
            continue
        best = {r["seed"]: r for r in rows if (r["density"], r["method"]) == (density, OURS[0])}
        chained = {r["seed"]: r for r in rows if (r["density"], r["method"]) == (density, OURS[1])}
        line |= {
            "draws / CPU s": whole(map(rate, mine)),
            "all in": whole(map(rate_all_in, mine)),
            "r-hat": "-" if method == OURS[0] else middle(row["r-hat"] for row in mine),
            "smallest share / its own": middle(row["smallest share"] for row in mine),
            "converged": f"{sum(bool(row['converged']) for row in mine)} of {len(mine)}",
        }
        if method not in OURS:
            pairs = [(best[row["seed"]], chained[row["seed"]], row) for row in mine]
            line |= {
                "importance / it": spread(rate(a) / rate(c) for a, _, c in pairs),
                "MH / it": spread(rate(b) / rate(c) for _, b, c in pairs),
                "break-even draws": whole(break_even(a, c) for a, _, c in pairs),
            }
        table.append(line)
    return table


def whole(numbers: Iterator[float]) -> str:
    """The median, without decimals."""
    return f"{statistics.median(numbers):,.0f}"


def middle(numbers: Iterator[float]) -> str:
    """The median."""
    return f"{statistics.median(numbers):.3f}"


def spread(numbers: Iterator[float]) -> str:
    """The median and the range."""
    values = list(numbers)
    return f"{statistics.median(values):,.0f} [{min(values):,.0f}, {max(values):,.0f}]"


def picture(rows: list[Row], name: str) -> None:
    """Rates of every method; hollow where the chains have not converged."""
    import matplotlib.pyplot as plt

    done = [row for row in rows if "note" not in row]
    densities = list(dict.fromkeys(row["density"] for row in done))
    methods = list(dict.fromkeys(str(row["method"]) for row in done))[::-1]
    figure, axes = plt.subplots(
        1, len(densities), figsize=(2.6 * len(densities) + 2.4, 3.2), sharey=True,
        layout="constrained", squeeze=False,
    )  # fmt: skip
    for ax, density in zip(axes[0], densities, strict=True):
        for row in (row for row in done if row["density"] == density):
            at, ours = methods.index(str(row["method"])), row["method"] in OURS
            colour = "tab:orange" if ours else "tab:blue"
            face = colour if row["converged"] else "none"
            ax.scatter(rate(row), at, s=36, facecolors=face, edgecolors=colour)
        ax.set(xscale="log", title=str(density).replace("_", " "))
        ax.grid(axis="x", alpha=0.3)
        ax.tick_params(axis="x", labelsize=8)
    axes[0, 0].set_yticks(range(len(methods)), methods)
    figure.supxlabel("effective draws per CPU second, training and warm-up excluded", fontsize=9)
    figure.suptitle("hollow: the chains have not converged", fontsize=9)
    figure.savefig(RESULTS / f"{name}.png", dpi=110)
    plt.close(figure)


def notes(rows: list[Row], settings: Settings) -> str:
    """What the columns mean, and every run."""
    text = NOTES.format(settings=settings, converged=CONVERGED)
    return "\n".join([text, "", "## Every run", "", markdown(rows)])


NOTES = """Medians over seeds; ratios with their range. `draws / CPU s`: effective draws by the CPU
seconds of drawing alone: no training, warm-up or compilation (`neutra_hmc` with its warm-up).
`all in`: what a method spends before its first draw counted too, on as many draws as were made:
training of energy and proposal for ours, warm-up and compilation for NUTS (which here gets the
trained energy for nothing). `break-even draws`: so many effective draws pay for the training.
`smallest share / its own`: of the modes (Many-Well-32: sides of a well; funnel: beyond one sd of
x_0), the share of draws over the share by importance weights, in the worst. `converged`: r-hat at
most {converged} and no share below a fifth of its own (of weights: Pareto k-hat below .7).
Effective draws of chains that have not converged are not to be believed: too many are claimed.
Chains start from data, and for given densities uniformly in (-2, 2). NUTS at its defaults: target
acceptance .8, depth 10, diagonal mass. NumPyro's loops are compiled ahead, on one core.

{settings}"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--short", action="store_true", help="one seed, few rounds and draws")
    parser.add_argument("--densities", nargs="+", help="only these")
    parser.add_argument("--seeds", nargs="+", type=int, help="only these")
    options = parser.parse_args()
    os.environ.setdefault("XLA_FLAGS", ONE_CORE)
    mpl.use("agg")
    torch.set_num_threads(1)
    settings = SHORT if options.short else Settings()
    settings = replace(
        settings,
        densities=tuple(options.densities or settings.densities),
        seeds=tuple(options.seeds or settings.seeds),
    )
    rows = [
        row for name in settings.densities for seed in settings.seeds
        for row in run(name, seed, settings)
    ]  # fmt: skip
    name = "benchmark_sampling" + ("_short" if options.short else "")
    title = "Effective draws per CPU second: the learned proposal against NUTS"
    command = COMMAND + (" --short" if options.short else "")
    picture(rows, name)
    print(write_table(name, title, command, summary(rows), notes(rows, settings)))


if __name__ == "__main__":
    main()
