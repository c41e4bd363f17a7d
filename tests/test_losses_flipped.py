"""Every sign of losses.py flipped, one at a time: some check of test_losses.py must fail."""

import inspect
import types

import pytest
import test_losses as claims
import torch

from ebm_pp import losses as real_losses

FLIPS = {
    "logit: minus log w": ("return log_weights - offset", "return -log_weights - offset"),
    "logit: plus offset": ("log_weights - offset - math", "log_weights + offset - math"),
    "logit: plus log nu": ("offset - math.log(nu)", "offset + math.log(nu)"),
    "logit: no log nu": ("log_weights - offset - math.log(nu)", "log_weights - offset"),
    "discriminator: data": ("softplus(-data)", "softplus(data)"),
    "discriminator: draws": ("softplus(draws)", "softplus(-draws)"),
    "discriminator: minus draws": ("+ nu * softplus", "- nu * softplus"),
    "discriminator: no nu": ("+ nu * softplus", "+ softplus"),
    "importance: plus data": ("log_mean - log_weights_data", "log_mean + log_weights_data"),
    "importance: minus log mean": ("return log_mean - log", "return -log_mean - log"),
    "importance: plus log n": ("(0) - math.log(len", "(0) + math.log(len"),
    "normalised: plus data": ("1 - log_weights_data", "1 + log_weights_data"),
    "normalised: exp(w + b)": ("(log_weights_draws - offset)", "(log_weights_draws + offset)"),
    "normalised: exp(-w)": ("exp(log_weights_draws -", "exp(-log_weights_draws -"),
    "normalised: minus b": ("return offset + ratio", "return -offset + ratio"),
    "normalised: minus ratio": ("offset + ratio", "offset - ratio"),
    "reverse KL": ("return -log_weights_draws.mean()", "return log_weights_draws.mean()"),
    "forward KL: value": ("return -(torch.softmax", "return (torch.softmax"),
    "forward KL: 1 / w": ("softmax(log_weights.detach()", "softmax(-log_weights.detach()"),
    "forward KL: live weights": ("softmax(log_weights.detach()", "softmax(log_weights"),
    "generalised: plus log q": ("exp() - known", "exp() + known"),
    "generalised: minus q / m": ("((log_q - log_q_drawn)", "(-(log_q - log_q_drawn)"),
    "generalised: 1 / w": ("weights = log_weights.detach()", "weights = -log_weights.detach()"),
    "generalised: live weights": ("weights = log_weights.detach()", "weights = log_weights"),
    "generalised: q m": ("(log_q - log_q_drawn)", "(log_q + log_q_drawn)"),
    "score function: signal": ("signal = -log_weights", "signal = log_weights"),
    "score function: log q": ("(signal - baseline) * log_q", "(signal - baseline) * -log_q"),
    "score function: own draw in baseline": ("signal.sum() - signal)", "signal.sum())"),
    "jensen": ("return -discriminator(", "return discriminator("),
    "mixture: plus b": ("log_density.detach() - offset", "log_density.detach() + offset"),
    "mixture: live theta": ("log_density.detach() - offset", "log_density - offset"),
    "mixture: n_data = 0": ("return log_p - log_q", "return log_p + log_q"),
    "mixture: no log q": ("log_q + log_share[1]", "0 * log_q + log_share[1]"),
    "mixture: minus log q": ("log_q + log_share[1]", "-log_q + log_share[1]"),
    "mixture: minus m": ("log_p - torch.logaddexp", "log_p + torch.logaddexp"),
    "mixture: minus share": ("log_p + log_share[0]", "log_p - log_share[0]"),
    "mixture: shares swapped": ("math.log(n_data / n), math.log((n - n_data) / n)",
        "math.log((n - n_data) / n), math.log(n_data / n)"),
}  # fmt: skip


def mutated(old, new):
    """The losses with one snippet, which must occur exactly once, replaced."""
    source = inspect.getsource(real_losses)
    assert source.count(old) == 1, f"{old!r} occurs {source.count(old)} times in losses.py"
    module = types.ModuleType("mutated_losses")
    exec(compile(source.replace(old, new), "mutated_losses", "exec"), module.__dict__)
    return module


def failing(losses):
    names = []
    for check in claims.CHECKS:
        try:
            check(losses, 1)
        except AssertionError:
            names.append(check.__name__)
    return names


@pytest.mark.parametrize("flip", FLIPS)
def test_a_flipped_sign_is_caught(flip):
    assert failing(mutated(*FLIPS[flip]))


def test_the_baseline_only_lowers_the_variance():
    assert not failing(mutated("((signal - baseline) * log_q)", "(signal * log_q)"))


def test_the_baseline_does_lower_the_variance():
    eps, weights = claims.hermite(1)
    phi = claims.start_phi(1)
    without = mutated("((signal - baseline) * log_q)", "(signal * log_q)")
    first, second = torch.cartesian_prod(*[torch.arange(len(eps))] * 2).unbind(-1)

    def variance(losses):
        x = (phi[0] + phi[1].exp() * eps).detach()
        log_w = (claims.log_density(x, claims.THETA) - claims.log_q(x, phi)).detach() + 3.0

        def slope(i, j):
            rows = torch.stack([i, j])
            return torch.func.grad(
                lambda phi: losses.score_function(claims.log_q(x[rows], phi), log_w[rows])
            )(phi.detach())

        slopes = torch.vmap(slope)(first, second).flatten(1)
        return (weights[first] * weights[second]) @ slopes.square()

    assert (variance(real_losses) < variance(without)).all()
