"""Checks of a program's numbers at a few feasible draws.

Each names the site, what it got, what it expected, the likely cause and one fix. The numbers
are those of a loop over draws, at the parameters as they are and at parameters slightly moved,
since a network whose last layer starts at zero would hide every mistake.
"""

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ebm_pp.errors import ProgramError
from ebm_pp.program import Runner, Sites, by_loop, one_draw

MOVE = 0.1  # how far parameters are moved, relative to their size
MASS = 8  # of so many feasible draws a hard wall must leave one


@dataclass(frozen=True)
class Stance:
    """The loop's terms at the feasible draws, for one set of parameter values.

    Attributes:
        own: The model's trainable parameters.
        values: The values to give them, or None to leave them as they are.
        terms: The log density of every site and factor, each `(n,)`.
    """

    own: list[nn.Parameter]
    values: list[Tensor] | None
    terms: Sites

    @contextmanager
    def taken(self) -> Iterator[Sites]:
        """Parameters at this stance's values while the context lasts."""
        with holding(self.own, self.own if self.values is None else self.values):
            yield self.terms


@contextmanager
def holding(own: Sequence[nn.Parameter], values: Sequence[Tensor]) -> Iterator[None]:
    """The parameters at other values while the context lasts.

    The tensors change places, no number is copied: whatever else the user's modules hold, buffers,
    attributes, hooks, is one and the same at either values.
    """
    saved = [p.data for p in own]
    try:
        for p, value in zip(own, values, strict=True):
            p.data = value.data
        yield
    finally:
        for p, value in zip(own, saved, strict=True):
            p.data = value


def moved(own: Sequence[nn.Parameter], generator: torch.Generator | None = None) -> list[Tensor]:
    """Parameters slightly moved, those at zero too."""
    with torch.no_grad():
        return [
            p + MOVE * torch.randn(p.shape, generator=generator, dtype=p.dtype).to(p.device)
            * torch.where(p == 0, torch.ones_like(p), p)
            for p in own
        ]  # fmt: skip


def stances(run: Runner, x: Sites, own: list[nn.Parameter]) -> list[Stance]:
    """The program at the draws, with its parameters as they are and slightly moved.

    Args:
        run: Runs the program once.
        x: Draws, each value `(n, *site_shape)`.
        own: The model's trainable parameters.

    Returns:
        One stance, or two if the program has parameters and a finite density where they moved.
    """
    found = [Stance(own, None, by_loop(run, x))]
    values = moved(own)
    if not own:
        return found
    try:
        with holding(own, values):
            terms = by_loop(run, x)
    except Exception:  # a moved parameter may leave its own domain: then there is no stance
        return found
    if not any(_no_number(term).any() for term in terms.values()):
        found.append(Stance(own, values, terms))
    return found


def agree(one: Tensor, other: Tensor, single: float, double: float) -> bool:
    """Whether two results are equal up to rounding.

    Args:
        one: A result.
        other: The reference.
        single: Tolerance relative to the largest number, in single precision.
        double: The same in double precision.

    Returns:
        True if shapes are equal and numbers close; NaN equals NaN.
    """
    if one.shape != other.shape:
        return False
    tolerance = double if other.dtype == torch.float64 else single
    size = 1 + other.abs().nan_to_num(posinf=0.0).max().item()
    return torch.allclose(
        one.to(other), other, rtol=tolerance, atol=tolerance * size, equal_nan=True
    )


def _no_number(term: Tensor) -> Tensor:
    """Where a log density is nan or +inf; -inf, no mass, is one."""
    return term.isnan() | (term == math.inf)


def check_finite(x: Sites, terms: Sites, names: Collection[str], walls: bool = False) -> None:
    """The named terms must be finite at feasible draws.

    Args:
        x: Draws inside the supports.
        terms: The log density of every site and factor at these draws.
        names: Sites or factors.
        walls: Whether the terms may be -inf, no mass; see `check_walls`.

    Raises:
        ProgramError: A term is NaN or infinite.
    """
    for name in names:
        bad = _no_number(terms[name]) if walls else ~torch.isfinite(terms[name])
        if not bad.any():
            continue
        row = int(bad.nonzero()[0])
        raise ProgramError(
            f"{name!r} has the log density {terms[name][row].item()} at a feasible draw "
            f"({_at(x, row)}); expected a finite number on the whole support.\n  Most likely a "
            "logarithm, a root or a division leaves its domain: use a distribution whose support "
            "is the region you mean."
        )


def check_walls(x: Sites, terms: Sites, names: Collection[str]) -> None:
    """A hard wall, log density -inf, may cut off a part of the supports, not nearly all.

    Args:
        x: Draws inside the supports.
        terms: The log density of every site and factor at these draws.
        names: Factors.

    Raises:
        ProgramError: Fewer than one draw in `MASS` is left.
    """
    mass = torch.stack([terms[name] > -math.inf for name in names]).all(0)
    if MASS * int(mass.sum()) >= len(mass):
        return
    name = max(names, key=lambda name: int((terms[name] == -math.inf).sum()))
    cut = terms[name] == -math.inf
    raise ProgramError(
        f"{name!r} has the log density -inf at {int(cut.sum())} of {len(cut)} feasible draws "
        f"(first: {_at(x, int(cut.nonzero()[0]))}); expected a number at one in {MASS} at least."
        "\n  Most likely a hard wall leaves almost nothing of the support: use a distribution "
        "whose support is the region you mean."
    )


