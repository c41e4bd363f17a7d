"""Fits whose density, generator and log Z are known exactly, to plant faults in."""

import dataclasses
import enum
from typing import Any

import pyro
import pyro.distributions as dist
import torch

from ebm_pp.density import EnergyModel

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
