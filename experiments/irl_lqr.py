"""Soft LQR: imitation of an exact soft expert, speed, and log Z against the horizon.

`python -m experiments.irl_lqr`. 100 demonstrations of the soft-optimal policy, T = 30; metric:
nats per trajectory to it, sum_t E KL(pi || pi*), states from the learned policy. The cost's class
(three weights; the terminal cost is known) is ours; peers learn a network's. The floor is the
exact maximum-likelihood estimate of the three weights from the same demonstrations: what is left
there is the demonstrations' sampling error. Peers (imitation) run if they are installed, for
`Settings.peer_steps` steps of the environment.
"""

import dataclasses
import importlib.util
import statistics
import time
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from ebm_pp import EnergyModel, FitConfig, Opaque, PolicyGenerator, fit
from ebm_pp.partition import bridge, log_partition_from_weights
from experiments import irl_peers
from experiments.table import Row, write_table
from models import linear_quadratic as lq


@dataclass(frozen=True)
class Settings:
    """What is run."""

    noises: tuple[float, ...] = (0.0, 0.05)
    demonstrations: int = 100
    seeds: tuple[int, ...] = (0, 1, 2)
    peer_steps: int = 300_000
    evaluated: int = 20_000  # trajectories behind a metric
    horizons: tuple[int, ...] = (10, 50, 100)
    repetitions: int = 100


def gap(world: lq.World, policy, settings: Settings) -> tuple[float, float, float]:
    """Nats per trajectory to the optimum, their standard error, mean cost."""
    best = lq.solve(world)
    generator = torch.Generator().manual_seed(12345)
    normal = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    x = normal(settings.evaluated, 2)
    states, means, sds, cost = [], [], [], 0.0
    for t in range(world.horizon):
        mean, sd = policy(x, t)
        u = mean + sd * normal(*mean.shape)
        states.append(x)
        means.append(mean)
        sds.append(sd)
        cost = cost + 0.5 * ((x @ world.Q) * x).sum(-1) + 0.5 * ((u @ world.R) * u).sum(-1)
        x = x @ world.A.T + u @ world.B.T + world.W.sqrt().diagonal() * normal(*x.shape)
    cost = cost + 0.5 * ((x @ world.Q_T) * x).sum(-1)
    nats, error = lq.nats_to_optimum(
        best, torch.stack(states, 1), torch.stack(means, 1), torch.stack(sds, 1)
    )
    return nats, error, cost.mean().item()


def of_generator(generator: PolicyGenerator):
    """A policy's mean and standard deviation."""

    @torch.no_grad()
    def policy(states: Tensor, t: int) -> tuple[Tensor, Tensor]:
        pi = generator.policy(states.float(), torch.full((len(states),), t))
        return pi.mean.double(), pi.base_dist.scale.double()

    return policy


def of_peer(peer):
    """The same of imitation's policies."""

    def policy(states: Tensor, t: int) -> tuple[Tensor, Tensor]:
        mean, sd = peer.policy(states.numpy().astype(np.float32))
        return torch.as_tensor(mean).double(), torch.as_tensor(sd).double()

    return policy


def maximum_likelihood(world: lq.World, demonstrations: dict[str, Tensor]) -> lq.Solution:
    """The soft-optimal policy of the maximum-likelihood weights, by the exact recursion."""
    theta = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS([theta], max_iter=200, line_search_fn="strong_wolfe")
    x, u = demonstrations["states"][:, :-1].double(), demonstrations["actions"].double()

    def solution() -> lq.Solution:
        q, r = theta[:2].exp(), theta[2:].exp()
        return lq.solve(replace(world, Q=torch.diag(q), R=torch.diag(r)))

    def loss() -> Tensor:
        optimiser.zero_grad()
        found = solution()
        mean = torch.einsum("tmn,ktn->ktm", found.K, x) + found.k
        law = torch.distributions.MultivariateNormal(mean, found.sigma)
        value = -law.log_prob(u).sum(1).mean()
        value.backward()
        return value

    optimiser.step(loss)
    with torch.no_grad():
        return solution()


def of_solution(solution: lq.Solution):
    """A linear policy."""
    sd = solution.sigma.diagonal(dim1=-2, dim2=-1).sqrt()

    def policy(states: Tensor, t: int) -> tuple[Tensor, Tensor]:
        mean = states @ solution.K[t].T + solution.k[t]
        return mean, sd[t].expand_as(mean)

    return policy


def ours(
    world: lq.World, demonstrations: dict[str, Tensor], seed: int, *, opaque: bool, cloning: bool
) -> tuple[PolicyGenerator, float, Tensor, int]:
    """A fit (or behaviour cloning alone), its CPU seconds, weights, simulated steps."""
    torch.manual_seed(seed)
    program = lq.LinearQuadratic(world)
    if opaque:
        step = Opaque(program.dynamics.advance, deterministic=not world.noisy)
        program.dynamics = dataclasses.replace(program.dynamics, step=step)
    model = EnergyModel(program)
    generator = PolicyGenerator(model, demonstrations)
    config = FitConfig.trajectories(world.horizon, progress=False, seed=seed)
    if cloning:
        config = replace(config, rounds=1, generator_steps=0, generator_steps_max=0)
    start = time.process_time()
    fit(model, demonstrations, generator, config)
    cpu = time.process_time() - start
    steps = config.rounds * config.pool * world.horizon
    if not opaque:
        steps += config.rounds * config.generator_steps_max * config.batch * world.horizon
    return generator, cpu, torch.cat(program.weights()), steps


