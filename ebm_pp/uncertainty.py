"""Standard errors of learned parameters, from the importance-weighted likelihood.

The mean log-likelihood of rows x_i under p_theta = p~ / Z, with Z from draws y_j of q,

    l(theta) = mean_i log p~(x_i) - log Z(theta),    s = d log p~ / d theta,

has minus its Hessian, and the covariance of its score over rows,

    A = -mean_i d2 log p~(x_i) + sum_j W_j d2 log p~(y_j) + Cov_W[s(y)],    B = Cov_data[s(x)],

W_j the self-normalised, Pareto-smoothed weights. The maximum-likelihood parameters of n rows
scatter with covariance

    V = A^-1 B A^-1 / n,

whether or not the program is right (White 1982, Econometrica 50:1, theorem 3.2); if it is, A = B
and V = A^-1 / n, the inverse Fisher information. A^-1 [mean_i s(x_i) - sum_j W_j s(y_j)] is the
Newton step from the parameters at hand to the maximum, which says whether the fit has got there.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from pyro.nn import PyroModule
from torch import Tensor
from torch.distributions import constraints, transform_to

from ebm_pp.density import EnergyModel, Sites
from ebm_pp.errors import ProgramError
from ebm_pp.evidence import Diagnosable
from ebm_pp.labels import Labels, rows_and_labels
from ebm_pp.pareto import psis, threshold
from ebm_pp.pool import n_rows
from ebm_pp.rows import columns_as_html, columns_as_text
from ebm_pp.sampling import propose, require_fit, seeded, slices
from ebm_pp.surroundings import trainable

MOST = 500  # parameters: their Hessian takes as many backward passes
FLAT = 1e-6  # of the largest eigenvalue of A, scaled to a unit diagonal: no curvature below it


@dataclass(frozen=True)
class Uncertainty:
    """Learned parameters with their standard errors: print it, or show it in a notebook.

    All arrays are in float64, in the order of `names`.

    Attributes:
        names: one per number, `coupling_weights[3]`.
        factors: the terms of the program that each number enters, by name.
        values: as the program sees them, constraints included.
        standard_errors: square roots of the covariance's diagonal.
        covariance: V, shape (k, k).
        shift: the Newton step to the maximum of the rows' likelihood; small against the standard
            errors where the fit has converged.
        shift_error: one standard error of `shift`, from the draws alone; it falls with root n.
        pareto_k: of the weights behind A; too high, nothing here can be trusted.
        draws: how many these were.
        parameters: their names in `model.named_parameters()`, one per tensor.
        information: A, in the unconstrained numbers of `parameters`, shape (m, m).
        rows: the n of the covariance, rows trained on.
    """

    names: tuple[str, ...]
    factors: tuple[str, ...]
    values: Float[Tensor, " k"]
    standard_errors: Float[Tensor, " k"]
    covariance: Float[Tensor, "k k"]
    shift: Float[Tensor, " k"]
    shift_error: Float[Tensor, " k"]
    pareto_k: float
    draws: int
    parameters: tuple[str, ...]
    information: Float[Tensor, "m m"]
    rows: int

    @property
    def ok(self) -> bool:
        """Whether the weights carry these numbers."""
        return self.pareto_k <= threshold(self.draws)

    @property
    def verdict(self) -> str:
        """A sentence on what the numbers are worth."""
        if not self.ok:
            return (
                f"Not to be trusted: Pareto k {self.pareto_k:.2f} of the weights is above "
                f"{threshold(self.draws):.2f}. Look at diagnose(fit, rows) first."
            )
        far, noise = (
            self.shift.abs() / self.standard_errors,
            self.shift_error / self.standard_errors,
        )
        clear = far - 3 * noise
        if clear.max() > 1:
            worst = int(clear.argmax())
            return (
                f"The fit is {far[worst]:.1f} standard errors from the likelihood's maximum in "
                f"{self.names[worst]}: train longer, or with less averaging (FitConfig.average)."
            )
        if far.max() > 1:
            return (
                f"{self.draws} draws place the likelihood's maximum only to within "
                f"{3 * noise.max():.1f} standard errors of the parameters: raise n."
            )
        return "At the likelihood's maximum within one standard error; weights are healthy."

    def __str__(self) -> str:
        return columns_as_text(self._columns(), self.verdict)

    def _repr_html_(self) -> str:
        return columns_as_html(self._columns(), self.verdict)

    def _columns(self) -> dict[str, list[str]]:
        def column(numbers: Tensor) -> list[str]:
            return [f"{number:.4g}" for number in numbers.tolist()]

        return {
            "parameter": list(self.names),
            "value": column(self.values),
            "standard error": column(self.standard_errors),
            "to the maximum": column(self.shift),
            "factors": list(self.factors),
        }


@trainable()
def standard_errors(
    fit: Diagnosable,
    data: Mapping[str, Any],
    parameters: Sequence[str] | None = None,
    *,
    n: int = 10_000,
    groups: Labels | None = None,
    seed: int | None = 0,
) -> Uncertainty:
    """Standard errors of the parameters of named factors; see the module.

    They hold for the maximum-likelihood estimate. A prior (`FitConfig.energy_decay` on weight
    matrices), or a long average, shrinks parameters: a bias that is not in them. Parameters that
    are not named are held fixed, as if they were known.

    Args:
        fit: a fit.
        data: the rows it was fitted to; of more than 100,000 so many are taken.
        parameters: names as in `model.named_parameters()`, or their endings ("coupling_weights").
            By default all.
        n: draws of the generator.
        groups: a label per row; only rows of different groups count as independent.
        seed: of the draws; the global random stream is left alone.

    Returns:
        Values, standard errors and their covariance.

    Raises:
        ProgramError: no such parameter; more than 500 numbers; a trajectory; or the data do not
            determine some parameter, which the text names.
        DataError: the data do not fit the program, or groups are not one label a row.

    Examples:
        >>> print(standard_errors(result, rows, ["coupling_weights"]))  # doctest: +SKIP
        parameter            value   standard error  to the maximum  factors
        coupling_weights[0]  0.1339  0.01094         0.0008          coupling
    """
    require_fit("standard_errors", fit)
    model = fit.model
    if model.layout is not None:
        raise ProgramError(
            "standard_errors: the program is a trajectory, whose log Z is one per start state; "
            "expected another program.\n  For tabular costs use ebm_pp.tabular_fit."
        )
    x, labels = rows_and_labels(model, data, groups)
    chosen = _chosen(model, parameters)
    with seeded(seed):
        drawn = propose(fit, n).with_mass()
    y = drawn.values
    smoothed, pareto_k = psis(drawn.log_weights.double())
    s, gap, noise, a, moment = _information(model, x, y, smoothed.exp(), list(chosen.values()))
    jacobian, values, names, owner = _as_seen(model, chosen)
    _require_curved(a, moment, names if len(names) == len(a) else list(map(str, range(len(a)))))
    root, rows = jacobian @ torch.linalg.inv(a), fit.n_train or len(s)
    covariance = root @ _covariance(s, labels) @ root.T / rows
    factors = _factors(model, x, list(chosen.values()))
    return Uncertainty(
        names=tuple(names),
        factors=tuple(factors[i] for i in owner),
        values=values,
        standard_errors=covariance.diagonal().sqrt(),
        covariance=covariance,
        shift=root @ gap,
        shift_error=(root @ noise @ root.T).diagonal().sqrt(),
        pareto_k=pareto_k,
        draws=n,
        parameters=tuple(chosen),
        information=a,
        rows=rows,
    )


def _information(
    model: EnergyModel,
    x: Sites,
    y: Sites,
    weights: Float[Tensor, " m"],
    parameters: list[Tensor],
) -> tuple[
    Float[Tensor, "n k"],
    Float[Tensor, " k"],
    Float[Tensor, "k k"],
    Float[Tensor, "k k"],
    Float[Tensor, " k"],
]:
    """The scores of the rows, the gradient of l, its covariance over draws, A, and E_W[s^2]."""
    equal = torch.full((n_rows(x),), 1 / n_rows(x), dtype=torch.float64, device=model.device)
    s_data, hessian_data = _scores(model, x, equal, parameters)
    s_draws, hessian_draws = _scores(model, y, weights, parameters)
    centred = s_draws - weights @ s_draws
    a = hessian_draws - hessian_data + centred.T @ (weights[:, None] * centred)
    gap = equal @ s_data - weights @ s_draws
    carried = weights[:, None] * centred
    return s_data, gap, carried.T @ carried, 0.5 * (a + a.T), weights @ s_draws.square()


def _chosen(model: EnergyModel, endings: Sequence[str] | None) -> dict[str, Tensor]:
    """The trained parameters with these names or endings."""
    every = {name: p for name, p in model.named_parameters() if p.requires_grad}
    called = {name: readable(name) for name in every}
    found: dict[str, Tensor] = {**every}
    if endings is not None:
        endings, found = _names(endings), {}
        for ending in endings:
            fits = [
                name
                for name in every
                if ending in (name, called[name]) or called[name].endswith("." + ending)
            ]
            if not fits:
                raise ProgramError(
                    f"parameter {ending!r} is not one of {sorted(called.values())}.\n"
                    "  Take a name from model.named_parameters(), or its ending."
                )
            found |= {name: every[name] for name in fits}
    size = sum(p.numel() for p in found.values())
    if not 0 < size <= MOST:
        sizes = ", ".join(f"{called[name]} ({p.numel()})" for name, p in found.items())
        raise ProgramError(
            f"standard_errors of {size} numbers; expected 1 to {MOST}: {sizes}.\n"
            "  Most likely a network, whose single weights mean nothing: name the parameters "
            "that do, parameters=['...']. The others are held fixed."
        )
    return found


def _names(endings: object) -> list[str]:
    """A list of names; one alone is a list of one."""
    if isinstance(endings, str):
        return [endings]
    if isinstance(endings, Iterable) and getattr(endings, "ndim", 1) == 1:
        listed = [*endings]
        if all(isinstance(name, str) for name in listed):
            return listed
    raise ProgramError(
        f"standard_errors: parameters={endings!r}; expected a list of names.\n  Take them from "
        "model.named_parameters(), or leave them out for all."
    )


def readable(name: str) -> str:
    """A parameter's name as its user wrote it."""
    if name.startswith("param:"):
        return name.removeprefix("param:").replace("%2E", ".")
    name = name.removeprefix("program.").removeprefix("networks.0.")
    return name.removesuffix("_unconstrained")


