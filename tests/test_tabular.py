"""Tabular problems against enumeration of every trajectory, frozen figures, and a bootstrap."""

import itertools
import math

import numpy as np
import pyro
import pytest
import torch

from ebm_pp import Dynamics, EnergyModel, FitConfig, PolicyGenerator, fit, trajectory
from ebm_pp.errors import DataError, ProgramError
from ebm_pp.tabular import (
    SoftOptimalPolicy,
    occupancies,
    policy_divergence,
    soft_value_iteration,
    step_table,
)
from ebm_pp.tabular_fit import maximum_causal_likelihood
from models.gridworld import (
    GRID_WEIGHTS,
    SIX_WEIGHTS,
    FeatureCost,
    draws,
    grid_transitions,
    gridworld,
    six_states,
)

T = 4
START = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)


def tiny(noise):
    """Three states, two actions: transitions and costs of every (t, s, a, s')."""
    random = np.random.default_rng(3)
    certain = np.eye(3)[random.integers(0, 3, (3, 2))]
    P = (1 - noise) * certain + noise * random.dirichlet(0.7 * np.ones(3), (3, 2))
    return torch.as_tensor(P), torch.as_tensor(random.normal(size=(T, 3, 2, 3)))


def every_trajectory(P):
    """States (n, T + 1), actions (n, T) and log rho + sum log P of all possible trajectories."""
    paths = list(itertools.product(range(3), *([range(2), range(3)] * T)))
    table = torch.tensor(paths)
    states, actions = table[:, ::2], table[:, 1::2]
    chance = START[states[:, 0]] * P[states[:, :-1], actions, states[:, 1:]].prod(1)
    kept = chance > 0
    return states[kept], actions[kept], chance[kept].log()


def gains(steps, states, actions):
    times = torch.arange(T).expand(actions.shape)
    if steps.dim() == 3:
        return steps[times, states[:, :-1], actions].sum(1)
    return steps[times, states[:, :-1], actions, states[:, 1:]].sum(1)


@pytest.mark.parametrize("noise", [0.0, 1.0])
@pytest.mark.parametrize("of_next", [False, True])
def test_soft_values_are_those_of_an_enumeration(noise, of_next):
    P, steps = tiny(noise)
    steps = steps if of_next else steps[..., 0]
    states, actions, log_chance = every_trajectory(P)
    r = gains(steps, states, actions)
    joint = soft_value_iteration(P, steps, T, joint=True)
    log_z = (log_chance + r).logsumexp(0)
    assert (START.log() + joint.values[0]).logsumexp(0).item() == pytest.approx(
        log_z.item(), abs=1e-10
    )
    causal = soft_value_iteration(P, steps, T)
    log_pi = gains(causal.log_policy, states, actions)
    q = (log_chance + log_pi).exp()
    assert q.sum().item() == pytest.approx(1.0, abs=1e-10)
    assert (q * (r - log_pi)).sum().item() == pytest.approx(
        (START @ causal.values[0]).item(), abs=1e-10
    )
    gap = (joint.values[0] - causal.values[0]).max().item()
    assert abs(gap) < 1e-10 if noise == 0 else gap > 0.01


def test_no_policy_does_better_than_the_soft_optimum():
    P, steps = tiny(1.0)
    states, actions, log_chance = every_trajectory(P)
    causal = soft_value_iteration(P, steps, T)
    best = (START @ causal.values[0]).item()
    other = torch.log_softmax(causal.log_policy + 0.3 * torch.randn(T, 3, 2).double(), -1)
    log_pi = gains(other, states, actions)
    reached = ((log_chance + log_pi).exp() * (gains(steps, states, actions) - log_pi)).sum()
    lost = policy_divergence(P, START, other, causal.log_policy)
    assert lost > 1e-3
    assert reached.item() == pytest.approx(best - lost, abs=1e-10)


@pytest.mark.parametrize("discount", [1.0, 0.9])
def test_the_gradient_of_the_soft_value_is_the_discounted_occupancy(discount):
    P, steps = tiny(1.0)
    steps = steps[..., 0].clone().requires_grad_()
    optimum = soft_value_iteration(P, steps, T, discount)
    (slope,) = torch.autograd.grad(START @ optimum.values[0], steps)
    visits = occupancies(P, optimum.policy.detach(), START)
    powers = discount ** torch.arange(T).double()[:, None, None]
    torch.testing.assert_close(slope, powers * visits, atol=1e-12, rtol=0)
    torch.testing.assert_close(visits.sum((1, 2)), torch.ones(T).double())
    states, actions, log_chance = every_trajectory(P)
    q = (log_chance + gains(optimum.log_policy.detach(), states, actions)).exp()
    at_two = q[(states[:, 2] == 1) & (actions[:, 2] == 0)].sum().item()
    assert visits[2, 1, 0].item() == pytest.approx(at_two, abs=1e-12)


