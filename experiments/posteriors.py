"""Given densities on every support, and posteriors of everyday models, with default settings.

`python -m experiments.posteriors [--seeds 5] [--rounds 80]`. Of the supports log Z is known by
quadrature or in closed form; of the posteriors that of the regression. Every fit is `fit(model)`
in single precision.
"""

import argparse
import math
import time
import warnings
from collections.abc import Callable

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints

from ebm_pp import Circle, EnergyModel, Fit, FitConfig, diagnose, fit, log_partition
from experiments.table import Row, write_table
from models.posteriors import POSTERIORS, regression_log_evidence

F64 = torch.float64
SHOWN = ("CONVERGED", "FINISHED", "LAGGING", "TEMPERING", "NON_FINITE")


def positive() -> None:
    """A positive number."""
    s = pyro.sample("s", dist.LogNormal(0.0, 1.0))
    pyro.factor("f", -s)


def half_cauchy() -> None:
    """A positive number with a heavy tail."""
    s = pyro.sample("s", dist.HalfCauchy(1.0))
    pyro.factor("f", -s)


def interval() -> None:
    """A number between bounds."""
    u = pyro.sample("u", dist.Uniform(-1.0, 3.0))
    pyro.factor("f", -(u**2))


def unit() -> None:
    """A share, whose base measure is largest at the ends."""
    u = pyro.sample("u", dist.Beta(0.5, 0.5))
    pyro.factor("f", 2 * u)


def simplex() -> None:
    """Three shares."""
    p = pyro.sample("p", dist.Dirichlet(torch.ones(3)))
    pyro.factor("f", (torch.tensor([2.0, 0.0, -1.0]) * p).sum())


def ordered() -> None:
    """Three numbers in order."""
    c = pyro.sample("c", dist.ImproperUniform(constraints.ordered_vector, (), (3,)))
    pyro.factor("f", -0.5 * c.square().sum())


def correlation() -> None:
    """The Cholesky factor of a 3 x 3 correlation matrix."""
    root = pyro.sample("L", dist.LKJCholesky(3, torch.tensor(1.0)))
    pyro.factor("f", root.diagonal(dim1=-2, dim2=-1).log().sum())


def circle() -> None:
    """An angle."""
    a = pyro.sample("a", Circle())
    pyro.factor("f", 2 * a.cos())


def positive_and_unit() -> None:
    """A pair that goes together."""
    s = pyro.sample("s", dist.HalfCauchy(1.0))
    u = pyro.sample("u", dist.Beta(2.0, 2.0))
    pyro.factor("f", -s * (1 + u))


def circle_and_positive() -> None:
    """A direction whose spread is a site."""
    k = pyro.sample("k", dist.Gamma(2.0, 1.0))
    a = pyro.sample("a", Circle())
    pyro.factor("f", 0.5 * k * a.cos())


def _by_grid(log_f: Callable, *sides: tuple[float, float], n: int = 4000) -> float:
    """Log of an integral by the midpoint rule."""
    axes = [low + (high - low) * (torch.arange(n, dtype=F64) + 0.5) / n for low, high in sides]
    points = torch.cartesian_prod(*axes).reshape(-1, len(axes)).T
    cell = sum(math.log((high - low) / n) for low, high in sides)
    return (log_f(*points).logsumexp(0) + cell).item()


LOG_2PI = math.log(2 * math.pi)
EXACT: dict[str, Callable[[], float]] = {
    "positive": lambda: _by_grid(
        lambda z: -0.5 * z**2 - LOG_2PI / 2 - z.exp(), (-12, 12)
    ),
    "half_cauchy": lambda: _by_grid(
        lambda z: math.log(2 / math.pi) - torch.log1p((2 * z).exp()) - z.exp() + z, (-40, 20)
    ),
    "interval": lambda: _by_grid(lambda u: -(u**2) - math.log(4), (-1, 3)),
    "unit": lambda: _by_grid(  # u = sin^2 t
        lambda t: 2 * t.sin() ** 2 + math.log(2 / math.pi), (0, math.pi / 2)
    ),
    # Divided differences of exp over (2, 0, -1), times 2!
    "simplex": lambda: math.log(2 * (math.exp(2) / 6 - 1 / 2 + math.exp(-1) / 3)),
    "ordered": lambda: 1.5 * LOG_2PI - math.log(6),
    # E[L_22] E[L_33] by the beta laws of the partial correlations (Lewandowski et al. 2009).
    "correlation": lambda: math.log((8 / (3 * math.pi)) ** 2 * math.pi / 4),
    "circle": lambda: torch.special.i0(torch.tensor(2.0, dtype=F64)).log().item(),
    "positive_and_unit": lambda: _by_grid(
        lambda z, u: math.log(2 / math.pi) - torch.log1p((2 * z).exp()) + z
        + math.log(6) + u.log() + torch.log1p(-u) - z.exp() * (1 + u),
        (-30, 8), (0, 1), n=2000,
    ),
    # int k exp(-k) I_0(k / 2) dk = (1 - 1/4)^(-3/2)
    "circle_and_positive": lambda: -1.5 * math.log(0.75),
}  # fmt: skip
PROGRAMS = {
    f.__name__: f
    for f in (positive, half_cauchy, interval, unit, simplex, ordered, correlation, circle,
              positive_and_unit, circle_and_positive)
}  # fmt: skip


