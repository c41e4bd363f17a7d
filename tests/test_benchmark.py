"""The benchmark's measurements against closed forms."""

import math

import pytest
import torch
from torch.distributions import Independent, MultivariateNormal, Normal

from ebm_pp import EnergyModel
from experiments.benchmark.annealed import Start, annealed_log_partition
from experiments.benchmark.measure import (
    Look,
    Proposal,
    grid_log_partition,
    importance_log_partition,
    kl,
    own_sampling,
)
from experiments.benchmark.peers import TotalEnergy
from experiments.benchmark.problems import PROBLEMS, Problem, nearest
from experiments.benchmark.recipes import descend, held_back
from experiments.benchmark.tables import middle, seconds_to, spread
from models.network import Network


def normal(mean, scale, d):
    return Independent(Normal(torch.full((d,), mean), torch.full((d,), scale)), 1)


def gaussian_problem(d, n=20_000):
    law = normal(0.0, 1.0, d)
    return Problem(
        "normal",
        law.sample((n,)),
        law.sample((n,)),
        law.log_prob,
        lambda n, seed: law.sample((n,)),
    )


class Drawn:
    """A distribution as a generator."""

    has_rsample = False

    def __init__(self, law):
        self.law = law

    def rsample_and_log_prob(self, n):
        x = self.law.sample((n,))
        return {"x": x}, self.law.log_prob(x)

    def log_prob(self, x):
        return self.law.log_prob(x["x"])


@pytest.mark.parametrize("name", ["rings", "moons"])
def test_grid_log_partition_of_a_normalised_shape_is_zero(name):
    problem = PROBLEMS[name](0)
    log_z = grid_log_partition(lambda x: problem.log_density(x) + 3.0, problem.train)
    assert abs(log_z.value - 3.0) < 1e-4
    assert log_z.standard_error < 1e-3


def test_grid_sees_mass_far_from_the_data():
    rows = torch.randn(1000, 2)
    far = normal(30.0, 3.0, 2)
    log_z = grid_log_partition(far.log_prob, rows)
    assert abs(log_z.value) < 0.05


def test_importance_log_partition_of_a_mixture_of_proposals():
    d, wide, shifted = 6, normal(0.0, 1.5, 6), normal(1.0, 0.8, 6)
    proposals = [
        Proposal(law.sample((n,)), law.log_prob) for law, n in ((wide, 20_000), (shifted, 5_000))
    ]
    exact = d / 2 * math.log(2 * math.pi)
    log_z = importance_log_partition(lambda x: -0.5 * x.square().sum(1), proposals)
    assert abs(log_z.value - exact) < 3 * log_z.standard_error < 0.05
    assert log_z.pareto_k < 0.5


def test_annealed_log_partition():
    d, exact = 5, 2.0
    law = normal(1.5, 0.5, d)
    first = normal(0.0, 1.0, d)
    start = Start(first.sample((512,)), first.log_prob)
    log_z = annealed_log_partition(
        lambda x: law.log_prob(x) + exact, start, torch.ones(d), temperatures=100
    )
    assert abs(log_z.value - exact) < 3 * log_z.standard_error < 0.2


@pytest.mark.parametrize("log_z", [0.0, 5.0])
def test_kl_of_two_gaussians(log_z):
    d, mean, scale = 3, 0.3, 1.4
    problem = gaussian_problem(d)
    other = normal(mean, scale, d)
    exact = d * (math.log(scale) + (1 + mean**2) / (2 * scale**2) - 0.5)
    estimate = importance_log_partition(
        lambda x: other.log_prob(x) + log_z, [Proposal(other.sample((100,)), other.log_prob)]
    )
    value, error = kl(problem, lambda x: other.log_prob(x) + log_z, estimate)
    assert abs(value - exact) < 3 * error < 0.1
    if log_z == 0:  # a normalised density needs no estimate
        assert kl(problem, other.log_prob) == pytest.approx((value, error), abs=1e-4)


