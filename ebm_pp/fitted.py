"""What a run returns: the fitted model, and how the run ended."""

import enum
import html
import math
from dataclasses import dataclass
from typing import Any

from ebm_pp.config import FitConfig
from ebm_pp.density import EnergyModel
from ebm_pp.findings import Finding
from ebm_pp.generator import Generator
from ebm_pp.outskirts import Outskirts
from ebm_pp.rows import columns_as_html, shown


class Status(enum.Enum):
    """How a run ended, in a sentence.

    The diagnosis is that of `diagnose`, by fresh draws, on training and held-out rows if any;
    of trajectories, whose draws may cost a simulator, the round's own ESS and k-hat.
    """

    CONVERGED = (
        "Converged: a diagnosis of the round returned finds nothing wrong, and later rounds "
        "brought nothing better (in held-out log-likelihood; for a given density, in ESS)."
    )
    FINISHED = (
        "All rounds ran, and a diagnosis of the round returned finds nothing wrong; more rounds "
        "may still improve it."
    )
    LAGGING = (
        "The rounds ended while the generator lags behind the energy: draws or log Z are not to "
        "be trusted. Raise rounds or generator_steps_max."
    )
    UNCONVERGED = (
        "The rounds ended before the energy had learned what the rows show, or while it has "
        "mass where nothing draws. Raise rounds, or look at the data and the program."
    )
    TEMPERING = (
        "All rounds ran before the annealed target reached the given density: draws are of a "
        "flattened one. Raise rounds or generator_steps_max, or start wider."
    )
    NON_FINITE = (
        "A number stopped being finite; the best parameters of the finite rounds were kept. Most "
        "likely an energy that falls without bound, or a factor that takes a logarithm, root or "
        "quotient out of its domain."
    )
    INTERRUPTED = "Interrupted; the best parameters so far were kept."


@dataclass(frozen=True, repr=False)
class Fit:
    """A fitted model.

    Attributes:
        model: the program with its learned energy.
        generator: q, the learned proposal.
        history: one record a diagnosed round (see `pool.diagnose_round`).
        status: how the run ended; `status.value` is a sentence.
        config: what it ran with.
        offset: b of the discriminator; a gauge, not log Z.
        n_train: rows of training data; 0 for a given density.
        best_round: the round whose parameters these are (-1: none was diagnosed).
        detail: where it ended, e.g. the step whose loss was not finite, or what is wrong.
        outskirts: where the training rows say that nothing else draws (see outskirts.py), for
            `diagnose`; None for a given density.
        findings: what is wrong with the training rows themselves (`findings.py`).
    """

    model: EnergyModel
    generator: Generator
    history: tuple[dict[str, Any], ...]
    status: Status
    config: FitConfig
    offset: float
    n_train: int = 0
    best_round: int = -1
    detail: str = ""
    outskirts: Outskirts | None = None
    findings: tuple[Finding, ...] = ()

    def __repr__(self) -> str:
        lines = [f"{self.status.value} {self.detail}".strip()]
        for info in self.returned:
            numbers = ", ".join(f"{name} {value}" for name, value in in_short(info).items())
            lines.append(f"Round {info['round'] + 1} of {self.config.rounds}: {numbers}.")
        return "\n".join([*lines, "Next: diagnose(fit, held_out_rows)."])

    @property
    def returned(self) -> list[dict[str, Any]]:
        """The record of the round whose parameters these are; none if none was diagnosed."""
        return [info for info in self.history if info["round"] == self.best_round]

    def _repr_html_(self) -> str:
        """The status sentence first, then the program and the round that was returned."""
        numbers = {"round": [f"{self.best_round + 1} of {self.config.rounds}"]} | {
            name: [value] for info in self.returned for name, value in in_short(info).items()
        }
        status = f"{self.status.value} {self.detail}".strip()
        return (
            f"<p><strong>{html.escape(status)}</strong></p>"
            + self.model._repr_html_()
            + columns_as_html(numbers, "Next: diagnose(fit, held_out_rows).")
        )


def in_short(info: dict[str, Any]) -> dict[str, str]:
    """The numbers a person wants beside the progress bar."""
    numbers = {"ESS/n": info["ess"], "k": info["pareto_k"], "log Z": info["log_partition"]}
    if not math.isnan(info["held_out"]):
        numbers = {"held-out": info["held_out"], **numbers}
    if not math.isnan(info["offset_gap"]):
        numbers["b - log Z"] = info["offset_gap"]
    return {name: shown(value, 3) for name, value in numbers.items()}
