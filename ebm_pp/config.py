"""How to fit: one frozen record, its defaults set by measurement."""

from dataclasses import dataclass
from typing import Annotated, Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

import numpy as np

from ebm_pp.counts import MANY, count
from ebm_pp.errors import ConfigError

Objective = Literal[
    "auto",
    "discriminator",
    "importance",
    "normalised",
    "trajectory",
    "step",
    "causal",
    "likelihood",
]
GeneratorLoss = Literal["auto", "weighted_forward_kl", "reverse_kl", "score_function", "jensen"]
Offset = Literal["newton", "gradient"]

# Objectives that only trajectories have, and those of them that classify single steps.
OF_TRAJECTORIES = ("trajectory", "step", "causal", "likelihood")
PER_STEP = ("step", "causal")

LEAST_POOL = 16  # draws: of fewer no weight, spread or chain can be told


class Range(NamedTuple):
    """What a number may be: from `low` to `high`, both allowed unless `open` leaves out `low`."""

    low: float
    high: float
    open: bool = False

    def __str__(self) -> str:
        return f"{'above' if self.open else 'from'} {self.low:g} to {self.high:g}"


Count = Annotated[int, Range(1, MANY)]
CountOrNone = Annotated[int, Range(0, MANY)]
Share = Annotated[float, Range(0.0, 1.0)]
Rate = Annotated[float, Range(0.0, 1e3)]


