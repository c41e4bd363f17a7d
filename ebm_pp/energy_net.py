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
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Num
from numpy.typing import NDArray
from torch import Tensor, nn

from ebm_pp.arrays import real_numbers
from ebm_pp.counts import count, number
from ebm_pp.errors import DataError, ProgramError
from ebm_pp.location import location_and_scale
from ebm_pp.stored import MOST_ROWS, Stored, some_rows

WIDEST = 10**6  # units of a layer, or features, that can be made
FLATNESS = 0.5  # rho at the start, times sqrt(d): the sum over d coordinates varies by about this


class EnergyNet(nn.Module):
    """E(x) of rows x, standardised by the data.

    Args:
        rows: data `(n, d)`, or one column `(n,)`, of any container, which set location and scale
            of every feature, and where wells start; or d alone, for features that are
            standardised already. A few far rows move neither (`location.location_and_scale`).
        width: units of every hidden layer.
        depth: number of hidden layers.
        waves: rows of W; 0 for none.
        frequency: root mean square of W u at the start, in radians.
        wells: K; 0 for a network with one output and no wells, E(x) = -h(x).
        curved: whether rho is learned; for d > 2 unless given.

    Raises:
        DataError: rows are no table of real numbers, a value is missing or infinite, a column is
            constant, or there are fewer than two rows; or a number is out of its range.
        ProgramError: `forward` is given another number of features.

    Examples:
        >>> energy = EnergyNet(torch.randn(100, 3))
        >>> energy(torch.zeros(5, 3)).shape
        torch.Size([5])
    """

    loc: Tensor
    scale: Tensor

    def __init__(
        self,
        rows: Any,  # noqa: ANN401 - whatever holds the user's data
        width: int = 128,
        depth: int = 2,
        *,
        waves: int = 16,
        frequency: float = 1.5,
        wells: int = 16,
        curved: bool | None = None,
    ) -> None:
        super().__init__()
        width, depth = count("width", width, 1, WIDEST), count("depth", depth, 0, WIDEST)
        waves, wells = count("waves", waves, 0, WIDEST), count("wells", wells, 0, WIDEST)
        frequency = number("frequency", frequency, 0.0, 1e30)
        if isinstance(rows, int | np.integer) and not isinstance(rows, bool):
            rows = torch.randn(max(wells, 1), count("EnergyNet's d", rows, 1, WIDEST))
            loc, scale = torch.zeros_like(rows[0]), torch.ones_like(rows[0])
        else:
            rows, names = _table(rows)
            loc, scale = location_and_scale(rows, correction=1)
            _require_spread(scale, rows, names)
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

    def forward(self, x: Num[Tensor, "..."]) -> Float[Tensor, "*n"]:
        """E(x) of features `(*n, d)`, in nats."""
        if x.shape[-1:] != self.loc.shape:
            raise ProgramError(
                f"EnergyNet: got an input of shape {tuple(x.shape)}; expected (..., "
                f"{len(self.loc)}), the features of its rows.\n  Of scalar sites make one vector, "
                "torch.stack([x, y], -1) or x[..., None]; or make the net with rows of these "
                "features."
            )
        u = ((x - self.loc) / self.scale).to(self.loc.dtype)
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


def _table(rows: Any) -> tuple[Float[Tensor, "n d"], list[str]]:  # noqa: ANN401 - user's data
    """Rows as floating-point numbers, and what their columns are called.

    Single and double precision of a tensor stay; all else takes torch's default type. Of an array
    with more than 100,000 rows, which may be a file, so many are read.
    """
    if isinstance(rows, Mapping):
        raise DataError(
            f"EnergyNet was given a dict with {list(rows)}; expected rows (n, d) of the features "
            f"that it sees.\n  Pass one site's rows, EnergyNet(data[{next(iter(rows), 'x')!r}])."
        )
    names = [repr(name) for name in getattr(rows, "columns", [])]
    table = real_numbers(rows, "EnergyNet's rows")
    shape = tuple(table.shape)
    if len(shape) not in (1, 2) or not math.prod(shape):
        fix = "Pass at least two rows."
        if len(shape) > 2:
            fix = "Flatten them, rows.reshape(len(rows), -1), and the site in the program too."
        raise DataError(f"EnergyNet's rows have shape {shape}; expected (n, d).\n  {fix}")
    x = _converted(table)
    if len(x) < 2:
        raise DataError(
            "EnergyNet was given 1 row; expected at least two, which set location and scale.\n  "
            f"Pass the training data, or d={x.shape[1]} alone for standardised features."
        )
    bad = ~x.isfinite().all(1)
    if bad.any():
        first = ", ".join(map(str, bad.nonzero().flatten()[:5].tolist()))
        raise DataError(
            f"EnergyNet's rows: {int(bad.sum())} of {len(x)} rows are NaN or infinite (first: "
            f"rows {first}).\n  Most likely missing measurements (NaN, None, NA, masked): drop "
            "these rows, in every site."
        )
    return x, names or [str(j) for j in range(x.shape[1])]


def _converted(table: Tensor | NDArray[Any]) -> Float[Tensor, "n d"]:
    default = torch.get_default_dtype()
    if isinstance(table, Tensor):
        keeps = table.dtype in (torch.float32, torch.float64)
        x = table.detach() if keeps else table.detach().to(default)
    else:
        x = Stored(table, default, torch.get_default_device())[some_rows(len(table), MOST_ROWS)]
    return x.reshape(len(x), -1)


def _require_spread(scale: Tensor, rows: Tensor, names: list[str]) -> None:
    bad = ~(scale.isfinite() & (scale > 0))
    if bad.any():
        j = int(bad.nonzero()[0])
        raise DataError(
            f"EnergyNet's rows: column {names[j]} has spread {scale[j].item():g} over {len(rows)} "
            "rows; expected a positive number.\n  Most likely a constant column, which a "
            "continuous density can't fit: leave it out, of the program too."
        )
