"""Whether the support that a distribution declares is true, asked of its draws and its density.

The density of a base measure is taken to be positive on all of its support, and its draws to lie
there. A class of the user's own may say otherwise without anything failing.
"""

import math
import warnings
from dataclasses import replace

import torch
from torch import Tensor
from torch.distributions import Distribution, constraints

from ebm_pp.circle import innermost
from ebm_pp.data import in_support
from ebm_pp.errors import ProgramError
from ebm_pp.program import Site
from ebm_pp.support import bijection, describe
from ebm_pp.true_support import ends_of

DRAWS, NUMBERS = 1000, 2_000_000  # how many draws to ask about, and numbers in all of them
SLACK = 1e-3  # of their spread: draws outside by less are rounded
BEYOND = 0.05  # of the range of draws: where a density that has one wall is zero
FAR = 30.0  # unconstrained coordinates beyond which single precision may make any density zero
ATOM = 0.05  # share of draws that are one number
REAL = type(constraints.real)


def asked(fn: Distribution, site: Site) -> Site:
    """The site, after its base was drawn from to ask whether it is on the declared support.

    Args:
        fn: of the site.
        site: says its support.

    Returns:
        The site; not proper if its distribution has no sampler.

    Raises:
        ProgramError: draws lie outside the support, the density is zero on a part of it, or draws
            repeat one number, which has no density.
    """
    if site.circular or site.trajectory or not site.proper:
        return site
    ends = ends_of(site.support)
    n = 20 if ends is None else min(DRAWS, 2 + NUMBERS // max(math.prod(site.shape), 1))
    try:
        with warnings.catch_warnings():  # of draws that nobody uses
            warnings.simplefilter("ignore")
            draws = fn.sample((n,))
    except NotImplementedError:
        return replace(site, proper=False)
    if ends is None:
        _refuse_outside(fn, site, draws[~in_support(site, draws)], n, allowed=n // 2)
        return site
    low, high = (end.to(draws) for end in ends)
    slack = SLACK * draws.double().quantile(torch.tensor([0.25, 0.75]).double(), 0).diff(dim=0)[0]
    outside = (draws < low - slack) | (draws > high + slack)
    _refuse_outside(fn, site, draws[outside.reshape(n, -1).any(1)], n, allowed=0)
    _refuse_atoms(fn, site, draws)
    _refuse_walls(fn, site, draws, low, high)
    return site


def _called(fn: Distribution) -> str:
    return type(innermost(fn)).__name__


def _refuse_outside(fn: Distribution, site: Site, bad: Tensor, n: int, allowed: int) -> None:
    if len(bad) <= allowed:
        return
    raise ProgramError(
        f"site {site.name!r}: {len(bad)} of {n} draws of {_called(fn)} are outside the support it "
        f"declares, {describe(site.support)} (first: {bad[0].flatten()[0].item():.4g}); "
        "expected none.\n  Declare in its class where its draws are, such as support = "
        "constraints.interval(low, high)."
    )


def _refuse_atoms(fn: Distribution, site: Site, draws: Tensor) -> None:
    flat = draws.reshape(len(draws), -1)
    value = flat.mode(0).values
    share = (flat == value).double().mean(0)
    # Numbers near the edge repeat because samplers round them into the support, and numbers far
    # from 0 because there are few in single precision.
    z = bijection(site.support).inv(value.reshape(site.shape)).flatten()
    near = torch.isfinite(z) & ((z.abs() < FAR / 2) | isinstance(site.support, REAL))
    fine = torch.nextafter(value, value + 1) - value < 1e-4 * flat.std(0)
    atom = (share > ATOM) & (share < 1) & near & fine
    if not atom.any():
        return
    at = int(atom.nonzero()[0])
    raise ProgramError(
        f"site {site.name!r}: {share[at].item():.0%} of the draws of {_called(fn)} are "
        f"{value[at].item():.4g}; expected a distribution with a density.\n  A flow reaches no "
        "single number: leave these rows out, and model how often they occur apart."
    )


def _refuse_walls(
    fn: Distribution, site: Site, draws: Tensor, start: Tensor, stop: Tensor
) -> None:
    """The density just beyond the draws must not be zero, if it is finite at the last of them."""
    transform = bijection(site.support)
    z = transform.inv(draws)
    z = z[z.isfinite().reshape(len(z), -1).all(1)]
    if len(z) < len(draws) / 2:
        return
    low, high = z.min(0).values, z.max(0).values
    for last, way in ((low, low - high), (high, high - low)):
        edge = last + BEYOND * way
        x = transform(edge)
        far = 1e9 if isinstance(site.support, REAL) else FAR
        if bool((edge.abs() > far).any()):
            continue
        inside = bool(((x > start) & (x < stop)).all())  # not rounded to an end
        if not inside or fn.log_prob(transform(last)).isinf().any():
            continue
        if (fn.log_prob(x) == -math.inf).any():
            ends = ", ".join(f"{transform(z).flatten()[0].item():.4g}" for z in (low, high))
            raise ProgramError(
                f"site {site.name!r}: {_called(fn)} declares the support "
                f"{describe(site.support)}, but its density is zero at {x.flatten()[0].item():.4g}"
                f", beyond its draws ({ends}); expected a number everywhere in it.\n  Declare in "
                "its class where it is positive, such as constraints.interval(low, high)."
            )
