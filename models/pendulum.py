"""The pendulum to swing up and hold: three costs, and their soft-optimal policy on a grid.

gymnasium's Pendulum-v1. An angle theta from the upright, its speed, a torque u in [-2, 2]:

    speed' = clip(speed + dt (3 g / (2 l) sin theta + 3 u / (m l^2)), -8, 8)
    theta' = theta + dt speed',      g = 10, m = l = 1, dt = 0.05

and, observed (cos theta, sin theta, speed),

    c = beta (theta^2 + 0.1 speed^2 + 0.001 u^2),      theta in [-pi, pi).

gymnasium's return is -sum c at beta = 1. beta is the inverse temperature of the expert: what
inverse reinforcement learning can find are the weights beta, 0.1 beta, 0.001 beta.

The expert is exact up to the grid: backward from V_T = 0, over angles, speeds and cells of torque,

    Q_t(s, u) = -c(s, u) + V_{t+1}(s'),      V_t(s) = log sum_cells width exp Q_t(s, u),

V between grid points bilinear, Q constant in a cell of torque; pi_t(u | s) = exp(Q_t - V_t), and
log Z(s_0) = V_0(s_0). Its torques lie strictly inside the box.

Source of the task: G. Brockman et al. 2016, OpenAI Gym, arXiv:1606.01540.
"""

import math
from dataclasses import dataclass
from typing import Any

import pyro
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributions import Distribution, constraints

from ebm_pp.dynamics import Dynamics
from ebm_pp.trajectory import trajectory

HORIZON = 200
TRUE = (1.0, 0.1, 0.001)  # weights at beta = 1
TORQUE, SPEED = 2.0, 8.0  # largest
DT = 0.05  # s


def features(states: Float[Tensor, "*n 3"], actions: Float[Tensor, "*n 1"]) -> Tensor:
    """theta^2, speed^2 and torque^2, `(*n, 3)`, of observations and torques."""
    theta = torch.atan2(states[..., 1], states[..., 0])
    return torch.stack([theta, states[..., 2], actions[..., 0]], -1).square()


def move(theta: Tensor, speed: Tensor, torque: Tensor) -> tuple[Tensor, Tensor]:
    """Angle and speed after one step; the angle is not wrapped."""
    speed = speed + DT * (15.0 * theta.sin() + 3.0 * torque)
    speed = speed.clamp(-SPEED, SPEED)
    return theta + DT * speed, speed


def step(states: Tensor, actions: Tensor) -> Tensor:
    """The same of observations `(*n, 3)` and torques `(*n, 1)`."""
    theta = torch.atan2(states[..., 1], states[..., 0])
    theta, speed = move(theta, states[..., 2], actions[..., 0])
    return torch.stack([theta.cos(), theta.sin(), speed], -1)


class Pendulum(nn.Module):
    """The program; a factor for each feature, whose weight is exp of a parameter.

    Args:
        dynamics: of observations (cos, sin, speed) and torques.
        horizon: T.
        weights: of theta^2, speed^2, torque^2 at the beginning.
    """

    def __init__(
        self,
        dynamics: Dynamics,
        horizon: int = HORIZON,
        weights: tuple[float, ...] = (1.0, 1.0, 1.0),
    ) -> None:
        super().__init__()
        self.dynamics, self.horizon = dynamics, horizon
        self.log_weights = nn.Parameter(torch.tensor(weights).log())

    def forward(self) -> None:
        """One trajectory."""
        tau = trajectory(self.dynamics, self.horizon)
        costs = self.log_weights.exp() * features(tau.states[:-1], tau.actions)
        with pyro.plate("time", self.horizon):
            for i, name in enumerate(("angle", "speed", "torque")):
                pyro.factor(name, -costs[:, i])

    def weights(self) -> Float[Tensor, " 3"]:
        """Of theta^2, speed^2, torque^2."""
        return self.log_weights.detach().exp()


@dataclass(frozen=True)
class Grid:
    """How finely the soft value is computed.

    Attributes:
        angles: points on the circle.
        speeds: points from -8 to 8.
        torques: cells of [-2, 2].
    """

    angles: int = 300
    speeds: int = 301
    torques: int = 21

    @property
    def centres(self) -> Float[Tensor, " torques"]:
        """Of the cells of torque."""
        edges = torch.linspace(-TORQUE, TORQUE, self.torques + 1)
        return (edges[1:] + edges[:-1]) / 2

    @property
    def width(self) -> float:
        """Of a cell of torque."""
        return 2 * TORQUE / self.torques

    def corners(self, theta: Tensor, speed: Tensor) -> tuple[Tensor, Tensor]:
        """The four points around, as indices into a flattened `(angles, speeds)`, and weights.

        Both `(4, *batch)`.
        """
        a = theta.remainder(2 * math.pi) * (self.angles / (2 * math.pi))
        b = (speed + SPEED) * ((self.speeds - 1) / (2 * SPEED))
        left, low = a.floor(), b.floor().clamp(0, self.speeds - 2)
        x, y = a - left, b - low
        i, j = left.long() % self.angles, low.long()
        k = (i + 1) % self.angles
        index = torch.stack([i, i, k, k]) * self.speeds + torch.stack([j, j + 1, j, j + 1])
        return index, torch.stack([(1 - x) * (1 - y), (1 - x) * y, x * (1 - y), x * y])


