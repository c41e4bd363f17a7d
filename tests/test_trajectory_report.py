"""What users see of trajectory fits, against the exact solution of linear-quadratic worlds."""

import dataclasses
import math

import arviz_stats
import matplotlib.pyplot as plt
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
import xarray
from closed_form import Exact
from torch import nn

from ebm_pp.datatree import to_datatree
from ebm_pp.density import EnergyModel
from ebm_pp.diagnostics import diagnose
from ebm_pp.dynamics import Dynamics
from ebm_pp.errors import GeneratorError, ProgramError
from ebm_pp.moments import trajectory_statistics
from ebm_pp.partition import bridge
from ebm_pp.plots_trajectory import plot_horizon, plot_trajectories
from ebm_pp.policy import PolicyGenerator
from ebm_pp.soft_value import SoftValue
from ebm_pp.step_weights import soft_value_of, step_log_weights, weigh_steps
from ebm_pp.trajectory import trajectory
from ebm_pp.trajectory_report import (
    bridge_with_error,
    horizons_of,
    shaped,
    shaped_distance,
    trajectory_report,
)
from models import linear_quadratic as lq


def exact_soft_value(model, solution):
    """-V_t in the features of SoftValue: 1, t, u, u_i u_j, ... with location 0 and scale 1."""
    soft_value = SoftValue(model.layout, causal=True).double()
    found = torch.zeros_like(soft_value.coefficients)
    n = len(solution.values[0][1])
    i, j = soft_value.features.pairs
    for t, (P, p, s) in enumerate(solution.values):
        found[t, 0], found[t, 2 : 2 + n] = -s, -p
        found[t, 2 + n : 2 + n + len(i)] = -torch.where(i == j, 0.5, 1.0) * P[i, j]
    soft_value.coefficients.copy_(found)
    soft_value.coefficients_after.copy_(found[1:])
    return soft_value


def exact(world, *, scale=1.0, cost=None, **settings):
    """The optimal policy of `world`, its covariance scaled, in the model of a cost (its own)."""
    model = EnergyModel(lq.QuadraticCost(cost or world)).double()
    model.soft_value = exact_soft_value(model, lq.solve(cost or world))
    solution = lq.solve(world)
    policy = lq.LinearGaussianPolicy(dataclasses.replace(solution, sigma=solution.sigma * scale))
    return Exact(model, PolicyGenerator(model, policy=policy.double()), 0.0, **settings)


def draws_of(fit, n, seed=0):
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        return fit.generator.rsample_and_log_prob(n)[0]


def kl_to_optimum(world, scale):
    """sum_t KL(N(m, s sigma) || N(m, sigma))."""
    return world.horizon * 0.5 * (scale - 1 - math.log(scale))


@pytest.mark.parametrize("noise", [0.0, 0.05])
def test_steps_of_the_optimal_policy_weigh_nothing(noise):
    fit = exact(lq.short(noise))
    x = draws_of(fit, 50)
    l = step_log_weights(fit.model, fit.generator, x)  # noqa: E741
    torch.testing.assert_close(l, torch.zeros_like(l), atol=1e-9, rtol=0)
    found = weigh_steps(l)
    assert abs(found.nats) < 1e-9
    assert found.solved


@pytest.mark.parametrize("noise", [0.0, 0.05])
@pytest.mark.parametrize("scale", [0.8, 1.3])
def test_nats_to_the_optimum_are_the_kl_of_the_steps(noise, scale):
    world = lq.short(noise)
    fit = exact(world, scale=scale)
    x = draws_of(fit, 4000)
    l = step_log_weights(fit.model, fit.generator, x)  # noqa: E741
    want = kl_to_optimum(world, scale)
    # Identity (iii): minus the mean log weight, log Z given the start being 0.
    total = -l.sum(1)
    assert abs(total.mean() - want) < 3 * total.std() / len(total) ** 0.5
    found = weigh_steps(l)
    assert abs(found.nats - want) < 3 * found.standard_error
    assert found.nats == pytest.approx(sum(found.by_step))
    assert abs(found.by_step[found.worst] - want / world.horizon) < 0.01
    shifted = weigh_steps(l + torch.linspace(-3, 3, world.horizon))  # constants in h_t
    assert shifted.nats == pytest.approx(found.nats, abs=1e-9)


