"""The inner loop without Pyro: a density captured as a plain function of tensor operations.

A program is run once, under `vmap`, on rows of a fixed shape while every tensor operation is
recorded; afterwards the record is evaluated instead of the program. It holds the model's own
parameters, not copies. Two rewrites undo what `vmap` does to a linear layer (it adds and removes
dimensions of size 1, and takes the product and the bias apart). A captured function is used only
where its values and gradients were found equal to the model's.
"""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx

from ebm_pp.checks import agree
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


def capture(model: EnergyModel, x: Sites) -> Density:
    """`model.log_density` for as many rows as x has; the model's own where it can't be captured.

    Args:
        model: the program.
        x: rows to record and to compare on, each value `(n, *site_shape)`.

    Returns:
        A function of sites of the same shapes; gradients reach the model's parameters.
    """
    if model.batching != "vmap" or model.layout is not None or len(next(iter(x.values()))) < 2:
        return model.log_density
    try:
        recorded = make_fx(lambda rows: model.log_density(rows))(x)
        _simplify(recorded.graph)
        recorded.recompile()
        return recorded if _equal(model, recorded, x) else model.log_density
    except Exception:  # recording is only a shortcut: whatever stops it, the program is right
        return model.log_density


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
