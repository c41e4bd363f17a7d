"""The energy network shipped with the library: waves, hidden layers, wells.

    u = (x - loc) / scale,    h = MLP([u, sin W u, cos W u]),    E(x) = -log (1/K) sum_k exp h_k,

with W ~ N(0, frequency^2 / d) at the start, learned like all else, and h close to 0, so that a
program with this energy starts next to its base measure. The waves let it learn edges and modes
that a plain network takes thousands of steps to see (Tancik et al. 2020, arXiv:2006.10739); with
the sum of wells exp(-E) is a mixture, whose modes need not be carved out of one another.
"""

import math
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
        waves: rows of W; 0 for none.
        frequency: root mean square of the entries of W u at the start, in radians.
        wells: K.

    Example:
        >>> energy = EnergyNet(torch.randn(100, 3))
        >>> energy(torch.zeros(5, 3)).shape
        torch.Size([5])
    """

    loc: Tensor
    scale: Tensor

    def __init__(
        self,
        rows: Float[Tensor, "n d"] | int,
        width: int = 128,
        depth: int = 2,
        *,
        waves: int = 16,
        frequency: float = 1.5,
        wells: int = 16,
    ) -> None:
        super().__init__()
        if isinstance(rows, int):
            loc, scale = torch.zeros(rows), torch.ones(rows)
        else:
            loc, scale = rows.mean(0), rows.std(0)
        d = len(loc)
        self.register_buffer("loc", loc)
        self.register_buffer("scale", scale)
        self.waves = nn.Linear(d, waves, bias=False).to(loc) if waves else None
        if self.waves is not None:
            nn.init.normal_(self.waves.weight, std=frequency / math.sqrt(d))
        sizes = (d + 2 * waves, *[width] * depth)
        layers: list[nn.Module] = []
        for size_in, size_out in pairwise(sizes):
            layers += [nn.Linear(size_in, size_out), nn.SiLU()]
        last = nn.Linear(sizes[-1], wells)
        nn.init.normal_(last.weight, std=0.01)  # not 0: equal wells would stay equal
        nn.init.zeros_(last.bias)
        self.layers = nn.Sequential(*layers, last).to(loc)
        self.wells = wells

    def forward(self, x: Float[Tensor, "*n d"]) -> Float[Tensor, "*n"]:
        """E(x), in nats."""
        u = (x - self.loc) / self.scale
        if self.waves is not None:
            phase = self.waves(u)
            u = torch.cat([u, phase.sin(), phase.cos()], -1)
        return math.log(self.wells) - self.layers(u).logsumexp(-1)