def test_nats_by_the_soft_value_of_the_policy_itself():
    """A fit has no optimal h: its own gives mean l_t = 0, and the nats all the same."""
    world, scale = lq.short(0.05), 1.2
    fit = exact(world, scale=scale)
    x = draws_of(fit, 6000)
    fit.model.soft_value = None
    with pytest.raises(ValueError, match="no soft value"):
        step_log_weights(fit.model, fit.generator, x)
    own = soft_value_of(fit.model, fit.generator, x)
    l = step_log_weights(fit.model, fit.generator, x, own)  # noqa: E741
    assert abs(l.sum(1).mean()) < 0.02
    found = weigh_steps(l)
    assert found.nats == pytest.approx(kl_to_optimum(world, scale), rel=0.15)


def test_report_of_the_exact_solution():
    fit = exact(lq.short(0.0))
    report = trajectory_report(fit, draws_of(fit, 200, 1), n=400)
    assert report.horizons == (1, 2, 5, 10)
    assert report.ess == pytest.approx([1.0] * 4)
    for log_z in [*report.log_z_of, report.importance, report.bridge, report.lower, report.upper]:
        assert abs(log_z.value) < 1e-9
    assert report.logits_data == pytest.approx([0.0] * 5, abs=1e-9)
    sigma = lq.solve(lq.short(0.0)).sigma
    entropy = dist.MultivariateNormal(torch.zeros(10, 1).double(), sigma).entropy().mean()
    assert abs(report.entropy.value - entropy) < 3 * report.entropy.standard_error
    assert report.weighted
    assert max(abs(gap.z) for gap in report.gaps.values()) < 3
    assert "soft-optimal" in report.law
    for name in ("ESS/n 1.000", "log Z: bridge", "gap: cost", "nats to soft optimum"):
        assert name in str(report)
        assert name in report._repr_html_()


@pytest.mark.parametrize("noise", [0.0, 0.05])
def test_ess_falls_with_the_horizon_as_it_must(noise):
    """Identity (iv): E[w^2] / E[w]^2 = (s / sqrt(2s - 1))^(mt) for the first t steps."""
    scale, n = 1.2, 8000
    fit = exact(lq.short(noise), scale=scale)
    report = trajectory_report(fit, draws_of(fit, 200, 1), n=n)
    for t, ess in zip(report.horizons, report.ess, strict=True):
        assert ess == pytest.approx((math.sqrt(2 * scale - 1) / scale) ** t, rel=0.08)
    want = kl_to_optimum(lq.short(noise), scale)
    assert abs(report.lower.value + want) < 3 * report.lower.standard_error
    assert report.lower.value < report.importance.value < report.upper.value
    for log_z in (*report.log_z_of, report.importance):
        assert abs(log_z.value) < 3.5 * log_z.standard_error


def test_gaps_have_the_sign_of_the_demonstrations_cost():
    world = lq.short(0.0)
    fit = exact(world)
    wasteful = exact(world, scale=2.0)
    report = trajectory_report(fit, draws_of(wasteful, 500, 1), n=2000)
    assert report.gaps["cost"].z > 5
    assert report.cost_data.value > report.cost_draws.value


