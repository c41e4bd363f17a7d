"""Policies: the generator of trajectories, log q(tau) = sum_t log pi(a_t | s_t).

`PolicyGenerator` draws by simulation: s_0 from its law, then in turn an action of the policy and
the next state of the dynamics. Neither side of the game needs the dynamics' density, and the
dynamics drop out of log q as of log p~ (trajectory.py).

The gradient runs through the draws (`has_rsample`) only where the policy's actions and *every*
step carry it. One opaque step cuts the paths of all actions before it, and what is left would be
silently wrong; then every control site is a score-function site.
"""

import itertools
import math
from typing import Any

import torch
from jaxtyping import Float
from pyro.distributions import Categorical, Independent, Normal
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor, nn
from torch.distributions import Distribution, constraints
from torch.func import functional_call
from torch.nn.functional import logsigmoid, one_hot

from ebm_pp.data import as_rows
from ebm_pp.density import EnergyModel, Rows, Sites
from ebm_pp.dynamics import Space, draw
from ebm_pp.errors import GeneratorError
from ebm_pp.trajectory import Layout

LOG_SD = (-5.0, 2.0)  # bounds of a Gaussian policy's log standard deviation
LOG_SD_SQUASHED = (-4.0, 0.5)  # before the squashing
REACH = 6.0  # bound of a squashed policy's centre before the squashing: .25 % from an end


class SquashedNormal(TorchDistribution):
    """a = low + (high - low) sigmoid(u), u ~ N(loc, scale): a density inside a box.

    Args:
        loc: centre before squashing, `(*batch, m)`.
        scale: its standard deviation.
        space: the box.
    """

    arg_constraints: dict[str, constraints.Constraint] = {}  # noqa: RUF012  Pyro's own form
    has_rsample = True

    def __init__(self, loc: Tensor, scale: Tensor, space: Space) -> None:
        super().__init__(loc.shape[:-1], loc.shape[-1:], validate_args=False)
        assert space.low is not None
        assert space.high is not None
        self.normal, self.space = Normal(loc, scale), space
        self.low, self.width = space.low.to(loc), (space.high - space.low).to(loc)

    @property
    def support(self) -> constraints.Constraint:
        """The box."""
        return self.space.support

    @property
    def mean(self) -> Tensor:
        """The centre, squashed (the median, in fact)."""
        return self.low + self.width * self.normal.loc.sigmoid()

    def rsample(self, sample_shape: Any = ()) -> Tensor:  # noqa: ANN401
        """Differentiable draws."""
        return self.low + self.width * self.normal.rsample(sample_shape).sigmoid()

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density per unit of action; -inf at the ends."""
        u = torch.logit((value - self.low) / self.width)
        log_slope = logsigmoid(u) + logsigmoid(-u) + self.width.log()
        inside = (u.isfinite()).all(-1)
        safe = torch.where(u.isfinite(), u, 0.0)
        total = (self.normal.log_prob(safe) - torch.where(u.isfinite(), log_slope, 0.0)).sum(-1)
        return torch.where(inside, total, -math.inf)


class CensoredNormal(TorchDistribution):
    """a = clip(u, low, high), u ~ N(loc, scale): a density inside a box, masses at its ends.

    Args:
        loc: centre before clipping, `(*batch, m)`.
        scale: its standard deviation.
        space: the box, with `edges`.
    """

    arg_constraints: dict[str, constraints.Constraint] = {}  # noqa: RUF012  Pyro's own form

    def __init__(self, loc: Tensor, scale: Tensor, space: Space) -> None:
        super().__init__(loc.shape[:-1], loc.shape[-1:], validate_args=False)
        assert space.low is not None
        assert space.high is not None
        self.normal, self.space = Normal(loc, scale), space
        self.low, self.high = space.low.to(loc), space.high.to(loc)

    @property
    def support(self) -> constraints.Constraint:
        """The closed box."""
        return self.space.support

    @property
    def mean(self) -> Tensor:
        """The centre, clipped."""
        return self.normal.loc.clamp(self.low, self.high)

    def sample(self, sample_shape: Any = ()) -> Tensor:  # noqa: ANN401
        """Draws; those beyond an end lie on it."""
        return self.normal.sample(sample_shape).clamp(self.low, self.high)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density inside, log mass at an end."""
        loc, scale = self.normal.loc, self.normal.scale
        below = torch.special.log_ndtr((self.low - loc) / scale)
        above = torch.special.log_ndtr((loc - self.high) / scale)
        inside = self.normal.log_prob(value)
        at_end = torch.where(
            value <= self.low, below, torch.where(value >= self.high, above, inside)
        )
        return at_end.sum(-1)


