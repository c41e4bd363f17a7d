"""Labels of every kind make the same groups; missing and odd ones are named."""

from datetime import date, timedelta
from decimal import Decimal

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
import xarray as xr

from ebm_pp import DataError, EnergyModel
from ebm_pp.labels import as_labels, rows_and_labels

DAYS = np.repeat(np.arange(6), [3, 1, 4, 2, 5, 5])
N = len(DAYS)
NAMES = [f"day {d}" for d in DAYS]
KINDS = {
    "integers": lambda: DAYS,
    "small integers": lambda: DAYS.astype(np.uint8),
    "tensor": lambda: torch.from_numpy(DAYS),
    "list": DAYS.tolist,
    "tuple": lambda: tuple(DAYS.tolist()),
    "list of tensors": lambda: list(torch.from_numpy(DAYS)),
    "floats": lambda: DAYS / 2,
    "negative": lambda: -DAYS,
    "strings": lambda: NAMES,
    "numpy strings": lambda: np.array(NAMES),
    "bytes": lambda: np.array(NAMES, "S"),
    "objects": lambda: np.array(NAMES, object),
    "Series": lambda: pd.Series(NAMES, index=np.arange(N) + 7),
    "Index": lambda: pd.Index(NAMES),
    "categories": lambda: pd.Series(NAMES, dtype="category"),
    "Categorical": lambda: pd.Categorical(NAMES, ordered=True),
    "unused categories": lambda: pd.Categorical(NAMES, [*sorted(set(NAMES)), "other"]),
    "nullable": lambda: pd.array(DAYS, dtype="Int64"),
    "arrow strings": lambda: pd.Series(NAMES, dtype="string[pyarrow]"),
    "dates": lambda: pd.Series(pd.to_datetime("2013-01-01") + pd.to_timedelta(DAYS, "D")),
    "zoned dates": lambda: pd.DatetimeIndex(
        pd.to_datetime("2013-01-01", utc=True) + pd.to_timedelta(DAYS, "D")),
    "numpy dates": lambda: np.datetime64("2013-01-01") + DAYS,
    "durations": lambda: DAYS * np.timedelta64(1, "h"),
    "periods": lambda: pd.period_range("2013", periods=6, freq="M")[DAYS],
    "Python's dates": lambda: [date(2013, 1, 1) + timedelta(int(d)) for d in DAYS],
    "decimals": lambda: [Decimal(int(d)) for d in DAYS],
    "pairs": lambda: [("station", int(d)) for d in DAYS],
    "mixed": lambda: [int(d) if d else "none" for d in DAYS],
    "unmasked": lambda: np.ma.array(DAYS),
    "DataArray": lambda: xr.DataArray(NAMES),
}  # fmt: skip


@pytest.mark.parametrize("name", KINDS)
def test_the_same_groups_from_every_kind(name):
    labels = as_labels(KINDS[name](), N)
    assert labels.dtype == torch.long
    same = labels[:, None] == labels[None]
    assert torch.equal(same, torch.from_numpy(DAYS[:, None] == DAYS[None]))


def test_flags_make_two_groups():
    assert len(as_labels(torch.arange(N) < 4, N).unique()) == 2


MISSING = {
    "nan": lambda: np.where(DAYS == 1, np.nan, DAYS),
    "None": lambda: [None if d == 1 else int(d) for d in DAYS],
    "NaT": lambda: np.where(DAYS == 1, np.datetime64("NaT"), np.datetime64("2013-01-01") + DAYS),
    "NA": lambda: pd.array(DAYS, dtype="Int64").copy(),
    "categories": lambda: pd.Categorical([None if d == 1 else str(d) for d in DAYS]),
    "strings": lambda: pd.Series([None if d == 1 else str(d) for d in DAYS]),
    "masked": lambda: np.ma.masked_equal(DAYS, 1),
    "masked strings": lambda: np.ma.array(NAMES, mask=DAYS == 1),
    "tensor": lambda: torch.where(torch.from_numpy(DAYS) == 1, torch.nan, torch.from_numpy(DAYS)),
}


@pytest.mark.parametrize("name", MISSING)
def test_missing_labels_are_named_by_row(name):
    groups = MISSING[name]()
    if name == "NA":
        groups[3] = pd.NA
    with pytest.raises(DataError, match=rf"1 of {N} labels are missing .rows 3."):
        as_labels(groups, N)


ODD = {
    "too few": (lambda: DAYS[:-1], f"groups has {N - 1} labels; expected one per row .{N}."),
    "a name": (lambda: "day", "groups is 'day'.*\n.*column's name"),
    "a dict": (lambda: {"day": DAYS}, "groups is dict"),
    "an iterator": (lambda: iter(DAYS), "groups is .*iterator"),
    "a number": (lambda: 3, "groups is int"),
    "a table": (lambda: pd.DataFrame({"a": DAYS, "b": DAYS}), r"shape \(20, 2\).*\n.*one column"),
    "a column of a matrix": (lambda: torch.from_numpy(DAYS)[:, None], r"shape \(20, 1\)"),
    "one group": (lambda: np.zeros(N), "1 of them different.*\n.*one alone tells no error"),
    "lists": (lambda: [[int(d)] for d in DAYS], "a label is list"),
}


@pytest.mark.parametrize("name", ODD)
def test_what_are_no_labels(name):
    make, phrase = ODD[name]
    with pytest.raises(DataError, match=phrase):
        as_labels(make(), N)


def test_labels_go_with_their_rows(monkeypatch):
    monkeypatch.setattr("ebm_pp.stored.MOST_ROWS", 50)
    model = EnergyModel(lambda: pyro.sample("x", dist.Normal(0.0, 1.0)))
    x = torch.arange(1000.0)
    rows, labels = rows_and_labels(model, {"x": x}, [f"{int(v) // 100:02}" for v in x])
    assert torch.equal(labels, (rows["x"] // 100).long())
