"""State that a program changes while it runs, and whether its density depends on it.

A density is a function of the sites and the parameters. Buffers, numbers and tensors that a module
keeps and changes in `forward` are harmless if they are only kept (a counter of steps, features for
a plot). They are not if they come back in the next run: spectral_norm's singular vectors, running
statistics, a temperature that follows a counter. Which it is, is tried: each is set to other
values, in the program's mode and in eval mode, and the density at one draw is compared.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ebm_pp.checks import Stance, agree
from ebm_pp.errors import ProgramError
from ebm_pp.program import Runner, Sites, by_loop, one_draw

MOST = 10**6  # numbers in a tensor that is watched
EXACT_NORM = (
    "torch's spectral_norm, which follows the weights one power iteration a run while training, "
    "and not at all in .eval(), where the norm is 1 for the weights of the start only: divide by "
    "the exact norm, torch.linalg.matrix_norm(weight, 2), in a parametrization of your own (docs: "
    "A network with a bounded slope)"
)
RUNNING = "running statistics in training mode: use nn.LayerNorm, or call .eval() before"
COUNTER = (
    "a counter or a running average that enters the density: keep it fixed while the program "
    "runs, and change it in the callback of fit"
)


@dataclass(frozen=True)
class Place:
    """Where a value is kept that may change while the program runs.

    Attributes:
        name: What the user calls it.
        owner: The module; None for an argument of the program.
        holder: The dict that holds it; None for an argument, which is changed in place.
        key: Its key in the holder.
        value: The object.
        content: A copy of a tensor's numbers; the value itself if it is a number.
    """

    name: str
    owner: nn.Module | None
    holder: dict[str, Any] | None
    key: str
    value: Any
    content: Any

    def now(self) -> Any:  # noqa: ANN401 - a tensor or a number
        """What is there at present."""
        return self.value if self.holder is None else self.holder.get(self.key)

    def put(self, content: Any) -> None:  # noqa: ANN401
        """Another value; a tensor is taken as it is, not copied."""
        if self.holder is None:
            self.value.copy_(content)
        else:
            self.holder[self.key] = content

    def restore(self) -> None:
        """The object that was there, with the numbers that it had."""
        self.put(self.content if self.holder is None else self.value)
        if isinstance(self.value, Tensor) and not _same(self.value, self.content):
            self.value.copy_(self.content)


def check_state(run: Runner, x: Sites, seen: list[Stance], model: nn.Module) -> None:
    """What a run leaves behind must not enter the density.

    Args:
        run: Runs the program once.
        x: Draws inside the supports.
        seen: The stances at these draws.
        model: The energy model, for its modules and arguments.

    Raises:
        ProgramError: A buffer, number or tensor that changes as the program runs is one that the
            density depends on.
    """
    kept = _places(model)
    try:
        some = {name: value[:2] for name, value in x.items()}
        for stance in seen:
            with stance.taken():
                one_draw(run, {name: value[1] for name, value in x.items()})
                changed = [place for place in kept if not _same(place.now(), place.content)]
                if not changed:
                    continue
                _require_independent(run, some, kept, changed)
                with _eval(model):
                    _require_independent(run, some, kept, changed)
    finally:
        for place in kept:
            place.restore()
    _warn_of_spectral_norm(model)


def _require_independent(run: Runner, x: Sites, kept: list[Place], changed: list[Place]) -> None:
    """The density at two draws is the same whatever values the changed state has."""

    def terms(place: Place | None = None, content: Any = None) -> Sites | None:  # noqa: ANN401
        for each in kept:
            each.restore()
        if place is not None:
            place.put(content)
        try:
            return by_loop(run, x)
        except Exception:  # a value that the program can't take is one that it reads
            return None

    expected, again = terms(), terms()
    if expected is None or again is None or _other(again, expected) is not None:
        return  # random numbers, which check_repeatable tells
    for place in changed:
        for content in _others(place.content):
            got = terms(place, content)
            name = next(iter(expected)) if got is None else _other(got, expected)
            if name is not None:
                raise ProgramError(
                    f"{name!r} depends on {place.name!r}, which the program changes as it runs; "
                    "expected a density that is a function of the sites and the parameters.\n  "
                    f"Most likely {_cause(place)}."
                )


def _other(got: Sites, expected: Sites) -> str | None:
    """The first term that differs."""
    for name, term in expected.items():
        if name not in got or not agree(got[name], term, 1e-4, 1e-8):
            return name
    return None


def _others(content: Any) -> list[Any]:  # noqa: ANN401
    """Other values of the same kind: near, and far as a counter gets."""
    if isinstance(content, bool):
        return [not content]
    if not isinstance(content, Tensor):
        return [content + 1, content + 1000, content + 10**6]
    if content.dtype == torch.bool:
        return [~content]
    if content.is_floating_point() or content.is_complex():
        return [content + torch.randn_like(content) * (1 + content.abs()), content + 10**4]
    return [content + 1, content + 1000]


def _cause(place: Place) -> str:
    if _is_spectral(place.owner, place.key):
        return EXACT_NORM
    return RUNNING if place.key.startswith("running_") else COUNTER


def _is_spectral(owner: nn.Module | None, key: str) -> bool:
    of_hook = key.endswith("_u") and hasattr(owner, key.removesuffix("_u") + "_orig")
    return type(owner).__name__ == "_SpectralNorm" or of_hook


def _warn_of_spectral_norm(model: nn.Module) -> None:
    """In eval mode the density is a function, but not the one with the norm that was meant."""
    for name, module in model.named_modules():
        trained = any(p.requires_grad for p in module.parameters())
        for child in module.modules():
            keys = [key for key in child._buffers if _is_spectral(child, key)]
            if keys and trained and not child.training:
                what = _shown(name) or "a layer"
                warnings.warn(
                    f"{what!r} is trained under spectral_norm in eval mode, so its norm will not "
                    f"stay 1.\n  Most likely {EXACT_NORM}.",
                    UserWarning,
                    stacklevel=5,
                )
                return


def _places(model: nn.Module) -> list[Place]:
    """Buffers, tensors and numbers of every module below the model, and tensor arguments."""
    found = []
    for path, module in model.named_modules():
        if module is model:
            continue
        kept = {k: v for k, v in vars(module).items() if _counts(k, v)}
        for holder, values in ((module._buffers, module._buffers), (vars(module), kept)):
            for key, value in values.items():
                if _small(value):
                    name = ".".join([part for part in (_shown(path), key) if part])
                    found.append(Place(name, module, holder, key, value, _copy(value)))
    arguments = {str(i): value for i, value in enumerate(getattr(model, "args", ()))}
    for name, value in (arguments | getattr(model, "kwargs", {})).items():
        if isinstance(value, Tensor) and not value.requires_grad and _small(value):
            found.append(Place(f"argument {name}", None, None, name, value, _copy(value)))
    return found


def _counts(key: str, value: object) -> bool:
    return key != "training" and isinstance(value, Tensor | int | float)


def _small(value: object) -> bool:
    """Whether a value is there and worth a copy; what is larger holds data."""
    return value is not None and (not isinstance(value, Tensor) or value.numel() <= MOST)


def _shown(path: str) -> str:
    """A module's path as the user knows it, without the model's own names before it."""
    first, _, rest = path.partition(".")
    return rest.partition(".")[2] if first == "networks" else rest


def _copy(value: Any) -> Any:  # noqa: ANN401
    return value.detach().clone() if isinstance(value, Tensor) else value


def _same(one: Any, other: Any) -> bool:  # noqa: ANN401
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.shape == other.shape and torch.allclose(
            one.detach().to(other), other, rtol=0, atol=0, equal_nan=True
        )
    return type(one) is type(other) and one == other


@contextmanager
def _eval(model: nn.Module) -> Iterator[None]:
    """Every module in eval mode, and afterwards in the mode that it had."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        yield
    finally:
        for module, mode in modes:
            module.training = mode
