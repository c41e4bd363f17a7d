"""Compiling a program: checks, then the batching strategy that gives its right numbers.

The loop over draws is the reference. A faster strategy is accepted only if it agrees with the
loop for every site and factor, in two batch sizes and at two sets of parameters.
"""

import contextlib
import math
import warnings
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, replace
from functools import partial

import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

from ebm_pp.checks import (
    Stance,
    agree,
    check_connected,
    check_finite,
    check_periodic,
    check_repeatable,
    check_walls,
    stances,
)
from ebm_pp.errors import ProgramError
from ebm_pp.program import (
    Message,
    Runner,
    Site,
    Sites,
    by_loop,
    by_plate,
    by_vmap,
    log_term,
    one_draw,
)
from ebm_pp.state import check_state
from ebm_pp.support import bounds_of, support_of
from ebm_pp.surroundings import answering
from ebm_pp.trace import RUN_IT, check_structure, moving_support, read_site, trace, waves

PROBES = 8
CANDIDATES = 64  # draws tried where a wall of -inf cuts some off
WIDTHS = (0.1, 1.0, 4.0, 20.0, 1e2, 1e3, 1e4, 1e6)  # how far a factor is tried that seems constant


@dataclass(frozen=True)
class Compiled:
    """What is known about a program that passed every check.

    Attributes:
        sites: Latent sites in program order.
        factors: Names of factors and observed sites in program order.
        roots: Sites whose distribution depends on no other site.
        event_dims: The number of event dimensions of each site.
        nesting: The number of batch dimensions of one draw.
        batching: `vmap`, `plate` or `loop`.
        randomness: The `randomness` argument of `torch.func.vmap`.
    """

    sites: dict[str, Site]
    factors: tuple[str, ...]
    roots: frozenset[str]
    event_dims: dict[str, int]
    nesting: int
    batching: str = "loop"
    randomness: str = "error"


def compile_program(run: Runner, validated: Runner, model: nn.Module, batching: str) -> Compiled:
    """Check a program and choose how to evaluate a batch of draws.

    Args:
        run: Runs the program once, without Pyro's validation.
        validated: The same with Pyro's validation.
        model: Holds the program's parameters, which the first run may add to, and its modules.
        batching: `auto`, or the one strategy to accept.

    Returns:
        The record that the energy model keeps.

    Raises:
        ProgramError: The program cannot be compiled; the text says why and what to do.
    """
    with torch.enable_grad():  # so that bounds which depend on a parameter show it
        trace(run, waves)
    own = [p for p in model.parameters() if p.requires_grad]
    told = partial(_told, run)
    devices = {p.device for p in own if p.device.type == "cuda"}
    with torch.random.fork_rng(devices), torch.no_grad():
        torch.default_generator.manual_seed(0)
        probes = [trace(run, _within(2.0)) for _ in range(PROBES)]
        check_structure(probes)
        latent = [msg for msg in probes[0] if not msg["is_observed"]]
        sites = {msg["name"]: _read(msg["name"], probes) for msg in latent}
        factors = tuple(msg["name"] for msg in probes[0] if msg["is_observed"])
        x = _with_mass(told, probes, [*sites], factors)
        seen = stances(told, x, own)
        check_finite(x, seen[0].terms, factors, walls=True)
        one_draw(partial(_told, validated), {name: value[0] for name, value in x.items()})
        check_finite(x, seen[0].terms, sites)
        check_state(told, x, seen, model)
        check_repeatable(told, x, seen)
        check_connected(told, x, factors, seen[-1], partial(_anywhere, run, x))
        check_periodic(told, x, {k: s.period for k, s in sites.items() if s.circular}, seen)
        event_dims = {msg["name"]: len(msg["fn"].event_shape) for msg in latent}
        nesting = max(len(msg["fn"].batch_shape) for msg in probes[0])
        loop = Compiled(sites, factors, _roots(run, x), event_dims, nesting)
        return _choose(run, loop, x, seen, batching)


