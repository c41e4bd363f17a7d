"""Wind: a program of its own, with five sites; the default recipe and a flow for the same time.

Scored by log-likelihood on whole test days (experiments/wind.py, which compares with more methods
and with settings chosen for these data). Both keep their best parameters on validation days.
"""

import time
from collections.abc import Callable
from typing import Any

import torch

from ebm_pp import EnergyModel, FitConfig, FlowGenerator, fit, log_partition
from ebm_pp.losses import weighted_forward_kl
from ebm_pp.pool import n_rows, pick
from experiments.wind import by_day, split
from models.wind import Wind

DRAWS = 100_000  # for log Z
LOOK_EVERY = 20  # steps of the flow


def energy(seed: int, budget: float) -> dict[str, Any]:
    """The default `FitConfig`."""
    train, validation, test, days = split()
    cpu, wall = time.process_time(), time.perf_counter()
    torch.manual_seed(seed)
    model = EnergyModel(Wind())
    config = FitConfig(seed=seed, progress=False)
    result = fit(model, train, config=config, held_out=validation)
    spent = {"cpu": time.process_time() - cpu, "wall": time.perf_counter() - wall}
    log_z = log_partition(result, DRAWS, seed=seed)
    with torch.no_grad():
        score = model.log_density(test).double() - log_z.value
        flow, _ = by_day(result.generator.log_prob(test), days)
    value, error = by_day(score, days)
    return spent | {
        "kl": -value,
        "se": (error**2 + log_z.standard_error**2) ** 0.5,
        "log_z_se": log_z.standard_error,
        "log_z_pareto_k": log_z.pareto_k,
        "ess": log_z.ess,
        "generator_kl": -flow,
        "status": result.status.name.lower(),
    }


def flow_alone(seed: int, budget: float) -> dict[str, Any]:
    """The generator's flow by maximum likelihood, at the settings of its warm start."""
    train, validation, test, days = split()
    cpu, wall = time.process_time(), time.perf_counter()
    torch.manual_seed(seed)
    flow, usual = FlowGenerator(EnergyModel(Wind()), train), FitConfig()
    adam = torch.optim.Adam(flow.parameters(), usual.warm_start_lr, fused=True)
    best, kept, step = -float("inf"), flow.state_dict(), 0
    while (share := (time.process_time() - cpu) / budget) < 1:
        adam.param_groups[0]["lr"] = usual.warm_start_lr * (1 - share)
        log_q = flow.log_prob(pick(train, torch.randint(n_rows(train), (usual.batch,))))
        loss = weighted_forward_kl(log_q, torch.zeros_like(log_q))
        adam.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(flow.parameters(), usual.clip)
        adam.step()
        step += 1
        if step % LOOK_EVERY == 0:
            with torch.no_grad():
                score = flow.log_prob(validation).mean().item()
            if score > best:
                best, kept = score, {k: v.clone() for k, v in flow.state_dict().items()}
    flow.load_state_dict(kept)
    spent = {"cpu": time.process_time() - cpu, "wall": time.perf_counter() - wall}
    with torch.no_grad():
        value, error = by_day(flow.log_prob(test), days)
    return spent | {"kl": -value, "se": error, "status": "time spent", "steps": step}


RECIPES: dict[str, Callable[[int, float], dict[str, Any]]] = {
    "ebm_pp": energy,
    "flow alone": flow_alone,
}
