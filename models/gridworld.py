"""Finite worlds with a cost linear in named features: a grid, and six states at random.

What is known exactly: everything. `ebm_pp.tabular` gives log Z_t(s), the soft-optimal policy,
its occupancies, and the maximum-likelihood weights with their standard errors.
"""

from typing import NamedTuple

import numpy as np
import pyro
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ebm_pp.dynamics import Dynamics
from ebm_pp.trajectory import trajectory

# (row, column) of the actions stay, up, down, left, right.
MOVES = torch.tensor([[0, 0], [-1, 0], [1, 0], [0, -1], [0, 1]])


class World(NamedTuple):
    """What `FeatureCost` takes: dynamics, T, and costs per unit of weight by name, `(S, A)`."""

    dynamics: Dynamics
    horizon: int
    features: dict[str, Tensor]

    @property
    def tables(self) -> tuple[Tensor, Tensor]:
        """Transitions `(S, A, S)` and law of s_0 `(S,)`, float64."""
        assert self.dynamics.transitions is not None, "a World is a table"
        return self.dynamics.transitions.double(), self.dynamics.start.probs.double()

    def minus_cost(self, weights: Float[Tensor, " k"]) -> Float[Tensor, "S A"]:
        """-c(s, a) = -sum_i w_i f_i(s, a), float64."""
        features = torch.stack([f.double() for f in self.features.values()], -1)
        return -features @ weights.double()