def imitation_rows(settings: Settings) -> list[Row]:
    """Every method at every noise, medians over seeds."""
    rows = []
    for noise in settings.noises:
        world = lq.imitation(noise)
        best = lq.solve(world)
        results: dict[str, list[tuple[float, float, float, float, str]]] = {}

        def note(name: str, policy, cpu: float, steps: float, weights: str = "") -> None:
            nats, _, cost = gap(world, policy, settings)  # noqa: B023 - called in this iteration
            results.setdefault(name, []).append((nats, cost, cpu, steps, weights))  # noqa: B023
            print(f"{name}: {nats:.4f} nats, {cpu:.0f} CPU s {weights}", flush=True)

        for seed in settings.seeds:
            exact = lq.draws(world, best, settings.demonstrations, seed)
            demonstrations = {name: value.float() for name, value in exact.items()}
            note("exact maximum likelihood (floor)", of_solution(
                maximum_likelihood(world, exact)), 0.0, 0.0)  # fmt: skip
            for name, opaque, cloning in (
                ("behaviour cloning, same policy", False, True),
                ("ebm_pp, known dynamics", False, False),
                ("ebm_pp, opaque dynamics", True, False),
            ):
                generator, cpu, weights, steps = ours(
                    world, demonstrations, seed, opaque=opaque, cloning=cloning
                )
                shown = "" if cloning else " ".join(f"{w:.2f}" for w in weights.tolist())
                note(name, of_generator(generator), cpu, 0 if cloning else steps, shown)
            for name in ("airl", "gail"):
                if importlib.util.find_spec("imitation") is None:
                    continue
                pair = exact["states"].numpy(), exact["actions"].numpy()
                numbers = [part.numpy() for part in (
                    world.A, world.B, world.W, world.Q, world.R, world.Q_T)]  # fmt: skip
                peer = getattr(irl_peers, name)(
                    lambda: irl_peers.LinearQuadraticEnv(*numbers, world.horizon, 0),  # noqa: B023
                    pair, settings.peer_steps, seed,
                )  # fmt: skip
                note(f"imitation {name.upper()}", of_peer(peer), peer.cpu_seconds, peer.steps)
        own = gap(world, of_solution(best), settings)
        rows.append({"noise": noise, "method": "the expert", "nats": 0.0, "mean cost": own[2]})
        rows += [_summary(noise, name, found) for name, found in results.items()]
    return rows


def _summary(noise: float, name: str, found: list) -> Row:
    nats, cost, cpu, steps, weights = zip(*found, strict=True)
    row: Row = {
        "noise": noise, "method": name, "nats": statistics.median(nats),
        "of each seed": " ".join(f"{value:.3g}" for value in nats),
        "mean cost": statistics.median(cost),
        "weights (true: 1 .2 .5)": "; ".join(filter(None, weights)),
        "CPU s": round(statistics.median(cpu)),
    }  # fmt: skip
    if cpu[0] and steps[0]:
        row["simulated steps / CPU s"] = round(statistics.median(steps) / statistics.median(cpu))
    return row


def horizon_rows(settings: Settings) -> list[Row]:
    """Log Z of deterministic LQR from 100 trajectories of the best policy, covariance doubled."""
    rows = []
    for horizon in settings.horizons:
        world = lq.short(0.0, horizon=horizon, spread=0.0)
        best = lq.solve(world)
        q = replace(best, sigma=2 * best.sigma)
        exact = lq.log_partition(world).item()
        model = EnergyModel(lq.QuadraticCost(world)).double()
        generators = [PolicyGenerator(model, policy=lq.LinearGaussianPolicy(s)) for s in (q, best)]
        errors: dict[str, list[float]] = {"importance": [], "bridge": []}
        for repetition in range(settings.repetitions):
            seeds = 2 * repetition, 2 * repetition + 1
            draws, expert = (
                lq.draws(world, solution, 100, seed)
                for solution, seed in zip((q, best), seeds, strict=True)
            )
            with torch.no_grad():
                at_draws = model.log_density(draws) - generators[0].log_prob(draws)
                at_expert = model.log_density(expert) - generators[0].log_prob(expert)
            errors["importance"].append(log_partition_from_weights(at_draws).value - exact)
            errors["bridge"].append(bridge(at_expert, at_draws) - exact)
        row: Row = {"T": horizon, "log Z": exact}
        for name, values in errors.items():
            row[f"{name}: error"] = f"{np.mean(values):+.2f} +- {np.std(values):.2f}"
        rows.append(row)
    return rows


def main() -> None:
    settings = Settings()
    torch.set_num_threads(1)
    rows = imitation_rows(settings)
    peers = "" if any("imitation" in str(row["method"]) for row in rows) else (
        " Peers are not installed here."
    )  # fmt: skip
    print(write_table(
        "irl_lqr",
        "Soft LQR, T = 30: imitating an exact soft expert from 100 demonstrations",
        "python -m experiments.irl_lqr",
        rows,
        "nats: per trajectory to the expert's policy, median of three seeds (demonstrations "
        "differ by seed). Ours knows the cost's class (three weights) and known dynamics, and "
        "differentiates through them; peers learn networks at their documented settings, "
        f"{settings.peer_steps:,} steps. Simulated steps count those of every trajectory drawn; "
        "ours are batched torch, the peers' are of a gymnasium environment, so their ratio is "
        "not one of equal work. "
        "The default settings of trajectories were set while looking at seeds 0 and 1." + peers,
    ))  # fmt: skip
    print(write_table(
        "irl_horizon",
        "Log Z of a deterministic soft LQR against the horizon",
        "python -m experiments.irl_lqr",
        horizon_rows(settings),
        "Mean +- sd of the error over 100 repetitions; 100 trajectories of q, the best policy "
        "with its covariance doubled; the bridge also sees 100 of the expert.",
    ))  # fmt: skip


if __name__ == "__main__":
    main()
