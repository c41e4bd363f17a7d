"""Everything a fit knows, as an ArviZ `DataTree`: the only file that calls ArviZ's constructors.

| group | dimensions | content |
|---|---|---|
| posterior | chain, draw | each site, from independence-MH chains: draws of p_theta |
| sample_stats | chain, draw | log_density, log_q, log_weight, energy, acceptance of every state |
| posterior_predictive | chain, draw, row | data sets drawn from p_theta, for `plot_ppc_dist` |
| proposal | chain (one), draw | each site as the generator drew it, and log_weight |
| observed_data | row | the data |
| log_likelihood | chain, draw (one each), row | log p~ - log Z of the data |
| training | round | the history of the fit |

"posterior" is ArviZ's word for the draws to summarise. The log likelihood of a fit has a single
chain and draw, with which leave-one-out can do nothing. With `uncertainty`, what `standard_errors`
found, the tree is about the learned parameters instead, and `loo`, `plot_khat`, `compare` apply:

| group | dimensions | content |
|---|---|---|
| posterior | chain, draw | each parameter, normal around the learned one (parameter_draws.py) |
| sample_stats | chain, draw | log_partition and ess_fraction: log Z at these parameters |
| log_likelihood | chain, draw, row | log p of the data at these parameters |

and posterior_predictive, proposal, observed_data and training as above. A site's name that would
be lost in the tree (`a/b`, `draw`, `v_dim_0`) is changed as little as need be; see
`names.variable_names`.

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
import warnings
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

from ebm_pp.chains import Chains, metropolis, walk
from ebm_pp.counts import count, seed_of, steps_each
from ebm_pp.density import EnergyModel, Sites
from ebm_pp.errors import DataError
from ebm_pp.evidence import Diagnosable, cost_features
from ebm_pp.names import variable_names
from ebm_pp.parameter_draws import parameter_draws
from ebm_pp.partition import Estimate, log_partition_from_weights
from ebm_pp.pool import n_rows
from ebm_pp.sampling import (
    Draws,
    log_density_of,
    propose,
    require_fit,
    resample,
    seeded,
    slices,
)
from ebm_pp.stored import representative
from ebm_pp.uncertainty import Uncertainty

REPLICATES, REPLICATE_ROWS = 15, 2000  # data sets a chain, and at most so many rows of each
PARAMETER_DRAWS = 100  # a chain
# Dimensions before those of the site: (row), (chain, draw, row); (chain, draw) in other groups.
LEADING = {"observed_data": 1, "log_likelihood": 3, "posterior_predictive": 3}

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
    uncertainty: Uncertainty | None = None,
    n: int = 4000,
    chains: int = 4,
    seed: int | None = 0,
) -> xarray.DataTree:
    """An ArviZ `DataTree` of a fit, of weighted draws, or of chains; see the module.

    Args:
        source: a fit (all groups), `Draws` (posterior, sample_stats, proposal) or `Chains`, for
            instance of `neutra_hmc` (posterior, sample_stats).
        data: rows of every site, for observed_data and, with a fit, log_likelihood and
            posterior_predictive; of more than 100,000 so many are taken, spread over all of them.
        uncertainty: of `standard_errors(fit, data)`, for a tree of the parameters; `data` are then
            the rows trained on, as for any leave-one-out.
        n: draws of the generator; only for a fit.
        chains: number of chains through the draws.
        seed: of the draws and chains.

    Returns:
        The tree; its attributes hold log Z with its error, ESS fraction, k-hat, versions and seed,
        and for a fit its status, configuration (JSON), offset and number of training rows.

    Raises:
        DataError: the data do not fit the program, or `uncertainty` comes without fit or data.
        ProgramError: most draws have no density.
        GeneratorError: no draw of the generator has any weight.
    """
    if uncertainty and (data is None or isinstance(source, Chains | Draws)):
        raise DataError(
            "to_datatree: uncertainty came without a fit and data; expected both.\n"
            "  Pass the fit and the rows it was trained on: to_datatree(fit, data=rows, ...)."
        )
    if not isinstance(source, Chains | Draws):
        require_fit("to_datatree", source)
    seed, chains = seed_of(seed), count("chains", chains)
    attributes: dict[str, Any] = {"seed": "none" if seed is None else seed}
    model = None if isinstance(source, Chains | Draws) else source.model
    rows = None
    if data is not None:
        rows = representative(data if model is None else model.stored(data))
    draws: Draws | None = None
    if isinstance(source, Chains):
        groups = _chain_groups(source)
    elif isinstance(source, Draws):
        groups, draws = _walk(source, chains, seed) | {"proposal": _proposal(source)}, source
    else:
        groups, draws = _fit_groups(source, rows, uncertainty, n, chains, seed)
        attributes |= _record(source)
    if draws:
        attributes |= _estimate(log_partition_from_weights(draws.log_weights))
    if rows is not None:
        groups["observed_data"] = _variables(rows, model)
    tree = _tree(groups, _trajectory_dims(model), _coordinates(model, draws))
    history = getattr(source, "history", ())
    if history:
        tree["training"] = xarray.DataTree(_training(history))
    tree.attrs.update(attributes | _versions())
    return tree


def _fit_groups(
    source: Recorded,
    rows: Sites | None,
    uncertainty: Uncertainty | None,
    n: int,
    chains: int,
    seed: int | None,
) -> tuple[dict[str, Variables], Draws]:
    """The groups of a fit but observed_data and training, and its draws."""
    model = source.model
    with seeded(seed):
        drawn = propose(source, n)
        walked = walk(drawn.values, drawn.log_density, drawn.log_q, chains)
    draws = Draws(drawn.values, drawn.log_weights, drawn.rejected)
    groups = {**_chain_groups(walked, model), "proposal": _proposal(draws, model)}
    if rows is None:
        return groups, draws
    size = (chains, REPLICATES, min(n_rows(rows), REPLICATE_ROWS))
    if uncertainty:
        with seeded(seed):
            massive = drawn.with_mass()
            of = parameter_draws(
                model, rows, uncertainty, massive.values, massive.log_q,
                (chains, PARAMETER_DRAWS), size[1:],
            )  # fmt: skip
        statistics = {"log_partition": of.log_partition, "ess_fraction": of.ess}
        log_likelihood, replicates = of.log_likelihood, of.replicates
        groups |= {"posterior": _variables(of.values), "sample_stats": _variables(statistics)}
    else:
        log_z = log_partition_from_weights(draws.log_weights)
        log_likelihood = (log_density_of(model, rows) - log_z.value)[None, None]
        again = resample(draws, math.prod(size), seed=seed)
        replicates = {name: value.unflatten(0, size) for name, value in again.items()}
    predictive = _variables(replicates, model)
    joint = {"joint": _array(log_likelihood)}
    return groups | {"log_likelihood": joint, "posterior_predictive": predictive}, draws


def _tree(
    groups: dict[str, Variables], known: dict[str, list[str]], coords: dict[str, list[Any]]
) -> xarray.DataTree:
    """Groups with names for their dimensions, each made apart: they differ in draws and rows."""
    tree = xarray.DataTree()
    for group, variables in groups.items():
        leading = LEADING.get(group, 2)
        rows = ["row"] if leading != 2 else []
        dims = {
            name: rows + known.get(name, [f"{name}_dim_{i}" for i in range(value.ndim - leading)])
            for name, value in variables.items()
        }
        with warnings.catch_warnings():  # of fewer draws than chains: the caller asked for them
            warnings.filterwarnings("ignore", "Found chain dimension to be longer", UserWarning)
            made = arviz_base.from_dict({group: variables}, dims=dims, coords=coords)
        tree[group] = made[group]
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
    steps = steps_each(len(draws.log_weights), chains)
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
    names = variable_names(x)
    return {names[name]: _array(value) for name, value in x.items()}


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


def _coordinates(model: EnergyModel | None, draws: Draws | None) -> dict[str, list[Any]]:
    """Of trajectories: numbers of times, steps, states and actions; names of cost terms."""
    if model is None or model.layout is None or draws is None:
        return {}
    one = _trajectory_variables({name: value[:1] for name, value in draws.values.items()}, model)
    found: dict[str, list[Any]] = {}
    for name, dims in _trajectory_dims(model).items():
        found |= {dim: list(range(n)) for dim, n in zip(dims, one[name].shape[1:], strict=True)}
    return found | {"term": list(cost_features(model, draws.values))}


def _trajectory_dims(model: EnergyModel | None) -> dict[str, list[str]]:
    """Of a trajectory's variables, whatever its program calls the sites."""
    if model is None or model.layout is None:
        return {}
    dynamics = model.layout.dynamics
    return {
        "states": ["time"] if dynamics.space.n else ["time", "state"],
        "actions": ["step"] if dynamics.actions.n else ["step", "action"],
        "cost": ["term"],
    }


def _array(value: Tensor) -> NDArray[Any]:
    return value.detach().cpu().numpy()


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