def test_own_sampling_shows_a_lost_mode_and_a_wrong_log_partition():
    centres = torch.tensor([[-4.0], [4.0]])
    problem = Problem("two", centres, centres, *[None] * 2, *nearest(centres.double()))
    left = MultivariateNormal(centres[0], torch.eye(1))

    def log_density(x):
        return torch.logaddexp(
            left.log_prob(x), MultivariateNormal(centres[1], torch.eye(1)).log_prob(x)
        )

    exact = importance_log_partition(
        log_density, [Proposal(8 * torch.randn(50_000, 1), normal(0.0, 8.0, 1).log_prob)]
    )
    assert abs(exact.value - math.log(2)) < 3 * exact.standard_error
    found, _ = own_sampling(problem, log_density, Drawn(left), exact)
    assert found["smallest_mode"] < 0.05
    assert found["log_z_error"] == pytest.approx(-math.log(2), abs=0.05)
    found, draws = own_sampling(problem, log_density, Drawn(normal(0.0, 8.0, 1)), exact)
    assert found["smallest_mode"] == pytest.approx(1, abs=0.1)
    assert abs(found["log_z_error"]) < 0.05
    assert 0.2 < (draws > 0).double().mean() < 0.8


@pytest.mark.parametrize("correlated", [False, True])
def test_total_energy_is_minus_the_programs_log_density_up_to_a_constant(correlated):
    rows = torch.randn(200, 3) * torch.tensor([1.0, 5.0, 0.2]) + 4
    rows[:, 2] += rows[:, 1]
    program = Network(rows, correlated=correlated)
    model, energy = EnergyModel(program), TotalEnergy(program, rows)
    with torch.no_grad():
        total = model.log_density({"x": rows}) + energy(energy.standardise(rows))
    scale = program.base_scale.diagonal() if correlated else program.base_scale
    constant = -model.sites["x"].dim / 2 * math.log(2 * math.pi) - scale.log().sum()
    torch.testing.assert_close(total, constant.expand(200), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "name",
    ["eight_gaussians", "checkerboard", "rings", "many_well_8", "many_well_16", "mixture_10"],
)
def test_members_have_the_true_shares(name):
    problem = PROBLEMS[name](0)
    members = problem.members(problem.draws(20_000, 1))
    error = members.std(0) / math.sqrt(20_000)
    assert ((members.mean(0) - problem.shares).abs() < 4 * error + 1e-3).all()


def test_seeds_give_other_rows():
    first, second = PROBLEMS["moons"](0), PROBLEMS["moons"](1)
    assert first.train.shape == (8192, 2)
    assert first.test.shape == (10_000, 2)
    assert not torch.equal(first.train, second.train)


def test_the_clock_stands_still_during_a_look():
    problem = gaussian_problem(2)
    look = Look(problem, 0, budget=1.0)
    before = look.seconds
    state = torch.get_rng_state()
    found = look(problem.log_density, last=True)
    assert look.measuring > 0
    assert look.seconds - before < look.measuring
    assert found["kl"] == pytest.approx(0, abs=1e-3)
    assert torch.equal(state, torch.get_rng_state())


def test_summaries():
    rows = [{"kl": 0.1}, {"kl": 0.3}, {"kl": 0.2}, {"kl": None}]
    assert spread(rows, "kl") == "0.200 (0.100..0.300)"
    assert middle(rows, "kl", 1) == "0.2"
    curve = [{"cpu": 1.0, "kl": 0.5}, {"cpu": 2.0, "kl": 0.1}, {"cpu": 3.0, "kl": 0.2}]
    assert seconds_to(curve, 0.1) == 2.0
    assert seconds_to(curve, 0.01) == math.inf


def test_descend_keeps_the_parameters_of_the_best_loss_on_rows_held_back():
    # The training rows have mean 1, the validation rows 0.5: going on to 1 is overfitting.
    rows, validation = torch.ones(64, 1), torch.full((64, 1), 0.5)
    problem = Problem("shift", rows, rows, lambda x: torch.zeros(len(x)))
    place = torch.nn.Linear(1, 1, bias=False)
    torch.optim.Adam(place.parameters())  # the first one imports for a second

    def run(validation):
        torch.nn.init.zeros_(place.weight)
        ending = descend(
            lambda x: (x - place.weight).square().mean(),
            list(place.parameters()),
            Look(problem, 0, budget=0.5, curve=False),
            lambda: None,
            rows=rows,
            validation=validation,
            kept=place,
            lr=3e-3,
            batch=8,
            cosine=False,
        )
        return place.weight.item(), ending

    kept, ending = run(validation)
    assert kept == pytest.approx(0.5, abs=0.15)
    assert ending["best_step"] < ending["steps"]
    last, _ = run(None)
    assert last > kept


def test_rows_held_back_are_not_trained_on():
    problem = gaussian_problem(2, n=100)
    train, validation = held_back(problem)
    assert (len(train), len(validation)) == (90, 10)
    torch.testing.assert_close(torch.cat([train, validation]), problem.train)
    given = problem._replace(validation=problem.test)
    assert held_back(given)[0] is problem.train