def fitted(program: Callable[[], None], seed: int, rounds: int) -> tuple[Fit, float]:
    """A default fit of a given density, and its CPU seconds."""
    begin = time.process_time()
    config = FitConfig.given(seed=seed, rounds=rounds, progress=False)
    return fit(EnergyModel(program), config=config), time.process_time() - begin


def row(name: str, exact: float, fits: list[tuple[Fit, float]]) -> Row:
    """What the fits of one density say."""
    estimates = [log_partition(result, 20_000, seed=100) for result, _ in fits]
    off = [(e.value - exact) / e.standard_error for e in estimates]
    statuses = [result.status.name for result, _ in fits]
    healthy = sum(diagnose(result, None, seed=7).ok for result, _ in fits)
    spread = max(e.value for e in estimates) - min(e.value for e in estimates)
    rejected = max(max(info["rejected"] for info in result.history) for result, _ in fits)
    found: Row = {"density": name, "fits": len(fits)}
    found |= {status.lower(): statuses.count(status) for status in SHOWN}
    return found | {
        "healthy report": healthy,
        "log Z": "" if math.isnan(exact) else exact,
        "worst error / SE": "" if math.isnan(exact) else max(off, key=abs),
        "range of log Z": spread,
        "largest SE": max(e.standard_error for e in estimates),
        "lowest ESS/n": min(e.ess for e in estimates),
        "most rejected": f"{rejected:.2%}",
        "CPU s": sorted(seconds for _, seconds in fits)[len(fits) // 2],
    }


def main() -> None:
    """Writes results/posteriors.md."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5, help="of each support (posteriors: twice)")
    parser.add_argument("--rounds", type=int, default=80)
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    rows = []
    for name, program in PROGRAMS.items():
        fits = [fitted(program, seed, options.rounds) for seed in range(options.seeds)]
        rows.append(row(name.replace("_", " "), EXACT[name](), fits))
        print(rows[-1], flush=True)
    for name, make in POSTERIORS.items():
        fits = [fitted(make(seed), seed, options.rounds) for seed in range(2 * options.seeds)]
        rows.append(row(name, math.nan, fits))
        if make is POSTERIORS["regression, flat priors"]:
            off = [log_partition(f, 20_000, seed=100) for f, _ in fits]
            rows[-1]["worst error / SE"] = max(
                ((e.value - regression_log_evidence(seed)) / e.standard_error
                 for seed, e in enumerate(off)), key=abs,
            )  # fmt: skip
        print(rows[-1], flush=True)
    print(write_table(
        "posteriors", "Given densities on every support, and posteriors",
        f"python -m experiments.posteriors --seeds {options.seeds} --rounds {options.rounds}",
        rows, NOTES,
    ))  # fmt: skip


NOTES = """
Every fit is `fit(EnergyModel(program))`, in single precision. log Z from 20,000 draws. The
posteriors have data of their own for every seed, so that their log Z differ; that of the
regression is known in closed form for each. "healthy report": `diagnose(fit, None)` finds nothing
wrong. A fit that is not healthy says so in its status; a borderline tail, as of eight schools
centred, is seen in some sets of draws and not in others.

"unit" is Beta(.5, .5): in single precision the last number below 1 stands for 5e-4 of the mass,
and no density at that number tells its share; log Z is 2e-4 nats off.
"""

if __name__ == "__main__":
    main()