def test_bridge_error_is_the_spread_of_the_bridge():
    """Weights of N(0, 1) to N(1, 1): log w = x - 1/2, log Z = 0."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for _ in range(300):
        x = torch.randn(2, 200, generator=generator, dtype=torch.float64)
        found.append(bridge_with_error(x[0] + 0.5, x[1] - 0.5))
    values = torch.tensor([b.value for b in found])
    assert abs(values.mean()) < 3 * values.std() / 300**0.5
    errors = torch.tensor([b.standard_error for b in found])
    assert errors.mean().item() == pytest.approx(values.std().item(), rel=0.15)
    assert found[-1].value == bridge(x[0] + 0.5, x[1] - 0.5)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("noise", [0.0, 0.05])
def test_healthy_policy_is_not_flagged(noise, seed):
    fit = exact(lq.short(noise), scale=1.1, n_train=200)
    report = diagnose(fit, draws_of(exact(lq.short(noise)), 200, seed), n=2000, seed=seed)
    assert report.problems == ()
    assert "Healthy: the weights can be used, the policy" in report.verdict
    assert "law of the weights" in str(report)
    assert math.isnan(report.evidence.behind_barrier)


def test_long_horizon_is_judged_by_its_steps():
    """Each step is .019 nats off; the weights of 200 steps are worth nothing."""
    world = lq.imitation(0.05, horizon=200)
    fit = exact(world, scale=1.3, n_train=100)
    report = diagnose(fit, draws_of(exact(world), 100, 1), n=400)
    assert report.evidence.own
    nats = report.evidence.steps.nats
    assert nats > 0
    slack = math.sqrt(2 * nats) + nats * math.sqrt(2 / 200)
    assert report.evidence.data.slack == pytest.approx(slack)
    assert report.evidence.log_z.ess < 0.1
    assert report.problems == ()
    assert "step by step" in report.verdict
    assert "noisy: long horizon" in str(report)


def wrong_cost(world, i, factor):
    Q = world.Q.clone()
    Q[i, i] *= factor
    return dataclasses.replace(world, Q=Q)


class Weighted(nn.Module):
    """QuadraticCost of a world without cross terms, a factor per weight."""

    def __init__(self, world):
        super().__init__()
        self.world, self.dynamics = world, world.dynamics(torch.float64)
        self.anchor = nn.Parameter(torch.zeros((), dtype=torch.float64))

    def forward(self):
        w = self.world
        tau = trajectory(self.dynamics, w.horizon)
        with pyro.plate("time", w.horizon):
            for i in range(2):
                pyro.factor(f"state_{i}", -0.5 * w.Q[i, i] * tau.states[:-1, i] ** 2)
            pyro.factor("effort", -0.5 * w.R[0, 0] * tau.actions[:, 0] ** 2)
        pyro.factor("terminal", -0.5 * tau.states[-1] @ w.Q_T @ tau.states[-1])


@pytest.mark.parametrize("noise", [0.0, 0.05])
def test_wrong_weight_of_a_cost_is_named(noise):
    world = lq.imitation(noise)
    learned = wrong_cost(world, 1, 5.0)
    model = EnergyModel(Weighted(learned))
    solution = lq.solve(learned)
    model.soft_value = exact_soft_value(model, solution)
    policy = lq.LinearGaussianPolicy(solution).double()
    fit = Exact(model, PolicyGenerator(model, policy=policy), 0.0, n_train=300)
    report = diagnose(fit, lq.draws(world, lq.solve(world), 300, 1), n=1000)
    assert report.problems[0] == "wrong_factor"
    assert report.where == "term state_1"
    assert "mean cost 'state_1'" in report.verdict
    assert "above that of the policy" in report.verdict  # its true weight is smaller


def test_narrow_policy_is_a_fault_of_the_generator():
    world = lq.imitation(0.05)
    report = diagnose(exact(world, scale=0.3), lq.draws(world, lq.solve(world), 300, 1), n=1000)
    assert report.problems[0] == "narrow_proposal"
    assert report.where == "actions[0]"
    assert report.evidence.spread.ratio == pytest.approx(0.3**-0.5, rel=0.05)
    for advice in ("timed=True", "generator_steps", "hidden"):
        assert advice in report.verdict
    assert "student_t" not in report.verdict


def test_policy_of_another_cost_lags():
    world = lq.imitation(0.0)
    report = diagnose(
        exact(wrong_cost(world, 0, 20.0), cost=world),
        lq.draws(world, lq.solve(world), 300, 1),
        n=1000,
    )
    assert report.problems[0] in ("heavy_tail", "low_ess", "narrow_proposal")
    assert "soft optimum" in report.verdict


def test_other_starts_are_named():
    world = lq.short(0.0)
    shifted = dataclasses.replace(world, mu=world.mu + torch.tensor([0.5, 0.0]).double())
    report = diagnose(exact(world), lq.draws(shifted, lq.solve(world), 300, 1), n=1000)
    assert report.problems[0] == "other_start"
    assert report.where == "start[0]"
    assert "Dynamics(start=" in report.verdict


def fixed_start(world):
    one = torch.ones(2, dtype=torch.float64)
    return dataclasses.replace(world, mu=one, S_0=1e-40 * torch.eye(2).double())


def test_constant_start_gives_no_alarm_and_no_nan():
    """A fixed start: two constant coordinates."""
    fit = exact(fixed_start(lq.short(0.05)), scale=1.1, n_train=200)
    data = draws_of(exact(fixed_start(lq.short(0.05))), 200, 1)
    report = diagnose(fit, data, n=1000)
    assert report.problems == ()
    gaps = report.evidence.data.gaps
    assert not any(math.isnan(gap.z) for gap in gaps.values())
    assert gaps["start[0]"].z == 0.0


class Uniform(nn.Module):
    """A policy over three actions that prefers the first by `bias`."""

    def __init__(self, bias=0.0):
        super().__init__()
        self.logits = nn.Parameter(torch.tensor([bias, 0.0, 0.0], dtype=torch.float64))

    def forward(self, states, time):
        return dist.Categorical(logits=self.logits.expand(*states.shape, 3))


def tabular(bias=-0.3, price=0.3):
    """Four states in a ring; `price` on action 0 alone, so the optimal policy is known."""
    generator = torch.Generator().manual_seed(0)
    transitions = torch.rand(4, 3, 4, generator=generator).double().softmax(-1)
    ring = Dynamics.tabular(transitions, torch.tensor([1.0, 0.0, 0.0, 0.0]))

    def program():
        tau = trajectory(ring, 6)
        with pyro.plate("time", 6):
            pyro.factor("toll", -price * (tau.actions == 0).double())

    model = EnergyModel(program).double()
    return Exact(model, PolicyGenerator(model, policy=Uniform(bias)), 0.0)


@pytest.mark.parametrize("price", [0.3, -0.7])
def test_integers_give_numbers(price):
    fit = tabular(-price, price)
    data = draws_of(fit, 300, 1)
    fit.model.soft_value = soft_value_of(fit.model, fit.generator, draws_of(fit, 2000))
    report = diagnose(fit, data, n=1000)
    assert report.problems == ()
    gaps = report.evidence.data.gaps
    assert {"states = 0", "actions = 2", "start = 0", "term toll"} <= gaps.keys()
    assert not any(math.isnan(gap.z) for gap in gaps.values())
    assert abs(report.evidence.steps.nats) < 0.02
    found = trajectory_report(fit, data, n=1000)
    logits = torch.tensor([-price, 0.0, 0.0])
    entropy = dist.Categorical(logits=logits).entropy().item()
    assert abs(found.entropy.value - entropy) < 3 * found.entropy.standard_error + 1e-6


def test_statistics_are_averages_over_time():
    fit = tabular()
    a, b = draws_of(fit, 100), draws_of(fit, 100, 1)
    found, _ = trajectory_statistics(fit.model.layout, a, b)
    total = sum(value for name, value in found.items() if name.startswith("actions"))
    torch.testing.assert_close(total, torch.ones_like(total))
    world = exact(lq.short(0.0))
    a, b = draws_of(world, 100), draws_of(world, 100, 1)
    found, other = trajectory_statistics(world.model.layout, a, b)
    assert list(found) == list(other)
    assert found["states[0]"].mean().abs() < 1e-12
    assert found["states[0]^2"].mean().item() == pytest.approx(1.0)


def test_shaped_cost_is_the_log_density_of_the_soft_optimal_policy():
    world = lq.short(0.05)
    fit = exact(world)
    x = draws_of(fit, 50)
    torch.testing.assert_close(
        shaped(fit.model, x), fit.generator.step_log_prob(x).detach(), atol=1e-9, rtol=0
    )


def test_shaping_does_not_move_a_cost_but_a_weight_does():
    """c + Phi(s_t) - Phi(s_{t+1}) with Phi = k x'x / 2: the same policy, the same shaped cost."""
    world = lq.imitation(0.0, horizon=10)
    A, B, k = world.A, world.B, 0.3
    eye = torch.eye(2, dtype=torch.float64)
    moved = dataclasses.replace(
        world,
        Q=world.Q + k * (eye - A.T @ A), R=world.R - k * B.T @ B, S=-k * B.T @ A,
        Q_T=world.Q_T + k * eye,
    )  # fmt: skip
    one, x = exact(world), draws_of(exact(world), 50)
    same = shaped_distance(one.model, exact(moved).model, x)
    assert same.rms < 1e-9
    assert same.correlation == pytest.approx(1.0)
    other = shaped_distance(one.model, exact(wrong_cost(world, 0, 3.0)).model, x)
    assert other.rms > 0.05
    assert other.correlation < 0.999


