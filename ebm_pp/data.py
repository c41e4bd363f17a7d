"""Checking a user's rows against the sites of a model. Nothing is clamped, dropped or repaired.

`columns` names single numbers of rows as tables do, `x` or `x[0]`, `x[1]`, ...

Every check is vectorised over rows, one piece of them after the other, so that files larger than
memory can be checked; messages give the count and the first row numbers.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from pyro.distributions import constraints
from torch import Tensor

from ebm_pp.arrays import real_numbers, unit_of
from ebm_pp.demonstrations import check_demonstrations, unequal_lengths, whole
from ebm_pp.errors import DataError
from ebm_pp.names import column_names
from ebm_pp.program import Site
from ebm_pp.stored import Data, Stored, pieces
from ebm_pp.support import describe, plain
from ebm_pp.trajectory import Layout
from ebm_pp.units import check_unit

SHOWN = 5  # row numbers in a message
FAULTS = {  # what is wrong with rows: what to do
    "are NaN or infinite": "Most likely missing measurements (NaN, None, NA, masked): drop "
    "these rows, in every site.",
    "lie outside {support}": "Most likely other units, or a wrong support in the program: correct "
    "one of them.",
    "lie on the boundary of {support}": "An unconstrained flow cannot reach it: rescale, or "
    "jitter inside.",
}


TOO_LARGE = (
    "The numbers are finite, but beyond single precision (3.4e38): rescale the column, or use "
    "model.double()."
)


def columns(x: Mapping[str, Tensor]) -> dict[str, Float[Tensor, " n"]]:
    """Every number of every site as a column of its own.

    Examples:
        >>> list(columns({"angle": torch.zeros(5), "x": torch.zeros(5, 2)}))
        ['angle', 'x[0]', 'x[1]']
    """
    flat = {name: value.reshape(len(value), -1) for name, value in x.items()}
    names = column_names({name: value.shape[1] for name, value in flat.items()})
    return {
        label: column
        for name, value in flat.items()
        for label, column in zip(names[name], value.T, strict=True)
    }


def as_rows(
    x: object, sites: dict[str, Site], dtype: torch.dtype, device: torch.device
) -> dict[str, Tensor]:
    """Rows of any container as tensors that the program takes; their values are not checked.

    Args:
        x: a mapping from site name to an array, tensor or nested list `(n, *site_shape)`; other
            names in it are passed over. A tensor that fits is passed on itself, with its graph.
        sites: the model's latent sites.
        dtype: the floating type to convert to.
        device: the device to convert to.

    Raises:
        DataError: a site is missing, or a value is not `(n, *site_shape)` or no real numbers.
    """
    if not isinstance(x, Mapping):
        raise _no_mapping(x, sites)
    missing = sites.keys() - x.keys()
    if missing:
        raise DataError(
            f"site {min(missing)!r} is missing: got {sorted(x)}, expected {list(sites)}."
        )
    rows = {name: _converted(x[name], site, dtype, device) for name, site in sites.items()}
    first = rows[next(iter(sites))]
    n = len(first) if first.dim() else 0
    for name, site in sites.items():
        if tuple(rows[name].shape) != (n, *site.shape):
            raise DataError(
                f"site {name!r}: got shape {tuple(rows[name].shape)}, expected "
                f"(n, *{site.shape}) with the same n for every site (the first has {n}).\n"
                "  Most likely one draw without a leading n (value[None]), or a dimension "
                "too many."
            )
    return rows


def _converted(
    value: Any,  # noqa: ANN401 - whatever the user has
    site: Site,
    dtype: torch.dtype,
    device: torch.device,
) -> Tensor:
    """One site's rows; integers where they are states of a table."""
    table = site.trajectory is not None and site.trajectory.space.n
    wanted = torch.long if table else dtype
    if type(value) is Tensor and (value.dtype, value.device) == (wanted, device):
        return value
    value = real_numbers(value, f"site {site.name!r}")
    if isinstance(value, Tensor) and not table:
        return value.to(device=device, dtype=dtype)
    if not isinstance(value, Tensor):  # a copy: torch takes neither files nor other byte orders
        value = torch.from_numpy(np.array(value, dtype=np.float64))
    rows = value.to(device=device, dtype=torch.float64)
    return whole(rows, site.name) if table else rows.to(dtype)


