"""Standard errors of parameters: against closed forms, the bootstrap and rows that go together."""

from types import SimpleNamespace

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.nn import PyroModule, PyroParam
from torch import nn
from torch.distributions import MultivariateNormal, constraints

from ebm_pp import DataError, EnergyModel, ProgramError, standard_errors
from models import gaussian
from models.network import Network


class Exact:
    """q = p_theta or a wider normal, in closed form."""

    has_rsample = True

    def __init__(self, mean, covariance, wider=1.0):
        self.law = MultivariateNormal(mean, wider * covariance)

    def rsample_and_log_prob(self, n):
        x = self.law.sample((n,))
        return {"x": x}, self.law.log_prob(x)

    def log_prob(self, x):
        return self.law.log_prob(x["x"])


def gaussian_at(parameters, d, n_train, wider=1.3):
    """A fit of the Gaussian potential with these parameters and an exact, somewhat wide q."""
    model = EnergyModel(gaussian.Gaussian(d).double())
    with torch.no_grad():
        for name, value in parameters.items():
            getattr(model.program, name).copy_(value)
    return SimpleNamespace(
        model=model,
        generator=Exact(*gaussian.moments(parameters), wider),
        offset=0.0,
        n_train=n_train,
    )


@pytest.fixture(autouse=True)
def _double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def test_closed_form_of_a_right_model():
    n, d = 20_000, 3
    data = gaussian.draws(gaussian.true_parameters(d), n, 0)
    best = gaussian.maximum_likelihood(data)
    found = standard_errors(gaussian_at(best, d, n), data, n=100_000)
    exact = torch.cat([v.flatten() for v in gaussian.standard_errors(best, n).values()])
    assert found.names[0] == "field_weights[0]"
    assert found.factors == ("field",) * 3 + ("curvature",) * 3 + ("coupling",) * 2
    torch.testing.assert_close(found.values, torch.cat([v.flatten() for v in best.values()]))
    # A from 100,000 draws and B from 20,000 rows: each to about a per cent.
    torch.testing.assert_close(found.standard_errors, exact, rtol=0.05, atol=0)
    assert found.ok
    assert "maximum within" in found.verdict
    assert (found.shift.abs() < found.standard_errors).all()


def test_a_wrong_model_has_the_bootstraps_errors_not_fishers():
    n, d = 4000, 2
    torch.manual_seed(0)
    # Heavier tails than any Gaussian, of which the model is one: Fisher's errors are too small.
    data = {"x": torch.distributions.StudentT(6.0).sample((n, d))}
    best = gaussian.maximum_likelihood(data)
    found = standard_errors(gaussian_at(best, d, n), data, n=100_000)
    again = []
    for _ in range(400):
        some = {"x": data["x"][torch.randint(n, (n,))]}
        again.append(torch.cat([v.flatten() for v in gaussian.maximum_likelihood(some).values()]))
    bootstrap = torch.stack(again).std(0)  # known to 1 / sqrt(800)
    torch.testing.assert_close(found.standard_errors, bootstrap, rtol=0.15, atol=0)
    fisher = torch.cat([v.flatten() for v in gaussian.standard_errors(best, n).values()])
    assert (found.standard_errors[2:4] > 1.3 * fisher[2:4]).all()  # the curvatures


def test_the_shift_is_newtons_step_to_the_maximum():
    n, d = 5000, 2
    data = gaussian.draws(gaussian.true_parameters(d), n, 1)
    best = gaussian.maximum_likelihood(data)
    off = {name: value + 0.02 for name, value in best.items()}
    found = standard_errors(gaussian_at(off, d, n, wider=1.0), data, n=400_000)
    expected = torch.full((5,), -0.02)
    # Second order in .02, and the sampling error of E_q[s] at 400,000 draws, .0016 .. .003.
    torch.testing.assert_close(found.shift, expected, rtol=0, atol=0.01)
    far = {name: value + 0.2 for name, value in best.items()}
    assert "standard errors from the likelihood's maximum" in str(
        standard_errors(gaussian_at(far, d, n), data)
    )


def test_the_noise_of_the_shift_is_told_from_a_shift():
    n, d = 5000, 2
    data = gaussian.draws(gaussian.true_parameters(d), n, 1)
    fit = gaussian_at(gaussian.maximum_likelihood(data), d, n)
    found = [standard_errors(fit, data, n=2000, seed=seed) for seed in range(40)]
    shifts = torch.stack([one.shift for one in found])
    stated = torch.stack([one.shift_error for one in found]).mean(0)
    scatter = shifts.square().mean(0).sqrt()  # the true shift is 0
    assert ((scatter / stated - 1).abs() < 4 / (2 * 40) ** 0.5).all()
    assert any("raise n" in one.verdict for one in found)
    assert not any("train longer" in one.verdict for one in found)


def test_rows_that_go_together_count_once():
    n, d = 1000, 2
    data = gaussian.draws(gaussian.true_parameters(d), n, 2)
    best = gaussian.maximum_likelihood(data)
    fourfold = {"x": data["x"].repeat(4, 1)}
    alone = standard_errors(gaussian_at(best, d, n), data)
    fit = gaussian_at(best, d, 4 * n)
    naive = standard_errors(fit, fourfold)
    honest = standard_errors(fit, fourfold, groups=torch.arange(n).repeat(4))
    torch.testing.assert_close(naive.standard_errors, alone.standard_errors / 2, rtol=1e-2, atol=0)
    torch.testing.assert_close(honest.standard_errors, alone.standard_errors, rtol=1e-2, atol=0)