def test_bad_tables_are_refused_with_a_reason():
    P, steps = tiny(1.0)
    with pytest.raises(ProgramError, match=r"costs of shape \(3, 3, 2\).*expected \(3, 2\)"):
        soft_value_iteration(P, steps[:3, ..., 0], T)
    broken = steps[..., 0].clone()
    broken[0, 0, 0] = -math.inf
    with pytest.raises(ProgramError, match="1 costs are NaN or infinite"):
        soft_value_iteration(P, broken, T)
    with pytest.raises(ProgramError, match=r"joint density with discount 0\.9"):
        soft_value_iteration(P, steps, T, 0.9, joint=True)


def program(P, kind):
    """A cost of the given kind; its weight starts at 0, where nothing depends on anything."""
    dynamics = Dynamics.tabular(P, START)
    levels = torch.tensor([[0.3, -1.0, 0.7], [1.1, 0.2, -0.4]], dtype=torch.float64)

    def packed():
        weight = pyro.param("weight", torch.zeros((), dtype=torch.float64))
        tau = trajectory(dynamics, T)
        s, a = tau.states, tau.actions
        with pyro.plate("time", T):
            cost = weight * levels[a, s[:-1]]
            if kind == "of time":
                cost = cost * torch.arange(T)
            if kind == "of next state":
                cost = cost + weight * levels[0, s[1:]] * levels[1, s[:-1]]
            pyro.factor("cost", -cost)
        if kind == "terminal":
            pyro.factor("end", -weight * levels[1, s[-1]])
        if kind == "of all steps":
            pyro.factor("end", -weight * levels[0, s].sum())

    def loop():
        weight = pyro.param("weight", torch.zeros((), dtype=torch.float64))
        s = pyro.sample("s0", dynamics.start_site())
        for t in range(T):
            a = pyro.sample(f"a{t}", dynamics.control_site())
            pyro.factor(f"cost{t}", -weight * levels[a, s] * (t + 1))
            s = pyro.sample(f"s{t + 1}", dynamics.next_site(s, a))

    return EnergyModel(loop if kind == "loop" else packed)


@pytest.mark.parametrize("kind", ["plain", "of time", "of next state", "terminal", "loop"])
def test_the_table_holds_the_programs_costs(kind):
    P, _ = tiny(1.0)
    model = program(P, kind)
    assert not step_table(model).any()
    with torch.no_grad():
        next(model.parameters()).fill_(1.5)
    table = step_table(model)
    assert table.dim() == (4 if kind in ("of next state", "terminal") else 3)
    states, actions, _ = every_trajectory(P)
    x = model.layout.unpack(states, actions)
    direct = -model.energy(x)
    assert direct.std() > 0.5
    torch.testing.assert_close(gains(table, states, actions), direct, atol=1e-12, rtol=0)


def test_a_cost_with_memory_and_a_world_without_table_are_refused():
    P, _ = tiny(1.0)
    with pytest.raises(ProgramError, match="step 3 depends on states or actions of other steps"):
        step_table(program(P, "of all steps"))

    def plain():
        pyro.sample("x", pyro.distributions.Normal(0.0, 1.0))

    with pytest.raises(ProgramError, match="no trajectory; expected a table"):
        step_table(EnergyModel(plain))


def six(noise, n=2000, seed=0):
    world = six_states(noise)
    P, start = world.tables
    optimum = soft_value_iteration(P, world.minus_cost(SIX_WEIGHTS), world.horizon)
    return world, draws(P, optimum.policy, start, n, seed), optimum


def cost_of(world):
    return EnergyModel(FeatureCost(*world, dtype=torch.float64))


# econirl 0.1.1 on the same demonstrations.
ECONIRL = {
    0.0: (1.011621, -0.973155, 0.497726),
    0.5: (1.012526, -0.962231, 0.454742),
    1.0: (0.980043, -0.977031, 0.496854),
}


@pytest.mark.parametrize("noise", ECONIRL)
def test_matching_gives_econirls_weights(noise):
    world, data, _ = six(noise)
    result = maximum_causal_likelihood(cost_of(world), data, estimate="matching")
    assert result.converged
    np.testing.assert_allclose(result.parameters["program.weights"], ECONIRL[noise], atol=5e-6)
    policy = maximum_causal_likelihood(cost_of(world), data)
    weights, errors = (r["program.weights"] for r in (policy.parameters, policy.standard_errors))
    assert ((weights - SIX_WEIGHTS).abs() < 3 * errors).all()
    matching_errors = result.standard_errors["program.weights"]
    if noise == 0:
        torch.testing.assert_close(weights, result.parameters["program.weights"])
        torch.testing.assert_close(errors, matching_errors)
    else:
        assert policy.log_likelihood > result.log_likelihood
        assert (errors < matching_errors).all()


def test_standard_errors_are_those_of_fresh_demonstrations():
    noise, n, repeats = 0.5, 400, 30
    found, claimed = [], []
    for seed in range(repeats):
        world, data, _ = six(noise, n, seed)
        model = cost_of(world)
        with torch.no_grad():
            model.program.weights.copy_(SIX_WEIGHTS)
        result = maximum_causal_likelihood(model, data)
        found.append(result.parameters["program.weights"])
        claimed.append(result.standard_errors["program.weights"])
    found = torch.stack(found)
    ratio = torch.stack(claimed).mean(0) / found.std(0)
    assert (ratio - 1).abs().max() < 3 / math.sqrt(2 * repeats)
    assert ((found.mean(0) - SIX_WEIGHTS).abs() < 3 * found.std(0) / math.sqrt(repeats)).all()


