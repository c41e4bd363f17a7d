"""One-pass coupling layers: affine, rational-quadratic spline, and both on the circle.

A coupling layer leaves the coordinates x_a alone and moves the rest, x_b, by a monotone map whose
parameters are a function of x_a:

    y_a = x_a,    y_b = t(x_b; c(x_a)),    log|det dy/dx| = sum_b log t'(x_b; c(x_a)).

Since y_a = x_a, the inverse sees the same parameters: either direction costs one pass of the
conditioner c and gives the log-determinant in that pass.

* affine (Dinh et al. 2017, arXiv:1605.08803): t(x) = x exp(s) + m, with s = S tanh(raw / S)
  bounded by S, so that an inverse far out in the tail stays finite; on the circle a rotation.
* spline (Durkan et al. 2019, arXiv:1906.04032, equations 4-8): K rational-quadratic pieces on
  [-B, B], the identity outside; on the circle a rotation followed by a periodic spline
  (Rezende et al. 2020, arXiv:2002.02428), whose slope is the same at both ends: no seam.

The last layer of c starts at zero, where every t is the identity.
"""

import math
from itertools import pairwise

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ebm_pp.circle import wrap

LOG_SCALE_BOUND = 2.5  # S: one affine layer scales by at most e^2.5, about 12
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
    bins = (raw.shape[-2] + 1) // 3
    raw = raw * torch.rsqrt(1 + (raw / RAW_BOUND).square())
    shares, raw_slopes = raw.exp().tensor_split((2 * bins,), -2)  # bounded: exp can't overflow
    shares = shares.unflatten(-2, (2, bins))
    free = 2 * bound * (1 - bins * SMALLEST_BIN)
    sizes = shares * (free / shares.sum(-2, keepdim=True)) + 2 * bound * SMALLEST_BIN
    left = sizes.cumsum(-2) - sizes - bound  # left and lower edges of the bins
    if raw.shape[-2] == 3 * bins:
        slopes = torch.cat([raw_slopes, raw_slopes[..., :1, :]], -2)
    else:
        one = torch.ones_like(raw[..., :1, :])
        slopes = torch.cat([one, raw_slopes, one], -2)
    inside = x.abs() <= bound  # the ends too: on the circle they are a point like any other
    point = torch.where(inside, x, torch.zeros_like(x))  # keeps the unused branch finite
    edges = left[..., 1 if inverse else 0, 1:, :].detach()
    k = (point.detach().unsqueeze(-2) >= edges).sum(-2)
    ends = torch.stack([slopes[..., :-1, :], slopes[..., 1:, :]], -3)
    columns = torch.cat([sizes, left, ends], -3)
    w, h, x_k, y_k, d_k, d_next = _pick(columns, k).unbind(-2)
    y, log_slope = (_piece_inverse if inverse else _piece)(point, w, h, x_k, y_k, d_k, d_next)
    return torch.where(inside, y, x), torch.where(inside, log_slope, torch.zeros_like(x))


def _pick(columns: Float[Tensor, "*b c k n"], k: Int[Tensor, "*b n"]) -> Float[Tensor, "*b c n"]:
    index = k[..., None, None, :].expand(*columns.shape[:-2], 1, -1)
    return columns.gather(-2, index).squeeze(-2)


def _piece(
    x: Tensor, w: Tensor, h: Tensor, x_k: Tensor, y_k: Tensor, d_k: Tensor, d_next: Tensor
) -> tuple[Tensor, Tensor]:
    """Durkan et al. equation 4 and 5, s = h / w, xi = (x - x_k) / w."""
    s, xi = h / w, (x - x_k) / w
    both = xi * (1 - xi)
    below = s + (d_k + d_next - 2 * s) * both
    y = y_k + h * (s * xi.square() + d_k * both) / below
    return y, _log_slope(s, xi, both, below, d_k, d_next)


def _piece_inverse(
    y: Tensor, w: Tensor, h: Tensor, x_k: Tensor, y_k: Tensor, d_k: Tensor, d_next: Tensor
) -> tuple[Tensor, Tensor]:
    """Durkan et al. equations 6-8: xi solves a xi^2 + b xi + c = 0; log dx/dy = -log dy/dx."""
    s, bend = h / w, d_k + d_next - 2 * h / w
    rise = y - y_k
    a, b, c = h * (s - d_k) + rise * bend, h * d_k - rise * bend, -s * rise
    tiny = torch.finfo(y.dtype).tiny  # rounding can make it 0, where the root has no gradient
    discriminant = (b.square() - 4 * a * c).clamp_min(tiny)
    xi = 2 * c / (-b - discriminant.sqrt())
    both = xi * (1 - xi)
    return x_k + xi * w, -_log_slope(s, xi, both, s + bend * both, d_k, d_next)


def _log_slope(
    s: Tensor, xi: Tensor, both: Tensor, below: Tensor, d_k: Tensor, d_next: Tensor
) -> Tensor:
    above = d_next * xi.square() + 2 * s * both + d_k * (1 - xi).square()
    return 2 * s.log() + above.log() - 2 * below.log()


