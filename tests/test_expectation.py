"""Expectations over the law of the next state, against moments and plain sums."""

import itertools
import warnings

import pyro
import pyro.distributions as pyro_dist
import pytest
import torch
import torch.distributions as torch_dist
from torch import nn

from ebm_pp import Dynamics, EnergyModel, FitConfig, Opaque, Space, fit, trajectory
from ebm_pp.expectation import DRAWS, expect, points, warn_of_draws
from ebm_pp.soft_value import SoftValue

N = 50
F64 = torch.float64
COVARIANCE = torch.tensor([[0.3, 0.1], [0.1, 0.2]])
SD = torch.tensor([0.5, 0.4])
SHARES = torch.tensor([0.3, 0.7])
FIRST, SECOND = torch.tensor([[1.0, -1.0], [0.5, 2.0]])
START = pyro_dist.Normal(torch.zeros(2), 1.0).to_event(1)
MOMENTS = ["mean", "variance", "third"]  # of independent coordinates; third: central


def world(law, start=START, **spaces):
    return Dynamics(start, law, Space.real(2), **spaces)


def rows(dtype, n=N):
    """Equal rows: whatever differs between the expectations of two is noise."""
    states = torch.tensor([0.7, -0.4], dtype=dtype).expand(n, 2)
    return states, torch.zeros(n, 2, dtype=dtype)


def cubic(s):
    """Every monomial up to degree 3 of two coordinates."""
    x, y = s.unbind(-1)
    return torch.stack([x**i * y**j for i in range(4) for j in range(4 - i)], -1)


def moments_of_cubic(mean, covariance, third=(0.0, 0.0)):
    """E of `cubic` where third central moments are those of the single coordinates."""
    a, b = mean.tolist()
    (p, c), (_, q) = covariance.tolist()
    one = {
        (0, 0): 1, (0, 1): b, (0, 2): b * b + q, (0, 3): b**3 + 3 * b * q + third[1],
        (1, 0): a, (1, 1): a * b + c, (1, 2): a * (b * b + q) + 2 * b * c,
        (2, 0): a * a + p, (2, 1): b * (a * a + p) + 2 * a * c,
        (3, 0): a**3 + 3 * a * p + third[0],
    }  # fmt: skip
    return torch.tensor([one[i, j] for i in range(4) for j in range(4 - i)], dtype=F64)


def with_both(kinds):
    """Each law once of torch and once of Pyro."""
    return {
        f"{of}-{name}": (lambda s, make=make, lib=lib: make(lib, s), covariance)
        for (name, (make, covariance)), (of, lib) in itertools.product(
            kinds.items(), {"torch": torch_dist, "pyro": pyro_dist}.items()
        )
    }


SYMMETRIC = with_both(
    {
        "event": (lambda d, s: d.Independent(d.Normal(s, SD.to(s)), 1), SD.square().diag()),
        "batch": (lambda d, s: d.Normal(s, SD.to(s)), SD.square().diag()),
        "one number": (lambda d, s: d.Independent(d.Normal(s, 0.5), 1), 0.25 * torch.eye(2)),
        "all event": (lambda d, s: d.Independent(d.Normal(s, SD.to(s)), 2), SD.square().diag()),
        "nested": (
            lambda d, s: d.Independent(d.Independent(d.Normal(s, SD.to(s)), 1), 0),
            SD.square().diag(),
        ),
        "full": (lambda d, s: d.MultivariateNormal(s, COVARIANCE.to(s)), COVARIANCE),
        "precision": (
            lambda d, s: d.MultivariateNormal(s, precision_matrix=COVARIANCE.to(s).inverse()),
            COVARIANCE,
        ),
        "low rank": (
            lambda d, s: d.LowRankMultivariateNormal(s, SD.to(s)[:, None], SD.to(s)),
            SD[:, None] * SD + SD.diag(),
        ),
        "uniform": (
            lambda d, s: d.Independent(d.Uniform(s - SD.to(s), s + SD.to(s)), 1),
            (SD.square() / 3).diag(),
        ),
        "affine": (
            lambda d, s: d.TransformedDistribution(
                d.Independent(d.Normal(torch.zeros_like(s), 1.0), 1),
                [d.transforms.AffineTransform(s, SD.to(s), event_dim=1)],
            ),
            SD.square().diag(),
        ),
    }
) | {
    "pyro-to_event": (
        lambda s: pyro_dist.Normal(s, SD.to(s)).to_event(1),
        SD.square().diag(),
    ),
    "pyro-masked": (
        lambda s: pyro_dist.Normal(s, SD.to(s)).to_event(1).mask(False),
        SD.square().diag(),
    ),
    "pyro-delta": (lambda s: pyro_dist.Delta(s, event_dim=1), torch.zeros(2, 2)),
}  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("kind", SYMMETRIC)
def test_polynomials_of_third_degree_are_exact(kind, dtype):
    law, covariance = SYMMETRIC[kind]
    states, actions = rows(dtype)
    found = expect(world(lambda s, a: law(s + a)), cubic, states, actions)
    assert found.dtype == dtype
    assert (found == found[0]).all()
    exact = moments_of_cubic(states[0].double(), covariance.double())
    close = 1e-5 if dtype == torch.float32 else 1e-7  # constants of the laws are float32
    torch.testing.assert_close(found[0].double(), exact, rtol=0, atol=close)


