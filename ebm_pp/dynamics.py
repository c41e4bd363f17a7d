"""The world of a trajectory: its spaces, its dynamics, and their sites in a Pyro program.

A dynamics site and a control site are their own reference measures, so their log density is 0: the
dynamics drop out of model and generator by name (trajectory.py).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from pyro.distributions import Categorical
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.distributions import Distribution, constraints

from ebm_pp.errors import ProgramError
from ebm_pp.next_states import as_law, as_states, simulated, streams_kept
from ebm_pp.surroundings import answering

STEP = (
    "Expected next states for rows, states (n, state) and actions (n, action). Most likely it "
    "takes one row, or numbers of another type: run it alone on two rows."
)


@dataclass(frozen=True)
class Space:
    """Where states or actions live: R^m, a box, or the integers 0 to n - 1.

    Attributes:
        shape: of one value; `()` for integers.
        low: lower ends of a box, shape `(m,)`; None elsewhere.
        high: upper ends.
        edges: whether a box's ends carry mass of their own, as actions that a controller clips do.
            The base measure then has a unit mass at each end beside Lebesgue's inside.
        n: how many integers; 0 if continuous.
    """

    shape: tuple[int, ...]
    low: Tensor | None = None
    high: Tensor | None = None
    edges: bool = False
    n: int = 0

    @classmethod
    def real(cls, m: int) -> "Space":
        """Vectors of m real numbers."""
        return cls((m,))

    @classmethod
    def box(cls, low: Any, high: Any, *, edges: bool = False) -> "Space":  # noqa: ANN401
        """Vectors between `low` and `high`, each `(m,)` or a number."""
        low, high = torch.broadcast_tensors(*map(torch.as_tensor, (low, high)))
        low, high = (end.reshape(-1).to(torch.get_default_dtype()) for end in (low, high))
        if not (low < high).all() or not (low.isfinite() & high.isfinite()).all():
            raise ProgramError(
                f"a box from {low.tolist()} to {high.tolist()}; expected finite ends, low < high."
                "\n  For unbounded values use Space.real."
            )
        return cls((len(low),), low, high, edges)

    @classmethod
    def discrete(cls, n: int) -> "Space":
        """The integers 0 to n - 1."""
        return cls((), n=n)

    @property
    def support(self) -> constraints.Constraint:
        """Pyro's constraint on one value."""
        if self.n:
            return constraints.integer_interval(0, self.n - 1)
        if self.low is not None:
            return constraints.independent(constraints.interval(self.low, self.high), 1)
        return constraints.real_vector

    def feasible(self, u: Tensor) -> Tensor:
        """A value of the space from any real numbers of its shape."""
        if self.n:
            return (u.sigmoid() * self.n).long()
        if self.low is None or self.high is None:
            return u
        return self.low.to(u) + (self.high - self.low).to(u) * u.sigmoid()


@dataclass(frozen=True)
class Opaque:
    """A simulator's step: its density is unknown, and no gradient runs through it.

    Attributes:
        step: (states `(n, *)`, actions `(n, *)`) -> next states, by any code: a tensor, an array
            or a list of rows.
        deterministic: whether one state and action always lead to the same next state.
        copies: of a running environment, which steps only from where it stands; 0 for a function,
            which steps any number of rows from anywhere.
    """

    step: Callable[[Tensor, Tensor], Any]
    deterministic: bool = False
    copies: int = 0


