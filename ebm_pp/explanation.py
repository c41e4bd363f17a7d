"""The verdict of `diagnose` in words: one text for each problem."""

from ebm_pp.evidence import ENOUGH, USABLE_ESS, AtData, Evidence
from ebm_pp.moments import Gap
from ebm_pp.outskirts import Away
from ebm_pp.policy_verdict import explain_policy, healthy_policy
from ebm_pp.rows import shown

FAR_BASE = 20.0  # spreads of the base measure: rows so far away the energy can hardly follow


def explain(problems: tuple[str, ...], found: Evidence, worst: str, gap: Gap) -> tuple[str, str]:
    """Where the first problem is, and one to three sentences about it.

    Args:
        problems: keys, the cause first; none if all is well.
        found: all measurements.
        worst: the statistic with the largest gap; of no meaning without data.
        gap: that gap.
    """
    if not problems and found.law:
        return "", healthy_policy(found)
    if not problems:
        text = "Healthy: the weights can be used" + (
            ", the generator reaches the data, and the moments agree. "
            if found.data
            else ". Without data a mode that the generator misses is hardly seen: compare with "
            "neutra_hmc or a second run from a wider start. "
        )
        return "", text + "Draws by independence_mh or importance_sample, and log Z, may be used."
    spread, cause = found.spread, problems[0]
    if found.law:
        return explain_policy(cause, found, worst, gap)
    leak = f"{found.leak.share:.0%}" if found.leak else ""
    beyond = f"{found.data.side.share:.1%} of the rows" if found.data else f"{leak} of the mass"
    where = {"narrow_proposal": spread.name, "wrong_factor": worst}.get(cause, "")
    text = {
        "dropped_mode": f"Dropped mode: {beyond} lie behind a barrier of the density, where the "
        "generator practically never draws; its own weights cannot show it. Draws and log Z miss "
        "that mass. "
        + (
            ""
            if found.keeps_modes
            else "Train the generator with generator_loss='weighted_forward_kl', or s"
        )
        + ("S" if found.keeps_modes else "")
        + "tart it wider or from the data.",
        "narrow_proposal": f"Too narrow proposal: at site {where} the data's central spread is "
        f"{shown(spread.ratio, 2)} times the draws'. Draws and log Z are not to be trusted. Start "
        "the generator wider (scale > 1) and train it longer (generator_steps_max).",
        "heavy_tail": f"Heavy tail: {_centre(found)} (k-hat {found.log_z.pareto_k:.2f}; beyond "
        f"its reach: {beyond}). Log Z and its error are not to be trusted. "
        + (
            "Train the generator longer (rounds, generator_steps_max)."
            if found.heavy_base
            else "Use FlowGenerator(base='student_t')."
        ),
        "single_draw": f"A single draw decides log Z: {shown(found.log_z.value, 2)} with it, "
        f"{shown(found.log_z.smoothed, 2)} where its weight is smoothed, though the others look "
        "well. Neither is to be trusted: most likely mass that the generator hardly reaches. "
        "Raise n to see whether it comes again, and train the generator longer.",
        "undetermined_tail": "The tail of the weights cannot be judged: too few draws, or many "
        "with the same weight. Raise n.",
        "low_ess": f"Low ESS: {1 / found.log_z.ess:.0f} draws are worth one. "
        + (
            "The weights' tail is light, so log Z holds within its error, but train"
            if found.n * found.log_z.ess >= ENOUGH
            else "So few effective draws tell nothing of the tail, nor log Z: raise n, and train"
        )
        + " the generator longer (generator_steps_max).",
        "leaked_mass": f"Leaking energy: {leak} of the model's mass is where data are not and the "
        "generator hardly draws; draws of the base measure, or beyond it, find it. Raise "
        "base_share, train longer, or start from a tilt.",
        "wrong_factor": f"Wrong or missing factor: the data's mean of '{worst}' is "
        f"{shown(abs(gap.size), 2)} sd {'above' if gap.z > 0 else 'below'} the model's "
        f"({shown(abs(gap.z), 1)} standard errors), while the generator is fine. Train the energy "
        "longer, or add a factor that can move this statistic.",
        "underfit_energy": f"Underfitted energy: at these rows {_gain(found.data)}, though it "
        "only follows the energy, which has not learned what the rows show. Train longer, or "
        "start from other initial parameters.",
        "offset_gap": "The offset b is far from log Z: the discriminator has not converged. Train "
        "longer. Log Z itself is from the draws and is not affected.",
        "imprecise_log_partition": "Log Z is imprecise: raise n (its error falls with the root "
        "of n).",
        "poor_mixing": "The chains mix poorly: raise n, or train the generator longer.",
    }[cause]
    return where, _base_first(found.away) + text


def _gain(data: AtData | None) -> str:
    """In words, how much better q describes the rows."""
    if data is None:
        return ""
    error = shown(data.gain_error, 2)
    return f"the generator's own density is {shown(-data.gain, 2)} +- {error} nats a row better"


def _base_first(away: Away | None) -> str:
    """A base measure that does not reach the rows, before what follows from it."""
    if away is None or away.spreads < FAR_BASE:
        return ""
    return (
        "Most likely the base measure does not reach the rows: half of them are "
        f"{away.spreads:.0f} or more of its spreads from its middle in '{away.name}'. Give that "
        "site the data's location and scale. If not that: "
    )


def _centre(found: Evidence) -> str:
    """What is known of the centre when the tails are too light."""
    if found.log_z.ess >= USABLE_ESS:
        return "the centre fits, but the generator's tails are lighter than the energy's"
    return f"few draws carry the weights (ESS/n {shown(found.log_z.ess, 3)})"