class Coupling(nn.Module):
    """One coupling layer over d coordinates, some of which may be angles.

    Args:
        moved: which of the d coordinates are x_b.
        circular: which of the d coordinates are angles in [-pi, pi).
        bins: K pieces of a spline; 0 makes the layer affine.
        hidden: widths of the conditioner's hidden layers.
        bound: B of the splines on the line (on the circle it is pi).
    """

    moved: Tensor
    kept: Tensor
    back: Tensor

    def __init__(
        self,
        moved: Tensor,
        circular: Tensor,
        *,
        bins: int = 0,
        hidden: tuple[int, ...] = (64, 64),
        bound: float = 5.0,
    ) -> None:
        super().__init__()
        self.bins, self.bound = bins, bound
        self.n_line = int((moved & ~circular).sum())
        self.n_circle = int((moved & circular).sum())
        groups = [moved & ~circular, moved & circular, ~moved & ~circular, ~moved & circular]
        order = torch.cat([mask.nonzero()[:, 0] for mask in groups])  # angles after lines
        self.register_buffer("moved", order[: self.n_line + self.n_circle])
        self.register_buffer("kept", order[self.n_line + self.n_circle :])
        self.register_buffer("back", order.argsort())
        self.widths = (3 * bins - 1, 3 * bins + 1) if bins else (2, 1)  # parameters a coordinate
        self.n_kept_line = int((~moved & ~circular).sum())
        n_features = self.n_kept_line + 2 * int((~moved & circular).sum())
        n_out = self.n_line * self.widths[0] + self.n_circle * self.widths[1]
        sizes = (n_features, *hidden) if n_features else ()
        layers: list[nn.Module] = []
        for size_in, size_out in pairwise(sizes):
            layers += [nn.Linear(size_in, size_out), nn.ReLU()]
        last = nn.Linear(sizes[-1] if sizes else 1, n_out)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.conditioner = nn.Sequential(*layers, last)

    def forward(self, x: Float[Tensor, "n d"]) -> tuple[Float[Tensor, "n d"], Float[Tensor, " n"]]:
        """(y, log|det dy/dx|)."""
        return self._move(x, inverse=False)

    def inverse(self, y: Float[Tensor, "n d"]) -> tuple[Float[Tensor, "n d"], Float[Tensor, " n"]]:
        """(x, log|det dx/dy|)."""
        return self._move(y, inverse=True)

    def _move(self, x: Tensor, *, inverse: bool) -> tuple[Tensor, Tensor]:
        x = x.T  # rows last: splines run over contiguous numbers
        line, circle = x[self.moved].tensor_split((self.n_line,))
        kept = x[self.kept]
        raw_line, raw_circle = self._parameters_of(kept).tensor_split(
            (self.n_line * self.widths[0],)
        )
        log_slopes = []
        if self.n_line:
            raw_line = raw_line.unflatten(0, (self.n_line, self.widths[0]))
            line, log_slope = self._move_line(line, raw_line, inverse=inverse)
            log_slopes.append(log_slope.sum(0))
        if self.n_circle:
            raw_circle = raw_circle.unflatten(0, (self.n_circle, self.widths[1]))
            circle, log_slope = self._move_circle(circle, raw_circle, inverse=inverse)
            log_slopes.append(log_slope.sum(0))
        log_det = sum(log_slopes[1:], log_slopes[0])
        return torch.cat([line, circle, kept])[self.back].T, log_det

    def _parameters_of(self, kept: Tensor) -> Float[Tensor, "p n"]:
        """The conditioner c of the kept coordinates; angles enter as cosine and sine."""
        last = self.conditioner[-1]
        if not len(kept):  # nothing to condition on: the map's parameters are free numbers
            features = kept.new_ones(kept.shape[1], 1)
        else:
            line, angle = kept.tensor_split((self.n_kept_line,))
            features = torch.cat([line, angle.cos(), angle.sin()]) if len(angle) else line
            features = self.conditioner[:-1](features.T)
        return torch.addmm(last.bias.unsqueeze(1), last.weight, features.T)

    def _move_line(self, x: Tensor, raw: Tensor, *, inverse: bool) -> tuple[Tensor, Tensor]:
        if self.bins:
            return rational_quadratic(x, raw, self.bound, inverse=inverse)
        shift, raw_scale = raw.unbind(1)
        s = LOG_SCALE_BOUND * torch.tanh(raw_scale / LOG_SCALE_BOUND)
        return ((x - shift) * torch.exp(-s), -s) if inverse else (x * torch.exp(s) + shift, s)

    def _move_circle(self, x: Tensor, raw: Tensor, *, inverse: bool) -> tuple[Tensor, Tensor]:
        rotation = raw[:, 0]
        if not self.bins:
            return wrap(x - rotation if inverse else x + rotation), torch.zeros_like(x)
        if inverse:
            x, log_slope = rational_quadratic(x, raw[:, 1:], math.pi, inverse=True)
            return wrap(x - rotation), log_slope
        return rational_quadratic(wrap(x + rotation), raw[:, 1:], math.pi, inverse=False)
