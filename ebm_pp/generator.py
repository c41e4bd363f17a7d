"""Generators: samplable, normalised densities q over the sites of a program.

`FlowGenerator` is a stack of coupling layers over standardised unconstrained coordinates,

    x = T(z),   u = (z - loc) / scale,   eps = f_L(...f_1(u)),
    log q(x) = log base(eps) + sum_l log|det df_l| - sum log scale + log|det dz/dx|,

from data to latent: two affine layers, then four spline layers (in the plane two with more bins).
The layers split the coordinates by codes of their index, so that any two coordinates meet.
Angles stay on the circle throughout: they are centred at their mean direction, moved by rotations
and periodic splines, and their base density is uniform.
"""

import math
from collections.abc import Callable
from itertools import combinations
from typing import Any, Protocol, runtime_checkable

import pyro
import torch
from jaxtyping import Bool, Float, Int
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn
from torch.distributions import Normal, StudentT, constraints

from ebm_pp.circle import wrap
from ebm_pp.coupling import LOG_SCALE_BOUND, Coupling
from ebm_pp.data import is_bounded
from ebm_pp.density import EnergyModel, Rows, Sites
from ebm_pp.errors import GeneratorError, ProgramError
from ebm_pp.location import location_and_scale
from ebm_pp.moments import coordinate_names
from ebm_pp.stored import representative
from ebm_pp.support import plain
from ebm_pp.surroundings import alone


@runtime_checkable
class Generator(Protocol):
    """Three names make a generator; no base class.

    `fit` trains it if it is an `nn.Module`. `has_rsample` says whether the
    gradient runs through the draws; `rsample_and_log_prob(n)` returns n draws and their log q,
    `(n,)`; `log_prob(x)` scores any rows. log q is a density of the constrained sites x.
    """

    @property
    def has_rsample(self) -> bool:
        """Whether draws carry a gradient; an attribute will do."""
        ...

    def rsample_and_log_prob(self, n: int) -> tuple[Sites, Float[Tensor, " n"]]:
        """Draws and their log q."""
        ...

    def log_prob(self, x: Sites) -> Float[Tensor, " n"]:
        """Log q of given rows."""
        ...


