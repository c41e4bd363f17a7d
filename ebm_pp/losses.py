"""The paper's equations, one function each ([F16] = Finn et al. 2016, arXiv:1611.03852).

Letters: p~ = exp(log_density), q the generator (or its mixture with the base measure), b the
offset, log w = log p~ - log q. Every function takes vectors over rows and returns a scalar. "data"
are rows of the unknown law p, "draws" rows of q. nu is the number of draws per datum.

Sign trap: [F16] section 4 prints sigmoid(E - log q); the right form is sigmoid(-E - b - log q).
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import softplus

Rows = Float[Tensor, " n"]
Draws = Float[Tensor, " m"]
Scalar = Float[Tensor, ""]


def discriminator_logit(
    log_weights: Rows, offset: float | Scalar, nu: float = 1.0
) -> Float[Tensor, " n"]:
    """The logit of D, a = log p~ - log q - b - log nu; positive says "data" ([F16] 3.1)."""
    return log_weights - offset - math.log(nu)


def discriminator(
    log_weights_data: Rows, log_weights_draws: Draws, offset: float | Scalar, nu: float = 1.0
) -> Scalar:
    """L_D = E_p[softplus(-a)] + nu E_q[softplus(a)] ([F16] equation 2; only from logits).

    With q fixed this is noise-contrastive estimation (Gutmann & Hyvarinen 2012).
    """
    data = discriminator_logit(log_weights_data, offset, nu)
    draws = discriminator_logit(log_weights_draws, offset, nu)
    return softplus(-data).mean() + nu * softplus(draws).mean()


def importance(
    log_weights_data: Rows,
    log_weights_draws: Draws,
    offset: float | Scalar,
    nu: float = 1.0,
) -> Scalar:
    """-E_p[log p~ - log q] + log E_q[w]: guided cost learning ([F16] section 2.3.2).

    The term E_p[log q] does not depend on the energy; it makes the value a KL estimate. The loss
    is minus the log-likelihood with log Z by importance sampling. The log of a minibatch's mean
    is too low by about var(w) / (2 m): for exact weights take many draws a step (nu). It has no
    offset and no nu itself; they stand in the signature that all objectives share.
    """
    log_mean = log_weights_draws.logsumexp(0) - math.log(len(log_weights_draws))
    return log_mean - log_weights_data.mean()


def normalised(
    log_weights_data: Rows,
    log_weights_draws: Draws,
    offset: float | Scalar,
    nu: float = 1.0,
) -> Scalar:
    """-E_p[log p~ - log q] + b + exp(-b) E_q[w] - 1 (arXiv:2503.07021): its argmin b is log Z."""
    ratio = torch.exp(log_weights_draws - offset).mean()
    return offset + ratio - 1 - log_weights_data.mean()


def likelihood(
    log_weights_data: Rows,
    log_weights_draws: Draws,
    offset: float | Scalar,
    nu: float = 1.0,
) -> Scalar:
    """-E_p[log p~] + E_q[log p~], whose gradient is E_p[grad E] - E_q[grad E].

    The gradient of minus the log-likelihood where q is p_theta (for trajectories: where the policy
    is soft-optimal for the cost; Ziebart 2010); its value means nothing elsewhere. No weights, no
    log Z, no offset.
    """
    return log_weights_draws.mean() - log_weights_data.mean()


def reverse_kl(log_weights_draws: Rows) -> Scalar:
    """E_q[log q - log p~] = KL(q || p_theta) - log Z ([F16] section 3.3: L_G up to b).

    Pathwise: the draws are g_phi(eps) and the gradient runs through both x and log q(x). Without
    the log q term q collapses on the mode.
    """
    return -log_weights_draws.mean()


def weighted_forward_kl(log_q: Rows, log_weights: Rows) -> Scalar:
    """-sum_i w_i log q(x_i), w self-normalised, constant: maximum likelihood on draws of p_theta.

    It is the importance sampling of [F16] section 2.3.2, turned on the generator, and needs log q
    only.
    """
    return -(torch.softmax(log_weights.detach(), 0) * log_q).sum()


def generalised_forward_kl(log_q: Rows, log_weights: Rows, log_q_drawn: Rows) -> Scalar:
    """-mean w log q + mean q / m: KL(p_theta || q) + int q, for rows drawn from a density m.

    The second term is 1 whatever q is, so the minimum is that of maximum likelihood; but at every
    single row the gradient is (q / m - w) grad log q, nothing where q = p_theta: no noise is left
    there, which maximum likelihood on resampled rows keeps.

    Args:
        log_q: of rows drawn from m, an earlier q.
        log_weights: log p_theta / m of these rows, normalised to mean 1 of w.
        log_q_drawn: log m. A row that q has since made e^5 times likelier counts as constant.
    """
    weights = log_weights.detach().exp()
    known = torch.where(weights > 0, weights * log_q, 0.0)  # no mass counts nothing, wherever q is
    return ((log_q - log_q_drawn).clamp_max(5.0).exp() - known).mean()


def score_function(log_q: Rows, log_weights: Rows) -> Scalar:
    """A surrogate whose gradient is reverse_kl's, from draws that carry no gradient.

    E_q[(-log w - c) grad log q], with the leave-one-out mean as the baseline c (Kool et al. 2019).
    """
    signal = -log_weights.detach()
    baseline = (signal.sum() - signal) / (len(signal) - 1)
    return ((signal - baseline) * log_q).mean()


def clipped_score(log_pi: Rows, log_pi_drawn: Rows, advantages: Rows, clip: float = 0.2) -> Scalar:
    """The policy's score-function loss over steps, for several updates on the same draws.

    -E[min(rho A, clip(rho, 1 - clip, 1 + clip) A)], rho = pi / pi_drawn (Schulman et al. 2017,
    arXiv:1707.06347). A holds the entropy: it is a (lambda-weighted) sum of the soft advantages
    l_t = -c - log pi + next_t - h_t of this and later steps, so that at rho = 1 the gradient is
    that of KL(q || p_theta), and 0 for every draw of a soft-optimal policy.
    """
    rho = (log_pi - log_pi_drawn).exp()
    gain = torch.minimum(rho * advantages, rho.clamp(1 - clip, 1 + clip) * advantages)
    return -gain.mean()


def jensen(
    log_weights_data: Rows, log_weights_draws: Draws, offset: float | Scalar, nu: float = 1.0
) -> Scalar:
    """-L_D as the generator's loss, through log q at the data and at its own draws.

    Flow contrastive estimation (Gao et al. 2020, arXiv:1912.00589): at the optimal p~ the
    generator minimises the Jensen-Shannon divergence from the data.
    """
    return -discriminator(log_weights_data, log_weights_draws, offset, nu)


def mixture_log_weights(
    log_density: Rows, log_q: Rows, offset: float, n_data: int
) -> Float[Tensor, " n"]:
    """Log p~ / m~ of a pool of data (the first `n_data` rows) and draws (the others).

    m~ = [n_d p~ / e^b + n_g q] / (n_d + n_g): [F16] section 2.3.2, the data taken as draws of
    p_theta. With n_data = 0 these are the log weights up to b. Constant in theta by intent: the
    gradient must not run through m~.
    """
    n = len(log_q)
    log_p = log_density.detach() - offset
    if not n_data:
        return log_p - log_q
    log_share = math.log(n_data / n), math.log((n - n_data) / n)
    return log_p - torch.logaddexp(log_p + log_share[0], log_q + log_share[1])
