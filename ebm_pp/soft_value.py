"""The soft value h_t(s): the log partition function of what is left of a trajectory.

With r_t = -c(s_t, a_t) - log pi(a_t | s_t), cost and policy of the moment,

    h_t(s) = E_q[ sum_{t' >= t} r_t' | s_t = s ],     h_T = 0 after the last cost,

is at most log Z_t(s), minus the soft cost-to-go, and equal to it where pi is soft-optimal. One
function serves as log Z(s_0) = h_0(s_0) in the discriminator's offset, as the potential of
per-step logits (AIRL's h; Fu et al. 2018, arXiv:1710.11248), and as baseline of the policy's
score-function steps. The per-step log weight

    l_t = -c(s_t, a_t) + next_t - h_t(s_t) - log pi(a_t | s_t),
    next_t = h_{t+1}(s_{t+1})            "step", exact for deterministic dynamics
    next_t = E[h_{t+1}(s') | s_t, a_t]   "causal", exact always

is the soft advantage: 0 at every step of a soft-optimal policy. In "step" form their sum is
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
from pyro.distributions import Categorical, Independent, MultivariateNormal, Normal
from torch import Tensor, nn
from torch.nn.functional import one_hot

from ebm_pp.dynamics import Dynamics, Opaque, draw
from ebm_pp.trajectory import Layout, Trajectories

RIDGE = 1e-6  # relative to the features' mean square
ROWS = 40_000  # states in a regression, at most
PER_STEP = 12  # rows per feature from which every step gets coefficients of its own
DRAWS = 16  # of the next state, where its expectation has no closed form
RIDGES = 64  # random features


class Features(nn.Module):
    """Fixed features of states (or states and actions) and time.

    Of integers: which one. Of standardised rows u: 1, u, u_i u_j, these times t / T, and random
    tanh ridges of u and t / T.

    Args:
        width: of a row; 0 for integers.
        n: how many integers; 0 for vectors.
        horizon: T.
    """

    loc: Tensor
    scale: Tensor
    weight: Tensor
    shift: Tensor
    pairs: Tensor

    def __init__(self, width: int, n: int, horizon: int) -> None:
        super().__init__()
        self.n, self.horizon = n, horizon
        generator = torch.Generator().manual_seed(0)
        weight = torch.randn(width + 1, RIDGES, generator=generator) / math.sqrt(width + 1)
        self.register_buffer("weight", 1.5 * weight)
        self.register_buffer("shift", 2 * torch.rand(RIDGES, generator=generator) - 1)
        self.register_buffer("loc", torch.zeros(width))
        self.register_buffer("scale", torch.ones(width))
        self.register_buffer("pairs", torch.triu_indices(width, width), persistent=False)
        self.size = n or 2 + 2 * width + 2 * self.pairs.shape[1] + RIDGES

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
        solve: from r `(n, T)` of the pool's first n draws to the coefficients of h_t, t = 0..T,
            and of next_t, t = 0..T-1.
        n: draws used.
        now: features of s_t of every row of the pool, `(N, T, F)`.
        following: those of next_t.
    """

    solve: Callable[[Tensor], tuple[Tensor, Tensor]]
    n: int
    now: Float[Tensor, "N T F"]
    following: Float[Tensor, "N T G"]

    def steps(self, rewards: Float[Tensor, "n T"], at: Int[Tensor, " m"]) -> Float[Tensor, "m T"]:
        """next_t - h_t(s_t) of some rows of the pool; differentiable in the rewards."""
        h, after = self.solve(rewards)
        return torch.einsum("ntf,tf->nt", self.following[at], after) - torch.einsum(
            "ntf,tf->nt", self.now[at], h[:-1]
        )


