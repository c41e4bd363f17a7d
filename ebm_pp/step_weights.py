"""Weights of single steps: how far a policy is from the soft optimum of a cost.

The log weight of a step (soft_value.py),

    l_t = -c(s_t, a_t) + next_t - h_t(s_t) - log pi(a_t | s_t),

is log pi*(a_t | s_t) / pi(a_t | s_t) where h is the optimal soft value. Then E_q[exp l_t] = 1 and

    -sum_t E_q[l_t] = sum_t E KL(pi || pi*) = log Z_causal - E_q[log weight],

the nats of a trajectory to the soft optimum. A fit's h is the soft value of its own policy: under
it E_q[l_t] = 0 whatever the policy, and KL is log E_q[exp l_t], to the policy that one soft
improvement gives. Both are

    nats = sum_t ( log E_q[exp l_t] - E_q[l_t] ),

which no constant added to h_t changes. An error of h that depends on the state adds half its
variance. Whole trajectories have log weights sum_t l_t, and their ESS falls exponentially with
the horizon: for a covariance scaled by s at the optimal mean of m actions it is
(sqrt(2s - 1) / s)^(mT), however good every step is.

Sources: Ziebart 2010, chapter 5; Kakade & Langford 2002 (sums of advantages).
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ebm_pp.density import EnergyModel, Sites
from ebm_pp.policy import PolicyGenerator
from ebm_pp.soft_value import SoftValue
from ebm_pp.trajectory import Layout

STEPS_AT_ONCE = 100_000  # steps of trajectories whose features are in memory together
STEP_NATS = 0.05  # a step; a Gaussian action with its variance off by 1.5 is .05 nats off
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


@dataclass(frozen=True)
class StepWeights:
    """What the weights of single steps say of a policy.

    Attributes:
        nats: to the soft optimum, a trajectory.
        standard_error: of `nats`, over trajectories.
        quantiles: of l_t over draws and steps, at 5, 25, 50, 75 and 95 %.
        by_step: nats of every step; they sum to `nats`.
    """

    nats: float
    standard_error: float
    quantiles: tuple[float, ...]
    by_step: tuple[float, ...]

    @property
    def worst(self) -> int:
        """The step that is farthest from the soft optimum."""
        return max(range(len(self.by_step)), key=self.by_step.__getitem__)

    @property
    def solved(self) -> bool:
        """Whether every step is close to the soft optimum, whatever whole trajectories weigh."""
        return self.by_step[self.worst] <= STEP_NATS


@torch.no_grad()
def step_log_weights(
    model: EnergyModel, generator: PolicyGenerator, x: Sites, soft_value: SoftValue | None = None
) -> Float[Tensor, "n T"]:
    """l_t of trajectories, in slices; with the model's own soft value unless one is given.

    Raises:
        ProgramError: the program has no trajectory.
        ValueError: neither the model nor the caller has a soft value.
    """
    soft_value = soft_value or model.soft_value
    if soft_value is None:
        raise ValueError(
            "the model has no soft value, and none was given; expected h for the weights of "
            "single steps.\n  Most likely a scalar objective: use soft_value_of(fit, draws)."
        )
    layout = generator.layout
    parts = [
        model.step_log_density(rows)
        + soft_value(layout.pack(rows))
        - generator.step_log_prob(rows)
        for rows in _pieces(x, layout)
    ]
    return torch.cat(parts)


@torch.no_grad()
def soft_value_of(model: EnergyModel, generator: PolicyGenerator, draws: Sites) -> SoftValue:
    """The model's soft value, or, if it has none, one fitted to draws of the policy."""
    if model.soft_value is not None:
        return model.soft_value
    layout = generator.layout
    few = {k: v[: max(STEPS_AT_ONCE // layout.horizon, 100)] for k, v in draws.items()}
    soft_value = SoftValue(layout, causal=True).to(model.device, model.dtype)
    projection = soft_value.project(layout.pack(few), slice(None))
    some = {name: value[: projection.n] for name, value in few.items()}
    step_log_q = torch.nn.functional.pad(generator.step_log_prob(some), [0, 1])
    soft_value.keep_(projection, model.stage_log_density(some) - step_log_q)
    return soft_value


def weigh_steps(step_log_weights: Float[Tensor, "n T"]) -> StepWeights:
    """The record of l_t at draws of the policy."""
    steps = step_log_weights.detach().double()
    n = len(steps)
    log_mean = steps.logsumexp(0) - math.log(n)
    by_step = log_mean - steps.mean(0)
    influence = ((steps - log_mean).exp() - 1 - (steps - steps.mean(0))).sum(1)
    sorted_ = steps.flatten().sort().values
    quantiles = [sorted_[round(p * (len(sorted_) - 1))].item() for p in QUANTILES]
    return StepWeights(
        nats=by_step.sum().item(),
        standard_error=(influence.std() / math.sqrt(n)).item(),
        quantiles=tuple(quantiles),
        by_step=tuple(by_step.tolist()),
    )


def _pieces(x: Sites, layout: Layout) -> list[Sites]:
    size = max(STEPS_AT_ONCE // layout.horizon, 1)
    pieces = zip(*(value.split(size) for value in x.values()), strict=True)
    return [dict(zip(x, piece, strict=True)) for piece in pieces]
