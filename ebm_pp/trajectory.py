"""Trajectories as draws of a Pyro program: states, actions, and the dynamics between them.

A trajectory tau = (s_0, a_0, s_1, ..., a_{T-1}, s_T) has sites of two kinds; factors are a third:

* *dynamics*, s_0 and s_{t+1}: the same law in model and generator. It is dropped from both by
  name, never subtracted, so nobody need know its density;
* *control*, a_t: flat base measure (Lebesgue, or counting) in the model, the policy in q. log Z
  depends on the unit of the actions;
* *cost*: factors, minus the cost.

So all densities of trajectories are with respect to rho(ds_0) prod_t P(ds_{t+1} | s_t, a_t) da_t:

    log p~(tau) = -sum_t c_theta(s_t, a_t),    log q(tau) = sum_t log pi(a_t | s_t).

Two ways to declare the same: `trajectory(dynamics, T)` makes two packed sites, `states` and
`actions`, for any T; or a loop samples `dynamics.start_site()`, `dynamics.control_site()` and
`dynamics.next_site(s, a)` one by one. Costs of single steps are factors inside a plate named
`time` (packed) or stand after their action (loop); any other factor counts for the last step.

Source: [F16] section 3; Ziebart 2010, Modeling Purposeful Adaptive Behavior, chapter 5.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import pyro
import torch
from jaxtyping import Float
from torch import Tensor

from ebm_pp.dynamics import Dynamics, TrajectorySite
from ebm_pp.errors import ProgramError

TIME = "time"  # the plate whose factors are costs of single steps


class Trajectories(NamedTuple):
    """states `(n, T + 1, *state)` and actions `(n, T, *action)`; without n inside a program."""

    states: Tensor
    actions: Tensor


def trajectory(dynamics: Dynamics, horizon: int) -> Trajectories:
    """Declares a whole trajectory of `horizon` actions: the sites `states` and `actions`.

    Examples:
        >>> import pyro.distributions as dist
        >>> from ebm_pp.dynamics import Space
        >>> line = Dynamics(dist.Normal(torch.zeros(1), 1.0).to_event(1), torch.add, Space.real(1))
        >>> def program():
        ...     tau = trajectory(line, 5)
        ...     with pyro.plate("time", 5):
        ...         pyro.factor("cost", -tau.states[1:, 0] ** 2 - tau.actions[:, 0] ** 2)
    """
    actions = pyro.sample(
        "actions", TrajectorySite(dynamics, "control", (horizon, *dynamics.actions.shape))
    )
    states = pyro.sample(
        "states", TrajectorySite(dynamics, "path", (horizon + 1, *dynamics.space.shape))
    )
    return Trajectories(states, actions)


@dataclass(frozen=True)
class Layout:
    """Which sites of a program make its trajectory.

    Attributes:
        dynamics: of every step.
        horizon: T, the number of actions.
        states: names of s_0 to s_T, or the one packed site.
        actions: names of a_0 to a_{T-1}, or the one packed site.
    """

    dynamics: Dynamics
    horizon: int
    states: tuple[str, ...]
    actions: tuple[str, ...]

    @property
    def packed(self) -> bool:
        """Whether the whole trajectory is two sites."""
        return len(self.states) == 1

    def pack(self, x: dict[str, Tensor]) -> Trajectories:
        """Rows of the sites as states `(n, T + 1, *)` and actions `(n, T, *)`."""
        if self.packed:
            return Trajectories(x[self.states[0]], x[self.actions[0]])
        return Trajectories(
            torch.stack([x[name] for name in self.states], 1),
            torch.stack([x[name] for name in self.actions], 1),
        )

    def unpack(self, states: Tensor, actions: Tensor) -> dict[str, Tensor]:
        """The inverse of `pack`."""
        if self.packed:
            return {self.actions[0]: actions, self.states[0]: states}
        found = dict(zip(self.states, states.unbind(1), strict=True))
        return found | dict(zip(self.actions, actions.unbind(1), strict=True))


def read_layout(sites: dict[str, Any]) -> Layout | None:
    """The trajectory among a program's sites, or None if there is none.

    Raises:
        ProgramError: sites of a trajectory are mixed with others, or are out of order.
    """
    parts = {name: s.trajectory for name, s in sites.items() if s.trajectory is not None}
    if not parts:
        return None
    others = [name for name in sites if name not in parts]
    if others:
        raise ProgramError(
            f"site {others[0]!r} stands beside the trajectory sites {list(parts)[:3]}; expected "
            "states and actions only.\n  Put what is random into the state, or make it an "
            "observed constant."
        )
    worlds = {id(part.dynamics): part.dynamics for part in parts.values()}
    roles = [part.role for part in parts.values()]
    control = tuple(name for name, part in parts.items() if part.role == "control")
    states = tuple(name for name, part in parts.items() if part.role != "control")
    unrolled = ["start"] + ["control", "next"] * len(control)
    if len(worlds) > 1 or roles not in (["control", "path"], unrolled):
        raise ProgramError(
            f"the trajectory has {len(worlds)} dynamics and its sites in the order {roles}; "
            "expected one dynamics and start, control, next, control, next, ...\n  Use "
            "trajectory(dynamics, T), or sample a_t before s_{t+1} in the loop."
        )
    first = parts[control[0]]
    horizon = first.event_shape[0] if roles == ["control", "path"] else len(control)
    return Layout(next(iter(worlds.values())), horizon, states, control)


def replay(dynamics: Dynamics, tau: Trajectories) -> Float[Tensor, "n T"]:
    """By how much each next state differs from the one that deterministic dynamics give.

    The largest coordinate's difference, relative to 1 + its size.
    """
    n, horizon = tau.actions.shape[:2]
    before = tau.states[:, :-1].reshape(n * horizon, *tau.states.shape[2:])
    with torch.no_grad():
        moved = dynamics.advance(before, tau.actions.reshape(n * horizon, *tau.actions.shape[2:]))
    after = tau.states[:, 1:].reshape(moved.shape)
    off = (moved - after).abs() / (1 + after.abs())
    return off.reshape(n, horizon, -1).amax(-1)
