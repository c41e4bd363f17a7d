"""Save a fit to one file and load it: tensors and plain values only, nothing that runs code."""

import dataclasses
import importlib.metadata
import os
import pickle
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ebm_pp.config import FitConfig
from ebm_pp.density import EnergyModel
from ebm_pp.errors import CheckpointError
from ebm_pp.findings import Finding
from ebm_pp.generator import FlowGenerator, Generator
from ebm_pp.outskirts import Outskirts
from ebm_pp.policy import NeuralPolicy, PolicyGenerator
from ebm_pp.soft_value import SoftValue
from ebm_pp.training import Fit, Status

FORMAT = 1


def save(fit: Fit, path: str | Path) -> None:
    """Writes a fit's parameters, history and settings.

    Args:
        fit: the fit. A generator that is no `FlowGenerator` is saved by its `state_dict()`.
        path: the file to write; its folder is made.
    """
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
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with beside.open("wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)  # at once: whoever is killed meanwhile leaves the old file whole
    finally:
        beside.unlink(missing_ok=True)


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
    """
    content = _read(Path(path))
    model = EnergyModel(program, *args, **kwargs)
    try:
        return _rebuilt(content, model, generator, path)
    except CheckpointError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError, MemoryError) as error:
        said = str(error).splitlines() or [""]
        raise CheckpointError(
            f"{path}: a field of the file is missing or not what `save` wrote "
            f"({type(error).__name__}: {said[0][:200]}).\n  Most likely damaged, or of another "
            "version: save the fit again."
        ) from error


def _rebuilt(
    content: dict[str, Any],
    model: EnergyModel,
    generator: Callable[[EnergyModel], Generator] | None,
    path: str | Path,
) -> Fit:
    """The fit that a file holds."""
    dtype = getattr(torch, str(content["dtype"]), None)
    if dtype not in (torch.float32, torch.float64):
        raise CheckpointError(
            f"{path}: dtype {content['dtype']!r}; expected float32 or float64.\n  Save it again."
        )
    model = model.to(dtype)
    if content.get("soft_value") is not None and model.layout is not None:
        soft_value = SoftValue(model.layout, **content["soft_value"])
        model.soft_value = soft_value.to(model.device, model.dtype)
    policy = content.get("policy")  # not in files of the first version
    if generator is None and policy is not None and model.layout is not None:
        generator = partial(PolicyGenerator, **policy)
    if generator is None and content["flow"] is None:
        raise CheckpointError(
            f"{path}: the generator was an object of your own.\n"
            "  Pass generator=..., a function that makes it from the model."
        )
    made = FlowGenerator(model, **content["flow"]) if generator is None else generator(model)
    for name, part in (("model", model), ("generator", made)):
        if not isinstance(part, nn.Module):
            continue
        for key, value in content[name].items():
            if value.is_floating_point() and value.isnan().any():
                raise CheckpointError(
                    f"{path}: {key!r} of the {name} is not a number.\n  The file is damaged: take "
                    "another copy."
                )
        try:
            part.load_state_dict(content[name])
        except RuntimeError as error:
            raise CheckpointError(
                f"{path}: the saved parameters of the {name} do not fit: {error}\n"
                "  Most likely the program (or its arguments) changed since the fit was saved."
            ) from error
    return Fit(
        model,
        made,
        tuple(content["history"]),
        Status[content["status"]],
        _config(content["config"], path),
        float(content["offset"]),
        int(content["n_train"]),
        int(content["best_round"]),
        str(content["detail"]),
        _outskirts(content.get("outskirts"), model),
        tuple(Finding(**finding) for finding in content.get("findings", [])),
    )


def _outskirts(saved: dict[str, Tensor] | None, model: EnergyModel) -> Outskirts | None:
    """Not in files of the first version, nor of a given density."""
    if saved is None:
        return None
    return Outskirts(**{name: value.to(model.device) for name, value in saved.items()})


def _config(saved: dict[str, Any], path: str | Path) -> FitConfig:
    """The settings; fields that this version does not know are another version's."""
    unknown = set(saved) - {field.name for field in dataclasses.fields(FitConfig)}
    if unknown:
        raise CheckpointError(
            f"{path}: the settings {sorted(unknown)} are unknown to this version.\n  Most likely "
            "the file is of a later one: load it there."
        )
    return FitConfig(**saved)


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
    if not path.is_file():
        raise CheckpointError(
            f"{path}: no such file; expected a fit that `save` wrote.\n  Check the path."
        )
    try:
        content = torch.load(path, weights_only=True, map_location="cpu")
    except (pickle.UnpicklingError, RuntimeError, EOFError, LookupError, ValueError, TypeError,
            AttributeError, OSError, AssertionError) as error:  # fmt: skip
        raise CheckpointError(
            f"{path}: not a saved fit ({error}).\n  Pass a file that `save` wrote."
        ) from error
    if not isinstance(content, dict) or content.get("ebm_pp") != FORMAT:
        raise CheckpointError(
            f"{path}: not a saved fit of format {FORMAT}.\n  Pass a file that `save` wrote."
        )
    return content
