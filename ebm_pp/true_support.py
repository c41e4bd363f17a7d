"""The true support of a distribution, and whether one that is declared is true.

torch gives a base behind transforms the codomain of the last of them: all of the real line for
`3 - Exponential(1)`. Its true support is the image of the base's. A continuous bijection of single
numbers is monotone, so the ends of the base's support go through it; transforms that treat every
number of a vector by itself, or change their order, do so number by number. What other transforms
do to a bounded base is not known: then the declared support is believed, as one is that a class
declares itself, and asked about (declared.py).
"""

import math
from collections.abc import Sequence
from typing import Any, TypeGuard

import torch
from pyro.distributions import (
    ExpandedDistribution,
    MaskedDistribution,
    SineBivariateVonMises,
    SineSkewed,
    transforms,
)
from pyro.distributions import TransformedDistribution as PyroTransformed
from torch import Tensor
from torch.distributions import (
    Distribution,
    Independent,
    MixtureSameFamily,
    TransformedDistribution,
    VonMises,
    constraints,
)
from torch.distributions.transforms import Transform, _InverseTransform

from ebm_pp.circle import Circular, circular
from ebm_pp.errors import ProgramError
from ebm_pp.support import describe, plain

UNDECLARED = (TransformedDistribution.support, PyroTransformed.support)
LAYERS = Independent | ExpandedDistribution | MaskedDistribution
ANGLES = VonMises | SineBivariateVonMises | SineSkewed
MOVERS = transforms.Permute | transforms.ReshapeTransform


def support_of(fn: Distribution, name: str) -> Any:  # noqa: ANN401 - torch calls it optional
    """The true support of a distribution, as far as it is known; see the module.

    Args:
        fn: of a site; `to_event`, `expand`, `mask` and mixtures are looked through.
        name: the site's.

    Returns:
        A constraint on single numbers or on an event, without the wrapping of `to_event`; of
        angles, the circle with its period.

    Raises:
        ProgramError: the distribution declares no support, a transform has no inverse, parts of a
            mixture have different supports, or an angle is bent.
    """
    while isinstance(fn, LAYERS):
        fn = fn.base_dist
    if isinstance(fn, MixtureSameFamily):
        return _of_parts(fn.component_distribution, name)
    if isinstance(fn, ANGLES):
        return circular
    if _is_undeclared(fn):
        found = _image(fn, name)
        return plain(fn.support) if found is None else found
    try:
        return plain(fn.support)  # type: ignore[arg-type]
    except NotImplementedError as error:
        raise ProgramError(
            f"site {name!r}: {type(fn).__name__} declares no support; expected one.\n  Declare "
            "in its class where its density is positive, support = constraints.real, or "
            "interval(low, high)."
        ) from error


def _is_undeclared(fn: Distribution) -> TypeGuard[TransformedDistribution]:
    return isinstance(fn, TransformedDistribution) and type(fn).support in UNDECLARED


def _of_parts(part: Distribution, name: str) -> Any:  # noqa: ANN401
    """The one support of all parts of a mixture, whose last batch dimension counts them."""
    support = support_of(part, name)
    ends = ends_of(support)
    if ends is None or all(end.dim() <= len(part.event_shape) for end in ends):
        return support
    at = -1 - len(part.event_shape)
    ends = [end.expand(part.batch_shape + part.event_shape) for end in ends]
    if not all(torch.equal(end, end.narrow(at, 0, 1).expand_as(end)) for end in ends):
        raise ProgramError(
            f"site {name!r}: the parts of a mixture have different supports, "
            f"{describe(support)}; expected one.\n  Give every part the same ends."
        )
    return _between(*(end.select(at, 0) for end in ends))


def _image(fn: TransformedDistribution, name: str) -> Any:  # noqa: ANN401
    """The image of the base's support; None where it is not known."""
    for part in fn.transforms:
        if not part.bijective:
            raise ProgramError(
                f"site {name!r}: {type(part).__name__} is no bijection, so the density of its "
                "image is not known; expected transforms with an inverse.\n  Use a distribution "
                "of the image, as HalfNormal is of the size of a Normal, or sample the base and "
                "transform with pyro.deterministic."
            )
    base, parts = support_of(fn.base_dist, name), _flat(fn.transforms)
    if base is not None and base.is_discrete:
        return base
    if isinstance(base, Circular):
        return _turned(base, parts, name)
    ends = ends_of(base)
    if ends is None:
        return None
    whole = fn.base_dist.batch_shape + fn.base_dist.event_shape
    shape = torch.broadcast_shapes(ends[0].shape, whole)
    ends = [end.expand(shape) for end in ends]
    for part in parts:
        ends = [_through(part, end) for end in ends]
    return _between(torch.minimum(*ends), torch.maximum(*ends))


def _flat(parts: Sequence[Transform]) -> list[Transform]:
    """Transforms one after the other, compositions taken apart."""
    found = []
    for part in parts:
        inside = _flat(part.parts) if isinstance(part, transforms.ComposeTransform) else [part]
        found += inside
    return found


