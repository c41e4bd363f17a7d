"""Fits whose density, generator and log Z are known exactly, to plant faults in."""

import dataclasses
import enum
import math
from typing import Any

import pyro
import pyro.distributions as dist
import torch

from ebm_pp.density import EnergyModel
from ebm_pp.evidence import AtData, Evidence
from ebm_pp.moments import Gap
from ebm_pp.partition import Estimate
from ebm_pp.reach import DataSide, Spread

LOG_Z = 1.5


@dataclasses.dataclass(frozen=True)
class Product:
    """A generator: independent sites from given distributions."""

    sites: dict
    has_rsample: bool = True

    def rsample_and_log_prob(self, n):
        x = {name: law.sample((n,)) for name, law in self.sites.items()}
        return x, self.log_prob(x)

    def log_prob(self, x):
        return sum(law.log_prob(x[name]) for name, law in self.sites.items())


@dataclasses.dataclass(frozen=True)
class Config:
    rounds: int = 2
    hidden: tuple = (64, 64)


class Ending(enum.Enum):
    FINISHED = "All rounds ran."


@dataclasses.dataclass(frozen=True)
class Exact:
    """A stand-in for a `Fit`."""

    model: EnergyModel
    generator: Any
    offset: float = LOG_Z
    n_train: int = 0
    history: tuple = ()
    status: enum.Enum = Ending.FINISHED
    config: Config = Config()


def program(target, base=None):
    """A program with one site `x` and p~ = exp(LOG_Z) target."""
    base = base or dist.Normal(0.0, 10.0).expand(target.shape()).to_event(len(target.event_shape))

    def declared():
        x = pyro.sample("x", base)
        pyro.factor("energy", target.log_prob(x) - base.log_prob(x) + LOG_Z)

    return declared


def exact(target, generator=None, base=None, **more):
    """A fit of p~ = exp(LOG_Z) target by a given generator, the target itself by default."""
    generator = target if generator is None else generator
    return Exact(EnergyModel(program(target, base)), Product({"x": generator}), **more)


def normal(loc, scale, dim=2):
    """Independent Gaussian coordinates."""
    return dist.Normal(torch.full((dim,), loc), torch.full((dim,), scale)).to_event(1)


def mixture(locs, weights=None, scale=1.0, dim=2):
    """Gaussians of one scale centred on the diagonal at `locs`."""
    locs = torch.as_tensor(locs)
    weights = torch.ones(len(locs)) if weights is None else torch.as_tensor(weights)
    components = dist.Normal(locs[:, None].expand(-1, dim), scale).to_event(1)
    return dist.MixtureSameFamily(dist.Categorical(weights), components)


def rows(law, n, seed=0):
    """Data from a law, from their own random stream."""
    with torch.random.fork_rng():
        torch.manual_seed(1000 + seed)
        return {"x": law.sample((n,))}


def evidence(log_z=None, data=None, side=None, **changes):
    """Measurements of a healthy fit, made up, with some of their numbers changed.

    log_z, data, side: changes of these parts; `data=False`: there are no rows.
    """
    rows_side = DataSide(0.3, 0.8, torch.zeros(1000, dtype=torch.bool))
    at_rows = AtData(
        side=rows_side._replace(**side or {}), gaps={"a": Gap(0.0, 0.0)}, offset_gap=0.0,
        offset_error=0.0, accuracy=0.5, log_likelihood=-1.0, log_likelihood_error=0.01, gain=0.0,
        gain_error=0.0, seen=False,
    )  # fmt: skip
    found = Evidence(
        n=4000, log_z=Estimate(1.5, 0.01, 0.8, 0.3, 1.5, 0.01, 0.05), rejected=0,
        bounds=(1.4, 1.6), acceptance=0.8, min_ess=2000.0, max_rhat=1.0,
        spread=Spread("x", 1.0, 1.3), leak=None, behind_barrier=math.nan,
        data=None if data is False else dataclasses.replace(at_rows, **data or {}),
    )  # fmt: skip
    log_z = dataclasses.replace(found.log_z, **log_z or {})
    return dataclasses.replace(found, log_z=log_z, **changes)
