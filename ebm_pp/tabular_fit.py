"""Maximum-likelihood costs of tabular programs, exact to the last digits, with standard errors.

The two estimates of tabular.py, "policy" and "matching", by quasi-Newton steps on the exact
objective. With J = d r_t(s, a) / d theta and dh_T = 0, backward in time,

    dh_t(s) = E_pi[J_t + gamma E dh_{t+1}],    d log pi_t = J_t + gamma E dh_{t+1} - dh_t

give the score g_i of one trajectory: sum_t d log pi_t(a_t | s_t) ("policy"), or
sum_t gamma^t J_t(s_t, a_t) - dh_0(s_0) ("matching"). The covariance of theta is H^-1 / n, H the
Hessian of the mean objective, in deterministic dynamics; else H^-1 Var(g) H^-1 / n, because H
does not know the dynamics' luck in the demonstrations.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from scipy.optimize import minimize
from torch import Tensor

from ebm_pp.density import EnergyModel, Sites
from ebm_pp.errors import DataError, ProgramError
from ebm_pp.surroundings import trainable
from ebm_pp.tabular import (
    SoftOptimum,
    double_copy,
    expected_steps,
    soft_value_iteration,
    step_reader,
    tables_of,
)
from ebm_pp.trajectory import Trajectories

Estimate = Literal["policy", "matching"]
FEW = 200  # parameters: up to here a dense quasi-Newton matrix and standard errors
CONVERGED = 1e-6  # largest gradient of the mean objective, nats per unit of parameter
FLAT = 1e-10  # relative curvature under which a direction counts as undetermined


@dataclass(frozen=True)
class TabularFit:
    """An exact fit.

    Attributes:
        parameters: theta by name, float64; the model holds them too, in its own precision.
        standard_errors: of theta; infinite where the data leave a parameter undetermined. None
            for an occupancy, which says nothing about how many trajectories it is from, and for
            more than 200 parameters.
        covariance: of all parameters, in that order; None as above or if some are undetermined.
        optimum: soft values and policy at theta.
        log_likelihood: sum_t log pi_t(a_t | s_t), mean nats per trajectory.
        gradient: the largest left of the mean objective.
        converged: whether that is below 1e-6.
    """

    parameters: dict[str, Tensor]
    standard_errors: dict[str, Tensor] | None
    covariance: Tensor | None
    optimum: SoftOptimum
    log_likelihood: float
    gradient: float
    converged: bool


@dataclass(frozen=True, eq=False)
class _Problem:
    """What the objective needs, float64."""

    model: EnergyModel
    read: Callable[[], Tensor]
    transitions: Tensor
    visits: Tensor  # (T, S, A), mean over demonstrations, not discounted
    start: Tensor
    discount: float
    estimate: Estimate

    @property
    def parameters(self) -> dict[str, torch.nn.Parameter]:
        return {name: p for name, p in self.model.named_parameters() if p.requires_grad}

    @property
    def powers(self) -> Tensor:
        """gamma^t, `(T, 1, 1)`."""
        times = torch.arange(len(self.visits), dtype=torch.float64)
        return (self.discount**times)[:, None, None]

    def steps(self) -> Tensor:
        """E[r_t | s, a], `(T, S, A)`."""
        return expected_steps(self.transitions, self.read())

    def solve(self, steps: Tensor) -> SoftOptimum:
        return soft_value_iteration(self.transitions, steps, len(self.visits), self.discount)

    def loss(self) -> Float[Tensor, ""]:
        """Minus the mean objective, nats per trajectory."""
        steps = self.steps()
        optimum = self.solve(steps)
        if self.estimate == "policy":
            return -(self.visits * optimum.log_policy).sum()
        gain = (self.powers * self.visits * steps).sum()
        return self.start @ optimum.values[0] - gain


@trainable()
def maximum_causal_likelihood(
    model: EnergyModel,
    data: Sites | None = None,
    *,
    occupancy: Tensor | None = None,
    start: Float[Tensor, " S"] | None = None,
    discount: float = 1.0,
    estimate: Estimate = "policy",
) -> TabularFit:
    """Fits a tabular program's parameters exactly, in place, from their present values.

    Args:
        model: a program with `Dynamics.tabular`.
        data: demonstrations, rows of the trajectory sites.
        occupancy: instead of data, the expert's d_t(s, a) `(T, S, A)`, not discounted.
        start: law of s_0 in "matching"; by default that of the data or of the occupancy.
        discount: gamma.
        estimate: "policy", the maximum of sum_t log pi_t, has the smaller standard errors;
            "matching" matches expected features, as most others do.

    Raises:
        ProgramError: the program is no table, or has no parameters.
        DataError: data and occupancy both or neither, or of a wrong shape.
    """
    layout, transitions = tables_of(model)
    shape = (layout.horizon, *transitions.shape[:2])
    tau = None
    if (data is None) == (occupancy is None):
        raise DataError(
            "demonstrations and an occupancy were both given, or neither; expected one.\n"
            "  Pass data=demonstrations, or occupancy=d of shape (T, S, A)."
        )
    if data is not None:
        tau = layout.pack(model.check(data))
        visits = _visits(tau, shape)
    else:
        assert occupancy is not None
        visits = _checked_occupancy(occupancy, shape)
    law = visits[0].sum(-1) if start is None else start.double()
    double = double_copy(model)
    problem = _Problem(double, step_reader(double), transitions, visits, law, discount, estimate)
    if not problem.parameters:
        raise ProgramError(
            "the program has no parameters to fit; expected at least one.\n  Most likely its "
            "weights are plain tensors: make them nn.Parameter or pyro.param."
        )
    gradient = _minimise(problem)
    return _finished(model, problem, tau, gradient)


def _finished(
    model: EnergyModel, problem: _Problem, tau: Trajectories | None, gradient: float
) -> TabularFit:
    """The record, and the parameters put into the user's model."""
    found = {name: p.detach().clone() for name, p in problem.parameters.items()}
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name in found:
                p.copy_(found[name])
        optimum = problem.solve(problem.steps())
    errors = covariance = None
    if tau is not None and sum(p.numel() for p in found.values()) <= FEW:
        covariance, spread = _covariance(problem, tau, optimum)
        errors = dict(zip(found, _unflatten(spread, found), strict=True))
    likelihood = (problem.visits * optimum.log_policy).sum().item()
    converged = gradient < CONVERGED
    return TabularFit(found, errors, covariance, optimum, likelihood, gradient, converged)


