"""Supports that distributions declare: behind transforms, in mixtures, in classes of one's own."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints
from torch import nn
from torch.distributions import transforms as t

from ebm_pp import EnergyModel, ProgramError
from ebm_pp.circle import Circular
from ebm_pp.support import plain


def moved(base, *parts):
    return dist.TransformedDistribution(base, list(parts))


def of(make):
    def program():
        x = pyro.sample("x", make())
        pyro.factor("f", -0.1 * x.sum().clamp(-5, 5).sin())

    return EnergyModel(program)


class Own(dist.TorchDistribution):
    """Uniform on (.5, 3), whatever it declares."""

    arg_constraints = {}  # noqa: RUF012
    declared = constraints.interval(0.5, 3.0)

    def __init__(self, batch_shape=()):
        super().__init__(torch.Size(batch_shape), torch.Size(), validate_args=False)

    @property
    def support(self):
        return self.declared

    def expand(self, batch_shape, _instance=None):
        return type(self)(batch_shape)

    def sample(self, sample_shape=()):
        return 0.5 + 2.5 * torch.rand(*sample_shape, *self.batch_shape)

    def log_prob(self, value):
        inside = (value > 0.5) & (value < 3)
        return torch.where(inside, -math.log(2.5), -math.inf)


class Wide(Own):
    declared = constraints.interval(-40.0, 40.0)


class Real(Own):
    declared = constraints.real


class OneEnd(Own):
    declared = constraints.greater_than(0.5)


class Narrow(Own):
    declared = constraints.interval(1.0, 2.0)


class Disjoint(Own):
    declared = constraints.greater_than(4.0)


class Unsaid(Own):
    @property
    def support(self):
        raise NotImplementedError


class Undrawn(Own):
    def sample(self, sample_shape=()):
        raise NotImplementedError


WALL, OUTSIDE = "its density is zero at", "draws of .* are outside the support it declares"
LIES = {
    "wide": (Wide, WALL),
    "real": (Real, WALL),
    "one end": (OneEnd, WALL),
    "in an event": (lambda: Real((2,)).to_event(1), WALL),
    "expanded": (lambda: Real().expand((3,)).to_event(1), WALL),
    "narrow": (Narrow, OUTSIDE),
    "disjoint": (Disjoint, OUTSIDE),
    "narrow event": (lambda: Narrow((4,)).to_event(1), OUTSIDE),
    "narrow masked": (lambda: Narrow().mask(True), OUTSIDE),
    "none": (Unsaid, "Unsaid declares no support"),
    "an atom": (lambda: dist.ZeroInflatedDistribution(dist.Normal(0.0, 1.0), gate=torch.tensor(
        0.3)), "% of the draws of ZeroInflatedDistribution are 0"),
    "size": (lambda: moved(dist.Normal(0.0, 1.0), t.AbsTransform()), "AbsTransform is no bijecti"),
    "softmax": (lambda: moved(dist.Normal(torch.zeros(3), 1.0).to_event(1), t.SoftmaxTransform()),
                "SoftmaxTransform is no bijection"),
    "mixed numbers": (lambda: moved(
        dist.Exponential(torch.ones(2)).to_event(1),
        dist.transforms.LowerCholeskyAffine(torch.zeros(2), torch.eye(2) + 0.5 * torch.ones(
            2, 2).tril(-1))), "only a part of it"),
    "Haar": (lambda: moved(dist.Exponential(torch.ones(4)).to_event(1),
                           dist.transforms.HaarTransform()), "only a part of it"),
    "a scaled simplex": (lambda: moved(dist.Dirichlet(torch.ones(3)), t.AffineTransform(
        0.0, 2.0)), "only a part of it"),
    "scaled ordered": (lambda: moved(moved(
        dist.Normal(torch.zeros(3), 1.0).to_event(1), dist.transforms.OrderedTransform()),
        t.AffineTransform(0.0, 2.0)), "only a part of it"),
    "one up, one down": (lambda: moved(
        dist.Exponential(torch.ones(2)).to_event(1), t.StackTransform(
            [t.AffineTransform(0.0, 1.0), t.AffineTransform(3.0, -1.0)], dim=-1)),
        "only a part of it"),
    "parts elsewhere": (lambda: dist.MixtureSameFamily(
        dist.Categorical(torch.ones(2)), dist.Uniform(torch.tensor([0.0, 1.0]), 2.0)),
        "parts of a mixture have different supports"),
    "parts that end elsewhere": (lambda: dist.MixtureSameFamily(
        dist.Categorical(torch.ones(2)), moved(dist.Exponential(torch.ones(2)), t.AffineTransform(
            torch.tensor([1.0, 3.0]), -1.0))), "parts of a mixture have different supports"),
    "a bent angle": (lambda: moved(dist.VonMises(0.0, 1.0), t.ExpTransform()), "bends an angle"),
    "counts": (lambda: moved(dist.Poisson(3.0), t.AffineTransform(1.0, 2.0)), "discrete support"),
}  # fmt: skip


@pytest.mark.parametrize("name", LIES)
def test_a_support_that_is_not_true_is_named(name):
    make, phrase = LIES[name]
    with pytest.raises(ProgramError, match=f"(?s)^site 'x'.*{phrase}"):
        of(make)


UNSEEN = {  # coordinate by coordinate: lower and upper ends
    "event dimension": (lambda: moved(
        dist.Exponential(torch.ones(2)).to_event(1),
        t.AffineTransform(torch.tensor([1.0, 2.0]), -1.0, event_dim=1)), -math.inf, [1.0, 2.0]),
    "independent": (lambda: moved(
        dist.Exponential(torch.ones(2)).to_event(1),
        t.IndependentTransform(t.AffineTransform(3.0, -1.0), 1)), -math.inf, 3.0),
    "permuted": (lambda: moved(
        moved(dist.Exponential(torch.ones(2)), t.AffineTransform(
            torch.tensor([1.0, 2.0]), 1.0)).to_event(1),
        dist.transforms.Permute(torch.tensor([1, 0]))), [2.0, 1.0], math.inf),
    "reshaped": (lambda: moved(dist.Uniform(torch.zeros(4), torch.arange(1.0, 5.0)).to_event(1),
                               t.ReshapeTransform((4,), (2, 2))), 0.0, [[1.0, 2.0], [3.0, 4.0]]),
    "stacked": (lambda: moved(
        dist.Exponential(torch.ones(2)).to_event(1), t.StackTransform(
            [t.AffineTransform(1.0, 1.0), t.ExpTransform()], dim=-1)), 1.0, math.inf),
    "concatenated": (lambda: moved(
        dist.Exponential(torch.ones(3)).to_event(1), t.CatTransform(
            [t.AffineTransform(1.0, 1.0), t.AffineTransform(2.0, 1.0)], dim=-1, lengths=[1, 2])),
        [1.0, 2.0, 2.0], math.inf),
    "an inverse": (lambda: moved(dist.Exponential(1.0), t.AffineTransform(3.0, -2.0).inv),
                   -math.inf, 1.5),
    "a list of inverses": (lambda: moved(dist.Uniform(1.0, 2.0), t.ComposeTransform(
        [t.ExpTransform(), t.AffineTransform(0.0, 1.0)]).inv), 0.0, math.log(2)),
    "1 / Pareto": (lambda: moved(dist.Pareto(2.0, 3.0), t.PowerTransform(torch.tensor(-1.0))),
                   0.0, 0.5),
    "softplus": (lambda: moved(dist.Exponential(1.0), t.SoftplusTransform()), math.log(2),
                 math.inf),
    "logit": (lambda: moved(dist.Uniform(0.0, 1.0), t.SigmoidTransform().inv), -math.inf,
              math.inf),
    "quantile": (lambda: moved(dist.Uniform(0.0, 1.0), t.CumulativeDistributionTransform(
        torch.distributions.Exponential(1.0)).inv), 0.0, math.inf),
    "parts alike": (lambda: dist.MixtureSameFamily(
        dist.Categorical(torch.ones(2)), moved(dist.Exponential(torch.ones(2)), t.AffineTransform(
            torch.tensor([1.0, 1.0]), 2.0))), 1.0, math.inf),
    "Uniform parts": (lambda: dist.MixtureSameFamily(
        dist.Categorical(torch.ones(2)), dist.Uniform(torch.zeros(2), 2 * torch.ones(2))),
        0.0, 2.0),
    "parts of vectors": (lambda: dist.MixtureSameFamily(
        dist.Categorical(torch.ones(2)),
        dist.Uniform(torch.zeros(2, 3), torch.arange(1.0, 4.0).expand(2, 3)).to_event(1)),
        0.0, [1.0, 2.0, 3.0]),
    "own": (Own, 0.5, 3.0),
    "at an offset": (lambda: dist.Uniform(1000.0, 1000.05), 1000.0, 1000.05),
    "ELU": (lambda: moved(dist.Exponential(1.0), t.AffineTransform(-1.0, 1.0), t.ExpTransform()),
            math.exp(-1), math.inf),
}  # fmt: skip


@pytest.mark.parametrize("name", UNSEEN)
def test_ends_go_through_vectors_and_parts(name):
    make, low, high = UNSEEN[name]
    torch.manual_seed(0)
    model = of(make)
    support = plain(model.sites["x"].support)
    shape = model.sites["x"].shape
    for end, got in ((low, getattr(support, "lower_bound", -math.inf)),
                     (high, getattr(support, "upper_bound", math.inf))):  # fmt: skip
        expected = torch.as_tensor(end, dtype=torch.float32).expand(shape)
        torch.testing.assert_close(
            torch.as_tensor(got, dtype=torch.float32).expand(shape), expected
        )
    draws = model.sample_base(500)
    assert model.inside(draws).all()
    z, log_jacobian = model.unconstrain(draws)
    again, back = model.constrain(z)
    torch.testing.assert_close(again["x"], draws["x"], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(back, -log_jacobian, rtol=1e-3, atol=1e-3)
    if model.dim == 1:
        assert integral_of_base(model) == pytest.approx(1.0, abs=2e-3)


def integral_of_base(model):
    grid = torch.linspace(-30, 30, 60_001, dtype=torch.float64)
    x, log_jacobian = model.double().constrain(grid[:, None])
    kept = model.inside(x)
    log_base = model.log_base({"x": x["x"][kept]})
    return (log_base + log_jacobian[kept]).exp().sum().item() * 1e-3


def test_a_distribution_without_a_sampler_is_not_proper():
    model = of(Undrawn)
    assert not model.proper
    assert not model.double().proper
    with pytest.raises(ProgramError, match="'x' has an improper base measure"):
        model.sample_base(3)


def test_asking_moves_no_random_stream():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    of(Own)
    assert torch.equal(torch.rand(3), expected)


# Angles ----------------------------------------------------------------------------------------
def turned(scale, loc=0.3):
    def program():
        x = pyro.sample("x", moved(dist.VonMises(0.5, 2.0), t.AffineTransform(loc, scale)))
        pyro.factor("f", (x / abs(scale)).cos())

    return EnergyModel(program).double()


@pytest.mark.parametrize("scale", [1.0, -1.0, 180 / math.pi, -12 / math.pi])
def test_a_turned_angle_is_an_angle(scale):
    model = turned(scale)
    support = model.sites["x"].support
    assert isinstance(support, Circular)
    assert support.period == pytest.approx(2 * math.pi * abs(scale))
    assert model.circular.all()
    z = torch.arange(1000, dtype=torch.float64)[:, None] * (2 * math.pi / 1000) - math.pi
    x, log_jacobian = model.constrain(z)
    assert model.inside(x).all()
    total = (model.log_base(x) + log_jacobian).exp().mean() * 2 * math.pi
    assert total.item() == pytest.approx(1.0, abs=1e-6)  # torch's log I_0 has seven digits


# Ends that are learned -------------------------------------------------------------------------
class Program(nn.Module):
    def __init__(self, make, kind):
        super().__init__()
        self.make, self.w = make, nn.Parameter(torch.tensor(0.1))
        if kind == "learned":
            self.end = nn.Parameter(torch.tensor(1.5))
        elif kind == "frozen":
            self.end = nn.Parameter(torch.tensor(1.5), requires_grad=False)
        else:
            self.register_buffer("end", torch.tensor(1.5))

    def forward(self):
        pyro.factor("f", -self.w * pyro.sample("x", self.make(self.end)).sum())


def two(base):
    return base(torch.ones(2)).to_event(1)


FREE = {  # a parameter that moves no end
    "scale": lambda e: moved(dist.Exponential(1.0), t.AffineTransform(0.0, e)),
    "turned scale": lambda e: moved(
        dist.Exponential(1.0), t.AffineTransform(0.0, e), t.AffineTransform(3.0, -1.0)
    ),
    "scale of an event": lambda e: moved(
        two(dist.Exponential), t.IndependentTransform(t.AffineTransform(0.0, e), 1)
    ),
    "inverse scale": lambda e: moved(dist.Exponential(1.0), t.AffineTransform(0.0, e).inv),
    "place and scale": lambda e: moved(dist.Normal(0.0, 1.0), t.AffineTransform(e, e)),
    "place of a logarithm": lambda e: moved(
        dist.Normal(0.0, 1.0), t.AffineTransform(e, e), t.ExpTransform()
    ),
    "place of a logit": lambda e: moved(
        dist.Normal(0.0, 1.0), t.AffineTransform(e, e), t.SigmoidTransform()
    ),
    "power": lambda e: moved(dist.Gamma(2.0, 1.0), t.PowerTransform(e)),
    "distribution function": lambda e: moved(
        dist.Normal(0.0, 1.0),
        t.CumulativeDistributionTransform(torch.distributions.Normal(e, 1.0)),
    ),
    "logistic": lambda e: moved(
        dist.Uniform(0.0, 1.0), t.SigmoidTransform().inv, t.AffineTransform(e, e)
    ),
    "Weibull": lambda e: dist.Weibull(e, e),
    "HalfNormal": dist.HalfNormal,
    "Pareto": lambda e: dist.Pareto(1.0, e),
}
MOVED = {
    "inverse": lambda e: moved(dist.Exponential(1.0), t.AffineTransform(e, 1.0).inv),
    "composed": lambda e: moved(
        dist.Exponential(1.0), t.ComposeTransform([t.AffineTransform(e, 1.0), t.ExpTransform()])
    ),
    "power of a bounded base": lambda e: moved(dist.Pareto(2.0, 3.0), t.PowerTransform(e)),
    "independent": lambda e: moved(
        two(dist.Exponential), t.IndependentTransform(t.AffineTransform(e, 1.0), 1)
    ),
    "event dimension": lambda e: moved(
        two(dist.Exponential), t.AffineTransform(e * torch.ones(2), 1.0, event_dim=1)
    ),
    "stacked": lambda e: moved(
        two(dist.Exponential),
        t.StackTransform([t.AffineTransform(1.0, 1.0), t.AffineTransform(e, 1.0)], dim=-1),
    ),
    "mixture": lambda e: dist.MixtureSameFamily(
        dist.Categorical(torch.ones(2)),
        moved(dist.Exponential(torch.ones(2)), t.AffineTransform(e, 1.0)),
    ),
    "Uniform parts": lambda e: dist.MixtureSameFamily(
        dist.Categorical(torch.ones(2)), dist.Uniform(torch.zeros(2), e * torch.ones(2))
    ),
    "nested": lambda e: moved(
        moved(dist.Exponential(1.0), t.AffineTransform(e, 1.0)), t.ExpTransform()
    ),
    "tanh": lambda e: moved(dist.Normal(0.0, 1.0), t.TanhTransform(), t.AffineTransform(0.0, e)),
    "AffineBeta": lambda e: dist.AffineBeta(torch.tensor(2.0), torch.tensor(2.0), e, e),
    "improper": lambda e: dist.ImproperUniform(constraints.interval(0.0, e), (), ()),
    "vector": lambda e: dist.Uniform(torch.zeros(2), torch.stack([e, e + 1])).to_event(1),
    "masked": lambda e: dist.Uniform(0.0, e).mask(True),
}


@pytest.mark.parametrize("kind", ["learned", "frozen", "buffer"])
@pytest.mark.parametrize("name", FREE)
def test_what_moves_no_end_may_be_learned(name, kind):
    assert EnergyModel(Program(FREE[name], kind)).dim >= 1


@pytest.mark.parametrize("name", MOVED)
def test_a_learned_end_is_refused_whatever_hides_it(name):
    with pytest.raises(ProgramError, match=r"'x': the support .* depends on a parameter"):
        EnergyModel(Program(MOVED[name], "learned"))
    for kind in ("frozen", "buffer"):
        assert EnergyModel(Program(MOVED[name], kind)).dim >= 1


@pytest.mark.parametrize("name", MOVED)
def test_an_end_of_another_site_is_refused_whatever_hides_it(name):
    def program():
        e = pyro.sample("e", dist.LogNormal(0.0, 0.5))
        pyro.factor("f", -0.1 * pyro.sample("x", MOVED[name](e)).sum())

    with pytest.raises(ProgramError, match=r"'x': the support .* depends on another site"):
        EnergyModel(program)


@pytest.mark.parametrize("name", FREE)
def test_what_moves_no_end_may_be_another_site(name):
    def program():
        e = pyro.sample("e", dist.LogNormal(0.0, 0.5))
        pyro.factor("f", -0.1 * pyro.sample("x", FREE[name](e)).sum())

    model = EnergyModel(program)
    assert model.batching == "vmap"
    assert model.inside(model.sample_base(20)).all()


def test_a_learned_period_is_refused():
    make = {"scale": lambda e: moved(dist.VonMises(0.0, 1.0), t.AffineTransform(0.0, e))}
    with pytest.raises(ProgramError, match="depends on a parameter"):
        EnergyModel(Program(make["scale"], "learned"))


# Far coordinates -------------------------------------------------------------------------------
FAR = {
    "positive": lambda: dist.LogNormal(0.0, 1.0),
    "below": lambda: moved(dist.Exponential(1.0), t.AffineTransform(3.0, -1.0)),
    "interval": lambda: dist.Uniform(-1.0, 2.0),
    "simplex": lambda: dist.Dirichlet(torch.ones(4)),
    "ordered": lambda: moved(dist.Normal(torch.zeros(3), 1.0).to_event(1),
                             dist.transforms.OrderedTransform()),
    "correlation factor": lambda: dist.LKJCholesky(3, torch.tensor(1.0)),
    "correlation": lambda: dist.LKJ(3, torch.tensor(1.0)),
    "positive definite": lambda: dist.Wishart(torch.tensor(5.0), torch.eye(3)),
    "lower Cholesky": lambda: dist.ImproperUniform(constraints.lower_cholesky, (), (3, 3)),
}  # fmt: skip


@pytest.mark.parametrize("name", FAR)
@pytest.mark.parametrize("far", [17.0, 88.0, 120.0, 1000.0])
def test_the_jacobian_of_far_coordinates_is_a_number(name, far):
    model = of(FAR[name])
    signs = torch.cat([torch.ones(1, model.dim), -torch.ones(1, model.dim)])
    x, log_jacobian = model.constrain(far * signs)
    assert log_jacobian.isfinite().all()
    exact = of(FAR[name]).double().constrain(torch.tensor(far).double() * signs.double())[1]
    if "correlation" not in name:  # tanh ends in single precision where it does
        torch.testing.assert_close(log_jacobian.double(), exact, rtol=1e-4, atol=1e-3)
    inside = model.inside(x)
    z = model.unconstrain({"x": x["x"][inside]})[0]
    assert not z.isnan().any()


def test_the_jacobian_of_positive_definite_matrices():
    """Against the determinant by autograd of the six numbers of a symmetric matrix."""
    model = of(FAR["positive definite"]).double()
    z = torch.randn(6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    rows, columns = torch.tril_indices(3, 3)
    jacobian = torch.autograd.functional.jacobian(
        lambda z: model.constrain(z[None])[0]["x"][0, rows, columns], z
    )
    expected = torch.linalg.slogdet(jacobian).logabsdet
    torch.testing.assert_close(model.constrain(z[None])[1][0], expected)