def _at(x: Sites, row: int) -> str:
    return ", ".join(f"{key} = {_short(value[row])}" for key, value in x.items())


def _short(value: Tensor) -> str:
    text = ", ".join(f"{number:.3g}" for number in value.flatten()[:3].tolist())
    return f"[{text}, ...]" if value.numel() > 3 else (f"[{text}]" if value.dim() else text)


def check_repeatable(run: Runner, x: Sites, seen: list[Stance]) -> None:
    """Two runs at one draw must give one density.

    Args:
        run: Runs the program once.
        x: Draws inside the supports.
        seen: The stances at these draws.

    Raises:
        ProgramError: A term differs between two runs.
    """
    again = {name: value[:2] for name, value in x.items()}
    for stance in seen:
        with stance.taken() as terms:
            for name, term in by_loop(run, again).items():
                if name not in terms or not agree(term, terms[name][:2], 1e-6, 1e-12):
                    raise ProgramError(
                        f"{name!r} differs between two runs at the same draw; expected a density "
                        "that is a function of the sites.\n  Most likely the program draws random "
                        "numbers itself (torch.randn, dropout in training mode): make them a "
                        "pyro.sample site, or switch dropout off with .eval()."
                    )


@torch.enable_grad()
def check_connected(
    run: Runner,
    x: Sites,
    factors: Collection[str],
    here: Stance,
    anywhere: Callable[[str], bool],
) -> None:
    """Every factor depends on a site, and every trainable tensor belongs to the model.

    Args:
        run: Runs the program once.
        x: Draws inside the supports.
        factors: Names of factors and observed sites.
        here: A stance; best the moved one, since weights that start at 0 hide what they weigh.
        anywhere: Whether a factor that is constant at these draws, like a wall or a cut-off far
            out, is another number at some other.

    Raises:
        ProgramError: A factor is constant, or a tensor from outside would be trained.
    """
    draw = {
        name: value[0].clone().requires_grad_(value.is_floating_point())
        for name, value in x.items()
    }
    values, parameters = {id(v) for v in draw.values()}, {id(p) for p in here.own}
    for name, term in one_draw(run, draw).items():
        reached = {id(leaf): leaf for leaf in leaves(term)}
        for foreign in reached.keys() - values - parameters:
            raise ProgramError(
                f"{name!r} depends on a trainable tensor of shape "
                f"{tuple(reached[foreign].shape)} that the model does not own; expected only "
                "parameters of the program.\n  Most likely a network outside the function: pass "
                "it as an argument, EnergyModel(program, network), or make the program an "
                "nn.Module."
            )
        # Of integers no gradient tells, and a few draws may all miss the states that matter.
        told = all(value.is_floating_point() for value in draw.values())
        constant = told and not reached.keys() & values and _constant(here.terms[name])
        if name in factors and constant and not anywhere(name):
            raise ProgramError(
                f"factor {name!r} depends on no latent site: it is {term.item():g} at every "
                "draw; expected a function of the sites.\n  Most likely it reads a constant "
                "instead of a sampled value: use the value that pyro.sample returned, or remove "
                "the factor, since a constant only shifts log Z."
            )


def _constant(term: Tensor) -> bool:
    return bool((term == term[0]).all())


def leaves(result: Tensor) -> list[Tensor]:
    """The leaf tensors that the gradient of a result reaches."""
    if result.grad_fn is None:
        return [result] if result.requires_grad else []
    found, seen, queue = [], {result.grad_fn}, [result.grad_fn]
    while queue:
        node = queue.pop()
        if hasattr(node, "variable"):
            found.append(node.variable)
        for parent, _ in node.next_functions:
            if parent is not None and parent not in seen:
                seen.add(parent)
                queue.append(parent)
    return found


def check_periodic(
    run: Runner, x: Sites, circular: Mapping[str, float], seen: list[Stance]
) -> None:
    """The density must not change when angles turn once round, each by its own number of turns.

    Args:
        run: Runs the program once.
        x: Draws inside the supports.
        circular: The period of every circular site.
        seen: The stances at these draws.

    Raises:
        ProgramError: A term changes.
    """
    for site, period in circular.items():
        turns = torch.randint(-1, 2, x[site].shape, device=x[site].device)
        turned = {**x, site: x[site] + period * turns}
        whole = "2 pi" if period == 2 * math.pi else f"{period:g}"
        for stance in seen:
            with stance.taken() as expected:
                for name, term in by_loop(run, turned).items():
                    if not agree(term, expected[name], 1e-3, 1e-6):
                        gap = (term - expected[name]).abs().max().item()
                        use = "its cos and sin"
                        if whole != "2 pi":
                            use = f"cos and sin of 2 pi x / {whole}"
                        raise ProgramError(
                            f"site {site!r} is circular, but {name!r} changes by {gap:.3g} when "
                            f"{site!r} turns by {whole}; expected no change.\n  Most likely the "
                            f"raw angle enters an energy: use {use}."
                        )