def _visits(tau: Trajectories, shape: tuple[int, ...]) -> Float[Tensor, "T S A"]:
    n, horizon = tau.actions.shape
    flat = (tau.states[:, :-1] * shape[2] + tau.actions).cpu()
    flat = flat + torch.arange(horizon) * shape[1] * shape[2]
    size = shape[0] * shape[1] * shape[2]
    return torch.bincount(flat.flatten(), minlength=size).double().reshape(shape) / n


def _checked_occupancy(occupancy: Tensor, shape: tuple[int, ...]) -> Float[Tensor, "T S A"]:
    mass = occupancy.double().flatten(1).sum(1) if occupancy.dim() else occupancy
    right = tuple(occupancy.shape) == shape and bool((occupancy >= 0).all())
    if not right or (mass - 1).abs().max() > 1e-5:
        raise DataError(
            f"an occupancy of shape {tuple(occupancy.shape)}, sums per step from "
            f"{mass.min().item():g} to {mass.max().item():g}; expected shape {shape} and 1 at "
            "every step.\n  Most likely summed over time or discounted: pass d_t(s, a) itself."
        )
    return occupancy.double()


def _flatten(tensors: list[Tensor]) -> Tensor:
    return torch.cat([t.flatten() for t in tensors])


def _unflatten(vector: Tensor, like: dict[str, Tensor]) -> list[Tensor]:
    parts = vector.split([p.numel() for p in like.values()])
    return [part.reshape(p.shape) for part, p in zip(parts, like.values(), strict=True)]


