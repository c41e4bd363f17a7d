"""What a program must be, and the batching strategy that gives its right numbers.

A program is run at a few feasible draws. Each check names the site, what it got, what it
expected, the likely cause and one fix. The loop over draws is the reference: a faster strategy
is accepted only if it agrees with it, both at the parameters as they are and at parameters
slightly moved, since a network whose last layer starts at zero would hide every mistake.
"""

import math
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ebm_pp.errors import ProgramError
from ebm_pp.program import Message, Runner, Site, Sites, by_loop, by_plate, by_vmap, one_draw
from ebm_pp.trace import check_structure, read_site, trace

PROBES = 8
SHIFTS = (0.0, 0.1)


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


def compile_program(
    run: Runner, validated: Runner, parameters: Callable[[], Iterable[nn.Parameter]], batching: str
) -> Compiled:
    """Check a program and choose how to evaluate a batch of draws.

    Args:
        run: Runs the program once, without Pyro's validation.
        validated: The same with Pyro's validation.
        parameters: The model's parameters, asked for after the first run.
        batching: `auto`, or the one strategy to accept.

    Returns:
        The record that the energy model keeps.

    Raises:
        ProgramError: The program cannot be compiled; the text says why and what to do.
    """
    trace(validated, torch.zeros)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        probes = [trace(validated, lambda shape: 4 * torch.rand(shape) - 2) for _ in range(PROBES)]
        check_structure(probes)
        latent = [msg for msg in probes[0] if not msg["is_observed"]]
        sites = {msg["name"]: read_site(msg) for msg in latent}
        x = {
            name: torch.stack([_find(probe, name)["value"] for probe in probes]) for name in sites
        }
        own = list(parameters())
        _check_repeatable(run, x, own)
        _check_connected(run, x, sites, own)
        _check_periodic(run, x, sites, own)
        compiled = Compiled(
            sites,
            tuple(msg["name"] for msg in probes[0] if msg["is_observed"]),
            frozenset(name for name in sites if _is_root(name, probes)),
            {msg["name"]: len(msg["fn"].event_shape) for msg in latent},
            max(len(msg["fn"].batch_shape) for msg in probes[0]),
        )
        return _choose(run, compiled, x, own, batching)


def evaluate(run: Runner, compiled: Compiled, x: Sites) -> Sites:
    """The log density of every site and factor at a batch of draws, by the chosen strategy.

    Args:
        run: Runs the program once.
        compiled: The record of `compile_program`.
        x: Draws, each value `(n, *site_shape)`.

    Returns:
        For every site and factor its `n` log densities.
    """
    if compiled.batching == "vmap":
        return by_vmap(run, x, compiled.roots, compiled.randomness)
    if compiled.batching == "plate":
        return by_plate(run, x, compiled.event_dims, compiled.nesting)
    return by_loop(run, x)


def _choose(
    run: Runner, compiled: Compiled, x: Sites, own: list[nn.Parameter], batching: str
) -> Compiled:
    if batching == "loop":
        return compiled
    reason = ""
    for kind, randomness in (("vmap", "error"), ("vmap", "same"), ("plate", "error")):
        if batching not in ("auto", kind) or (randomness == "same" and "random" not in reason):
            continue
        if kind == "plate" and batching == "auto" and _depends_on_data(reason):
            continue
        candidate = Compiled(**{**vars(compiled), "batching": kind, "randomness": randomness})
        objection = _objection(run, candidate, x, own)
        if objection is None:
            return candidate
        reason = reason if kind == "plate" and reason else objection
    if batching != "auto":
        raise ProgramError(
            f"batching={batching!r} does not evaluate this program; expected the numbers of a "
            f"loop over draws, got: {reason}\n  Use batching='auto'."
        )
    warnings.warn(
        f"This program runs draw by draw, about a millisecond each, because a batch gave: "
        f"{reason}\n  Most likely a branch on a value (if x > 0) or .item(): use torch.where. "
        "To keep the loop without this warning, say batching='loop'.",
        UserWarning,
        stacklevel=5,
    )
    return compiled


def _depends_on_data(reason: str) -> bool:
    return "data-dependent" in reason or "item()" in reason


def _objection(
    run: Runner, candidate: Compiled, x: Sites, own: list[nn.Parameter]
) -> str | None:
    """Why a strategy cannot be used, or None if it agrees with the loop everywhere."""
    for reference in _stances(run, x, own):
        with reference as expected:
            if expected is None:
                continue
            for rows in (PROBES, PROBES - 3):
                try:
                    got = evaluate(run, candidate, {name: v[:rows] for name, v in x.items()})
                except Exception as error:  # any failure of the strategy rules it out
                    return f"{type(error).__name__}: {_first_line(error)}"
                for name, term in expected.items():
                    if name not in got or not _agree(got[name], term[:rows], 1e-4, 1e-9):
                        return f"other numbers than the loop for {name!r}"
    return None


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0][:160]


def _stances(run: Runner, x: Sites, own: list[nn.Parameter]) -> Iterator[Callable]:
    """Contexts that give the loop's terms: at the parameters as they are, then moved."""
    for shift in SHIFTS:
        yield _stance(run, x, own, shift)


