"""Draws of the base measure, site by site in program order.

Sites that depend on no other are drawn at once. The rest is drawn given them: under `vmap` with
different random numbers; where a sampler has no batching rule, inside an outer plate, kept only
if the model gives every draw the density that the plate drew it with; else draw by draw.

Samplers in single precision put some draws on the edge of their support, where no density and no
coordinate is finite. Of a number between ends such a draw is the nearest number inside, its own
rounding; so are parts of a simplex. Matrices, and draws without a finite density, are drawn again.
"""

import warnings
from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Bool
from torch import Tensor
from torch.distributions import constraints

from ebm_pp.checks import agree
from ebm_pp.errors import ProgramError
from ebm_pp.program import Message, Runner, Site, Sites, in_plate
from ebm_pp.support import plain
from ebm_pp.verify import Compiled, evaluate

TRIES = 20  # at drawing again
REDRAWN = 1e-3  # share of draws from which on it is worth a word


def require_proper(sites: dict[str, Site]) -> None:
    """Refuses a base measure that is not normalised.

    Raises:
        ProgramError: naming the site.
    """
    for site in sites.values():
        if not site.proper:
            raise ProgramError(
                f"site {site.name!r} has an improper base measure (an ImproperUniform, or a "
                "scaled or masked site); expected one that can be sampled.\n  Give the site "
                "a normalised distribution, or do not draw from the base."
            )


def draw_base(run: Runner, compiled: Compiled, n: int) -> Sites:
    """Ancestral draws of the base measure from the global random stream.

    Args:
        run: Runs the program once.
        compiled: The record of `compile_program`; every site is proper.
        n: Number of draws.

    Returns:
        Draws, each value `(n, *site_shape)`.
    """
    first: Sites = {}

    def at_once(msg: Message) -> Tensor:
        name, fn = msg["name"], msg["fn"]
        if name not in compiled.roots:
            return fn.sample()
        first[name] = fn.sample((n,))
        return first[name][0]

    run(at_once, lambda msg: None)
    if len(first) == len(compiled.sites):
        return first
    drawn = (
        _by_vmap(run, first, n, "error")
        or _by_plate(run, compiled, n)
        or _by_vmap(run, first, n, "ignore")
    )
    if not drawn:
        rows = [_descend(run, {name: v[i] for name, v in first.items()}) for i in range(n)]
        drawn = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
    return {name: drawn[name] for name in compiled.sites}


def draws_inside(
    draw: Callable[[int], Sites],
    usable: Callable[[Sites], Bool[Tensor, " n"]],
    sites: dict[str, Site],
    n: int,
) -> tuple[Sites, int]:
    """`n` draws, each inside its supports, and how many were drawn again for it.

    Args:
        draw: gives so many draws, some of which may be on an edge.
        usable: says which are inside.
        sites: their supports.
        n: how many.

    Raises:
        ProgramError: after some tries there are still draws outside.
    """
    x = _nudged(draw(n), sites)
    bad = ~usable(x)
    lost = int(bad.sum())
    for _ in range(TRIES):
        if not bad.any():
            break
        again = _nudged(draw(max(2 * int(bad.sum()), 64)), sites)
        good = usable(again).nonzero()[:, 0][: int(bad.sum())]
        where = bad.nonzero()[:, 0][: len(good)]
        x = {name: value.index_copy(0, where, again[name][good]) for name, value in x.items()}
        bad[where] = False
    if bad.any():
        row = int(bad.nonzero()[0])
        raise ProgramError(
            f"the base measure of the sites {list(sites)}: {lost} of {n} draws are not inside "
            f"their supports (draw {row} in {TRIES} more tries too); expected nearly all.\n  Most "
            "likely a distribution that draws outside the support it declares, or one too close "
            "to its edge for single precision: use model.double(), or another distribution."
        )
    return x, lost


def warn_of_edges(again: int, n: int, dtype: torch.dtype) -> None:
    """Tells the caller of `sample_base` that many draws were drawn again."""
    fix = "" if dtype == torch.float64 else "model.double(), or "
    warnings.warn(
        f"{again} of {n} draws of the base measure were on an edge of their support, or had no "
        f"finite density, in {str(dtype).removeprefix('torch.')}; they were drawn again, which "
        "takes that share away from the edges.\n  "
        f"Use {fix}a base measure that keeps away from them.",
        UserWarning,
        stacklevel=4,
    )


def _nudged(x: Sites, sites: dict[str, Site]) -> Sites:
    """Draws on the end of an interval, or parts that are 0, moved to the nearest number inside."""
    found = {}
    for name, value in x.items():
        support = plain(sites[name].support)
        if isinstance(support, type(constraints.simplex)):  # far below the rounding of their sum
            tiny = torch.finfo(value.dtype).tiny
            found[name] = torch.where((value >= 0) & (value < tiny), tiny, value)
            continue
        low, high = (getattr(support, end, None) for end in ("lower_bound", "upper_bound"))
        if low is None and high is None:
            found[name] = value
            continue
        info = torch.finfo(value.dtype)
        start = torch.as_tensor(-info.max if low is None else low).to(value)
        stop = torch.as_tensor(info.max if high is None else high).to(value)
        # `tiny`: what is smaller counts as 0 where a fit flushes denormals.
        above = torch.maximum(torch.nextafter(start, stop), start + info.tiny)
        below = torch.minimum(torch.nextafter(stop, start), stop - info.tiny)
        if low is not None:
            value = torch.where((value >= start) & (value < above), above, value)
        if high is not None:
            value = torch.where((value <= stop) & (value > below), below, value)
        found[name] = torch.where(value.isinf(), value.clamp(start, stop), value)  # overflow
    return found


def _descend(run: Runner, given: Sites) -> Sites:
    """One draw of all sites, given some."""
    drawn = dict(given)

    def supply(msg: Message) -> Tensor:
        if msg["name"] not in drawn:
            drawn[msg["name"]] = msg["fn"].sample()
        return drawn[msg["name"]]

    run(supply, lambda msg: None)
    return drawn


def _by_vmap(run: Runner, first: Sites, n: int, slow: Literal["error", "ignore"]) -> Sites | None:
    """Under `vmap`; torch warns where an operation falls back to a loop over draws."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter(slow, UserWarning)
            descend = torch.func.vmap(
                lambda given, _: _descend(run, given), randomness="different"
            )
            return descend(
                first, torch.arange(n)
            )  # something to batch over where no site is given
    except (RuntimeError, UserWarning):  # a sampler without a batching rule
        return None


def _by_plate(run: Runner, compiled: Compiled, n: int) -> Sites | None:
    drawn: Sites = {}

    def supply(msg: Message) -> Tensor:
        value = msg["fn"].sample()
        drawn[msg["name"]] = value.reshape(n, *compiled.sites[msg["name"]].shape)
        return value

    try:
        terms = in_plate(run, supply, n, compiled.nesting)
        expected = evaluate(run, compiled, drawn)
    except (RuntimeError, ValueError):  # a program that does not broadcast
        return None
    good = all(agree(terms[name], expected[name], 1e-4, 1e-9) for name in compiled.sites)
    return drawn if good else None
