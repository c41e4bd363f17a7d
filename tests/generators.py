"""Generators from elsewhere, and the dictionary of all that one set of tests runs on.

Three names make a generator: `has_rsample`, `rsample_and_log_prob(n)` and `log_prob(x)`. The
classes here are examples to copy: a zuko flow, a Pyro autoguide, a Pyro guide written by hand.
Below them are the programs that the tests of generators use.
"""

import functools

import pyro
import pyro.distributions as dist
import torch
import zuko
from pyro.infer.autoguide import AutoDiagonalNormal
from torch import nn
from torch.distributions import constraints

from ebm_pp.circle import Circle
from ebm_pp.density import EnergyModel
from ebm_pp.errors import GeneratorError
from ebm_pp.generator import FlowGenerator

pyro.enable_validation(True)  # importing zuko switches it off for the whole process


class ZukoGenerator(nn.Module):
    """Any zuko flow over the unconstrained coordinates of a program.

    A flow over R^d has a seam on the circle, so programs with angles are refused. Masked flows
    need d passes to draw; `passes=2` makes them couplings.
    """

    has_rsample = True

    def __init__(self, model, flow):
        super().__init__()
        _refuse_angles(model)
        self.constrain, self.unconstrain = model.constrain, model.unconstrain
        self.flow = flow.to(model.dtype)

    def rsample_and_log_prob(self, n):
        z, log_q = self.flow().rsample_and_log_prob((n,))
        x, log_jacobian = self.constrain(z)
        return x, log_q - log_jacobian

    def log_prob(self, x):
        z, log_jacobian = self.unconstrain(x)
        return self.flow().log_prob(z) + log_jacobian


class AutoguideGenerator(nn.Module):
    """Pyro's autoguides with a Gaussian latent: AutoDiagonalNormal, AutoMultivariateNormal, ...

    Their latent vector holds the unconstrained sites in program order, as ours does.
    """

    has_rsample = True

    def __init__(self, model, guide):
        super().__init__()
        _refuse_angles(model)
        self.constrain, self.unconstrain = model.constrain, model.unconstrain
        with pyro.get_param_store().scope():  # guides of one class share names in the global one
            guide(*model.args, **model.kwargs)  # makes its parameters
        self.guide = guide.to(model.dtype)

    def rsample_and_log_prob(self, n):
        law = self.guide.get_posterior()
        z = law.rsample((n,))
        x, log_jacobian = self.constrain(z)
        return x, law.log_prob(z) - log_jacobian

    def log_prob(self, x):
        z, log_jacobian = self.unconstrain(x)
        return self.guide.get_posterior().log_prob(z) + log_jacobian


class GuideGenerator(nn.Module):
    """A guide written by hand is a Pyro program too: one without factors, so it is normalised.

    Its draws carry no gradient; `weighted_forward_kl` and `score_function` train it.
    """

    has_rsample = False

    def __init__(self, guide):
        super().__init__()
        self.program = EnergyModel(guide)

    def rsample_and_log_prob(self, n):
        x = self.program.sample_base(n)
        return x, self.log_prob(x)

    def log_prob(self, x):
        return self.program.log_base(x)


def mean_field(model):
    """A guide of independent sites for the supports of the tests, with parameters a and b > 0."""

    def law(site):
        a = pyro.param(f"{site.name}_a", torch.zeros(site.shape))
        b = pyro.param(f"{site.name}_b", torch.ones(site.shape), constraint=constraints.positive)
        if site.circular:
            return dist.VonMises(a, b)
        if isinstance(site.support, type(constraints.simplex)):
            return dist.Dirichlet(1 + b * a.exp())
        if isinstance(site.support, type(constraints.unit_interval)):
            return dist.Beta(1 + b * a.exp(), 1 + b)
        if hasattr(site.support, "lower_bound"):
            return dist.LogNormal(a, b)
        return dist.Normal(a, b)

    def guide():
        for site in model.sites.values():
            fn = law(site)
            pyro.sample(site.name, fn.to_event(len(fn.batch_shape)))

    return guide


def _refuse_angles(model):
    if model.circular.any():
        raise GeneratorError("this generator lives on the line; expected a program without angles")


def _zuko(model):
    flow = zuko.flows.NSF(model.dim, transforms=2, hidden_features=(16, 16), bins=4)
    return ZukoGenerator(model, flow)


def _autoguide(model):
    return AutoguideGenerator(model, AutoDiagonalNormal(model.program, init_scale=1.0))


def _small(model, start=None, **settings):
    return FlowGenerator(model, start, hidden=(16, 16), bins=6, **settings)


# name: a callable from an EnergyModel to a generator, or to a GeneratorError where it can't serve.
GENERATORS = {
    "flow": _small,
    "flow, student_t": lambda model: _small(model, base="student_t"),
    "flow, affine only": lambda model: _small(model, splines=0),
    "flow, standardised": lambda model: _small(model, model.sample_base(500), scale=1.5),
    "zuko flow": _zuko,
    "autoguide": _autoguide,
    "guide": lambda model: GuideGenerator(mean_field(model)),
}


def line():
    pyro.sample("x", dist.Normal(0.5, 1.2))


def plane():
    pyro.sample("x", dist.Normal(torch.tensor([1.0, -1.0]), 1.0).to_event(1))


def circle():
    pyro.sample("angle", dist.VonMises(0.0, 1.0))


def gust():
    pyro.sample("direction", Circle())
    pyro.sample("speed", dist.LogNormal(1.0, 0.5))


def parts():
    pyro.sample("parts", dist.Dirichlet(torch.tensor([2.0, 3.0, 1.5])))


def dose():
    pyro.sample("amount", dist.Gamma(2.0, 1.0))
    pyro.sample("share", dist.Beta(2.0, 3.0))


def recipe():
    pyro.sample("parts", dist.Dirichlet(torch.tensor([2.0, 3.0, 1.5])))
    pyro.sample("amount", dist.Gamma(2.0, 1.0))
    pyro.sample("direction", dist.VonMises(1.0, 1.0))
    pyro.sample("share", dist.Beta(2.0, 3.0))
    with pyro.plate("trials", 2):
        pyro.sample("y", dist.Normal(0.0, 1.0))


PROGRAMS = {f.__name__: f for f in (line, plane, circle, gust, parts, dose, recipe)}
ON_A_GRID = [name for name in PROGRAMS if name != "recipe"]


@functools.cache
def model_of(name):
    return EnergyModel(PROGRAMS[name]).double()


def disturb(generator, strength):
    """Moves every parameter off its start, so that the generator does something."""
    with torch.no_grad():
        for parameter in generator.parameters():
            parameter.add_(strength * torch.randn_like(parameter))
    return generator
