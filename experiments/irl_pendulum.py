"""Pendulum-v1 from 50 demonstrations: three weights and a policy, the dynamics a black box.

The expert is soft-optimal at inverse temperature `beta`, exact up to the grid of its soft value
(models/pendulum.py). The learner sees its observations and torques, steps the environment, and
knows the form of the cost. imitation's AIRL, at its documented settings, gets as many steps.

Every policy is judged from the same start states. `gap` is the expert's soft value V_0(s_0) minus
the policy's soft objective E_q[sum -c - log pi] under the true cost, nats a trajectory: KL(q || p)
of trajectories, 0 for the soft-optimal policy alone. Return alone misses a policy's entropy.

    .venv/bin/python -m experiments.irl_pendulum        (AIRL's rows where imitation is installed)
"""

import dataclasses
import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch
from torch import Tensor

from ebm_pp import EnergyModel, Fit, FitConfig, PolicyGenerator, fit
from ebm_pp.environment import from_gymnasium
from experiments import irl_peers
from experiments.table import RESULTS, Row, write_table
from models.pendulum import (
    HORIZON,
    TRUE,
    Grid,
    GridPolicy,
    Pendulum,
    features,
    true_weights,
)  # fmt: skip

COMMAND = "python -m experiments.irl_pendulum"
NAME = "Pendulum-v1"
NAMES = ("angle", "speed", "torque")


@dataclass(frozen=True)
class Settings:
    """What is run.

    beta: inverse temperature of the expert; the true weights are beta (1, .1, .001)
    demonstrations: trajectories of 200 steps
    rounds: of a fit, each of `pool` trajectories
    pool: trajectories drawn a round, all side by side
    generator_lr: of the policy
    generator_steps: updates of the policy a round
    objectives: compared
    seeds: of demonstrations and fits
    airl_seeds: of AIRL, on the first seed's demonstrations
    judged: trajectories a policy is judged by
    """

    beta: float = 0.5
    demonstrations: int = 50
    rounds: int = 60
    pool: int = 80
    generator_lr: float = 3e-3
    generator_steps: int = 20
    objectives: tuple[str, ...] = ("likelihood",)
    seeds: tuple[int, ...] = (0, 1, 2)
    airl_seeds: tuple[int, ...] = (0,)
    judged: int = 400


@dataclass(frozen=True)
class Verdict:
    """One policy from the common start states; see `judge`."""

    returns: np.ndarray
    gaps: np.ndarray  # nats; NaN for policies without a density
    states: Tensor
    features: np.ndarray  # mean per step: angle^2, speed^2, torque^2


def world(n: int, seed: int):
    return from_gymnasium(NAME, HORIZON, deterministic=True, num_envs=n, seed=seed)


def make_env():
    import gymnasium

    return gymnasium.make(NAME, disable_env_checker=True)