class FlowGenerator(nn.Module):
    """A normalizing flow over a program's sites, cheap in both directions.

    Args:
        model: the program; only its sites' supports are used.
        start: rows (data, or draws of a base measure) that set location and scale of every
            unconstrained coordinate, at most 100,000 of them taken. Without them location 0 and
            scale 1.
        scale: multiplies the starting scale of the coordinates on the line; above 1 is a wide
            start, the safe side for a given density.
        base: `"normal"`, or `"student_t"` with learned degrees of freedom for heavy tails of the
            sites on the real line. Coordinates of other supports stay normal: the map onto the
            support has tails of its own, and of a Student-t's |z| of 100 it makes 0 or infinity.
        affine: number of affine layers, nearest to the data.
        splines: number of spline layers; 2 in the plane, 4 beyond it, unless given.
        bins: pieces of a spline; 32 in the plane, where one coordinate has to be split into all
            its modes given the other, 8 beyond it, unless given.
        hidden: widths of the hidden layers of each conditioner; (128, 128) in the plane, (64, 64)
            beyond it, unless given.
        bound: half-width of the splines' box, in standard deviations; beyond it they are the
            identity.
        log_scale: largest logarithm by which an affine layer scales. More reaches farther into
            a funnel; less keeps the inverse finite where the data are few.

    Raises:
        DataError: `start` does not fit the program.
        GeneratorError: unknown base; a coordinate of `start` without spread; a trajectory.
    """

    has_rsample = True
    loc: Tensor
    scale: Tensor
    circular: Tensor
    light: Tensor

    def __init__(
        self,
        model: EnergyModel,
        start: Rows | None = None,
        *,
        scale: float = 1.0,
        base: str = "normal",
        affine: int = 2,
        splines: int | None = None,
        bins: int | None = None,
        hidden: tuple[int, ...] | None = None,
        bound: float = 5.0,
        log_scale: float = LOG_SCALE_BOUND,
    ) -> None:
        super().__init__()
        plane = model.dim <= 2
        splines = splines if splines is not None else (2 if plane else 4)
        bins = bins if bins is not None else (32 if plane else 8)
        hidden = tuple(hidden if hidden is not None else (128, 128) if plane else (64, 64))
        if base not in ("normal", "student_t"):
            raise GeneratorError(f"base={base!r}; expected 'normal' or 'student_t'.")
        if model.layout is not None:
            raise GeneratorError(
                f"FlowGenerator: the sites {list(model.sites)[:3]} are of a trajectory, whose "
                "dynamics a flow does not know; expected other sites.\n  Use a PolicyGenerator."
            )
        self.settings: dict[str, Any] = {
            "base": base, "affine": affine, "splines": splines, "bins": bins,
            "hidden": hidden, "bound": bound, "log_scale": log_scale,
        }  # fmt: skip
        self.constrain, self.unconstrain = model.constrain, model.unconstrain
        self.as_rows, self.inside = model.as_rows, model.inside
        self.bounded = any(map(is_bounded, model.sites.values()))
        reference = torch.empty((), dtype=model.dtype, device=model.device)
        loc, spread = _standardise(model, start, reference)
        self.register_buffer("circular", model.circular.clone())
        self.has_angles = bool(model.circular.any())
        # On the line, but with normal tails in a Student-t base too: see `base`.
        self.register_buffer("light", ~(_is_real(model) | model.circular))
        self.register_buffer("loc", loc)
        self.register_buffer("scale", torch.where(self.circular, 1.0, spread * scale))
        kinds = [0] * affine + [bins] * splines
        self.layers = nn.ModuleList(
            Coupling(
                moved.to(model.device),
                self.circular,
                bins=k,
                hidden=hidden,
                bound=bound,
                log_scale=log_scale,
            )
            for moved, k in zip(_moved(model.dim, affine, splines), kinds, strict=True)
        )
        self.raw_df = nn.Parameter(torch.zeros(model.dim)) if base == "student_t" else None
        self.to(reference)
        self.register_load_state_dict_pre_hook(_from_older)

    @alone()
    def rsample_and_log_prob(self, n: int) -> tuple[Sites, Float[Tensor, " n"]]:
        """`n` draws, differentiable in the flow's parameters, and their log q."""
        latent, log_base = self._sample_base(n)
        x, log_det = self._to_sites(latent)
        return x, log_base - log_det

    @alone()
    def log_prob(self, x: Rows) -> Float[Tensor, " n"]:
        """Log q(x) of given rows, with respect to the sites' own reference measure.

        -inf outside of the supports' interior, where rounding can put a draw too; NaN where x is.
        Rows of any container are converted, not checked.

        Args:
            x: Draws or rows, each value `(n, *site_shape)`.
        """
        x = self.as_rows(x)
        z, log_det = self.unconstrain(x)
        u = (z - self.loc) / self.scale
        inside = u.isfinite().all(-1)
        if self.bounded:
            inside = inside & self.inside(x)
        u = torch.where(inside.unsqueeze(-1), u, 0.0)
        log_det = log_det - self.scale.log().sum()
        if self.has_angles:
            u = torch.where(self.circular, wrap(u), u)
        for layer in self.layers:
            u, log_det_layer = layer(u)
            log_det = log_det + log_det_layer
        log_q = torch.where(inside, self._log_base(u) + log_det, -math.inf)
        return torch.where(_unknown(x), math.nan, log_q)

    @alone()
    def latent_to_sites(self, eps: Float[Tensor, "n d"]) -> tuple[Sites, Float[Tensor, " n"]]:
        """A smooth map from R^d onto the sites, and log|dx/deps|: the flow's latent space.

        Angles enter through the normal distribution function, so that eps ~ N(0, I) (or Student-t
        on the line) maps to draws of q; there a sampler of R^d like NUTS can walk.
        """
        normal = Normal(0.0, 1.0)
        angle = 2 * math.pi * normal.cdf(eps) - math.pi
        log_slope = math.log(2 * math.pi) + normal.log_prob(eps)
        latent = torch.where(self.circular, angle, eps)
        x, log_det = self._to_sites(latent)
        return x, log_det + torch.where(self.circular, log_slope, 0.0).sum(-1)

    def _to_sites(self, latent: Tensor) -> tuple[Sites, Tensor]:
        u, log_det = latent, self.scale.log().sum()
        for layer in reversed([*self.layers]):
            u, log_det_layer = layer.inverse(u)
            log_det = log_det + log_det_layer
        x, log_det_constrain = self.constrain(self.loc + self.scale * u)
        return x, log_det + log_det_constrain

    def _base(self) -> Normal | StudentT:
        zero, one = torch.zeros_like(self.loc), torch.ones_like(self.loc)
        if self.raw_df is None:
            return Normal(zero, one)
        # From 2, the safe side, to at most 101, almost normal; ten times as fast as the networks.
        df = 1 + 100 * torch.sigmoid(10 * self.raw_df - math.log(99))
        return StudentT(df, zero, one, validate_args=False)  # the check fails under `vmap`

    def _sample_base(self, n: int) -> tuple[Tensor, Tensor]:
        latent = self._base().rsample((n,))
        if self.raw_df is not None and self.light.any():
            latent = torch.where(self.light, torch.randn_like(latent), latent)
        if self.has_angles:
            angle = 2 * math.pi * torch.rand_like(latent) - math.pi
            latent = torch.where(self.circular, angle, latent)
        return latent, self._log_base(latent)

    def _log_base(self, latent: Tensor) -> Tensor:
        # torch's Normal would check every number first
        log_line = -0.5 * latent.square() - 0.5 * math.log(2 * math.pi)
        if self.raw_df is not None:
            log_line = torch.where(self.light, log_line, self._base().log_prob(latent))
        if self.has_angles:
            log_line = torch.where(self.circular, -math.log(2 * math.pi), log_line)
        return log_line.sum(-1)