def _scores(
    model: EnergyModel, x: Sites, weights: Float[Tensor, " n"], parameters: list[Tensor]
) -> tuple[Float[Tensor, "n k"], Float[Tensor, "k k"]]:
    """The scores s of all rows, and the weighted sum of second derivatives of log p~; float64.

    sum_i v_i log p~(x_i) has in v the derivative log p~(x_i): differentiated in theta first and
    then in v it gives the scores of all rows, k backward passes in all.
    """
    scores, hessians, start = [], [], 0
    for piece in slices(x):
        m = n_rows(piece)
        v = weights[start : start + m].to(model.dtype).requires_grad_()
        start += m
        with torch.enable_grad():
            total = (v * model.log_density(piece)).nan_to_num(0.0).sum()
            first = torch.autograd.grad(total, parameters, create_graph=True, allow_unused=True)
        flat = torch.cat(
            [
                (torch.zeros_like(p) if g is None else g).flatten()
                for g, p in zip(first, parameters, strict=True)
            ]
        )
        columns, second = [], []
        for number in flat:
            into = (v, *parameters)
            parts: Sequence[Tensor | None] = [None] * len(into)
            if number.requires_grad:
                parts = torch.autograd.grad(number, into, retain_graph=True, allow_unused=True)
            full = [
                torch.zeros_like(t) if g is None else g for g, t in zip(parts, into, strict=True)
            ]
            columns.append(full[0].double())
            second.append(torch.cat([g.flatten() for g in full[1:]]).double())
        scores.append(torch.stack(columns, 1))
        hessians.append(torch.stack(second))
    return torch.cat(scores).detach(), torch.stack(hessians).sum(0).detach()


