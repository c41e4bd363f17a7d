"""What the fuzz tests share: a call either works or raises one of our errors, and says what came.

A property draws its inputs by hypothesis. The suite tries few of them, always the same ones;
`make fuzz` tries thousands, others every time, and prints the seed that repeats them.
"""

import contextlib
import warnings

import jaxtyping
import numpy as np
import pandas as pd
import torch
from hypothesis import settings
from hypothesis import strategies as st

from ebm_pp import CheckpointError, ConfigError, DataError, GeneratorError, ProgramError

OURS = (ProgramError, DataError, ConfigError, GeneratorError, CheckpointError)
# What the library warns of; anything else that warns is an error.
WARNINGS = "|".join([
    "the data:", r"\d+ of \d+ draws of the base", "this program runs draw by draw",
    "site .* lie in", "site .* have no direction",
])  # fmt: skip


def weighing(share):
    """So many times the inputs of the profile."""
    return settings(max_examples=max(round(settings().max_examples * share), 1))


@contextlib.contextmanager
def as_users_call():
    """Without the suite's checks of types, which would answer before the library does."""
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=WARNINGS, category=UserWarning)
            yield
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)


def tried(call, *args, names=(), **kwargs):
    """What a call gives, or None where it raised an error of ours that names what came."""
    try:
        with as_users_call():
            return call(*args, **kwargs)
    except OURS as error:
        text = str(error)
        assert len(text) > 20, text
        assert "\n  " in text or "expected" in text, f"no advice: {text}"
        for name in names:
            assert name in text, f"{name} is not named: {text}"
        return None


def same(one, other):
    """Whether two results are the same numbers, nan included."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[k], other[k]) for k in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, torch.Tensor):
        return one.shape == other.shape and torch.equal(one.nan_to_num(7e7), other.nan_to_num(7e7))
    if isinstance(one, float):
        return one == other or (one != one and other != other)
    return one == other


# --- values of any type -------------------------------------------------------------------------
ODD = [
    None, True, False, np.True_, 0, -1, 1, 2, 10**30, 2**63, -(2**63) - 1, 0.0, 1.0, 2.5, -0.0,
    float("nan"), float("inf"), 1e308, np.int8(3), np.int64(4), np.uint64(5), np.float32(2.0),
    np.float64("nan"), np.array(3), np.array([3]), np.array([]), torch.tensor(3),
    torch.tensor(3.0), torch.tensor([3]), "", "3", "auto", "newton", b"3", [], [3], (), {},
    {"x": 1}, {1: 2}, 3j, object(), int, len, pd.NA, pd.NaT, pd.Timestamp(0),
    np.datetime64("2020-01-01"), slice(3), range(3), ...,
]  # fmt: skip
odd = st.sampled_from(ODD)
NAMES = [
    "x", "y", "x[0]", "wind/dir", "x [mm]", "draw", "chain", "sample", "log_weight", "file", "a.b",
    "ß", "self", "x_dim_0", "0", " x", "x ", "x\n", "a,b", 'q"q', "__class__", "param", "value",
    "n", "row", "index", "e" * 120, "%2F", "energy", "soft_value", "nan", "None", "é", "日本",
    "..", "../x",
]  # fmt: skip
names = st.sampled_from(NAMES) | st.text(
    st.characters(exclude_categories=["Cs"]), min_size=1, max_size=6
)
