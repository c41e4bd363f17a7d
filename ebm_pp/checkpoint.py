"""Save a fit to one file and load it: tensors and plain values only, nothing that runs code."""

import dataclasses
import importlib.metadata
import pickle
import reprlib
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ebm_pp.config import FitConfig
from ebm_pp.density import EnergyModel
from ebm_pp.errors import CheckpointError, ProgramError
from ebm_pp.files import first_line, path_of, there, writing
from ebm_pp.findings import Finding
from ebm_pp.fitted import Fit, Status
from ebm_pp.generator import FlowGenerator, Generator
from ebm_pp.outskirts import Outskirts
from ebm_pp.policy import NeuralPolicy, PolicyGenerator
from ebm_pp.soft_value import SoftValue

FORMAT = 1
# What every file has; later versions added policy, soft_value, outskirts, findings.
FIELDS: dict[str, Any] = {
    "dtype": str, "model": dict, "generator": dict, "flow": dict | None, "history": list,
    "status": str, "config": dict, "offset": float | int, "n_train": int, "best_round": int,
    "detail": str,
}  # fmt: skip
DAMAGED = "Most likely a damaged file, or one of another version: take a copy, or fit again."


def save(fit: Fit, path: str | Path) -> None:
    """Writes a fit's parameters, history and settings.

    Args:
        fit: the fit. A generator that is no `FlowGenerator` is saved by its `state_dict()`.
        path: the file to write; its folder is made.

    Raises:
        DataError: it can't be written.
        ProgramError: `fit` is none.
    """
    if not isinstance(fit, Fit):
        raise ProgramError(
            f"save was given a {type(fit).__name__}; expected a fit.\n  Pass what "
            "fit(...) returns."
        )
    path = path_of("save", path)
    generator = fit.generator
    content = {
        "ebm_pp": FORMAT,
        "versions": {name: importlib.metadata.version(name) for name in ("torch", "pyro-ppl")},
        "dtype": str(fit.model.dtype).removeprefix("torch."),
        "model": fit.model.state_dict(),
        "generator": generator.state_dict() if isinstance(generator, nn.Module) else {},
        "flow": generator.settings if isinstance(generator, FlowGenerator) else None,
        "policy": _policy_settings(generator),
        "soft_value": _soft_value_settings(fit.model.soft_value),
        "history": [dict(info) for info in fit.history],
        "status": fit.status.name,
        "config": dataclasses.asdict(fit.config),
        "offset": fit.offset,
        "n_train": fit.n_train,
        "best_round": fit.best_round,
        "detail": fit.detail,
        "outskirts": None if fit.outskirts is None else fit.outskirts._asdict(),
        "findings": [dataclasses.asdict(finding) for finding in fit.findings],
    }
    # At once: whoever is killed meanwhile leaves the old file whole.
    with writing(path) as part, part.open("wb") as file:
        torch.save(content, file)


def load(
    path: str | Path,
    program: Callable[..., Any],
    *args: Any,  # noqa: ANN401 - the program's own
    generator: Callable[[EnergyModel], Generator] | None = None,
    **kwargs: Any,  # noqa: ANN401
) -> Fit:
    """Reads a fit back.

    Args:
        path: a file that `save` wrote.
        program: the program that was fitted; its code is not in the file.
        *args: its arguments.
        generator: makes the generator from the model; needed if it was no `FlowGenerator` and no
            `PolicyGenerator` with its default policy.
        **kwargs: the program's keyword arguments.

    Raises:
        CheckpointError: the file is none of ours, or its parameters don't fit the program.
        DataError: `path` is no path.
    """
    path = path_of("load", path)
    content = _read(path)
    model = EnergyModel(program, *args, **kwargs).to(_dtype(content["dtype"], path))
    if content.get("soft_value") is not None and model.layout is not None:
        soft_value = _made(partial(SoftValue, model.layout), content["soft_value"], path)
        model.soft_value = soft_value.to(model.device, model.dtype)
    if generator is not None:
        made = generator(model)
    elif content["flow"] is not None:
        made = _made(partial(FlowGenerator, model), content["flow"], path)
    elif content.get("policy") is not None and model.layout is not None:
        made = _made(partial(PolicyGenerator, model), content["policy"], path)
    else:
        raise CheckpointError(
            f"{path}: the generator was an object of your own.\n"
            "  Pass generator=..., a function that makes it from the model."
        )
    _restore(model, "model", content, path)
    if isinstance(made, nn.Module):
        _restore(made, "generator", content, path)
    return Fit(
        model,
        made,
        tuple(content["history"]),
        Status[content["status"]],
        _config(content["config"], path),
        float(content["offset"]),
        content["n_train"],
        content["best_round"],
        content["detail"],
        _made(partial(_outskirts, model), {"saved": content.get("outskirts")}, path),
        _made(_findings, {"saved": content.get("findings", [])}, path),
    )


