"""The energy network shipped with the library: waves, hidden layers, wells.

    u = (x - loc) / scale,    h = MLP([u, sin W u, cos W u]),
    E(x) = -log (1/K) sum_k exp[h_k(x) - 1/2 sum_j rho_kj (u_j - c_kj)^2].

exp(-E) is a mixture of K wells that the network deforms, so modes need not be carved out of one
another. Beyond the plane the wells have centres c, which start at rows of the data, and curvatures
rho, flat at the start; in the plane, where the network alone learns edges better, rho = 0. h
starts next to 0, so that a program with this energy starts near its base measure. The waves,
W ~ N(0, frequency^2 / d) at the start, show it edges that a plain network takes thousands of steps
to see (Tancik et al. 2020, arXiv:2006.10739). All of c, rho, W and the layers are learned;
`FitConfig.energy_decay` acts on W and the layers alone: on what the wells do not explain.
"""

import math
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn

FLATNESS = 0.5  # rho at the start, times sqrt(d): the sum over d coordinates varies by about this


class EnergyNet(nn.Module):
    """E(x) of rows x, standardised by the data.

    Args:
        rows: data `(n, d)`, which set location and scale of every feature, and where wells start;
            or d alone, for features that are standardised already.
        width: units of every hidden layer.
        depth: number of hidden layers.
        waves: rows of W; 0 for none.
        frequency: root mean square of W u at the start, in radians.
        wells: K; 0 for a network with one output and no wells, E(x) = -h(x).
        curved: whether rho is learned; for d > 2 unless given.

    Examples:
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
        curved: bool | None = None,
    ) -> None:
        super().__init__()
        if isinstance(rows, int):
            rows = torch.randn(max(wells, 1), rows)
            loc, scale = torch.zeros_like(rows[0]), torch.ones_like(rows[0])
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
        last = nn.Linear(sizes[-1], max(wells, 1))
        nn.init.normal_(last.weight, std=0.01)
        nn.init.zeros_(last.bias)
        self.layers = nn.Sequential(*layers, last).to(loc)
        self.wells = wells
        self.curved = bool(wells) and (d > 2 if curved is None else curved)
        if self.curved:
            some = rows[torch.randint(len(rows), (wells,))]
            self.centre = nn.Parameter((some - loc) / scale)
            self.log_rho = nn.Parameter(torch.full_like(some, math.log(FLATNESS / math.sqrt(d))))

    def forward(self, x: Float[Tensor, "*n d"]) -> Float[Tensor, "*n"]:
        """E(x), in nats."""
        u = (x - self.loc) / self.scale
        features = u
        if self.waves is not None:
            phase = self.waves(u)
            features = torch.cat([u, phase.sin(), phase.cos()], -1)
        h = self.layers(features)
        if not self.wells:
            return -h.squeeze(-1)
        if self.curved:
            rho, c = self.log_rho.exp(), self.centre
            h = h - 0.5 * (u.square() @ rho.T + (rho * c.square()).sum(-1)) + u @ (rho * c).T
        return math.log(self.wells) - h.logsumexp(-1)