class SoftValue(nn.Module):
    """h_t(s), and what per-step log densities take from it.

    Args:
        layout: the trajectory.
        causal: whether `next_t` is the expectation (causal) or the value of the drawn next state.
    """

    coefficients: Tensor
    coefficients_after: Tensor

    def __init__(self, layout: Layout, *, causal: bool) -> None:
        super().__init__()
        dynamics = layout.dynamics
        self.layout = layout
        self.causal = causal and not dynamics.deterministic
        space, actions = dynamics.space, dynamics.actions
        width = 0 if space.n else space.shape[0]
        self.features = Features(width, space.n, layout.horizon)
        # Of a simulator that can't be set to a state, E[h(s') | s, a] is itself a regression.
        self.pairs = None
        if self.causal and dynamics.opaque and not resettable(dynamics):
            pair = (space.n or width) + (actions.n or actions.shape[0])
            self.pairs = Features(pair, 0, layout.horizon)
        size = self.features.size if self.pairs is None else self.pairs.size
        self.register_buffer("coefficients", torch.zeros(layout.horizon + 1, self.features.size))
        self.register_buffer("coefficients_after", torch.zeros(layout.horizon, size))

    def forward(self, tau: Trajectories) -> Float[Tensor, "n T"]:
        """next_t - h_t(s_t): what to add to minus the cost of every step."""
        now, following = self._now(tau), self._following(tau)
        return torch.einsum("ntf,tf->nt", following, self.coefficients_after) - torch.einsum(
            "ntf,tf->nt", now, self.coefficients[:-1]
        )

    def total(self, tau: Trajectories) -> Float[Tensor, " n"]:
        """sum_t (next_t - h_t(s_t)); in "step" form it telescopes to -h_0(s_0)."""
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
            self.features.standardise_(drawn.states[:, :-1].flatten(0, 1))
        if self.pairs is not None:
            self.pairs.standardise_(self._pairs(drawn).flatten(0, 1))
        now, following = self._now(tau), self._following(tau)
        n = len(drawn.actions)
        enough = 0 if self.features.n else PER_STEP * self.features.size
        separate = n >= enough
        n = min(n, max(ROWS // horizon, enough))
        mine, others = now[draws][:n], following[draws][:n]
        if separate and self.causal and self.pairs is None:
            gram = _gram(mine.transpose(0, 1))

            def backward(rewards: Tensor) -> tuple[Tensor, Tensor]:
                h = [torch.zeros_like(self.coefficients[0])]
                for t in reversed(range(horizon)):
                    target = rewards[:, t] + others[:, t] @ h[-1]
                    h.append(_solve(gram[t], mine[:, t].T @ target / n))
                found = torch.stack(h[::-1])
                return found, found[1:]

            return Projection(backward, n, now, following)

        fit = _shared(mine) if not separate else _separate(mine)
        fit_after = None
        if self.pairs is not None:
            fit_after = _shared(others) if not separate else _separate(others)

        def forward(rewards: Tensor) -> tuple[Tensor, Tensor]:
            to_go = rewards.flip(1).cumsum(1).flip(1)
            h = torch.cat([fit(to_go), torch.zeros_like(self.coefficients[:1])])
            if fit_after is None:
                return h, h[1:]
            later = torch.cat([to_go[:, 1:], torch.zeros_like(to_go[:, :1])], 1)
            return h, fit_after(later)

        return Projection(forward, n, now, following)

    def keep_(self, projection: Projection, rewards: Float[Tensor, "n T"]) -> None:
        """Makes the solution for these rewards its own."""
        h, after = projection.solve(rewards)
        self.coefficients.copy_(h)
        self.coefficients_after.copy_(after)

    def _times(self, tau: Trajectories) -> Tensor:
        return torch.arange(self.layout.horizon, device=tau.states.device)

    def _now(self, tau: Trajectories) -> Float[Tensor, "n T F"]:
        return self.features(tau.states[:, :-1], self._times(tau))

    def _following(self, tau: Trajectories) -> Float[Tensor, "n T G"]:
        """Features whose product with `coefficients_after` is next_t."""
        times = self._times(tau)
        if self.pairs is not None:
            return self.pairs(self._pairs(tau), times)
        if not self.causal:
            return self.features(tau.states[:, 1:], times + 1)
        n, horizon = tau.actions.shape[:2]

        def features(states: Tensor) -> Tensor:
            return self.features(states.unflatten(0, (n, horizon)), times + 1).flatten(0, 1)

        states, actions = tau.states[:, :-1].flatten(0, 1), tau.actions.flatten(0, 1)
        return expect(self.layout.dynamics, features, states, actions).unflatten(0, (n, horizon))

    def _pairs(self, tau: Trajectories) -> Tensor:
        parts = []
        for value, space in (
            (tau.states[:, :-1], self.layout.dynamics.space),
            (tau.actions, self.layout.dynamics.actions),
        ):
            parts.append((one_hot(value, space.n) if space.n else value).to(self.coefficients))
        return torch.cat(parts, -1)


def _gram(features: Float[Tensor, "*batch n F"]) -> Tensor:
    """Cholesky factors of mean(features features') + ridge, in float64."""
    double = features.double()
    gram = (double.mT @ double) / features.shape[-2]
    size = gram.diagonal(dim1=-2, dim2=-1).mean(-1, keepdim=True)
    # A constant 1e-12 keeps integers that no draw visits at coefficient 0.
    gram = gram + torch.diag_embed((RIDGE * size + 1e-12).expand(gram.shape[:-1]))
    return torch.linalg.cholesky(gram)


def _solve(factor: Tensor, moments: Tensor) -> Tensor:
    solution = torch.cholesky_solve(moments.double().unsqueeze(-1), factor)
    return solution.squeeze(-1).to(moments)


def _separate(features: Float[Tensor, "n T F"]) -> Callable[[Tensor], Tensor]:
    """From targets `(n, T)` to coefficients of every step."""
    factor = _gram(features.transpose(0, 1))
    return lambda y: _solve(factor, torch.einsum("ntf,nt->tf", features, y) / len(features))


def _shared(features: Float[Tensor, "n T F"]) -> Callable[[Tensor], Tensor]:
    """From targets `(n, T)` to coefficients that all steps share."""
    _, horizon, size = features.shape
    flat = features.reshape(-1, size)
    factor = _gram(flat)
    return lambda y: _solve(factor, flat.T @ y.flatten() / len(flat)).expand(horizon, size)


def resettable(dynamics: Dynamics) -> bool:
    """Whether one can step from any state, as from a function; not from a running environment."""
    return getattr(dynamics, "resettable", True)


def expect(
    dynamics: Dynamics, h: Callable[[Tensor], Tensor], states: Tensor, actions: Tensor
) -> Float[Tensor, "n F"]:
    """E[h(s') | s, a] of rows, for h with values `(n, F)`.

    Exact for tables; by cubature, exact for polynomials of degree 3, for Gaussian noise
    (Arasaratnam & Haykin 2009); else the mean over 16 draws.
    """
    if isinstance(dynamics.step, Opaque):
        return torch.stack([h(dynamics.advance(states, actions)) for _ in range(DRAWS)]).mean(0)
    law = dynamics.step(states, actions)
    if isinstance(law, Tensor):
        return h(law)
    if isinstance(law, Categorical):
        points = torch.arange(law.probs.shape[-1], device=states.device)
        values = torch.stack([h(s.expand(len(states))) for s in points], 1)
        return torch.einsum("nsf,ns->nf", values, law.probs.to(values))
    if isinstance(law, Independent) and isinstance(law.base_dist, Normal):
        arms = torch.diag_embed(law.base_dist.scale)
    elif isinstance(law, MultivariateNormal):
        arms = law.scale_tril
    else:
        return torch.stack([h(draw(law)) for _ in range(DRAWS)]).mean(0)
    d = arms.shape[-1]
    arms = math.sqrt(d) * arms
    values = torch.stack([h(law.mean + sign * arms[..., i]) for i in range(d) for sign in (1, -1)])
    return values.mean(0)
