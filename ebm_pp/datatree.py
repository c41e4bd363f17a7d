"""Everything a fit knows, as an ArviZ `DataTree`: the only file that calls ArviZ's constructors.

| group | dimensions | content |
|---|---|---|
| posterior | chain, draw | each site, from independence-MH chains: draws of p_theta |
| sample_stats | chain, draw | log_density, log_q, log_weight, energy, acceptance of every state |
| proposal | chain (one), draw | each site as the generator drew it, and log_weight |
| observed_data | row | the data |
| log_likelihood | chain, draw (one each), row | log p~ - log Z of the data |
| training | round | the history of the fit |

"posterior" is ArviZ's word for the draws to summarise. A fit has no draws of its parameters, so
the log likelihood has a single chain and draw: leave-one-out needs more and does not apply. A `/`
in a site's name is written `.`, because it would be a path in the tree.

Of a fit to trajectories every group has `states` (time, state) and `actions` (step, action),
however the program named its sites, and `cost` (term), so that
`arviz_stats.summary(tree, var_names=["cost"])` is short. `time` counts states, 0 to T, `step`
actions, 0 to T - 1; integers stay integers and have no last dimension.

Save with `tree.to_netcdf(path, engine="h5netcdf")`.
"""

import dataclasses
import enum
import json
import math
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Protocol, runtime_checkable

import arviz_base
import numpy as np
import torch
import xarray
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from ebm_pp.density import EnergyModel, Sites
from ebm_pp.evidence import Diagnosable, cost_features
from ebm_pp.partition import Estimate, log_partition_from_weights
from ebm_pp.sampling import (
    Chains,
    Draws,
    log_density_of,
    metropolis,
    propose,
    seeded,
    slices,
    walk,
)
from ebm_pp.stored import representative

Variables = dict[str, NDArray[Any]]


@runtime_checkable
class Recorded(Diagnosable, Protocol):
    """What the tree takes from a `Fit`."""

    @property
    def history(self) -> tuple[dict[str, Any], ...]:
        """A record per diagnosed round."""
        ...

    @property
    def status(self) -> enum.Enum:
        """How the run ended."""
        ...

    @property
    def config(self) -> Any:  # noqa: ANN401 - any dataclass
        """What it ran with."""
        ...


def to_datatree(
    source: Recorded | Draws | Chains,
    *,
    data: Mapping[str, Any] | None = None,
    n: int = 4000,
    chains: int = 4,
    seed: int | None = 0,
) -> xarray.DataTree:
    """An ArviZ `DataTree` of a fit, of weighted draws, or of chains.

    Args:
        source: a fit (all groups), `Draws` (posterior, sample_stats, proposal) or `Chains`, for
            instance of `neutra_hmc` (posterior, sample_stats).
        data: rows of every site, for observed_data and, with a fit, log_likelihood; of more than
            100,000 so many are taken, spread over all of them.
        n: draws of the generator; only for a fit.
        chains: number of chains through the draws.
        seed: of the draws and chains.

    Returns:
        The tree; its attributes hold log Z with its error, ESS fraction, k-hat, versions and seed,
        and for a fit its status, configuration (JSON), offset and number of training rows.

    Raises:
        DataError: the data do not fit the program.
        ProgramError: the density or log q of a draw is not a number.
        GeneratorError: no draw of the generator has any weight.
    """
    groups: dict[str, Variables] = {}
    attributes: dict[str, Any] = {"seed": "none" if seed is None else seed}
    rows: Sites | None = None
    values: Sites = {}
    if isinstance(source, Chains):
        groups = _chain_groups(source)
    elif isinstance(source, Draws):
        groups = {**_walk(source, chains, seed), "proposal": _proposal(source)}
        attributes |= _estimate(log_partition_from_weights(source.log_weights))
    else:
        with seeded(seed):
            values, log_density, log_q = propose(source, n)
            walked = walk(values, log_density, log_q, chains)
        draws = Draws(values, log_density - log_q)
        groups = {
            **_chain_groups(walked, source.model),
            "proposal": _proposal(draws, source.model),
        }
        log_z = log_partition_from_weights(draws.log_weights)
        attributes |= _estimate(log_z) | _record(source)
        if data is not None:
            rows = representative(source.model.stored(data))
            log_likelihood = log_density_of(source.model, rows) - log_z.value
            groups["log_likelihood"] = {"joint": _array(log_likelihood)[None, None]}
    model = None if isinstance(source, Chains | Draws) else source.model
    if model is None and data is not None:
        rows = representative(data)
    dims = _dims(groups["posterior"], 2, model) | {"joint": ["row"]}
    coords = {} if model is None else _coordinates(model, groups["posterior"], values)
    tree = arviz_base.from_dict(groups, dims=dims, coords=coords)
    if rows is not None:
        observed = _variables(rows, model)
        dims = _dims(observed, 1, model)
        tree.update(arviz_base.from_dict({"observed_data": observed}, dims=dims, coords=coords))
    history = getattr(source, "history", ())
    if history:
        tree["training"] = xarray.DataTree(_training(history))
    tree.attrs.update(attributes | _versions())
    return tree


def _chain_groups(walked: Chains, model: EnergyModel | None = None) -> dict[str, Variables]:
    """Posterior and sample_stats; the energy too if the model is at hand."""
    statistics = {
        "log_density": _array(walked.log_density),
        "log_q": _array(walked.log_q),
        "log_weight": _array(walked.log_weights),
        "acceptance": _array(walked.accepted.double()),
    }
    if model is not None:
        flat = {name: value.flatten(0, 1) for name, value in walked.values.items()}
        statistics["energy"] = _array(_energy(model, flat).reshape(walked.log_q.shape))
    return {"posterior": _variables(walked.values, model), "sample_stats": statistics}


