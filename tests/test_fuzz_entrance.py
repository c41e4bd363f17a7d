"""Arguments of any type, settings of any kind and rows of any container, at public functions."""

import dataclasses
import functools

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from fuzzing import as_users_call, odd, same, tried, weighing
from hypothesis import assume, example, given
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
    "rounds": 2, "pool": 128, "batch": 16, "energy_steps": 2, "generator_steps": 2,
    "generator_steps_max": 2, "warm_start_steps": 3, "progress": False,
}  # fmt: skip


def small(model, rows=None):
    return ebm_pp.FlowGenerator(model, rows, hidden=(8,), splines=1, bins=4)


@functools.cache
def fitted():
    """A fit of two rounds: bad weights, but everything a fit has."""
    torch.manual_seed(0)
    model = ebm_pp.EnergyModel(Program())
    data = model.sample_base(400)
    return ebm_pp.fit(model, data, small(model, data), FitConfig.fast(**TINY))


@functools.cache
def rows():
    torch.manual_seed(1)
    return fitted().model.sample_base(40)


@functools.cache
def draws():
    return ebm_pp.importance_sample(fitted(), 200, seed=0)


def twice():
    return {"a": fitted(), "b": fitted()}


def tree(**changes):
    return dict(ebm_pp.to_datatree(fitted(), **{"n": 40, **changes})["posterior"].data_vars)


def fit(model=None, data=None, generator=None, **more):
    model = ebm_pp.EnergyModel(Program()) if model is None else model
    more = {"config": FitConfig.fast(**TINY)} | more
    return ebm_pp.fit(model, rows() if data is None else data, generator, **more)


