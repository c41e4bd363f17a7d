"""Labels of rows: rows of one label (hours of a day, shots of a run) go together."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Int
from torch import Tensor

from ebm_pp.arrays import with_none
from ebm_pp.density import EnergyModel, Rows, Sites
from ebm_pp.errors import DataError
from ebm_pp.stored import representative

# One label a row: numbers, text, dates or categories, in an array, tensor, list or column.
Labels = Any
SHOWN = 5  # row numbers in a message


def as_labels(groups: Labels, rows: int) -> Int[Tensor, " rows"]:
    """Labels of any kind as the integers from 0 on, equal where the labels are.

    Args:
        groups: one label a row; dates with a time are as different as their times.
        rows: how many there must be.

    Raises:
        DataError: not one label a row, a label is missing, or all are the same.
    """
    column = _column(groups, rows)
    missing = np.asarray(pd.isna(column), dtype=bool)
    if missing.any():
        at = np.flatnonzero(missing)
        dots = ", ..." if len(at) > SHOWN else ""
        raise DataError(
            f"groups: {len(at)} of {rows} labels are missing (rows "
            f"{', '.join(map(str, at[:SHOWN]))}{dots}); expected one per row.\n  Drop these rows, "
            "of the data too, or give every one a label of its own."
        )
    try:
        codes, kinds = pd.factorize(column)
    except TypeError as error:
        raise DataError(
            f"groups: a label is {type(column[0]).__name__}; expected numbers, text or dates.\n"
            "  Turn every label into text, [str(label) for label in groups]."
        ) from error
    if len(kinds) < 2:
        raise DataError(
            f"groups has {len(column)} labels, {len(kinds)} of them different; expected two "
            "different ones at least.\n  Groups count as independent: one alone tells no error. "
            "Leave groups out, or label the rows more finely."
        )
    return torch.from_numpy(codes.astype(np.int64))


def _column(groups: Labels, rows: int) -> Any:  # noqa: ANN401 - an array of pandas or numpy
    """One dimension of labels, as many as rows."""
    if isinstance(groups, Mapping | str) or not hasattr(groups, "__len__"):
        kind = repr(groups) if isinstance(groups, str) else type(groups).__name__
        raise DataError(
            f"groups is {kind}; expected one label per row ({rows}).\n  Most likely a column's "
            "name instead of the column, or an iterator: pass table['day'], or list(labels)."
        )
    if isinstance(groups, Tensor):
        groups = groups.detach().cpu().numpy()
    if isinstance(groups, np.ma.MaskedArray):
        groups = with_none(groups)
    if isinstance(groups, list | tuple):
        items = (g.item() if isinstance(g, Tensor) and not g.dim() else g for g in groups)
        column = np.fromiter(items, dtype=object, count=len(groups))
    elif isinstance(groups, pd.Series | pd.Index | pd.api.extensions.ExtensionArray):
        column = pd.array(groups) if len(groups) else np.empty(0)
    else:
        column = np.asarray(groups)
    if column.ndim != 1 or len(column) != rows:
        shape = f"shape {tuple(column.shape)}" if column.ndim != 1 else f"{len(column)} labels"
        fix = "Most likely labels of other rows: take them from the same split as the data."
        if column.ndim != 1:
            fix = "Take one column, x[:, 0], or join several into one text a row."
        raise DataError(f"groups has {shape}; expected one per row ({rows}).\n  {fix}")
    return column


def rows_and_labels(
    model: EnergyModel, data: Rows, groups: Labels | None
) -> tuple[Sites, Int[Tensor, " m"] | None]:
    """The rows that stand for the data, at most 100,000 spread over all, and their labels.

    Raises:
        DataError: the data do not fit the program, or groups are not one label a row.
    """
    stored, labels = model.stored(data), None
    if groups is not None:
        labels = as_labels(groups, len(next(iter(stored.values()))))
        labels = representative({"groups": labels})["groups"]
    return representative(stored), labels