def _covariance(s: Float[Tensor, "n k"], groups: Int[Tensor, " n"] | None) -> Float[Tensor, "k k"]:
    """B: of the score over rows; of sums over groups, where only these are independent."""
    centred = s - s.mean(0)
    if groups is None:
        return centred.T @ centred / (len(s) - 1)
    labels, group = groups.unique(return_inverse=True)
    sums = s.new_zeros(len(labels), s.shape[1]).index_add(0, group, centred)
    return sums.T @ sums / len(s) * (len(labels) / (len(labels) - 1))


def _require_curved(
    a: Float[Tensor, "k k"], moment: Float[Tensor, " k"], names: Sequence[str]
) -> None:
    """Every direction of the parameters must change the likelihood.

    `moment` is E_W[s^2]: the score of a constant has one, but no variance.
    """
    scale = torch.maximum(a.diagonal().abs(), FLAT * moment).clamp_min(1e-300).sqrt()
    eigenvalues, directions = torch.linalg.eigh(a / scale[:, None] / scale)
    if eigenvalues[0] > FLAT * eigenvalues[-1]:
        return
    loading = directions[:, 0].abs()
    most = loading.argsort(descending=True)[:4]
    shown = [names[i] for i in most.tolist() if loading[i] > 0.1 * loading.max()]
    raise ProgramError(
        f"the data do not determine {', '.join(shown)}: the likelihood's curvature there is "
        f"{eigenvalues[0]:.2g} of 1, expected above {FLAT:.0e}.\n"
        "  Most likely a constant added to the energy, two parameters that do the same, or a fit "
        "far from its maximum. Leave one out with parameters=[...]."
    )


