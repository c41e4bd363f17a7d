"""How many draws, chains or rows a caller asks for."""

import operator

from ebm_pp.errors import DataError


def count(name: str, value: object, least: int = 1) -> int:
    """The number as Python's own.

    Args:
        name: of the argument.
        value: what was passed.
        least: the smallest that makes sense.

    Raises:
        DataError: no whole number, or one that is too small.

    Examples:
        >>> count("n", 4000)
        4000
    """
    if not isinstance(value, bool):
        try:
            whole = operator.index(value)  # type: ignore[arg-type]
        except TypeError:
            whole = least - 1
        if whole >= least:
            return whole
    raise DataError(
        f"{name}={value!r}; expected a whole number, at least {least}.\n  Leave it out for the "
        "usual number, or pass an int."
    )


def steps_each(n: int, chains: int) -> int:
    """How many of `n` draws each chain walks through.

    Raises:
        DataError: not one for each.
    """
    if n >= count("chains", chains):
        return n // chains
    raise DataError(
        f"{n} draws for {chains} chains; expected a draw for each.\n  Make more draws, or fewer "
        "chains."
    )
