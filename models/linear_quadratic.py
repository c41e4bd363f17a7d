"""Linear dynamics, quadratic cost: maximum-entropy control in closed form.

    x' = A x + B u + b + w,  w ~ N(0, W),      x_0 ~ N(mu, S_0)
    c  = sum_t [ x'Qx / 2 + u'Ru / 2 + u'Sx + q'x + r'u + kappa ]
         + x_T'Q_T x_T / 2 + q_T'x_T + kappa_T

The soft cost-to-go is quadratic, V_t(x) = x'Px / 2 + p'x + s, backward from V_T:

    through the noise      causal: P~ = P, p~ = p, s~ = s + tr(PW) / 2
                           joint:  M = (I + PW)^-1, P~ = MP, p~ = Mp,
                                   s~ = s + logdet(I + PW) / 2 - p'WMp / 2
    H_uu = R + B'P~B,  H_ux = S + B'P~A,  H_xx = Q + A'P~A,  v = P~b + p~,  h_u = r + B'v,
    h_x = q + A'v,  h_0 = kappa + b'P~b / 2 + p~'b + s~
    pi_t(u | x) = N(Kx + k, H_uu^-1),  K = -H_uu^-1 H_ux,  k = -H_uu^-1 h_u
    P <- H_xx - H_ux'H_uu^-1 H_ux,  p <- h_x - H_ux'H_uu^-1 h_u,
    s <- h_0 - h_u'H_uu^-1 h_u / 2 - (m log 2 pi - logdet H_uu) / 2

and log Z(x_0) = -V_0(x_0). "joint" is the density of trajectories p(tau) ~ rho prod P exp(-c);
"causal" is the law of the best policy, which cannot see the noise ahead. Without noise the two
are one.

Sources: Ziebart 2010, chapter 5; Levine 2018, arXiv:1805.00909. Everything is in float64.
"""

from dataclasses import dataclass, replace

import pyro
import pyro.distributions as dist
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributions import Distribution

from ebm_pp.dynamics import Dynamics, Space
from ebm_pp.trajectory import trajectory

LOG_2PI = 1.8378770664093453
Quadratic = tuple[Tensor, Tensor, Tensor]  # P, p, s


@dataclass(frozen=True, eq=False)
class World:
    """Dynamics and cost; n states, m actions. Letters as in the module."""

    horizon: int
    A: Float[Tensor, "n n"]
    B: Float[Tensor, "n m"]
    Q: Float[Tensor, "n n"]
    R: Float[Tensor, "m m"]
    Q_T: Float[Tensor, "n n"]
    W: Float[Tensor, "n n"]
    mu: Float[Tensor, " n"]
    S_0: Float[Tensor, "n n"]
    S: Float[Tensor, "m n"]
    b: Float[Tensor, " n"]
    q: Float[Tensor, " n"]
    r: Float[Tensor, " m"]
    q_T: Float[Tensor, " n"]
    kappa: float = 0.0
    kappa_T: float = 0.0

    @property
    def noisy(self) -> bool:
        """Whether the dynamics are stochastic."""
        return bool(self.W.any())

    def dynamics(self, dtype: torch.dtype = torch.float32) -> Dynamics:
        """The world for a program, without its cost."""
        A, B, b = (part.to(dtype) for part in (self.A, self.B, self.b))
        root = (_root(self.W) if self.noisy else self.W).to(dtype)
        start = dist.Delta(self.mu, event_dim=1)
        if self.S_0.any():
            start = dist.MultivariateNormal(self.mu, scale_tril=_root(self.S_0))

        def step(states: Tensor, actions: Tensor) -> Tensor | Distribution:
            mean = states.to(dtype) @ A.T + actions.to(dtype) @ B.T + b
            return dist.MultivariateNormal(mean, scale_tril=root) if self.noisy else mean

        return Dynamics(start, step, Space.real(self.B.shape[1]))


@dataclass(frozen=True, eq=False)
class Solution:
    """Soft values and the soft-optimal policy.

    values: P, p, s of V_t, t = 0..T.
    K, k, sigma: pi_t(u | x) = N(K_t x + k_t, sigma_t); shapes (T, m, n), (T, m), (T, m, m).
    """

    values: list[Quadratic]
    K: Float[Tensor, "T m n"]
    k: Float[Tensor, "T m"]
    sigma: Float[Tensor, "T m m"]


def solve(world: World, *, joint: bool = False) -> Solution:
    """The backward recursion of the module."""
    value: Quadratic = (world.Q_T, world.q_T, torch.as_tensor(world.kappa_T, dtype=torch.float64))
    values, policy = [value], []
    for _ in range(world.horizon):
        P, p, s = through_noise(value, world.W, joint)
        H_uu = world.R + world.B.T @ P @ world.B
        H_ux = world.S + world.B.T @ P @ world.A
        H_xx = world.Q + world.A.T @ P @ world.A
        v = P @ world.b + p
        h_u, h_x = world.r + world.B.T @ v, world.q + world.A.T @ v
        h_0 = world.kappa + 0.5 * world.b @ P @ world.b + p @ world.b + s
        sigma = torch.linalg.inv(H_uu)
        K, k = -sigma @ H_ux, -sigma @ h_u
        P = H_xx - H_ux.T @ sigma @ H_ux
        m = len(world.R)
        s = h_0 - 0.5 * h_u @ sigma @ h_u - 0.5 * (m * LOG_2PI - torch.logdet(H_uu))
        value = (0.5 * (P + P.T), h_x - H_ux.T @ sigma @ h_u, s)
        values.append(value)
        policy.append((K, k, sigma))
    K, k, sigma = (torch.stack(part) for part in zip(*policy[::-1], strict=True))
    return Solution(values[::-1], K, k, sigma)


