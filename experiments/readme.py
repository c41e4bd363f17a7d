"""The README's example, as it stands there: `python -m experiments.readme`."""

import pyro
import pyro.distributions as dist
import torch
from torch import nn

import ebm_pp
from models.planar import moons

data = moons(8192, seed=1)


class Moons(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = ebm_pp.EnergyNet(data["x"])  # any network will do

    def forward(self):
        x = pyro.sample("x", dist.Normal(torch.zeros(2), 2.5).to_event(1))  # base measure
        pyro.factor("shape", -self.net(x))  # minus the energy


def main() -> None:
    torch.set_num_threads(1)
    model = ebm_pp.EnergyModel(Moons())
    fit = ebm_pp.fit(model, data, held_out=moons(2000, seed=2))
    print(ebm_pp.diagnose(fit, moons(4000, seed=3)))
    draws = ebm_pp.resample(ebm_pp.importance_sample(fit, 4000, seed=0), 2000, seed=0)
    tree = ebm_pp.to_datatree(fit, data=moons(4000, seed=3))  # then ArviZ: summary, plot_pair, ...
    print(fit.status.value, draws["x"].shape, list(tree.children), sep="\n")


if __name__ == "__main__":
    main()