def _told(
    run: Runner, supply: Callable[[Message], Tensor], visit: Callable[[Message], None]
) -> None:
    """A run whose errors are told as the program's."""
    with answering("at a feasible draw", RUN_IT):
        run(supply, visit)


def _within(width: float) -> Callable[[torch.Size], Tensor]:
    """Unconstrained coordinates from -width to width; 2 is where Pyro starts its chains."""
    return lambda shape: 2 * width * torch.rand(shape) - width


def _values(probes: list[list[Message]], names: Iterable[str]) -> Sites:
    return {name: torch.stack([_find(msgs, name)["value"] for msgs in probes]) for name in names}


def _with_mass(
    run: Runner, probes: list[list[Message]], names: list[str], factors: Collection[str]
) -> Sites:
    """Draws to check at. Where a wall of -inf cuts some off: six with mass, then two without.

    Raises:
        ProgramError: A wall cuts off nearly all draws, or a factor is no number at one.
    """
    x = _values(probes, names)
    terms = by_loop(run, x)
    if not any((terms[name] == -math.inf).any() for name in factors):
        return x
    for i in range(CANDIDATES - PROBES):
        probes = [*probes, trace(run, _within(2 / 2 ** (i % 4)))]
    x = _values(probes, names)
    terms = by_loop(run, x)
    check_finite(x, terms, factors, walls=True)
    check_walls(x, terms, factors)
    mass = torch.stack([terms[name] > -math.inf for name in factors]).all(0)
    rows = torch.cat([mass.nonzero()[: PROBES - 2], (~mass).nonzero()[:2]]).flatten()
    return {name: value[rows] for name, value in x.items()}


def _anywhere(run: Runner, x: Sites, name: str) -> bool:
    """Whether a factor that is constant at a few draws is another number at some draw.

    Under `vmap` what depends on no site is not batched: that is exact. What is batched may still
    be constant, such as zeros like x, so it is tried far and wide, every coordinate by itself and
    all alike.
    """
    found: list[Tensor] = []

    def single(values: Sites) -> Tensor:
        run(
            lambda msg: values[msg["name"]],
            lambda msg: found.append(log_term(msg)) if msg["name"] == name else None,
        )
        return torch.zeros(())

    with contextlib.suppress(Exception):  # then numbers must tell
        torch.func.vmap(single, randomness="same")(x)
        if len(found) == 1 and not _escaped(found[0]):
            return False
    start = one_draw(run, {key: value[0] for key, value in x.items()})[name]
    for i in range(32 * len(WIDTHS)):
        within = _within(WIDTHS[i % len(WIDTHS)])
        alike = lambda shape, within=within: within(torch.Size()).expand(shape)  # noqa: E731
        try:
            probe = trace(run, within if i % 2 else alike)
        except ProgramError:  # far out the program may fail: that draw tells nothing
            continue
        term = log_term(_find(probe, name)).sum()
        if not torch.equal(term, start):
            return True
    return False


def _escaped(term: Tensor) -> bool:
    """Whether a tensor was batched by a `vmap` that has ended: torch refuses to use it."""
    try:
        term.sum()
    except RuntimeError:
        return True
    return False


def _find(messages: list[Message], name: str) -> Message:
    return next(msg for msg in messages if msg["name"] == name)


def _read(name: str, probes: list[list[Message]]) -> Site:
    """The site's record; its base is proper if no draw scales or masks it."""
    seen = [read_site(_find(messages, name)) for messages in probes]
    return replace(seen[0], proper=all(site.proper for site in seen))


