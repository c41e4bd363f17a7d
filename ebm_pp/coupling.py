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
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ebm_pp.circle import wrap
from ebm_pp.spline import rational_quadratic

FAR = 10.0  # standard deviations, from which on a conditioner sees logarithms
LOG_SCALE_BOUND = 2.5  # S, unless told otherwise: an affine layer scales by at most e^2.5, 12


class Coupling(nn.Module):
    """One coupling layer over d coordinates, some of which may be angles.

    Args:
        moved: which of the d coordinates are x_b.
        circular: which of the d coordinates are angles in [-pi, pi).
        bins: K pieces of a spline; 0 makes the layer affine.
        hidden: widths of the conditioner's hidden layers.
        bound: B of the splines on the line (on the circle it is pi).
        log_scale: S of an affine layer.
    """

    moved: Tensor
    kept: Tensor

    def __init__(
        self,
        moved: Tensor,
        circular: Tensor,
        *,
        bins: int = 0,
        hidden: tuple[int, ...] = (64, 64),
        bound: float = 5.0,
        log_scale: float = LOG_SCALE_BOUND,
    ) -> None:
        super().__init__()
        self.bins, self.bound, self.log_scale = bins, bound, log_scale
        self.n_line = int((moved & ~circular).sum())
        self.n_circle = int((moved & circular).sum())
        groups = [moved & ~circular, moved & circular, ~moved & ~circular, ~moved & circular]
        order = torch.cat([mask.nonzero()[:, 0] for mask in groups])  # angles after lines
        self.register_buffer("moved", order[: self.n_line + self.n_circle])
        self.register_buffer("kept", order[self.n_line + self.n_circle :])
        self.widths = (3 * bins - 1, 3 * bins + 1) if bins else (2, 1)  # parameters a coordinate
        self.n_kept_line = int((~moved & ~circular).sum())
        n_features = self.n_kept_line + 2 * int((~moved & circular).sum())
        n_out = self.n_line * self.widths[0] + self.n_circle * self.widths[1]
        sizes = (n_features, *hidden) if n_features else ()
        layers: list[nn.Module] = []
        for size_in, size_out in pairwise(sizes):
            layers += [nn.Linear(size_in, size_out), nn.ReLU(inplace=True)]
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
        moved = x.index_select(0, self.moved)
        raw = self._parameters_of(x.index_select(0, self.kept))
        if not self.n_circle:
            moved, log_slope = self._move_line(moved, raw, inverse=inverse)
        elif not self.n_line:
            moved, log_slope = self._move_circle(moved, raw, inverse=inverse)
        else:
            line, circle = moved.split((self.n_line, self.n_circle))
            raws = raw.split((self.n_line * self.widths[0], self.n_circle * self.widths[1]))
            line, slope_line = self._move_line(line, raws[0], inverse=inverse)
            circle, slope_circle = self._move_circle(circle, raws[1], inverse=inverse)
            moved, log_slope = torch.cat([line, circle]), torch.cat([slope_line, slope_circle])
        return x.index_copy(0, self.moved, moved).T, log_slope.sum(0)

    def _parameters_of(self, kept: Tensor) -> Float[Tensor, "p n"]:
        """The conditioner c of the kept coordinates; angles enter as cosine and sine.

        Beyond B = `FAR` a coordinate enters as sign(x) B (1 + log(|x| / B)), slope continuous. A
        network goes on linearly where it has seen nothing: from one coordinate far out in a heavy
        tail it would move all others out there too, layer upon layer.
        """
        layers: list[Any] = [*self.conditioner]
        *hidden, last = layers
        if not len(kept):  # nothing to condition on: the map's parameters are free numbers
            return last(kept.new_ones(1, 1)).T.expand(-1, kept.shape[1])
        if self.n_kept_line < len(kept):
            line, angle = kept.split((self.n_kept_line, len(kept) - self.n_kept_line))
            kept = torch.cat([line, angle.cos(), angle.sin()])
        beyond = (kept.abs() / FAR).clamp_min(1.0).log()
        near = kept.clamp(-FAR, FAR)
        features = torch.addcmul(near, near, beyond).T
        for layer in hidden:
            features = layer(features)
        return torch.addmm(last.bias.unsqueeze(1), last.weight, features.T)

    def _move_line(self, x: Tensor, raw: Tensor, *, inverse: bool) -> tuple[Tensor, Tensor]:
        raw = raw.unflatten(0, (self.n_line, self.widths[0]))
        if self.bins:
            return rational_quadratic(x, raw, self.bound, inverse=inverse)
        shift, raw_scale = raw.unbind(1)
        s = self.log_scale * torch.tanh(raw_scale / self.log_scale)
        if inverse:
            return (x - shift) * torch.exp(-s), -s
        return torch.addcmul(shift, x, s.exp()), s

    def _move_circle(self, x: Tensor, raw: Tensor, *, inverse: bool) -> tuple[Tensor, Tensor]:
        raw = raw.unflatten(0, (self.n_circle, self.widths[1]))
        rotation = raw[:, 0]
        if not self.bins:
            return wrap(x - rotation if inverse else x + rotation), torch.zeros_like(x)
        if inverse:
            x, log_slope = rational_quadratic(x, raw[:, 1:], math.pi, inverse=True)
            return wrap(x - rotation), log_slope
        return rational_quadratic(wrap(x + rotation), raw[:, 1:], math.pi, inverse=False)