def test_errors_name_the_way_out():
    fit = exact(lq.short(0.0))
    x = draws_of(fit, 10)
    fit.model.soft_value = None
    with pytest.raises(ProgramError, match="objective='trajectory' or 'causal'"):
        shaped(fit.model, x)
    with pytest.raises(GeneratorError, match="expected a PolicyGenerator"):
        trajectory_report(Exact(fit.model, object()), x)
    assert horizons_of(1) == (1,)
    assert horizons_of(3) == (1, 3)


@pytest.mark.parametrize("world", ["vectors", "integers"])
def test_datatree_names_its_dimensions_and_survives_a_file(world, tmp_path):
    fit = exact(lq.short(0.05), scale=1.1) if world == "vectors" else tabular()
    fit = dataclasses.replace(fit, history=({"round": 0, "ess": 0.5, "worst_term": "cost"},))
    data = draws_of(fit, 20, 1)
    tree = to_datatree(fit, data=data, n=200)
    posterior, observed = tree["posterior"], tree["observed_data"]
    tail = ("state",) if world == "vectors" else ()
    end = ("action",) if world == "vectors" else ()
    assert posterior["states"].dims == ("chain", "draw", "time", *tail)
    assert posterior["actions"].dims == ("chain", "draw", "step", *end)
    assert observed["states"].dims == ("row", "time", *tail)
    assert tree["proposal"]["actions"].dims == ("chain", "draw", "step", *end)
    horizon = fit.model.layout.horizon
    assert posterior["time"].values.tolist() == list(range(horizon + 1))
    assert posterior["step"].values.tolist() == list(range(horizon))
    kind = np.floating if world == "vectors" else np.integer
    assert np.issubdtype(posterior["states"].dtype, kind)
    assert np.issubdtype(observed["actions"].dtype, kind)
    terms = ["cost", "terminal"] if world == "vectors" else ["toll"]
    assert posterior["term"].values.tolist() == terms
    np.testing.assert_allclose(
        observed["cost"].sum("term"),
        -fit.model.step_log_density(data).sum(1),
        rtol=1e-9,
    )
    np.testing.assert_allclose(posterior["cost"].sum("term"), tree["sample_stats"]["energy"])
    assert tree["log_likelihood"]["joint"].dims == ("chain", "draw", "row")
    assert tree["training"]["ess"].values.tolist() == [0.5]
    summary = arviz_stats.summary(tree, var_names=["cost"], round_to="none")
    assert list(summary.index) == [f"cost[{term}]" for term in terms]
    assert (summary["r_hat"] < 1.1).all()
    path = tmp_path / "tree.nc"
    tree.to_netcdf(path, engine="h5netcdf")
    with xarray.open_datatree(path, engine="h5netcdf") as back:
        for group in tree.children:
            xarray.testing.assert_equal(back[group].to_dataset(), tree[group].to_dataset())


