"""Arguments of any type, rows of any container, settings of any kind, at the public functions."""

import functools
import math

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from fuzzing import ODD, same, tried, weighing
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import ebm_pp
from ebm_pp import FitConfig


class Program(nn.Module):
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.tensor([0.1, -0.2]))

    def forward(self):
        x = pyro.sample("x", dist.Normal(torch.zeros(2), 1.5).to_event(1))
        y = pyro.sample("y", dist.Gamma(2.0, 1.0))
        pyro.factor("bend", self.w[0] * x.prod(-1) - 0.1 * (x**4).sum(-1))
        pyro.factor("pull", self.w[1] * y)


TINY = {
    "rounds": 2, "pool": 256, "batch": 32, "energy_steps": 2, "generator_steps": 2,
    "generator_steps_max": 2, "warm_start_steps": 5, "progress": False,
}  # fmt: skip


@functools.cache
def fitted():
    """A fit of two rounds: bad weights, but everything a fit has."""
    torch.manual_seed(0)
    model = ebm_pp.EnergyModel(Program())
    rows = model.sample_base(400)
    flow = ebm_pp.FlowGenerator(model, rows, hidden=(8,), splines=1, bins=4)
    return ebm_pp.fit(model, rows, flow, FitConfig.fast(**TINY))


@functools.cache
def rows():
    torch.manual_seed(1)
    return fitted().model.sample_base(40)


@functools.cache
def draws():
    return ebm_pp.importance_sample(fitted(), 200, seed=0)


def tree(**changes):
    return dict(ebm_pp.to_datatree(fitted(), **{"n": 40, **changes})["posterior"].data_vars)


