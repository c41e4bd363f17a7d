"""What a step may give, and what is said of anything else.

The next states of n rows are one tensor `(n, *state)` or one distribution of such tensors. Numbers
become those of the states before: their precision, their device, integers where states are.
"""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Distribution

from ebm_pp.arrays import real_numbers
from ebm_pp.errors import ProgramError

if TYPE_CHECKING:
    from ebm_pp.dynamics import Space

ROWS = "Most likely the leading n is lost: step takes and gives rows, (n, state)."
ONLY_STATES = "Most likely reward, flags or info stand beside them: give the next states alone."


def as_states(
    moved: object, like: Tensor, space: "Space", what: str = "step gave", fix: str = ROWS
) -> Tensor:
    """A tensor of states, in the type of others.

    Args:
        moved: what came.
        like: states of as many rows, which set precision and device.
        space: where states live.
        what: who gave it, for the message.
        fix: what to do about another shape.

    Raises:
        ProgramError: it is no tensor, of another shape, or not inside the integers.
    """
    if not isinstance(moved, Tensor):
        raise _no_states(moved, what)
    expected = (len(like), *space.shape)
    if tuple(moved.shape) != expected:
        raise ProgramError(
            f"dynamics: {what} shape {tuple(moved.shape)} for {len(like)} states of shape "
            f"{space.shape}; expected {expected}.\n  {fix}"
        )
    if moved.is_complex():
        raise ProgramError(
            f"dynamics: {what} {moved.dtype}; expected real numbers.\n  Take the real part."
        )
    if not space.n:
        other = torch.promote_types(moved.dtype, torch.get_default_dtype())
        return moved.to(like.device, like.dtype if like.is_floating_point() else other)
    bad = (moved < 0) | (moved > space.n - 1)
    if moved.is_floating_point():
        bad = bad | (moved != moved.round())
    if bad.any():
        raise ProgramError(
            f"dynamics: {what} {moved[bad][0].item():g}; expected the integers 0 to {space.n - 1}."
            "\n  Most likely states are numbered from 1, or the space is not discrete."
        )
    return moved.to(like.device, torch.long)


def as_law(moved: object, like: Tensor, space: "Space") -> Tensor | Distribution:
    """The next states or their law, as a step gave them; see `as_states`.

    Raises:
        ProgramError: it is neither, or the law's batch and event make another shape.
    """
    if not isinstance(moved, Distribution):
        return as_states(moved, like, space)
    expected = (len(like), *space.shape)
    if (*moved.batch_shape, *moved.event_shape) != expected:
        raise ProgramError(
            f"dynamics: step gave a {type(moved).__name__} of batch shape "
            f"{tuple(moved.batch_shape)} and event shape {tuple(moved.event_shape)} for "
            f"{len(like)} states of shape {space.shape}; expected {expected[:1]} and "
            f"{space.shape}.\n  Most likely its parameters lack the leading n: give it rows of "
            "them, (n, state)."
        )
    return moved


def simulated(moved: Any, like: Tensor, space: "Space") -> Tensor:  # noqa: ANN401 - by any code
    """The next states of a simulator: tensors, arrays or lists of rows; see `as_states`."""
    if isinstance(moved, list) or (hasattr(moved, "__array__") and not isinstance(moved, Tensor)):
        numbers = real_numbers(moved, "dynamics: step")
        moved = numbers if isinstance(numbers, Tensor) else torch.from_numpy(np.array(numbers))
    return as_states(moved, like, space).detach()


def _no_states(moved: object, what: str) -> ProgramError:
    """The error for what is no tensor."""
    got, fix = f"a {type(moved).__name__}", "Most likely a scipy or numpyro object: use torch's."
    if moved is None:
        got, fix = "None", "Most likely a return is missing."
    elif isinstance(moved, tuple | list | dict):
        kinds = ", ".join(type(part).__name__ for part in moved)
        got, fix = f"a {type(moved).__name__} of {len(moved)} ({kinds})", ONLY_STATES
    elif isinstance(moved, bool | int | float | complex):
        fix = "Most likely a sum over rows: give one state for every row, (n, state)."
    elif hasattr(moved, "__array__"):
        fix = (
            "No gradient runs through other arrays than torch's: write it in torch, or declare a "
            "simulator, Opaque(step)."
        )
    return ProgramError(
        f"dynamics: {what} {got}; expected a tensor or a distribution (torch's or Pyro's) of the "
        f"next states.\n  {fix}"
    )


@contextmanager
def streams_kept() -> Iterator[None]:
    """The random streams of torch, numpy and Python are afterwards where they were."""
    of_python, of_numpy = random.getstate(), np.random.get_state()
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    try:
        with torch.random.fork_rng([*devices]):
            yield
    finally:
        random.setstate(of_python)
        np.random.set_state(of_numpy)
