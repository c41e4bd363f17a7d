"""Checking a user's rows against the sites of a model. Nothing is clamped, dropped or repaired.

Every check is vectorised over rows; messages give the count and the first row numbers.
"""

from collections.abc import Mapping

import numpy as np
import torch
from pyro.distributions import constraints
from torch import Tensor

from ebm_pp.demonstrations import unequal_lengths, whole
from ebm_pp.errors import DataError
from ebm_pp.program import Site, Sites
from ebm_pp.support import describe, plain

SHOWN = 5  # row numbers in a message


def check_rows(
    x: object, sites: dict[str, Site], dtype: torch.dtype, device: torch.device
) -> Sites:
    """User data as tensors of the model, or an error that names site and rows.

    Args:
        x: A mapping from site name to an array, tensor or nested list `(n, *site_shape)`.
        sites: The model's latent sites.
        dtype: The floating type to convert to.
        device: The device to convert to.

    Returns:
        The rows, each value `(n, *site_shape)`, in the order of `sites`.

    Raises:
        DataError: A site is missing or unknown, a shape or dtype is wrong, rows are not
            finite, outside the support or on its boundary, or there are no rows.
    """
    named = _named(x, sites)
    rows = {name: _to_tensor(named[name], site, dtype, device) for name, site in sites.items()}
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
    for name, site in sites.items():
        if site.trajectory is None:  # trajectories: demonstrations.py
            _check_values(rows[name], site)
    return rows


def _named(x: object, sites: dict[str, Site]) -> Mapping[str, object]:
    """The data, if they are a mapping with exactly the model's sites."""
    if not isinstance(x, Mapping):
        raise DataError(
            f"the data are {type(x).__name__}; expected a dict from site name to rows, with the "
            f"sites {list(sites)}.\n  Name the columns: {{{next(iter(sites))!r}: values}}."
        )
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


def _to_tensor(value: object, site: Site, dtype: torch.dtype, device: torch.device) -> Tensor:
    """One site's rows as a tensor of the right dtype and shape."""
    if not isinstance(value, Tensor):
        try:
            value = np.asarray(value)
        except ValueError as error:
            if site.trajectory is not None:
                raise unequal_lengths(site.name, value, site.shape) from error
            raise DataError(
                f"site {site.name!r}: rows have different lengths; expected an array of shape "
                f"{_shape(site)}.\n  Bring every row to the same shape."
            ) from error
        if value.dtype.kind not in "fiu":
            raise DataError(_dtype_text(site, str(value.dtype)))
        wide = value.dtype.kind != "f" or value.dtype.itemsize > 4
        # A copy, since a read-only array cannot become a tensor.
        value = torch.from_numpy(np.array(value, dtype=np.float64 if wide else np.float32))
    if value.is_complex() or value.dtype == torch.bool:
        raise DataError(_dtype_text(site, str(value.dtype).removeprefix("torch.")))
    if tuple(value.shape[1:]) != site.shape or not value.dim():
        hint = "each row is one draw, with the rows first"
        if value.dim() == len(site.shape):
            hint = "the leading dimension of rows is missing: add it with x[None]"
        elif site.trajectory is not None:
            hint = "another horizon: pad with demonstrations.pad, or declare theirs"
        elif value.numel() == len(value) * int(np.prod(site.shape)):
            hint = f"only the shape differs: reshape to {(-1, *site.shape)}"
        raise DataError(
            f"site {site.name!r} has shape {tuple(value.shape)}; expected {_shape(site)}.\n  "
            f"Most likely {hint}."
        )
    if site.trajectory is not None and site.trajectory.space.n:
        return whole(value.detach().to(device), site.name)
    return value.detach().to(device=device, dtype=dtype)


def _dtype_text(site: Site, got: str) -> str:
    return (
        f"site {site.name!r} has dtype {got}; expected real numbers.\n  Most likely text, "
        "categories or missing entries (None) in the column: convert it to floating point first."
    )


def _shape(site: Site) -> str:
    return f"({', '.join(['n', *map(str, site.shape)])}{',' if not site.shape else ''})"


def _check_values(value: Tensor, site: Site) -> None:
    flat = value.reshape(len(value), -1)
    _refuse(
        ~torch.isfinite(flat).all(-1),
        value,
        site,
        "are NaN or infinite",
        "Most likely missing measurements: drop these rows, in every site.",
    )
    if site.circular:
        return
    on_edge = _on_boundary(site.support, value)
    _refuse(
        ~_inside(site.support, value) & ~on_edge,
        value,
        site,
        f"lie outside {describe(site.support)}",
        "Most likely other units, or a wrong support in the program: correct one of them.",
    )
    _refuse(
        on_edge,
        value,
        site,
        f"lie on the boundary of {describe(site.support)}",
        "An unconstrained flow cannot reach it: rescale, or jitter inside.",
    )


def _refuse(bad: Tensor, value: Tensor, site: Site, what: str, fix: str) -> None:
    if not bool(bad.any()):
        return
    rows = bad.nonzero().flatten()[:SHOWN].tolist()
    count, first = int(bad.sum()), value[rows[0]]
    shown = f"value {first.item():g}" if not first.dim() else f"value {first.tolist()}"
    others = f"; rows {', '.join(map(str, rows))}{', ...' if count > SHOWN else ''}"
    raise DataError(
        f"site {site.name!r}: {count} of {len(value)} rows {what} (first: row {rows[0]}, {shown}"
        f"{others if count > 1 else ''}).\n  {fix}"
    )


def _inside(support: constraints.Constraint, value: Tensor) -> Tensor:
    """Whether each row lies in the closed support."""
    if isinstance(support, type(constraints.simplex)):
        # A sum of K rounded parts is off by about K units of rounding.
        slack = 1e-6 + value.shape[-1] * torch.finfo(value.dtype).eps
        good = (value >= 0).all(-1) & ((value.sum(-1) - 1).abs() <= slack)
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
        edge |= touch.reshape(len(value), -1).any(-1)
    return edge
