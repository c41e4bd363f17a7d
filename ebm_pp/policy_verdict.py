"""What a diagnosis of trajectories says, in the words of policies and costs."""

import math

from ebm_pp.evidence import Evidence
from ebm_pp.moments import Gap
from ebm_pp.rows import Row
from ebm_pp.step_weights import STEP_NATS

MORE = (
    "Train it longer (rounds, generator_steps, generator_steps_max), and let it see what the best "
    "action depends on: timed=True, a wider hidden in PolicyGenerator."
)


def policy_rows(found: Evidence) -> tuple[Row, ...]:
    """Which law a report is about; how far the policy is from the soft optimum of the cost."""
    if not found.law:
        return ()
    law, steps = Row("law of the weights", math.nan, found.law, "", ""), found.steps
    if steps is None:
        return (law,)
    whole = found.log_z.value - found.bounds[0]
    noisy = " (noisy)" if found.own else ""
    low, *_, high = steps.quantiles
    return (
        law,
        Row("policy: nats to soft optimum", steps.nats if found.own else whole,
            f"{whole:.3f} whole{noisy}, {steps.nats:.3f} +- {steps.standard_error:.3f} by steps",
            "", ""),
        Row("policy: log weights of steps", high - low, f"{low:+.2f} to {high:+.2f} (5 to 95 %)",
            "", ""),
        Row("policy: worst step", steps.by_step[steps.worst],
            f"{steps.by_step[steps.worst]:.4f} nats (step {steps.worst})", f"<= {STEP_NATS}",
            "ok" if steps.solved else "not solved"),
    )  # fmt: skip


def healthy_policy(found: Evidence) -> str:
    """The verdict where nothing is wrong."""
    moments = ", and the moments agree" if found.data else ""
    if found.own and found.steps is not None:
        return (
            f"Healthy step by step: the policy is {found.steps.nats:.2g} nats a trajectory from "
            f"the soft optimum of the learned cost{moments}. Weights of whole trajectories are "
            "too noisy at this horizon, as is their log Z: use the policy's own trajectories as "
            "draws, unweighted (moments were compared with these, and allowed what that distance "
            "can move)."
        )
    return (
        f"Healthy: the weights can be used, the policy is close to soft-optimal{moments}. Draws "
        "by independence_mh or importance_sample, and log Z, may be used."
    )


def explain_policy(cause: str, found: Evidence, worst: str, gap: Gap) -> tuple[str, str]:
    """Where the first problem is, and one to three sentences about it.

    Args:
        cause: the problem's key.
        found: all measurements.
        worst: the statistic with the largest gap.
        gap: that gap.
    """
    spread, steps = found.spread, found.steps
    nats = "its weights are heavy"
    if steps is not None:
        nats = (
            f"it is {steps.nats:.2g} nats a trajectory from the soft optimum of the learned cost, "
            f"{steps.by_step[steps.worst]:.2g} of them in step {steps.worst}"
        )
    if cause == "narrow_proposal":
        return spread.name, (
            f"Too narrow policy: about its mean action, the data spread {spread.ratio:.2f} times "
            f"as widely as its own {spread.name}; {nats}. Draws and log Z are not to be trusted. "
            f"{MORE}"
        )
    if cause in ("heavy_tail", "low_ess"):
        return "", f"The policy lags behind the cost: {nats}. {MORE}"
    if cause == "other_start":
        return worst, (
            f"Other starts: the demonstrations' mean of '{worst}' is {_off(gap)} that of the "
            "declared start law, and all that follows differs with it. Give Dynamics(start=...) "
            "the law of the demonstrations' first states."
        )
    if cause == "wrong_factor":
        return (
            worst,
            f"Wrong or missing cost: the demonstrations' {_named(worst, gap)} that of the policy, "
            "while the policy solves the learned cost. Train longer (rounds), add a cost factor "
            "that can move this statistic, or check that the objective suits the dynamics "
            "('causal' if they are stochastic).",
        )
    return "", {
        "single_draw": f"A single trajectory decides log Z: {found.log_z.value:.3g} with it, "
        f"{found.log_z.smoothed:.3g} where its weight is smoothed. Neither is to be trusted: "
        f"raise n to see whether it comes again. {MORE}",
        "undetermined_tail": "The tail of the weights cannot be judged: too few trajectories, or "
        "many with the same weight. Raise n.",
        "offset_gap": "The offset b is far from log Z: the discriminator has not converged. Train "
        "longer (rounds). Log Z itself is from the policy's draws and is not affected.",
        "imprecise_log_partition": "Log Z is imprecise: raise n (its error falls with the root "
        "of n), or bring the policy closer to the soft optimum (rounds).",
        "poor_mixing": "The chains mix poorly in the costs: raise n, or train the policy longer "
        "(rounds, generator_steps).",
    }[cause]


def _named(worst: str, gap: Gap) -> str:
    """A term is minus a cost: people are told of the cost."""
    if worst.startswith("term "):
        return f"mean cost '{worst.removeprefix('term ')}' is {_off(Gap(-gap.z, -gap.size))}"
    return f"mean of '{worst}' is {_off(gap)}"


def _off(gap: Gap) -> str:
    side = "above" if gap.z > 0 else "below"
    return f"{abs(gap.size):.2f} sd ({abs(gap.z):.1f} standard errors) {side}"
