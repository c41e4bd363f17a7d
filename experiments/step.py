"""What a Pyro-declared model costs: one energy step against the same step written by hand.

`python -m experiments.step`. Both steps score 1,024 rows of data (and nu draws for each), take the
discriminator's loss and one step of Adam, alternating in one process.
"""

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ebm_pp import EnergyModel, losses
from experiments.table import Row, write_table
from models.planar import Planar


@dataclass(frozen=True)
class Settings:
    """What is run."""

    batches: tuple[tuple[int, int], ...] = ((1024, 0), (1024, 1), (1024, 4))  # data, draws each
    steps: int = 50
    repeats: int = 15


class ByHand(nn.Module):
    """The same density in plain PyTorch: N(0, 2.5^2 I) and the network."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        constant = 2 * math.log(2.5) + math.log(2 * math.pi)
        log_base = -0.5 * (x / 2.5).square().sum(-1) - constant
        return log_base - self.net(x).squeeze(-1)


def step(
    log_density: Callable[[Tensor], Tensor], x: Tensor, adam: torch.optim.Adam, n: int
) -> None:
    """One energy step."""
    values = log_density(x)
    data, draws = values[:n], values[n:]
    nu = len(draws) / n
    loss = losses.discriminator(data, draws, 0.0, nu) if nu else -data.mean()
    adam.zero_grad()
    loss.backward()
    adam.step()


def run(settings: Settings, n: int, nu: int) -> Row:
    """Milliseconds of CPU a step, medians over alternating blocks."""
    torch.manual_seed(0)
    model = EnergyModel(Planar())
    plain = ByHand(model.program.net)
    x = torch.randn(n * (1 + nu), 2)
    assert torch.allclose(plain(x), model.log_density({"x": x}), atol=1e-5)
    adam = torch.optim.Adam(model.parameters(), 1e-9, fused=True)
    arms = {"by hand": plain, "Pyro program": lambda x: model.log_density({"x": x})}
    times: dict[str, list[float]] = {name: [] for name in arms}
    for repeat in range(settings.repeats + 1):
        for name, density in arms.items():
            start = time.process_time()
            for _ in range(settings.steps):
                step(density, x, adam, n)
            if repeat:  # the first is warm-up
                times[name].append((time.process_time() - start) / settings.steps * 1e3)
    ratios = [b / a for a, b in zip(*times.values(), strict=True)]
    return {
        "rows of data": n,
        "draws": n * nu,
        **{f"{name} (ms)": statistics.median(values) for name, values in times.items()},
        "ratio": statistics.median(ratios),
        "ratio, quartiles": "{0:.2f} .. {2:.2f}".format(*statistics.quantiles(ratios, n=4)),
    }


def main() -> None:
    torch.set_num_threads(1)
    settings = Settings()
    rows = [run(settings, n, nu) for n, nu in settings.batches]
    print(
        write_table(
            "step",
            "One step: a Pyro-declared model against the same step by hand",
            "python -m experiments.step",
            rows,
            "Planar program, network 2-128-128-1. With 0 draws the loss is minus the mean log "
            "density of the data.",
        )
    )


if __name__ == "__main__":
    main()
