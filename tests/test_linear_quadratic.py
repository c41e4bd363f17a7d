"""The exact soft LQR against integrals that use no recursion."""

import math
from dataclasses import replace

import pytest
import torch

from ebm_pp import EnergyModel, PolicyGenerator
from models import linear_quadratic as lq

NOISES = (0.0, 0.01, 0.05, 0.2)
# log Z (causal, joint), computed beforehand by another program.
KNOWN = {
    0.0: (-0.535186, 3.506690),
    0.01: (-0.786327, 3.601543),
    0.05: (-1.790889, 3.789188),
    0.2: (-5.557999, 3.634329),
}


def path(world, start, z, noisy):
    """States, actions and log density of the noise, from actions and standard normals in z."""
    n, m = world.B.shape
    u = z[: world.horizon * m].reshape(world.horizon, m)
    w = z[world.horizon * m :].reshape(world.horizon, n) if noisy else None
    root = torch.linalg.cholesky(world.W) if noisy else None
    x = [start]
    for t in range(world.horizon):
        moved = world.A @ x[-1] + world.B @ u[t] + world.b
        x.append(moved if w is None else moved + root @ w[t])
    log_noise = 0.0 if w is None else -0.5 * w.square().sum() - 0.5 * w.numel() * lq.LOG_2PI
    return torch.stack(x), u, log_noise


def cost(world, x, u):
    before, last = x[:-1], x[-1]
    total = 0.5 * ((before @ world.Q) * before).sum() + 0.5 * ((u @ world.R) * u).sum()
    total = (
        total + (u * (before @ world.S.T)).sum() + (before @ world.q).sum() + (u @ world.r).sum()
    )
    total = total + world.kappa * len(u) + 0.5 * last @ world.Q_T @ last + world.q_T @ last
    return total + world.kappa_T


def gaussian_integral(world, start, noisy):
    """Log of the integral of exp(-c) over actions (and noise), and mean and covariance of these.

    The exponent is quadratic in z, so its gradient and Hessian at 0 are all of it.
    """
    size = world.horizon * (world.B.shape[1] + (world.B.shape[0] if noisy else 0))
    zero = torch.zeros(size, dtype=torch.float64)

    def minus_log(z):
        x, u, log_noise = path(world, start, z, noisy)
        return cost(world, x, u) - log_noise

    hessian = torch.autograd.functional.hessian(minus_log, zero)
    gradient = torch.autograd.functional.jacobian(minus_log, zero)
    covariance = torch.linalg.inv(hessian)
    log_z = -minus_log(zero) + 0.5 * gradient @ covariance @ gradient
    log_z = log_z + 0.5 * size * lq.LOG_2PI - 0.5 * torch.logdet(hessian)
    return log_z, -covariance @ gradient, covariance


@pytest.mark.parametrize("noise", NOISES)
def test_log_partition_is_the_gaussian_integral(noise):
    world, start = lq.short(noise), torch.tensor([0.7, -0.4], dtype=torch.float64)
    solution = lq.solve(world, joint=True)
    expected, mean, covariance = gaussian_integral(world, start, world.noisy)
    found = lq.log_partition_from(solution, start[None])[0]
    assert abs(found - expected) < 1e-8
    # The first action's law given the start: under the joint density, noise or none.
    first = solution.K[0] @ start + solution.k[0]
    assert (first - mean[:1]).abs().max() < 1e-8
    assert (solution.sigma[0] - covariance[:1, :1]).abs().max() < 1e-8
    if not world.noisy:  # then causal and joint are one
        causal = lq.log_partition_from(lq.solve(world), start[None])[0]
        assert abs(causal - expected) < 1e-8


