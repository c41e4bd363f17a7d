"""Rows of any container, whole or with a fault, at every door that takes them."""

import functools
import math
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pandas as pd
import torch
import xarray
from fuzzing import as_users_call, same, weighing
from hypothesis import given
from hypothesis import strategies as st
from test_fuzz_entrance import fitted

import ebm_pp
from ebm_pp import DataError


def frame(x):
    return pd.DataFrame(x) if x.ndim == 2 else pd.Series(x, index=range(5, 5 + len(x)))


def nullable(x):
    return frame(x).astype("Float64")


def arrow(x):
    return frame(x).astype("double[pyarrow]")


def inference(x):
    with torch.inference_mode():
        return torch.tensor(x)


def strided(x):
    wide = np.empty((2 * len(x), *x.shape[1:]))
    wide[::2] = x
    return wide[::2]


def objects(x):
    return x.astype(object)


def each(kind):
    return lambda x: [[kind(v) for v in row] if x.ndim == 2 else kind(row) for row in x.tolist()]


# Name: the same numbers in another container, from an array of double precision.
CONTAINERS = {
    "array": lambda x: x,
    "single": lambda x: x.astype(np.float32),
    "half": lambda x: x.astype(np.float16),
    "long double": lambda x: x.astype(np.longdouble),
    "big endian": lambda x: x.astype(">f8"),
    "Fortran": np.asfortranarray,
    "strided": strided,
    "reversed": lambda x: x[::-1].copy()[::-1],
    "read only": lambda x: (x.setflags(write=False), x)[1],
    "objects": objects,
    "masked": np.ma.masked_array,
    "matrix of rows": lambda x: np.stack(list(x)),
    "list": lambda x: x.tolist(),
    "tuple": lambda x: tuple(map(tuple, x)) if x.ndim == 2 else tuple(x),
    "list of arrays": list,
    "list of tensors": lambda x: list(torch.tensor(x)),
    "Decimal": each(Decimal),
    "Fraction": each(Fraction),
    "frame": frame,
    "nullable": nullable,
    "arrow": arrow,
    "xarray": xarray.DataArray,
    "tensor": lambda x: torch.tensor(x),
    "single tensor": lambda x: torch.tensor(x).float(),
    "bfloat16": lambda x: torch.tensor(x).bfloat16(),
    "half tensor": lambda x: torch.tensor(x).half(),
    "with a gradient": lambda x: torch.tensor(x, requires_grad=True),
    "parameter": lambda x: torch.nn.Parameter(torch.tensor(x)),
    "inference": inference,
    "transposed": lambda x: torch.tensor(x.T.copy()).T if x.ndim == 2 else torch.tensor(x),
    "expanded": lambda x: torch.tensor(x).expand(x.shape),
}
INTEGERS = {
    "int8": lambda x: x.astype(np.int8),
    "int64": lambda x: x.astype(np.int64),
    "long tensor": lambda x: torch.tensor(x).long(),
    "short tensor": lambda x: torch.tensor(x).short(),
    "Int64": lambda x: frame(x).astype("Int64"),
    "ints": lambda x: x.astype(int).tolist(),
    "range": lambda x: x.astype(int).tolist(),
}
eighths = st.integers(-160, 160).map(lambda k: k / 8)  # the same number in every type
positive = st.integers(1, 160).map(lambda k: k / 8)


@st.composite
def tables(draw, numbers=eighths, above=positive):
    n = draw(st.integers(1, 6))
    x = draw(st.lists(numbers, min_size=2 * n, max_size=2 * n))
    y = draw(st.lists(above, min_size=n, max_size=n))
    return {"x": np.array(x, dtype=float).reshape(n, 2), "y": np.array(y, dtype=float)}


def plain(table):
    return {name: torch.tensor(np.array(value)).float() for name, value in table.items()}


@functools.cache
def doors():
    """Everything that takes rows and gives numbers of them."""
    model, flow = fitted().model, fitted().generator
    return {
        "log_density": model.log_density,
        "log_base": model.log_base,
        "energy": model.energy,
        "terms": model.terms,
        "unconstrain": model.unconstrain,
        "inside": model.inside,
        "check": model.check,
        "flow": flow.log_prob,
        "log_prob": lambda x: ebm_pp.log_prob(fitted(), x, 20, seed=0).values,
    }