class NeuralPolicy(nn.Module):
    """pi(a | s, t): a small network, beside a linear path, to the parameters of a distribution.

    Gaussian on R^m, squashed Gaussian in a box, censored Gaussian in a box with edges, categorical
    on integers.

    Args:
        layout: the trajectory.
        states: rows that set location and scale of the states; None: 0 and 1.
        hidden: widths; `()` is linear in the state.
        timed: whether the policy sees t / T.
        dtype: of the parameters.
    """

    loc: Tensor
    scale: Tensor

    def __init__(
        self,
        layout: Layout,
        states: Tensor | None,
        hidden: tuple[int, ...],
        timed: bool,
        dtype: torch.dtype,
    ) -> None:
        super().__init__()
        self.space, self.state_space = layout.dynamics.actions, layout.dynamics.space
        self.horizon, self.timed = layout.horizon, timed
        width = self.state_space.n or self.state_space.shape[0]
        loc, scale = torch.zeros(width), torch.ones(width)
        if states is not None and not self.state_space.n:
            flat = states.reshape(-1, width)
            loc, spread = flat.mean(0), flat.std(0)
            scale = torch.where(spread > 0, spread, 1.0)
        self.register_buffer("loc", loc)
        self.register_buffer("scale", scale)
        out = self.space.n or 2 * self.space.shape[0]
        sizes = [width + timed, *hidden]
        layers: list[nn.Module] = []
        for one, two in itertools.pairwise(sizes):
            layers += [nn.Linear(one, two), nn.SiLU()]
        self.linear = nn.Linear(sizes[0], out)
        last = nn.Linear(sizes[-1], out, bias=False)
        self.net = nn.Sequential(*layers, last) if hidden else None
        for start in (self.linear.weight, self.linear.bias, last.weight):
            nn.init.zeros_(start)
        self.to(dtype)

    def forward(self, states: Tensor, time: Tensor) -> Distribution:
        """The law of the action in states `(*batch, state)` at times `(*batch)`."""
        rows = self._inputs(states, time)
        out = self.linear(rows)
        if self.net is not None:
            out = out + self.net(rows)
        if self.space.n:
            return Categorical(logits=out)
        centre, raw = out.chunk(2, -1)
        low, high = LOG_SD if self.space.low is None or self.space.edges else LOG_SD_SQUASHED
        middle, half = (low + high) / 2, (high - low) / 2
        start = math.atanh(-middle / half)  # a standard deviation of 1 where raw is 0
        scale = (middle + half * torch.tanh(raw / half + start)).exp()
        if self.space.low is None:
            return Independent(Normal(centre, scale), 1)
        if self.space.edges:
            return CensoredNormal(centre, scale, self.space)
        return SquashedNormal(REACH * torch.tanh(centre / REACH), scale, self.space)

    def _inputs(self, states: Tensor, time: Tensor) -> Tensor:
        if self.state_space.n:
            rows = one_hot(states, self.state_space.n).to(self.loc)
        else:
            rows = (states - self.loc) / self.scale
        if not self.timed:
            return rows
        clock = (2 * time.to(rows) / self.horizon - 1).unsqueeze(-1)
        return torch.cat([rows, clock.expand(*rows.shape[:-1], 1)], -1)


