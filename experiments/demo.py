"""The main job on real data: fit the wind model, print its report, write runs/wind/.

`python -m experiments.demo --out runs/wind` (what `make demo` runs).
"""

import argparse
import time
from dataclasses import replace
from pathlib import Path

import matplotlib as mpl
import torch

from ebm_pp import EnergyModel, fit
from ebm_pp.cli import write_run
from experiments.wind import CONFIG, split
from models.wind import Wind, load_wind


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/wind"))
    parser.add_argument("--rounds", type=int, default=CONFIG.rounds)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    mpl.use("agg")
    torch.set_num_threads(1)  # faster than two for networks of this size
    start = time.process_time()
    load_wind()  # prints what was left out of the data and why
    train, validation, test, days = split()
    torch.manual_seed(options.seed)
    model = EnergyModel(Wind())
    config = replace(CONFIG, rounds=options.rounds, seed=options.seed)
    result = fit(model, train, config=config, held_out=validation)
    print(f"\n{result.status.value} {result.detail}\n")
    # Hours of a day go together: only days count as independent.
    report = write_run(
        result, test, options.out, groups=days, spec="models.wind:Wind", seed=options.seed
    )
    print(report)
    print("\nThe factors' weights (what is left beside the network `interaction`):")
    for name, value in model.named_parameters():
        if "net" not in name:
            numbers = ", ".join(f"{v:+.3f}" for v in value.detach().flatten().tolist())
            print(f"  {name.removeprefix('program.'):22s} {numbers}")
    cpu = time.process_time() - start
    print(f"\nWrote {options.out}/: fit.pt, draws.nc, report.txt and pictures. {cpu:.0f} CPU s.")


if __name__ == "__main__":
    main()
