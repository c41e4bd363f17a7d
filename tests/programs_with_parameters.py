"""Tiny programs with networks and parameters, and those that do not batch; added to `VALID`."""

import functools

import pyro
import pyro.distributions as dist
import torch
from programs import VALID, Valid, valid, vector
from pyro.distributions import constraints
from pyro.nn import PyroModule, PyroParam, PyroSample
from torch import nn

# --- parameters ---------------------------------------------------------------------------


@valid()
def param_statements():
    w = pyro.param("w", torch.tensor([0.5, -0.2]))
    s = pyro.param("a.scale", lambda: torch.tensor(1.5), constraint=constraints.positive)
    x = pyro.sample("x", dist.Normal(torch.zeros(2), s).to_event(1))
    pyro.factor("e", (w * x).sum() - pyro.param("w")[0])


@valid()
def random_start():
    w = pyro.param("w", torch.randn(3))
    x = pyro.sample("x", vector(3))
    pyro.factor("e", (w * x).sum())


@valid()
class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2, 8), nn.SiLU(), nn.Linear(8, 1))

    def forward(self):
        x = pyro.sample("x", vector(2))
        pyro.factor("e", -self.net(x).squeeze(-1))


@valid()
class ZeroStart(Network):
    def __init__(self):
        super().__init__()
        nn.init.zeros_(self.net[-1].weight)


@valid()
class PyroNetwork(PyroModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 1))
        self.inner = PyroModule[nn.Linear](2, 1)
        self.loc = nn.Parameter(torch.tensor([0.1, -0.3]))
        self.scale = PyroParam(torch.tensor(1.3), constraint=constraints.positive)
        self.shift = PyroParam(torch.tensor(0.4))

    def forward(self):
        x = pyro.sample("x", dist.Normal(self.loc, self.scale).to_event(1))
        pyro.factor("e", -self.net(x).squeeze(-1) + self.shift * x.sum().cos())
        pyro.factor("linear", self.inner(x).squeeze(-1).tanh())


@valid()
class SampleAttributes(PyroModule):
    def __init__(self):
        super().__init__()
        self.scale = PyroParam(torch.tensor(0.7), constraint=constraints.positive)
        self.tau = PyroSample(dist.Gamma(2.0, 1.0))
        self.x = PyroSample(lambda self: dist.Normal(0.0, self.tau))

    def forward(self):
        pyro.factor("e", -self.scale * self.x**2 - self.tau * self.x)


@valid()
class BayesianLayer(PyroModule):
    def __init__(self):
        super().__init__()
        self.layer = PyroModule[nn.Linear](2, 1)
        self.layer.weight = PyroSample(dist.Normal(torch.zeros(1, 2), 1.0).to_event(2))

    def forward(self):
        out = self.layer(torch.tensor([1.0, -1.0]))
        pyro.sample("y", dist.Normal(out.squeeze(-1), 1.0), obs=torch.tensor(0.3))


def takes_network(net, power=2):
    pyro.module("net", net)
    x = pyro.sample("x", vector(2))
    pyro.factor("e", -(net(x).squeeze(-1) ** power))


VALID["network_as_argument"] = Valid(lambda: takes_network, (nn.Linear(2, 1),))
VALID["network_in_partial"] = Valid(
    lambda: functools.partial(takes_network, nn.Linear(2, 1), power=4)
)
VALID["lambda_program"] = Valid(
    lambda: lambda: pyro.factor("e", -(pyro.sample("x", dist.Normal(0.0, 1.0)) ** 4))
)


# --- no batching rule, branches -------------------------------------------------------------


@valid(batching="plate")
class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.gru = nn.GRU(2, 4, batch_first=True)
        self.head = nn.Linear(4, 1)

    def forward(self):
        x = pyro.sample("x", dist.Normal(torch.zeros(5, 2), 1.0).to_event(2))
        _, last = self.gru(x if x.dim() == 3 else x[None])
        energy = self.head(last[0]).squeeze(-1)
        pyro.factor("e", energy if x.dim() == 3 else energy[0])


@valid(batching="loop", warns=True)
class RecurrentDrawOnly(nn.Module):
    def __init__(self):
        super().__init__()
        self.gru = nn.GRU(2, 4)

    def forward(self):
        x = pyro.sample("x", dist.Normal(torch.zeros(5, 2), 1.0).to_event(2))
        pyro.factor("e", self.gru(x)[0].sum())


@valid(batching="loop", warns=True)
def branch():
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    if x > 0:
        pyro.factor("e", -x)
    else:
        pyro.factor("e", x**3)


@valid(batching="loop", warns=True)
def item():
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    pyro.factor("e", -x * x.item())