def check_rows(
    x: object,
    sites: dict[str, Site],
    dtype: torch.dtype,
    device: torch.device,
    layout: Layout | None = None,
) -> Data:
    """User data as rows of the model, or an error that names site and rows.

    Args:
        x: A mapping from site name to an array, tensor or nested list `(n, *site_shape)`.
        sites: The model's latent sites.
        dtype: The floating type to convert to.
        device: The device to convert to.
        layout: The trajectory that the sites make, if they make one.

    Returns:
        The rows, each value `(n, *site_shape)`, in the order of `sites`. What fits is the user's
        own tensor; what does not stays where it is and is converted as it is read (`Stored`), but
        for trajectories, which are converted whole.

    Raises:
        DataError: A site is missing or unknown, a shape or dtype is wrong, rows are not
            finite, outside the support or on its boundary, or there are no rows.
    """
    rows = lazy_rows(x, sites, dtype, device)
    for name, site in sites.items():
        if site.trajectory is None:
            _check_values(rows[name], site)
        if site.circular:
            check_unit(rows[name], site, unit_of(_named(x, sites)[name]))
    if layout is not None:
        check_demonstrations({name: value[:] for name, value in rows.items()}, layout)
    return rows


def lazy_rows(x: object, sites: dict[str, Site], dtype: torch.dtype, device: torch.device) -> Data:
    """`check_rows` up to the values themselves, which it does not look at."""
    named = _named(x, sites)
    rows = {name: _rows(named[name], site, dtype, device) for name, site in sites.items()}
    lengths = {name: len(value) for name, value in rows.items()}
    if len(set(lengths.values())) > 1:
        raise DataError(
            f"sites have different numbers of rows: {lengths}; expected the same for all.\n  "
            "Most likely missing values were dropped from one column: drop whole rows."
        )
    if not next(iter(lengths.values())):
        raise DataError(
            "the data are empty: 0 rows; expected at least one.\n  Most likely a filter removed "
            "every row; for a density without data use fit(model, data=None)."
        )
    return rows


def _named(x: object, sites: dict[str, Site]) -> Mapping[str, object]:
    """The data, if they are a mapping with exactly the model's sites."""
    if not isinstance(x, Mapping):
        raise _no_mapping(x, sites)
    for name in sites:
        if name not in x:
            raise DataError(
                f"site {name!r} is missing from the data: got {list(x)}, expected {list(sites)}."
                "\n  Most likely a column has another name: rename it to the site's."
            )
    for name in x:
        if name not in sites:
            raise DataError(
                f"site {name!r} of the data is unknown to the program: got {list(x)}, expected "
                f"{list(sites)}.\n  Most likely a misspelt or additional column: leave it out."
            )
    return x


def _no_mapping(x: object, sites: dict[str, Site]) -> DataError:
    return DataError(
        f"the data are {type(x).__name__}; expected a dict from site name to rows, with the "
        f"sites {list(sites)}.\n  Name the columns: {{{next(iter(sites))!r}: values}}."
    )


def _rows(
    value: Any,  # noqa: ANN401 - whatever the user has
    site: Site,
    dtype: torch.dtype,
    device: torch.device,
) -> Tensor | Stored:
    """One site's rows, of the right shape and of real numbers."""
    if isinstance(value, Stored):
        return value  # through this door before
    trajectory = site.trajectory is not None
    value = real_numbers(
        value,
        f"site {site.name!r}",
        lambda: unequal_lengths(site.name, value, site.shape) if trajectory else _ragged(site),
    )
    _check_shape(tuple(value.shape), site)
    if site.trajectory is not None and site.trajectory.space.n:
        return whole(Stored(value, torch.float64, device)[:], site.name)
    if isinstance(value, Tensor) and (value.dtype, value.device) == (dtype, device):
        return value.clone() if value.is_inference() else value.detach()
    stored = Stored(value, dtype, device)
    return stored if site.trajectory is None else stored[:]


def _check_shape(shape: tuple[int, ...], site: Site) -> None:
    if shape[1:] == site.shape and shape:
        return
    hint = "each row is one draw, with the rows first"
    if shape and math.prod(shape[1:]) == math.prod(site.shape):
        hint = f"only the shape differs: reshape to {(-1, *site.shape)}"
    elif len(shape) == len(site.shape):
        hint = "the leading dimension of rows is missing: add it with x[None]"
    elif site.trajectory is not None:
        hint = "another horizon: pad with demonstrations.pad, or declare theirs"
    raise DataError(
        f"site {site.name!r} has shape {shape}; expected {_shape(site)}.\n  Most likely {hint}."
    )


def _ragged(site: Site) -> DataError:
    return DataError(
        f"site {site.name!r}: rows have different lengths; expected an array of shape "
        f"{_shape(site)}.\n  Bring every row to the same shape."
    )


def _shape(site: Site) -> str:
    return f"({', '.join(['n', *map(str, site.shape)])}{',' if not site.shape else ''})"


