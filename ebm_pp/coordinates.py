"""The coordinates of a program: its sites' supports, and the maps from R^d onto them and back.

A record of its own beside the model, since a flow needs the supports and nothing else of it.
"""

import copy
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.distributions import constraints
from torch.distributions.transforms import Transform

from ebm_pp.circle import TURN, from_radians, to_radians
from ebm_pp.data import as_rows, inside_of, is_bounded
from ebm_pp.program import Site, Sites
from ebm_pp.support import bijection, plain

Rows = Mapping[str, Any]  # of arrays, tensors or lists, as users have them


class Coordinates:
    """The supports of a program's sites, in one type and on one device.

    A model and its flows share one object: moving the model (`.double()`, `.to()`) reads its
    bounds again, for all of them. A copy of a flow has a copy of this and nothing of the model.

    Attributes:
        sites: The latent sites in program order.
        dtype: Of unconstrained coordinates.
        device: Of bounds and coordinates.
        bounded: Names of the sites outside whose support there are finite numbers.
    """

    def __init__(self, sites: dict[str, Site], dtype: torch.dtype, device: torch.device) -> None:
        self.read(sites, dtype, device)

    def read(self, sites: dict[str, Site], dtype: torch.dtype, device: torch.device) -> None:
        """Takes other supports: those of the same sites after a move."""
        self.sites, self.dtype, self.device = sites, dtype, device
        self._bijections = {
            name: bijection(site.support) for name, site in sites.items() if not site.trajectory
        }
        self.bounded = [name for name in self._bijections if is_bounded(sites[name])]

    def to(self, dtype: torch.dtype, device: torch.device) -> "Coordinates":
        """This object if it is there already, else a copy with its bounds converted."""
        if (dtype, device) == (self.dtype, self.device):
            return self
        sites = {
            name: replace(site, support=_converted(site.support, dtype, device))
            for name, site in self.sites.items()
        }
        return Coordinates(sites, dtype, device)

    def real(self) -> Bool[Tensor, "d"]:
        """Which coordinates are those of sites whose support is the real line."""
        everywhere = type(constraints.real)
        real = [
            torch.full((site.dim,), isinstance(plain(site.support), everywhere))
            for site in self.sites.values()
        ]
        return torch.cat(real).to(self.device)

    def as_rows(self, x: Rows) -> Sites:
        """Rows of any container in this type and on this device, not checked (`data.as_rows`)."""
        return as_rows(x, self.sites, self.dtype, self.device)

    def constrain(self, z: Float[Tensor, "n d"]) -> tuple[Sites, Float[Tensor, "n"]]:
        """From unconstrained coordinates to draws.

        Args:
            z: Unconstrained coordinates; angles may have any winding.

        Returns:
            Draws x, angles in one turn (see `Circle`), and log|dx/dz|.
        """
        x, log_jacobian = {}, z.new_zeros(len(z))
        parts = z.split([site.dim for site in self.sites.values()], dim=-1)
        for site, part in zip(self.sites.values(), parts, strict=True):
            if site.circular:
                x[site.name] = from_radians(part, site.period).reshape(len(z), *site.shape)
                log_jacobian = log_jacobian + site.dim * math.log(site.period / TURN)
                continue
            if site.trajectory:  # its coordinates are its values
                value = part.reshape(len(z), *site.shape)
                x[site.name] = value.round().long() if site.trajectory.space.n else value
                continue
            transform = self._bijections[site.name]
            free = part.reshape(len(z), *transform.inverse_shape(torch.Size(site.shape)))
            x[site.name] = transform(free)
            log_jacobian = log_jacobian + _log_jacobian(transform, free, x[site.name])
        return x, log_jacobian

    def unconstrain(self, x: Rows) -> tuple[Float[Tensor, "n d"], Float[Tensor, "n"]]:
        """From draws to unconstrained coordinates.

        Args:
            x: Draws or rows inside their supports, each value `(n, *site_shape)`.

        Returns:
            Unconstrained coordinates z, angles in [-pi, pi), and log|dz/dx|.
        """
        x = self.as_rows(x)
        parts, log_jacobian = [], torch.zeros((), dtype=self.dtype, device=self.device)
        for site in self.sites.values():
            value = x[site.name]
            if site.circular:
                parts.append(to_radians(value, site.period).reshape(len(value), site.dim))
                log_jacobian = log_jacobian - site.dim * math.log(site.period / TURN)
                continue
            if site.trajectory:
                parts.append(value.to(self.dtype).reshape(len(value), site.dim))
                continue
            transform = self._bijections[site.name]
            free = transform.inv(value)
            parts.append(free.reshape(len(value), site.dim))
            log_jacobian = log_jacobian - _log_jacobian(transform, free, value)
        z = torch.cat(parts, dim=-1)
        return z, log_jacobian.expand(len(z))

    @torch.no_grad()
    def inside(self, x: Rows) -> Bool[Tensor, "n"]:
        """Whether each draw is finite and strictly inside its supports."""
        return inside_of(self.sites, self.as_rows(x))


def _log_jacobian(transform: Transform, free: Tensor, value: Tensor) -> Tensor:
    log_jacobian = transform.log_abs_det_jacobian(free, value)
    return log_jacobian.flatten(1).sum(1) if log_jacobian.dim() > 1 else log_jacobian


def _converted(part: Any, dtype: torch.dtype, device: torch.device) -> Any:  # noqa: ANN401
    """A constraint whose bounds have another type or device; anything else as it is."""
    if isinstance(part, Tensor):
        return part.to(device, dtype if part.is_floating_point() else part.dtype)
    if isinstance(part, list | tuple):
        return type(part)(_converted(inner, dtype, device) for inner in part)
    if isinstance(part, constraints.Constraint):
        twin = copy.copy(part)
        twin.__dict__.update({k: _converted(v, dtype, device) for k, v in vars(part).items()})
        return twin
    return part
