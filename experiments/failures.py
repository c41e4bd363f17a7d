"""A planted failure for each diagnostic, through real fits; and 20 healthy fits.

`python -m experiments.failures [--pages DIR]`; `tests/test_diagnostics.py` plants the same and
more with exact generators.
"""

import argparse
from dataclasses import dataclass, replace
from pathlib import Path

import pyro
import pyro.distributions as dist
import torch
from torch import nn

from ebm_pp import EnergyModel, EnergyNet, Fit, FitConfig, FlowGenerator, diagnose, fit
from ebm_pp.density import Sites
from ebm_pp.report import write_report
from experiments.table import Row, write_table
from models import gaussian
from models.planar import moons

CONFIG = FitConfig(rounds=20, progress=False, pool=4096, batch=256, warm_start_steps=200)


Planted = tuple[Fit, Sites]  # and rows to judge it by


@dataclass(frozen=True)
class Settings:
    """What is run."""

    rows: int = 4000
    seeds: int = 20  # healthy fits
    config: FitConfig = CONFIG


def two_modes() -> None:
    """Equal Gaussians at -3 and 3 in both coordinates, over a wide base."""
    x = pyro.sample("x", dist.Normal(torch.zeros(2), 4.0).to_event(1))
    log_base = dist.Normal(0.0, 4.0).log_prob(x).sum()
    modes = torch.stack([dist.Normal(m, 1.0).log_prob(x).sum() for m in (-3.0, 3.0)])
    pyro.factor("modes", modes.logsumexp(0) - log_base)


def heavy_tailed() -> None:
    """Student-t with two degrees of freedom in the plane."""
    pyro.sample("x", dist.StudentT(2.0, torch.zeros(2), 1.0).to_event(1))


class FrozenBond(nn.Module):
    """Two learned factors and one whose weight is wrong and can't be learned."""

    def __init__(self) -> None:
        super().__init__()
        self.field = nn.Parameter(torch.zeros(2))

    def forward(self) -> None:
        x = pyro.sample("x", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.factor("field", (self.field * x).sum(-1))
        pyro.factor("bond", 0.1 * x[..., 0] * x[..., 1])  # the data's is 0.5


class Loose(nn.Module):
    """Two moons over a base measure four times as wide."""

    def __init__(self) -> None:
        super().__init__()
        self.net = EnergyNet(moons(4000, seed=1)["x"])

    def forward(self) -> None:
        x = pyro.sample("x", dist.Normal(torch.zeros(2), 4.0).to_event(1))
        pyro.factor("shape", -self.net(x))


def dropped_mode(settings: Settings) -> Planted:
    """The paper's reverse KL from a start on one mode."""
    model = EnergyModel(two_modes)
    signs = 3.0 * (2 * torch.randint(0, 2, (settings.rows, 1)) - 1)
    data = {"x": signs + torch.randn(settings.rows, 2)}
    start = {"x": torch.randn(settings.rows, 2) - 3}
    config = replace(settings.config, generator_loss="reverse_kl", base_share=0.0)
    return fit(model, None, FlowGenerator(model, start), config), data


def narrow_proposal(settings: Settings) -> Planted:
    """A healthy fit whose generator is exchanged for one of half the data's scale."""
    result, held_out = healthy(settings, 0)
    narrow = FlowGenerator(result.model, held_out, scale=0.5)
    return replace(result, generator=narrow), held_out


def wrong_factor(settings: Settings) -> Planted:
    """A factor that the training cannot mend."""
    precision = torch.tensor([[1.0, -0.5], [-0.5, 1.0]])
    law = dist.MultivariateNormal(torch.zeros(2), precision_matrix=precision)
    model = EnergyModel(FrozenBond())
    result = fit(model, {"x": law.sample((settings.rows,))}, config=settings.config)
    return result, {"x": law.sample((settings.rows,))}


def heavy_tail(settings: Settings) -> Planted:
    """A flow on a normal base against a Student-t density."""
    model = EnergyModel(heavy_tailed)
    generator = FlowGenerator(model, model.sample_base(settings.rows))
    result = fit(model, None, generator, replace(settings.config, base_share=0.0))
    return result, model.sample_base(settings.rows)


def leaked_mass(settings: Settings) -> Planted:
    """As in the paper no draws of the base measure, so nothing holds the energy where q is not."""
    model = EnergyModel(Loose())
    config = replace(settings.config, base_share=0.0)
    return fit(model, moons(settings.rows, seed=1), config=config), moons(settings.rows, seed=2)


PLANTS = (dropped_mode, narrow_proposal, wrong_factor, heavy_tail, leaked_mass)


def healthy(settings: Settings, seed: int) -> Planted:
    """A fit to data of its own family, and held-out rows."""
    truth = gaussian.true_parameters(2)
    data = gaussian.draws(truth, settings.rows, 100 + seed)
    held_out: Sites = gaussian.draws(truth, settings.rows, 200 + seed)
    torch.manual_seed(seed)
    model = EnergyModel(gaussian.Gaussian(2))
    return fit(model, data, config=replace(settings.config, seed=seed)), held_out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pages", type=Path, help="folder for an HTML report of each")
    options = parser.parse_args()
    torch.set_num_threads(1)
    settings, rows = Settings(), []
    for plant in PLANTS:
        torch.manual_seed(0)
        result, data = plant(settings)
        report = diagnose(result, data, seed=0)
        row: Row = {
            "planted": plant.__name__,
            "named": ", ".join(report.problems) or "nothing",
            "verdict": report.verdict.split("\n")[0],
        }
        rows.append(row)
        print(row, flush=True)
        if options.pages:
            page = options.pages / f"{plant.__name__}.html"
            write_report(result, data, page, title=plant.__name__)
    flagged = []
    for seed in range(settings.seeds):
        result, held_out = healthy(settings, seed)
        report = diagnose(result, held_out, seed=seed)
        if report.problems:
            flagged.append(f"seed {seed}: {', '.join(report.problems)}")
        print(seed, report.problems, flush=True)
    rows.append(
        {
            "planted": f"nothing ({settings.seeds} healthy fits)",
            "named": f"{len(flagged)} flagged",
            "verdict": "; ".join(flagged) or "none flagged",
        }
    )
    print(
        write_table(
            "failures",
            "Planted failures and what the report says",
            "python -m experiments.failures",
            rows,
        )
    )


if __name__ == "__main__":
    main()
