"""CPU milliseconds of every round of one fit, and of its parts, as JSON: run by speed.py.

`python -P one_round.py ROUNDS SEED` with PYTHONPATH at a source tree of any version. Names that
all versions share are wrapped by a clock; sizes are pinned to those of the first landed version.
Rounds in which the generator rested (a later recipe lets it while the energy is the worse model)
are not counted.
"""

import json
import math
import sys
import time
from collections.abc import Callable
from typing import Any

import torch

from ebm_pp import EnergyModel, FitConfig, FlowGenerator, fit, training
from models.planar import Planar, moons

PARTS = {
    "draw_pool": "pool",
    "energy_steps": "50 energy steps",
    "diagnose_round": "diagnosis",
    "generator_steps": "10 generator steps",
}


def clocked(name: str, spent: dict[str, float]) -> None:
    """Adds the CPU time of calls of a function in ebm_pp.training to `spent`."""
    inner: Callable[..., Any] = getattr(training, name)

    def outer(*args: Any, **kwargs: Any) -> Any:
        begin = time.process_time()
        result = inner(*args, **kwargs)
        spent[PARTS[name]] = time.process_time() - begin
        if name == "generator_steps" and math.isnan(result):
            del spent[PARTS[name]]  # none were taken
        return result

    setattr(training, name, outer)


def main() -> None:
    torch.set_num_threads(1)
    rounds, seed = map(int, sys.argv[1:])
    torch.manual_seed(seed)
    data = moons(8192, 100 + seed)
    model = EnergyModel(Planar())
    generator = FlowGenerator(model, data, affine=2, splines=4, bins=8, hidden=(64, 64))
    config = FitConfig(
        rounds=rounds, pool=8192, batch=512, nu=4.0, base_share=0.2, energy_steps=50,
        generator_steps=10, generator_steps_max=10, ess_target=1.1, diagnose_every=1,
        warm_start_steps=200, patience=rounds, seed=seed, progress=False,
    )  # fmt: skip
    spent: dict[str, float] = {}
    found: list[dict[str, float]] = []
    last = [0.0]

    def report(round_: int, info: dict[str, Any]) -> None:
        # From one diagnosis to the next: generator steps, pool, energy steps, diagnosis.
        now = time.process_time()
        if len(spent) == len(PARTS):
            assert info["generator_steps"] == config.generator_steps
            found.append({"whole round": now - last[0], **spent})
        spent.clear()
        last[0] = now

    for name in PARTS:
        clocked(name, spent)
    fit(model, data, generator, config, callback=report)
    print(json.dumps({"tree": training.__file__, "rounds": found}))


if __name__ == "__main__":
    main()