# --- one argument of any type, a call each ------------------------------------------------------
SEEDS = {
    "importance_sample": lambda v: ebm_pp.importance_sample(fitted(), 40, seed=v).log_weights,
    "resample": lambda v: ebm_pp.resample(draws(), 10, seed=v),
    "independence_mh": lambda v: ebm_pp.independence_mh(fitted(), 40, seed=v).values,
    "log_partition": lambda v: ebm_pp.log_partition(fitted(), 40, seed=v).value,
    "log_prob": lambda v: ebm_pp.log_prob(fitted(), rows(), 40, seed=v).values,
    "diagnose": lambda v: str(ebm_pp.diagnose(fitted(), rows(), 100, seed=v)),
    "compare": lambda v: ebm_pp.compare(twice(), rows(), n=40, seed=v).to_json(),
    "standard_errors": lambda v: str(
        ebm_pp.standard_errors(fitted(), rows(), ["w"], n=100, seed=v)
    ),
    "to_datatree": lambda v: str(tree(seed=v)["x"].values),
    "neutra_hmc": lambda v: ebm_pp.neutra_hmc(fitted(), 2, 1, 0, max_tree_depth=1, seed=v).values,
}
ARGUMENTS = {f"{name} seed": call for name, call in SEEDS.items()} | {
    "importance_sample n": lambda v: ebm_pp.importance_sample(fitted(), v, seed=0),
    "resample n": lambda v: ebm_pp.resample(draws(), v, seed=0),
    "independence_mh draws": lambda v: ebm_pp.independence_mh(fitted(), v, seed=0),
    "independence_mh chains": lambda v: ebm_pp.independence_mh(fitted(), draws(), v, seed=0),
    "log_partition n": lambda v: ebm_pp.log_partition(fitted(), v, seed=0),
    "log_prob n": lambda v: ebm_pp.log_prob(fitted(), rows(), v, seed=0),
    "diagnose n": lambda v: ebm_pp.diagnose(fitted(), rows(), v),
    "compare n": lambda v: ebm_pp.compare(twice(), rows(), n=v),
    "sample_base n": lambda v: fitted().model.sample_base(v),
    "standard_errors n": lambda v: ebm_pp.standard_errors(fitted(), rows(), ["w"], n=v),
    "neutra_hmc n": lambda v: ebm_pp.neutra_hmc(fitted(), v, 1, 0, max_tree_depth=1, seed=0),
    "neutra_hmc chains": lambda v: ebm_pp.neutra_hmc(fitted(), 2, v, 0, max_tree_depth=1),
    "neutra_hmc warmup": lambda v: ebm_pp.neutra_hmc(fitted(), 1, 1, v, max_tree_depth=1),
    "neutra_hmc depth": lambda v: ebm_pp.neutra_hmc(fitted(), 1, 1, 0, max_tree_depth=v),
    "to_datatree n": lambda v: tree(n=v),
    "to_datatree chains": lambda v: tree(chains=v),
    "trajectories horizon": FitConfig.trajectories,
    "EnergyNet rows": ebm_pp.EnergyNet,
    "EnergyNet width": lambda v: ebm_pp.EnergyNet(rows()["x"], v),
    "EnergyNet depth": lambda v: ebm_pp.EnergyNet(rows()["x"], 4, v),
    "EnergyNet waves": lambda v: ebm_pp.EnergyNet(rows()["x"], 4, waves=v),
    "EnergyNet wells": lambda v: ebm_pp.EnergyNet(rows()["x"], 4, wells=v),
    "EnergyNet frequency": lambda v: ebm_pp.EnergyNet(rows()["x"], 4, frequency=v),
    "FlowGenerator model": ebm_pp.FlowGenerator,
    "FlowGenerator start": lambda v: ebm_pp.FlowGenerator(fitted().model, v),
    "FlowGenerator scale": lambda v: ebm_pp.FlowGenerator(fitted().model, scale=v),
    "FlowGenerator base": lambda v: ebm_pp.FlowGenerator(fitted().model, base=v),
    "FlowGenerator affine": lambda v: ebm_pp.FlowGenerator(fitted().model, affine=v),
    "FlowGenerator splines": lambda v: ebm_pp.FlowGenerator(fitted().model, splines=v),
    "FlowGenerator bins": lambda v: ebm_pp.FlowGenerator(fitted().model, bins=v),
    "FlowGenerator hidden": lambda v: ebm_pp.FlowGenerator(fitted().model, hidden=v),
    "FlowGenerator bound": lambda v: ebm_pp.FlowGenerator(fitted().model, bound=v),
    "FlowGenerator log_scale": lambda v: ebm_pp.FlowGenerator(fitted().model, log_scale=v),
    "Circle period": lambda v: ebm_pp.Circle(period=v),
    "EnergyModel program": ebm_pp.EnergyModel,
    "EnergyModel batching": lambda v: ebm_pp.EnergyModel(Program(), batching=v),
    "fit model": lambda v: ebm_pp.fit(v, rows()),
    "fit data": lambda v: v is None or fit(data=v),
    "fit held_out": lambda v: fit(held_out=v),
    "fit generator": lambda v: v is None or fit(generator=v),
    "fit config": lambda v: v is None or fit(config=v),
    "fit callback": lambda v: callable(v) or fit(callback=v),
    "importance_sample fit": lambda v: ebm_pp.importance_sample(v, 10),
    "independence_mh fit": lambda v: ebm_pp.independence_mh(v, 10),
    "log_partition fit": ebm_pp.log_partition,
    "neutra_hmc fit": ebm_pp.neutra_hmc,
    "resample draws": lambda v: ebm_pp.resample(v, 10),
    "log_prob fit": lambda v: ebm_pp.log_prob(v, rows()),
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
    "compare fit": lambda v: ebm_pp.compare({"a": v, "b": fitted()}, rows()),
    "compare held_out": lambda v: ebm_pp.compare(twice(), v, n=40),
    "compare groups": lambda v: ebm_pp.compare(twice(), rows(), n=40, groups=v),
    "standard_errors fit": lambda v: ebm_pp.standard_errors(v, rows(), ["w"], n=40),
    "standard_errors data": lambda v: ebm_pp.standard_errors(fitted(), v, ["w"], n=40),
    "standard_errors names": lambda v: ebm_pp.standard_errors(fitted(), rows(), v, n=40),
    "to_datatree fit": lambda v: ebm_pp.to_datatree(v, n=40),
    "to_datatree data": lambda v: ebm_pp.to_datatree(fitted(), n=40, data=v),
    "tilt program": lambda v: callable(v) or ebm_pp.tilt(v, fitted().generator),
    "tilt flow": lambda v: ebm_pp.tilt(Program(), v),
    "save fit": lambda v: ebm_pp.save(v, "/nowhere/fit.pt"),
    "load path": lambda v: ebm_pp.load(v, Program()),
    "pad states": lambda v: ebm_pp.pad(v, [[[1.0]]], 3),
    "pad actions": lambda v: ebm_pp.pad([[[1.0], [2.0]]], v, 3),
    "pad horizon": lambda v: ebm_pp.pad([[[1.0], [2.0]]], [[[1.0]]], v),
    "shaped model": lambda v: ebm_pp.shaped(v, rows()),
    "trajectory_report fit": lambda v: ebm_pp.trajectory_report(v, rows()),
}
LATE = ["fit data", "fit held_out", "EnergyModel program"]  # hypothesis draws them least


