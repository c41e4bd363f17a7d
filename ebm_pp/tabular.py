"""Tabular Markov decision processes, exactly: soft values, occupancies, maximum likelihood.

With r_t(s, a) = -c_t(s, a) and h_T = 0, backward in time,

    causal  Q_t(s, a) = r_t(s, a) + gamma E[h_{t+1}(s') | s, a]
    joint   Q_t(s, a) = r_t(s, a) + log E[exp h_{t+1}(s') | s, a]
    h_t(s) = log sum_a exp Q_t(s, a) = log Z_t(s),    log pi_t(a | s) = Q_t(s, a) - h_t(s)

"causal" is the best policy, which cannot see the noise ahead; "joint" the density of trajectories
p(tau) ~ rho prod P exp(r). Without noise the two are one. For d_t(s, a), the probability of state
and action at step t under the causal pi,

    d log Z_causal / d r_t(s, a) = gamma^t d_t(s, a),    exactly T terms, t = 0..T-1.

Two estimates of the cost's parameters from demonstrations, both consistent:

    "policy"     argmax sum_t log pi_t(a_t | s_t)
    "matching"   argmax sum_t gamma^t r_t(s_t, a_t) - h_0(s_0): E_data[grad c] = E_pi[grad c]

They differ by the martingale sum_t E[h_{t+1} | s_t, a_t] - h_{t+1}(s_{t+1}), the demonstrations'
luck, and are one in deterministic dynamics. "policy" is the maximum of the likelihood, so no
consistent estimate has a smaller variance; "matching" is concave for costs linear in parameters.

Sources: Ziebart 2010, Modeling Purposeful Adaptive Behavior, chapters 5 and 6; Levine 2018,
arXiv:1805.00909 (joint). Everything is in float64.
"""

import copy
from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from pyro.distributions import Categorical
from torch import Tensor, nn
from torch.distributions import Distribution

from ebm_pp.density import EnergyModel
from ebm_pp.errors import ProgramError
from ebm_pp.sampling import seeded
from ebm_pp.trajectory import Layout

PROBES = 64  # simulated trajectories on which a table is compared with the program


class SoftOptimum(NamedTuple):
    """Soft values h_t(s) `(T + 1, S)`, nats, and log pi_t(a | s) `(T, S, A)`."""

    values: Tensor
    log_policy: Tensor

    @property
    def policy(self) -> Tensor:
        """Probabilities pi_t(a | s), `(T, S, A)`."""
        return self.log_policy.exp()


def soft_value_iteration(
    transitions: Float[Tensor, "S A S"],
    log_density_steps: Tensor,
    horizon: int,
    discount: float = 1.0,
    *,
    joint: bool = False,
) -> SoftOptimum:
    """The backward recursion of the module; differentiable in the costs.

    Args:
        transitions: P(s' | s, a).
        log_density_steps: minus the cost, nats: `(S, A)`, `(T, S, A)`, or `(T, S, A, S)` where
            it depends on the next state too.
        horizon: T.
        discount: gamma, of the soft value that follows.
        joint: the density of trajectories instead of the best policy.

    Raises:
        ProgramError: costs of another shape or not finite, or a discounted joint density.
    """
    P, steps = transitions.double(), log_density_steps.double()
    size, n_actions = P.shape[:2]
    if steps.dim() == 2:
        steps = steps.expand(horizon, *steps.shape)
    if tuple(steps.shape) not in (full := (horizon, size, n_actions), (*full, size)):
        raise ProgramError(
            f"costs of shape {tuple(log_density_steps.shape)} for {size} states, {n_actions} "
            f"actions and horizon {horizon}; expected {full[1:]}, {full} or {(*full, size)}.\n"
            "  Most likely time is not the first axis, or states and actions are swapped."
        )
    if not steps.isfinite().all():
        raise ProgramError(
            f"{int((~steps.isfinite()).sum())} costs are NaN or infinite; expected numbers.\n"
            "  Most likely a forbidden action: give it a large cost, or take it from the table."
        )
    if joint and discount != 1:
        raise ProgramError(
            f"a joint density with discount {discount:g}; expected 1.\n  Its recursion has no "
            "discount: give costs (T, S, A) that hold gamma^t themselves."
        )
    if not joint:
        steps = expected_steps(P, steps)
    values, log_policy = [P.new_zeros(size)], []
    log_transitions = P.log() if joint else P
    for step in reversed(steps.unbind(0)):
        if joint:
            ahead = log_transitions + values[-1]
            q = (ahead + step).logsumexp(-1) if step.dim() == 3 else step + ahead.logsumexp(-1)
        else:
            q = step + discount * (P @ values[-1])
        values.append(q.logsumexp(-1))
        log_policy.append(q - values[-1].unsqueeze(-1))
    return SoftOptimum(torch.stack(values[::-1]), torch.stack(log_policy[::-1]))