def _roots(run: Runner, x: Sites) -> frozenset[str]:
    """Sites whose distribution depends on no other site.

    Exact, not a comparison of numbers: what depends on the draw is batched under `vmap`, and
    torch refuses to use a batched tensor after `vmap` has ended. Sites after an operation
    without a batching rule stay unknown and do not count.

    Raises:
        ProgramError: The bounds of a support depend on another site.
    """
    seen: dict[str, tuple[TorchDistributionMixin, list[Tensor]]] = {}

    def visit(msg: Message) -> None:
        if msg["name"] in x:
            seen[msg["name"]] = msg["fn"], bounds_of(support_of(msg["fn"]))

    def single(values: Sites) -> Tensor:
        run(lambda msg: values[msg["name"]], visit)
        return torch.zeros(())

    with contextlib.suppress(Exception):  # whatever stops vmap is told when a strategy is chosen
        torch.func.vmap(single, randomness="same")(x)
    found = set()
    for name, (fn, bounds) in seen.items():
        try:
            for bound in bounds:
                bound.sum()
        except RuntimeError as error:
            raise moving_support(name, type(fn.support).__name__.strip("_")) from error
        with contextlib.suppress(Exception):
            fn.log_prob(x[name])
            found.add(name)
    return frozenset(found)


def evaluate(run: Runner, compiled: Compiled, x: Sites) -> Sites:
    """The log density of every site and factor at a batch of draws, by the chosen strategy.

    Args:
        run: Runs the program once.
        compiled: The record of `compile_program`.
        x: Draws, each value `(n, *site_shape)`.

    Returns:
        For every site and factor its `n` log densities.

    Raises:
        ProgramError: The program draws random numbers now.
    """
    if compiled.batching == "loop":
        return by_loop(run, x)
    if compiled.batching == "plate":
        return by_plate(run, x, compiled.event_dims, compiled.nesting)
    try:
        return by_vmap(run, x, compiled.roots, compiled.randomness)
    except RuntimeError as error:
        if "randomness error mode" not in str(error):
            raise
        raise ProgramError(
            "the program draws random numbers, but did not when it was compiled; expected a "
            "density that is a function of the sites.\n  Most likely dropout was switched on by "
            ".train(): remove it, or call .eval() before evaluating."
        ) from error


def _choose(run: Runner, loop: Compiled, x: Sites, seen: list[Stance], batching: str) -> Compiled:
    """The first strategy that agrees with the loop, or the loop with a warning."""
    if batching == "loop":
        return loop
    reason, branch = "", False
    for kind, randomness in (("vmap", "error"), ("vmap", "same"), ("plate", "error")):
        if batching not in ("auto", kind) or (randomness == "same" and "random" not in reason):
            continue
        branch = "data-dependent" in reason or "item()" in reason
        if kind == "plate" and branch:
            # A branch on the whole batch could agree here and be wrong elsewhere.
            continue
        candidate = replace(loop, batching=kind, randomness=randomness)
        objection = _objection(run, candidate, x, seen)
        if objection is None:
            return candidate
        reason = reason or objection
    if batching != "auto":
        raise ProgramError(
            f"batching={batching!r} cannot evaluate this program; expected the numbers of a loop "
            f"over draws, got: {reason}\n  Use batching='auto'."
        )
    cause = (
        "a branch on a value (if x > 0) or .item()"
        if branch
        else "a recurrent layer, or writing into a tensor in place"
    )
    warnings.warn(
        "this program runs draw by draw, about a millisecond each, because a batch gave: "
        f"{reason}\n  Most likely {cause}: write it with operations that batch, such as "
        "torch.where. To keep the loop without this warning, say batching='loop'.",
        UserWarning,
        stacklevel=4,
    )
    return loop


def _objection(run: Runner, candidate: Compiled, x: Sites, seen: list[Stance]) -> str | None:
    """Why a strategy cannot be used, or None if it agrees with the loop everywhere."""
    for stance in seen:
        with stance.taken() as expected:
            for n in (PROBES, PROBES - 3):
                try:
                    got = evaluate(run, candidate, {name: v[:n] for name, v in x.items()})
                except Exception as error:  # any failure rules the strategy out
                    return f"{type(error).__name__}: {str(error).strip().split('. ')[0]}."
                for name, term in expected.items():
                    if name not in got or not agree(got[name], term[:n], 1e-4, 1e-9):
                        return f"other numbers than the loop for {name!r}"
    return None
