"""One checked run of a program at a feasible draw, and what its sites are.

These are the checks that need no number: names, shapes, supports, plates.
"""

import math
from collections import Counter
from collections.abc import Callable

import torch
from pyro.distributions import ImproperUniform, MaskedDistribution
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor
from torch.distributions import Distribution, constraints
from torch.distributions.transforms import Transform

from ebm_pp.circle import Circle, circular, from_radians, innermost, is_circular, layers
from ebm_pp.dynamics import TrajectorySite
from ebm_pp.errors import ProgramError
from ebm_pp.program import Message, Runner, Site, is_factor, is_plate, log_term
from ebm_pp.support import bijection, bounds_of, describe, same_support, support_of
from ebm_pp.surroundings import answering

RUN_IT = (
    "Expected a program that declares one draw and runs with the arguments given to "
    "EnergyModel(program, ...): try it alone under pyro.poutine.trace."
)


def trace(run: Runner, unconstrained: Callable[[torch.Size], Tensor]) -> list[Message]:
    """Run a program once and record its sites.

    Args:
        run: Runs the program once, with or without Pyro's validation.
        unconstrained: Gives unconstrained coordinates of a shape.

    Returns:
        The messages of all sites, observed sites and factors, in program order.

    Raises:
        ProgramError: A site cannot be compiled, or the program failed.
    """
    messages: list[Message] = []

    with answering("at a feasible draw", RUN_IT):
        run(lambda msg: _feasible(msg, unconstrained), lambda msg: _record(messages, msg))
    if all(msg["is_observed"] for msg in messages):
        raise ProgramError(
            f"the program has no latent site (got {len(messages)} observed sites and factors); "
            "expected at least one pyro.sample without obs.\n  Most likely every site is given "
            "obs: leave it out for what the model describes, and pass the data to fit."
        )
    return messages


def _record(messages: list[Message], msg: Message) -> None:
    if is_plate(msg):
        _check_plate(msg)
        return
    if any(msg["name"] == other["name"] for other in messages):
        raise ProgramError(
            f"site {msg['name']!r} is declared twice; expected one site per name.\n  Most "
            "likely a loop reuses the name: number the names, f'x_{i}'."
        )
    if is_factor(msg):
        _check_factor_shape(msg)
    log_term(msg)
    messages.append(dict(msg))


def waves(shape: torch.Size) -> Tensor:
    """Different unconstrained coordinates that use no random numbers."""
    return torch.arange(1.0, 1 + shape.numel()).sin().reshape(shape)


def _feasible(msg: Message, unconstrained: Callable[[torch.Size], Tensor]) -> Tensor:
    """A value in the site's support."""
    fn = msg["fn"]
    if isinstance(fn, TrajectorySite):
        return fn.feasible(unconstrained)
    _check_latent(msg["name"], fn)
    support = support_of(fn)
    if any(bound.requires_grad for bound in bounds_of(support)):
        raise ProgramError(
            f"site {msg['name']!r}: the support {describe(support)} depends on a parameter; "
            "expected fixed bounds.\n  Sample on a fixed support, for instance the unit "
            "interval, and rescale with pyro.deterministic."
        )
    if is_circular(fn):
        return from_radians(1.5 * unconstrained(fn.shape()), _period(fn))
    transform = _bijection(msg["name"], support)
    return transform(unconstrained(transform.inverse_shape(fn.shape()))).expand(fn.shape())


def _period(fn: Distribution) -> float:
    return float(getattr(innermost(fn), "period", 2 * math.pi))


def _check_latent(name: str, fn: object) -> None:
    if not isinstance(fn, TorchDistributionMixin) or not isinstance(fn, Distribution):
        raise ProgramError(
            f"site {name!r} has {type(fn).__name__} instead of a distribution; expected one "
            "from pyro.distributions.\n  Most likely a plain function or a torch distribution: "
            "use the class of the same name in pyro.distributions."
        )
    support = fn.support
    if support is not None and support.is_discrete:
        raise ProgramError(
            f"site {name!r}: {type(innermost(fn)).__name__} has the discrete support "
            f"{describe(support)}; expected a continuous one.\n  A flow has a density and "
            "reaches no single point: sum the site out inside a factor, or observe it."
        )


def _bijection(name: str, support: constraints.Constraint) -> Transform:
    try:
        return bijection(support)
    except NotImplementedError as error:
        raise ProgramError(
            f"site {name!r} has the support {describe(support)}, onto which no bijection is "
            "known; expected real, positive, an interval, simplex, ordered, circular or a "
            "Cholesky factor.\n  Sample on one of these and transform with pyro.deterministic."
        ) from error