# Name: a call with one argument changed, whatever it is.
NUMBERS = {
    "importance_sample n": lambda v: ebm_pp.importance_sample(fitted(), v, seed=0),
    "resample n": lambda v: ebm_pp.resample(draws(), v, seed=0),
    "independence_mh draws": lambda v: ebm_pp.independence_mh(fitted(), v, seed=0),
    "independence_mh chains": lambda v: ebm_pp.independence_mh(fitted(), draws(), v, seed=0),
    "log_partition n": lambda v: ebm_pp.log_partition(fitted(), v, seed=0),
    "log_prob n": lambda v: ebm_pp.log_prob(fitted(), rows(), v, seed=0),
    "diagnose n": lambda v: ebm_pp.diagnose(fitted(), rows(), v),
    "compare n": lambda v: ebm_pp.compare({"a": fitted(), "b": fitted()}, rows(), n=v),
    "sample_base n": lambda v: fitted().model.sample_base(v),
    "standard_errors n": lambda v: ebm_pp.standard_errors(fitted(), rows(), ["w"], n=v),
    "neutra_hmc n": lambda v: ebm_pp.neutra_hmc(fitted(), v, 1, 0, max_tree_depth=1, seed=0),
    "to_datatree n": lambda v: tree(n=v),
    "to_datatree chains": lambda v: tree(chains=v),
    "trajectories horizon": lambda v: FitConfig.trajectories(v),
    "EnergyNet width": lambda v: ebm_pp.EnergyNet(rows()["x"], v),
    "EnergyNet depth": lambda v: ebm_pp.EnergyNet(rows()["x"], 4, v),
    "EnergyNet waves": lambda v: ebm_pp.EnergyNet(rows()["x"], 4, waves=v),
    "EnergyNet wells": lambda v: ebm_pp.EnergyNet(rows()["x"], 4, wells=v),
    "FlowGenerator affine": lambda v: ebm_pp.FlowGenerator(fitted().model, rows(), affine=v),
    "FlowGenerator splines": lambda v: ebm_pp.FlowGenerator(fitted().model, rows(), splines=v),
    "FlowGenerator bins": lambda v: ebm_pp.FlowGenerator(fitted().model, rows(), bins=v),
}
SEEDS = {
    "importance_sample": lambda v: ebm_pp.importance_sample(fitted(), 40, seed=v),
    "resample": lambda v: ebm_pp.resample(draws(), 10, seed=v),
    "independence_mh": lambda v: ebm_pp.independence_mh(fitted(), 40, seed=v),
    "log_partition": lambda v: ebm_pp.log_partition(fitted(), 40, seed=v),
    "log_prob": lambda v: ebm_pp.log_prob(fitted(), rows(), 40, seed=v),
    "diagnose": lambda v: str(ebm_pp.diagnose(fitted(), rows(), 100, seed=v)),
    "compare": lambda v: ebm_pp.compare({"a": fitted(), "b": fitted()}, rows(), n=40, seed=v)
    .to_json(),
    "standard_errors": lambda v: str(
        ebm_pp.standard_errors(fitted(), rows(), ["w"], n=100, seed=v)
    ),
    "to_datatree": lambda v: str(tree(seed=v)["x"].values),
}  # fmt: skip
OTHERS = {
    "EnergyNet rows": lambda v: ebm_pp.EnergyNet(v),
    "EnergyNet frequency": lambda v: ebm_pp.EnergyNet(rows()["x"], 4, frequency=v),
    "FlowGenerator model": lambda v: ebm_pp.FlowGenerator(v),
    "FlowGenerator start": lambda v: ebm_pp.FlowGenerator(fitted().model, v),
    "FlowGenerator scale": lambda v: ebm_pp.FlowGenerator(fitted().model, scale=v),
    "FlowGenerator base": lambda v: ebm_pp.FlowGenerator(fitted().model, base=v),
    "FlowGenerator hidden": lambda v: ebm_pp.FlowGenerator(fitted().model, hidden=v),
    "FlowGenerator bound": lambda v: ebm_pp.FlowGenerator(fitted().model, bound=v),
    "FlowGenerator log_scale": lambda v: ebm_pp.FlowGenerator(fitted().model, log_scale=v),
    "Circle period": lambda v: ebm_pp.Circle(period=v),
    "EnergyModel program": lambda v: ebm_pp.EnergyModel(v),
    "EnergyModel batching": lambda v: ebm_pp.EnergyModel(Program(), batching=v),
    "fit model": lambda v: ebm_pp.fit(v, rows()),
    "fit data": lambda v: ebm_pp.fit(fitted().model, v, config=FitConfig.fast(**TINY)),
    "fit held_out": lambda v: ebm_pp.fit(
        fitted().model, rows(), config=FitConfig.fast(**TINY), held_out=v
    ),
    "fit generator": lambda v: ebm_pp.fit(
        fitted().model, rows(), v, FitConfig.fast(**TINY)
    ),
    "fit config": lambda v: v is None or ebm_pp.fit(fitted().model, rows(), config=v),
    "fit callback": lambda v: ebm_pp.fit(
        fitted().model, rows(), config=FitConfig.fast(**TINY), callback=v
    ),
    "importance_sample fit": lambda v: ebm_pp.importance_sample(v, 10),
    "independence_mh fit": lambda v: ebm_pp.independence_mh(v, 10),
    "log_partition fit": lambda v: ebm_pp.log_partition(v),
    "neutra_hmc fit": lambda v: ebm_pp.neutra_hmc(v),
    "resample draws": lambda v: ebm_pp.resample(v, 10),
    "log_prob rows": lambda v: ebm_pp.log_prob(fitted(), v, 40),
    "log_density rows": lambda v: fitted().model.log_density(v),
    "check rows": lambda v: fitted().model.check(v),
    "inside rows": lambda v: fitted().model.inside(v),
    "unconstrain rows": lambda v: fitted().model.unconstrain(v),
    "flow log_prob rows": lambda v: fitted().generator.log_prob(v),
    "diagnose fit": lambda v: ebm_pp.diagnose(v, None),
    "diagnose data": lambda v: ebm_pp.diagnose(fitted(), v, 100),
    "diagnose groups": lambda v: ebm_pp.diagnose(fitted(), rows(), 100, groups=v),
    "compare fits": lambda v: ebm_pp.compare(v, rows()),
    "compare held_out": lambda v: ebm_pp.compare({"a": fitted(), "b": fitted()}, v, n=40),
    "compare groups": lambda v: ebm_pp.compare(
        {"a": fitted(), "b": fitted()}, rows(), n=40, groups=v
    ),
    "standard_errors fit": lambda v: ebm_pp.standard_errors(v, rows(), ["w"], n=40),
    "standard_errors data": lambda v: ebm_pp.standard_errors(fitted(), v, ["w"], n=40),
    "standard_errors names": lambda v: ebm_pp.standard_errors(fitted(), rows(), v, n=40),
    "to_datatree fit": lambda v: ebm_pp.to_datatree(v, n=40),
    "to_datatree data": lambda v: ebm_pp.to_datatree(fitted(), n=40, data=v),
    "tilt program": lambda v: ebm_pp.tilt(v, fitted().generator),
    "tilt flow": lambda v: ebm_pp.tilt(Program(), v),
    "save fit": lambda v: ebm_pp.save(v, "/nowhere/fit.pt"),
    "load path": lambda v: ebm_pp.load(v, Program()),
    "pad states": lambda v: ebm_pp.pad(v, [[[1.0]]], 3),
    "pad horizon": lambda v: ebm_pp.pad([[[1.0], [2.0]]], [[[1.0]]], v),
    "shaped model": lambda v: ebm_pp.shaped(v, rows()),
    "trajectory_report fit": lambda v: ebm_pp.trajectory_report(v, rows()),
}  # fmt: skip
ARGUMENTS = {**NUMBERS, **{f"{name} seed": call for name, call in SEEDS.items()}, **OTHERS}
SMALL = st.sampled_from([v for v in ODD if not isinstance(v, int) or v < 100 or v >= 10**13])
