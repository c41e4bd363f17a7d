"""Checking demonstrations against the declared world, and bringing them to one length.

Messages name the trajectory and the step. Nothing is clamped, dropped or repaired.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeGuard

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ebm_pp.arrays import real_numbers
from ebm_pp.counts import count
from ebm_pp.dynamics import Space
from ebm_pp.errors import DataError
from ebm_pp.trajectory import Layout, replay

Trajectories = Any  # arrays, tensors or lists, one a trajectory: in a list, or in a dict by name
AGREES = {torch.float32: 1e-3, torch.float64: 1e-6}  # relative, of a replayed state


def check_demonstrations(x: dict[str, Tensor], layout: Layout) -> None:
    """Demonstrations are finite, inside their spaces, and possible in the declared dynamics.

    Args:
        x: rows of the trajectory sites, of the right shapes.
        layout: the trajectory.

    Raises:
        DataError: naming the first trajectory and step.
    """
    tau = layout.pack(x)
    dynamics = layout.dynamics
    _refuse(
        ~_per_step(tau.states.isfinite()), "state", tau.states, "is NaN or infinite",
        "Most likely a missing observation: drop the trajectory.",
    )  # fmt: skip
    _refuse(
        ~_per_step(tau.actions.isfinite()), "action", tau.actions, "is NaN or infinite",
        "Most likely a missing action: drop the trajectory.",
    )  # fmt: skip
    _inside("state", tau.states, dynamics.space)
    _inside("action", tau.actions, dynamics.actions)
    if dynamics.transitions is not None:
        chance = dynamics.transitions[tau.states[:, :-1], tau.actions, tau.states[:, 1:]]
        _refuse(
            chance == 0, "state", tau.states[:, 1:], "can't follow the state and action before",
            "Most likely the transitions are of another world, or states are numbered otherwise.",
            first=1,
        )  # fmt: skip
    elif dynamics.deterministic and dynamics.resettable:
        off = replay(dynamics, tau)
        tolerance = AGREES.get(tau.states.dtype, 1e-2)
        _refuse(
            off > tolerance, "state", tau.states[:, 1:],
            "contradicts the declared deterministic dynamics",
            f"The step gives a state that is off by {off.max().item():.3g} (relative) at worst. "
            "Most likely noise, or another time step: return a distribution from step.",
            first=1,
        )  # fmt: skip


def _inside(what: str, value: Tensor, space: Space) -> None:
    if space.n:
        _refuse(
            (value < 0) | (value >= space.n), what, value,
            f"is outside the integers 0 to {space.n - 1}",
            "Most likely numbered from 1, or of another space.",
        )  # fmt: skip
    if space.low is None or space.high is None:
        return
    low, high = space.low.to(value), space.high.to(value)
    box = f"the box {_brief(low)} to {_brief(high)}"
    _refuse(
        ~_per_step((value >= low) & (value <= high)), what, value, f"is outside {box}",
        "Most likely other units, or actions before clipping: use Space.real, or clip them as the "
        "world does.",
    )  # fmt: skip
    if not space.edges:
        _refuse(
            ~_per_step((value > low) & (value < high)), what, value,
            f"lies on the boundary of {box}",
            "A density inside the box can't reach it. If the controller clips its actions, use "
            "Space.box(low, high, edges=True): a policy with masses at the ends.",
        )  # fmt: skip


def _per_step(good: Tensor) -> Tensor:
    return good if good.dim() == 2 else good.flatten(2).all(-1)


def _refuse(bad: Tensor, what: str, value: Tensor, problem: str, fix: str, first: int = 0) -> None:
    if not bool(bad.any()):
        return
    i, t = bad.nonzero()[0].tolist()
    raise DataError(
        f"trajectory {i}, step {t + first}: the {what} {_brief(value[i, t])} {problem} "
        f"({int(bad.sum())} steps of {int(bad.any(1).sum())} of {len(value)} trajectories).\n"
        f"  {fix}"
    )


def _brief(value: Tensor) -> str:
    return ", ".join(f"{number:g}" for number in value.flatten().tolist()[:6])


def unequal_lengths(name: str, value: object, shape: tuple[int, ...]) -> DataError:
    """The error for trajectories of several lengths where one horizon is declared."""
    lengths = [len(p) if hasattr(p, "__len__") else 0 for p in value] if _listed(value) else []
    odd = next((i for i, length in enumerate(lengths) if length != shape[0]), None)
    got = "several lengths" if odd is None else f"trajectory {odd} has {lengths[odd]} steps"
    if lengths and odd is None:
        return DataError(
            f"site {name!r}: steps of one trajectory have several widths; expected "
            f"{shape[1:]} for every step.\n  Bring every step to the same shape."
        )
    return DataError(
        f"site {name!r}: {got}; expected {shape[0]} for every trajectory.\n  The program declares "
        "a fixed horizon. For trajectories that end early declare absorbing dynamics and use "
        "pad(states, actions, horizon)."
    )


def _listed(value: object) -> TypeGuard[Iterable[object]]:
    return isinstance(value, Sequence) or (isinstance(value, np.ndarray) and value.ndim > 0)


def whole(value: Tensor, name: str) -> Tensor:
    """Integers, also if they come as floating-point numbers."""
    if value.is_floating_point():
        bad = value != value.round()
        if bad.any():
            at = bad.flatten(1).any(1).nonzero()[0].item() if value.dim() > 1 else 0
            first = value[bad][0].item()
            cause = "observations of a continuous world: declare its start with a vector law"
            if math.isnan(first):
                cause = "a missing observation: drop the trajectory"
            raise DataError(
                f"site {name!r}: trajectory {at} holds {first:g}; expected integers.\n"
                f"  Most likely {cause}."
            )
    return value.long()


def pad(states: Trajectories, actions: Trajectories, horizon: int) -> dict[str, Tensor]:
    """Trajectories of several lengths as rows of one horizon with an absorbing end.

    Every state gets a last coordinate, 1 while alive; after its end a trajectory stays at the
    state 0 with alive 0 and takes the action 0.

    Args:
        states: per trajectory `(length + 1, state)`, or `(length + 1,)` for one coordinate, as the
            numbers of a table's states are; a dict of trajectories by name will do.
        actions: per trajectory `(length, action)`, or `(length,)` integers; by the same names.
        horizon: T, at least the longest. A trajectory of fewer actions has ended there.

    Returns:
        The sites `states` `(n, T + 1, state + 1)` and `actions` `(n, T, action)` or `(n, T)`.

    Raises:
        DataError: there are none, their numbers or shapes differ, or one is longer than the
            horizon or has not one state more than actions.
    """
    horizon = count("horizon", horizon)
    paths = [_coordinates(path, i) for i, path in enumerate(_in_order(states, states))]
    moves = [_steps(steps, i) for i, steps in enumerate(_in_order(actions, states))]
    if not paths:
        raise DataError("0 demonstrations; expected at least one trajectory.")
    if len(paths) != len(moves):
        raise DataError(
            f"{len(paths)} trajectories of states and {len(moves)} of actions; expected as many "
            "of both.\n  Most likely one trajectory without a list around it: pad([states], "
            "[actions], horizon)."
        )
    for i, (path, steps) in enumerate(zip(paths, moves, strict=True)):
        _check_lengths(i, len(path), len(steps), horizon)
    width = _common([path.shape[1:] for path in paths], "states")
    shape = _common([steps.shape[1:] for steps in moves if len(steps)], "actions")
    rows, padded = [], []
    for path, steps in zip(paths, moves, strict=True):
        row = path.new_zeros(horizon + 1, width[0] + 1)
        row[: len(path), :-1] = path
        row[: len(path), -1] = 1.0
        if len(steps) < horizon:
            row[len(path) - 1] = 0.0
        move = steps.new_zeros(horizon, *shape)
        move[: len(steps)] = steps.reshape(-1, *shape)
        rows.append(row)
        padded.append(move)
    return {"states": torch.stack(rows), "actions": torch.stack(padded)}


def _in_order(parts: Trajectories, first: Trajectories) -> list[Any]:
    """Trajectories in the order of the states', by name if they have names."""
    if isinstance(parts, Mapping) != isinstance(first, Mapping) or (
        isinstance(parts, Mapping) and isinstance(first, Mapping) and parts.keys() != first.keys()
    ):
        names = [list(p) if isinstance(p, Mapping) else type(p).__name__ for p in (first, parts)]
        raise DataError(
            f"states have the names {names[0]}, actions {names[1]}; expected the same for both.\n"
            "  Pass two dicts with the same keys, or two lists in the same order."
        )
    if isinstance(parts, Mapping):
        return [parts[name] for name in first]
    if not hasattr(parts, "__iter__") or isinstance(parts, str) or getattr(parts, "ndim", 1) == 0:
        raise DataError(
            f"trajectories are {type(parts).__name__}; expected a list of arrays, one each.\n"
            "  Pass pad([states], [actions], horizon)."
        )
    return list(parts)