def test_standard_errors_agree_with_a_bootstrap():
    world, data, _ = six(1.0, 400)
    model = cost_of(world)
    claimed = maximum_causal_likelihood(model, data, estimate="matching").standard_errors
    random, found = np.random.default_rng(0), []
    for _ in range(30):
        rows = torch.as_tensor(random.integers(0, 400, 400))
        again = {name: value[rows] for name, value in data.items()}
        result = maximum_causal_likelihood(model, again, estimate="matching")
        found.append(result.parameters["program.weights"])
    ratio = claimed["program.weights"] / torch.stack(found).std(0)
    assert (ratio - 1).abs().max() < 3 / math.sqrt(60)


@pytest.mark.parametrize("estimate", ["policy", "matching"])
@pytest.mark.parametrize("discount", [1.0, 0.9])
def test_the_experts_occupancy_gives_its_weights(estimate, discount):
    world = gridworld()
    P, start = world.tables
    expert = soft_value_iteration(P, world.minus_cost(GRID_WEIGHTS), world.horizon, discount)
    result = maximum_causal_likelihood(
        cost_of(world), occupancy=occupancies(P, expert.policy, start),
        discount=discount, estimate=estimate,
    )  # fmt: skip
    torch.testing.assert_close(
        result.parameters["program.weights"], GRID_WEIGHTS, atol=1e-6, rtol=0
    )
    assert policy_divergence(P, start, expert.log_policy, result.optimum.log_policy) < 1e-12


def test_what_the_data_leave_open_has_an_infinite_error():
    world, data, _ = six(0.5)
    doubled = dict(world.features) | {"again": world.features["feature_0"]}
    model = EnergyModel(FeatureCost(world.dynamics, 8, doubled, dtype=torch.float64))
    result = maximum_causal_likelihood(model, data)
    errors = result.standard_errors["program.weights"]
    assert errors.isinf().tolist() == [True, False, False, True]
    assert result.covariance is None
    alone = maximum_causal_likelihood(cost_of(world), data).standard_errors["program.weights"]
    torch.testing.assert_close(errors[1:3], alone[1:], rtol=1e-5, atol=0)


def test_bad_demonstrations_and_occupancies_are_refused():
    world, data, optimum = six(0.0, 20)
    model = cost_of(world)
    with pytest.raises(DataError, match="both given, or neither"):
        maximum_causal_likelihood(model)
    P, start = world.tables
    visits = occupancies(P, optimum.policy, start)
    with pytest.raises(DataError, match=r"shape \(6, 3\).*expected shape \(8, 6, 3\)"):
        maximum_causal_likelihood(model, occupancy=visits.sum(0))
    with pytest.raises(DataError, match=r"from 0\.5 to 0\.5"):
        maximum_causal_likelihood(model, occupancy=visits / 2)
    outside = {**data, "states": data["states"] + 1}
    with pytest.raises(DataError, match="outside the integers 0 to 5"):
        maximum_causal_likelihood(model, outside)
    known = EnergyModel(FeatureCost(*world)).requires_grad_(False)
    with pytest.raises(ProgramError, match="no parameters to fit"):
        maximum_causal_likelihood(known, data)


@pytest.mark.parametrize("objective", ["likelihood", "causal"])
def test_fit_with_the_soft_optimal_policy_agrees_with_the_exact_fit(objective):
    world, data, _ = six(0.5, 500)
    model = cost_of(world)
    exact = maximum_causal_likelihood(cost_of(world), data)
    generator = PolicyGenerator(model, policy=SoftOptimalPolicy(model))
    assert not list(generator.parameters())
    config = FitConfig.trajectories(
        8, objective=objective, pool=2000, rounds=60, progress=False, diagnose_every=20
    )
    fit(model, data, generator, config)
    found = model.program.weights.detach()
    wanted = exact.parameters["program.weights"]
    errors = exact.standard_errors["program.weights"]
    assert ((found - wanted).abs() < errors).all(), (found - wanted) / errors
    P, _ = world.tables
    own = soft_value_iteration(P, world.minus_cost(found), 8)
    torch.testing.assert_close(generator.policy.log_policy(), own.log_policy)


def test_moves_into_walls_stay_and_slips_go_astray():
    free = torch.tensor([[True, False], [True, True]])
    P = grid_transitions(free, 0.2)
    torch.testing.assert_close(P.sum(-1), torch.ones(4, 5).double())
    right_of_top_left = P[0, 4]  # the wall, a slip down half a tenth of the time
    assert right_of_top_left.tolist() == pytest.approx([0.95, 0.0, 0.05, 0.0])
    assert P[2, 4].tolist() == pytest.approx([0.05, 0.0, 0.1, 0.85])
    assert (P[1, :, 1] == 1).all()