def test_cost_map_is_the_cost_and_paths_are_those_drawn():
    world = lq.imitation(0.0, horizon=5)
    model = EnergyModel(Weighted(world)).double()
    fit = dataclasses.replace(exact(world), model=model)
    data = draws_of(fit, 8, 1)
    data["actions"] -= data["actions"].mean()  # so the map's action is 0
    data["states"] = data["states"].clone()
    figure, ax = plt.subplots()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(EnergyModel, "check", lambda self, x: x)  # moved actions don't replay
        assert plot_trajectories(fit, data, n=8, names=("m", "m/s"), ax=ax) is figure
    mesh, paths, others = ax.collections
    cost = mesh.get_array().reshape(60, 60)
    x, y = ax.get_xlim()[1], ax.get_ylim()[0]
    want = 0.5 * (world.Q[0, 0] * x**2 + world.Q[1, 1] * y**2)
    assert cost[0, -1] == pytest.approx(want.item(), rel=1e-3)
    np.testing.assert_allclose(paths.get_segments()[3], data["states"][3])
    assert len(others.get_segments()) == 8
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("m", "m/s")
    with pytest.raises(ValueError, match="vectors of 2"):
        plot_trajectories(fit, draws_of(fit, 8, 1), (0, 2))
    plt.close("all")


def test_horizon_curves_end_at_the_report():
    fit = exact(lq.short(0.0), scale=1.2)
    figure, axes = plt.subplots(1, 2)
    assert plot_horizon(fit, 500, axes=tuple(axes)) is figure
    report = trajectory_report(fit, draws_of(fit, 50, 1), n=500)
    assert axes[0].lines[0].get_ydata()[-1] == pytest.approx(report.ess[-1])
    assert axes[1].lines[1].get_ydata()[-1] == pytest.approx(report.log_z_of[-1].value)
    assert axes[1].lines[2].get_ydata()[-1] == pytest.approx(report.lower.value)
    with pytest.raises(GeneratorError, match="plot_horizon"):
        plot_horizon(Exact(fit.model, object()))
    plt.close("all")
