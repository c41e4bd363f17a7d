"""Running a Pyro program: one draw by one messenger, many draws by three strategies.

A program declares one draw. `Run` supplies its latent values and shows every site to a visitor
once all scales, masks and plates of the program have been applied. A batch is evaluated by

* `vmap`: one run under `torch.func.vmap`; the program sees a single draw;
* `plate`: one run inside an outer plate; the program sees all draws at once, so this is right
  only for programs that broadcast, and is used only where it was compared with the loop;
* `loop`: one run per draw, always right, slow.

All three return the same: for every site and factor a vector of `n` log densities.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyro
import torch
from pyro.distributions import MaskedDistribution, Unit
from pyro.distributions.util import scale_and_mask
from pyro.poutine.messenger import Messenger
from pyro.poutine.subsample_messenger import _Subsample
from torch import Tensor, nn
from torch.distributions import constraints

from ebm_pp.trajectory import TIME, Layout

Message = dict[str, Any]
Sites = dict[str, Tensor]
Visitor = Callable[[Message], None]
# Runs the program once inside a `Run` made from a supplier of values and a visitor; a third
# argument is a context between the two, such as an outer plate.
Runner = Callable[..., None]


@dataclass(frozen=True)
class Site:
    """One latent site of a program.

    Attributes:
        name: The name in `pyro.sample`.
        shape: Plate shape plus event shape of one draw.
        support: The constraint on its values; bounds broadcast against `shape`.
        dim: The number of unconstrained coordinates.
        circular: Whether every coordinate is an angle.
        proper: Whether the base measure can be sampled: false for an improper site and for one
            that the program scales or masks, whose base is no longer normalised.
        trajectory: The site's part in a trajectory; None for any other site.
    """

    name: str
    shape: tuple[int, ...]
    support: constraints.Constraint
    dim: int
    circular: bool
    proper: bool
    trajectory: Any = None  # a TrajectorySite; beartype fails on Pyro's classes in a record

    @property
    def period(self) -> float:
        """Of a circular site, what a turn is in its values' unit."""
        return float(getattr(self.support, "period", 2 * math.pi))


class Run(Messenger):
    """One run of a program, closed to handlers outside it.

    Args:
        supply: Gives the value of each latent site from its message.
        visit: Sees each site's message when scale, mask and plates are known.
        parameter: Gives the value of a `pyro.param` statement, or None to leave it to Pyro.
    """

    def __init__(
        self,
        supply: Callable[[Message], Tensor],
        visit: Visitor,
        parameter: Callable[[Message], Tensor | None],
    ) -> None:
        super().__init__()
        self.supply, self.visit, self.parameter = supply, visit, parameter

    def _process_message(self, msg: Any) -> None:  # noqa: ANN401  Pyro's own typed dictionary
        msg["stop"] = True
        if msg["type"] == "sample" and not msg["is_observed"]:
            if not is_plate(msg):
                msg["value"], msg["done"] = self.supply(msg), True
        elif msg["type"] == "param":
            value = self.parameter(msg)
            if value is not None:
                msg["value"], msg["done"] = value, True

    def _postprocess_message(self, msg: Any) -> None:  # noqa: ANN401  Pyro's own typed dictionary
        if msg["type"] != "sample" or _is_off(msg):
            return
        self.visit(msg)
        if not is_plate(msg) and not is_factor(msg):
            # The program may change its value in place; rows and observations are the user's.
            msg["value"] = msg["value"].clone()


def _is_off(msg: Message) -> bool:
    """Whether an observed value is masked away whole, as `pyro.deterministic` does."""
    if not msg["is_observed"]:
        return False
    fn = msg["fn"]
    return msg["mask"] is False or (isinstance(fn, MaskedDistribution) and fn._mask is False)


def is_plate(msg: Message) -> bool:
    """Whether the message is a plate asking for its indices, not a site."""
    return isinstance(msg["fn"], _Subsample)


def is_factor(msg: Message) -> bool:
    """Whether the message is of `pyro.factor`."""
    return isinstance(msg["fn"], Unit)


def log_term(msg: Message) -> Tensor:
    """The site's scaled and masked log density, one number per plate member."""
    log_prob = msg["fn"].log_prob(msg["value"], *msg["args"], **msg["kwargs"])
    if _is_plain(msg):
        return log_prob
    return scale_and_mask(log_prob, msg["scale"], msg["mask"])


def _is_plain(msg: Message) -> bool:
    scale = msg["scale"]
    return msg["mask"] is None and isinstance(scale, float) and scale == 1.0 and not msg["args"]


def one_draw(run: Runner, values: Sites) -> Sites:
    """The log density of every site and factor at one draw.

    Args:
        run: Runs the program once.
        values: One draw of the latent sites, without a leading `n`.

    Returns:
        A scalar for each site, observed site and factor.
    """
    terms: Sites = {}

    def visit(msg: Message) -> None:
        if not is_plate(msg):
            term = log_term(msg)
            terms[msg["name"]] = term.sum() if term.dim() else term

    run(lambda msg: values[msg["name"]], visit)
    return terms