def _standardise(
    model: EnergyModel, start: Rows | None, reference: Tensor
) -> tuple[Float[Tensor, " d"], Float[Tensor, " d"]]:
    """Location and spread of the unconstrained coordinates; an angle's location is its mean."""
    if start is None:
        zero = reference.new_zeros(model.dim)
        return zero, torch.ones_like(zero)
    with torch.no_grad():
        z, _ = model.unconstrain(representative(model.lazy(start)))
    if not z.isfinite().all():
        model.check({name: start[name] for name in model.sites})
    loc, spread = location_and_scale(z, correction=0)
    direction = torch.atan2(z.sin().mean(0), z.cos().mean(0))
    flat = (spread <= 0) | ~spread.isfinite()
    if flat.any():
        cause = "Most likely a site of the data is constant: a continuous density can't fit it. "
        cause += "Remove the site, or make it an observed constant of the program."
        if len(z) == 1:
            cause = "One row has no spread: give more rows, or none, FlowGenerator(model)."
        raise GeneratorError(
            f"site {coordinate_names(model)[int(flat.nonzero()[0])]!r} has spread "
            f"{spread[flat][0].item()} over {len(z)} rows; expected a positive number.\n  {cause}"
        )
    return torch.where(model.circular, direction, loc), spread


def _from_older(
    flow: nn.Module,
    state: dict[str, Any],
    prefix: str,
    *_: Any,  # noqa: ANN401 - torch's own
) -> None:
    """Parameters saved before `light` were of a base with heavy tails everywhere on the line."""
    state.setdefault(f"{prefix}light", torch.zeros_like(flow.get_buffer("light")))


def _unknown(x: Sites) -> Bool[Tensor, " n"]:
    """Which rows have a NaN in any site."""
    parts = [value.reshape(len(value), -1).isnan().any(-1) for value in x.values()]
    return torch.stack(parts).any(0)


