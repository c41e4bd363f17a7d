"""A network as the energy of a vector: the program to start from when only data are known.

Site `x` of shape (d,) on the normal base N(mean, (spread sd)^2) of the data's own mean and
standard deviation, or on N(mean, spread^2 C) of their covariance too, and one factor `energy`,
the library's `EnergyNet`.
"""

import pyro
import pyro.distributions as dist
import torch
from jaxtyping import Float
from torch import Tensor, nn

from ebm_pp.energy_net import EnergyNet


class Network(nn.Module):
    """The program.

    Args:
        rows: data `(n, d)`.
        spread: standard deviations of the base in those of the data; must cover them.
        correlated: whether the base has the data's covariance, a twentieth of it on the diagonal
            alone: what few rows in many dimensions should start from.
        **settings: of `EnergyNet`.
    """

    base_mean: Tensor
    base_scale: Tensor

    def __init__(
        self,
        rows: Float[Tensor, "n d"],
        spread: float = 1.5,
        *,
        correlated: bool = False,
        **settings: int | float,
    ) -> None:
        super().__init__()
        self.net = EnergyNet(rows, **settings)
        self.register_buffer("base_mean", rows.mean(0))
        scale = rows.std(0)
        if correlated:
            covariance = rows.T.cov()
            scale = torch.linalg.cholesky(0.95 * covariance + 0.05 * covariance.diag().diag())
        self.register_buffer("base_scale", spread * scale)

    def forward(self) -> None:
        """Declare one draw."""
        if self.base_scale.dim() == 1:
            base = dist.Normal(self.base_mean, self.base_scale).to_event(1)
        else:
            base = dist.MultivariateNormal(self.base_mean, scale_tril=self.base_scale)
        x = pyro.sample("x", base)
        pyro.factor("energy", -self.net(x))
