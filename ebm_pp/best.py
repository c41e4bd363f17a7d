"""The best parameters of a run so far, and whether a callback has changed the density."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ebm_pp.checks import agree, holding, put
from ebm_pp.config import PER_STEP
from ebm_pp.density import Sites
from ebm_pp.pool import pick

if TYPE_CHECKING:
    from ebm_pp.game import Game

COMPARED = 64  # rows at which a callback's changes are looked for


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
        put([*game.model.parameters()], self.parameters)
        if game.soft_value is not None:
            game.soft_value.load_state_dict(self.soft_value)
            game.model.soft_value = game.soft_value if game.conditional else None
        if isinstance(game.generator, nn.Module):
            game.generator.load_state_dict(self.generator)


def changed_by(
    report: Callable[[dict[str, Any]], None],
    game: "Game",
    info: dict[str, Any],
    x: Sites,
    terms: dict[str, Tensor],
) -> bool:
    """Calls back, and says whether that has changed what the program computes.

    Parameters that are changed there are changed in their moving average too.

    Args:
        report: Shows the round's record to the user.
        game: The run.
        info: The round's record.
        x: Rows of the round's pool.
        terms: Every term of log p~ at these rows, at the averaged parameters, from before.

    Returns:
        True if a parameter or a term is another now.
    """
    own = [*game.model.parameters()]
    before = [p.detach().clone() for p in own]
    report(info)
    moved = [i for i, p in enumerate(own) if not torch.equal(p, before[i])]
    put([game.mean[i] for i in moved], [own[i] for i in moved])
    with holding(own, game.mean), torch.no_grad():
        now = game.model.terms(pick(x, slice(COMPARED)))
    same = all(agree(now[name], terms[name][:COMPARED], 1e-4, 1e-9) for name in now)
    return bool(moved) or not same