class FeatureCost(nn.Module):
    """The program: c(s, a) = sum_i w_i f_i(s, a), weights learned from 0, a factor per feature.

    Args:
        dynamics: a table.
        horizon: T.
        features: f_i by name, `(S, A)`.
        weights: where to start, `(k,)`; by default 0.
        dtype: of the weights and features.
    """

    def __init__(
        self,
        dynamics: Dynamics,
        horizon: int,
        features: dict[str, Tensor],
        weights: Float[Tensor, " k"] | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        self.dynamics, self.horizon, self.names = dynamics, horizon, tuple(features)
        stacked = torch.stack([f.to(dtype) for f in features.values()], -1)
        self.register_buffer("features", stacked)
        start = torch.zeros(len(features)) if weights is None else weights
        self.weights = nn.Parameter(start.to(stacked).clone())

    def forward(self) -> None:
        """One trajectory."""
        tau = trajectory(self.dynamics, self.horizon)
        cost = self.features[tau.states[:-1], tau.actions] * self.weights
        with pyro.plate("time", self.horizon):
            for name, column in zip(self.names, cost.unbind(-1), strict=True):
                pyro.factor(name, -column)


class StateCost(nn.Module):
    """The program c(s, a) = w[s]: a free cost for every state, learned from 0.

    Args:
        dynamics: a table.
        horizon: T.
        dtype: of the costs.
    """

    def __init__(
        self, dynamics: Dynamics, horizon: int, dtype: torch.dtype = torch.float64
    ) -> None:
        super().__init__()
        self.dynamics, self.horizon = dynamics, horizon
        self.costs = nn.Parameter(torch.zeros(dynamics.space.n, dtype=dtype))

    def forward(self) -> None:
        """One trajectory."""
        tau = trajectory(self.dynamics, self.horizon)
        with pyro.plate("time", self.horizon):
            pyro.factor("state", -self.costs[tau.states[:-1]])


def grid_transitions(free: Tensor, slip: float) -> Float[Tensor, "S 5 S"]:
    """P(s' | s, a) on a grid of cells, numbered row by row, float64.

    A move into a wall or off the grid stays. With probability `slip` a move goes in one of the
    four directions at random.

    Args:
        free: Bool `(rows, columns)`; False is wall, where nothing moves.
        slip: in [0, 1].
    """
    rows, columns = free.shape
    cells = torch.cartesian_prod(torch.arange(rows), torch.arange(columns))
    target = cells[:, None] + MOVES
    inside = ((target >= 0) & (target < torch.tensor([rows, columns]))).all(-1)
    row, column = (target * inside.unsqueeze(-1)).unbind(-1)
    possible = inside & free[row, column] & free.flatten()[:, None]
    stay = torch.arange(len(cells))[:, None].expand_as(row)
    landing = torch.where(possible, row * columns + column, stay)
    certain = torch.eye(len(cells), dtype=torch.float64)[landing]
    return torch.cat([certain[:, :1], _slipping(certain[:, 1:], slip)], 1)


def _slipping(moves: Tensor, slip: float) -> Tensor:
    return (1 - slip) * moves + slip * moves.mean(1, keepdim=True)


def gridworld(size: int = 5, slip: float = 0.1, horizon: int = 12) -> World:
    """A square grid from the top left to the bottom right, around a puddle in the middle.

    Costs: `moving` (1 for every action but staying), `distance` (Manhattan, to the goal, over its
    largest), `puddle` (1 in the middle cell). Weights `GRID_WEIGHTS` make a good walker.
    """
    transitions = grid_transitions(torch.ones(size, size, dtype=torch.bool), slip)
    cells = torch.cartesian_prod(torch.arange(size), torch.arange(size))
    distance = (cells - (size - 1)).abs().sum(-1).double() / (2 * (size - 1))
    puddle = (cells == size // 2).all(-1).double()
    moving = torch.ones(size**2, 5, dtype=torch.float64)
    moving[:, 0] = 0.0
    features = {
        "moving": moving,
        "distance": distance[:, None].expand(-1, 5),
        "puddle": puddle[:, None].expand(-1, 5),
    }
    start = torch.zeros(size**2, dtype=torch.float64)
    start[0] = 1.0
    return World(Dynamics.tabular(transitions, start), horizon, features)


GRID_WEIGHTS = torch.tensor([0.3, 4.0, 2.0], dtype=torch.float64)


def six_states(noise: float = 0.0) -> World:
    """Six states, three actions, eight steps, three random features; `SIX_WEIGHTS` are the truth.

    Each pair (s, a) has one next state; `noise` mixes in a random row of a Dirichlet law. Costs
    are minus the features, so that positive weights attract. The start is uniform.
    """
    random = np.random.default_rng(11)
    following = random.integers(0, 6, (6, 3))
    certain = np.eye(6)[following]
    transitions = (1 - noise) * certain + noise * random.dirichlet(np.ones(6), (6, 3))
    gains = torch.as_tensor(random.normal(size=(6, 3, 3)))
    features = {f"feature_{i}": -gains[..., i] for i in range(3)}
    uniform = torch.full((6,), 1 / 6, dtype=torch.float64)
    return World(Dynamics.tabular(torch.as_tensor(transitions), uniform), 8, features)


SIX_WEIGHTS = torch.tensor([1.0, -1.0, 0.5], dtype=torch.float64)


def draws(
    transitions: Float[Tensor, "S A S"],
    policy: Float[Tensor, "T S A"],
    start: Float[Tensor, " S"],
    n: int,
    seed: int,
) -> dict[str, Int[Tensor, "n _"]]:
    """Draws n trajectories of a policy: the sites `states` `(n, T + 1)` and `actions` `(n, T)`.

    By numpy's generator; a uniform start is drawn as integers.
    """
    random = np.random.default_rng(seed)
    rows = transitions.double().numpy().cumsum(-1)
    choices = policy.double().numpy().cumsum(-1)

    def pick(cumulative: np.ndarray) -> np.ndarray:
        index = (random.random(len(cumulative))[:, None] > cumulative).sum(1)
        return index.clip(max=cumulative.shape[1] - 1)

    states = np.zeros((n, len(choices) + 1), int)
    actions = np.zeros((n, len(choices)), int)
    law = start.double().numpy()
    if np.ptp(law) == 0:
        states[:, 0] = random.integers(0, len(law), n)
    else:
        states[:, 0] = pick(np.broadcast_to(law.cumsum(), (n, len(law))))
    for t, choice in enumerate(choices):
        actions[:, t] = pick(choice[states[:, t]])
        states[:, t + 1] = pick(rows[states[:, t], actions[:, t]])
    return {"states": torch.as_tensor(states), "actions": torch.as_tensor(actions)}
