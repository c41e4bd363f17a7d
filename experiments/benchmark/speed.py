"""What a round and a step cost: against the first landed version, by hand, and the floors.

`python -m experiments.benchmark.speed [--short]`. Three tables:

* a round of `fit` now and at commit `FIRST`, in processes of their own with their own source
  trees, alternating; the same sizes in both, two moons, the Planar program;
* an energy step as `fit` takes it against the same step written in plain PyTorch, and the bare
  forward, loss, backward and Adam of both; alternating in one process;
* two floors of that step: arithmetic alone (the step's matrix products and elementwise operations
  on preallocated tensors, no autograd), and dispatch alone (the step on one datum and one draw).
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from ebm_pp import EnergyModel, FitConfig, losses
from ebm_pp.game import OFFSET_DAMPING, Game, energy_steps, start
from ebm_pp.pool import Pool, draw_pool
from experiments.table import Row, markdown, write_table
from models.network import Network
from models.planar import Planar, moons

FIRST = "14b37e4"  # the commit with which the main job had landed
HERE = Path(__file__).parent
ROOT = HERE.parents[1]
ATEN = torch.ops.aten
Arms = dict[str, Callable[[], object]]


@dataclass(frozen=True)
class Settings:
    """What is run."""

    pairs: int = 4  # processes of either version
    rounds: int = 12  # of each process
    batches: tuple[tuple[int, int], ...] = ((512, 4), (1024, 4))  # data, draws a datum
    steps: int = 50
    repeats: int = 15


SHORT = Settings(pairs=1, rounds=8, batches=((512, 4),), repeats=5)


def rounds(settings: Settings) -> list[Row]:
    """Milliseconds of a round of both versions; ratios of processes that ran side by side."""
    times: dict[str, list[dict[str, float]]] = {"first": [], "now": []}
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "first"
        git("worktree", "add", "--detach", str(tree), FIRST)
        try:
            for seed in range(settings.pairs):
                for name, place in (("first", tree), ("now", ROOT)):
                    times[name].append(one_process(place, settings.rounds, seed))
        finally:
            git("worktree", "remove", "--force", str(tree))
    rows: list[Row] = []
    for part in times["now"][0]:
        first, now = ([run[part] for run in times[name]] for name in ("first", "now"))
        row: Row = {
            "part": part,
            f"{FIRST} (ms)": f"{statistics.median(first):.0f}",
            "now (ms)": f"{statistics.median(now):.0f}",
        }
        rows.append(row | ratio([a / b for a, b in zip(first, now, strict=True)], "times faster"))
    return rows


def one_process(tree: Path, n: int, seed: int) -> dict[str, float]:
    """Median milliseconds of the rounds of one fit, and of their parts."""
    command = [sys.executable, "-P", str(HERE / "one_round.py"), str(n), str(seed)]
    surroundings = os.environ | {"PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"}
    text = subprocess.run(
        command, capture_output=True, text=True, check=True, env=surroundings, cwd=tree
    ).stdout
    found = json.loads(text.splitlines()[-1])
    assert Path(found["tree"]).is_relative_to(tree.resolve()), "another version was imported"
    run = found["rounds"]
    medians = {part: 1e3 * statistics.median(r[part] for r in run) for part in run[0]}
    parts = sum(value for part, value in medians.items() if part != "whole round")
    return medians | {"the rest": medians["whole round"] - parts}


def git(*arguments: str) -> None:
    subprocess.run(["git", *arguments], check=True, capture_output=True, cwd=ROOT)


class ByHand(nn.Module):
    """The density of Planar or Network in plain PyTorch: a normal base and the network."""

    def __init__(self, net: nn.Module, mean: Tensor, scale: Tensor) -> None:
        super().__init__()
        self.net, self.mean, self.scale = net, mean, scale
        self.constant = (scale.log().sum() + len(mean) / 2 * math.log(2 * math.pi)).item()

    def forward(self, x: Tensor) -> Tensor:
        z = (x - self.mean) / self.scale
        return -0.5 * z.square().sum(-1) - self.constant - self.net(x).reshape(-1)


def steps_by_hand(game: Game, pool: Pool, density: nn.Module, k: int) -> None:
    """What `energy_steps` does at its defaults, in plain PyTorch: every duty of the step.

    Gather, logits, loss, backward, clipping, Adam, cosine schedule, Newton's step of the offset,
    moving average, accuracy.
    """
    config, x, log_q, n_data = game.config, pool.x["x"], pool.log_q, pool.n_data
    n, m, log_nu = config.batch, round(config.nu * config.batch), math.log(config.nu)
    parameters = [p for p in game.model.parameters() if p.requires_grad]
    mean = game.mean
    present = [p.detach() for p in game.model.parameters()]
    share = 1 / max(config.average * config.rounds * config.energy_steps, 1.0)
    adam, schedule = game.energy.optimiser, game.energy.schedule
    total = correct = 0.0
    for _ in range(k):
        at = torch.cat([torch.randint(n_data, (n,)), torch.randint(n_data, len(log_q), (m,))])
        logit = density(x[at]) - log_q[at] - (game.offset + log_nu)
        data, draws = logit[:n], logit[n:]
        loss = softplus(-data).mean() + config.nu * softplus(draws).mean()
        adam.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(parameters, config.clip).item()
        value = loss.item()
        if not (math.isfinite(value) and math.isfinite(norm)):
            raise FloatingPointError("not finite")
        adam.step()
        schedule.step()
        total += value
        with torch.no_grad():
            correct += ((data > 0).double().mean() + (draws < 0).double().mean()).item()
            d, g = data.sigmoid(), draws.sigmoid()
            slope = (1 - d).mean() - config.nu * g.mean()
            curvature = (d * (1 - d)).mean() + config.nu * (g * (1 - g)).mean()
            game.offset.sub_((OFFSET_DAMPING * slope / curvature).nan_to_num(0.0).clamp(-2, 2))
            torch._foreach_lerp_(mean, present, share)


def bare_steps(
    density: Callable[[Tensor], Tensor], x: Tensor, adam: torch.optim.Optimizer, n: int, k: int
) -> None:
    """Forward, loss, backward and Adam alone, on rows at hand."""
    nu = (len(x) - n) / n
    for _ in range(k):
        values = density(x)
        loss = losses.discriminator(values[:n], values[n:], 0.0, nu)
        adam.zero_grad()
        loss.backward()
        adam.step()


def on_site(density: Callable[[dict[str, Tensor]], Tensor], x: Tensor) -> Tensor:
    return density({"x": x})


def prepared(program: nn.Module, data: dict[str, Tensor], n: int, nu: int, k: int) -> tuple:
    """A game about to take its first energy step, its pool, and the density by hand."""
    torch.manual_seed(0)
    model = EnergyModel(program)
    # So small a rate that all arms see the same parameters throughout.
    config = FitConfig(
        batch=n, nu=nu, energy_steps=k, energy_lr=1e-12, warm_start_steps=0, progress=False
    )
    game = start(model, data, None, None, config)
    pool = draw_pool(game.model, game.generator, data, config.pool, config.base_share)
    hand = ByHand(program.net, program.base_mean, program.base_scale)
    assert torch.allclose(hand(pool.x["x"]), model.log_density(pool.x), atol=1e-4)
    return game, pool, hand


def alternating(
    arms: dict[str, Callable[[], object]], settings: Settings
) -> dict[str, list[float]]:
    """CPU milliseconds a step of every arm, block by block."""
    times: dict[str, list[float]] = {name: [] for name in arms}
    for repeat in range(settings.repeats + 1):
        for name, block in arms.items():
            begin = time.process_time()
            block()
            if repeat:  # the first is warm-up
                times[name].append(1e3 * (time.process_time() - begin) / settings.steps)
    return times


def steps(settings: Settings) -> list[Row]:
    """The step of `fit` against the same by hand."""
    data, rows, k = moons(8192, 0), [], settings.steps
    programs = {"Planar, 2-128-128-1": Planar, "Network": lambda: Network(data["x"])}
    for program, make in programs.items():
        for n, nu in settings.batches:
            game, pool, hand = prepared(make(), data, n, nu, k)
            x = torch.cat([pool.x["x"][:n], pool.x["x"][pool.n_data :][: n * nu]])
            bare = partial(bare_steps, x=x, adam=game.energy.optimiser, n=n, k=k)
            arms: Arms = {
                "fit": partial(energy_steps, game, pool, None),
                "by hand": partial(steps_by_hand, game, pool, hand, k),
                "bare, captured": partial(bare, partial(on_site, game.captured.density)),
                "bare, by hand": partial(bare, hand),
                "bare, uncaptured": partial(bare, partial(on_site, game.model.log_density)),
            }
            times = alternating(arms, settings)
            row: Row = {"program": program, "rows of data": n, "draws": n * nu}
            row |= {f"{a} (ms)": f"{statistics.median(t):.3f}" for a, t in times.items()}
            whole = [a / b for a, b in zip(times["fit"], times["by hand"], strict=True)]
            pairs = zip(times["bare, captured"], times["bare, by hand"], strict=True)
            row |= ratio(whole, "fit / by hand")
            rows.append(row | ratio([a / b for a, b in pairs], "bare: captured / by hand"))
    return rows


def floors(settings: Settings) -> list[Row]:
    """The step at 512 rows and 2,048 draws, its arithmetic alone, and its dispatch alone."""
    data, rows, k = moons(8192, 0), [], settings.steps
    arms: Arms = {}
    for name, (n, nu) in {"the step": (512, 4), "dispatch": (1, 1)}.items():
        game, pool, hand = prepared(Planar(), data, n, nu, k)
        arms[f"{name}, fit"] = partial(energy_steps, game, pool, None)
        arms[f"{name}, by hand"] = partial(steps_by_hand, game, pool, hand, k)
    once = arithmetic(2560)
    arms["arithmetic"] = lambda: [once() for _ in range(k)]
    for name, values in alternating(arms, settings).items():
        rows.append({"what": name, "ms a step": f"{statistics.median(values):.3f}"})
    return rows


def arithmetic(n: int, d: int = 2, w: int = 128) -> Callable[[], None]:
    """The products and elementwise operations of a step of d-w-w-1 on n rows, nothing else."""
    x, y = torch.randn(n, d), torch.empty(n, d)
    one, two, three = torch.randn(w, d), torch.randn(w, w), torch.randn(1, w)
    biases = torch.randn(w), torch.randn(w), torch.randn(1)
    a, h, b, g, e, back = (torch.empty(n, w) for _ in range(6))
    out, logit, loss = torch.empty(n, 1), torch.empty(n, 1), torch.empty(n, 1)
    grads = [torch.empty_like(p) for p in (one, two, three, *biases)]
    parameters = [one, two, three, *biases]
    first, second = ([torch.zeros_like(p) for p in parameters] for _ in range(2))
    counts = [torch.ones(()) for _ in parameters]

    def step() -> None:
        torch.addmm(biases[0], x, one.T, out=a)
        ATEN.silu.out(a, out=h)
        torch.addmm(biases[1], h, two.T, out=b)
        ATEN.silu.out(b, out=g)
        torch.addmm(biases[2], g, three.T, out=out)
        torch.mul(x, x, out=y)  # the base measure
        torch.sum(y, -1, keepdim=True, out=logit)
        logit.add_(out)
        ATEN.softplus.out(logit, out=loss)
        torch.sigmoid(logit, out=out)  # the loss's own gradient
        torch.mm(out.T, g, out=grads[2])
        torch.sum(out, 0, out=grads[5])
        torch.mm(out, three, out=e)
        ATEN.silu_backward.grad_input(e, b, grad_input=back)
        torch.mm(back.T, h, out=grads[1])
        torch.sum(back, 0, out=grads[4])
        torch.mm(back, two, out=e)
        ATEN.silu_backward.grad_input(e, a, grad_input=back)
        torch.mm(back.T, x, out=grads[0])
        torch.sum(back, 0, out=grads[3])
        torch._fused_adam_(
            parameters, grads, first, second, [], counts, lr=0.0, beta1=0.9, beta2=0.999,
            weight_decay=0.0, eps=1e-8, amsgrad=False, maximize=False,
        )  # fmt: skip

    return torch.no_grad()(step)


def ratio(values: Sequence[float], name: str) -> Row:
    """The median with its quartiles."""
    if len(values) < 2:
        return {name: f"{values[0]:.2f}"}
    low, _, high = statistics.quantiles(values, n=4)
    return {name: f"{statistics.median(values):.2f} [{low:.2f}, {high:.2f}]"}


NOTES = """CPU milliseconds, one thread; medians, and ratios with their quartiles. Pool of 8,192
draws and 8,192 rows of two moons, batch 512, 4 draws a datum, 50 energy steps, 10 generator steps
(rounds in which the generator rests are left out), every round diagnosed; Planar program
2-128-128-1; flow of 2 affine and 4 spline layers. `the rest`: scoring the pool by the new energy,
the generator's target.

## An energy step as `fit` takes it, against plain PyTorch

{steps}

`fit` and `by hand` gather the batch, and do the forward, loss, backward, clipping, Adam, schedule,
Newton's step of the offset, moving average and accuracy. `bare` is the forward, loss, backward and
Adam on rows at hand: of the captured density, by hand, and of the program without capture.

## Floors of the step at 512 rows and 2,048 draws

{floors}

`arithmetic`: the step's products, elementwise operations and Adam on preallocated tensors, without
autograd. `dispatch`: the whole step on one datum and one draw, which is Python and dispatch alone.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--short", action="store_true", help="one process of each, few repeats")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)  # as in `fit`
    settings = SHORT if options.short else Settings()
    name = "benchmark_speed" + ("_short" if options.short else "")
    command = "python -m experiments.benchmark.speed" + (" --short" if options.short else "")
    notes = NOTES.format(steps=markdown(steps(settings)), floors=markdown(floors(settings)))
    title = f"A round and a step: against commit {FIRST}, by hand, and the floors"
    print(write_table(name, title, command, rounds(settings), notes))


if __name__ == "__main__":
    main()