@dataclass(frozen=True, eq=False)
class Dynamics:
    """How a trajectory starts and moves; the same on both sides of the game.

    Attributes:
        start: law of s_0, with event shape `(state,)` or, for integers, `()`.
        step: (states, actions), each with a leading n, to the next states: a tensor
            (deterministic), a distribution (noise with known density), or `Opaque`.
        actions: where the actions live.
        states: where the states live; read from `start` if left out.
        transitions: `(S, A, S)` probabilities of a tabular problem, see `tabular`.
        absorbing: whether the last state coordinate says alive (1) or ended (0). Once ended, the
            action is 0 and its density 1 on both sides, so surviving or not only changes the cost.
    """

    start: Distribution
    step: Callable[[Tensor, Tensor], Tensor | Distribution] | Opaque
    actions: Space
    states: Space | None = None
    transitions: Tensor | None = None
    absorbing: bool = False

    def __post_init__(self) -> None:
        """Reads the state space from the start and tries one step.

        The streams of random numbers stay where they were.

        Raises:
            ProgramError: a part is of another type, or the step does not fit the spaces.
        """
        _require_parts(self)
        if self.states is None:
            shape = tuple(self.start.event_shape)
            if len(shape) != 1:
                raise ProgramError(
                    f"the start state has event shape {shape}; expected one vector, (state,).\n"
                    "  Most likely .to_event(1) is missing; integers need Dynamics.tabular."
                )
            object.__setattr__(self, "states", Space.real(shape[0]))
        law = None
        if not isinstance(self.step, Opaque):
            n = 3 if self.space.shape == (2,) else 2  # rows are no coordinates
            with streams_kept(), torch.no_grad():
                states = self.reset(n)
                zeros = torch.zeros(n, *self.actions.shape).to(_float(states))
                law = self.law(states, self.actions.feasible(zeros))
                if isinstance(law, Distribution):
                    self.as_states(draw(law), states)
        object.__setattr__(self, "_tried", law)

    @classmethod
    def tabular(
        cls, transitions: Float[Tensor, "S A S"], start: Float[Tensor, " S"]
    ) -> "Dynamics":
        """A finite Markov decision process.

        Args:
            transitions: P(s' | s, a), each row summing to one.
            start: probabilities of s_0.
        """
        sums = transitions.sum(-1)
        if transitions.dim() != 3 or transitions.shape[0] != transitions.shape[2] or (
            (sums - 1).abs().max() > 1e-5 or (transitions < 0).any()
        ):  # fmt: skip
            raise ProgramError(
                f"transitions of shape {tuple(transitions.shape)} with rows summing to "
                f"{sums.min().item():g}..{sums.max().item():g}; expected (S, A, S) and "
                "probabilities.\n  Most likely the axes are in another order: state, action, next."
            )
        certain = bool((transitions.max(-1).values == 1).all())

        def step(states: Tensor, actions: Tensor) -> Tensor | Distribution:
            rows = transitions[states, actions]
            return rows.argmax(-1) if certain else Categorical(rows)

        size, n_actions = transitions.shape[:2]
        return cls(
            Categorical(start), step, Space.discrete(n_actions), Space.discrete(size), transitions
        )

    def __deepcopy__(self, memo: dict) -> "Dynamics":
        """Itself: a world has no parameters, and a simulator can't be copied."""
        return self

    @property
    def opaque(self) -> bool:
        """Whether the step is a black box."""
        return isinstance(self.step, Opaque)

    @property
    def resettable(self) -> bool:
        """Whether one can step from any state, as a function can and an environment can't."""
        return not isinstance(self.step, Opaque) or not self.step.copies

    @property
    def deterministic(self) -> bool:
        """Whether a state and an action determine the next state."""
        if isinstance(self.step, Opaque):
            return self.step.deterministic
        return isinstance(self.tried, Tensor)

    @property
    def tried(self) -> Tensor | Distribution | None:
        """What `step` gave of a few start states; None of an `Opaque` one, which is not tried."""
        return self._tried  # type: ignore[attr-defined]

    @property
    def differentiable(self) -> bool:
        """Whether a gradient runs from the next state to the action."""
        return not self.opaque and not self.space.n and not self.actions.n

    @property
    def space(self) -> Space:
        """Where the states live."""
        assert self.states is not None, "__post_init__ sets it"
        return self.states

    def reset(self, n: int) -> Tensor:
        """Draws n start states."""
        states = self.start.sample((n,))
        fix = "Most likely start and states= are of two worlds: give both the same shape."
        return as_states(states, states, self.space, "start drew", fix)

    def law(self, states: Tensor, actions: Tensor) -> Tensor | Distribution:
        """The next states or their law; not of an `Opaque` step.

        Raises:
            ProgramError: the step failed, or gave something else.
        """
        assert not isinstance(self.step, Opaque), "an opaque step has no law"
        with answering("in the step of its dynamics", STEP):
            moved = self.step(states, actions)
        return as_law(moved, states, self.space)

    def advance(self, states: Tensor, actions: Tensor) -> Tensor:
        """The next states; differentiable where the step is.

        Raises:
            ProgramError: the step failed, or gave something else than next states.
        """
        if isinstance(self.step, Opaque):
            with torch.no_grad(), answering("in the step of its dynamics", STEP):
                moved = self.step.step(states.detach(), actions.detach())
                return simulated(moved, states, self.space)
        law = self.law(states, actions)
        return law if isinstance(law, Tensor) else self.as_states(draw(law), states)

    def as_states(self, moved: Tensor, like: Tensor) -> Tensor:
        """Values of a law as states of the type of others."""
        return as_states(moved, like, self.space)

    def blocks(self, n: int) -> list[int]:
        """In which portions at least n trajectories are simulated."""
        copies = self.step.copies if isinstance(self.step, Opaque) else 0
        return [copies] * -(-n // copies) if copies else [n]

    def start_site(self) -> "TrajectorySite":
        """The law of s_0, for `pyro.sample`."""
        return TrajectorySite(self, "start", self.space.shape)

    def control_site(self) -> "TrajectorySite":
        """The flat measure of one action, for `pyro.sample`."""
        return TrajectorySite(self, "control", self.actions.shape)

    def next_site(self, state: Tensor, action: Tensor) -> "TrajectorySite":
        """The law of the state that follows, for `pyro.sample`."""
        return TrajectorySite(self, "next", self.space.shape, (state, action))


class TrajectorySite(TorchDistribution):
    """A site that is its own reference measure, so its log density is 0.

    Args:
        dynamics: it belongs to.
        role: "start", "next", "path" (all states) or "control".
        shape: of one draw.
        given: state and action before, for "next".
    """

    arg_constraints: dict[str, constraints.Constraint] = {}  # noqa: RUF012  Pyro's own form

    def __init__(
        self,
        dynamics: Dynamics,
        role: str,
        shape: tuple[int, ...],
        given: tuple[Tensor, Tensor] | None = None,
    ) -> None:
        super().__init__(torch.Size(), torch.Size(shape), validate_args=False)
        self.dynamics, self.role, self.given = dynamics, role, given
        self.space = dynamics.actions if role == "control" else dynamics.space

    @property
    def support(self) -> constraints.Constraint:
        """The space, for every step alike."""
        extra = len(self.event_shape) - len(self.space.shape)
        return constraints.independent(self.space.support, extra) if extra else self.space.support

    def log_prob(self, value: Tensor) -> Tensor:
        """0: a density with respect to itself."""
        shape = value.shape[: value.dim() - len(self.event_shape)]
        return torch.zeros(shape, device=value.device)

    def sample(self, sample_shape: Any = ()) -> Tensor:  # noqa: ANN401
        """A start or next state; ProgramError for a control or a whole path."""
        if self.role == "start":
            return self.dynamics.start.sample(sample_shape)
        if self.role == "next" and self.given is not None and not sample_shape:
            state, action = self.given
            return self.dynamics.advance(state[None], action[None])[0]
        raise ProgramError(
            f"a {self.role} site was asked for a draw, but its base measure is flat; expected "
            "a policy to draw it.\n  Draw with PolicyGenerator.rsample_and_log_prob."
        )

    def feasible(self, unconstrained: Callable[[torch.Size], Tensor]) -> Tensor:
        """Some value of the site."""
        return self.space.feasible(unconstrained(self.event_shape))


def _require_parts(dynamics: Dynamics) -> None:
    """ProgramError unless every part of a world is of its type."""
    if not isinstance(dynamics.start, Distribution):
        raise ProgramError(
            f"dynamics: start is a {type(dynamics.start).__name__}; expected the law of s_0, a "
            "distribution of torch or Pyro.\n  One certain start is "
            "pyro.distributions.Delta(state, event_dim=1)."
        )
    if not callable(dynamics.step) and not isinstance(dynamics.step, Opaque):
        raise ProgramError(
            f"dynamics: step is a {type(dynamics.step).__name__}; expected a function of states "
            "and actions, or Opaque(function).\n  A table of probabilities is Dynamics.tabular."
        )
    for name, space in (("actions", dynamics.actions), ("states", dynamics.states)):
        if not isinstance(space, Space) and not (name == "states" and space is None):
            raise ProgramError(
                f"dynamics: {name} is a {type(space).__name__}; expected a Space.\n  Declare "
                "Space.real(m), Space.box(low, high) or Space.discrete(n)."
            )


def draw(law: Distribution) -> Tensor:
    """One draw, differentiable if the distribution can."""
    return law.rsample() if law.has_rsample else law.sample()


def _float(x: Tensor) -> Tensor:
    return x if x.is_floating_point() else torch.zeros(())
