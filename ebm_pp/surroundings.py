"""What is the process's and not ours, and how a call of ours finds and leaves it.

torch's default dtype, its modes and random stream, Pyro's store and stack belong to the whole
process. One thread at a time compiles, evaluates, fits or draws; whatever the caller has set
changes no number, and is as it was when the call ends, by an error or an interrupt too.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import pyro
import torch
from pyro.poutine import runtime
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from ebm_pp.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    GeneratorError,
    ProgramError,
)

ALONE = threading.RLock()
OURS = (ProgramError, DataError, GeneratorError, CheckpointError, ConfigError)
# Not for the program to answer for: a warning that the caller makes an error, memory used up.
NOT_ITS_FAULT = (Warning, MemoryError, torch.OutOfMemoryError)


@contextmanager
def alone() -> Iterator[None]:
    """No other thread in here meanwhile, and no autocast, which would round in silence."""
    with ALONE, torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False):
        yield


@contextmanager
def trainable(dtype: torch.dtype) -> Iterator[None]:
    """`alone`, with gradients and a default dtype, whatever the caller switched off or set."""
    grad = torch.is_grad_enabled()
    with alone(), torch.inference_mode(False):
        default, stack = torch.get_default_dtype(), [*runtime._PYRO_STACK]
        try:
            torch.set_grad_enabled(True)
            torch.set_default_dtype(dtype)
            yield
        finally:  # an interrupt may have come while something further in was put back
            torch.set_default_dtype(default)
            torch.set_grad_enabled(grad)
            runtime._PYRO_STACK[:] = stack


@contextmanager
def surroundings(dtype: torch.dtype, device: torch.device, validate: bool) -> Iterator[None]:
    """The model's dtype and device as defaults, Pyro's global state set aside, validation or not.

    Evaluation runs without validation: the program was validated when it was compiled, rows are
    validated by `check`, and Pyro's own checks need numbers that `vmap` does not give.
    """
    allocator, store = runtime._DIM_ALLOCATOR, pyro.get_param_store()
    place = nullcontext() if device.type == "cpu" else torch.device(device)
    with ALONE:
        default, stack = torch.get_default_dtype(), [*runtime._PYRO_STACK]
        parameters, plates = vars(store).copy(), allocator._stack
        try:
            store.clear()
            allocator._stack = []
            torch.set_default_dtype(dtype)
            with pyro.validation_enabled(validate), place:
                yield
        finally:
            torch.set_default_dtype(default)
            allocator._stack = plates
            runtime._PYRO_STACK[:] = stack
            vars(store).update(parameters)


@contextmanager
def as_called(grad: bool, inference: bool, dtype: torch.dtype) -> Iterator[None]:
    """The caller's own modes and default dtype, for what is his inside a call of ours."""
    default = torch.get_default_dtype()
    with torch.inference_mode(inference), torch.set_grad_enabled(grad):
        try:
            torch.set_default_dtype(dtype)
            yield
        finally:
            torch.set_default_dtype(default)


@contextmanager
def answering(where: str, advice: str) -> Iterator[None]:
    """An error of the user's program becomes ours, its own type and text in it.

    Args:
        where: the program failed ..., such as "at 5 draws".
        advice: what was expected, the likely cause, one fix.

    Raises:
        ProgramError: from the original. Our own errors pass.
    """
    try:
        yield
    except (*OURS, *NOT_ITS_FAULT):
        raise
    except Exception as error:
        raise ProgramError(
            f"the program failed {where} with {type(error).__name__}: {error}\n  {advice}"
        ) from error


@contextmanager
def evaluating(n: int) -> Iterator[None]:
    """`alone`, and an error of the user's program is told as one of its evaluation."""
    advice = (
        "Expected it to run as when it was compiled. Most likely something that it reads has "
        "changed since, or it does not take such values: run it alone on one of them, "
        "pyro.condition(program, values)(...)."
    )
    with alone(), answering(f"at {n} draws", advice):
        yield


def ordinary(value: Tensor) -> Tensor:
    """The value itself, or a copy that takes part in gradients if it was made without them."""
    if value.is_inference() and not torch.is_inference_mode_enabled():
        return value.clone()
    return value


def require_trainable(model: nn.Module) -> None:
    """No parameter may have been made inside torch.inference_mode.

    Raises:
        ProgramError: one was; torch can neither train it nor differentiate through it.
    """
    for name, parameter in model.named_parameters():
        if not is_lazy(parameter) and parameter.is_inference():
            raise ProgramError(
                f"parameter {name!r} was made inside torch.inference_mode, where no tensor can be "
                "trained; expected ordinary parameters.\n  Make the network outside of it, or "
                "copy it there: copy.deepcopy(network)."
            )
