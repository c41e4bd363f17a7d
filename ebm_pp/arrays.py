"""The numbers of whatever object a user has: the one door for rows of data.

An object may know more than its numbers say: a mask, NA, a fill value, a date's unit, categories.
What it knows is asked before its numbers are taken: missing entries become NaN, which every check
refuses by row, and what is no real number is an error that names the cause. Arrays and tensors
are handed on as they are, so a memory-mapped file stays where it is.
"""

import math
import numbers
from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from ebm_pp.errors import DataError

FIX = "convert it to floating point first"
CAUSES = {  # kind of a numpy dtype: what it most likely is, and what to do
    "b": f"flags (yes or no), which have no density: leave them out, or {FIX}",
    "c": f"a real and an imaginary part: {FIX}, as two columns",
    "M": f"dates: {FIX}, (x - x.min()) / np.timedelta64(1, 'D') for days",
    "m": f"durations: {FIX}, x / np.timedelta64(1, 'h') for hours",
    "U": f"text: {FIX}, pd.to_numeric(x) where it spells numbers",
    "V": "a table of several fields: give each site its own, x['field'], and "
    "convert it to floating point",
}
CAUSES |= {"S": CAUSES["U"], "T": CAUSES["U"]}
OBJECTS = f"text, categories or missing entries (None) in the column: {FIX}"
CATEGORIES = f"categories, whose codes are no measurements: leave them out, or {FIX}"
PACKED = ("scale_factor", "add_offset")  # how netCDF packs numbers into integers
FILLED = ("_FillValue", "missing_value")


def real_numbers(
    value: Any,  # noqa: ANN401 - whatever the user has
    what: str,
    ragged: Callable[[], DataError] | None = None,
) -> Tensor | NDArray[Any]:
    """An array or tensor of real numbers, NaN where an entry is masked or missing.

    Args:
        value: an array, tensor, list, table or column, of numpy, torch, pandas, xarray, or of any
            library whose objects turn into arrays; masked and nullable ones too.
        what: what it is for, the subject of the messages: `site 'x'`.
        ragged: makes the error for rows of different lengths.

    Returns:
        The user's own array or tensor, without a copy where nothing is missing.

    Raises:
        DataError: it is no array, its rows differ in length, or its entries are no real numbers.
    """
    if isinstance(value, list | tuple):
        value = _plain(value)
    if isinstance(value, Tensor):
        return _tensor(value, what, ragged)
    _refuse_packed(value, what)
    try:
        array = _array(value)
    except ValueError as error:
        raise (ragged() if ragged else _ragged(what)) from error
    if _categorical(value):
        raise no_numbers(what, "category", CATEGORIES)
    if array.dtype.kind == "O":
        array = _of_objects(array, value, what, ragged)
    if array.dtype.kind not in "fiu":
        raise no_numbers(what, str(array.dtype), CAUSES.get(array.dtype.kind, OBJECTS))
    return _with_holes(array, _missing(value, array))


def no_numbers(what: str, dtype: str, cause: str) -> DataError:
    """The error for entries that are no real numbers."""
    return DataError(f"{what} has dtype {dtype}; expected real numbers.\n  Most likely {cause}.")


def unit_of(value: object) -> str:
    """The unit that an object says its numbers have, as of xarray or pint; empty if none."""
    attrs = getattr(value, "attrs", None)
    found = attrs.get("units", "") if isinstance(attrs, Mapping) else ""
    for name in ("units", "unit"):
        found = found or getattr(value, name, "")
    return "" if callable(found) else str(found).strip().lower()


def with_none(value: np.ma.MaskedArray) -> NDArray[np.object_]:
    """The entries as objects, None where they are masked."""
    found = np.asarray(np.ma.getdata(value)).astype(object)
    found[np.ma.getmaskarray(value)] = None
    return found


def _tensor(value: Tensor, what: str, ragged: Callable[[], DataError] | None) -> Tensor:
    """A dense tensor of real numbers; a MaskedTensor's missing entries as NaN."""
    if isinstance(value, torch.masked.MaskedTensor):
        data, kept = value.get_data(), value.get_mask()
        return _tensor(data, what, ragged).where(kept, math.nan)
    if value.is_nested:
        raise ragged() if ragged else _ragged(what)
    if value.layout != torch.strided or value.is_quantized:
        dense = "x.dequantize()" if value.is_quantized else "x.to_dense()"
        raise DataError(
            f"{what} is a tensor of layout {value.layout} and dtype {value.dtype}; expected a "
            f"dense one of real numbers.\n  Pass {dense}."
        )
    if value.is_complex() or value.dtype == torch.bool:
        kind = "c" if value.is_complex() else "b"
        raise no_numbers(what, str(value.dtype).removeprefix("torch."), CAUSES[kind])
    return value


def _plain(value: Any) -> Any:  # noqa: ANN401 - nested to any depth
    """Nested lists without tensors, and with None for what is masked."""
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    if isinstance(value, np.ma.MaskedArray):
        return with_none(value).tolist()
    if isinstance(value, Tensor) and not value.is_nested:
        return value.detach().cpu().numpy()
    return value