def _outskirts(model: EnergyModel, saved: dict[str, Tensor] | None) -> Outskirts | None:
    if saved is None:
        return None
    return Outskirts(**{name: value.to(model.device) for name, value in saved.items()})


def _findings(saved: list[dict[str, Any]]) -> tuple[Finding, ...]:
    return tuple(Finding(**finding) for finding in saved)


def _dtype(name: str, path: Path) -> torch.dtype:
    dtype = getattr(torch, name, None)
    if isinstance(dtype, torch.dtype) and dtype.is_floating_point:
        return dtype
    raise CheckpointError(f"{path}: dtype {name!r}; expected float32 or float64.\n  {DAMAGED}")


def _made(make: Callable[..., Any], settings: object, path: Path) -> Any:  # noqa: ANN401
    """What saved settings make; whatever they are wrong in, the file is at fault."""
    try:
        return make(**settings)  # type: ignore[arg-type]
    except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RuntimeError,
            MemoryError) as error:  # fmt: skip
        name = getattr(make, "func", make).__name__.strip("_")
        raise CheckpointError(
            f"{path}: what is saved makes no {name} ({first_line(error)}).\n  {DAMAGED}"
        ) from error


def _restore(part: nn.Module, name: str, content: dict[str, Any], path: Path) -> None:
    """Saved parameters into the model or the generator."""
    saved = content[name]
    # A program's buffers may hold rows with missing values; a generator's have no use for them.
    for key in saved if name == "generator" else dict(part.named_parameters()):
        if isinstance(saved.get(key), Tensor) and saved[key].isnan().any():
            raise CheckpointError(f"{path}: {key!r} of the {name} is not a number.\n  {DAMAGED}")
    try:
        part.load_state_dict(saved)
    except (RuntimeError, TypeError, AttributeError, LookupError, ValueError) as error:
        raise CheckpointError(
            f"{path}: the saved parameters of the {name} do not fit: {error}\n"
            "  Most likely the program (or its arguments) changed since the fit was saved."
        ) from error


def _config(saved: dict[str, Any], path: Path) -> FitConfig:
    """The settings: fields that are missing have their default, unknown ones are refused."""
    unknown = saved.keys() - {field.name for field in dataclasses.fields(FitConfig)}
    if unknown:
        raise CheckpointError(
            f"{path}: settings that this version does not know: {sorted(map(str, unknown))}.\n  "
            "Most likely the file is of a later one: load it there."
        )
    return _made(FitConfig, saved, path)


def _policy_settings(generator: Generator) -> dict[str, Any] | None:
    """How to make a policy again; None if it is the user's own."""
    if isinstance(generator, PolicyGenerator) and isinstance(generator.policy, NeuralPolicy):
        return generator.settings
    return None


def _soft_value_settings(soft_value: SoftValue | None) -> dict[str, Any] | None:
    if soft_value is None:
        return None
    return {"causal": soft_value.causal, "ridges": soft_value.ridges}


def _read(path: Path) -> dict[str, Any]:
    if not there(path):
        raise CheckpointError(
            f"{path}: no such file; expected a fit that `save` wrote.\n  Check the path."
        )
    try:
        with zipfile.ZipFile(path) as archive:  # torch itself reads on over wrong check sums
            if (torn := archive.testzip()) is not None:
                raise zipfile.BadZipFile(f"{torn} is damaged")
        content = torch.load(path, weights_only=True, map_location="cpu")
    except Exception as error:  # torn bytes can stop the unpickling anywhere
        # Of an unpickling torch says how to run what is in the file: nobody should.
        why = "damaged" if isinstance(error, pickle.UnpicklingError) else first_line(error)
        raise CheckpointError(
            f"{path}: not a saved fit ({why}).\n  Pass a file that `save` wrote."
        ) from error
    version = content.get("ebm_pp") if isinstance(content, dict) else None
    if not isinstance(version, int) or version != FORMAT:
        raise CheckpointError(
            f"{path}: not a saved fit of format {FORMAT}.\n  Pass a file that `save` wrote."
        )
    for name, kind in FIELDS.items():
        if name not in content:
            raise CheckpointError(f"{path}: field {name!r} is missing.\n  {DAMAGED}")
        if not isinstance(content[name], kind):
            raise CheckpointError(
                f"{path}: field {name!r} is {reprlib.repr(content[name])}; expected "
                f"{kind}.\n  {DAMAGED}"
            )
    if content["status"] not in Status.__members__:
        raise CheckpointError(
            f"{path}: status {content['status']!r}; expected one of {list(Status.__members__)}.\n"
            f"  {DAMAGED}"
        )
    if not all(isinstance(info, dict) for info in content["history"]):
        raise CheckpointError(f"{path}: the history is no list of records.\n  {DAMAGED}")
    return content