def through_noise(value: Quadratic, W: Tensor, joint: bool) -> Quadratic:
    """E V(m + w) (causal), or -log E exp(-V(m + w)) (joint), as a quadratic in m."""
    P, p, s = value
    if not joint:
        return P, p, s + 0.5 * (P @ W).trace()
    eye = torch.eye(len(P), dtype=P.dtype)
    M = torch.linalg.inv(eye + P @ W)
    return M @ P, M @ p, s + 0.5 * torch.logdet(eye + P @ W) - 0.5 * p @ W @ M @ p


def log_partition(world: World, *, joint: bool = False) -> Tensor:
    """Log Z over random starts: minus E V_0(x_0) (causal), log E exp(-V_0(x_0)) (joint)."""
    P, p, s = through_noise(solve(world, joint=joint).values[0], world.S_0, joint)
    return -(0.5 * world.mu @ P @ world.mu + p @ world.mu + s)


def log_partition_from(solution: Solution, starts: Float[Tensor, "k n"]) -> Float[Tensor, " k"]:
    """Log Z(x_0) = -V_0(x_0)."""
    P, p, s = solution.values[0]
    return -(0.5 * ((starts @ P) * starts).sum(-1) + starts @ p + s)


def marginals(world: World, solution: Solution) -> list[tuple[Tensor, Tensor]]:
    """Mean and covariance of x_t under the policy, t = 0..T."""
    m, C = world.mu, world.S_0
    found = [(m, C)]
    for K, k, sigma in zip(solution.K, solution.k, solution.sigma, strict=True):
        F = world.A + world.B @ K
        m = F @ m + world.B @ k + world.b
        C = F @ C @ F.T + world.B @ sigma @ world.B.T + world.W
        found.append((m, C))
    return found


class LinearGaussianPolicy(nn.Module):
    """u ~ N(K_t x + k_t, sigma_t), for `PolicyGenerator(model, policy=...)`; K, k, root learn."""

    def __init__(self, solution: Solution) -> None:
        super().__init__()
        self.K, self.k = nn.Parameter(solution.K.clone()), nn.Parameter(solution.k.clone())
        self.root = nn.Parameter(torch.linalg.cholesky(solution.sigma))

    def forward(self, states: Tensor, time: Tensor) -> Distribution:
        """The law of u in states `(*batch, n)` at times `(*batch)`."""
        mean = (self.K[time] @ states.unsqueeze(-1)).squeeze(-1) + self.k[time]
        return dist.MultivariateNormal(mean, scale_tril=self.root[time])