def _minimise(problem: _Problem) -> float:
    """Sets the parameters to the minimum; the largest gradient left."""
    parameters = dict(problem.parameters)

    def put(x: np.ndarray) -> None:
        with torch.no_grad():
            for p, value in zip(
                parameters.values(), _unflatten(torch.tensor(x), dict(parameters)), strict=True
            ):
                p.copy_(value)

    def objective(x: np.ndarray) -> tuple[float, np.ndarray]:
        put(x)
        loss = problem.loss()
        slopes = torch.autograd.grad(loss, list(parameters.values()))
        return loss.item(), _flatten(list(slopes)).numpy()

    x = _flatten([p.detach() for p in parameters.values()]).numpy()
    dense = len(x) <= FEW
    options = {"gtol": 1e-9, "maxiter": 2000} | ({} if dense else {"ftol": 0.0, "maxfun": 10_000})
    found = minimize(objective, x, jac=True, method="BFGS" if dense else "L-BFGS-B",
                     options=options).x  # fmt: skip
    return float(np.abs(objective(found)[1]).max())


def _covariance(
    problem: _Problem, tau: Trajectories, optimum: SoftOptimum
) -> tuple[Tensor | None, Tensor]:
    """The covariance `(k, k)` of the module and its diagonal's root, infinite where flat."""
    hessian = _hessian(problem)
    n = len(tau.actions)
    curvature, axes = torch.linalg.eigh(hessian)
    flat = curvature <= FLAT * curvature.abs().max().clamp(min=1e-300)
    inverse = (axes / torch.where(flat, torch.inf, curvature)) @ axes.T
    covariance = inverse / n
    if not (problem.transitions.amax(-1) == 1).all():
        scores = _scores(problem, tau, optimum)
        covariance = inverse @ (scores.T @ scores / n) @ inverse / n
    undetermined = (axes[:, flat].abs() > 1e-6).any(1)
    spread = torch.where(undetermined, torch.inf, covariance.diagonal().clamp(min=0).sqrt())
    return (None if flat.any() else covariance), spread


def _hessian(problem: _Problem) -> Float[Tensor, "k k"]:
    parameters = list(problem.parameters.values())
    slopes = _flatten(list(torch.autograd.grad(problem.loss(), parameters, create_graph=True)))
    rows = [
        _flatten(list(torch.autograd.grad(slope, parameters, retain_graph=True)))
        for slope in slopes
    ]
    hessian = torch.stack(rows)
    return (hessian + hessian.T) / 2


def _jacobian(problem: _Problem) -> Float[Tensor, "T S A k"]:
    """J = d E[r_t | s, a] / d theta; J v is the derivative in u of (J'u) v."""
    parameters = list(problem.parameters.values())
    steps = problem.steps()
    u = torch.zeros_like(steps, requires_grad=True)
    pulled = _flatten(list(torch.autograd.grad(steps, parameters, u, create_graph=True)))
    columns = [torch.autograd.grad(one, u, retain_graph=True)[0] for one in pulled]
    return torch.stack(columns, -1)


def _scores(problem: _Problem, tau: Trajectories, optimum: SoftOptimum) -> Float[Tensor, "n k"]:
    """g_i of every trajectory, by the recursion of the module."""
    jacobian = _jacobian(problem).detach()
    policy, P = optimum.policy, problem.transitions
    states, actions = tau.states[:, :-1].cpu(), tau.actions.cpu()
    ahead = torch.zeros(len(P), jacobian.shape[-1], dtype=torch.float64)
    total = torch.zeros(len(actions), jacobian.shape[-1], dtype=torch.float64)
    for t in reversed(range(len(policy))):
        s, a = states[:, t], actions[:, t]
        dq = jacobian[t] + problem.discount * torch.einsum("sax,xk->sak", P, ahead)
        ahead = (policy[t].unsqueeze(-1) * dq).sum(1)
        if problem.estimate == "policy":
            total += dq[s, a] - ahead[s]
        else:
            total += problem.discount**t * jacobian[t, s, a]
    return total if problem.estimate == "policy" else total - ahead[states[:, 0]]
