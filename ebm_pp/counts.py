"""Numbers that a caller passes: how many draws, chains or rows, which seed, how wide."""

import operator
from typing import Any

import numpy as np

from ebm_pp.errors import DataError

MANY = 10**12  # no machine holds more rows
SEEDS = range(-(2**63), 2**64)  # that torch takes


def count(name: str, value: object, least: int = 1, most: int = MANY) -> int:
    """The number as Python's own.

    Args:
        name: of the argument.
        value: what was passed.
        least: the smallest that makes sense.
        most: the largest.

    Raises:
        DataError: no whole number, or one that is too small or too large.

    Examples:
        >>> count("n", 4000)
        4000
    """
    whole = _whole(value)
    if whole is not None and least <= whole <= most:
        return whole
    limit = "" if whole is None or whole < least else f" and at most {most:g}"
    raise DataError(
        f"{name}={value!r}; expected a whole number, at least {least}{limit}.\n  Pass an int."
    )


def seed_of(value: object) -> int | None:
    """A seed as Python's own number; None stays None.

    Raises:
        DataError: no whole number, or one of more than 64 bits.
    """
    whole = _whole(value)
    if value is None or (whole is not None and whole in SEEDS):
        return whole
    raise DataError(
        f"seed={value!r}; expected a whole number of at most 64 bits, or None.\n  Pass an int, or "
        "None for fresh entropy."
    )


def number(name: str, value: object, low: float, high: float, *, open: bool = False) -> float:
    """A real number in a range, as Python's own.

    Args:
        name: of the argument.
        value: what was passed.
        low: the smallest.
        high: the largest.
        open: whether `low` is itself too small.

    Raises:
        DataError: no single number, or out of its range.
    """
    single: Any = value
    if getattr(value, "shape", None) == () and hasattr(value, "item"):  # of numpy or torch
        single = value.item()
    real = isinstance(single, int | float) and not isinstance(single, bool)
    if real and low <= single <= high and not (open and single == low):
        return float(single)
    raise DataError(
        f"{name}={value!r}; expected a number {'above' if open else 'from'} {low:g} to {high:g}.\n"
        "  Pass a float."
    )


def _whole(value: object) -> int | None:
    """A whole number, None of anything else; flags are none."""
    if isinstance(value, bool | np.bool_) or value is None:
        return None
    try:
        return operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        return None


def steps_each(n: int, chains: int) -> int:
    """How many of `n` draws each chain walks through.

    Raises:
        DataError: not one for each.
    """
    chains = count("chains", chains)
    if n >= chains:
        return n // chains
    raise DataError(
        f"{n} draws for {chains} chains; expected a draw for each.\n  Make more draws, or fewer "
        "chains."
    )
