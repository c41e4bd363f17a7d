"""Generators: samplable, normalised densities q over the sites of a program.

`FlowGenerator` is a stack of coupling layers over standardised unconstrained coordinates,

    x = T(z),   u = (z - loc) / scale,   eps = f_L(...f_1(u)),
    log q(x) = log base(eps) + sum_l log|det df_l| - sum log scale + log|det dz/dx|,

from data to latent: two affine layers, then four spline layers (in the plane two with more bins,
beyond 14 coordinates five). The layers split the coordinates by codes, no two of them the same:
of any two coordinates some layer moves one given the other, up to 30 coordinates a spline layer.
Angles stay on the circle throughout: they are centred at their mean direction, moved by rotations
and periodic splines, and their base density is uniform.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.distributions import Normal, StudentT

from ebm_pp.circle import wrap
from ebm_pp.coordinates import Coordinates
from ebm_pp.counts import count, number
from ebm_pp.coupling import LOG_SCALE_BOUND, Coupling
from ebm_pp.coupling_masks import moved_by_layers, n_codes
from ebm_pp.density import EnergyModel, Rows, Sites
from ebm_pp.errors import DataError, GeneratorError, ProgramError
from ebm_pp.location import location_and_scale
from ebm_pp.moments import coordinate_names
from ebm_pp.stored import representative
from ebm_pp.surroundings import alone

LAYERS, WIDEST = 1000, 10**6  # of a flow that can be made
ROUNDED = 1e-3  # of a unit of z, or of the flow's scale: draws that rounding moved farther


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
        affine: number of affine layers, nearest to the data. There are more, if with these the
            layers were too few to move one of any two coordinates given the other.
        splines: number of spline layers; 2 in the plane, 4 beyond it, 5 beyond 14 coordinates,
            unless given.
        bins: pieces of a spline; 32 in the plane, where one coordinate has to be split into all
            its modes given the other, 8 beyond it, unless given.
        hidden: widths of the hidden layers of each conditioner; (128, 128) in the plane, (64, 64)
            beyond it, unless given.
        bound: half-width of the splines' box, in standard deviations; beyond it they are the
            identity.
        log_scale: largest logarithm by which an affine layer scales. More reaches farther into
            a funnel; less keeps the inverse finite where the data are few.

    Raises:
        DataError: `start` does not fit the program; a number is none, or out of its range.
        ProgramError: `model` is no EnergyModel.
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
        if not isinstance(model, EnergyModel):
            raise ProgramError(
                f"FlowGenerator was given a {type(model).__name__}; expected an EnergyModel.\n"
                "  Wrap the program: FlowGenerator(EnergyModel(program))."
            )
        plane = model.dim <= 2
        if splines is None:
            splines = 2 if plane else 4 if model.dim <= n_codes(4) else 5
        affine, splines = count("affine", affine, 0, LAYERS), count("splines", splines, 0, LAYERS)
        moved = moved_by_layers(model.dim, affine, splines)
        bins = count("bins", bins if bins is not None else (32 if plane else 8), 1, WIDEST)
        hidden = _widths(hidden if hidden is not None else (128, 128) if plane else (64, 64))
        scale = number("scale", scale, 0.0, 1e30, open=True)
        bound = number("bound", bound, 0.0, 1e30, open=True)
        log_scale = number("log_scale", log_scale, 0.0, 80.0)
        if not isinstance(base, str) or base not in ("normal", "student_t"):
            raise GeneratorError(f"base={base!r}; expected 'normal' or 'student_t'.")
        if model.layout is not None:
            raise GeneratorError(
                f"FlowGenerator: the sites {list(model.sites)[:3]} are of a trajectory, whose "
                "dynamics a flow does not know; expected other sites.\n  Use a PolicyGenerator."
            )
        self.settings: dict[str, Any] = {
            "base": base, "affine": len(moved) - splines, "splines": splines, "bins": bins,
            "hidden": hidden, "bound": bound, "log_scale": log_scale,
        }  # fmt: skip
        self.coordinates = model.coordinates
        reference = torch.empty((), dtype=model.dtype, device=model.device)
        loc, spread = _standardise(model, start, reference)
        self.register_buffer("circular", model.circular.clone())
        self.has_angles = bool(model.circular.any())
        # On the line, but with normal tails in a Student-t base too: see `base`.
        self.register_buffer("light", ~(model.coordinates.real() | model.circular))
        self.register_buffer("loc", loc)
        self.register_buffer("scale", torch.where(self.circular, 1.0, spread * scale))
        self.layers = self._stack(moved)
        self.raw_df = nn.Parameter(torch.zeros(model.dim)) if base == "student_t" else None
        self.to(reference)
        self.register_load_state_dict_pre_hook(_from_older)

    def _stack(self, moved: list[Bool[Tensor, " d"]]) -> nn.ModuleList:
        """The layers, given which coordinates each of them moves."""
        of = {name: self.settings[name] for name in ("hidden", "bound", "log_scale")}
        first = len(moved) - self.settings["splines"]
        return nn.ModuleList(
            Coupling(
                each.to(self.loc.device),
                self.circular,
                bins=self.settings["bins"] if k >= first else 0,
                **of,
            )
            for k, each in enumerate(moved)
        )

    @alone()
    def rsample_and_log_prob(self, n: int) -> tuple[Sites, Float[Tensor, " n"]]:
        """`n` draws, differentiable in the flow's parameters, and their log q."""
        latent, log_base = self._sample_base(n)
        z, log_det = self._to_line(latent)
        x, log_det_constrain = self._coordinates().constrain(z)
        return x, self._as_rounded(x, z, log_base - log_det - log_det_constrain)

    def _as_rounded(self, x: Sites, z: Tensor, log_q: Tensor) -> Tensor:
        """Log q at the draws as they are, where rounding at an edge has moved them along z.

        All of q beyond the last number inside a support falls on that number. With the density of
        the number itself, not of the place that was drawn, a ratio p~/q there is that of two
        functions of x: right where p and q fall alike. It has no gradient: the number is fixed. A
        draw on the edge itself, which nothing accepts, keeps the density of its place.
        """
        here = self._coordinates()
        if not here.bounded:
            return log_q
        with torch.no_grad():
            gap = here.unconstrain(x)[0] - z
            gap = torch.where(self.circular, 0.0, gap).abs() / self.scale.clamp(max=1.0)
            moved = (gap > ROUNDED).any(-1)
            if not moved.any():
                return log_q
            again = self.log_prob({name: value[moved] for name, value in x.items()})
        return log_q.index_put((moved,), torch.where(again.isfinite(), again, log_q[moved]))

    @alone()
    def log_prob(self, x: Rows) -> Float[Tensor, " n"]:
        """Log q(x) of given rows, with respect to the sites' own reference measure.

        -inf outside of the supports' interior, where rounding can put a draw too; NaN where x is.
        Rows of any container are converted, not checked.

        Args:
            x: Draws or rows, each value `(n, *site_shape)`.
        """
        here = self._coordinates()
        x = here.as_rows(x)
        z, log_det = here.unconstrain(x)
        u = (z - self.loc) / self.scale
        inside = u.isfinite().all(-1)
        if here.bounded:
            inside = inside & here.inside(x)
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
        z, log_det = self._to_line(latent)
        x, log_det_constrain = self._coordinates().constrain(z)
        return x, log_det + log_det_constrain

    def _to_line(self, latent: Tensor) -> tuple[Tensor, Tensor]:
        """The unconstrained coordinates of latent ones, and log|dz/dlatent|."""
        u, log_det = latent, self.scale.log().sum()
        for layer in reversed([*self.layers]):
            u, log_det_layer = layer.inverse(u)
            log_det = log_det + log_det_layer
        return self.loc + self.scale * u, log_det

    def _coordinates(self) -> Coordinates:
        """Where the flow is: a copy of it may have been moved without the model."""
        return self.coordinates.to(self.loc.dtype, self.loc.device)

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


