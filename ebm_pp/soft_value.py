"""The soft value h_t(s): the log partition function of what is left of a trajectory.

With r_t = -c(s_t, a_t) - log pi(a_t | s_t), cost and policy of the moment, and r_T = -c_T(s_T),

    h_t(s) = E_q[ sum_{t' >= t} r_t' | s_t = s ],     h_T(s_T) = -c_T(s_T),

is at most log Z_t(s), minus the soft cost-to-go, and equal to it where pi is soft-optimal. One
function serves as log Z(s_0) = h_0(s_0) in the discriminator's offset, as the potential of
per-step logits (AIRL's h; Fu et al. 2018, arXiv:1710.11248), and as baseline of the policy's
score-function steps. The per-step log weight

    l_t = -c(s_t, a_t) + next_t - h_t(s_t) - log pi(a_t | s_t),
    next_t = h_{t+1}(s_{t+1})            "step", exact for deterministic dynamics
    next_t = E[h_{t+1}(s') | s_t, a_t]   "causal", as exact as this expectation (expectation.py)

(and the last l_t also has -c_T(s_T) - h_T(s_T), what h_T misses of the terminal cost) is the soft
advantage: 0 at every step of a soft-optimal policy. In "step" form their sum is
log weight(tau) - h_0(s_0).

h is fitted to fresh draws of the policy, never to demonstrations (a hundred of them would be
overfitted), by ridge regression on fixed features. Its coefficients are linear in r, so h follows
the cost at every step of the energy, and the gradient in theta runs through h: with l_t near 0 it
is that of log pi_theta(a_t | s_t), whatever start states the demonstrations happen to have.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import one_hot

from ebm_pp.expectation import expect, warn_of_draws
from ebm_pp.trajectory import Layout, Trajectories

RIDGE = 1e-8  # on correlations of features
ROWS = 40_000  # states in a regression, at most
PER_STEP = 12  # rows per feature from which every step gets coefficients of its own
RIDGES = 64  # random features, at least
MOST_RIDGES = 512  # and at most, where all steps share them


class Features(nn.Module):
    """Fixed features of states (or states and actions) and time.

    Of integers: which one. Of standardised rows u: 1, u, u_i u_j, these times t / T, and random
    tanh ridges of u and t / T.

    Args:
        width: of a row; 0 for integers.
        n: how many integers; 0 for vectors.
        horizon: T.
        ridges: how many random ones.
    """

    loc: Tensor
    scale: Tensor
    weight: Tensor
    shift: Tensor
    pairs: Tensor

    def __init__(self, width: int, n: int, horizon: int, ridges: int = RIDGES) -> None:
        super().__init__()
        self.n, self.horizon = n, horizon
        generator = torch.Generator().manual_seed(0)
        weight = torch.randn(width + 1, ridges, generator=generator) / math.sqrt(width + 1)
        # Shared features also have to tell steps apart: up to 4 per standard deviation.
        steepest = 4.0 if ridges > RIDGES else 1.5
        self.register_buffer("weight", torch.linspace(1.5, steepest, ridges) * weight)
        self.register_buffer("shift", 2 * torch.rand(ridges, generator=generator) - 1)
        self.register_buffer("loc", torch.zeros(width))
        self.register_buffer("scale", torch.ones(width))
        self.register_buffer("pairs", torch.triu_indices(width, width), persistent=False)
        self.size = n or 2 + 2 * width + 2 * self.pairs.shape[1] + ridges

    def standardise_(self, rows: Float[Tensor, "n width"]) -> None:
        """Location and scale from rows."""
        if not self.n:
            spread = rows.std(0, correction=0)
            self.loc.copy_(rows.mean(0))
            self.scale.copy_(torch.where(spread > 0, spread, 1.0))

    def forward(self, rows: Tensor, times: Tensor) -> Tensor:
        """`(*batch, size)`, of rows `(*batch, width)` or integers `(*batch)`; times broadcast."""
        if self.n:
            return one_hot(rows, self.n).to(self.loc)
        u = (rows - self.loc) / self.scale
        clock = (times.to(u) / self.horizon).unsqueeze(-1).expand(*u.shape[:-1], 1)
        square = u[..., self.pairs[0]] * u[..., self.pairs[1]]
        ridges = torch.tanh(torch.cat([u, clock], -1) @ self.weight + self.shift)
        one = torch.ones_like(clock)
        return torch.cat([one, clock, u, square, clock * u, clock * square, ridges], -1)


@dataclass(frozen=True)
class Projection:
    """The regression of one pool, ready for any rewards.

    Attributes:
        solve: from r `(n, T + 1)` of the pool's first n draws to the coefficients of h_t,
            t = 0..T, and of next_t, t = 0..T-1.
        n: draws used.
        now: features of s_t of every row of the pool, `(N, T + 1, F)`.
        following: those of next_t, `(N, T, G)`.
    """

    solve: Callable[[Tensor], tuple[Tensor, Tensor]]
    n: int
    now: Float[Tensor, "N stages F"]
    following: Float[Tensor, "N T G"]

    def steps(
        self, rewards: Float[Tensor, "n stages"], at: Int[Tensor, " m"]
    ) -> Float[Tensor, "m T"]:
        """What to add to r of some rows for their l_t; differentiable in the rewards."""
        return _advance(self.now[at], self.following[at], *self.solve(rewards))


def _advance(
    now: Float[Tensor, "n stages F"], following: Float[Tensor, "n T G"], h: Tensor, after: Tensor
) -> Float[Tensor, "n T"]:
    """next_t - h_t(s_t), in the last step also -h_T(s_T), from features and coefficients."""
    values = torch.einsum("ntf,tf->nt", now, h)
    ahead = torch.einsum("ntg,tg->nt", following, after)
    last = torch.zeros_like(ahead)
    last[:, -1] = values[:, -1]
    return ahead - values[:, :-1] - last


class SoftValue(nn.Module):
    """h_t(s), and what per-step log densities take from it.

    Args:
        layout: the trajectory.
        causal: whether `next_t` is the expectation (causal) or the value of the drawn next state.
        ridges: random features; see `affordable`.
    """

    coefficients: Tensor
    coefficients_after: Tensor

    def __init__(self, layout: Layout, *, causal: bool, ridges: int = RIDGES) -> None:
        super().__init__()
        dynamics = layout.dynamics
        self.layout, self.ridges = layout, ridges
        self.causal = causal and not dynamics.deterministic
        if self.causal:
            warn_of_draws(dynamics)
        space, actions = dynamics.space, dynamics.actions
        width = 0 if space.n else space.shape[0]
        self.features = Features(width, space.n, layout.horizon, ridges)
        # Of a simulator, E[h(s') | s, a] is itself a regression, on state and action.
        self.pairs = None
        if self.causal and dynamics.opaque:
            both = bool(space.n and actions.n)
            pair = (space.n or width) + (actions.n or actions.shape[0])
            self.pairs = Features(0 if both else pair, space.n * actions.n, layout.horizon, ridges)
        size = self.features.size if self.pairs is None else self.pairs.size
        self.register_buffer("coefficients", torch.zeros(layout.horizon + 1, self.features.size))
        self.register_buffer("coefficients_after", torch.zeros(layout.horizon, size))

    def forward(self, tau: Trajectories) -> Float[Tensor, "n T"]:
        """What to add to minus the cost of every step, terminal included, for l_t + log pi."""
        return _advance(
            self._now(tau), self._following(tau), self.coefficients, self.coefficients_after
        )

    def total(self, tau: Trajectories) -> Float[Tensor, " n"]:
        """The sum of `forward` over t; in "step" form it telescopes to -h_0(s_0)."""
        return self(tau).sum(1) if self.causal else -self.start(tau.states[:, 0])

    def start(self, states: Tensor) -> Float[Tensor, " n"]:
        """h_0(s_0), of start states `(n, *state)`: log Z(s_0), nats."""
        return self.value(states, torch.tensor(0, device=states.device))

    def value(self, states: Tensor, times: Tensor) -> Tensor:
        """h_t(s) of states `(*batch, *state)` at times that broadcast to `(*batch)`."""
        return (self.features(states, times) * self.coefficients[times]).sum(-1)

    @torch.no_grad()
    def project(self, tau: Trajectories, draws: slice) -> Projection:
        """Prepares the regression on a pool's draws; see `Projection`.

        To the sums r_t + r_{t+1} + ..., which for a soft-optimal policy in deterministic dynamics
        hold no noise; where the next value's expectation is at hand, backward in time to
        r_t + E[h_{t+1}(s') | s_t, a_t], which then holds none either.
        """
        horizon = self.layout.horizon
        drawn = Trajectories(tau.states[draws], tau.actions[draws])
        if not self.features.n:
            self.features.standardise_(drawn.states.flatten(0, 1))
        if self.pairs is not None:
            self.pairs.standardise_(self._pairs(drawn).flatten(0, 1))
        now, following = self._now(tau), self._following(tau)
        n = len(drawn.actions)
        enough = 0 if self.features.n else PER_STEP * self.features.size
        separate = n >= enough
        n = min(n, max(ROWS // horizon, enough))
        regress = _separate if separate else _shared
        fit = regress(now[draws][:n])
        smooth = None
        expected = following[draws][:n]
        if self.pairs is not None:
            some = Trajectories(drawn.states[:n], drawn.actions[:n])
            smooth = regress(expected)(self._seen(some))  # (T, G, F)
            expected = torch.einsum("ntg,tgf->ntf", expected, smooth)

        def after(h: Tensor) -> Tensor:
            return h[1:] if smooth is None else torch.einsum("tgf,tf->tg", smooth, h[1:])

        def solve(rewards: Tensor) -> tuple[Tensor, Tensor]:
            to_go = rewards.flip(1).cumsum(1).flip(1)
            h = fit(to_go)
            return h, after(h)

        def backward(rewards: Tensor) -> tuple[Tensor, Tensor]:
            h = [fit.at(horizon, rewards[:, horizon])]
            for t in reversed(range(horizon)):
                target = rewards[:, t] + expected[:, t] @ h[-1]
                h.append(fit.at(t, target))
            found = torch.stack(h[::-1])
            return found, after(found)

        return Projection(backward if separate and self.causal else solve, n, now, following)

    def keep_(self, projection: Projection, rewards: Float[Tensor, "n stages"]) -> None:
        """Makes the solution for these rewards its own."""
        h, after = projection.solve(rewards)
        self.coefficients.copy_(h)
        self.coefficients_after.copy_(after)

    def _times(self, tau: Trajectories) -> Tensor:
        return torch.arange(self.layout.horizon, device=tau.states.device)

    def _now(self, tau: Trajectories) -> Float[Tensor, "n stages F"]:
        times = torch.arange(self.layout.horizon + 1, device=tau.states.device)
        return self.features(tau.states, times)

    def _following(self, tau: Trajectories) -> Float[Tensor, "n T G"]:
        """Features whose product with `coefficients_after` is next_t."""
        if self.pairs is not None:
            return self.pairs(self._pairs(tau), self._times(tau))
        return self._expected(tau) if self.causal else self._seen(tau, drawn=True)

    def _expected(self, tau: Trajectories) -> Float[Tensor, "n T F"]:
        """E[features(s_{t+1}) | s_t, a_t], by the dynamics."""
        n, horizon = tau.actions.shape[:2]
        times = self._times(tau) + 1

        def features(states: Tensor) -> Tensor:
            return self.features(states.unflatten(0, (n, horizon)), times).flatten(0, 1)

        states, actions = tau.states[:, :-1].flatten(0, 1), tau.actions.flatten(0, 1)
        return expect(self.layout.dynamics, features, states, actions).unflatten(0, (n, horizon))

    def _seen(self, tau: Trajectories, *, drawn: bool = False) -> Float[Tensor, "n T F"]:
        """Features of the drawn s_{t+1}, or of a few more where a simulator can be set back."""
        if not drawn and self.layout.dynamics.resettable:
            return self._expected(tau)
        return self.features(tau.states[:, 1:], self._times(tau) + 1)

    def _pairs(self, tau: Trajectories) -> Tensor:
        states, actions = tau.states[:, :-1], tau.actions
        space, choices = self.layout.dynamics.space, self.layout.dynamics.actions
        if space.n and choices.n:
            return states * choices.n + actions
        parts = [
            (one_hot(value, where.n) if where.n else value).to(self.coefficients)
            for value, where in ((states, space), (actions, choices))
        ]
        return torch.cat(parts, -1)


def _gram(features: Float[Tensor, "*batch n F"]) -> tuple[Tensor, Tensor]:
    """Root mean squares of the features, and the Cholesky factor of their correlations + ridge."""
    gram = (features.mT @ features) / features.shape[-2]
    scale = gram.diagonal(dim1=-2, dim2=-1).sqrt()
    scale = torch.where(scale > 0, scale, 1.0)  # of an integer that no draw visits
    gram = gram / (scale.unsqueeze(-1) * scale.unsqueeze(-2))
    gram.diagonal(dim1=-2, dim2=-1).add_(RIDGE)
    return scale, torch.linalg.cholesky(gram)


@dataclass(frozen=True)
class LeastSquares:
    """Least squares on fixed rows, for any targets.

    Attributes:
        rows: features `(T, n, F)`, or of all steps together `(1, n T, F)`; in float64, since
            random features are nearly collinear.
        scale: of every feature.
        factor: see `_gram`.
        times: how many coefficients of each feature to give: T.
    """

    rows: Tensor
    scale: Tensor
    factor: Tensor
    times: int

    def __call__(self, targets: Float[Tensor, "n T ..."]) -> Tensor:
        """Coefficients `(T, F)`, or `(T, F, k)` of targets `(n, T, k)`; T times."""
        several = targets.dim() == 3
        y = targets if several else targets.unsqueeze(-1)
        y = y.transpose(0, 1) if len(self.rows) > 1 else y.flatten(0, 1).unsqueeze(0)
        moments = self.rows.mT @ y.double() / self.rows.shape[1]
        solution = _solve(self.scale, self.factor, moments).to(y)
        solution = solution.expand(self.times, *solution.shape[1:])
        return solution if several else solution.squeeze(-1)

    def at(self, t: int, target: Float[Tensor, " n"]) -> Float[Tensor, " F"]:
        """Coefficients of step t alone."""
        rows = self.rows[t]
        moments = (rows.T @ target.double() / len(rows)).unsqueeze(-1)
        return _solve(self.scale[t], self.factor[t], moments).squeeze(-1).to(target)


def _solve(scale: Tensor, factor: Tensor, moments: Float[Tensor, "*batch F k"]) -> Tensor:
    scale = scale.unsqueeze(-1)
    return torch.cholesky_solve(moments / scale, factor) / scale


def _separate(features: Float[Tensor, "n T F"]) -> LeastSquares:
    """Coefficients of every step of its own."""
    rows = features.transpose(0, 1).double().contiguous()
    return LeastSquares(rows, *_gram(rows), features.shape[1])


def _shared(features: Float[Tensor, "n T F"]) -> LeastSquares:
    """Coefficients that all steps share."""
    rows = features.reshape(1, -1, features.shape[-1]).double()
    return LeastSquares(rows, *_gram(rows), features.shape[1])


def affordable(layout: Layout, draws: int) -> int:
    """Random features that this many draws can pay for.

    64 where every step can have coefficients of its own; else, all steps sharing them, one per 24
    states, up to 512.
    """
    space = layout.dynamics.space
    least = Features(0 if space.n else space.shape[0], space.n, layout.horizon).size
    if space.n or draws >= PER_STEP * least:
        return RIDGES
    return min(max(draws * layout.horizon // (2 * PER_STEP), RIDGES), MOST_RIDGES)
