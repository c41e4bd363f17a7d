"""A player of the game: parameters, and how they take a step down its loss."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn


@dataclass(frozen=True)
class Player:
    """One side of the game: parameters with their optimiser and schedule."""

    name: str
    parameters: list[Tensor]
    optimiser: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LRScheduler
    clip: float

    def step(self, loss: Float[Tensor, ""]) -> float:
        """One descent step; FloatingPointError, parameters untouched, if it is not finite."""
        value = loss.item()
        self.optimiser.zero_grad()
        loss.backward(inputs=self.parameters)  # the other player's are not its business
        norm = nn.utils.clip_grad_norm_(self.parameters, self.clip).item()
        if not (math.isfinite(value) and math.isfinite(norm)):
            step = self.schedule.last_epoch
            raise FloatingPointError(
                f"the {self.name}'s loss was {value}, its gradient's norm {norm}, at step {step}"
            )
        self.optimiser.step()
        self.schedule.step()
        return value


def with_decay(module: nn.Module, decay: float) -> list[dict[str, Any]]:
    """The trained parameters in groups for Adam; weight_decay adds decay * W to a gradient."""
    layers = (nn.Linear, nn.modules.conv._ConvNd)
    matrices = {id(m.weight) for m in module.modules() if isinstance(m, layers)}
    parameters = [p for p in module.parameters() if p.requires_grad]
    decayed = [p for p in parameters if id(p) in matrices]
    others = [p for p in parameters if id(p) not in matrices]
    groups: list[dict[str, Any]] = [{"params": decayed, "weight_decay": decay}, {"params": others}]
    return [group for group in groups if group["params"]]


def player_by_adam(
    name: str,
    groups: list[dict[str, Any]],
    lr: float,
    steps: int,
    clip: float,
    beta2: float = 0.999,
) -> Player:
    """A player whose steps are Adam's, at a learning rate that falls to 0 along a cosine.

    Args:
        name: in errors.
        groups: parameters as Adam takes them, see `with_decay`.
        lr: learning rate of the first step.
        steps: after which it is 0.
        clip: largest gradient norm of a step.
        beta2: Adam's memory of squared gradients.
    """
    optimiser = torch.optim.Adam(groups, lr=lr, betas=(0.9, beta2), fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, max(steps, 1))
    parameters = [p for group in groups for p in group["params"]]
    return Player(name, parameters, optimiser, schedule, clip)