def _widths(hidden: object) -> tuple[int, ...]:
    """Widths of layers as Python's own numbers."""
    odd = isinstance(hidden, str | bytes | Mapping) or getattr(hidden, "ndim", 1) != 1
    if isinstance(hidden, Iterable) and not odd:
        return tuple(count("hidden", width, 1, WIDEST) for width in hidden)
    raise DataError(
        f"hidden={hidden!r}; expected a list of widths, (64, 64).\n  One layer is (64,)."
    )


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
    flow: FlowGenerator,
    state: dict[str, Any],
    prefix: str,
    *_: Any,  # noqa: ANN401 - torch's own
) -> None:
    """Makes of a flow what older versions saved.

    Their Student-t base had heavy tails everywhere on the line, and their layers moved other
    coordinates. Those that were saved are the ones to build.
    """
    state.setdefault(f"{prefix}light", torch.zeros_like(flow.light))
    index = torch.arange(len(flow.loc))
    own = [torch.isin(index, layer.get_buffer("moved").cpu()) for layer in flow.layers]
    saved: list[Tensor] = []
    while (at := state.get(f"{prefix}layers.{len(saved)}.moved")) is not None:
        saved.append(torch.isin(index, at.cpu()))
    same = len(saved) == len(own) and all(map(torch.equal, saved, own))
    if len(state.get(f"{prefix}loc", ())) != len(index):
        return  # of another model: torch says what does not fit
    if not all(at.any() for at in saved):
        raise GeneratorError(
            f"a layer of the saved flow moves none of its {len(index)} coordinates; expected one "
            "at least.\n  Most likely a damaged file: save the fit again."
        )
    if not same:
        flow.layers = flow._stack(saved).to(flow.loc)


def _unknown(x: Sites) -> Bool[Tensor, " n"]:
    """Which rows have a NaN in any site."""
    parts = [value.reshape(len(value), -1).isnan().any(-1) for value in x.values()]
    return torch.stack(parts).any(0)
