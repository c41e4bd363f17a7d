"""`fit` on trajectories: every objective, both kinds of policy steps, files, and warnings."""

import warnings
from dataclasses import replace

import pytest
import torch

from ebm_pp import EnergyModel, FitConfig, Opaque, PolicyGenerator, Status, fit, load, save
from ebm_pp.errors import CheckpointError, GeneratorError
from models import linear_quadratic as lq

HORIZON = 6
CONFIG = FitConfig.trajectories(
    HORIZON,
    pool=1000,
    batch=100,
    rounds=40,
    warm_start_steps=150,
    energy_lr=5e-2,
    energy_steps=10,
    progress=False,
)


def world(noise):
    """A short world whose only unknowns are the program's three weights."""
    full = lq.short(noise, horizon=HORIZON)
    zeros = {name: torch.zeros_like(getattr(full, name)) for name in ("S", "b", "q", "r", "q_T")}
    return replace(
        full, **zeros, kappa=0.0, kappa_T=0.0, Q=torch.diag(full.R.new_tensor([1.0, 0.6]))
    )


def case(noise, *, opaque=False, n=400):
    """A program, demonstrations of its exact expert, and their maximum-likelihood weights."""
    here = world(noise)
    exact = lq.draws(here, lq.solve(here), n, seed=0)
    program = lq.LinearQuadratic(here)
    if opaque:
        inner = program.dynamics
        program.dynamics = replace(inner, step=Opaque(inner.advance, deterministic=not noise))
    theta = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS([theta], max_iter=100, line_search_fn="strong_wolfe")

    def closure():
        optimiser.zero_grad()
        loss = _likelihood(here, exact, theta)
        loss.backward()
        return loss

    optimiser.step(closure)
    best = theta.detach().clone()
    hessian = torch.autograd.functional.hessian(
        lambda value: _likelihood(here, exact, value), best
    )
    error = torch.linalg.inv(hessian).diagonal().sqrt()
    return program, {k: v.float() for k, v in exact.items()}, best, error


def _likelihood(here, exact, theta):
    """Minus log pi of all demonstrations, by the exact recursion."""
    best = lq.solve(replace(here, Q=torch.diag(theta[:2].exp()), R=torch.diag(theta[2:].exp())))
    mean = torch.einsum("tmn,ktn->ktm", best.K, exact["states"][:, :-1]) + best.k
    return (
        -torch.distributions.MultivariateNormal(mean, best.sigma).log_prob(exact["actions"]).sum()
    )


def found(program):
    return torch.cat([program.log_q, program.log_r]).detach().double()


@pytest.mark.parametrize(
    ("noise", "changes", "resolved", "within"),
    [
        (0.0, {}, ("trajectory", "reverse_kl"), 1),
        (0.0, {"objective": "step"}, ("step", "reverse_kl"), 1),
        (0.0, {"objective": "importance", "nu": 8.0}, ("importance", "reverse_kl"), 1),
        # Nothing but small steps holds this one back while the policy follows: it is slow.
        (0.0, {"objective": "likelihood", "energy_steps": 4, "energy_lr": 1e-2},
         ("likelihood", "reverse_kl"), 3),
        (0.05, {}, ("causal", "reverse_kl"), 1),
    ],
)  # fmt: skip
def test_each_objective_finds_the_maximum_likelihood_weights(noise, changes, resolved, within):
    program, demonstrations, best, error = case(noise)
    model = EnergyModel(program)
    result = fit(model, demonstrations, config=replace(CONFIG, **changes))
    assert (result.config.objective, result.config.generator_loss) == resolved
    # In standard errors (of these demonstrations) from their maximum-likelihood weights.
    off = (found(program) - best).abs() / error
    assert off.max() < within, (found(program), best, error)
    last = result.history[-1]
    assert last["ess"] > 0.9
    assert abs(last["log_partition"]) < 0.05  # conditional on the start state
    assert result.status is Status.FINISHED


@pytest.mark.parametrize("noise", [0.0, 0.05])
def test_opaque_dynamics_are_fitted_by_the_score_function(noise):
    program, demonstrations, best, error = case(noise, opaque=True)
    result = fit(EnergyModel(program), demonstrations, config=CONFIG)
    assert result.config.generator_loss == "score_function"
    assert ((found(program) - best).abs() / error).max() < (1.5 if noise else 1)


def test_without_data_the_policy_becomes_soft_optimal():
    here = world(0.0)
    model = EnergyModel(lq.QuadraticCost(here, torch.float32))
    result = fit(model, None, config=replace(CONFIG, generator_lr=5e-3))
    assert result.history[-1]["ess"] > 0.9
    starts = lq.draws(here, lq.solve(here), 500, seed=1)["states"][:, 0]
    exact = lq.log_partition_from(lq.solve(here), starts)
    off = model.soft_value.start(starts.float()).double() - exact
    assert abs(off.mean()) < 0.05


def test_biased_objectives_say_so():
    program, demonstrations, _, _ = case(0.05, n=50)
    short = replace(CONFIG, rounds=1, warm_start_steps=1)
    for objective, phrase in (("trajectory", "chose its luck"), ("step", "AIRL")):
        with pytest.warns(UserWarning, match=phrase):
            fit(EnergyModel(program), demonstrations, config=replace(short, objective=objective))
    program, demonstrations, _, _ = case(0.0, n=50)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit(EnergyModel(program), demonstrations, config=replace(short, objective="step"))


def test_objectives_of_trajectories_need_one():
    from models import gaussian

    with pytest.raises(GeneratorError, match="PolicyGenerator"):
        fit(
            EnergyModel(gaussian.Gaussian(2)),
            gaussian.draws(gaussian.true_parameters(2), 600, 0),
            config=FitConfig(objective="causal", progress=False),
        )


def test_a_fit_of_trajectories_is_saved_and_loaded(tmp_path):
    program, demonstrations, _, _ = case(0.05, n=50)
    model = EnergyModel(program)
    policy = PolicyGenerator(model, demonstrations, hidden=(16,), timed=False)
    result = fit(model, demonstrations, policy, replace(CONFIG, rounds=2))
    save(result, tmp_path / "fit.pt")
    again = load(tmp_path / "fit.pt", lq.LinearQuadratic(world(0.05)))
    x = {name: value[:5] for name, value in demonstrations.items()}
    assert torch.allclose(again.model.log_density(x), result.model.log_density(x), atol=1e-5)
    assert torch.allclose(again.generator.log_prob(x), result.generator.log_prob(x), atol=1e-5)
    assert "soft_value" in again.model.terms(x)
    with pytest.raises(CheckpointError, match="do not fit"):
        load(tmp_path / "fit.pt", lq.LinearQuadratic(lq.short(0.05, horizon=3)))