def _as_seen(
    model: EnergyModel, chosen: dict[str, Tensor]
) -> tuple[Float[Tensor, "m k"], Float[Tensor, " m"], list[str], list[int]]:
    """The program's constrained values: d values / d parameters, values, names, owners."""
    blocks, values, names, owner = [], [], [], []
    for i, (name, parameter) in enumerate(chosen.items()):
        transform = transform_to(constraint(model, name))
        free = parameter.detach().double()
        value = transform(free)
        block = torch.autograd.functional.jacobian(transform, free)
        assert isinstance(block, Tensor)
        blocks.append(block.reshape(value.numel(), free.numel()))
        values.append(value.flatten())
        for index in np.ndindex(*value.shape):
            places = "[" + ", ".join(map(str, index)) + "]" if index else ""
            names.append(readable(name) + places)
            owner.append(i)
    return torch.block_diag(*blocks), torch.cat(values), names, owner


def constraint(model: EnergyModel, name: str) -> constraints.Constraint:
    """Of a `pyro.param` statement or a `PyroParam`; real for other parameters."""
    if name.startswith("param:"):
        return model._declared[name.removeprefix("param:").replace("%2E", ".")]
    path, _, last = name.rpartition(".")
    module = model.get_submodule(path)
    if last.endswith("_unconstrained") and isinstance(module, PyroModule):
        return module._pyro_params[last.removesuffix("_unconstrained")][0]
    return constraints.real


def _factors(model: EnergyModel, x: Sites, parameters: list[Tensor]) -> list[str]:
    """For every parameter the terms that it enters."""
    some = {name: value[:16] for name, value in x.items()}
    entered: list[list[str]] = [[] for _ in parameters]
    with torch.enable_grad():
        for name, term in model.terms(some).items():
            if term.requires_grad:
                grads = torch.autograd.grad(
                    term.sum(), parameters, retain_graph=True, allow_unused=True
                )
                for names, grad in zip(entered, grads, strict=True):
                    if grad is not None:
                        names.append(name)
    return [", ".join(names) for names in entered]
