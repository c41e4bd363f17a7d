"""The inner loop without Pyro: a density captured as a plain function of tensor operations.

A program is run once, under `vmap`, on rows of a fixed shape while every tensor operation is
recorded; afterwards the record is evaluated instead of the program. It holds the model's own
parameters, not copies. Two rewrites undo what `vmap` does to a linear layer (it adds and removes
dimensions of size 1, and takes the product and the bias apart). A captured function is used only
where its values and gradients were found equal to the model's, at the present parameters and at
others, and as long as it gives the model's values in every diagnosed round.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, fx, nn
from torch.fx.experimental.proxy_tensor import make_fx

from ebm_pp.checks import agree, holding, moved
from ebm_pp.density import EnergyModel
from ebm_pp.program import Sites

Density = Callable[[Sites], Float[Tensor, " n"]]

ATEN = torch.ops.aten
RESHAPES = {
    ATEN.view.default,
    ATEN._unsafe_view.default,
    ATEN.unsqueeze.default,
    ATEN.squeeze.dim,
    ATEN.squeeze.dims,
    ATEN.squeeze_.dim,
    ATEN.squeeze_.dims,
}


class Captured(NamedTuple):
    """What came of capturing a program.

    * density: log p~ of as many rows as were recorded; None where the program itself is used.
    * why: "yes", or why not.
    * rows: those that it was recorded on.
    """

    density: Density | None
    why: str
    rows: Sites


NOT_CAPTURED = Captured(None, "no: no energy to train", {})


def capture(model: EnergyModel, x: Sites) -> Captured:
    """`model.log_density` for as many rows as x has, if it can be captured.

    The record does not see what is no tensor operation: numbers that left their tensor, attributes
    of the program, train or eval. So it is compared with the program where the parameters are, and
    where they are not yet.

    Args:
        model: the program.
        x: rows to record and to compare on, each value `(n, *site_shape)`.

    Returns:
        A function of sites of the same shapes, whose gradients reach the model's parameters; or
        why there is none.
    """
    if model.batching != "vmap":
        return Captured(None, f"no: the program runs by {model.batching}", x)
    if model.layout is not None:
        return Captured(None, "no: a trajectory", x)
    if len(next(iter(x.values()))) < 2:
        return Captured(None, "no: fewer than two rows", x)
    own = list(model.parameters())
    other = moved(own, torch.Generator().manual_seed(0))
    try:
        recorded = make_fx(lambda rows: model.log_density(rows))(x)
        _simplify(recorded.graph)
        recorded.recompile()
        here = _equal(model, recorded, x)
        there = here and _equal_at(model, own, other, recorded, x)
    except (RuntimeError, TypeError, ValueError, AttributeError) as error:  # recording can't do it
        return Captured(None, f"no: {type(error).__name__}: {str(error).splitlines()[0][:200]}", x)
    if not there:
        where = "at other parameters" if here else "at once"
        return Captured(None, f"no: the record gave other numbers than the program {where}", x)
    return Captured(recorded, "yes", x)


@torch.no_grad()
def still_right(model: EnergyModel, captured: Captured) -> Captured:
    """The same if it still gives the program's numbers, which a callback may have changed."""
    if captured.density is None:
        return captured
    expected, got = model.log_density(captured.rows), captured.density(captured.rows)
    if agree(got, expected, 1e-3, 1e-4):
        return captured
    why = "no: the program now gives other numbers than its record"
    return captured._replace(density=None, why=why)


def _equal_at(
    model: EnergyModel,
    own: list[nn.Parameter],
    values: list[Tensor],
    recorded: Density,
    x: Sites,
) -> bool:
    """`_equal` at other values of the parameters; true where the program has none there."""
    with holding(own, values):
        with torch.no_grad():
            if not model.log_density(x).isfinite().all():
                return True
        return _equal(model, recorded, x)


def _equal(model: EnergyModel, recorded: Density, x: Sites) -> bool:
    """Whether values and parameter gradients agree, on x and on its rows in another order."""
    own = [p for p in model.parameters() if p.requires_grad]
    for rows in (x, {name: value.flip(0) for name, value in x.items()}):
        results = []
        for density in (model.log_density, recorded):
            with torch.enable_grad():
                value = density(rows)
                # A weight of its own for every row: no two gradients cancel.
                weighted = (value * torch.linspace(1, 2, len(value)).to(value)).sum()
                grads = (
                    torch.autograd.grad(weighted, own, allow_unused=True)
                    if own and weighted.requires_grad
                    else ()
                )
            results.append([value, *[torch.zeros(()) if g is None else g for g in grads]])
        if not all(agree(a, b, 1e-3, 1e-4) for a, b in zip(*results, strict=True)):
            return False
    return True


def _simplify(graph: fx.Graph) -> None:
    """Drops reshapes that lead back to where they began; joins product and bias."""
    for node in [n for n in graph.nodes if n.target in RESHAPES]:
        root = _unreshaped(node)
        if _shape(node) == _shape(root):
            node.replace_all_uses_with(root)
    graph.eliminate_dead_code(_has_effect)
    for node in [n for n in graph.nodes if n.target is ATEN.add.Tensor and not n.kwargs]:
        product, bias = _unreshaped(node.args[0]), node.args[1]
        if not isinstance(bias, fx.Node) or product.target is not ATEN.mm.default:
            continue
        n_out = _shape(product)[1:]
        if len(product.users) == 1 and n_out == _shape(bias) == _shape(node)[1:]:
            with graph.inserting_before(node):
                joined = graph.call_function(ATEN.addmm.default, (bias, *product.args))
            joined.meta = product.meta
            node.replace_all_uses_with(joined)
    graph.eliminate_dead_code(_has_effect)
    graph.lint()


def _has_effect(node: fx.Node) -> bool:
    """`squeeze_` works in place, but on a tensor that nobody else sees."""
    return node.target not in RESHAPES and node.is_impure()


def _unreshaped(node: Any) -> Any:  # noqa: ANN401 - nodes hold nodes among other arguments
    while node.target in RESHAPES:
        node = node.args[0]
    return node


def _shape(node: fx.Node) -> tuple[int, ...]:
    """Of what the node returned; a parameter's is read from the module that holds it."""
    if node.op == "get_attr":
        return tuple(getattr(node.graph.owning_module, str(node.target)).shape)
    value = node.meta.get("val", node.meta.get("tensor_meta"))
    return (-1,) if value is None else tuple(value.shape)
