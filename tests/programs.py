"""Tiny programs that specify what compiles, by name in `VALID`; see also programs_with_parameters.

Each is compared with a Python loop in test_density.py.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.distributions import constraints
from pyro.infer.reparam import LocScaleReparam
from torch import nn

from ebm_pp.circle import Circle


@dataclass(frozen=True)
class Valid:
    make: Callable[[], Any]  # a fresh program
    args: tuple = ()
    batching: str = "vmap"
    pyro_knows: bool = True  # initialize_model gives its potential
    warns: bool = False


VALID: dict[str, Valid] = {}


def valid(args=(), batching="vmap", pyro_knows=True, warns=False):
    """Enter a program function, or a PyroModule class, under its own name."""

    def enter(program):
        make = program if isinstance(program, type) else lambda: program
        VALID[program.__name__] = Valid(make, args, batching, pyro_knows, warns)
        return program

    return enter


def vector(size, loc=0.0):
    return dist.Normal(torch.full((size,), loc), 1.0).to_event(1)


# --- supports -----------------------------------------------------------------------------


def one_site(name, distribution, *, pyro_knows=True):
    """A program of one site and a smooth factor of all its numbers."""

    def program():
        x = pyro.sample("x", distribution())
        weight = torch.arange(1, x.numel() + 1, dtype=x.dtype).cos()
        pyro.factor("e", -0.1 * (x.reshape(-1) * weight).sum().sin() - 0.01 * x.square().sum())

    program.__name__ = name
    valid(pyro_knows=pyro_knows)(program)


SUPPORTS = {
    "real": lambda: dist.Normal(0.3, 2.0),
    "real_vector": lambda: vector(3),
    "multivariate_normal": lambda: dist.MultivariateNormal(torch.zeros(3), torch.eye(3) + 0.5),
    "student_t": lambda: dist.StudentT(3.0, 0.0, 1.0),
    "positive": lambda: dist.LogNormal(0.0, 1.0),
    "nonnegative": lambda: dist.Gamma(2.0, 1.5),
    "exponential_vector": lambda: dist.Exponential(torch.tensor([1.0, 2.0])).to_event(1),
    "half_normal": lambda: dist.HalfNormal(2.0),
    "unit_interval": lambda: dist.Beta(2.0, 3.0),
    "interval": lambda: dist.Uniform(-1.5, 0.7),
    "interval_vector": lambda: dist.Uniform(torch.zeros(2), torch.tensor([1.0, 4.0])).to_event(1),
    "greater_than": lambda: dist.Pareto(1.5, 3.0),
    "simplex": lambda: dist.Dirichlet(torch.tensor([1.0, 2.0, 0.5, 3.0])),
    "corr_cholesky": lambda: dist.LKJCholesky(3, 1.5),
    "correlation": lambda: dist.LKJ(3, 2.0),
    "ordered": lambda: dist.TransformedDistribution(vector(4), dist.transforms.OrderedTransform()),
    "batch_without_plate": lambda: dist.Normal(torch.zeros(2, 3), 1.0),
}
for _name, _distribution in SUPPORTS.items():
    one_site(_name, _distribution)


def improper(support, *shape):
    return lambda: dist.ImproperUniform(support, (), shape)


IMPROPER = {
    "improper_real": improper(constraints.real, 2),
    "improper_positive": improper(constraints.positive),
    "improper_less_than": improper(constraints.less_than(1.0)),
    "improper_half_open": improper(constraints.half_open_interval(0.0, 2.0)),
    "improper_ordered": improper(constraints.ordered_vector, 3),
    "improper_positive_ordered": improper(constraints.positive_ordered_vector, 3),
    "improper_simplex": improper(constraints.simplex, 3),
    "improper_softplus": improper(constraints.softplus_positive),
}
for _name, _distribution in IMPROPER.items():
    one_site(_name, _distribution)

UNKNOWN_TO_PYRO = {
    "mixture": lambda: dist.MixtureSameFamily(
        dist.Categorical(torch.tensor([0.3, 0.7])), dist.Normal(torch.tensor([-2.0, 2.0]), 1.0)
    ),
    "mixture_of_gammas": lambda: dist.MixtureSameFamily(
        dist.Categorical(torch.tensor([0.3, 0.7])), dist.Gamma(torch.tensor([2.0, 9.0]), 1.0)
    ),
    "lower_cholesky": improper(constraints.lower_cholesky, 3, 3),
    "positive_definite": lambda: dist.Wishart(torch.tensor(5.0), torch.eye(3)),
}
for _name, _distribution in UNKNOWN_TO_PYRO.items():
    one_site(_name, _distribution, pyro_knows=False)


# --- circles ------------------------------------------------------------------------------


@valid(pyro_knows=False)
def von_mises():
    a = pyro.sample("a", dist.VonMises(0.5, 2.0))
    pyro.factor("e", 0.7 * torch.cos(2 * a) + torch.sin(a))


@valid(pyro_knows=False)
def circle():
    a = pyro.sample("a", Circle())
    pyro.factor("e", torch.cos(a - 1.0))


@valid(pyro_knows=False)
def circle_vector_in_plate():
    with pyro.plate("p", 2):
        a = pyro.sample("a", Circle().expand((3,)).to_event(1))
        pyro.factor("e", torch.cos(a).sum(-1))


@valid(pyro_knows=False)
def von_mises_masked_event():
    a = pyro.sample("a", dist.VonMises(torch.zeros(3), 1.0).mask(True).to_event(1))
    pyro.factor("e", torch.cos(a[0] - a[1]) * torch.sin(a[2]))


@valid(pyro_knows=False)
def mixture_of_angles():
    parts = dist.VonMises(torch.tensor([-1.0, 2.0]), 4.0)
    a = pyro.sample("a", dist.MixtureSameFamily(dist.Categorical(torch.ones(2) / 2), parts))
    pyro.factor("e", torch.cos(3 * a))


@valid(pyro_knows=False)
def torus():
    a = pyro.sample("a", dist.SineBivariateVonMises(0.0, 1.0, 2.0, 3.0, 0.5))
    pyro.factor("e", torch.sin(a.sum(-1)))


# --- plates -------------------------------------------------------------------------------


@valid()
def plate_vectorised():
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("p", 4):
        x = pyro.sample("x", dist.Normal(mu, 1.0))
        pyro.factor("e", -0.3 * x**4)


@valid()
def plate_sequential():
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    for i in pyro.plate("p", 3):
        x = pyro.sample(f"x_{i}", dist.Normal(mu * i, 1.0))
        pyro.factor(f"e_{i}", -(x**2) * mu)


@valid()
def plates_nested():
    with pyro.plate("outer", 2, dim=-2):
        a = pyro.sample("a", dist.Gamma(2.0, 1.0))
        with pyro.plate("inner", 3, dim=-1):
            b = pyro.sample("b", dist.Normal(a, 1.0).expand((2, 3)))
            pyro.factor("e", torch.sin(a * b))


@valid()
def plate_of_vectors():
    with pyro.plate("p", 3):
        x = pyro.sample("x", vector(2))
        pyro.factor("e", -(x.square().sum(-1) ** 2))


@valid()
def plate_of_simplices():
    with pyro.plate("p", 2):
        x = pyro.sample("x", dist.Dirichlet(torch.ones(3)))
        pyro.factor("e", x[..., 0] * x[..., 1])


@valid()
def plate_summed_outside():
    with pyro.plate("p", 8):
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
    pyro.factor("e", -x.sum().square())


@valid()
def plate_indexed():
    scale = torch.tensor([1.0, 2.0, 3.0])
    with pyro.plate("p", 3) as index:
        x = pyro.sample("x", dist.Normal(0.0, scale[index]))
    pyro.factor("e", (x * index).sum().cos())


@valid()
def markov_chain():
    x = pyro.sample("x_0", dist.Normal(0.0, 1.0))
    for t in pyro.markov(range(1, 5)):
        x = pyro.sample(f"x_{t}", dist.Normal(0.8 * x, 0.5))
        pyro.factor(f"cost_{t}", -0.1 * x**2)


# --- many sites, hierarchy, observation, scale, mask ----------------------------------------


@valid()
def many_supports():
    p = pyro.sample("p", dist.Dirichlet(torch.ones(3)))
    r = pyro.sample("r", dist.Gamma(2.0, 1.0))
    u = pyro.sample("u", dist.Beta(2.0, 2.0))
    x = pyro.sample("x", vector(2))
    pyro.factor("a", p[0] * r)
    pyro.factor("b", -u * x.sum())


@valid()
def no_factor():
    pyro.sample("x", dist.Normal(0.0, 1.0))
    pyro.sample("y", dist.Gamma(1.0, 1.0))


@valid()
def funnel():
    v = pyro.sample("v", dist.Normal(0.0, 3.0))
    pyro.sample("x", dist.Normal(torch.zeros(3), (v / 2).exp()).to_event(1))


@valid()
def rare_dependence():
    # No probe sees it, and no gradient: only vmap knows that y depends on x.
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    pyro.sample("y", dist.Normal((x > 9.0).to(x.dtype), 1.0))


@valid()
def same_size_hierarchy():
    # PROBES draws of 8 numbers each: the case that an outer plate gets wrong in silence.
    loc = pyro.sample("loc", dist.Normal(torch.zeros(8), 1.0).to_event(1))
    pyro.sample("x", dist.Normal(loc.sum(), 1.0))
    pyro.factor("e", -(loc.mean() ** 2))


@valid(args=(torch.tensor([0.5, -1.0, 2.0]),))
def observed(data):
    mu = pyro.sample("mu", dist.Normal(0.0, 2.0))
    sigma = pyro.sample("sigma", dist.HalfNormal(1.0))
    with pyro.plate("rows", len(data)):
        pyro.sample("y", dist.Normal(mu, sigma), obs=data)


@valid(args=(torch.tensor([3.0, 0.0, 1.0]),))
def observed_counts(counts):
    rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
    with pyro.plate("rows", 3):
        pyro.sample("y", dist.Poisson(rate), obs=counts)


@valid()
def deterministic_value():
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    y = pyro.deterministic("y", x**2)
    pyro.factor("e", -y)


@valid()
def scaled_factor():
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    with poutine.scale(scale=0.25):
        pyro.factor("e", -(x**4))


@valid()
def scaled_site():
    with poutine.scale(scale=2.5):
        pyro.sample("x", dist.Normal(0.0, 1.0))


@valid()
def masked_plate():
    with pyro.plate("p", 3), poutine.mask(mask=torch.tensor([True, False, True])):
        x = pyro.sample("x", dist.Normal(1.0, 2.0))
        pyro.factor("e", torch.sin(x))


@valid()
def masked_distribution():
    x = pyro.sample("x", dist.Normal(torch.zeros(3), 1.0).mask(torch.tensor([True, False, True])))
    pyro.factor("e", -x.square().sum())


@valid()
def switched_off():
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    with poutine.mask(mask=False):
        pyro.factor("e", torch.tensor(3.0))
    pyro.factor("f", x)


@valid()
def value_dependent_mask():
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    with poutine.mask(mask=x > 0):
        pyro.factor("e", -(x**3))


@valid()
def value_dependent_mask_of_a_site():
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    with poutine.mask(mask=x > 0):
        pyro.sample("y", dist.Normal(0.0, 1.0))


@valid()
def where_instead_of_branch():
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    pyro.factor("e", torch.where(x > 0, -x, x**3 / 10))


@valid()
def step_function():
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    pyro.factor("e", (x > 0).to(x.dtype))


@valid()
def sum_without_dim():
    x = pyro.sample("x", vector(3))
    pyro.factor("e", -(x**4).sum())


@valid()
def quadratic_form():
    x = pyro.sample("x", vector(2))
    pyro.factor("e", -x @ torch.tensor([[2.0, 0.5], [0.5, 1.0]]) @ x)


@valid()
def conditioned_inside():
    def inner():
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(x, 1.0))

    poutine.condition(inner, data={"y": torch.tensor(0.7)})()


@valid()
def reparametrised():
    with poutine.reparam(config={"x": LocScaleReparam(0.0)}):
        s = pyro.sample("s", dist.LogNormal(0.0, 1.0))
        x = pyro.sample("x", dist.Normal(0.0, s))
        pyro.factor("e", torch.cos(x))


@valid()
class LazyNetwork(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.LazyLinear(1)

    def forward(self):
        pyro.factor("e", self.net(pyro.sample("x", vector(2))).squeeze(-1))


@valid()
def nested_handlers():
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    with poutine.scale(scale=3.0), poutine.mask(mask=torch.tensor(True)), pyro.plate("p", 2):
        y = pyro.sample("y", dist.Normal(x, 1.0))
        pyro.factor("e", y.cos())