def by_vmap(
    run: Runner, x: Sites, roots: frozenset[str] = frozenset(), randomness: str = "error"
) -> Sites:
    """All draws in one run under `torch.func.vmap`.

    Args:
        run: Runs the program once.
        x: Draws, each value `(n, *site_shape)`.
        roots: Sites whose distribution is the same at every draw. Their log density is taken
            of the whole batch after the run, which is faster; a distribution that did depend on
            the draw could not leave `vmap` and would raise.
        randomness: As in `torch.func.vmap`.

    Returns:
        For every site and factor its `n` log densities.
    """
    later: dict[str, Any] = {}
    order: list[str] = []

    def single(values: Sites) -> Sites:
        terms: Sites = {}

        def visit(msg: Message) -> None:
            if is_plate(msg):
                return
            name = msg["name"]
            order.append(name)
            if name in roots and _is_plain(msg):
                later[name] = msg["fn"]
            else:
                term = log_term(msg)
                terms[name] = term.sum() if term.dim() else term

        run(lambda msg: values[msg["name"]], visit)
        return terms

    terms = torch.func.vmap(single, randomness=randomness)(x)
    with pyro.validation_enabled(False):  # as inside the run: a draw that is nan scores nan
        for name, fn in later.items():
            term = fn.log_prob(x[name])
            terms[name] = term.flatten(1).sum(1) if term.dim() > 1 else term
    return {name: terms[name] for name in order}


def by_loop(run: Runner, x: Sites) -> Sites:
    """One run per draw."""
    n = len(next(iter(x.values())))
    rows = [one_draw(run, {name: value[i] for name, value in x.items()}) for i in range(n)]
    return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}


def by_plate(run: Runner, x: Sites, event_dims: dict[str, int], nesting: int) -> Sites:
    """All draws in one run inside an outer plate.

    Args:
        run: Runs the program once.
        x: Draws, each value `(n, *site_shape)`.
        event_dims: The number of event dimensions of each site.
        nesting: The number of batch dimensions that one draw uses itself.

    Returns:
        For every site and factor its `n` log densities.

    Raises:
        ValueError: A term has no dimension of draws where the plate expects it.
    """
    n = len(next(iter(x.values())))
    values = {}
    for name, value in x.items():
        batch = value.dim() - 1 - event_dims[name]
        values[name] = value.reshape(n, *[1] * (nesting - batch), *value.shape[1:])
    return in_plate(run, lambda msg: values[msg["name"]], n, nesting)


def in_plate(run: Runner, supply: Callable[[Message], Tensor], n: int, nesting: int) -> Sites:
    """One run inside a plate of `n` draws, left of the program's own plates.

    Args:
        run: Runs the program once.
        supply: Gives `n` values of a site, its own plates aligned to the right.
        n: Number of draws.
        nesting: The number of batch dimensions that one draw uses itself.

    Returns:
        For every site and factor its `n` log densities.

    Raises:
        ValueError: A term has no dimension of draws where the plate expects it.
    """
    terms: Sites = {}

    def visit(msg: Message) -> None:
        if is_plate(msg):
            return
        term = log_term(msg)
        if term.dim() != nesting + 1 or len(term) != n:
            raise ValueError(f"{msg['name']} has shape {tuple(term.shape)} in the outer plate")
        terms[msg["name"]] = term.flatten(1).sum(1) if nesting else term

    run(supply, visit, pyro.plate("_draws", n, dim=-1 - nesting))
    return terms


def by_step(run: Runner, x: Sites, layout: Layout, *, loop: bool = False) -> Tensor:
    """Minus the cost of every step of trajectories, and minus the terminal cost.

    A packed trajectory's factors inside a plate named `time` are of single steps; all others are
    terminal. A loop's factors belong to the last action before them (those before any, to the
    first); after the last state they are terminal.

    Args:
        run: Runs the program once.
        x: Draws, each value `(n, *site_shape)`.
        layout: The program's trajectory.
        loop: Whether to run once per draw instead of under `vmap`.

    Returns:
        `(n, T + 1)`, nats; the last column is terminal.
    """
    horizon = layout.horizon

    def single(values: Sites) -> Tensor:
        seen = 0
        steps: list[Tensor | float] = [0.0] * (horizon + 1)
        at_once: Tensor | float = 0.0

        def visit(msg: Message) -> None:
            nonlocal seen, at_once
            if is_plate(msg):
                return
            # The action that costs belong to; beyond the last state, none.
            seen += msg["name"] in layout.actions or msg["name"] == layout.states[-1]
            if not msg["is_observed"]:
                return  # a dynamics or control site, whose log density is 0
            term = log_term(msg)
            if any(f.name == TIME and f.dim == -1 for f in msg["cond_indep_stack"]):
                at_once = at_once + term.reshape(-1, term.shape[-1]).sum(0)
                return
            at = horizon if layout.packed else max(seen - 1, 0)
            steps[at] = steps[at] + term.sum()

        run(lambda msg: values[msg["name"]], visit)
        zero = torch.zeros(())
        within = torch.cat([(zero + at_once).expand(horizon), zero.reshape(1)])
        return torch.stack([zero + step for step in steps]) + within

    if loop:
        rows = [
            {name: value[i] for name, value in x.items()}
            for i in range(len(next(iter(x.values()))))
        ]
        return torch.stack([single(row) for row in rows])
    return torch.func.vmap(single)(x)


def networks(program: object, args: tuple, kwargs: dict[str, object]) -> list[nn.Module]:
    """Networks that a function receives as arguments, through `partial`, or as `self`."""
    found = [*args, *kwargs.values()]
    while isinstance(program, partial):
        found += [*program.args, *program.keywords.values()]
        program = program.func
    found.append(getattr(program, "__self__", None))
    return [item for item in found if isinstance(item, nn.Module)]