class LinearQuadratic(nn.Module):
    """The program: learned weights of x_i^2 / 2 and u_j^2 / 2; the terminal cost is the world's.

    Args:
        world: its dynamics, horizon and terminal cost; its Q and R only set how many weights.
        dtype: of everything.

    The weights are exp of parameters, which start at 0 (weights of 1).
    """

    def __init__(self, world: World, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        n, m = world.B.shape
        self.dynamics, self.horizon = world.dynamics(dtype), world.horizon
        self.log_q = nn.Parameter(torch.zeros(n, dtype=dtype))
        self.log_r = nn.Parameter(torch.zeros(m, dtype=dtype))
        self.register_buffer("Q_T", world.Q_T.to(dtype))

    def forward(self) -> None:
        """One trajectory; a term of the moment gap per weight."""
        tau = trajectory(self.dynamics, self.horizon)
        with pyro.plate("time", self.horizon):
            for i, weight in enumerate(self.log_q.exp()):
                pyro.factor(f"state_{i}", -0.5 * weight * tau.states[:-1, i].square())
            for j, weight in enumerate(self.log_r.exp()):
                pyro.factor(f"effort_{j}", -0.5 * weight * tau.actions[:, j].square())
        last = tau.states[-1]
        pyro.factor("terminal", -0.5 * last @ self.Q_T @ last)

    def weights(self) -> tuple[Tensor, Tensor]:
        """The diagonals of Q and R."""
        return self.log_q.detach().exp().double(), self.log_r.detach().exp().double()


class QuadraticCost(nn.Module):
    """The program of a world's whole cost, known: every letter of the module, nothing learned.

    Args:
        world: all of it.
        dtype: of the dynamics; `EnergyModel(QuadraticCost(world)).double()` goes with float64.
    """

    def __init__(self, world: World, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        self.world, self.dynamics = world, world.dynamics(dtype)

    def forward(self) -> None:
        """One trajectory."""
        w = self.world
        tau = trajectory(self.dynamics, w.horizon)
        to = tau.states.dtype
        x, u = tau.states[:-1], tau.actions
        with pyro.plate("time", w.horizon):
            quadratic = ((x @ w.Q.to(to)) * x).sum(-1) + ((u @ w.R.to(to)) * u).sum(-1)
            cross = (u * (x @ w.S.T.to(to))).sum(-1)
            linear = x @ w.q.to(to) + u @ w.r.to(to) + w.kappa
            pyro.factor("cost", -(0.5 * quadratic + cross + linear))
        last = tau.states[-1]
        end = 0.5 * last @ w.Q_T.to(to) @ last + w.q_T.to(to) @ last + w.kappa_T
        pyro.factor("terminal", -end)


def world(
    horizon: int,
    A: Tensor, B: Tensor, Q: Tensor, R: Tensor, Q_T: Tensor,
    W: Tensor, mu: Tensor, S_0: Tensor,
    **more: Tensor | float,
) -> World:  # fmt: skip
    """A `World` in float64 whose other terms (S, b, q, r, q_T) are 0 unless given."""
    n, m = B.shape
    zeros = {"S": (m, n), "b": (n,), "q": (n,), "r": (m,), "q_T": (n,)}
    rest = {key: torch.zeros(shape) for key, shape in zeros.items()} | more
    tensors = {"A": A, "B": B, "Q": Q, "R": R, "Q_T": Q_T, "W": W, "mu": mu, "S_0": S_0} | rest
    double = {k: v.double() if isinstance(v, Tensor) else v for k, v in tensors.items()}
    return World(horizon, **double)  # type: ignore[arg-type]


def short(noise: float = 0.0, horizon: int = 10, spread: float = 0.3) -> World:
    """A cart pushed for 10 steps, every term of the cost present; noise as in the covariance W."""
    t = lambda *rows: torch.tensor(rows, dtype=torch.float64)  # noqa: E731
    return world(
        horizon, A=t([1.0, 0.1], [0.0, 1.0]), B=t([0.05], [1.0]),
        Q=torch.diag(t(1.0, 0.1)), R=t([0.5]), Q_T=2 * torch.eye(2),
        W=noise * t([1.0, 0.2], [0.2, 0.5]), mu=t(1.0, 0.0), S_0=spread * torch.eye(2),
        S=t([0.05, 0.02]), b=t(0.02, -0.01), q=t(0.1, -0.2), r=t(0.05), q_T=t(0.1, 0.0),
        kappa=0.3, kappa_T=0.2,
    )  # fmt: skip


def imitation(noise: float = 0.0, horizon: int = 30) -> World:
    """The benchmark of imitation: terminal cost such that the best policy is the same at every t.

    Args:
        noise: W = noise * I.
        horizon: T.
    """
    t = lambda *rows: torch.tensor(rows, dtype=torch.float64)  # noqa: E731
    start = world(
        1, A=t([1.0, 0.1], [0.0, 1.0]), B=0.3 * t([0.05], [1.0]), Q=torch.diag(t(1.0, 0.2)),
        R=t([0.5]), Q_T=torch.eye(2), W=noise * torch.eye(2), mu=torch.zeros(2), S_0=torch.eye(2),
    )  # fmt: skip
    return replace(start, horizon=horizon, Q_T=solve(replace(start, horizon=2000)).values[0][0])


def draws(world: World, solution: Solution, n: int, seed: int) -> dict[str, Tensor]:
    """Draws n trajectories of a policy, float64: the sites `states` and `actions`."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    x = world.mu + normal(n, len(world.mu)) @ _root(world.S_0).T
    states, actions = [x], []
    for K, k, sigma in zip(solution.K, solution.k, solution.sigma, strict=True):
        u = x @ K.T + k + normal(n, len(k)) @ torch.linalg.cholesky(sigma).T
        x = x @ world.A.T + u @ world.B.T + world.b
        if world.noisy:
            x = x + normal(n, len(world.mu)) @ _root(world.W).T
        states.append(x)
        actions.append(u)
    return {"states": torch.stack(states, 1), "actions": torch.stack(actions, 1)}


def nats_to_optimum(
    solution: Solution, states: Float[Tensor, "k T n"], mean: Tensor, sd: Tensor
) -> tuple[float, float]:
    """sum_t E KL(pi || pi*), in nats a trajectory, and its standard error over trajectories.

    Args:
        solution: of the true cost.
        states: x_0 to x_{T-1} of trajectories of the policy pi.
        mean: of pi at these states, `(k, T, m)`.
        sd: of pi, independent actions, the same shape.
    """
    best = dist.MultivariateNormal(
        torch.einsum("tmn,ktn->ktm", solution.K, states.double()) + solution.k, solution.sigma
    )
    own = dist.MultivariateNormal(mean.double(), torch.diag_embed(sd.double().square()))
    gaps = torch.distributions.kl_divergence(own, best).sum(1)
    return gaps.mean().item(), gaps.std().item() / len(gaps) ** 0.5


def _root(covariance: Tensor) -> Tensor:
    if not covariance.any():
        return covariance
    return torch.linalg.cholesky(covariance)