@contextmanager
def _stance(
    run: Runner, x: Sites, own: list[nn.Parameter], shift: float
) -> Iterator[Sites | None]:
    if not shift:
        yield by_loop(run, x)
        return
    saved = [p.detach().clone() for p in own]
    try:
        for p in own:
            p.add_(shift * torch.randn_like(p) * torch.where(p == 0, torch.ones_like(p), p))
        try:
            terms: Sites | None = by_loop(run, x)
        except Exception:  # a moved parameter may leave its own domain; then there is no stance
            terms = None
        if terms and not all(torch.isfinite(term).all() for term in terms.values()):
            terms = None
        yield terms
    finally:
        for p, value in zip(own, saved, strict=True):
            p.copy_(value)


def _agree(one: Tensor, other: Tensor, single: float, double: float) -> bool:
    tolerance = double if other.dtype == torch.float64 else single
    if one.shape != other.shape:
        return False
    size = 1 + other.abs().nan_to_num(posinf=0.0).max().item()
    return torch.allclose(
        one.to(other), other, rtol=tolerance, atol=tolerance * size, equal_nan=True
    )


def _find(probe: list[Message], name: str) -> Message:
    return next(msg for msg in probe if msg["name"] == name)


def _is_root(name: str, probes: list[list[Message]]) -> bool:
    """Whether the site's own density at one value is the same whatever the other sites are."""
    value = _find(probes[0], name)["value"]
    terms = [_find(probe, name)["fn"].log_prob(value) for probe in probes]
    return all(_agree(term, terms[0], 1e-6, 1e-12) for term in terms)


def _check_repeatable(run: Runner, x: Sites, own: list[nn.Parameter]) -> None:
    for context in _stances(run, x, own):
        with context as first:
            if first is None:
                continue
            for name, term in by_loop(run, x).items():
                if name not in first or not _agree(term, first[name], 1e-6, 1e-12):
                    raise ProgramError(
                        f"{name!r} differs between two runs at the same draw; expected a density "
                        "that is a function of the sites.\n  Most likely the program draws random "
                        "numbers itself (torch.randn, dropout in training mode): make them a "
                        "pyro.sample site, or switch dropout off with .eval()."
                    )
    for name, term in by_loop(run, x).items():
        bad = ~torch.isfinite(term)
        if bad.any():
            row = int(bad.nonzero()[0])
            at = ", ".join(f"{key} = {_short(value[row])}" for key, value in x.items())
            raise ProgramError(
                f"{name!r} has the log density {term[row].item()} at a feasible draw ({at}); "
                "expected a finite number on the whole support.\n  Most likely a logarithm, a "
                "root or a division leaves its domain, or a hard wall is written as -inf: use a "
                "distribution whose support is the region you mean."
            )


def _short(value: Tensor) -> str:
    numbers = value.flatten()[:3].tolist()
    text = ", ".join(f"{number:.3g}" for number in numbers)
    return f"[{text}, ...]" if value.numel() > 3 else (f"[{text}]" if value.dim() else text)


@torch.enable_grad()
def _check_connected(
    run: Runner, x: Sites, sites: dict[str, Site], own: list[nn.Parameter]
) -> None:
    """Every factor depends on a site, and every trainable tensor belongs to the model."""
    draw = {name: value[0].clone().requires_grad_() for name, value in x.items()}
    terms = one_draw(run, draw)
    with torch.no_grad():
        spread = by_loop(run, x)
    known = {id(p) for p in own} | {id(value) for value in draw.values()}
    for name, term in terms.items():
        leaves = _leaves(term)
        constant = not any(id(leaf) in known - {id(p) for p in own} for leaf in leaves)
        if name not in sites and constant and bool((spread[name] == spread[name][0]).all()):
            raise ProgramError(
                f"factor {name!r} depends on no latent site: it is {term.item():g} at every "
                "draw; expected a function of the sites.\n  Most likely it reads a constant "
                "instead of a sampled value: use the value that pyro.sample returned, or remove "
                "the factor, since a constant only shifts log Z."
            )
        for leaf in leaves:
            if id(leaf) not in known:
                raise ProgramError(
                    f"{name!r} depends on a trainable tensor of shape {tuple(leaf.shape)} that "
                    "the model does not own; expected only parameters of the program.\n  Most "
                    "likely a network outside the function: pass it as an argument, "
                    "EnergyModel(program, network), or make the program an nn.Module."
                )


def _leaves(term: Tensor) -> list[Tensor]:
    """The leaf tensors that a result's gradient reaches."""
    if term.grad_fn is None:
        return [term] if term.requires_grad else []
    found, seen, queue = [], {term.grad_fn}, [term.grad_fn]
    while queue:
        node = queue.pop()
        if hasattr(node, "variable"):
            found.append(node.variable)
        for parent, _ in node.next_functions:
            if parent is not None and parent not in seen:
                seen.add(parent)
                queue.append(parent)
    return found


def _check_periodic(
    run: Runner, x: Sites, sites: dict[str, Site], own: list[nn.Parameter]
) -> None:
    for site in sites.values():
        if not site.circular:
            continue
        turns = torch.randint(-1, 2, x[site.name].shape, device=x[site.name].device)
        turned = {**x, site.name: x[site.name] + 2 * math.pi * turns}
        for context in _stances(run, x, own):
            with context as expected:
                if expected is None:
                    continue
                for name, term in by_loop(run, turned).items():
                    if not _agree(term, expected[name], 1e-3, 1e-6):
                        gap = (term - expected[name]).abs().max().item()
                        raise ProgramError(
                            f"site {site.name!r} is circular, but {name!r} changes by {gap:.3g} "
                            f"when {site.name!r} turns by 2 pi; expected no change.\n  Most "
                            "likely the raw angle enters an energy: use its cos and sin."
                        )