def _array(value: Any) -> NDArray[Any]:  # noqa: ANN401 - whatever the user has
    """Its numbers, by the way that the object offers."""
    if isinstance(value, np.ma.MaskedArray):
        return value.data
    if isinstance(value, pd.Series | pd.Index | pd.DataFrame | pd.api.extensions.ExtensionArray):
        return _of_pandas(value)
    if not hasattr(value, "__array__") and callable(getattr(value, "to_numpy", None)):
        return np.asarray(value.to_numpy())
    return np.asarray(value)


def _of_pandas(value: Any) -> NDArray[Any]:  # noqa: ANN401 - a table or a column
    """Nullable numbers as floating point, NA as NaN; anything else as pandas has it."""
    dtypes = set(value.dtypes) if isinstance(value, pd.DataFrame) else {value.dtype}
    nullable = [dtype for dtype in dtypes if not isinstance(dtype, np.dtype)]
    if nullable and all(map(_counts, dtypes)):
        return value.to_numpy(dtype=np.float64, na_value=np.nan)
    return np.asarray(value)


def _counts(dtype: Any) -> bool:  # noqa: ANN401 - of pandas or numpy
    return pd.api.types.is_numeric_dtype(dtype) and not pd.api.types.is_bool_dtype(dtype)


def _categorical(value: Any) -> bool:  # noqa: ANN401 - whatever the user has
    dtypes = list(value.dtypes) if isinstance(value, pd.DataFrame) else [_dtype(value)]
    return any(isinstance(dtype, pd.CategoricalDtype) for dtype in dtypes)


def _dtype(value: object) -> object:
    return getattr(value, "dtype", None)


def _of_objects(
    array: NDArray[Any], value: object, what: str, ragged: Callable[[], DataError] | None
) -> NDArray[Any]:
    """Objects that are real numbers, None or NA; rows that are arrays themselves."""
    if not array.ndim:
        raise _no_array(value, what)
    flat = array.reshape(-1)
    if flat.size and array.ndim == 1 and all(isinstance(e, np.ndarray | list) for e in flat):
        return np.asarray(real_numbers(flat.tolist(), what, ragged))
    missing = np.asarray(pd.isna(flat), dtype=bool)
    for i in np.flatnonzero(~missing):
        if not _is_number(flat[i]):
            kind = type(flat[i])
            raise no_numbers(what, f"object, where an entry is {kind.__name__}", _cause(flat[i]))
    if flat.size and missing.all():
        raise no_numbers(what, "object, all of it None", OBJECTS)
    found = [math.nan if gone else _float(e) for e, gone in zip(flat, missing, strict=True)]
    return np.array(found, dtype=np.float64).reshape(array.shape)


def _is_number(entry: object) -> bool:
    """Real, and neither a flag nor a duration, which Python and numpy count as integers."""
    odd = isinstance(entry, bool | np.bool_ | np.timedelta64)
    return isinstance(entry, numbers.Real | Decimal) and not odd


def _float(entry: Any) -> float:  # noqa: ANN401 - any kind of real number
    try:
        return float(entry)
    except OverflowError:  # an integer beyond double precision
        return math.inf if entry > 0 else -math.inf


def _cause(entry: object) -> str:
    """What a column most likely is that has such an entry."""
    kind = np.asarray(entry).dtype.kind
    if hasattr(entry, "isoformat"):
        kind = "M" if hasattr(entry, "year") or hasattr(entry, "hour") else "m"
    return CAUSES.get(kind, OBJECTS)


def _missing(value: Any, array: NDArray[Any]) -> NDArray[np.bool_] | None:  # noqa: ANN401
    """Where an object says that an entry is missing although a number stands there."""
    found: Any = None
    if isinstance(value, np.ndarray):
        mask = getattr(value, "mask", None)
        found = mask if isinstance(mask, np.ndarray | np.bool_) else None
    elif callable(getattr(value, "is_null", None)):
        found = np.asarray(value.is_null())
    attrs = getattr(value, "attrs", None)
    if isinstance(attrs, Mapping):
        fills = [np.ravel(attrs[name]) for name in FILLED if name in attrs]
        if fills:
            found = np.isin(array, np.concatenate(fills).astype(array.dtype))
    return None if found is None or not np.any(found) else np.broadcast_to(found, array.shape)


def _with_holes(array: NDArray[Any], missing: NDArray[np.bool_] | None) -> NDArray[Any]:
    if missing is None:
        return array
    wide = array.dtype if array.dtype.kind == "f" else np.dtype(np.float64)
    found = array.astype(wide)
    found[missing] = math.nan
    return found


def _refuse_packed(value: object, what: str) -> None:
    attrs = getattr(value, "attrs", None)
    packed = [name for name in PACKED if name in attrs] if isinstance(attrs, Mapping) else []
    if packed:
        raise DataError(
            f"{what} has the attribute {packed[0]!r}; expected plain numbers.\n  Most likely read "
            "from a file without decoding: use xarray.decode_cf, or mask_and_scale=True."
        )


def _ragged(what: str) -> DataError:
    return DataError(
        f"{what}: rows have different lengths; expected one shape for all.\n  Bring every row to "
        "the same shape."
    )


def _no_array(value: object, what: str) -> DataError:
    fix = "list(x)" if hasattr(value, "__iter__") else "an array"
    if callable(getattr(value, "toarray", None)):
        fix = "x.toarray()"
    if isinstance(value, Mapping):
        fix = "the values of one key, x['name']"
    return DataError(
        f"{what} is {type(value).__name__}; expected an array, a tensor or a list of rows.\n"
        f"  Pass {fix}."
    )
