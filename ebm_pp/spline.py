"""Monotone rational-quadratic splines, their derivative in closed form.

A spline maps [-B, B] onto itself by K pieces and is the identity outside (Durkan et al. 2019,
arXiv:1906.04032). Piece k runs from the knot (x_k, y_k) to (x_k + w, y_k + h) with slopes d_k and
d_next there. With s = h / w, xi = (x - x_k) / w, zeta = 1 - xi, a = d_k / s and b = d_next / s,
their equations 4 and 5 become sums of positive numbers, which lose no digits:

    P = zeta + b xi,    Q = xi + a zeta,    D = xi Q + zeta P,       A = xi P + zeta Q,
    eta = xi Q / D,     y = y_k + h eta,    d eta / d xi = A / D^2 = g,    log dy/dx = log s g = L.

So does the inverse, their equations 6-8: with beta = b eta - a (1 - eta),

    xi : zeta = eta + (R + beta) / 2 : 1 - eta + (R - beta) / 2,    R^2 = beta^2 + 4 eta (1 - eta).

Knots are linear in the K widths and heights before these are scaled to fill the box: one constant
matrix makes the table of all knots, and its transpose takes gradients back.
"""

import functools
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

SMALLEST_BIN = 1e-3  # of the box, so that no piece of a spline degenerates
RAW_BOUND = 5.0  # keeps bins and slopes within e^5 of the identity's: invertible in float32


def rational_quadratic(
    x: Float[Tensor, "*b n"], raw: Float[Tensor, "*b p n"], bound: float, *, inverse: bool
) -> tuple[Float[Tensor, "*b n"], Float[Tensor, "*b n"]]:
    """A monotone rational-quadratic spline from [-B, B] to itself, elementwise.

    Rows come last: every step is then one pass over contiguous numbers.

    Args:
        x: points; those outside [-B, B] are returned as they are, with slope 1.
        raw: p = 3 K - 1 unconstrained numbers a point (K widths, K heights, K - 1 slopes; slope 1
            at both ends), or p = 3 K for a periodic spline (slopes at -B and B are the same).
        bound: B.
        inverse: apply the inverse map.

    Returns:
        (y, log dy/dx), each of the shape of x.
    """
    # Under `vmap` and the like, torch differentiates the expression itself.
    if torch.is_grad_enabled() and not torch._C._are_functorch_transforms_active():
        return _Spline.apply(x, raw, bound, inverse)
    return _evaluate(x, raw, bound, inverse)[0]


@functools.lru_cache(maxsize=64)
def _matrices(
    bins: int, periodic: bool, bound: float
) -> tuple[Float[np.ndarray, "rows p"], Float[np.ndarray, "p rows"]]:
    """The matrix from exp(raw) to the table of knots, and from the table's gradient back.

    Rows of the table: K + 1 knots x_k and as many y_k, each times its rate; K + 1 slopes; rate_x
    and rate_y. A rate, (sum of exp(raw)) / 2 B, is the scale at which knots are linear in
    exp(raw). The second matrix is the transpose with the signs that `_Spline.backward` leaves out.
    """
    rows = bins + 1
    knots = (1 - bins * SMALLEST_BIN) * np.tril(np.ones((rows, bins)), -1)
    knots += SMALLEST_BIN * np.arange(rows)[:, None] - 0.5
    matrix = np.zeros((3 * rows + 2, 3 * bins - 1 + periodic))
    for axis in range(2):
        columns = slice(axis * bins, (axis + 1) * bins)
        matrix[axis * rows : (axis + 1) * rows, columns] = knots
        matrix[3 * rows + axis, columns] = 1 / (2 * bound)
    for knot in range(rows) if periodic else range(1, bins):  # else the ends' slopes are 1
        matrix[2 * rows + knot, 2 * bins + (knot % bins if periodic else knot - 1)] = 1
    signs = np.repeat([-1.0, 1.0, -1.0, 1.0, -1.0], [rows, rows, rows, 1, 1])
    return matrix, matrix.T * signs


