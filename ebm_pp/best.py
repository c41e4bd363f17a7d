"""The best parameters of a run so far."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ebm_pp.config import PER_STEP

if TYPE_CHECKING:
    from ebm_pp.game import Game


@dataclass(frozen=True)
class Best:
    """The best parameters so far, and the diagnosis of the round they are from.

    `peak` is the round of the best score; later ones that are as good within its error replace it.
    """

    score: tuple[bool, float]
    peak: int
    info: dict[str, Any]
    parameters: list[Tensor]  # of the energy; its buffers are the user's, and stay as they are
    soft_value: dict[str, Tensor]
    generator: dict[str, Tensor]
    offset: float

    @classmethod
    def of(
        cls, game: "Game", score: tuple[bool, float], info: dict[str, Any], peak: int
    ) -> "Best":
        """A copy of what is to be returned."""

        def copied(module: object) -> dict[str, Tensor]:
            state = module.state_dict() if isinstance(module, nn.Module) else {}
            return {name: value.clone() for name, value in state.items()}

        offset = game.offset.item()
        if game.config.objective in PER_STEP:  # there game.offset is of single steps
            offset = info.get("offset", math.nan)
        return cls(
            score,
            peak,
            info,
            [value.clone() for value in game.mean],
            copied(game.soft_value),
            copied(game.generator),
            offset,
        )

    def or_better(self, game: "Game", info: dict[str, Any], healthy: bool) -> "Best":
        """The better of this and the present.

        A healthy round before any other, then by held-out log-likelihood, of rounds that are not
        healthy by the least that it can be (without held-out rows the later one; for a given
        density by ESS). Of healthy rounds whose held-out log-likelihoods differ
        by less than the error of log Z the later one, whose energy has converged further.
        """
        value, slack = info["held_out"], 0.0
        if not math.isnan(value):
            slack = math.sqrt(2) * info["log_partition_se"]
            if (
                not healthy
            ):  # few draws carry log Z: the round where it is too low by luck would win
                value, slack = info["held_out_least"], 0.0
        else:
            value = info["ess"] if game.data is None else float(info["round"])
        if game.soft_value is not None and math.isnan(info["held_out"]):
            # Weights of whole trajectories are noisy: an early policy may look healthy by luck.
            healthy, value = True, float(info["round"])
        score = (healthy, value)
        if score > self.score:
            return Best.of(game, score, info, info["round"])
        if (healthy, value + slack) > self.score:
            return Best.of(game, self.score, info, self.peak)
        return self

    def restore(self, game: "Game") -> None:
        """Puts the best parameters into the user's objects."""
        with torch.no_grad():
            for p, value in zip(game.model.parameters(), self.parameters, strict=True):
                p.copy_(value)
        if game.soft_value is not None:
            game.soft_value.load_state_dict(self.soft_value)
            game.model.soft_value = game.soft_value if game.conditional else None
        if isinstance(game.generator, nn.Module):
            game.generator.load_state_dict(self.generator)
