"""Codes for missing values that lie among the others: 0, -1, 99.9, -999.

Of a column whose values are nearly all different and hardly ever whole, a customary code repeated
three times, or once beyond all others, is no reading: the chance of either is that of a tie.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from ebm_pp.far_rows import GAP, LEAST, centre_and_scale

FINE = 0.9  # share of the values that must be different
WHOLE = 0.01  # share of them that may be whole
COPIES = 3  # of a code make it one wherever it lies
AWAY = 0.1  # of the median: a column whose least value is larger stays away from 0
NINES = (99.0, 999.0, 9999.0, 99999.0, 999999.0, 99.9, 999.9, 9999.9, 99.99, 999.99)
# What software writes for missing: 2^15 - 1, 2^16 - 1, 2^31 - 1, NetCDF's and others' fill values.
FILLS = (32767.0, 65535.0, 2147483647.0, 9.969209968386869e36, 1e20, 1e30, 888.0, 8888.0)
SIGNED = (-1.0, -9.0, -32768.0, -2147483648.0, *(-code for code in (*NINES, *FILLS)))
CODES = np.array([0.0, *SIGNED, *NINES, *FILLS])


class Coded(NamedTuple):
    """Rows with one code.

    value: the code as it is in the rows.
    rows: their numbers.
    beyond: whether all others lie on one side of it.
    apart: whether it is out of their range for sure: of another sign, or beyond a gap. The end of
        a scale that the others come near (no rain, a correlation of -1) is beyond, not apart.
    """

    value: float
    rows: Int[np.ndarray, " m"]
    beyond: bool
    apart: bool


def coded_rows(values: Float[np.ndarray, " n"]) -> list[Coded]:
    """Rows of a column that hold a code for a missing value.

    Args:
        values: one number a row, without those that are far from all others.

    Returns:
        The codes that were found; none in a column of coarse or whole values.
    """
    if len(values) < LEAST:
        return []
    single = CODES.astype(np.float32).astype(np.float64)  # of rows that were single before
    hits = (values[:, None] == CODES) | (values[:, None] == single)
    if not hits.any():
        return []
    others = values[~hits.any(1)]
    if len(others) < LEAST or len(np.unique(others)) < FINE * len(others):
        return []
    if (others == np.round(others)).mean() > WHOLE:
        return []
    # Of -2^31 and of -(2^31 - 1), which single precision rounds to it, these are the same rows.
    different = {hit.tobytes(): hit for hit in hits.T if hit.any()}.values()
    found = (_coded(values, hit, others) for hit in different)
    return [coded for coded in found if coded is not None]


def _coded(
    values: Float[np.ndarray, " n"], hit: Bool[np.ndarray, " n"], others: Float[np.ndarray, " k"]
) -> Coded | None:
    """One code, if its copies or its place give it away."""
    value, low, high = values[hit][0], others.min(), others.max()
    beyond = bool(value < low or value > high)
    scale = centre_and_scale(others[:, None])[1, 0]
    apart = beyond and (
        value < 0 < low
        or (value == 0 and min(abs(low), abs(high)) >= AWAY * abs(np.median(others)))
        or max(low - value, value - high) >= GAP * scale
    )
    if not apart and hit.sum() < COPIES:
        return None
    return Coded(float(value), np.flatnonzero(hit), beyond, bool(apart))