def _check_plate(msg: Message) -> None:
    fn = msg["fn"]
    if len(msg["value"]) != fn.size:
        raise ProgramError(
            f"plate {msg['name']!r} is subsampled: {len(msg['value'])} of {fn.size} indices; "
            "expected all of them, since one draw must have one density.\n  Remove "
            "subsample_size and subsample; batches of data rows are made by fit."
        )


def _check_factor_shape(msg: Message) -> None:
    """A factor gives one number per plate member, before Pyro broadcasts it."""
    got = tuple(msg["value"].shape[:-1])
    plates = [frame for frame in msg["cond_indep_stack"] if frame.dim is not None]
    expected = [1] * max((-frame.dim for frame in plates), default=0)
    for frame in plates:
        expected[frame.dim] = frame.size
    if -1 in expected or got == tuple(expected):
        return
    if not plates:
        raise ProgramError(
            f"factor {msg['name']!r} returned shape {got}; expected one number per draw, ().\n  "
            "Most likely a sum over the event dimension is missing: use .sum(-1)."
        )
    names = ", ".join(repr(frame.name) for frame in plates)
    raise ProgramError(
        f"factor {msg['name']!r} inside plate {names} returned shape {got}; expected one number "
        f"per member, {tuple(expected)}.\n  Most likely a sum runs over the plate, or the factor "
        "belongs outside it: a scalar inside would count once per member. Move it out, or "
        "expand it."
    )


def check_structure(probes: list[list[Message]]) -> None:
    """Every draw must declare the same sites with the same shapes and supports.

    Args:
        probes: Traces at several draws.

    Raises:
        ProgramError: Sites, shapes or supports change from draw to draw, or `obs_mask` is used.
    """
    first = probes[0]
    names = Counter(msg["name"] for msg in first)
    for msg in first:
        name = msg["name"]
        stem = name.removesuffix("_unobserved")
        if stem != name and f"{stem}_observed" in names and msg["mask"] is not None:
            raise ProgramError(
                f"site {stem!r} uses obs_mask, which leaves the base measure of its missing part "
                "improper; expected obs for all of it or none.\n  Declare the missing entries as "
                "a site of their own."
            )
    for probe in probes[1:]:
        if _shapes(probe) != _shapes(first):
            raise ProgramError(
                f"the program declares other sites at another draw: {_shapes(probe)} instead of "
                f"{_shapes(first)}; expected the same names and shapes always.\n  Most likely a "
                "branch on a sampled value: use torch.where or a mixture."
            )
        for one, other in zip(first, probe, strict=True):
            if one["is_observed"]:
                continue  # what cuts off an observation is a wall of its log density
            supports = [support_of(msg["fn"]) for msg in (one, other)]
            if not same_support(*supports):
                raise moving_support(one["name"], describe(supports[0]))


def _shapes(messages: list[Message]) -> dict[str, tuple[int, ...]]:
    return {
        msg["name"]: tuple(msg["value"].shape[:-1] if is_factor(msg) else msg["value"].shape)
        for msg in messages
    }


def moving_support(name: str, support: str) -> ProgramError:
    """The error for a site whose support depends on another site."""
    return ProgramError(
        f"site {name!r}: the support {support} depends on another site; expected fixed bounds.\n"
        "  Sample on a fixed support, for instance the unit interval, and rescale with "
        "pyro.deterministic."
    )


def read_site(msg: Message) -> Site:
    """The record of one latent site from its message.

    Args:
        msg: A latent site's message from `trace`.

    Returns:
        Name, shape, support, dimension, whether circular, whether its base can be sampled.
    """
    fn, shape = msg["fn"], tuple(msg["value"].shape)
    if isinstance(fn, TrajectorySite):
        dim = msg["value"].numel()
        return Site(msg["name"], shape, fn.support, dim, False, False, fn)
    around = isinstance(fn, Distribution) and is_circular(fn)
    support = support_of(fn)
    if around:
        inner = innermost(fn)
        support = inner.support if isinstance(inner, Circle) else circular
    dim = bijection(support).inverse_shape(torch.Size(shape)).numel()
    masks = [layer._mask for layer in layers(fn) if isinstance(layer, MaskedDistribution)]
    proper = (
        not isinstance(innermost(fn), ImproperUniform)
        and all(_is_one(mask) for mask in [*masks, msg["mask"]])
        and _is_one(msg["scale"])
    )
    return Site(msg["name"], shape, support, dim, around, proper)


def _is_one(value: object) -> bool:
    return value is None or bool(torch.as_tensor(value == 1).all())


def read_sites(run: Runner) -> dict[str, Site]:
    """The latent sites of a program that was compiled before, for a new dtype or device.

    Args:
        run: Runs the program once, with Pyro's validation.

    Returns:
        The sites in program order.
    """
    return {m["name"]: read_site(m) for m in trace(run, waves) if not m["is_observed"]}
