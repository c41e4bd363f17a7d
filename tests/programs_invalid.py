"""Tiny programs that must raise `ProgramError` with all their phrases, by name in `INVALID`."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from programs import vector
from programs_with_parameters import Network
from pyro import poutine
from pyro.distributions import constraints
from torch import nn

from ebm_pp.circle import Circle


@dataclass(frozen=True)
class Invalid:
    make: Callable[[], Any]
    phrases: tuple[str, ...]
    args: tuple = ()


INVALID: dict[str, Invalid] = {}


def invalid(*phrases, args=()):
    def enter(program):
        make = program if isinstance(program, type) else lambda: program
        INVALID[program.__name__] = Invalid(make, phrases, args)
        return program

    return enter


# --- invalid ------------------------------------------------------------------------------


@invalid("'e'", "differs between two runs", "torch.randn", "pyro.sample")
def random_factor():
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    pyro.factor("e", -x * torch.randn(()))


@invalid("'e'", "differs between two runs", "dropout", ".eval()")
class Dropout(Network):
    def __init__(self):
        super().__init__()
        self.net.append(nn.Dropout(0.5))


@invalid("'e'", "differs between two runs")
class DropoutUnderZero(nn.Module):
    # The last layer starts at zero and would hide the dropout.
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2, 8), nn.Dropout(0.5), nn.Linear(8, 1))
        nn.init.zeros_(self.net[-1].weight)

    def forward(self):
        pyro.factor("e", self.net(pyro.sample("x", vector(2))).squeeze(-1))


@invalid("'x'", "differs between two runs")
def random_base():
    pyro.sample("x", dist.Normal(torch.randn(()), 1.0))


@invalid("'e'", "differs between two runs")
def hidden_site():
    with poutine.block():
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
    y = pyro.sample("y", dist.Normal(0.0, 1.0))
    pyro.factor("e", x * y)


@invalid("plate 'p' is subsampled", "3 of 10", "subsample_size")
def subsampled():
    with pyro.plate("p", 10, subsample_size=3):
        pyro.sample("x", dist.Normal(0.0, 1.0))


@invalid("plate 'p' is subsampled", "2 of 10")
def subsample_given():
    with pyro.plate("p", 10, subsample=torch.tensor([1, 4])):
        pyro.sample("x", dist.Normal(0.0, 1.0))


@invalid("factor 'e'", "depends on no latent site", "constant")
def constant_factor():
    pyro.sample("x", dist.Normal(0.0, 1.0))
    pyro.factor("e", torch.tensor(1.5))


@invalid("factor 'y'", "depends on no latent site")
def constant_observation():
    w = pyro.param("w", torch.tensor(0.5))
    pyro.sample("x", dist.Normal(0.0, 1.0))
    pyro.sample("y", dist.Normal(w, 1.0), obs=torch.tensor(0.0))


@invalid("factor 'e' returned shape (2,)", "one number per draw, ()", ".sum(-1)")
def factor_not_summed():
    x = pyro.sample("x", vector(2))
    pyro.factor("e", -(x**2))


@invalid("factor 'e' returned shape (1,)", "expected one number per draw, ()")
class NotSqueezed(Network):
    def forward(self):
        pyro.factor("e", self.net(pyro.sample("x", vector(2))))


@invalid("factor 'e' inside plate 'p' returned shape ()", "expected one number per member, (3,)")
def factor_summed_in_plate():
    with pyro.plate("p", 3):
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        pyro.factor("e", -(x**2).sum(-1))


@invalid("factor 'e' inside plate 'outer', 'inner' returned shape (3,)", "(2, 3)")
def factor_summed_in_nested_plates():
    with pyro.plate("outer", 2, dim=-2), pyro.plate("inner", 3, dim=-1):
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        pyro.factor("e", -(x**2).sum(0))


@invalid("failed", "ValueError", "plate('p')", "3 vs 5")
def factor_of_other_length_in_plate():
    with pyro.plate("p", 3):
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        pyro.factor("e", x[0] * torch.ones(5))


@invalid("site 'k'", "Poisson", "discrete", "continuous")
def discrete():
    k = pyro.sample("k", dist.Poisson(3.0))
    pyro.factor("e", -k)


@invalid("site 'k'", "discrete", "sum the site out")
def discrete_mixture():
    k = pyro.sample("k", dist.Categorical(torch.ones(2) / 2))
    pyro.sample("x", dist.Normal(torch.tensor([-1.0, 1.0])[k], 1.0))


@invalid("no latent site", "pyro.sample without obs", args=(torch.zeros(3),))
def all_observed(data):
    pyro.sample("x", dist.Normal(data, 1.0).to_event(1), obs=data)


@invalid("no latent site")
def empty():
    pass


@invalid("site 'x' is declared twice", "one site per name")
def duplicate():
    pyro.sample("x", dist.Normal(0.0, 1.0))
    pyro.sample("x", dist.Normal(0.0, 1.0))


@invalid("site 'e' is declared twice")
def duplicate_factor():
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    for _ in range(2):
        pyro.factor("e", -x)


@invalid("'e' has the log density nan at a feasible draw", "x = ", "finite", "domain")
def logarithm_of_negative():
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    pyro.factor("e", torch.log(x))


@invalid("'e' has the log density -inf at", "of 64 feasible draws", "one in 8", "wall")
def wall():
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    pyro.factor("e", torch.where(x > 1.9, 0.0, -torch.inf))


@invalid("site 'b': the support Interval(0, ", "depends on another site", "rescale")
def support_of_another_site():
    a = pyro.sample("a", dist.Gamma(2.0, 1.0))
    pyro.sample("b", dist.Uniform(0.0, a))


@invalid("site 'b': the support", "depends on another site")
def support_that_rarely_moves():
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    pyro.sample("b", dist.Uniform(0.0, 1.0 + (a > 9.0).to(a.dtype)))


@invalid("site 'b'", "support", "depends on a parameter")
def support_of_a_parameter():
    w = pyro.param("w", torch.tensor(2.0), constraint=constraints.positive)
    pyro.sample("b", dist.Uniform(0.0, w))


@invalid("site 'x'", "support Sphere", "no bijection", "pyro.deterministic")
def sphere():
    pyro.sample("x", dist.ProjectedNormal(torch.tensor([1.0, 0.0, 0.0])))


@invalid("site 'a' is circular", "'e' changes by", "turns by 2 pi", "cos and sin")
def raw_angle():
    a = pyro.sample("a", dist.VonMises(0.0, 1.0))
    pyro.factor("e", -0.1 * a**2)


@invalid("site 'a' is circular", "cos and sin")
class RawAngleUnderZero(nn.Module):
    # At the start the energy is zero, so only moved parameters show the seam.
    def __init__(self):
        super().__init__()
        self.net = nn.Linear(2, 1)
        nn.init.zeros_(self.net.weight)

    def forward(self):
        a = pyro.sample("a", Circle().expand((2,)).to_event(1))
        pyro.factor("e", self.net(a).squeeze(-1))


@invalid("site 'a' is circular", "cos and sin")
def raw_difference_of_angles():
    a = pyro.sample("a", dist.VonMises(torch.zeros(2), 1.0).to_event(1))
    pyro.factor("e", -0.1 * (a[0] - a[1]) ** 2)


@invalid("other sites at another draw", "'x': ()", "same names", "torch.where")
def sites_in_a_branch():
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    if x > 0:
        pyro.sample("y", dist.Normal(0.0, 1.0))


@invalid("site 'y' uses obs_mask", "site of their own")
def obs_mask():
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    data = torch.tensor([1.0, 2.0, 0.0])
    with pyro.plate("p", 3):
        mask = torch.tensor([True, True, False])
        pyro.sample("y", dist.Normal(mu, 1.0), obs=data, obs_mask=mask)


@invalid("failed", "TypeError", "arguments given to EnergyModel")
def missing_argument(data):
    pyro.sample("x", dist.Normal(data, 1.0))


@invalid("failed", "ValueError", "scale")
def negative_scale():
    pyro.sample("x", dist.Normal(0.0, -1.0))


@invalid("failed", "ValueError", "support")
def observation_outside_support():
    rate = pyro.sample("rate", dist.Gamma(1.0, 1.0))
    pyro.sample("y", dist.Exponential(rate), obs=torch.tensor(-1.0))


@invalid("site 'x' has function instead of a distribution", "pyro.distributions")
def plain_function_site():
    pyro.sample("x", lambda: torch.zeros(()))


@invalid("site 'x' has Normal instead of a distribution", "pyro.distributions")
def torch_distribution_site():
    pyro.sample("x", torch.distributions.Normal(0.0, 1.0))


_outside = nn.Linear(2, 1)


@invalid("'e' depends on a trainable tensor of shape", "does not own", "EnergyModel(program, net")
def network_from_outside():
    x = pyro.sample("x", vector(2))
    pyro.factor("e", _outside(x).squeeze(-1))


@invalid("'e' depends on a trainable tensor", "does not own")
def registered_network_from_outside():
    net = pyro.module("net", _outside)
    x = pyro.sample("x", vector(2))
    pyro.factor("e", net(x).squeeze(-1))


INVALID["not_callable"] = Invalid(lambda: 3.0, ("the program is 3.0", "expected a function"))
INVALID["a_class"] = Invalid(lambda: Network, ("Network", "pass an instance"))