@dataclass(frozen=True)
class FitConfig:
    """How to fit. The defaults are set by measurement (experiments/results).

    Attributes:
        objective: the energy's loss; `discriminator` is [F16]'s, with one scalar b. "auto" is
            `discriminator`; for trajectories `trajectory` if their dynamics are deterministic,
            else `causal`. Only for trajectories, with log Z(s_0) in the offset: `trajectory`
            (discriminates whole trajectories), `step` (single steps, as AIRL), `causal` (single
            steps, with the expected next value; also for stochastic dynamics), `likelihood`
            (E_p[grad c] - E_q[grad c], exact while q is soft-optimal: few energy_steps a round,
            since nothing else holds the cost back until the policy follows).
        generator_loss: the generator's loss; `reverse_kl` is [F16]'s, `weighted_forward_kl` keeps
            the modes that the data have. "auto" is `weighted_forward_kl` for flows; for policies
            `reverse_kl`, or through opaque or discrete steps `score_function`, clipped and with
            the soft value as baseline.
        rounds: at most so many rounds.
        pool: draws of the mixture a round; also the most rows of data a round scores.
        batch: rows of data an energy step, rows a generator step.
        nu: draws per datum in an energy step (one draw a batch at least).
        base_share: alpha, the share of the mixture that is not the generator's: the base measure's
            and, with data, its outskirts' (of an improper base only these).
        energy_steps: K.
        generator_steps: J of the first round.
        generator_steps_max: J doubles up to this while the generator lags, and halves down to 0
            while it does not.
        ess_target: the generator lags while its ESS fraction is below this (or k-hat too high);
            above 1 J never falls.
        energy_lr: learning rate of Adam for the energy, cosine-decayed to 0 over the run.
        energy_decay: lambda of the penalty lambda/2 |W|^2 (nats a datum) on the weight matrices of
            linear and convolution layers, a normal prior; other parameters have none. None is
            1.64 (d - 1) / min(n, 8192) for n rows: one prior for few rows, stronger in more
            dimensions, which leave more room to overfit. Also of the flow, with data.
        generator_lr: learning rate of Adam for the generator, decayed likewise.
        offset: "newton" solves the offset b exactly as it goes; "gradient" learns it like [F16].
        offset_lr: learning rate of b under "gradient".
        warm_start_steps: maximum-likelihood steps of the generator on the data before round 1.
        warm_start_lr: their learning rate.
        likelihood_weight: adds w(t) E_p[-log q] to reverse_kl, w falling linearly to 0.
        clip: largest gradient norm of a step, of either player.
        average: memory of the moving average of the energy's parameters that is evaluated and
            returned, as a share of the run's energy steps; 0 means the last step's parameters. It
            starts at the initial ones, so early rounds and large values (1/3 leaves e^-3 of them)
            are shrunk towards these: a bias, but a help where data are few or dependent.
        temper_ess: with a given density, a round moves the annealed target on as far as this ESS
            fraction of the pool allows.
        memory: with a given density, this many past pools stay in the generator's maximum
            likelihood.
        patience: rounds without a better held-out log-likelihood, with a healthy generator, after
            which the run ends.
        diagnose_every: rounds between diagnoses.
        seed: of all randomness; the global random stream is left alone.
        progress: show a progress bar.

    Raises:
        ConfigError: a field has another type, or is out of its range; the text names it.
    """

    objective: Objective = "auto"
    generator_loss: GeneratorLoss = "auto"
    rounds: Count = 30
    pool: Annotated[int, Range(LEAST_POOL, MANY)] = 8192
    batch: Count = 512
    nu: Annotated[float, Range(1e-3, 1e6)] = 4.0
    base_share: Annotated[float, Range(0.0, 0.99)] = 0.2
    energy_steps: Count = 50
    generator_steps: CountOrNone = 10
    generator_steps_max: CountOrNone = 40
    ess_target: Annotated[float, Range(0.0, 1e6)] = 0.93
    energy_lr: Rate = 1e-2
    energy_decay: Annotated[float | None, Range(0.0, 1e6)] = None
    generator_lr: Rate = 1e-3
    offset: Offset = "newton"
    offset_lr: Rate = 1e-2
    warm_start_steps: CountOrNone = 500
    warm_start_lr: Rate = 2e-3
    likelihood_weight: Annotated[float, Range(0.0, 1e6)] = 0.0
    clip: Annotated[float, Range(0.0, 1e12, open=True)] = 5.0
    average: Share = 0.1
    temper_ess: Share = 0.5
    memory: Count = 4
    patience: Count = 20
    diagnose_every: Count = 1
    seed: Annotated[int, Range(0, 2**63 - 1)] = 0
    progress: bool = True

    def __post_init__(self) -> None:
        """Every field has the type and the range that stand beside it; ConfigError if not."""
        rules = get_type_hints(type(self), include_extras=True)
        for name, rule in rules.items():
            object.__setattr__(self, name, _checked(name, getattr(self, name), rule))

    @classmethod
    def trajectories(cls, horizon: int, *, opaque: bool = False, **changes: Any) -> "FitConfig":  # noqa: ANN401
        """What `fit` uses for trajectories of this horizon unless told otherwise.

        Args:
            horizon: T.
            opaque: whether every draw costs steps of a simulator.
            **changes: fields to set otherwise.

        Raises:
            DataError: the horizon is no whole number from 1 on.
        """
        horizon = count("horizon", horizon)
        steps = 16_000 if opaque else 64_000  # of the dynamics, a round
        defaults: dict[str, Any] = {
            "pool": max(steps // horizon, 32), "batch": max(min(4_000 // horizon, 512), 32),
            "base_share": 0.0, "rounds": 80, "energy_steps": 5, "energy_lr": 2e-2,
            "energy_decay": 0.0, "generator_steps_max": 10, "ess_target": 1.1, "patience": 80,
        }  # fmt: skip
        return cls(**(defaults | changes))

    @classmethod
    def given(cls, **changes: Any) -> "FitConfig":  # noqa: ANN401
        """What `fit` uses for a given density, without data, unless told otherwise.

        Args:
            **changes: fields to set otherwise.
        """
        defaults: dict[str, Any] = {
            "rounds": 80, "base_share": 0.1, "generator_lr": 2e-3, "generator_steps": 20,
            "generator_steps_max": 20, "ess_target": 1.1, "patience": 80,
        }  # fmt: skip
        return cls(**(defaults | changes))

    @classmethod
    def fast(cls, **changes: Any) -> "FitConfig":  # noqa: ANN401
        """A first look: a third of the default's time.

        Args:
            **changes: fields to set otherwise. The same for the other presets.
        """
        defaults: dict[str, Any] = {"rounds": 15, "warm_start_steps": 200, "energy_steps": 30}
        return cls(**(defaults | changes))

    @classmethod
    def thorough(cls, **changes: Any) -> "FitConfig":  # noqa: ANN401
        """For results to keep: three times the default's steps."""
        defaults: dict[str, Any] = {"rounds": 90, "warm_start_steps": 1000}
        return cls(**(defaults | changes))

    @classmethod
    def finn2016(cls) -> "FitConfig":
        """[F16] to the letter: alternating steps, reverse KL, nu = 1, no base in the mixture."""
        return cls(
            objective="discriminator", generator_loss="reverse_kl", rounds=3000, pool=512,
            nu=1.0, base_share=0.0, energy_steps=1, generator_steps=1, generator_steps_max=1,
            ess_target=1.1, energy_lr=1e-3, energy_decay=0.0, offset="gradient",
            warm_start_steps=0, average=0.0, patience=3000, diagnose_every=50,
        )  # fmt: skip


def _checked(name: str, value: Any, rule: Any) -> Any:  # noqa: ANN401 - whatever was passed
    """The value as a plain number, word or truth value.

    Raises:
        ConfigError: another type than the rule's, or out of its range.
    """
    if get_origin(rule) is Literal:
        if isinstance(value, str) and value in get_args(rule):
            return value
        words = ", ".join(map(repr, get_args(rule)))
        raise _refused(name, value, f"one of {words}", "Most likely a misspelling.")
    if rule is bool:
        if isinstance(value, bool | np.bool_):
            return bool(value)
        raise _refused(name, value, "True or False", "Leave the quotes or the number away.")
    kind, span = get_args(rule)
    if value is None and type(None) in get_args(kind):
        return None
    whole = kind is int
    number = value.item() if isinstance(value, np.generic) else value
    expected = f"{'a whole number' if whole else 'a number'} {span}"
    if isinstance(number, bool) or not isinstance(number, int if whole else int | float):
        raise _refused(
            name, value, expected, "Most likely text, an array, or a fraction: convert it."
        )
    if not span.low <= number <= span.high or (span.open and number == span.low):
        raise _refused(name, value, expected, "Leave it out for the default.")
    return number if whole else float(number)


def _refused(name: str, value: object, expected: str, fix: str) -> ConfigError:
    return ConfigError(f"FitConfig({name}={value!r}): expected {expected}.\n  {fix}")