@torch.no_grad()
def simulate(policy: torch.nn.Module, n: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    model = EnergyModel(Pendulum(world(n, seed)))
    return PolicyGenerator(model, policy=policy).simulate(n)


@torch.no_grad()
def judge(policy: torch.nn.Module, expert: GridPolicy, s: Settings) -> Verdict:
    """The policy's returns and gaps from start states that depend on `s` alone."""
    states, actions, log_pi = simulate(policy, s.judged, seed=10_000)
    seen = features(states[:, :-1], actions)
    cost = (seen @ torch.tensor(TRUE)).sum(1)
    first = torch.zeros(s.judged, dtype=torch.long)
    gaps = expert.value(states[:, 0], first) + s.beta * cost + log_pi.sum(1)
    return Verdict(-cost.numpy(), gaps.numpy(), states, seen.mean((0, 1)).numpy())


class Clipped(torch.nn.Module):
    """A peer's Gaussian policy, its torques clipped to the box: no density, so log pi is NaN."""

    def __init__(self, moments: Callable) -> None:
        super().__init__()
        self.moments = moments

    def forward(self, states: Tensor, time: Tensor):
        mean, sd = (torch.as_tensor(x).float() for x in self.moments(states.numpy()))
        return _Clipped(mean, sd)


class _Clipped(torch.distributions.Normal):
    def sample(self, sample_shape=()):
        return super().sample(sample_shape).clamp(-2.0, 2.0)

    def log_prob(self, value: Tensor) -> Tensor:
        return torch.full(value.shape[:-1], math.nan)


def demonstrations(expert: GridPolicy, s: Settings, seed: int) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    states, actions, _ = simulate(expert, s.demonstrations, seed=100 + seed)
    return {"states": states, "actions": actions}


def learn(data: dict[str, Tensor], objective: str, s: Settings, seed: int) -> tuple[Fit, float]:
    """A fit and its CPU seconds; objective "clone" is the warm start alone."""
    rounds = 1 if objective == "clone" else s.rounds
    config = FitConfig.trajectories(
        HORIZON, opaque=True, objective="auto" if objective == "clone" else objective,
        rounds=rounds, pool=s.pool, generator_lr=s.generator_lr, energy_steps=5,
        generator_steps=s.generator_steps, generator_steps_max=s.generator_steps,
        seed=seed, diagnose_every=10, progress=False,
    )  # fmt: skip
    # The weights start where each feature costs half a nat a step of the demonstrations.
    first = 0.5 / features(data["states"][:, :-1], data["actions"]).mean((0, 1))
    model = EnergyModel(Pendulum(world(s.pool, 1000 + seed), weights=tuple(first.tolist())))
    begin = time.process_time()
    found = fit(model, data, PolicyGenerator(model, data), config)
    return found, time.process_time() - begin


def exact_fit(
    data: dict[str, Tensor], s: Settings, steps: int = 6
) -> tuple[Tensor, Tensor, float]:
    """Maximum likelihood with the dynamics known: log weights, standard errors, CPU seconds.

    Scoring with the outer product of the trajectories' scores, these by central differences.
    """
    begin = time.process_time()
    times = torch.arange(HORIZON).expand(len(data["actions"]), -1)

    def log_likelihood(log_weights: Tensor) -> Tensor:
        policy = GridPolicy(log_weights.exp(), grid=Grid(200, 201, 21))
        return policy(data["states"][:, :-1], times).log_prob(data["actions"]).double().sum(1)

    at, width = true_weights(s.beta).log(), torch.tensor([0.05, 0.05, 0.5])
    for _ in range(steps):
        scores = torch.stack(
            [
                (log_likelihood(at + e) - log_likelihood(at - e)) / (2 * e.sum())
                for e in torch.diag(width)
            ],
            1,
        )
        information = scores.T @ scores
        at = at + torch.linalg.solve(information, scores.sum(0)).clamp(-1, 1).float()
    errors = torch.linalg.inv(information).diagonal().sqrt()
    return at, errors, time.process_time() - begin


def row(name: str, verdict: Verdict, best: Verdict, weights=None, s=None, **more) -> Row:
    """One line of the table; `best` is the expert's verdict."""

    def mean(x: np.ndarray) -> str:
        return "-" if np.isnan(x).any() else f"{x.mean():.1f} +- {x.std() / len(x) ** 0.5:.1f}"

    ratios = "-" if weights is None else ", ".join(f"{w / t:.2f}" for w, t in weights)
    worse = (best.returns - verdict.returns) / -best.returns.mean()
    return {
        "policy": name, "return": mean(verdict.returns), "% below the expert": mean(100 * worse),
        "gap, nats": mean(verdict.gaps), "weights / true": ratios, **more,
    }  # fmt: skip


def draw_pictures(expert: Verdict, learned: Verdict, weights: Tensor, s: Settings) -> None:
    """Trajectories over the cost at torque 0, the true one and the learned one."""
    angle, speed = np.meshgrid(np.linspace(-np.pi, np.pi, 181), np.linspace(-8, 8, 161))
    figure, axes = plt.subplots(1, 2, figsize=(10, 4.2), sharey=True, layout="constrained")
    panels = [("expert, true cost", expert, true_weights(s.beta)), ("learned", learned, weights)]
    for axis, (title, verdict, w) in zip(axes, panels, strict=True):
        cost = w[0].item() * angle**2 + w[1].item() * speed**2
        mesh = axis.contourf(angle, speed, cost, 20, cmap="viridis")
        figure.colorbar(mesh, ax=axis, label="cost of a step at torque 0, nats")
        for path in verdict.states[:25]:
            theta = torch.atan2(path[:, 1], path[:, 0]).numpy().astype(float)
            theta[1:][np.abs(np.diff(theta)) > np.pi] = np.nan
            axis.plot(theta, path[:, 2], color="white", lw=0.7, alpha=0.8)
        axis.set(title=title, xlabel="angle from the upright, rad", ylim=(-8, 8))
    axes[0].set_ylabel("speed, rad / s")
    figure.savefig(RESULTS / "irl_pendulum.png", dpi=130)
    plt.close(figure)


def run() -> str:
    s = Settings()
    torch.set_num_threads(1)
    true = true_weights(s.beta)
    expert = GridPolicy(true, grid=Grid(400, 401, 21))
    torch.manual_seed(0)
    best = judge(expert, expert, s)
    rows = [row("expert", best, best)]
    shown = None
    steps = s.rounds * s.pool * HORIZON
    for objective in ("clone", *s.objectives):
        for seed in s.seeds:
            data = demonstrations(expert, s, seed)
            found, seconds = learn(data, objective, s, seed)
            torch.manual_seed(seed)
            verdict = judge(found.generator.policy, expert, s)
            weights = found.model.program.weights()
            clone = objective == "clone"
            name = "behaviour cloning (warm start)" if clone else f"ours, {objective}"
            rows.append(
                row(
                    f"{name}, seed {seed}", verdict, best,
                    None if clone else list(zip(weights.tolist(), true.tolist(), strict=True)),
                    **{"CPU s": f"{seconds:.0f}", "environment steps": 0 if clone else steps,
                       "steps / CPU s": "-" if clone else f"{steps / seconds:.0f}"},
                )
            )  # fmt: skip
            print(rows[-1], found.status.name, found.detail, flush=True)
            if objective == s.objectives[0] and seed == s.seeds[0]:
                shown = verdict, weights
    rows += exact_rows(expert, s, best)
    rows += peer_rows(expert, s, best, steps)
    draw_pictures(best, *shown, s)
    return write_table("irl_pendulum", "Inverse reinforcement learning on Pendulum-v1", COMMAND,
                       rows, notes(s, expert, best))  # fmt: skip


def exact_rows(expert: GridPolicy, s: Settings, best: Verdict) -> list[Row]:
    rows = []
    for seed in s.seeds:
        at, errors, seconds = exact_fit(demonstrations(expert, s, seed), s)
        off = (at - true_weights(s.beta).log()).tolist()
        text = ", ".join(
            f"{math.exp(o):.2f} (log se {e:.2f})" for o, e in zip(off, errors, strict=True)
        )
        rows.append({"policy": f"exact likelihood, dynamics known, seed {seed}",
                     "weights / true": text, "CPU s": f"{seconds:.0f}"})  # fmt: skip
        print(rows[-1], flush=True)
    return rows


def peer_rows(expert: GridPolicy, s: Settings, best: Verdict, steps: int) -> list[Row]:
    """imitation's AIRL, or that it is not installed."""
    try:
        import imitation  # noqa: F401
    except ImportError:
        return [{"policy": "imitation's AIRL", "return": "not installed"}]
    rows = []
    data = demonstrations(expert, s, s.seeds[0])
    arrays = data["states"].numpy(), data["actions"].numpy()
    for seed in s.airl_seeds:
        peer = irl_peers.airl(make_env, arrays, steps, seed)
        torch.manual_seed(seed)
        verdict = judge(Clipped(peer.policy), expert, s)
        rows.append(
            row(
                f"imitation's AIRL, seed {seed}", verdict, best,
                **{"CPU s": f"{peer.cpu_seconds:.0f}", "environment steps": peer.steps,
                   "steps / CPU s": f"{peer.steps / peer.cpu_seconds:.0f}"},
            )
        )  # fmt: skip
        print(rows[-1], flush=True)
    return rows


def notes(s: Settings, expert: GridPolicy, best: Verdict) -> str:
    return f"""
Settings: {dataclasses.asdict(s)}.

Returns and gaps from {s.judged} start states, the same for all; "% below" is paired over them.
"gap": the expert's soft value minus the policy's soft objective, nats a trajectory. The exact
likelihood (dynamics known, on the expert's grid) shows that the demonstrations determine the
first two weights: that the game's are far from them is its failure, not theirs. AIRL sees the
same demonstrations; its torques are clipped, so it has no density.
![pendulum](irl_pendulum.png)
"""


if __name__ == "__main__":
    print(run())