@weighing(2)
@given(tables(), st.sampled_from(sorted(CONTAINERS)), st.sampled_from(sorted(CONTAINERS)))
def test_the_same_numbers_in_any_container_give_the_same_answer(table, one, other):
    given_ = {"y": CONTAINERS[other](table["y"]), "x": CONTAINERS[one](table["x"])}
    for door in doors().values():
        with as_users_call(), torch.no_grad():
            assert same(door(given_), door(plain(table)))


@weighing(1)
@given(tables(st.integers(-100, 100), st.integers(1, 100)), st.sampled_from(sorted(INTEGERS)))
def test_whole_numbers_of_any_type_give_the_same_answer(table, kind):
    given_ = {name: INTEGERS[kind](value) for name, value in table.items()}
    for door in doors().values():
        with as_users_call(), torch.no_grad():
            assert same(door(given_), door(plain(table)))


@weighing(3)
@given(tables(), st.randoms(use_true_random=False))
def test_rows_in_another_order_have_their_own_numbers(table, random):
    order = list(range(len(table["y"])))
    random.shuffle(order)
    moved = {name: value[order] for name, value in table.items()}
    for name in ("log_density", "log_base", "energy", "flow", "log_prob"):
        with as_users_call(), torch.no_grad():
            found, whole = doors()[name](moved), doors()[name](table)
        torch.testing.assert_close(found, whole[order], rtol=1e-5, atol=1e-5)


# --- faults -------------------------------------------------------------------------------------
def at(value, entry):
    """The array with one entry of its last row another."""
    changed = value.copy()
    changed.reshape(-1)[-1] = entry
    return changed


def hidden(value):
    return np.ma.masked_array(value, at(np.zeros(value.shape, bool), True))


# Name: what is wrong with the rows of a site, from good ones.
FAULTS = {
    "nan": lambda v: at(v, math.nan),
    "inf": lambda v: at(v, math.inf),
    "-inf": lambda v: torch.tensor(at(v, -math.inf)),
    "None": lambda v: at(objects(v), None).tolist(),
    "NA": lambda v: at(objects(v), pd.NA),
    "masked": hidden,
    "fill value": lambda v: xarray.DataArray(at(v, 1e20), attrs={"_FillValue": 1e20}),
    "too large": lambda v: at(v, 1e300),
    "text": lambda v: at(objects(v), "a"),
    "all text": lambda v: v.astype(str),
    "flags": lambda v: v > 3,
    "complex": lambda v: v + 1j,
    "dates": lambda v: v.astype("datetime64[D]"),
    "durations": lambda v: v.astype("timedelta64[s]"),
    "a dimension more": lambda v: v[..., None],
    "two dimensions more": lambda v: torch.tensor(v)[None, None],
    "no rows": lambda v: v[:0],
    "one row more": lambda v: np.concatenate([v, v[:1]]),
    "one number": lambda v: 1.0,
    "a set": lambda v: {1.0, 2.0},
    "a mapping": lambda v: {"a": v},
    "an iterator": lambda v: iter(v),
    "sparse": lambda v: torch.tensor(v).to_sparse(),
    "categories": lambda v: pd.Series(v.reshape(len(v), -1)[:, 0]).astype("category"),
    "a class": lambda v: np.ndarray,
    "bytes": lambda v: v.tobytes(),
    "of objects": lambda v: [object()] * len(v),
    "nested": lambda v: [[v]],
}
UNCHECKED = ["nan", "inf", "-inf", "None", "NA", "masked", "fill value", "too large"]


@weighing(6)
@given(tables(), st.sampled_from(sorted(FAULTS)), st.sampled_from(["x", "y"]))
def test_a_fault_in_the_rows_is_refused_and_its_site_is_named(table, fault, site):
    wrong = {**table, site: FAULTS[fault](table[site])}
    for name, door in doors().items():
        try:
            with as_users_call():
                found = door(wrong)
        except DataError as error:
            if fault not in ("no rows", "one row more"):  # of which no site is the wrong one
                assert repr(site) in str(error)  # noqa: PT017
            continue
        assert name not in ("check", "log_prob"), fault
        assert fault in (*UNCHECKED, "no rows"), (name, fault, found)
        if name in ("log_density", "flow") and fault in UNCHECKED[3:7]:
            assert found[-1].isnan()
