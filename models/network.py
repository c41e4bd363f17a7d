"""A network as the energy of a vector: the program to start from when only data are known.

Site `x` of shape (d,) on the normal base N(mean, (spread sd)^2) of the data's own mean and
standard deviation, and one factor `energy`, the library's `EnergyNet`.
"""

import pyro
import pyro.distributions as dist
from jaxtyping import Float
from torch import Tensor, nn

from ebm_pp.energy_net import EnergyNet


class Network(nn.Module):
    """The program.

    Args:
        rows: data `(n, d)`.
        spread: standard deviations of the base in those of the data; must cover them.
        **settings: of `EnergyNet`.
    """

    base_mean: Tensor
    base_scale: Tensor

    def __init__(
        self, rows: Float[Tensor, "n d"], spread: float = 1.5, **settings: int | float
    ) -> None:
        super().__init__()
        self.net = EnergyNet(rows, **settings)
        self.register_buffer("base_mean", rows.mean(0))
        self.register_buffer("base_scale", spread * rows.std(0))

    def forward(self) -> None:
        """Declare one draw."""
        x = pyro.sample("x", dist.Normal(self.base_mean, self.base_scale).to_event(1))
        pyro.factor("energy", -self.net(x))
