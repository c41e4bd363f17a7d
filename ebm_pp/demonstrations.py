"""Checking demonstrations against the declared world, and bringing them to one length.

Messages name the trajectory and the step. Nothing is clamped, dropped or repaired.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ebm_pp.dynamics import Space
from ebm_pp.errors import DataError
from ebm_pp.trajectory import Layout, replay

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
    lengths = [len(part) for part in value] if isinstance(value, Sequence) else []
    odd = next((i for i, length in enumerate(lengths) if length != shape[0]), 0)
    got = f"trajectory {odd} has {lengths[odd]} steps" if lengths else "several lengths"
    return DataError(
        f"site {name!r}: {got}; expected {shape[0]} for every trajectory.\n  The program declares "
        "a fixed horizon. For trajectories that end early declare absorbing dynamics and use "
        "pad(states, actions, horizon)."
    )


def whole(value: Tensor, name: str) -> Tensor:
    """Integers, also if they come as floating-point numbers."""
    if value.is_floating_point():
        bad = value != value.round()
        if bad.any():
            at = bad.flatten(1).any(1).nonzero()[0].item() if value.dim() > 1 else 0
            raise DataError(
                f"site {name!r}: trajectory {at} holds {value[bad][0].item():g}; expected "
                "integers.\n  Most likely observations of a continuous world: declare its start "
                "with a vector law."
            )
    return value.long()


def pad(
    states: Sequence[np.ndarray | Tensor], actions: Sequence[np.ndarray | Tensor], horizon: int
) -> dict[str, Tensor]:
    """Trajectories of several lengths as rows of one horizon with an absorbing end.

    Every state gets a last coordinate, 1 while alive; after its end a trajectory stays at the
    state 0 with alive 0 and takes the action 0.

    Args:
        states: per trajectory `(length + 1, state)`.
        actions: per trajectory `(length, action)`, or `(length,)` integers.
        horizon: T, at least the longest. A trajectory of fewer actions has ended there.

    Returns:
        The sites `states` `(n, T + 1, state + 1)` and `actions` `(n, T, action)`.

    Raises:
        DataError: there are none, or one is longer than the horizon or has an action too many.
    """
    if not len(states):
        raise DataError("0 demonstrations; expected at least one trajectory.")
    rows, moves = [], []
    for i, (path, steps) in enumerate(zip(states, actions, strict=True)):
        path, steps = torch.as_tensor(path), torch.as_tensor(steps)
        if len(path) != len(steps) + 1 or len(steps) > horizon:
            raise DataError(
                f"trajectory {i} has {len(path)} states and {len(steps)} actions; expected one "
                f"state more than actions, and at most {horizon} of these.\n  Most likely the "
                "last state is missing."
            )
        ended = len(steps) < horizon
        row = path.new_zeros(horizon + 1, path.shape[-1] + 1)
        row[: len(path), :-1] = path
        row[: len(path), -1] = 1.0
        if ended:
            row[len(path) - 1] = 0.0
        move = steps.new_zeros(horizon, *steps.shape[1:])
        move[: len(steps)] = steps
        rows.append(row)
        moves.append(move)
    return {"states": torch.stack(rows), "actions": torch.stack(moves)}
