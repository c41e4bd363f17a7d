"""The paper's three claims (Finn et al. 2016) and every other loss, by quadrature in float64.

A check is a plain function of (losses, d), so that it can also be run on a copy of the module
in which one sign is flipped: test_losses_flipped.py.
"""

import functools
import math

import numpy as np
import pytest
import torch
from torch.nn.functional import logsigmoid

from ebm_pp import losses as real_losses

F64 = torch.float64
THETA = torch.tensor([-0.3, 0.5, 0.6], dtype=F64)


def gaussian(x, loc, log_scale):
    u = (x - loc) * torch.exp(-log_scale)
    return (-0.5 * u.square() - log_scale - 0.5 * math.log(2 * math.pi)).sum(-1)


@functools.cache
def grid(d):
    """Points (n, d) and the volume of one; the trapezoid rule is exact to rounding here."""
    axis = torch.linspace(-10, 10, 401 if d == 1 else 121, dtype=F64)
    return torch.cartesian_prod(*[axis] * d).reshape(-1, d), (axis[1] - axis[0]) ** d


@functools.cache
def hermite(d):
    """Nodes eps (n, d) and weights of an expectation under N(0, I)."""
    nodes, weights = (torch.tensor(a) for a in np.polynomial.hermite_e.hermegauss(40 // d))
    product = torch.cartesian_prod(*[weights / weights.sum()] * d).reshape(-1, d).prod(-1)
    return torch.cartesian_prod(*[nodes] * d).reshape(-1, d), product


def log_data(x):
    """The unknown law p: two unequal bumps along the first coordinate."""
    modes = [(-1.2, 0.7, 0.35), (1.0, 0.8, 0.65)]
    zero = x.new_zeros(())
    bumps = [
        math.log(share) + gaussian(x, loc, zero + math.log(sd))  # the same in every coordinate
        for loc, sd, share in modes
    ]
    return torch.logaddexp(*bumps)


def log_density(x, theta):
    """log p~ = log N(x; 0, 1.5^2) - E, three factors."""
    factors = torch.stack(
        [x[:, 0], 0.5 * x[:, -1].square(), torch.sin(x[:, 0] + 2 * x[:, -1])], -1
    )
    return gaussian(x, 0.0, x.new_full((1,), math.log(1.5))) - factors @ theta


def start_phi(d):
    """Location and log scale of the Gaussian generator."""
    loc, log_scale = torch.tensor([0.4, -0.2], dtype=F64), torch.tensor([0.1, 0.3], dtype=F64)
    return torch.stack([loc[:d], log_scale[:d]]).requires_grad_()


def log_q(x, phi):
    return gaussian(x, phi[0], phi[1])


def expectation(loss, data, draws):
    """E of a loss that is a mean over data plus a mean over draws, each (log weights, weights)."""
    ref = torch.zeros(1, dtype=F64)
    of_data = torch.vmap(lambda row: loss(row, ref))(data[0].unsqueeze(-1))
    of_draws = torch.vmap(lambda row: loss(ref, row))(draws[0].unsqueeze(-1))
    return data[1] @ of_data + draws[1] @ of_draws - loss(ref, ref)


def mean_of(loss, rows, weights):
    """E of a loss that is a mean over rows; `rows` are tensors of shape (n,)."""
    return weights @ torch.vmap(loss)(*(row.unsqueeze(-1) for row in rows))


def integral(log_f, d):
    return log_f.exp().sum() * grid(d)[1]


def grad(loss, *inputs):
    return torch.autograd.grad(loss, inputs, create_graph=True)


def argmin(loss, b=0.5):
    """Newton's method in one number."""
    b = torch.tensor(b, dtype=F64, requires_grad=True)
    for _ in range(30):
        (slope,) = grad(loss(b), b)
        (curvature,) = grad(slope, b)
        b = (b - slope / curvature).detach().requires_grad_()
    return b.detach()


def close(actual, expected, tolerance=1e-6):
    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance)


def discriminator_loss(losses, log_w, p, q, b, nu=1.0):
    return expectation(
        lambda data, draws: losses.discriminator(data, draws, b, nu), (log_w, p), (log_w, q)
    )


def on_the_grid(d, theta=THETA):
    """log p~; log q; the probabilities of p and q in every cell."""
    x, cell = grid(d)
    log_dens, log_gen = log_density(x, theta), log_q(x, start_phi(d).detach())
    return log_dens, log_gen, log_data(x).exp() * cell, log_gen.exp() * cell


# Claim 1 ---------------------------------------------------------------------------------------
def claim_1_offset_solves_the_bridge_equation(losses, d):
    log_dens, log_gen, p, q = on_the_grid(d)
    log_w = log_dens - log_gen
    for nu in (1.0, 3.0):
        b = argmin(lambda b, nu=nu: discriminator_loss(losses, log_w, p, q, b, nu))
        decision = torch.sigmoid(losses.discriminator_logit(log_w, b, nu))
        close(p @ (1 - decision), nu * (q @ decision))
        z, dens, gen = torch.ones((), dtype=F64), log_dens.exp(), log_gen.exp()
        for _ in range(100):  # Z = E_m[p~ / m~], m = (p + nu q) / (1 + nu)
            mixture = (dens / z + nu * gen) / (1 + nu)
            z = ((p + nu * q) / (1 + nu)) @ (dens / mixture)
        close(b.exp(), z, 1e-5)
        log_z = integral(log_dens, d).log()
        assert (b - log_z).abs() > 0.02  # p is not p_theta: b is a gauge, not log Z


def claim_1_offset_is_log_z_at_the_data_law(losses, d):
    log_dens, log_gen, _, q = on_the_grid(d)
    z = integral(log_dens, d)
    p = log_dens.exp() * grid(d)[1] / z
    for nu in (1.0, 3.0):
        b = argmin(lambda b, nu=nu: discriminator_loss(losses, log_dens - log_gen, p, q, b, nu))
        close(b, z.log())


# Claim 2 ---------------------------------------------------------------------------------------
def claim_2_gradient_is_mixture_importance_sampling(losses, d):
    theta = THETA.clone().requires_grad_()
    log_dens, log_gen, p, q = on_the_grid(d, theta)
    for nu in (1.0, 3.0):
        fixed = (log_dens - log_gen).detach()
        b = argmin(lambda b, nu=nu, fixed=fixed: discriminator_loss(losses, fixed, p, q, b, nu))
        loss = discriminator_loss(losses, log_dens - log_gen, p, q, b, nu)
        (actual,) = grad(loss, theta)
        m = (p + nu * q) / (1 + nu)
        mixture = (log_dens.exp() / b.exp() + nu * log_gen.exp()) / (1 + nu)
        # E_p[grad E] - E_m[(p~/Z)/m~ grad E], as the gradient of E_p[E] + E_m[(p~/Z)/m~]
        irl = -p @ log_dens + m @ (log_dens.exp() / b.exp() / mixture.detach())
        (expected,) = grad(irl, theta)
        close(actual, expected)
        through = -p @ log_dens + m @ (log_dens.exp() / b.exp() / mixture)
        (wrong,) = grad(through, theta)
        assert (actual - wrong).abs().max() > 0.01


# Claim 3 ---------------------------------------------------------------------------------------
def claim_3_generator_loss_is_reverse_kl(losses, d):
    phi, b = start_phi(d), torch.tensor(0.7, dtype=F64)
    eps, weights = hermite(d)
    draws = phi[0] + phi[1].exp() * eps
    log_w = log_density(draws, THETA) - log_q(draws, phi)
    loss = mean_of(losses.reverse_kl, [log_w], weights)
    x, cell = grid(d)
    log_dens, log_gen = log_density(x, THETA), log_q(x, phi)
    log_z = integral(log_dens, d).log()
    kl = (log_gen.exp() * (log_gen - log_dens + log_z)).sum() * cell
    close(loss, kl - log_z)
    close(grad(loss, phi), grad(kl, phi))
    logit = losses.discriminator_logit(log_w, b)
    both = weights @ (logsigmoid(-logit) - logsigmoid(logit))  # log(1 - D) - log D
    close(both, kl + b - log_z)
    close(grad(both, phi), grad(kl, phi))
    for half in (-logsigmoid(logit), logsigmoid(-logit)):  # neither term of the GAN alone
        assert (grad(weights @ half, phi)[0] - grad(kl, phi)[0]).abs().max() > 1e-3
    without_log_q = mean_of(losses.reverse_kl, [log_density(draws, THETA)], weights)
    pull = grad(without_log_q, phi)[0] - grad(kl, phi)[0]
    close(pull, torch.tensor([[0.0], [1.0]], dtype=F64).expand(2, d))  # shrinks q without end


# The optimum -----------------------------------------------------------------------------------
def optimum_is_two_log_two(losses, d):
    theta = THETA.clone().requires_grad_()
    log_dens, _, _, _ = on_the_grid(d, theta)
    z = integral(log_dens, d).detach()
    p = log_dens.detach().exp() * grid(d)[1] / z
    b = z.log().requires_grad_()
    log_w = log_dens - (log_dens - z.log()).detach()  # q = p_theta, not a function of theta
    for nu, value in ((1.0, 2 * math.log(2)), (3.0, 4 * math.log(4) - 3 * math.log(3))):
        loss = discriminator_loss(losses, log_w, p, p, b, nu)
        close(loss, torch.tensor(value, dtype=F64))
        slopes = grad(loss, theta, b)
        close(slopes, tuple(torch.zeros_like(slope) for slope in slopes))
        decision = torch.sigmoid(losses.discriminator_logit(log_w, b, nu))
        close(decision, torch.full_like(decision, 1 / (1 + nu)))  # accuracy 1/2 at nu = 1


# Energy objectives -----------------------------------------------------------------------------
def likelihood_gradient(theta, d):
    """-E_p[log p_theta] and its gradient."""
    log_dens, _, p, _ = on_the_grid(d, theta)
    return grad(integral(log_dens, d).log() - p @ log_dens, theta)


def importance_is_maximum_likelihood(losses, d):
    theta, b = THETA.clone().requires_grad_(), torch.tensor(5.0, dtype=F64)
    log_dens, log_gen, p, _ = on_the_grid(d, theta)
    log_cell_law = -math.log(len(log_dens)) - grid(d)[1].log()
    flat = log_dens - log_cell_law  # the points of the grid are draws of the uniform law

    def of_one_datum(log_w):
        return losses.importance(log_w, flat, b, 2.0)

    loss = mean_of(of_one_datum, [log_dens - log_gen], p)
    close(loss, integral(log_dens, d).log() - p @ (log_dens - log_gen))
    close(grad(loss, theta), likelihood_gradient(theta, d))
    # With draws of q = p_theta every weight is the same: the plain difference of two means.
    few, rows = log_dens[::7], slice(3, None, 11)
    loss = losses.importance(log_dens[rows] - log_gen[rows], few - few.detach(), b)
    close(grad(loss, theta), grad(few.mean() - log_dens[rows].mean(), theta))


def normalised_offset_is_log_z(losses, d):
    theta = THETA.clone().requires_grad_()
    log_dens, log_gen, p, q = on_the_grid(d, theta)
    log_z = integral(log_dens, d).log()

    def loss(b, log_w):
        return expectation(
            lambda data, draws: losses.normalised(data, draws, b, 3.0), (log_w, p), (log_w, q)
        )

    fixed = (log_dens - log_gen).detach()
    b = argmin(lambda b: loss(b, fixed), log_z.item() + 0.3)
    close(b, log_z.detach())
    at_minimum = loss(b, log_dens - log_gen)
    close(at_minimum, log_z - p @ (log_dens - log_gen))
    close(grad(at_minimum, theta), likelihood_gradient(theta, d))


# Generator losses ------------------------------------------------------------------------------
def weighted_forward_kl_is_forward_kl(losses, d):
    theta, phi = THETA.clone().requires_grad_(), start_phi(d)
    x, _ = grid(d)
    log_dens = log_density(x, theta)
    loss = losses.weighted_forward_kl(log_q(x, phi), log_dens)  # draws of the uniform law
    p_theta = torch.softmax(log_dens, 0).detach()
    close(loss, -p_theta @ log_q(x, phi))
    close(grad(loss, phi), grad(-p_theta @ log_q(x, phi), phi))
    assert torch.autograd.grad(loss, theta, allow_unused=True) == (None,)  # weights: constants


def generalised_forward_kl_is_forward_kl(losses, d):
    phi, m = start_phi(d), start_phi(d).detach() + 0.2  # rows from a wider generator, moved
    x, cell = grid(d)
    log_m, log_p = log_q(x, m), log_density(x, THETA)
    log_w = log_p - log_m - torch.log(integral(log_p, d))
    theta = log_w.clone().requires_grad_()
    parts = (theta, log_m, log_q(x, phi))
    loss = mean_of(
        lambda log_w, log_m, log_q: losses.generalised_forward_kl(log_q, log_w, log_m),
        parts,
        log_m.exp() * cell,
    )
    p_theta = torch.softmax(log_p, 0)
    close(loss, 1 - p_theta @ log_q(x, phi))
    close(grad(loss, phi), grad(-p_theta @ log_q(x, phi), phi))
    assert torch.autograd.grad(loss, theta, allow_unused=True) == (None,)  # weights: constants


def generalised_forward_kl_is_silent_at_the_optimum(losses, d):
    phi = start_phi(d)
    rows, _ = hermite(d)
    scored = log_q(rows, phi)
    # q is p_theta: not only on average, but at every single row.
    log_m = scored.detach() + 0.3 * torch.sin(rows.sum(-1))
    loss = losses.generalised_forward_kl(scored, scored.detach() - log_m, log_m)
    (slopes,) = torch.autograd.grad(loss, scored)
    close(slopes, torch.zeros_like(slopes), 1e-12)


def score_function_gradient_is_reverse_kl(losses, d):
    phi = start_phi(d)
    eps, weights = hermite(d)
    x = (phi[0] + phi[1].exp() * eps).detach()
    scores, log_w = log_q(x, phi), log_density(x, THETA) - log_q(x, phi)
    first, second = torch.cartesian_prod(*[torch.arange(len(x))] * 2).unbind(-1)
    of_pairs = torch.vmap(losses.score_function)(
        torch.stack([scores[first], scores[second]], -1),
        torch.stack([log_w[first], log_w[second]], -1),
    )
    surrogate = (weights[first] * weights[second]) @ of_pairs
    draws = phi[0] + phi[1].exp() * eps
    kl = weights @ (log_q(draws, phi) - log_density(draws, THETA))
    close(grad(surrogate, phi), grad(kl, phi))


def jensen_is_minus_the_discriminator(losses, d):
    phi, b = start_phi(d), torch.tensor(0.2, dtype=F64)
    x, cell = grid(d)
    log_dens, log_gen, p = log_density(x, THETA), log_q(x, phi), log_data(x).exp() * cell
    weights = gaussian(x, 0.0, x.new_zeros(d)).exp() * cell  # of eps, on the same grid
    draws = phi[0] + phi[1].exp() * x
    log_w_draws = log_density(draws, THETA) - log_q(draws, phi)
    for nu in (1.0, 3.0):
        loss = expectation(
            lambda data, draws, nu=nu: losses.jensen(data, draws, b, nu),
            (log_dens - log_gen, p),
            (log_w_draws, weights),
        )
        logit = log_dens - log_gen - b - math.log(nu)
        value = p @ logsigmoid(logit) + nu * (log_gen.exp() * cell) @ logsigmoid(-logit)
        close(loss, value)
        close(grad(loss, phi), grad(value, phi))


def jensen_at_the_best_energy_is_jensen_shannon(losses, d):
    x, cell = grid(d)
    phi = start_phi(d).detach()
    log_p, log_gen = log_data(x), log_q(x, phi)
    p, q = log_p.exp() * cell, log_gen.exp() * cell
    loss = expectation(
        lambda data, draws: losses.jensen(data, draws, 0.0),
        (log_p - log_gen, p),
        (log_p - log_gen, q),
    )
    log_m = torch.logaddexp(log_p, log_gen) - math.log(2)
    divergence = 0.5 * (p @ (log_p - log_m) + q @ (log_gen - log_m))
    close(loss, 2 * divergence - 2 * math.log(2))


def mixture_weights_follow_their_formula(losses, d):
    theta = THETA.clone().requires_grad_()
    log_dens, log_gen, _, _ = on_the_grid(d, theta)
    z = integral(log_dens, d).item()
    for n_data in (0, 1, len(log_dens) // 3):
        log_w = losses.mixture_log_weights(log_dens, log_gen, math.log(z), n_data)
        assert not log_w.requires_grad
        share = n_data / len(log_dens)
        mixture = share * log_dens.detach().exp() / z + (1 - share) * log_gen.exp()
        close(log_w.exp() * mixture, log_dens.detach().exp() / z)
        # E_m~[p~ / m~] = 1 at b = log Z
        close((log_w.exp() * mixture).sum() * grid(d)[1], torch.ones((), dtype=F64))
    shifted = losses.mixture_log_weights(log_dens, log_gen, 0.0, 0)
    close(shifted, (log_dens - log_gen).detach())


CHECKS = [
    claim_1_offset_solves_the_bridge_equation,
    claim_1_offset_is_log_z_at_the_data_law,
    claim_2_gradient_is_mixture_importance_sampling,
    claim_3_generator_loss_is_reverse_kl,
    optimum_is_two_log_two,
    importance_is_maximum_likelihood,
    normalised_offset_is_log_z,
    weighted_forward_kl_is_forward_kl,
    generalised_forward_kl_is_forward_kl,
    generalised_forward_kl_is_silent_at_the_optimum,
    score_function_gradient_is_reverse_kl,
    jensen_is_minus_the_discriminator,
    jensen_at_the_best_energy_is_jensen_shannon,
    mixture_weights_follow_their_formula,
]


@pytest.mark.parametrize("d", [1, 2])
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_claim(check, d):
    check(real_losses, d)