def _turned(base: Circular, parts: list[Transform], name: str) -> Circular:
    """The circle of an angle that is turned or measured in another unit."""
    period: float | Tensor = base.period
    for part in parts:
        scale = part.scale if isinstance(part, transforms.AffineTransform) else None
        sizes = torch.as_tensor(math.nan if scale is None else scale).abs()
        if not bool((sizes == sizes.flatten()[0]).all()):
            raise ProgramError(
                f"site {name!r}: {type(part).__name__} bends an angle, or measures several in "
                "different units; expected a turn or one unit, AffineTransform(loc, scale).\n  "
                "Sample the angle itself and transform it with pyro.deterministic."
            )
        period = period * (sizes.flatten()[0] if sizes.requires_grad else sizes.max().item())
    return circular if period == circular.period else Circular(period)


def ends_of(support: constraints.Constraint) -> list[Tensor] | None:
    """The lower and upper end of a support on the line, of one shape; None of another support."""
    if isinstance(support, type(constraints.real)):
        ends: list[Any] = [-math.inf, math.inf]
    elif hasattr(support, "lower_bound") or hasattr(support, "upper_bound"):
        bounds = (("lower_bound", -math.inf), ("upper_bound", math.inf))
        ends = [getattr(support, name, open_end) for name, open_end in bounds]
    else:
        return None
    tensors = [torch.as_tensor(end, dtype=torch.get_default_dtype()) for end in ends]
    return [*torch.broadcast_tensors(*tensors)]


def _between(low: Tensor, high: Tensor) -> constraints.Constraint | None:
    """The support between two ends; None where they are no ends or of different kinds."""
    if not bool((low < high).all()):  # NaN too: not known
        return None
    kinds = [bool(end.isinf().all()) for end in (low, high)]
    if any(bool(end.isinf().any()) != kind for end, kind in zip((low, high), kinds, strict=True)):
        return None
    low, high = (_shortest(end) for end in (low, high))
    if kinds[0]:
        return constraints.real if kinds[1] else constraints.less_than(high)
    return constraints.greater_than(low) if kinds[1] else constraints.interval(low, high)


def _shortest(end: Tensor) -> Tensor:
    """One number where all are equal and none is learned."""
    alike = not end.requires_grad and bool((end == end.flatten()[0]).all())
    return end.flatten()[0] if alike else end


def _through(part: Transform, end: Tensor) -> Tensor:
    """The image of an end, NaN where it is not known; what no parameter moves has no graph."""
    kind = part.inv if isinstance(part, _InverseTransform) else part
    if isinstance(part, transforms.ComposeTransform):
        for one in part.parts:
            end = _through(one, end)
        return end
    if isinstance(part, transforms.IndependentTransform):
        return _through(part.base_transform, end)
    if isinstance(part, transforms.StackTransform):
        one_by_one = zip(part.transforms, end.unbind(part.dim), strict=True)
        return torch.stack([_through(one, x) for one, x in one_by_one], part.dim)
    if isinstance(part, transforms.CatTransform):
        one_by_one = zip(part.transforms, end.split(part.lengths, part.dim), strict=True)
        return torch.cat([_through(one, x) for one, x in one_by_one], part.dim)
    if isinstance(kind, transforms.AffineTransform):
        loc, scale = torch.as_tensor(kind.loc), torch.as_tensor(kind.scale)
        if kind is part:
            return _shifted(end, loc, scale)
        return _shifted(end - loc, torch.zeros_like(loc), scale.reciprocal())
    if isinstance(kind, transforms.SigmoidTransform):  # torch's own stops short of 0 and 1
        return torch.sigmoid(end) if kind is part else torch.logit(end)
    single = part.domain.event_dim == part.codomain.event_dim == 0
    if not single and not isinstance(kind, MOVERS):
        return torch.full_like(end, math.nan)
    image = part(end)
    kept = isinstance(kind, transforms.PowerTransform) and bool(((end == 0) | end.isinf()).all())
    limit = isinstance(part, transforms.CumulativeDistributionTransform) and end.isinf().all()
    return image.detach() if kept or limit or bool(image.isinf().all()) else image


def _shifted(end: Tensor, loc: Tensor, scale: Tensor) -> Tensor:
    """The end times scale, plus loc: at 0 and at infinity no scale moves it."""
    if bool((end == 0).all()):
        return (loc + torch.zeros_like(scale)).expand(
            torch.broadcast_shapes(end.shape, loc.shape, scale.shape)
        )
    image = loc + scale * end
    return image.detach() if bool(end.isinf().all()) else image


def holds(fn: Distribution, value: Tensor, name: str) -> bool:
    """Whether a value comes from inside the base, behind transforms whose image is not known.

    Args:
        fn: of a site.
        value: one draw, well inside what `support_of` says.
        name: the site's.
    """
    while True:
        if isinstance(fn, LAYERS):
            fn = fn.base_dist
        elif isinstance(fn, MixtureSameFamily):
            fn = fn.component_distribution
            value = value.unsqueeze(-1 - len(fn.event_shape))
        elif _is_undeclared(fn):
            known = _image(fn, name) is not None
            for part in reversed(fn.transforms):
                value = part.inv(value)
            fn = fn.base_dist
            if not known and not bool(support_of(fn, name).check(value).all()):
                return False
        else:
            return True