@torch.no_grad()
def soft_values(
    weights: Float[Tensor, " 3"], horizon: int = HORIZON, grid: Grid | None = None
) -> Float[Tensor, "times angles speeds"]:
    """V_t on the grid, t = 0..T, by the recursion of the module; nats."""
    grid = grid or Grid()
    angle = torch.arange(grid.angles) * (2 * math.pi / grid.angles)
    speed = torch.linspace(-SPEED, SPEED, grid.speeds)
    theta, speed, torque = torch.meshgrid(angle, speed, grid.centres, indexing="ij")
    index, share = grid.corners(*move(theta, speed, torque))
    wrapped = torch.atan2(theta.sin(), theta.cos())
    costs = torch.stack([wrapped, speed, torque], -1).square() @ weights
    value = torch.zeros(grid.angles, grid.speeds)
    values = [value]
    for _ in range(horizon):
        flat = value.flatten()
        ahead = sum(share[i] * flat[index[i]] for i in range(4))
        value = (ahead - costs).logsumexp(-1) + math.log(grid.width)
        values.append(value)
    return torch.stack(values[::-1])


class CellTorque(Distribution):
    """A torque from one of the cells, uniform inside it.

    Args:
        log_density: in each cell, `(*batch, torques)`.
        grid: its cells.
    """

    arg_constraints: dict[str, constraints.Constraint] = {}  # noqa: RUF012  torch's own form
    has_rsample = False

    def __init__(self, log_density: Tensor, grid: Grid) -> None:
        super().__init__(log_density.shape[:-1], torch.Size([1]), validate_args=False)
        self.log_density, self.grid = log_density, grid

    def sample(self, sample_shape: Any = ()) -> Tensor:  # noqa: ANN401
        """Torques `(*batch, 1)`, strictly inside the box."""
        cell = torch.distributions.Categorical(logits=self.log_density).sample(sample_shape)
        inside = torch.rand(cell.shape).clamp(1e-3, 1 - 1e-3).to(self.log_density)
        return ((cell + inside) * self.grid.width - TORQUE).unsqueeze(-1)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density per unit of torque."""
        cell = ((value + TORQUE) / self.grid.width).long().clamp(0, self.grid.torques - 1)
        shape = (*value.shape[:-1], self.grid.torques)
        return self.log_density.expand(shape).gather(-1, cell).squeeze(-1)


class GridPolicy(nn.Module):
    """The soft-optimal policy, for `PolicyGenerator(model, policy=...)`; nothing in it learns.

    Args:
        weights: of the cost.
        horizon: T.
        grid: how finely.
    """

    values: Tensor
    weights: Tensor

    def __init__(
        self, weights: Float[Tensor, " 3"], horizon: int = HORIZON, grid: Grid | None = None
    ) -> None:
        super().__init__()
        self.grid = grid or Grid()
        self.register_buffer("weights", weights)
        self.register_buffer("values", soft_values(weights, horizon, self.grid))

    def value(self, states: Float[Tensor, "*n 3"], time: Tensor) -> Tensor:
        """V_t(s), `(*n)`; at t = 0 log Z(s_0)."""
        theta = torch.atan2(states[..., 1], states[..., 0])
        return self._at(theta, states[..., 2].clamp(-SPEED, SPEED), time)

    def forward(self, states: Tensor, time: Tensor) -> Distribution:
        """The law of the torque in states `(*batch, 3)` at times `(*batch)`."""
        grid = self.grid
        theta = torch.atan2(states[..., 1], states[..., 0]).unsqueeze(-1)
        torque = grid.centres.to(states).expand(*theta.shape[:-1], grid.torques)
        ahead = self._at(*move(theta, states[..., 2:], torque), time.unsqueeze(-1) + 1)
        # The cost of angle and speed is the same for every torque.
        q = ahead - self.weights[2] * torque.square()
        return CellTorque(q - q.logsumexp(-1, keepdim=True) - math.log(grid.width), grid)

    def _at(self, theta: Tensor, speed: Tensor, time: Tensor) -> Tensor:
        index, share = self.grid.corners(theta, speed)
        index = index + time * (self.grid.angles * self.grid.speeds)
        return (share * self.values.flatten()[index]).sum(0).to(theta)


def true_weights(beta: float) -> Float[Tensor, " 3"]:
    """Of an expert at this inverse temperature."""
    return beta * torch.tensor(TRUE)
