"""`trajectory_report`: what a fit to trajectories is worth, horizon by horizon and cost by cost.

`diagnose` says whether a fit may be used. This report has the numbers behind: with the log weights
of single steps l_t and of the first t steps L_t = l_0 + ... + l_{t-1},

* ESS / n and log Z against the horizon: weights exp L_t; of the optimal policy all are 1;
* logits L_T - b of demonstrations and draws: the same law where the fit is done;
* log Z three ways: importance (draws of q alone), the bridge (demonstrations too, as if they were
  of p_theta; Bennett 1976), and the sandwich E_q[L_T] <= log Z <= E_p[L_T];
* the entropy of the policy, and its nats to the soft optimum (step_weights.py);
* gaps of cost features between demonstrations and the soft-optimal law.

Costs are known up to potential shaping, -c + gamma h(s') - h(s) (Ng, Harada, Russell 1999), so
`shaped` gives -c_t + next_t - h_t: log pi* of the cost, the same for all costs of one class.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from ebm_pp.density import EnergyModel, Rows, Sites
from ebm_pp.errors import GeneratorError, ProgramError
from ebm_pp.evidence import CONDITIONAL, JOINT, USABLE_ESS, Diagnosable, cost_features
from ebm_pp.moments import Gap, compare_moments
from ebm_pp.partition import bridge, ess_fraction, log_partition_from_weights, sandwich
from ebm_pp.policy import PolicyGenerator
from ebm_pp.rows import Row, as_html, as_text
from ebm_pp.sampling import propose, require_fit, seeded
from ebm_pp.step_weights import (
    QUANTILES,
    StepWeights,
    soft_value_of,
    step_log_weights,
    weigh_steps,
)


class Measured(NamedTuple):
    """A number with its standard error."""

    value: float
    standard_error: float

    def __str__(self) -> str:
        return f"{self.value:.3f} +- {self.standard_error:.3f}"


@dataclass(frozen=True)
class TrajectoryReport:
    """What `trajectory_report` found: print it, or show it in a notebook.

    Attributes:
        law: which law weights and log Z are about.
        horizons: numbers of steps t, up to T.
        ess: ESS / n of the weights of the first t steps.
        log_z_of: log mean of these weights, nats; 0 if h is the optimal soft value.
        logits_data: quantiles of log weight - b over demonstrations, at 5, 25, 50, 75, 95 %.
        logits_draws: the same over draws of the policy.
        importance: log Z from the policy's draws alone.
        bridge: log Z from demonstrations and draws.
        lower: mean log weight of draws, at most log Z.
        upper: mean log weight of corrected draws, at least log Z.
        entropy: of the policy, nats a step (per unit of the actions).
        gaps: of each cost feature and of `cost`, their sum; positive: demonstrations cost more.
        cost_data: mean cost of a demonstration, nats.
        cost_draws: mean cost of the policy's own trajectories.
        steps: weights of single steps, and the nats to the soft optimum.
        weighted: whether gaps are to weighted draws; if not, weights of whole trajectories are
            unusable and the gaps are to the policy's own.
    """

    law: str
    horizons: tuple[int, ...]
    ess: tuple[float, ...]
    log_z_of: tuple[Measured, ...]
    logits_data: tuple[float, ...]
    logits_draws: tuple[float, ...]
    importance: Measured
    bridge: Measured
    lower: Measured
    upper: Measured
    entropy: Measured
    gaps: dict[str, Gap]
    cost_data: Measured
    cost_draws: Measured
    steps: StepWeights
    weighted: bool

    @property
    def rows(self) -> tuple[Row, ...]:
        """One line per measurement."""
        steps = zip(self.horizons, self.ess, self.log_z_of, strict=True)
        lines = [("law of the weights", math.nan, self.law)]
        lines += [
            (f"first {t} steps", ess, f"ESS/n {ess:.3f}, log Z {log_z}") for t, ess, log_z in steps
        ]
        kept = "5, 50, 95 %"
        for name, found in (("demonstrations", self.logits_data), ("draws", self.logits_draws)):
            text = ", ".join(f"{found[i]:+.2f}" for i in (0, 2, 4))
            lines.append((f"logits of {name} ({kept})", found[2], text))
        lines += [
            ("log Z: importance", self.importance.value, str(self.importance)),
            ("log Z: bridge", self.bridge.value, str(self.bridge)),
            ("log Z: at least", self.lower.value, str(self.lower)),
            ("log Z: at most", self.upper.value, str(self.upper)),
            ("policy: entropy a step", self.entropy.value, str(self.entropy)),
            ("policy: nats to soft optimum", self.steps.nats,
             str(Measured(self.steps.nats, self.steps.standard_error))),
            ("cost: demonstrations", self.cost_data.value, str(self.cost_data)),
            ("cost: policy", self.cost_draws.value, str(self.cost_draws)),
        ]  # fmt: skip
        lines += [
            (f"gap: {name}", gap.z, f"{gap.z:+.1f} SE, {gap.size:+.2f} sd")
            for name, gap in self.gaps.items()
        ]
        return tuple(Row(name, value, text, "", "") for name, value, text in lines)

    @property
    def note(self) -> str:
        """A sentence or two on how to read it."""
        to = "the soft-optimal law (weighted draws)" if self.weighted else "the policy's own draws"
        noisy = "" if self.weighted else (
            " Weights of whole trajectories are too noisy at this horizon: rely on the single "
            "steps, and on log Z by the bridge."
        )  # fmt: skip
        return (
            f"Nats; errors are one standard error. Gaps are of demonstrations to {to}; positive: "
            f"demonstrations cost more.{noisy}"
        )

    def __str__(self) -> str:
        return as_text(self.rows, self.note)

    def _repr_html_(self) -> str:
        return as_html(self.rows, self.note)


@torch.no_grad()
def trajectory_report(
    fit: Diagnosable, data: Rows, n: int = 4000, *, seed: int | None = 0
) -> TrajectoryReport:
    """Draws from the policy and compares with demonstrations; see the module.

    Args:
        fit: a fit of a program with trajectory sites.
        data: demonstrations, best held out from training.
        n: trajectories of the policy.
        seed: of these; the global random stream is left alone.

    Raises:
        GeneratorError: the generator is no `PolicyGenerator`.
        DataError: the demonstrations do not fit the program.
        ProgramError: most draws have no density.
    """
    require_fit("trajectory_report", fit)
    model, policy = fit.model, fit.generator
    if not isinstance(policy, PolicyGenerator):
        raise GeneratorError(
            f"trajectory_report: the generator is a {type(policy).__name__}; expected a "
            "PolicyGenerator.\n  Fits of other programs are for diagnose(fit, data)."
        )
    rows = model.check(data)
    with seeded(seed):
        drawn = propose(fit, n)
    x, weights = drawn.values, drawn.log_weights
    at_data = model.log_density(rows) - policy.log_prob(rows)
    soft_value = soft_value_of(model, policy, x)
    steps = step_log_weights(model, policy, x, soft_value)
    estimate = log_partition_from_weights(weights)
    steps_found = weigh_steps(steps)
    weighted = not steps_found.solved or (not estimate.heavy and estimate.ess >= USABLE_ESS)
    costs, costs_draws = (
        {name: -value.double() for name, value in cost_features(model, part).items()}
        for part in (rows, x)
    )
    for found in (costs, costs_draws):
        found["cost"] = torch.stack([*found.values()]).sum(0)
    horizons = horizons_of(steps.shape[1])
    low, high = sandwich(weights)
    shares = weights.double().softmax(0)  # of the self-normalised average, by the delta method
    high_error = (shares * (weights - high)).square().nansum().sqrt().item()
    return TrajectoryReport(
        law=JOINT if model.soft_value is None else CONDITIONAL,
        horizons=horizons,
        ess=tuple(ess_fraction(steps[:, :t].sum(1).double()) for t in horizons),
        log_z_of=tuple(_log_mean(steps[:, :t].sum(1)) for t in horizons),
        logits_data=_quantiles(at_data - fit.offset),
        logits_draws=_quantiles(weights - fit.offset),
        importance=Measured(estimate.value, estimate.standard_error),
        bridge=bridge_with_error(at_data, weights),
        lower=Measured(low, _mean(weights).standard_error),
        upper=Measured(high, high_error),
        entropy=_entropy(policy, x),
        gaps=compare_moments(
            costs, costs_draws, weights if weighted else torch.zeros_like(weights), fit.n_train
        ),
        cost_data=_mean(costs["cost"]),
        cost_draws=_mean(costs_draws["cost"]),
        steps=steps_found,
        weighted=weighted,
    )


def horizons_of(horizon: int) -> tuple[int, ...]:
    """1, T/4, T/2 and T."""
    return tuple(sorted({1, max(horizon // 4, 1), max(horizon // 2, 1), horizon}))


def bridge_with_error(
    log_weights_data: Float[Tensor, " n"], log_weights_draws: Float[Tensor, " m"]
) -> Measured:
    """The offset b that solves the bridge equation log E_p[1 - D] = log E_q[D], and its error.

    By the delta method: Var b = (Var_p[1 - D] / (n E_p[1 - D]^2) + Var_q[D] / (m E_q[D]^2)) /
    slope^2, slope = E_p[D (1 - D)] / E_p[1 - D] + E_q[D (1 - D)] / E_q[D]. It is log Z only where
    the data are of p_theta.
    """
    b = bridge(log_weights_data, log_weights_draws)
    misses = torch.sigmoid(b - log_weights_data.double())
    alarms = torch.sigmoid(log_weights_draws.double() - b)
    variance, slope = 0.0, 0.0
    for part in (misses, alarms):
        mean = part.mean()
        variance += (part.var() / (len(part) * mean**2)).item()
        slope += ((part * (1 - part)).mean() / mean).item()
    return Measured(b, math.sqrt(variance) / slope if slope else math.inf)


@torch.no_grad()
def shaped(model: EnergyModel, x: Sites) -> Float[Tensor, "n T"]:
    """-c_t + next_t - h_t of trajectories: the learned cost without what shaping can change.

    The log density of a_t under the soft-optimal policy of the cost, up to the error of h.

    Args:
        model: of a fit; with its soft value.
        x: trajectories, each value `(n, *site_shape)`.

    Raises:
        ProgramError: the program has no trajectory, or no soft value.
    """
    if not isinstance(model, EnergyModel) or model.layout is None or model.soft_value is None:
        raise ProgramError(
            "shaped: the model has no soft value; expected one fitted with it.\n  Most likely an "
            "objective with one scalar log Z: fit with objective='trajectory' or 'causal'."
        )
    return model.step_log_density(x) + model.soft_value(model.layout.pack(x))


class ShapedDistance(NamedTuple):
    """How far two costs are apart up to shaping.

    correlation: over all steps of all trajectories.
    rms: root mean square difference, nats a step.
    """

    correlation: float
    rms: float


def shaped_distance(one: EnergyModel, other: EnergyModel, x: Sites) -> ShapedDistance:
    """Compares two costs on trajectories that both accept; 1 and 0 for costs of one class.

    Args:
        one: a fitted model.
        other: another, of the same sites.
        x: trajectories to compare on, best demonstrations that neither was fitted to.
    """
    a, b = (shaped(model, model.check(x)).double().flatten() for model in (one, other))
    correlation = torch.corrcoef(torch.stack([a, b]))[0, 1].item()
    return ShapedDistance(correlation, (a - b).square().mean().sqrt().item())


def _entropy(policy: PolicyGenerator, x: Sites) -> Measured:
    """Mean of -log pi over the steps that are alive, with its error over trajectories."""
    surprise = -policy.step_log_prob(x).double().sum(1)
    tau = policy.layout.pack(x)
    alive = torch.full_like(surprise, policy.layout.horizon)
    if policy.layout.dynamics.absorbing:
        alive = (tau.states[:, :-1, -1] > 0).double().sum(1)
    value = surprise.mean() / alive.mean()
    error = (surprise - value * alive).std() / (alive.mean() * math.sqrt(len(alive)))
    return Measured(value.item(), error.item())


def _mean(values: Float[Tensor, " n"]) -> Measured:
    values = values.double()
    return Measured(values.mean().item(), values.std().item() / math.sqrt(len(values)))


def _log_mean(log_weights: Float[Tensor, " n"]) -> Measured:
    estimate = log_partition_from_weights(log_weights)
    return Measured(estimate.value, estimate.standard_error)


def _quantiles(values: Float[Tensor, " n"]) -> tuple[float, ...]:
    at = torch.tensor(QUANTILES, dtype=torch.float64, device=values.device)
    return tuple(values.double().quantile(at).tolist())