def _is_real(model: EnergyModel) -> Bool[Tensor, " d"]:
    """Which coordinates are those of sites whose support is the real line."""
    real = [
        torch.full((site.dim,), isinstance(plain(site.support), type(constraints.real)))
        for site in model.sites.values()
    ]
    return torch.cat(real).to(model.device)


def _moved(d: int, affine: int, splines: int) -> list[Bool[Tensor, " d"]]:
    """Which coordinates each layer moves.

    Up to eight coordinates: one bit of their index, or its complement, in pairs of layers. More
    would need more pairs for any two to meet. So each has a code beyond, one among those that move
    it in half of the affine (spline) layers: of two with different codes each is moved where the
    other is not.
    """
    if d == 1:
        return [torch.ones(1, dtype=torch.bool)] * (affine + splines)
    if d <= 8 or min(affine, splines) == 1:
        bits = (d - 1).bit_length()
        pairs = [(torch.arange(d) >> (i // 2 % bits)) & 1 for i in range(affine + splines)]
        return [bit == i % 2 for i, bit in enumerate(pairs)]
    shuffled = torch.randperm(d, generator=torch.Generator().manual_seed(0))
    return [*_codes(affine, torch.arange(d)), *_codes(splines, shuffled)]


def _codes(layers: int, index: Int[Tensor, " d"]) -> Bool[Tensor, "layers d"]:
    """Codes with layers // 2 ones, by coordinate; those of neighbours are complements.

    Codes that differ in half of their places or more come first, so that either of two
    coordinates is moved a quarter of the times where the other is not (Hamming's code, at eight).
    """
    ones = list(combinations(range(layers), layers // 2))
    rows = [[layer in code for layer in range(layers)] for code in ones]
    codes = torch.tensor(rows, dtype=torch.bool)
    paired = [at for k in range(len(ones)) for at in (k, len(ones) - 1 - k)][: len(ones)]
    first: list[int] = []
    for at in paired:
        if all((codes[at] != codes[other]).sum() >= layers / 2 for other in first):
            first.append(at)
    order = first + [at for at in paired if at not in first]
    return codes[order][index % len(ones)].T


class Tilt(nn.Module):
    """See `tilt`."""

    def __init__(self, program: Callable[..., Any], flow: FlowGenerator) -> None:
        super().__init__()
        self.program = program
        self.flow = flow.requires_grad_(False)

    def forward(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - the program's own
        """One draw of the program, its base measure exchanged for the flow."""
        with _Record() as base:
            result = self.program(*args, **kwargs)
        x = {name: value.unsqueeze(0) for name, value in base.values.items()}
        pyro.factor("tilt", self.flow.log_prob(x).squeeze(0) - base.log_prob)
        return result


class _Record(Messenger):
    """Collects the latent sites' values and the sum of their log densities."""

    def __enter__(self) -> "_Record":
        self.values: Sites = {}
        self.log_prob: Tensor | float = 0.0
        return super().__enter__()

    def _pyro_post_sample(self, msg: Any) -> None:  # noqa: ANN401 - Pyro's message
        if not msg["is_observed"]:
            if msg["mask"] is not None or not (
                isinstance(msg["scale"], float) and msg["scale"] == 1
            ):
                raise ProgramError(
                    f"site {msg['name']!r} is scaled or masked; tilt expects plain sites.\n"
                    "  Scale or mask the factors instead."
                )
            self.values[msg["name"]] = msg["value"]
            self.log_prob = self.log_prob + msg["fn"].log_prob(msg["value"]).sum()


def tilt(program: Callable[..., Any], flow: FlowGenerator) -> Tilt:
    """The program whose density is p~ = q_0 exp(-E), q_0 the flow, frozen from here on.

    The program's own base measure stays (it is sampled for the defensive mixture); a factor named
    `tilt` adds log q_0 - log_base. With an energy that starts at 0, training starts from q_0 and
    only has to learn what the flow got wrong.

    Args:
        program: a program with the flow's sites, without `scale` or `mask` on them.
        flow: a generator of the same sites, usually warm-started by maximum likelihood. Pass a
            copy if the same flow is to be trained on.
    """
    return Tilt(program, flow)
