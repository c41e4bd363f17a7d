"""Posteriors of everyday Bayesian models, with the priors their Stan versions have.

Data are simulated, so that nothing has to be shipped; the programs are densities of the parameters
given these data (`obs=`), to be fitted without data of their own: `fit(EnergyModel(program))`.
Eight schools (Rubin 1981), centred and not; an autoregression of order five; a GARCH(1, 1) with
flat priors on its region; a regression with flat priors; two normals told apart by their order.
The originals: Magnusson et al. 2024, posteriordb, arXiv:2407.04967.
"""

import math
from collections.abc import Callable

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints

Program = Callable[[], None]


def _stream(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def eight_schools(seed: int, centred: bool = True) -> Program:
    """Effects of eight schools: mu ~ N(0, 5), tau ~ half-Cauchy(5)."""
    generator = _stream(seed)
    sigma = torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])
    y = 4 + 6 * torch.randn(8, generator=generator) + sigma * torch.randn(8, generator=generator)

    def program() -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
        tau = pyro.sample("tau", dist.HalfCauchy(5.0))
        if centred:
            theta = pyro.sample("theta", dist.Normal(mu.expand(8), tau).to_event(1))
        else:
            z = pyro.sample("z", dist.Normal(torch.zeros(8), 1.0).to_event(1))
            theta = mu + tau * z
        pyro.sample("y", dist.Normal(theta, sigma).to_event(1), obs=y)

    return program


def autoregression(seed: int, order: int = 5, length: int = 200) -> Program:
    """y_t = alpha + sum_k beta_k y_{t-k} + noise; normal(0, 10), sigma ~ half-Cauchy(2.5)."""
    generator = _stream(seed)
    beta_true = torch.tensor([0.4, 0.2, 0.1, -0.1, 0.05])[:order]
    y = [torch.tensor(0.0)] * order
    for _ in range(length):
        past = torch.stack(y[-order:]).flip(0)
        y.append(0.3 + beta_true @ past + 0.5 * torch.randn((), generator=generator))
    series = torch.stack(y)
    past = torch.stack([series[order - 1 - k : len(series) - 1 - k] for k in range(order)], -1)

    def program() -> None:
        alpha = pyro.sample("alpha", dist.Normal(0.0, 10.0))
        beta = pyro.sample("beta", dist.Normal(torch.zeros(order), 10.0).to_event(1))
        sigma = pyro.sample("sigma", dist.HalfCauchy(2.5))
        mean = alpha + past @ beta
        pyro.sample("y", dist.Normal(mean, sigma).to_event(1), obs=series[order:])

    return program


def garch(seed: int, length: int = 150) -> Program:
    """sigma_t^2 = a0 + a1 (y - mu)^2 + b1 sigma_{t-1}^2, flat on a0 > 0, a1 > 0, a1 + b1 < 1."""
    generator = _stream(seed)
    a0, a1, b1, variance, y = 0.3, 0.3, 0.4, torch.tensor(1.0), []
    for _ in range(length):
        y.append(0.5 + variance.sqrt() * torch.randn((), generator=generator))
        variance = a0 + a1 * (y[-1] - 0.5) ** 2 + b1 * variance
    series = torch.stack(y)

    def program() -> None:
        mu = pyro.sample("mu", dist.ImproperUniform(constraints.real, (), ()))
        alpha0 = pyro.sample("alpha0", dist.ImproperUniform(constraints.positive, (), ()))
        alpha1 = pyro.sample("alpha1", dist.Uniform(0.0, 1.0))
        share = pyro.sample("share", dist.Uniform(0.0, 1.0))  # of 1 - alpha1 that is beta1
        beta1 = share * (1 - alpha1)
        pyro.factor("flat", (1 - alpha1).log())  # the area that `share` stands for
        squared, now, variances = (series - mu) ** 2, alpha0.new_ones(()), []
        for t in range(length):
            variances.append(now)
            now = alpha0 + alpha1 * squared[t] + beta1 * now
        law = dist.Normal(mu, torch.stack(variances).sqrt())
        pyro.factor("likelihood", law.log_prob(series).sum())

    return program


def regression(seed: int, n: int = 100) -> Program:
    """Y = x beta + noise with flat priors on beta and on log sigma."""
    generator = _stream(seed)
    x = torch.cat([torch.ones(n, 1), torch.randn(n, 2, generator=generator)], 1)
    y = x @ torch.tensor([2.0, 1.0, -0.5]) + 0.7 * torch.randn(n, generator=generator)

    def program() -> None:
        beta = pyro.sample("beta", dist.ImproperUniform(constraints.real, (), (3,)))
        sigma = pyro.sample("sigma", dist.ImproperUniform(constraints.positive, (), ()))
        pyro.factor("flat", -sigma.log())
        pyro.sample("y", dist.Normal(x @ beta, sigma).to_event(1), obs=y)

    return program


def regression_log_evidence(seed: int, n: int = 100) -> float:
    """Log Z of `regression` in closed form: beta and sigma integrated out of the likelihood."""
    generator = _stream(seed)
    x = torch.cat([torch.ones(n, 1), torch.randn(n, 2, generator=generator)], 1)
    y = x @ torch.tensor([2.0, 1.0, -0.5]) + 0.7 * torch.randn(n, generator=generator)
    x, y, d = x.double(), y.double(), 3
    residual = y - x @ torch.linalg.lstsq(x, y[:, None]).solution[:, 0]
    half = torch.tensor((n - d) / 2, dtype=torch.float64)
    found = -half * math.log(math.pi) - 0.5 * torch.linalg.slogdet(x.T @ x)[1]
    found = found + torch.lgamma(half) - half * residual.square().sum().log()
    return found.item() - math.log(2)


def ordered_mixture(seed: int, n: int = 300) -> Program:
    """Two normals, mu in order ~ N(0, 2), sigma ~ half-normal(2), theta ~ Beta(5, 5)."""
    generator = _stream(seed)
    first = torch.rand(n, generator=generator) < 0.4
    y = torch.where(first, -1.5, 1.5) + 0.8 * torch.randn(n, generator=generator)

    def program() -> None:
        base = dist.Normal(torch.zeros(2), 2.0).to_event(1)
        mu = pyro.sample("mu", dist.ImproperUniform(constraints.ordered_vector, (), (2,)))
        pyro.factor("prior of mu", base.log_prob(mu))
        sigma = pyro.sample("sigma", dist.HalfNormal(torch.full((2,), 2.0)).to_event(1))
        theta = pyro.sample("theta", dist.Beta(5.0, 5.0))
        parts = dist.Normal(mu, sigma).log_prob(y[:, None])
        logs = torch.stack([theta.log() + parts[:, 0], torch.log1p(-theta) + parts[:, 1]])
        pyro.factor("likelihood", logs.logsumexp(0).sum())

    return program


POSTERIORS: dict[str, Callable[[int], Program]] = {
    "eight schools, centred": eight_schools,
    "eight schools, non-centred": lambda seed: eight_schools(seed, centred=False),
    "AR(5)": autoregression,
    "GARCH(1, 1)": garch,
    "regression, flat priors": regression,
    "ordered mixture": ordered_mixture,
}
