"""The energy network shipped with the library: a number for every row of real features.

    u = (x - loc) / scale,    E(x) = w . h_L(...h_1(u)) + c,    w = c = 0 at the start,

so that a program with this energy starts at its base measure.
"""

from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn


class EnergyNet(nn.Module):
    """E(x) of rows x, standardised by the data.

    Args:
        rows: data `(n, d)`, which set location and scale of every feature; or d alone, for
            features that are standardised already.
        width: units of every hidden layer.
        depth: number of hidden layers.
    """

    loc: Tensor
    scale: Tensor

    def __init__(
        self, rows: Float[Tensor, "n d"] | int, width: int = 128, depth: int = 2
    ) -> None:
        super().__init__()
        if isinstance(rows, int):
            loc, scale = torch.zeros(rows), torch.ones(rows)
        else:
            loc, scale = rows.mean(0), rows.std(0)
        self.register_buffer("loc", loc)
        self.register_buffer("scale", scale)
        sizes = (len(loc), *[width] * depth)
        layers: list[nn.Module] = []
        for size_in, size_out in pairwise(sizes):
            layers += [nn.Linear(size_in, size_out), nn.SiLU()]
        last = nn.Linear(sizes[-1], 1)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.layers = nn.Sequential(*layers, last)

    def forward(self, x: Float[Tensor, "*n d"]) -> Float[Tensor, "*n"]:
        """E(x), in nats."""
        return self.layers((x - self.loc) / self.scale).squeeze(-1)