# How many there are of what a number of draws or rows was asked for.
COUNTED = {
    "importance_sample n": lambda drawn: len(drawn.log_weights),
    "resample n": lambda drawn: len(drawn["x"]),
    "independence_mh chains": lambda chains: len(chains.values["y"]),
    "sample_base n": lambda drawn: len(drawn["y"]),
    "to_datatree n": lambda drawn: drawn["y"].size,
}


@weighing(8)
@given(st.sampled_from(sorted(ARGUMENTS)), odd)
@example("importance_sample n", 2)
@example("independence_mh chains", np.uint64(5))
@example("to_datatree n", np.int8(3))
@example("sample_base n", torch.tensor(3))
@example("resample n", 2.5)
def test_an_argument_of_any_type_works_or_is_refused_by_name(name, value):
    before = fitted().model.energy(rows()).detach()
    found = tried(ARGUMENTS[name], value)
    if name in COUNTED and found is not None:
        assert COUNTED[name](found) == value
    assert same(fitted().model.energy(rows()).detach(), before)


whole = st.integers(-3, 2**64 - 1) | st.sampled_from([0, 1, 2**31, 2**63, 2**64 - 1])


@weighing(2)
@given(st.sampled_from(sorted(SEEDS)), whole, st.sampled_from([int, np.int64, np.uint64]))
def test_one_seed_gives_one_answer_and_leaves_the_global_stream_alone(name, seed, kind):
    assume(kind is int or 0 <= seed < 2**63)
    before = torch.random.get_rng_state()
    with as_users_call():
        one, other = SEEDS[name](kind(seed)), SEEDS[name](seed)
    assert same(one, other)
    assert torch.equal(torch.random.get_rng_state(), before)


# --- settings -----------------------------------------------------------------------------------
FIELDS = [field.name for field in dataclasses.fields(FitConfig)]
setting = (
    odd
    | st.integers(-2, 10**13)
    | st.floats()
    | st.floats(width=32).map(np.float32)
    | st.sampled_from(
        ["discriminator", "importance", "causal", "reverse_kl", "gradient", "jensen"]
    )
    | st.fractions()
    | st.decimals()
)


@weighing(8)
@given(st.dictionaries(st.sampled_from(FIELDS), setting, min_size=1, max_size=4))
def test_settings_are_kept_as_given_or_refused_by_name(settings):
    found = tried(FitConfig, names=[], **settings)
    if found is None:
        with pytest.raises(ebm_pp.ConfigError) as caught, as_users_call():
            FitConfig(**settings)
        refused = [name for name in settings if f"{name}={settings[name]!r}" in str(caught.value)]
        assert refused
        return
    for name, value in settings.items():
        kept = getattr(found, name)
        assert kept is value or kept == value
        assert type(kept) in (int, float, bool, str, type(None))
    assert dataclasses.replace(found) == found