def _matrix(raw: Tensor, bound: float, *, back: bool = False) -> Tensor:
    """One of `_matrices`, made anew: a tensor belongs to the modes in which it was made.

    Kept from one call to the next, a tensor of torch's fake mode would spoil all later ones.
    """
    p = raw.shape[-2]
    found = _matrices((p + 1) // 3, p % 3 == 0, float(bound))[back]
    return torch.from_numpy(found).to(raw.device, raw.dtype)


def _evaluate(
    x: Tensor, raw: Tensor, bound: float, inverse: bool
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, ...]]:
    """((y, log dy/dx), what the backward pass needs), all of it differentiable by torch too.

    u = x rate_x and v = y rate_y; w and h are also those of the table.
    """
    rows = (raw.shape[-2] + 4) // 3
    root = torch.addcmul(raw.new_ones(()), raw, raw, value=RAW_BOUND**-2).sqrt_()
    shares = (raw / root).exp_()  # bounded: exp can't overflow
    table = torch.matmul(_matrix(raw, bound), shares)
    if raw.shape[-2] % 3:
        table[..., 2 * rows : 3 * rows : rows - 1, :].fill_(1.0)
    rate_x, rate_y = table[..., 3 * rows :, :].unbind(-2)
    point = x.clamp(-bound, bound)
    inside = point == x  # the ends too: on the circle they are a point like any other
    at = point * (rate_y if inverse else rate_x)
    inner = slice(rows + 1, 2 * rows - 1) if inverse else slice(1, rows - 1)
    k = (at.unsqueeze(-2) >= table[..., inner, :]).sum(-2, keepdim=True)
    # Rows of the table for piece 0: both knots, both slopes. Those of piece k are k further down.
    picked = torch.tensor([0, rows, 1, rows + 1, 2 * rows, 2 * rows + 1], device=raw.device)
    index = k + picked.unsqueeze(-1)
    x_k, y_k, x_next, y_next, d_k, d_next = table.gather(-2, index).unbind(-2)
    w, h = x_next - x_k, y_next - y_k
    s = (h * rate_x) / (w * rate_y)
    a, b = d_k / s, d_next / s
    if inverse:
        v = torch.clamp(at, y_k, y_next)  # rounding can leave it just outside
        xi, zeta = _solve((v - y_k) / h, (y_next - v) / h, a, b)
        u = torch.addcmul(x_k, w, xi)
    else:
        u = torch.clamp(at, x_k, x_next)
        xi, zeta = (u - x_k) / w, (x_next - u) / w
    p, q = torch.addcmul(zeta, b, xi), torch.addcmul(xi, a, zeta)
    xi_q = xi * q
    den, above = torch.addcmul(xi_q, zeta, p), torch.addcmul(xi * p, zeta, q)
    eta, g = xi_q / den, above / (den * den)
    log_slope = (s * g).log() * inside
    if inverse:
        y, log_slope = u / rate_x, -log_slope
    else:
        v = torch.addcmul(y_k, h, eta)
        y = v / rate_y
    saved = (
        shares, root, index, inside, rate_x, rate_y, u, v, w, h, s, a, b,
        xi, zeta, p, q, den, above, eta, g,
    )  # fmt: skip
    return (torch.where(inside, y, x), log_slope), saved


