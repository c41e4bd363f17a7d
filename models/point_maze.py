"""A point in a maze on a fine grid: one wall with a gap, slippery moves, a smooth cost of place.

The unit square in `SIZE` x `SIZE` cells; a horizontal wall divides it, open at the left
(`maze("left")`) or at the right (`maze("right")`): a cost learned in one is tried in the other.
The true cost per step is

    c(x, y) = 1.5 (1 - exp(-|p - goal|^2 / (2 .35^2))) + 0.6 exp(-|p - swamp|^2 / (2 .1^2))
              + 0.1 if the point moves,

which lies outside the span of `RadialCost`'s features, 6 x 6 radial bumps. A constant in c cannot
be learned: at a fixed horizon it shifts log Z alone.

What is known exactly: everything, by `ebm_pp.tabular`.
"""

import pyro
import torch
from jaxtyping import Float
from torch import Tensor, nn

from ebm_pp.dynamics import Dynamics
from ebm_pp.trajectory import trajectory
from models.gridworld import grid_transitions

SIZE, WALL = 15, 7  # cells a side; the wall's row
GAP = 3  # cells
SLIP, HORIZON = 0.1, 40
GOAL = (0.5, 0.85)
SWAMP = (0.35, 0.25)
EFFORT = 0.1


def centres(size: int = SIZE) -> Float[Tensor, "S 2"]:
    """X and y of every cell's middle; cells are numbered row by row, row 0 at y = 0."""
    middle = (torch.arange(size, dtype=torch.float64) + 0.5) / size
    y, x = torch.meshgrid(middle, middle, indexing="ij")
    return torch.stack([x.flatten(), y.flatten()], -1)


def free_cells(gap: str) -> Tensor:
    """Bool `(SIZE, SIZE)`, False in the wall, whose gap is at its "left" or "right" end."""
    free = torch.ones(SIZE, SIZE, dtype=torch.bool)
    free[WALL] = False
    columns = slice(1, 1 + GAP) if gap == "left" else slice(SIZE - 1 - GAP, SIZE - 1)
    free[WALL, columns] = True
    return free


def maze(gap: str) -> Dynamics:
    """The world; the start is uniform over the free cells."""
    free = free_cells(gap)
    start = free.flatten().double()
    return Dynamics.tabular(grid_transitions(free, SLIP), start / start.sum())


def true_state_cost() -> Float[Tensor, " S"]:
    """The cost of place, without effort, nats a step."""
    place = centres()
    near = bump(place, torch.tensor([GOAL]), 0.35)[:, 0]
    return 1.5 * (1 - near) + 0.6 * bump(place, torch.tensor([SWAMP]), 0.1)[:, 0]


def true_minus_cost() -> Float[Tensor, "S A"]:
    """-c(s, a); action 0 stays."""
    effort = EFFORT * torch.tensor([0.0, 1.0, 1.0, 1.0, 1.0], dtype=torch.float64)
    return -(true_state_cost()[:, None] + effort)


def bump(
    place: Float[Tensor, "S 2"], middles: Float[Tensor, "k 2"], width: float
) -> Float[Tensor, "S k"]:
    """exp(-distance^2 / (2 width^2))."""
    distance = torch.cdist(place, middles.double())
    return torch.exp(-0.5 * (distance / width).square())


class RadialCost(nn.Module):
    """The program: c = sum_k w_k bump_k(place) + e [moves], all learned from 0.

    Args:
        dynamics: `maze(...)`.
        per_side: bumps a side; their width is the distance between them.
        horizon: T.
    """

    def __init__(self, dynamics: Dynamics, per_side: int = 6, horizon: int = HORIZON) -> None:
        super().__init__()
        self.dynamics, self.horizon = dynamics, horizon
        grid = torch.linspace(0, 1, per_side, dtype=torch.float64)
        middles = torch.cartesian_prod(grid, grid)
        self.register_buffer("bumps", bump(centres(), middles, 1 / (per_side - 1)))
        self.weights = nn.Parameter(torch.zeros(len(middles), dtype=torch.float64))
        self.effort = nn.Parameter(torch.zeros((), dtype=torch.float64))

    def forward(self) -> None:
        """One trajectory."""
        tau = trajectory(self.dynamics, self.horizon)
        with pyro.plate("time", self.horizon):
            pyro.factor("place", -(self.bumps[tau.states[:-1]] @ self.weights))
            pyro.factor("effort", -self.effort * (tau.actions > 0))

    def state_cost(self) -> Float[Tensor, " S"]:
        """The learned cost of place; its level is arbitrary."""
        return (self.bumps @ self.weights).detach()


class PairCost(nn.Module):
    """The program c(s, a) = w[s, a], free: what depends on the maze may hide in it.

    Args:
        dynamics: `maze(...)`.
        horizon: T.
    """

    def __init__(self, dynamics: Dynamics, horizon: int = HORIZON) -> None:
        super().__init__()
        self.dynamics, self.horizon = dynamics, horizon
        size = dynamics.space.n, dynamics.actions.n
        self.costs = nn.Parameter(torch.zeros(size, dtype=torch.float64))

    def forward(self) -> None:
        """One trajectory."""
        tau = trajectory(self.dynamics, self.horizon)
        with pyro.plate("time", self.horizon):
            pyro.factor("pair", -self.costs[tau.states[:-1], tau.actions])