@torch.no_grad()
def _energy(model: EnergyModel, x: Sites) -> Float[Tensor, " n"]:
    return torch.cat([model.energy(piece) for piece in slices(x)])


def _walk(draws: Draws, chains: int, seed: int | None) -> dict[str, Variables]:
    """Posterior and sample_stats from draws alone: the weights suffice for the chains."""
    steps = len(draws.log_weights) // chains
    with seeded(seed):
        index, _ = metropolis(draws.log_weights[: chains * steps].reshape(chains, steps))
    moved = torch.ones_like(index, dtype=torch.float64)
    moved[:, 1:] = (index[:, 1:] != index[:, :-1]).double()
    states = {name: value[index] for name, value in draws.values.items()}
    statistics = {"log_weight": _array(draws.log_weights[index]), "acceptance": _array(moved)}
    return {"posterior": _variables(states), "sample_stats": statistics}


def _proposal(draws: Draws, model: EnergyModel | None = None) -> Variables:
    found = {**_variables(draws.values, model), "log_weight": _array(draws.log_weights)}
    return {name: value[None] for name, value in found.items()}


def _variables(x: Sites, model: EnergyModel | None = None) -> Variables:
    if model is not None and model.layout is not None:
        return _trajectory_variables(x, model)
    return {name.replace("/", "."): _array(value) for name, value in x.items()}


@torch.no_grad()
def _trajectory_variables(x: Sites, model: EnergyModel) -> Variables:
    """States, actions and costs; of rows, or of chains of them."""
    assert model.layout is not None
    first = next(iter(model.sites.values()))
    value = x[first.name]
    leading = value.shape[: value.dim() - len(first.shape)]
    flat = {name: value.flatten(0, len(leading) - 1) for name, value in x.items()}
    tau = model.layout.pack(flat)
    costs = -torch.stack([*cost_features(model, flat).values()], -1)
    parts = {"states": tau.states, "actions": tau.actions, "cost": costs}
    return {name: _array(part.unflatten(0, leading)) for name, part in parts.items()}


def _coordinates(model: EnergyModel, variables: Variables, draws: Sites) -> dict[str, list[Any]]:
    """Of trajectories: numbers of times, steps, states and actions; names of cost terms."""
    if model.layout is None:
        return {}
    found: dict[str, list[Any]] = {}
    for name, dims in _trajectory_dims(model).items():
        sizes = variables[name].shape[2:]
        found |= {dim: list(range(size)) for dim, size in zip(dims, sizes, strict=True)}
    one = {name: value[:1] for name, value in draws.items()}
    return found | {"term": list(cost_features(model, one))}


def _trajectory_dims(model: EnergyModel) -> dict[str, list[str]]:
    assert model.layout is not None
    dynamics = model.layout.dynamics
    return {
        "states": ["time"] if dynamics.space.n else ["time", "state"],
        "actions": ["step"] if dynamics.actions.n else ["step", "action"],
        "cost": ["term"],
    }


def _array(value: Tensor) -> NDArray[Any]:
    return value.detach().cpu().numpy()


def _dims(
    variables: Variables, leading: int, model: EnergyModel | None = None
) -> dict[str, list[str]]:
    """Names of the dimensions: `row` for data (one leading dimension), then those of the site."""
    rows = ["row"] if leading == 1 else []
    if model is not None and model.layout is not None:
        return {name: rows + dims for name, dims in _trajectory_dims(model).items()}
    return {
        name: rows + [f"{name}_dim_{i}" for i in range(value.ndim - leading)]
        for name, value in variables.items()
    }


def _training(history: tuple[dict[str, Any], ...]) -> xarray.Dataset:
    """One variable per entry of the records, along `round`; a missing entry is nan or ''."""
    records = [_flat(record) for record in history]
    names = dict.fromkeys(name for record in records for name in record)
    rounds = [record.get("round", i) for i, record in enumerate(records)]
    variables = {}
    for name in names:
        if name == "round":
            continue
        column = [record.get(name) for record in records]
        if any(isinstance(value, str) for value in column):
            texts = ["" if value is None else str(value) for value in column]
            variables[name] = ("round", np.array(texts, dtype=object))
        else:
            numbers = [math.nan if value is None else float(value) for value in column]
            variables[name] = ("round", np.array(numbers))
    return xarray.Dataset(variables, coords={"round": rounds})


def _flat(record: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested records with dotted names; enumerations by name."""
    found: dict[str, Any] = {}
    for name, value in record.items():
        if isinstance(value, dict):
            found |= _flat(value, f"{prefix}{name}.".replace("/", "."))
        else:
            plain = value.name if isinstance(value, enum.Enum) else value
            found[f"{prefix}{name}".replace("/", ".")] = plain
    return found


def _estimate(log_z: Estimate) -> dict[str, float]:
    return {
        "log_partition": log_z.value,
        "log_partition_standard_error": log_z.standard_error,
        "ess_fraction": log_z.ess,
        "pareto_k": log_z.pareto_k,
    }


def _record(fit: Recorded) -> dict[str, Any]:
    config = dataclasses.asdict(fit.config)
    return {
        "status": fit.status.name,
        "status_sentence": str(fit.status.value),
        "offset": float(fit.offset),
        "n_train": fit.n_train,
        "config": json.dumps(config, default=str),
    }


def _versions() -> dict[str, str]:
    packages = {"ebm_pp": "ebm-pp", "pyro": "pyro-ppl", "arviz_base": "arviz-base"}
    found = {f"{name}_version": _version(package) for name, package in packages.items()}
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return found | {"torch_version": str(torch.__version__), "created_at": now}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