def waves(s):
    """No polynomial."""
    return torch.sin(3 * s.double() + torch.arange(s.shape[-1])).cumsum(-1)


@pytest.mark.parametrize("lib", [torch_dist, pyro_dist], ids=["torch", "pyro"])
@pytest.mark.parametrize("m", [1, 3])
@pytest.mark.parametrize("event", [True, False])
def test_products_of_finite_laws_are_summed_over(lib, m, event):
    odds = torch.linspace(0.2, 0.7, m)

    def step(s, a):
        law = lib.Bernoulli(odds.expand_as(s))
        return lib.Independent(law, 1) if event else law

    start = pyro_dist.Normal(torch.zeros(m), 1.0).to_event(1)
    found = expect(world(step, start), waves, torch.zeros(N, m), torch.zeros(N, 2))
    exact = torch.zeros(m, dtype=F64)
    for bits in itertools.product([0.0, 1.0], repeat=m):
        value = torch.tensor(bits)
        exact += torch.where(value > 0, odds, 1 - odds).prod() * waves(value)
    torch.testing.assert_close(found, exact.expand(N, m), rtol=0, atol=1e-6)


@pytest.mark.parametrize("lib", [torch_dist, pyro_dist], ids=["torch", "pyro"])
@pytest.mark.parametrize("kind", ["Categorical", "OneHotCategorical", "Bernoulli", "Binomial"])
def test_finite_laws_are_summed_over(lib, kind):
    torch.manual_seed(0)
    logits = torch.randn(N, 3)
    start, spaces = pyro_dist.Categorical(torch.ones(3) / 3), {"states": Space.discrete(3)}

    def h(s):
        return (s.double() + 1).log().reshape(N, -1)

    if kind == "Bernoulli":
        start, spaces = pyro_dist.Bernoulli(0.5), {"states": Space.discrete(2)}
        chance = torch.stack([1 - logits[:, 0].sigmoid(), logits[:, 0].sigmoid()], 1)
        laws = lambda n: lib.Bernoulli(logits=logits[:n, 0])  # noqa: E731
    elif kind == "Binomial":
        p = logits[:, 0].sigmoid()
        chance = torch.stack([(1 - p) ** 2, 2 * p * (1 - p), p**2], 1)
        laws = lambda n: lib.Binomial(2, logits=logits[:n, 0])  # noqa: E731
    else:
        chance = logits.softmax(1)
        laws = lambda n: getattr(lib, kind)(logits=logits[:n])  # noqa: E731
    if kind == "OneHotCategorical":
        start, spaces = pyro_dist.Normal(torch.zeros(3), 1.0).to_event(1), {}
    made = world(lambda s, a: laws(len(s)), start, **spaces)
    states = made.reset(N)
    found = expect(made, h, states, torch.zeros(N, 2))
    if kind == "OneHotCategorical":
        exact = chance.double() * torch.log(torch.tensor(2.0, dtype=F64))
    else:
        every = torch.arange(chance.shape[1]).double()
        exact = chance.double() @ (every + 1).log()[:, None]
    torch.testing.assert_close(found, exact, rtol=0, atol=1e-6)


@pytest.mark.parametrize("lib", [torch_dist, pyro_dist], ids=["torch", "pyro"])
@pytest.mark.parametrize("parts", ["normal", "full", "uniform", "coordinates"])
def test_mixtures_have_the_points_of_their_components(lib, parts):
    def step(s, a):
        at = s.unsqueeze(1) + torch.stack([FIRST, SECOND]).to(s)
        law = {
            "normal": lambda: lib.Independent(lib.Normal(at, SD.to(s)), 1),
            "full": lambda: lib.MultivariateNormal(at, COVARIANCE.to(s)),
            "uniform": lambda: lib.Independent(lib.Uniform(at - SD.to(s), at + SD.to(s)), 1),
            "coordinates": lambda: lib.Normal(at.mT, SD.to(s).unsqueeze(-1)),
        }[parts]()
        if parts == "coordinates":  # each coordinate is a mixture of its own
            shares = lib.Categorical(SHARES.to(s).expand(len(s), 2, 2))
            return lib.Independent(lib.MixtureSameFamily(shares, law), 1)
        return lib.MixtureSameFamily(lib.Categorical(SHARES.to(s).expand(len(s), 2)), law)

    states, actions = rows(F64)
    found = expect(world(step), cubic, states, actions)
    covariance = {"full": COVARIANCE, "uniform": (SD.square() / 3).diag()}.get(
        parts, SD.square().diag()
    )
    centres, shares = states[0] + torch.stack([FIRST, SECOND]).double(), SHARES.double()
    if parts == "coordinates":
        mean = shares @ centres
        apart = centres - mean
        spread = (covariance.double().diagonal() + shares @ apart.square()).diag()
        # of a mixture of normals with one variance, third central moments are the centres'
        exact = moments_of_cubic(mean, spread, (shares @ apart**3).tolist())
    else:
        each = [moments_of_cubic(centre, covariance.double()) for centre in centres]
        exact = shares @ torch.stack(each)
    torch.testing.assert_close(found, exact.expand_as(found), rtol=0, atol=1e-6)