def _numbers(value: Any, what: str) -> Tensor:  # noqa: ANN401 - whatever the user has
    """A trajectory's numbers: whole ones as integers, others in the precision that they have."""
    found = real_numbers(value, what)
    if isinstance(found, Tensor):
        found = found.detach()
        return found if found.is_floating_point() else found.long()
    kind = "i8" if found.dtype.kind in "iu" else "f8" if found.itemsize > 4 else "f4"
    return torch.from_numpy(np.array(found, dtype=kind))


def _steps(value: Any, i: int) -> Tensor:  # noqa: ANN401
    """Actions, one a step."""
    steps = _numbers(value, f"trajectory {i}: actions")
    if not steps.dim():
        raise DataError(
            f"trajectory {i}: actions are the single number {steps.item():g}; expected (length, "
            "action), or (length,) integers.\n  Most likely one trajectory without a list around "
            "it: pad([states], [actions], horizon)."
        )
    return steps


def _coordinates(value: Any, i: int) -> Float[Tensor, "length state"]:  # noqa: ANN401
    """States as vectors of floating-point numbers."""
    path = _numbers(value, f"trajectory {i}: states")
    if path.dim() not in (1, 2):
        fix = "Flatten every state to one vector."
        if not path.dim():
            fix = "Most likely one trajectory without a list around it: pad([states], ...)."
        raise DataError(
            f"trajectory {i}: states have shape {tuple(path.shape)}; expected (length + 1, state)."
            f"\n  {fix}"
        )
    path = path if path.is_floating_point() else path.to(torch.get_default_dtype())
    return path[:, None] if path.dim() == 1 else path


def _check_lengths(i: int, n_states: int, n_actions: int, horizon: int) -> None:
    got = f"trajectory {i} has {n_states} states and {n_actions} actions; expected"
    if n_states != n_actions + 1:
        cause = "states and actions of different trajectories"
        if n_states == n_actions:
            cause = "the last state is missing, which the last action led to"
        raise DataError(f"{got} one state more than actions.\n  Most likely {cause}.")
    if n_actions > horizon:
        raise DataError(
            f"{got} at most {horizon} actions, the horizon.\n  Raise the horizon, in the program "
            "too, or cut the trajectories to it."
        )


def _common(shapes: list[torch.Size], what: str) -> torch.Size:
    """The shape of one step, which all trajectories share."""
    first = shapes[0] if shapes else torch.Size()
    for i, shape in enumerate(shapes):
        if shape != first:
            raise DataError(
                f"trajectory {i}: {what} of shape {tuple(shape)} a step; expected "
                f"{tuple(first)}, as the first trajectory has.\n  Most likely another world, or "
                "a coordinate left out."
            )
    return first
