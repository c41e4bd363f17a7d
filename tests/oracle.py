"""Models of the tiny programs, draws inside their supports, and Pyro's own answer."""

import contextlib
import copy
import warnings

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine

from ebm_pp.density import EnergyModel


def compiled(entry, **kwargs):
    """A model of a fresh copy of an entry's program."""
    with warnings.catch_warnings():
        if entry.warns:
            warnings.simplefilter("ignore", UserWarning)
        return EnergyModel(copy.deepcopy(entry.make()), *copy.deepcopy(entry.args), **kwargs)


def inside(model, n):
    """Draws inside every support, from coordinates of the size of one."""
    z = torch.randn(n, model.dim, dtype=model.dtype)
    return model.constrain(z)[0]


@contextlib.contextmanager
def double():
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


def load_parameters(model):
    """Put the model's `pyro.param` values where Pyro looks for them."""
    for name, constraint in model._declared.items():
        start = getattr(model, "param:" + name.replace(".", "%2E"))
        value = dist.transforms.transform_to(constraint)(start)
        pyro.param(name, value.detach(), constraint=constraint)


def by_trace(model, x):
    """The oracle: Pyro's own trace, draw by draw, with the model's `pyro.param` values."""
    rows = []
    for i in range(len(next(iter(x.values())))):
        with pyro.get_param_store().scope():
            load_parameters(model)
            conditioned = poutine.condition(
                model.program, data={name: value[i] for name, value in x.items()}
            )
            trace = poutine.trace(conditioned).get_trace(*model.args, **model.kwargs)
            trace.compute_log_prob()
            rows.append(
                {
                    name: node["log_prob_sum"]
                    for name, node in trace.nodes.items()
                    if node["type"] == "sample"
                    and not isinstance(node["fn"], pyro.poutine.subsample_messenger._Subsample)
                    and not (node["is_observed"] and getattr(node["fn"], "_mask", None) is False)
                    and not (node["is_observed"] and node["mask"] is False)
                }
            )
    return {name: torch.stack([row[name].detach() for row in rows]) for name in rows[0]}
