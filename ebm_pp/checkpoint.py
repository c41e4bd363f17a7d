"""Save a fit to one file and load it: tensors and plain values only, nothing that runs code."""

import dataclasses
import importlib.metadata
import pickle
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ebm_pp.config import FitConfig
from ebm_pp.density import EnergyModel
from ebm_pp.errors import CheckpointError
from ebm_pp.findings import Finding
from ebm_pp.generator import FlowGenerator, Generator
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
        "findings": [dataclasses.asdict(finding) for finding in fit.findings],
    }
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    torch.save(content, path)


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
    model = EnergyModel(program, *args, **kwargs).to(getattr(torch, content["dtype"]))
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
        FitConfig(**content["config"]),
        content["offset"],
        content["n_train"],
        content["best_round"],
        content["detail"],
        tuple(Finding(**finding) for finding in content.get("findings", [])),
    )


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
        raise CheckpointError(f"{path}: no such file; expected a fit that `save` wrote.")
    try:
        content = torch.load(path, weights_only=True, map_location="cpu")
    except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError) as error:
        raise CheckpointError(
            f"{path}: not a saved fit ({error}).\n  Pass a file that `save` wrote."
        ) from error
    if not isinstance(content, dict) or content.get("ebm_pp") != FORMAT:
        raise CheckpointError(
            f"{path}: not a saved fit of format {FORMAT}.\n  Pass a file that `save` wrote."
        )
    return content
