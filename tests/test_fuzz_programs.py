"""Programs of any sites and factors, against Pyro's own trace, closed forms and autograd."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from fuzzing import as_users_call, names, same, weighing
from hypothesis import assume, given
from hypothesis import strategies as st
from oracle import by_trace, double
from test_fuzz_entrance import TINY
from torch import nn
from torch.distributions import constraints

import ebm_pp
from ebm_pp import EnergyModel, FitConfig, ProgramError

positive = st.integers(1, 24).map(lambda k: k / 8)
real = st.integers(-24, 24).map(lambda k: k / 8)


def full(shape, value):
    return torch.full(shape, value)


# Name: a law from two positive numbers and a location; of a vector if it has a shape.
LAWS = {
    "Normal": lambda a, b, m, s: dist.Normal(full(s, m), a).to_event(len(s)),
    "Normal, batch": lambda a, b, m, s: dist.Normal(full(s, m), a),
    "StudentT": lambda a, b, m, s: dist.StudentT(a + 2, full(s, m), b).to_event(len(s)),
    "Laplace": lambda a, b, m, s: dist.Laplace(full(s, m), a).to_event(len(s)),
    "Logistic": lambda a, b, m, s: dist.Logistic(full(s, m), a).to_event(len(s)),
    "Gumbel": lambda a, b, m, s: dist.Gumbel(full(s, m), a).to_event(len(s)),
    "Gamma": lambda a, b, m, s: dist.Gamma(full(s, a + 1), b).to_event(len(s)),
    "InverseGamma": lambda a, b, m, s: dist.InverseGamma(full(s, a + 2), b).to_event(len(s)),
    "LogNormal": lambda a, b, m, s: dist.LogNormal(full(s, m / 2), a / 2).to_event(len(s)),
    "HalfNormal": lambda a, b, m, s: dist.HalfNormal(full(s, a)).to_event(len(s)),
    "HalfCauchy": lambda a, b, m, s: dist.HalfCauchy(full(s, a)).to_event(len(s)),
    "Exponential": lambda a, b, m, s: dist.Exponential(full(s, a)).to_event(len(s)),
    "Weibull": lambda a, b, m, s: dist.Weibull(full(s, a), b + 1).to_event(len(s)),
    "Pareto": lambda a, b, m, s: dist.Pareto(full(s, a), b + 2).to_event(len(s)),
    "Beta": lambda a, b, m, s: dist.Beta(full(s, a + 0.5), b + 0.5).to_event(len(s)),
    "Kumaraswamy": lambda a, b, m, s: dist.Kumaraswamy(full(s, a + 1), b + 1).to_event(len(s)),
    "Uniform": lambda a, b, m, s: dist.Uniform(full(s, m), m + a).to_event(len(s)),
    "VonMises": lambda a, b, m, s: dist.VonMises(full(s, m), a).to_event(len(s)),
    "Circle": lambda a, b, m, s: ebm_pp.Circle().expand(s).to_event(len(s)),
    "degrees": lambda a, b, m, s: ebm_pp.Circle(period=360.0).expand(s).to_event(len(s)),
    "Dirichlet": lambda a, b, m, s: dist.Dirichlet(torch.tensor([a + 1, b + 1, 2.0])),
    "LKJCholesky": lambda a, b, m, s: dist.LKJCholesky(3, a + 0.5),
    "MultivariateNormal": lambda a, b, m, s: dist.MultivariateNormal(
        full((2,), m), torch.eye(2) * a + b
    ),
    "LowRank": lambda a, b, m, s: dist.LowRankMultivariateNormal(
        full((3,), m), torch.ones(3, 1) * a, full((3,), b)
    ),
    "affine": lambda a, b, m, s: dist.TransformedDistribution(
        dist.Normal(full(s, 0.0), 1.0), dist.transforms.AffineTransform(m, a)
    ).to_event(len(s)),
    "mixture": lambda a, b, m, s: dist.MixtureSameFamily(
        dist.Categorical(torch.tensor([0.3, 0.7])), dist.Normal(torch.tensor([m, m + 2]), a)
    ),
    "improper": lambda a, b, m, s: dist.ImproperUniform(constraints.real, (), s),
    "improper positive": lambda a, b, m, s: dist.ImproperUniform(constraints.positive, (), s),
}
# Name: a smooth factor of a site's numbers, however many.
FACTORS = {
    "linear": lambda x, w: w * x.sum(),
    "square": lambda x, w: -abs(w) * x.square().sum(),
    "wave": lambda x, w: (w * x).cos().sum(),
    "log cosh": lambda x, w: -nn.functional.softplus(w * x).sum(),
    "first": lambda x, w: w * x.reshape(-1)[0].tanh(),
    "step": lambda x, w: w * (x > 0.5).to(x.dtype).mean(),
    "where": lambda x, w: torch.where(x > w, x, -x).sum(),
    "sorted": lambda x, w: w * x.reshape(-1).sort().values[-1],
    "in place": lambda x, w: x.clone().mul_(w).add_(1).sum(),
    "loop": lambda x, w: sum(w * v for v in x.reshape(-1)),
}
shapes = st.sampled_from([(), (1,), (2,), (3,), (2, 2)])
law = st.tuples(st.sampled_from(sorted(LAWS)), positive, positive, real, shapes)
term = st.tuples(st.sampled_from(sorted(FACTORS)), real.filter(bool))
TURNS = {"VonMises": 2 * math.pi, "Circle": 2 * math.pi, "degrees": 360.0}


@st.composite
def programs(draw, laws=law):
    """Names, laws and factors of one to three sites."""
    labels = draw(st.lists(names, min_size=1, max_size=3, unique=True))
    sites = {label: draw(laws) for label in labels}
    used = st.tuples(names, st.sampled_from(labels), term)
    factors = {label: (of, what) for label, of, what in draw(st.lists(used, max_size=3))}
    return sites, {name: f for name, f in factors.items() if name not in sites}


def program_of(spec):
    sites, factors = spec

    def program():
        x = {}
        for name, (kind, a, b, m, shape) in sites.items():
            x[name] = pyro.sample(name, LAWS[kind](a, b, m, shape))
        for name, (of, (what, w)) in factors.items():
            turn = TURNS.get(sites[of][0])
            value = x[of] if turn is None else (2 * math.pi / turn * x[of]).sin()
            pyro.factor(name, FACTORS[what](value, w))

    return program


def compiled(spec):
    """The model, unless a factor is the same at every draw, which is refused."""
    with as_users_call():
        try:
            return EnergyModel(program_of(spec))
        except ProgramError as error:
            assert "depends on no latent site" in str(error)  # noqa: PT017
            assert any(what in ("step", "first", "sorted") for _, (what, _) in spec[1].values())
            assume(False)


def drawn(model, n):
    return model.constrain(torch.randn(n, model.dim, dtype=model.dtype) / 2)[0]


@weighing(2)
@given(programs(), st.integers(1, 4), st.integers(0, 99))
def test_a_program_is_what_pyros_trace_says(spec, n, seed):
    torch.manual_seed(seed)
    with double(), as_users_call():
        model = compiled(spec)
        x = drawn(model, n)
        terms, expected = model.terms(x), by_trace(model, x)
        assert terms.keys() == expected.keys()
        for name, value in expected.items():
            torch.testing.assert_close(terms[name], value.reshape(n), rtol=1e-9, atol=1e-9)
        total = sum(value.reshape(n) for value in expected.values())
        torch.testing.assert_close(model.log_density(x), total, rtol=1e-8, atol=1e-8)
        both = model.log_base(x) - model.energy(x)
        torch.testing.assert_close(model.log_density(x), both, rtol=1e-8, atol=1e-8)


@weighing(2)
@given(programs(), st.integers(1, 3), st.integers(0, 99))
def test_coordinates_go_there_and_back_with_the_jacobian_of_autograd(spec, n, seed):
    torch.manual_seed(seed)
    with double(), as_users_call():
        model = compiled(spec)
        z = torch.randn(n, model.dim) / 2
        x, log_det = model.constrain(z)
        assert model.inside(x).all()
        back, log_back = model.unconstrain(x)
        torch.testing.assert_close(back, z, rtol=1e-7, atol=1e-7)
        torch.testing.assert_close(log_back, -log_det, rtol=1e-7, atol=1e-7)
        if all(kind not in ("Dirichlet", "LKJCholesky") for kind, *_ in spec[0].values()):
            flat = [v.reshape(n, -1) for v in x.values()]
            assert sum(v.shape[1] for v in flat) == model.dim
            slopes = torch.func.vmap(torch.func.jacrev(lambda z: _flat(model, z)))(z)
            found = slopes.diagonal(dim1=-2, dim2=-1).abs().log().sum(-1)
            torch.testing.assert_close(found, log_det, rtol=1e-7, atol=1e-7)


def _flat(model, z):
    return torch.cat([v.reshape(-1) for v in model.constrain(z[None])[0].values()])


proper = st.tuples(
    st.sampled_from(sorted(k for k in LAWS if "improper" not in k)), positive, positive, real,
    shapes,
)  # fmt: skip


@weighing(3)
@given(programs(proper), st.integers(1, 50), st.integers(0, 99))
def test_draws_of_the_base_are_inside_and_pass_the_check(spec, n, seed):
    torch.manual_seed(seed)
    with as_users_call():
        model = compiled(spec)
        x = model.sample_base(n)
        assert {name: v.shape[1:] for name, v in x.items()} == {
            name: site.shape for name, site in model.sites.items()
        }
        assert model.inside(x).all()
        assert model.log_base(x).isfinite().all()
        checked = model.check(x)
    assert same(checked, x)
    assert all(len(value) == n for value in x.values())


# Laws of one support whatever their numbers.
FREE = sorted(k for k in LAWS if k.partition(" ")[0] not in ("improper", "Uniform", "Pareto"))
exact = st.dictionaries(
    names, st.tuples(st.sampled_from(FREE), shapes, *[positive] * 4, real), min_size=1, max_size=3
)


class Target:
    """Independent laws, the generator of a model whose density they are."""

    has_rsample = False

    def __init__(self, laws):
        self.laws = laws

    def rsample_and_log_prob(self, n):
        x = {name: law.sample((n,)) for name, law in self.laws.items()}
        return x, self.log_prob(x)

    def log_prob(self, x):
        return sum(
            law.log_prob(x[k]).reshape(len(x[k]), -1).sum(1) for k, law in self.laws.items()
        )


@weighing(1)
@given(exact, real, st.integers(2, 300), st.integers(0, 99))
def test_log_z_is_the_scale_where_the_generator_is_the_density(sites, shift, n, seed):
    label = "c" * (1 + max(map(len, sites)))

    def program():
        x = {name: pyro.sample(name, law) for name, law in base.items()}
        gaps = [(target[k].log_prob(v) - base[k].log_prob(v)).sum() for k, v in x.items()]
        pyro.factor(label, sum(gaps) + shift)

    with as_users_call(), double():
        base = {k: LAWS[kind](a, b, m, s) for k, (kind, s, a, b, _, _, m) in sites.items()}
        target = {
            k: LAWS[kind](a, b, m + 0.25, s) for k, (kind, s, _, _, a, b, m) in sites.items()
        }
        try:
            model = EnergyModel(program)
        except ProgramError as error:  # both are the uniform law of the circle
            assert "depends on no latent site" in str(error)  # noqa: PT017
            assume(False)
        fit = ebm_pp.fit(model, None, Target(target), FitConfig.given(**TINY))
        found = ebm_pp.log_partition(fit, n, seed=seed)
        assert found.value == pytest.approx(shift, abs=1e-4)
        assert found.ess == pytest.approx(1.0, abs=1e-4)
        assert found.standard_error < 1e-3 or math.isnan(found.standard_error)
        draws = ebm_pp.importance_sample(fit, n, seed=seed)
        assert draws.rejected == 0
        kept = ebm_pp.resample(draws, 7, seed=seed)
        assert model.inside(kept).all()
        report = ebm_pp.diagnose(fit, None, max(n, 200), seed=seed)
        assert report.ok or report.problems[0] in ("undetermined_tail", "poor_mixing")
        assert report.evidence.log_z.value == pytest.approx(shift, abs=1e-4)
