"""Columns of rows as they are judged, and what a judgement is."""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from pyro.distributions import constraints
from torch import Tensor

from ebm_pp.circle import TURN, wrap
from ebm_pp.program import Site, Sites
from ebm_pp.stored import Data, Stored
from ebm_pp.support import plain
from ebm_pp.trajectory import Layout

SHOWN = 3  # columns in a text


@runtime_checkable
class Declared(Protocol):
    """What a judgement needs of an `EnergyModel`."""

    sites: dict[str, Site]
    layout: Layout | None

    @property
    def dtype(self) -> torch.dtype:
        """The type in which densities are evaluated."""
        ...

    def unconstrain(self, x: Sites) -> tuple[Float[Tensor, "n d"], Float[Tensor, " n"]]:
        """Unconstrained coordinates and log|dz/dx|."""
        ...


@dataclasses.dataclass(frozen=True)
class Finding:
    """One thing that is wrong with rows.

    Attributes:
        kind: `tied_rows`, `repeated_rows`, `constant_column`, `collinear`, `far_rows`,
            `coded_rows`, `another_unit`, `precision` or `whole_numbers`; the key of a fatal one in
            `Report.problems`.
        site: the site it is about.
        text: what was found, with names and numbers.
        advice: what to do.
        fatal: whether no density exists, or what is fitted to the rows means nothing; otherwise
            a caution.
        rows: numbers of far rows, the farthest first, or of rows with a code; at most 20.
        values: these rows, a list per site.
    """

    kind: str
    site: str
    text: str
    advice: str
    fatal: bool
    rows: tuple[int, ...] = ()
    values: dict[str, list[Any]] = dataclasses.field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.text}. {self.advice}"


class Column(NamedTuple):
    """One number of every row.

    name: as in tables, `x` or `x[0]`; of a matrix that of its unconstrained coordinate.
    site: its site.
    given: the values; angles in half a turn to either side of their mean direction.
    free: the unconstrained coordinate, or None where there is no other one.
    circular: whether it is an angle.
    implied: whether the columns before it determine it by the support: the last of a simplex.
    turns: angles as they came, in their own unit and not wrapped; None of other columns.
    period: what a turn of them is.
    offset: median size of the values before angles are wrapped.
    dtype: the coarser of the model's type and the one given.
    finer: whether the one given is finer than the model's.
    """

    name: str
    site: str
    given: Float[np.ndarray, " n"]
    free: Float[np.ndarray, " n"] | None
    circular: bool
    implied: bool
    turns: Float[np.ndarray, " n"] | None
    period: float
    offset: float
    dtype: torch.dtype
    finer: bool


def as_given(value: Tensor | Stored) -> Tensor | Stored:
    """Rows that are read in double precision, whatever the model's type."""
    if isinstance(value, Stored):
        return dataclasses.replace(value, dtype=torch.float64)
    return value


def columns_of(model: Declared, x: Sites, rows: Data) -> list[Column]:
    """Every column of every site."""
    z, _ = model.unconstrain(x)
    sites = model.sites.values()
    found = []
    for site, part in zip(sites, z.split([site.dim for site in sites], -1), strict=True):
        flat = x[site.name].reshape(len(z), -1)
        simplex = isinstance(plain(site.support), type(constraints.simplex))
        if not simplex and flat.shape[1] != site.dim:
            flat = part  # a matrix: of its entries some are 0, 1 or copies
        given, size = flat, flat.abs().median(0).values
        if site.circular:
            turned = flat * (TURN / site.period)
            direction = torch.atan2(turned.sin().mean(0), turned.cos().mean(0))
            given = part = wrap(turned - direction) * (site.period / TURN)
        of_rows = _type_of(rows[site.name])
        finer = torch.finfo(of_rows).eps < torch.finfo(model.dtype).eps
        for j in range(flat.shape[1]):
            values = given[:, j].cpu().numpy()
            free = part[:, j].cpu().numpy() if j < site.dim else None
            name = f"{site.name}[{j}]" if flat.shape[1] > 1 else site.name
            turns = flat[:, j].cpu().numpy() if site.circular else None
            same = free is None or np.array_equal(values, free)
            found.append(
                Column(name, site.name, values, None if same else free, site.circular,
                       simplex and j == site.dim, turns, site.period,
                       size[j].item(), model.dtype if finer else of_rows, finer)
            )  # fmt: skip
    return found


def _type_of(value: Tensor | Stored) -> torch.dtype:
    """The floating type whose digits the values have; integers are exact, as in double."""
    kind = (value.source if isinstance(value, Stored) else value).dtype
    if isinstance(kind, torch.dtype):
        return kind if kind.is_floating_point else torch.float64
    sizes = {2: torch.float16, 4: torch.float32}
    return sizes.get(kind.itemsize, torch.float64) if kind.kind == "f" else torch.float64


def table_of(columns: Sequence[Column]) -> Float[np.ndarray, "n c"]:
    """The columns that the support leaves open, side by side."""
    return np.stack([column.given for column in columns if not column.implied], 1)


def few(names: Sequence[str]) -> str:
    """Names in words, not too many of them."""
    shown, more = list(names[:SHOWN]), len(names) - SHOWN
    if more > 0:
        return f"{', '.join(shown)} and {more} other{'s' if more > 1 else ''}"
    return " and ".join([", ".join(shown[:-1]), shown[-1]] if len(shown) > 1 else shown)