def _solve(eta: Tensor, rest: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """(xi, zeta) at a given eta and rest = 1 - eta."""
    beta = torch.addcmul(b * eta, a, rest, value=-1)
    r = torch.addcmul(beta * beta, eta, rest, value=4).sqrt()
    xi, zeta = torch.add(eta, r + beta, alpha=0.5), torch.add(rest, r - beta, alpha=0.5)
    total = xi + zeta
    return xi / total, zeta / total


class _Spline(torch.autograd.Function):
    """The spline as one node of autograd's graph."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401 - autograd's own
        x: Tensor,
        raw: Tensor,
        bound: float,
        inverse: bool,
    ) -> tuple[Tensor, Tensor]:
        outputs, saved = _evaluate(x, raw, bound, inverse)
        ctx.save_for_backward(x, raw, *saved)
        ctx.bound, ctx.inverse = bound, inverse
        return outputs

    @staticmethod
    def backward(
        ctx: Any,  # noqa: ANN401 - autograd's own
        y_bar: Tensor,
        l_bar: Tensor,
    ) -> tuple[Tensor | None, Tensor | None, None, None]:
        """Gradients with respect to x and raw, given those with respect to y and log dy/dx.

        Choose the multipliers u_bar and v_bar such that F does not change with xi:

            F = v_bar (y_k + h eta) - u_bar (x_k + w xi) + l_bar L,
            0 = v_bar h g - u_bar w + l_bar L_xi.

        Forwards v_bar = y_bar / rate_y is given, u_bar follows, and the loss changes by dF; in the
        inverse, whose outputs are x and -L, u_bar is given, v_bar follows, and it changes by -dF.
        What is left are partial derivatives at a fixed xi, with s = h rate_x / (w rate_y):

            eta_a = xi zeta (1 - eta) / D,       eta_b = -xi zeta eta / D,
            L_a = zeta^2 / A - 2 xi zeta / D,    L_b = xi^2 / A - 2 xi zeta / D,
            L_xi = 2 (P - Q) / A - 2 (a + b - 2) (zeta - xi) / D,    s F_s = l_bar - a F_a - b F_b.
        """
        (
            x, raw, shares, root, index, inside, rate_x, rate_y, u, v, w, h, s, a, b,
            xi, zeta, p, q, den, above, eta, g,
        ) = ctx.saved_tensors  # fmt: skip
        if torch.is_grad_enabled():  # of these gradients others will be taken (create_graph)
            with_gradient = [t for t in (x, raw) if t.requires_grad]
            outputs, _ = _evaluate(x, raw, ctx.bound, ctx.inverse)
            found = iter(
                torch.autograd.grad(outputs, with_gradient, (y_bar, l_bar), create_graph=True)
            )
            x_bar, raw_bar = (next(found) if t.requires_grad else None for t in (x, raw))
            return x_bar, raw_bar, None, None
        through, l_bar = y_bar * inside, l_bar * inside
        l_above, l_den = l_bar / above, l_bar / den
        both, apart = xi * zeta, zeta - xi
        bend = torch.sub((a + b) * apart, apart, alpha=2)
        half = torch.addcmul(l_above * (p - q), l_den, bend, value=-1)  # of l_bar L_xi
        if ctx.inverse:
            u_bar = through / rate_x
            pull = torch.sub(u_bar * w, half, alpha=2) / g
            v_bar = pull / h
            x_bar = torch.addcmul(y_bar - through, v_bar, rate_y)
        else:
            v_bar = through / rate_y
            pull = v_bar * h
            u_bar = torch.add(pull * g, half, alpha=2) / w
            x_bar = torch.addcmul(y_bar - through, u_bar, rate_x)
        pull = pull * both / den
        shared = torch.add(pull * eta, l_den * both, alpha=2)
        # From here on -F_a, -F_b, and so for d_k, d_next, x_k, x_next and rate_y.
        a_bar = torch.addcmul(shared - pull, l_above * zeta, zeta, value=-1)
        b_bar = torch.addcmul(shared, l_above * xi, xi, value=-1)
        s_bar = torch.addcmul(torch.addcmul(l_bar, a, a_bar), b, b_bar)  # s F_s
        x_next, y_next = torch.addcmul(s_bar / w, xi, u_bar), torch.addcmul(s_bar / h, eta, v_bar)
        piece = [u_bar - x_next, v_bar - y_next, x_next, y_next, a_bar / s, b_bar / s]
        along_x, along_y = torch.addcmul(s_bar, u_bar, u), torch.addcmul(s_bar, v_bar, v)
        from_table = _matrix(shares, ctx.bound, back=True)
        table = shares.new_zeros(*shares.shape[:-2], from_table.shape[1], shares.shape[-1])
        table.scatter_(-2, index, torch.stack(piece, -2))
        torch.stack([along_x / rate_x, along_y / rate_y], -2, out=table[..., -2:, :])
        raw_bar = torch.matmul(from_table, table).mul_(shares).div_(root.pow(3))
        return x_bar, raw_bar.neg_() if ctx.inverse else raw_bar, None, None
