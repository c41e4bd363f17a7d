"""The README's example, as it stands there, and its picture: `python -m experiments.readme`."""

from pathlib import Path

import matplotlib as mpl
import pyro
import pyro.distributions as dist
import torch
from torch import nn

import ebm_pp
from ebm_pp.density import Sites
from ebm_pp.sampling import importance_sample, resample
from ebm_pp.training import Fit
from experiments.table import RESULTS
from models.planar import moons

data = moons(8192, seed=1)


class Moons(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = ebm_pp.EnergyNet(data["x"])  # any network will do

    def forward(self):
        x = pyro.sample("x", dist.Normal(torch.zeros(2), 2.5).to_event(1))  # base measure
        pyro.factor("shape", -self.net(x))  # minus the energy


def picture(result: Fit, test: Sites, path: Path) -> None:
    """Data, energy and corrected draws side by side."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(12, 4), layout="constrained")
    edge = torch.linspace(-4, 4, 300)
    cells = torch.stack(torch.meshgrid(edge, edge, indexing="xy"), -1).reshape(-1, 2)
    with torch.no_grad():
        density = (result.model.log_density({"x": cells})).exp().reshape(300, 300)
    drawn = resample(importance_sample(result, 20_000, seed=0), 10_000, seed=1)["x"]
    for ax, x, title in ((axes[0], test["x"], "data"), (axes[2], drawn, "draws")):
        ax.hist2d(x[:, 0].numpy(), x[:, 1].numpy(), bins=150, range=[[-4, 4]] * 2, cmap="magma")
        ax.set_title(title)
    axes[1].imshow(density, extent=(-4, 4, -4, 4), origin="lower", cmap="magma", aspect="auto")
    axes[1].set_title("exp(-energy) on its base")
    for ax in axes:
        ax.set_aspect("equal")
    figure.savefig(path, dpi=90)
    plt.close(figure)


def main() -> None:
    mpl.use("agg")
    torch.set_num_threads(1)
    model = ebm_pp.EnergyModel(Moons())
    fit = ebm_pp.fit(model, data, held_out=moons(2000, seed=2))
    print(ebm_pp.diagnose(fit, moons(4000, seed=3)))
    draws = ebm_pp.resample(ebm_pp.importance_sample(fit, 4000, seed=0), 2000, seed=0)
    tree = ebm_pp.to_datatree(fit, data=moons(4000, seed=3))  # then ArviZ: summary, plot_pair, ...
    picture(fit, moons(4000, seed=3), RESULTS / "moons.png")
    print(fit.status.value, draws["x"].shape, list(tree.children), sep="\n")


if __name__ == "__main__":
    main()