class Scaled(PyroModule):
    """E = x^2 / (2 s^2) over N(0, 3): a constrained parameter, in two ways of declaring it."""

    def __init__(self):
        super().__init__()
        self.s = PyroParam(torch.tensor(0.7), constraint=constraints.positive)

    def forward(self):
        x = pyro.sample("x", dist.Normal(torch.zeros(1), 3.0).to_event(1))
        pyro.factor("well", -0.5 * (x / self.s).square().sum(-1))


def scaled():
    x = pyro.sample("x", dist.Normal(torch.zeros(1), 3.0).to_event(1))
    s = pyro.param("width.s", lambda: torch.tensor(0.7), constraint=constraints.positive)
    pyro.factor("well", -0.5 * (x / s).square().sum(-1))


@pytest.mark.parametrize("program", [Scaled(), scaled], ids=["PyroParam", "pyro.param"])
def test_constrained_parameters_are_reported_as_the_program_sees_them(program):
    n = 10_000
    precision = 1 / 9 + 1 / 0.7**2
    x = torch.distributions.Normal(0.0, precision**-0.5).sample((n, 1))
    model = EnergyModel(program)
    generator = Exact(torch.zeros(1), torch.eye(1) / precision)
    fit = SimpleNamespace(model=model, generator=generator, offset=0.0, n_train=n)
    found = standard_errors(fit, {"x": x}, n=50_000)
    assert found.names == ("s" if isinstance(program, Scaled) else "width.s",)
    assert found.values.item() == pytest.approx(0.7)
    # d precision / d s = -2 / s^3; sd of the estimated precision is precision sqrt(2 / n).
    exact = precision * (2 / n) ** 0.5 * 0.7**3 / 2
    assert found.standard_errors.item() == pytest.approx(exact, rel=0.05)


@pytest.mark.parametrize("width", [0.8, 1.3])
def test_curvature_of_a_nonlinear_parameter_away_from_the_maximum(width):
    """In u = log s, f = -exp(-2 u) / 2, T = x^2: A = f'' (E_p[T] - mean T) + f'^2 Var_p[T]."""
    n, s = 20_000, 0.7
    variance = 1 / (1 / 9 + 1 / s**2)
    x = width * variance**0.5 * torch.randn(n, 1)
    fit = SimpleNamespace(
        model=EnergyModel(scaled),
        generator=Exact(torch.zeros(1), variance * torch.eye(1)),
        offset=0.0,
        n_train=n,
    )
    found = standard_errors(fit, {"x": x}, n=200_000)
    slope, bend = s**-2, -2 * s**-2
    t = x.square()
    a = bend * (variance - t.mean()) + slope**2 * 2 * variance**2
    assert abs(bend * (variance - t.mean())) > 0.2 * a  # the second derivatives matter
    exact = s * slope * t.std() / a / n**0.5  # s: from u to s
    step = s * slope * (t.mean() - variance) / a
    assert found.standard_errors.item() == pytest.approx(exact.item(), rel=0.03)
    assert found.shift.item() == pytest.approx(step.item(), rel=0.03)


class Twice(nn.Module):
    """Two weights that do the same, and a constant that does nothing."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Parameter(torch.zeros(())), nn.Parameter(torch.zeros(()))
        self.c = nn.Parameter(torch.zeros(()))

    def forward(self):
        x = pyro.sample("x", dist.Normal(torch.zeros(1), 1.0).to_event(1))
        pyro.factor("pull", ((self.a + self.b) * x).sum(-1) + self.c)


def test_what_the_data_do_not_determine_is_named():
    x = torch.randn(500, 1)
    fit = SimpleNamespace(
        model=EnergyModel(Twice()),
        generator=Exact(torch.zeros(1), torch.eye(1)),
        offset=0.0,
        n_train=500,
    )
    with pytest.raises(ProgramError, match=r"do not determine (a, b|b, a)"):
        standard_errors(fit, {"x": x}, ["a", "b"])
    with pytest.raises(ProgramError, match="do not determine c"):
        standard_errors(fit, {"x": x}, ["a", "c"])
    found = standard_errors(fit, {"x": x}, ["a"])
    assert found.standard_errors.item() == pytest.approx(x.std().item() / 500**0.5, rel=0.05)


def test_errors_name_what_is_wrong():
    x = torch.randn(500, 2)
    fit = SimpleNamespace(
        model=EnergyModel(Network(x)), generator=Exact(torch.zeros(2), torch.eye(2)),
        offset=0.0, n_train=500,
    )  # fmt: skip
    with pytest.raises(ProgramError, match="Most likely a network"):
        standard_errors(fit, {"x": x})
    with pytest.raises(ProgramError, match="'slope' is not one of"):
        standard_errors(fit, {"x": x}, ["slope"])
    with pytest.raises(DataError, match="one per row"):
        standard_errors(fit, {"x": x}, ["layers.0.bias"], groups=torch.arange(3))


def test_bad_weights_are_said_to_be_bad():
    data = gaussian.draws(gaussian.true_parameters(2), 500, 3)
    fit = gaussian_at(gaussian.maximum_likelihood(data), 2, 500, wider=0.02)
    found = standard_errors(fit, data, n=5000)
    assert not found.ok
    assert found.verdict.startswith("Not to be trusted")
    assert "<table>" in found._repr_html_()