NO_POINTS = {
    "LogNormal": lambda s: torch_dist.Independent(torch_dist.LogNormal(s, 0.5), 1),
    "Laplace": lambda s: pyro_dist.Laplace(s, 0.5).to_event(1),
    "StudentT": lambda s: torch_dist.StudentT(5.0, s, 0.5),
    "Gumbel": lambda s: pyro_dist.Gumbel(s, 0.5).to_event(1),
    "Poisson": lambda s: torch_dist.Independent(torch_dist.Poisson(s.exp()), 1),
    "VonMises": lambda s: pyro_dist.VonMises(s, 2.0).to_event(1),
    "MixtureSameFamily": lambda s: torch_dist.MixtureSameFamily(
        torch_dist.Categorical(SHARES.expand(len(s), 2)),
        torch_dist.Independent(torch_dist.Laplace(s.unsqueeze(1).expand(-1, 2, -1), 0.5), 1),
    ),
    "Empirical": lambda s: pyro_dist.Empirical(
        torch.zeros(len(s), 2, 2), torch.zeros(len(s), 2)
    ),
}  # fmt: skip


class Regulate(nn.Module):
    def __init__(self, dynamics, horizon=3):
        super().__init__()
        self.dynamics, self.horizon = dynamics, horizon
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self):
        tau = trajectory(self.dynamics, self.horizon)
        with pyro.plate("time", self.horizon):
            pyro.factor("position", -self.weight * tau.states[:-1].square().sum(-1))
            pyro.factor("effort", -tau.actions.square().sum(-1))


@pytest.mark.parametrize("kind", NO_POINTS)
def test_draws_that_stand_for_an_expectation_are_told(kind):
    made = world(lambda s, a: NO_POINTS[kind](s))
    layout = EnergyModel(Regulate(made)).layout
    with pytest.warns(
        UserWarning, match=f"{kind}, has no closed form here: {DRAWS} draws"
    ) as told:
        SoftValue(layout, causal=True)
    assert len(told) == 1
    SoftValue(layout, causal=False)  # takes no expectation
    states, actions = torch.zeros(2000, 2), torch.zeros(2000, 2)
    if kind in ("MixtureSameFamily", "Laplace"):
        found = expect(made, lambda s: s**2, states, actions)
        assert found.std() > 0.05
        assert abs(found.mean() - 2 * 0.5**2) < 4 * found.std() / 4000**0.5


@pytest.mark.parametrize("kind", [*SYMMETRIC, "table", "opaque", "certain"])
def test_where_it_is_exact_or_a_simulators_nothing_is_told(kind):
    made = {
        "table": lambda: Dynamics.tabular(torch.full((3, 2, 3), 1 / 3), torch.ones(3) / 3),
        "opaque": lambda: world(Opaque(lambda s, a: s + torch.randn_like(s))),
        "certain": lambda: world(lambda s, a: s + a),
    }.get(kind, lambda: world(lambda s, a: SYMMETRIC[kind][0](s)))()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        warn_of_draws(made)
    assert not told
    if kind == "table":
        states, actions = torch.arange(N) % 3, torch.zeros(N, dtype=torch.int64)
        found = expect(made, lambda s: s.double().reshape(N, -1), states, actions)
        torch.testing.assert_close(found, torch.ones(N, 1, dtype=F64))
    else:
        found = expect(made, cubic, *rows(torch.float32))
        assert (found == found[0]).all() == (kind != "opaque")


def test_many_coordinates_of_a_finite_law_are_drawn():
    """2^9 combinations are too many; 2^8 are summed over."""
    for m, found in ((8, 256), (9, None)):
        law = torch_dist.Independent(torch_dist.Bernoulli(torch.full((4, m), 0.3)), 1)
        at = points(law, 1)
        assert (None if at is None else len(at[0])) == found


def test_normal_noise_of_many_coordinates_has_two_points_each():
    law = torch_dist.Independent(torch_dist.Normal(torch.zeros(4, 30), 2.0), 1)
    values, weights = points(law, 1)
    assert values.shape == (60, 4, 30)
    torch.testing.assert_close(weights.sum(0), torch.ones(4))
    second = torch.einsum("kn,kni,knj->nij", weights, values, values)
    torch.testing.assert_close(second, 4 * torch.eye(30).expand(4, 30, 30), rtol=0, atol=1e-4)


def test_a_fit_tells_it_once():
    torch.manual_seed(0)
    model = EnergyModel(Regulate(world(lambda s, a: torch_dist.Laplace(s + 0.3 * a, 0.2))))
    data = {"states": torch.randn(30, 4, 2), "actions": torch.randn(30, 3, 2)}
    config = FitConfig.trajectories(
        3, rounds=2, pool=60, warm_start_steps=10, energy_steps=5, generator_steps_max=2,
        progress=False,
    )  # fmt: skip
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        fit(model, data, config=config)
    assert sum("Laplace" in str(one.message) for one in told) == 1