def expected_steps(transitions: Float[Tensor, "S A S"], steps: Tensor) -> Float[Tensor, "T S A"]:
    """E[r_t(s, a, s') | s, a], of r `(T, S, A, S)`; r `(T, S, A)` is returned as it is."""
    return steps if steps.dim() == 3 else (transitions.double() * steps).sum(-1)


def occupancies(
    transitions: Float[Tensor, "S A S"],
    policy: Float[Tensor, "T S A"],
    start: Float[Tensor, " S"],
) -> Float[Tensor, "T S A"]:
    """d_t(s, a), the probability of state s and action a at step t; not discounted.

    Args:
        transitions: P(s' | s, a).
        policy: pi_t(a | s).
        start: law of s_0.
    """
    P, state, found = transitions.double(), start.double(), []
    for pi in policy.double():
        found.append(state.unsqueeze(-1) * pi)
        state = torch.einsum("sa,sax->x", found[-1], P)
    return torch.stack(found)


def policy_divergence(
    transitions: Float[Tensor, "S A S"],
    start: Float[Tensor, " S"],
    log_policy: Float[Tensor, "T S A"],
    log_other: Float[Tensor, "T S A"],
) -> float:
    """sum_t E KL(pi_t || other_t), states from pi: the KL of trajectories, in nats."""
    visits = occupancies(transitions, log_policy.exp(), start)
    gap = torch.where(visits > 0, log_policy.double() - log_other.double(), 0.0)
    return (visits * gap).sum().item()


def tables_of(model: EnergyModel) -> tuple[Layout, Float[Tensor, "S A S"]]:
    """The trajectory of a tabular program and its transitions, float64.

    Raises:
        ProgramError: the program's dynamics are not a table.
    """
    layout = model.layout
    if layout is None or layout.dynamics.transitions is None:
        world = "no trajectory" if layout is None else f"states {layout.dynamics.space}"
        raise ProgramError(
            f"an exact solution was asked of a program with {world}; expected a table.\n"
            "  Declare the world with Dynamics.tabular(transitions, start), or use fit."
        )
    return layout, layout.dynamics.transitions.double()


def step_table(model: EnergyModel) -> Tensor:
    """Minus the cost of every step, read from any tabular program; differentiable.

    Returns:
        r_t(s, a) `(T, S, A)`; `(T, S, A, S)` if some cost depends on the next state, as a
        terminal cost does (0 where the transition is impossible). Nats, float64.

    Raises:
        ProgramError: the world is no table, or a cost depends on more than its own step.
    """
    return step_reader(model)()


def step_reader(model: EnergyModel) -> Callable[[], Tensor]:
    """A function that gives `step_table` of the model's present parameters.

    What the costs depend on is found once, in a copy with perturbed parameters, so that weights
    that are 0 now are seen too.

    Raises:
        ProgramError: as `step_table`.
    """
    layout, transitions = tables_of(model)
    size, n_actions = transitions.shape[:2]
    pairs = torch.cartesian_prod(torch.arange(size), torch.arange(n_actions))
    possible = transitions.nonzero()

    def stationary(of: EnergyModel) -> Tensor:
        """Every trajectory stays at one pair."""
        ones = torch.ones(1, layout.horizon + 1, dtype=torch.long)
        x = layout.unpack(pairs[:, :1] * ones, pairs[:, 1:] * ones[:, 1:])
        table = of.step_log_density(_placed(x, of)).double()
        return table.T.reshape(layout.horizon, size, n_actions)

    def transient(of: EnergyModel) -> Tensor:
        """Every trajectory goes to and fro between s and s'; half of its steps are read."""
        return _read_transient(of, layout, possible, tuple(transitions.shape))

    probe = _perturbed(model)
    with torch.no_grad():
        full, short = transient(probe), stationary(probe)
        where = (slice(None), *possible.T)
        brief = torch.allclose(short.unsqueeze(-1).expand_as(full)[where], full[where])
        _check_table(probe, layout, full)
    return lambda: (stationary if brief else transient)(model)


