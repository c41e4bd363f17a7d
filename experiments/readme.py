"""The README's example, as it stands there: `python -m experiments.readme`."""

import pyro
import pyro.distributions as dist
import torch
from torch import nn

import ebm_pp


class Ring(nn.Module):
    """A base measure, and an energy with two interpretable factors."""

    def __init__(self) -> None:
        super().__init__()
        self.radius = nn.Parameter(torch.tensor(1.0))
        self.stiffness = nn.Parameter(torch.tensor(1.0))
        self.slope = nn.Parameter(torch.tensor(0.0))

    def forward(self) -> None:
        x = pyro.sample("x", dist.Normal(torch.zeros(2), 3.0).to_event(1))
        pyro.factor("ring", -0.5 * self.stiffness * (x.norm() - self.radius) ** 2)
        pyro.factor("tilt", self.slope * x[0])


def rows(n: int, seed: int) -> dict[str, torch.Tensor]:
    """Data: a blurred ring, denser on its right."""
    random = torch.Generator().manual_seed(seed)
    angle = torch.randn(n, generator=random)
    radius = 2 + 0.3 * torch.randn(n, generator=random)
    return {"x": torch.stack([radius * angle.cos(), radius * angle.sin()], -1)}


def main() -> None:
    torch.set_num_threads(1)
    model = ebm_pp.EnergyModel(Ring())
    fit = ebm_pp.fit(model, rows(8000, seed=1), config=ebm_pp.FitConfig(rounds=30))
    print({name: round(p.item(), 3) for name, p in model.named_parameters()})
    print(ebm_pp.diagnose(fit, rows(4000, seed=2)))


if __name__ == "__main__":
    main()