@pytest.mark.parametrize("noise", NOISES)
def test_log_partition_is_what_the_best_policy_earns(noise):
    """E_q[-c - log pi], from the closed-form marginals alone, is log Z (MATH identity ii)."""
    world = lq.short(noise)
    solution = lq.solve(world)
    laws = lq.marginals(world, solution)
    total = torch.zeros((), dtype=torch.float64)
    for t, (m, C) in enumerate(laws[:-1]):
        K, k, sigma = solution.K[t], solution.k[t], solution.sigma[t]
        u, cross = K @ m + k, K @ C
        second = C + torch.outer(m, m)
        total -= 0.5 * (world.Q @ second).trace() + world.q @ m + world.r @ u + world.kappa
        total -= 0.5 * (world.R @ (K @ C @ K.T + sigma + torch.outer(u, u))).trace()
        total -= (world.S @ (cross + torch.outer(u, m)).T).trace()
        total += 0.5 * torch.logdet(2 * math.pi * math.e * sigma)
    m, C = laws[-1]
    total -= 0.5 * (world.Q_T @ (C + torch.outer(m, m))).trace() + world.q_T @ m + world.kappa_T
    assert abs(total - lq.log_partition(world)) < 1e-8


@pytest.mark.parametrize("noise", NOISES)
def test_known_values(noise):
    world = lq.short(noise)
    found = lq.log_partition(world).item(), lq.log_partition(world, joint=True).item()
    assert found == pytest.approx(KNOWN[noise], abs=2e-6)


def test_marginals_are_those_of_draws():
    world = lq.short(0.05)
    solution = lq.solve(world)
    states = lq.draws(world, solution, 40_000, seed=0)["states"][:, -1]
    m, C = lq.marginals(world, solution)[-1]
    assert ((states.mean(0) - m).abs() < 4 * (C.diagonal() / 40_000).sqrt()).all()
    assert (states.T.cov() - C).abs().max() < 4 * C.max() * math.sqrt(2 / 40_000)


def test_the_log_weight_is_constant_on_every_trajectory_without_noise():
    """MATH identity (i): log p~ - log q - log Z(s_0) = 0, program against closed form."""
    world = lq.short(0.0)
    solution = lq.solve(world)
    model = EnergyModel(lq.QuadraticCost(world)).double()
    q = PolicyGenerator(model, policy=lq.LinearGaussianPolicy(solution))
    draws = lq.draws(world, solution, 200, seed=1)
    with torch.no_grad():
        log_weights = model.log_density(draws) - q.log_prob(draws)
    off = log_weights - lq.log_partition_from(solution, draws["states"][:, 0])
    assert off.abs().max() < 1e-8


def test_a_wider_policy_has_the_closed_form_weights():
    """MATH identity (iv): E_q[w^2] / E_q[w]^2 = (s / sqrt(2 s - 1))^(m T)."""
    world, s = lq.short(0.0, spread=0.0), 1.2
    solution = lq.solve(world)
    wide = replace(solution, sigma=s * solution.sigma)
    model = EnergyModel(lq.QuadraticCost(world)).double()
    q = PolicyGenerator(model, policy=lq.LinearGaussianPolicy(wide))
    draws = lq.draws(world, wide, 100_000, seed=2)
    with torch.no_grad():
        w = (model.log_density(draws) - q.log_prob(draws) - lq.log_partition(world)).exp()
    exact = (s / math.sqrt(2 * s - 1)) ** world.horizon
    assert abs(w.mean() - 1) < 4 * w.std() / len(w) ** 0.5
    assert abs(w.square().mean() - exact) < 4 * w.square().std() / len(w) ** 0.5


def test_nats_to_the_optimum_is_the_lost_objective():
    """MATH identity (iii): log Z - E_q[log weight] = sum_t E KL(pi || pi*)."""
    world = lq.short(0.05)
    best = lq.solve(world)
    other = replace(best, k=best.k + 0.2, sigma=1.3 * best.sigma)
    model = EnergyModel(lq.QuadraticCost(world)).double()
    q = PolicyGenerator(model, policy=lq.LinearGaussianPolicy(other))
    draws = lq.draws(world, other, 20_000, seed=3)
    with torch.no_grad():
        log_weights = model.log_density(draws) - q.log_prob(draws)
    states = draws["states"][:, :-1]
    mean = torch.einsum("tmn,ktn->ktm", other.K, states) + other.k
    sd = other.sigma.diagonal(dim1=-2, dim2=-1).sqrt().expand_as(mean)
    nats, error = lq.nats_to_optimum(best, states, mean, sd)
    lost = lq.log_partition(world) - log_weights.mean()
    assert abs(lost - nats) < 4 * log_weights.std() / 20_000**0.5 + 4 * error