class PolicyGenerator(nn.Module):
    """A policy in a world, as the generator of a program's trajectories.

    Args:
        model: a program with trajectory sites.
        start: rows (demonstrations) that set location and scale of the states.
        policy: your own: an `nn.Module` from states `(*batch, state)` and times `(*batch)` to a
            distribution over actions. By default a `NeuralPolicy`.
        hidden: widths of the default policy's network.
        timed: whether the default policy sees the time.

    Raises:
        GeneratorError: the program has no trajectory.
    """

    reference: Tensor

    def __init__(
        self,
        model: EnergyModel,
        start: Sites | None = None,
        *,
        policy: nn.Module | None = None,
        hidden: tuple[int, ...] = (64, 64),
        timed: bool = True,
    ) -> None:
        super().__init__()
        if model.layout is None:
            raise GeneratorError(
                f"PolicyGenerator: the program's sites {list(model.sites)} make no trajectory; "
                "expected states and actions.\n  Declare them with trajectory(dynamics, T), or "
                "use a FlowGenerator."
            )
        self.layout, self.sites = model.layout, model.sites
        self.settings: dict[str, Any] = {"hidden": tuple(hidden), "timed": timed}
        if policy is None:
            states = None if start is None else self.layout.pack(start).states
            policy = NeuralPolicy(self.layout, states, hidden, timed, model.dtype)
            policy.to(model.device)
        self.policy = policy
        # Moves with the policy, also one without parameters: what its trajectories are made of.
        reference = torch.empty((), dtype=model.dtype, device=model.device)
        self.register_buffer("reference", reference, persistent=False)

    @property
    def dtype(self) -> torch.dtype:
        """Of states and actions."""
        return self.reference.dtype

    @property
    def device(self) -> torch.device:
        """Where states and actions are."""
        return self.reference.device

    @property
    def has_rsample(self) -> bool:
        """Whether the gradient runs through the draws; never through an opaque step."""
        space = self.layout.dynamics.actions
        return self.layout.dynamics.differentiable and not space.edges

    def rsample_and_log_prob(self, n: int) -> tuple[Sites, Float[Tensor, " n"]]:
        """Draws n trajectories with their log q, nats per unit of all actions."""
        states, actions, step_log_q = self.simulate(n)
        return self.layout.unpack(states, actions), step_log_q.sum(1)

    def log_prob(self, x: Rows) -> Float[Tensor, " n"]:
        """Log q = sum_t log pi(a_t | s_t) of given trajectories."""
        return self.step_log_prob(x).sum(1)

    def step_log_prob(self, x: Rows) -> Float[Tensor, "n T"]:
        """Log pi(a_t | s_t) of every step; 0 once a trajectory has ended."""
        states, actions = self.layout.pack(as_rows(x, self.sites, self.dtype, self.device))
        n, horizon = actions.shape[:2]
        times = torch.arange(horizon, device=states.device).expand(n, horizon)
        before = states[:, :-1]
        log_pi = self.policy(before, times).log_prob(actions)
        if not self.layout.dynamics.absorbing:
            return log_pi
        return torch.where(before[..., -1] > 0, log_pi, 0.0)

    def simulate(
        self, n: int, *, landing: bool = False
    ) -> tuple[Tensor, Tensor, Float[Tensor, "n T"]]:
        """States, actions and log pi of n trajectories.

        Args:
            n: how many.
            landing: drop the score of log pi, whose mean is 0 (Roeder et al. 2017,
                arXiv:1703.09194): at a soft-optimal policy in deterministic dynamics every single
                gradient of L_G is then 0. Only for gradients through the draws.
        """
        parts = [self._block(size, landing) for size in self.layout.dynamics.blocks(n)]
        return tuple(torch.cat(part)[:n] for part in zip(*parts, strict=True))  # type: ignore

    def _block(self, n: int, landing: bool) -> tuple[Tensor, Tensor, Tensor]:
        dynamics = self.layout.dynamics
        fixed = {name: p.detach() for name, p in self.policy.named_parameters()} if landing else {}
        state = dynamics.reset(n).to(self.device)
        state = state.to(self.dtype) if state.is_floating_point() else state
        states, actions, log_pis = [state], [], []
        for t in range(self.layout.horizon):
            time = torch.full((n,), t, device=self.device)
            pi = self.policy(state, time)
            action = draw(pi) if self.has_rsample else pi.sample()
            if landing:
                pi = functional_call(self.policy, fixed, (state, time))
            log_pi = pi.log_prob(action)
            if dynamics.absorbing:
                alive = state[..., -1] > 0
                log_pi = torch.where(alive, log_pi, 0.0)
                action = action * alive.reshape(n, *[1] * (action.dim() - 1)).to(action)
            state = dynamics.advance(state, action)
            states.append(state)
            actions.append(action)
            log_pis.append(log_pi)
        return torch.stack(states, 1), torch.stack(actions, 1), torch.stack(log_pis, 1)