def _check_values(value: Tensor | Stored, site: Site) -> None:
    """Refuses all rows of the first kind of fault that there is, in the order of `FAULTS`."""
    counts = dict.fromkeys(FAULTS, 0)
    first: dict[str, list[int]] = {what: [] for what in FAULTS}
    for start, piece in pieces(value):
        for what, bad in _faults(piece, site):
            counts[what] += int(bad.sum())
            if len(first[what]) < SHOWN:
                first[what] += (start + bad.nonzero().flatten()[:SHOWN]).tolist()
    for what, fix in FAULTS.items():
        if counts[what]:
            rows, others = first[what][:SHOWN], ""
            one = value[rows[0] : rows[0] + 1][0]
            shown = f"value {one.item():g}" if not one.dim() else f"value {one.tolist()}"
            if what == next(iter(FAULTS)) and _fits_double(value, rows[0]):
                fix = TOO_LARGE
            if counts[what] > 1:
                dots = ", ..." if counts[what] > SHOWN else ""
                others = f"; rows {', '.join(map(str, rows))}{dots}"
            raise DataError(
                f"site {site.name!r}: {counts[what]} of {len(value)} rows "
                f"{what.format(support=describe(site.support))} (first: row {rows[0]}, {shown}"
                f"{others}).\n  {fix}"
            )


def _fits_double(value: Tensor | Stored, row: int) -> bool:
    """Whether the user's own numbers are finite, and only what they were converted to is not."""
    if not isinstance(value, Stored):
        return False
    exact = Stored(value.source, torch.float64, value.device)[row : row + 1]
    return bool(exact.isfinite().all())


def _faults(value: Tensor, site: Site) -> Iterator[tuple[str, Tensor]]:
    """What is wrong with which rows, `(n,)`, in the order of `FAULTS`."""
    not_finite, outside, on_boundary = FAULTS
    bad = ~torch.isfinite(value.reshape(len(value), -1)).all(-1)
    yield not_finite, bad
    if site.circular or bool(bad.any()):
        return
    on_edge = _on_boundary(site.support, value)
    yield outside, ~_inside(site.support, value) & ~on_edge
    yield on_boundary, on_edge


def _inside(support: constraints.Constraint, value: Tensor) -> Tensor:
    """Whether each row lies in the closed support."""
    if isinstance(support, type(constraints.simplex)):
        # A sum of K rounded parts is off by about K units of rounding.
        slack = 1e-6 + value.shape[-1] * torch.finfo(value.dtype).eps
        good = (value >= 0).all(-1) & ((value.sum(-1) - 1).abs() <= slack)
    elif type(plain(support)) is type(constraints.positive_definite):
        good = support.check(value) & (torch.linalg.cholesky_ex(value).info == 0)
    else:
        good = support.check(value)
    return good.reshape(len(value), -1).all(-1)


def _on_boundary(support: constraints.Constraint, value: Tensor) -> Tensor:
    """Whether a row touches the edge of its support, where no coordinate is finite."""
    support = plain(support)
    touching = [
        value == getattr(support, bound)
        for bound in ("lower_bound", "upper_bound")
        if hasattr(support, bound)
    ]
    kind = type(support)
    if kind in (type(constraints.simplex), type(constraints.positive_ordered_vector)):
        touching.append(value == 0)
    if kind in (type(constraints.ordered_vector), type(constraints.positive_ordered_vector)):
        touching.append(value.diff() == 0)
    if kind in (type(constraints.lower_cholesky), type(constraints.corr_cholesky)):
        touching.append(value.diagonal(dim1=-2, dim2=-1) == 0)
    edge = torch.zeros(len(value), dtype=torch.bool, device=value.device)
    for touch in touching:
        edge = edge | touch.reshape(len(value), -1).any(-1)  # not in place, for `vmap`
    return edge


def is_bounded(site: Site) -> bool:
    """Whether finite numbers can lie outside a site's support."""
    everywhere = isinstance(plain(site.support), type(constraints.real))
    return not (everywhere or site.circular or site.trajectory)


def in_support(site: Site, value: Tensor) -> Tensor:
    """Whether each row lies in its support as declared, NaN too: it is not known to be outside."""
    nan = value.isnan().reshape(len(value), -1).any(-1)
    return _inside(site.support, value) | nan


def inside_of(sites: dict[str, Site], x: Mapping[str, Tensor]) -> Tensor:
    """Whether each draw is finite and strictly inside its supports."""
    good = []
    for name, site in sites.items():
        value = x[name]
        ok = torch.isfinite(value.reshape(len(value), -1)).all(-1)
        if not site.circular and site.trajectory is None:
            ok &= _inside(site.support, value) & ~_on_boundary(site.support, value)
        good.append(ok)
    return torch.stack(good).all(0)