def _read_transient(
    model: EnergyModel, layout: Layout, possible: Int[Tensor, "K 3"], shape: tuple[int, ...]
) -> Float[Tensor, "T S A S"]:
    s, a, after = possible.T
    even = torch.arange(layout.horizon + 1) % 2 == 0
    there = torch.where(even, s[:, None], after[:, None])
    back = torch.where(even, after[:, None], s[:, None])
    actions = a[:, None].expand(-1, layout.horizon).repeat(2, 1)
    x = layout.unpack(torch.cat([there, back]), actions)
    first, second = model.step_log_density(_placed(x, model)).double().chunk(2)
    steps = torch.where(even[:-1].to(first.device), first, second)
    flat = (s * shape[1] + a) * shape[2] + after
    table = steps.new_zeros(layout.horizon, shape[0] * shape[1] * shape[2])
    return table.index_copy(1, flat.to(steps.device), steps.T).reshape(layout.horizon, *shape)


def _placed(x: dict[str, Tensor], model: EnergyModel) -> dict[str, Tensor]:
    return {name: value.to(model.device) for name, value in x.items()}


def _perturbed(model: EnergyModel) -> EnergyModel:
    """A float64 copy whose parameters are moved by N(0, 1)."""
    probe = double_copy(model)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in probe.parameters():
            p.add_(torch.randn(p.shape, generator=generator, dtype=p.dtype).to(p.device))
    return probe


def double_copy(model: EnergyModel) -> EnergyModel:
    """A copy in float64, without the soft value that `fit` may have attached."""
    held, model.soft_value = model.soft_value, None
    try:
        return copy.deepcopy(model).double()
    finally:
        model.soft_value = held


def _check_table(model: EnergyModel, layout: Layout, table: Tensor) -> None:
    """The table gives the program's costs on whole trajectories; ProgramError if not."""
    dynamics, generator = layout.dynamics, torch.Generator().manual_seed(0)
    with seeded(0):
        states = [dynamics.reset(PROBES)]
        shape = (PROBES, layout.horizon)
        actions = torch.randint(dynamics.actions.n, shape, generator=generator)
        for action in actions.T:
            states.append(dynamics.advance(states[-1], action))
    path = torch.stack(states, 1)
    times = torch.arange(layout.horizon).expand(shape)
    read = table[times, path[:, :-1], actions, path[:, 1:]]
    direct = model.step_log_density(_placed(layout.unpack(path, actions), model)).double()
    off = ((read - direct).abs() > 1e-6 * (1 + direct.abs())).any(0)
    if off.any():
        raise ProgramError(
            f"the cost of step {int(off.nonzero()[0])} depends on states or actions of other "
            "steps; expected c_t(s_t, a_t, s_{t+1}).\n  Most likely a factor outside the plate "
            "'time' sums over the trajectory: put it into the plate, or its memory into the state."
        )


class SoftOptimalPolicy(nn.Module):
    """The soft-optimal policy of a tabular program's present cost, for `PolicyGenerator`.

    It has no parameters and is not learned: it is solved anew whenever the program's parameters
    have changed, so `fit` plays against an exact best response. It follows the model it was given
    (the one that `fit` trains), not copies of it.

    Args:
        model: a program with `Dynamics.tabular`.
        discount: gamma.

    Raises:
        ProgramError: as `step_table`.

    Examples:
        >>> from ebm_pp import PolicyGenerator
        >>> from models.gridworld import FeatureCost, six_states
        >>> model = EnergyModel(FeatureCost(*six_states()))
        >>> q = PolicyGenerator(model, policy=SoftOptimalPolicy(model))
        >>> q.rsample_and_log_prob(5)[1].shape
        torch.Size([5])
    """

    def __init__(self, model: EnergyModel, *, discount: float = 1.0) -> None:
        super().__init__()
        self.discount = discount
        # Both in closures: a submodule's parameters would be the generator's own.
        read, (layout, transitions) = step_reader(model), tables_of(model)

        def solve() -> Tensor:
            steps = read()
            optimum = soft_value_iteration(
                transitions.to(steps.device), steps, layout.horizon, discount
            )
            return optimum.log_policy.to(model.dtype)

        self._solve = solve
        self._present = lambda: [p.detach() for p in (*model.parameters(), *model.buffers())]
        self._solved: tuple[list[Tensor], Tensor] | None = None

    @torch.no_grad()
    def log_policy(self) -> Float[Tensor, "T S A"]:
        """Log pi_t(a | s) of the program's present parameters."""
        now = self._present()
        if self._solved is not None:
            then = self._solved[0]
            if len(then) == len(now) and all(map(torch.equal, then, now)):
                return self._solved[1]
        self._solved = [value.clone() for value in now], self._solve()
        return self._solved[1]

    def forward(self, states: Tensor, time: Tensor) -> Distribution:
        """The law of the action in states `(*batch)` at times `(*batch)`."""
        return Categorical(logits=self.log_policy()[time, states])
