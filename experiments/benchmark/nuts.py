"""NUTS of Pyro and of NumPyro on the log density of an `EnergyModel` with real sites.

Both get the density as a user in search of speed would write it: without the program's handlers.
The program is run once on one row while its tensor operations are recorded (as `capture` does for
training); Pyro evaluates the record, NumPyro its translation into JAX, operation by operation.
"""

import os
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from pyro.infer import MCMC, NUTS
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx

from ebm_pp import EnergyModel
from ebm_pp.capture import _simplify
from ebm_pp.sampling import seeded

ATEN = torch.ops.aten
ONE_CORE = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"


class Run(NamedTuple):
    """Chains of NUTS and what they cost in CPU seconds of the process.

    values: unconstrained coordinates, shape (chains, steps, d).
    sampling: of the steps that were kept.
    warmup: of adaptation.
    compiling: of tracing and compilation, which a second run in the same process saves.
    divergences: among the steps that were kept.
    """

    values: Float[Tensor, "chains steps d"]
    sampling: float
    warmup: float
    compiling: float
    divergences: int


def record(model: EnergyModel, row: Float[Tensor, "d"]) -> fx.GraphModule:
    """The log density of one row `(1, d)` of site `x`, as a plain graph of tensor operations.

    Raises:
        ValueError: the model has other sites than a real vector `x`, or the record differs.
    """
    if list(model.sites) != ["x"] or model.constrain(row[None])[1].abs().max():
        raise ValueError(f"sites {list(model.sites)}; expected one real vector named 'x'.")
    recorded = make_fx(lambda x: model.log_density({"x": x}))(row[None])
    _simplify(recorded.graph)
    recorded.recompile()
    for other in (row, row + 0.1, -row):
        if not torch.allclose(recorded(other[None]), model.log_density({"x": other[None]})):
            raise ValueError("the recorded density differs from the program's.")
    return recorded


def pyro_nuts(
    model: EnergyModel, starts: Float[Tensor, "c d"], warmup: int, steps: int, *, jit: bool
) -> Run:
    """Pyro's NUTS at its defaults, one chain after the other."""
    for parameter in model.parameters():
        parameter.requires_grad_(False)  # gradients in x are all that is wanted
    density = record(model, starts[0])
    chains, ends, divergences = [], [], 0
    begin = time.process_time()
    for start in starts:
        found: dict[str, Any] = {}

        def watch(kernel: NUTS, _: object, stage: str, step: int, found: dict = found) -> None:
            if stage.startswith("Warmup"):
                found["warm"] = time.process_time()
            else:
                found["divergences"] = len(kernel.diagnostics()["divergences"])

        kernel = NUTS(potential_fn=lambda z: -density(z["x"][None])[0], jit_compile=jit)
        chain = MCMC(
            kernel,
            num_samples=steps,
            warmup_steps=warmup,
            initial_params={"x": start},
            hook_fn=watch,
            disable_progbar=True,
        )
        chain.run()
        ends.append((found["warm"], time.process_time()))
        divergences += found["divergences"]
        chains.append(chain.get_samples()["x"])
    begins = [begin, *[end for _, end in ends[:-1]]]
    return Run(
        torch.stack(chains),
        sum(end - warm for warm, end in ends),
        sum(warm - first for first, (warm, _) in zip(begins, ends, strict=True)),
        0.0,
        divergences,
    )


def faster_pyro_nuts(
    model: EnergyModel, starts: Float[Tensor, "c d"], warmup: int, steps: int, seed: int
) -> Run:
    """Pyro's NUTS with or without its `jit_compile`, whichever takes less in a short trial."""
    seconds = {}
    for jit in (False, True):
        with seeded(seed):
            trial = pyro_nuts(model, starts[:1], 50, 50, jit=jit)
        seconds[jit] = trial.sampling
    jit = seconds[True] < seconds[False]
    with seeded(seed):
        return pyro_nuts(model, starts, warmup, steps, jit=jit)


def numpyro_nuts(
    model: EnergyModel,
    starts: Float[Tensor, "c d"],
    warmup: int,
    steps: int,
    seed: int,
    *,
    vectorised: bool,
) -> Run:
    """NumPyro's NUTS kernel at its defaults, on one core, in single precision.

    Its steps run in a loop that is compiled ahead: `MCMC.run` compiles anew in every call, about
    three seconds, which would hide what the steps cost.

    Args:
        model: the density.
        starts: first states.
        warmup: steps of adaptation a chain.
        steps: steps a chain that are kept.
        seed: of the chains.
        vectorised: all chains in one program, or one after the other.

    Raises:
        ImportError: NumPyro is not installed.
        ValueError: the density in JAX differs from the program's.
    """
    os.environ.setdefault("XLA_FLAGS", ONE_CORE)
    import jax
    from numpyro.infer import NUTS as Kernel

    begin = time.process_time()
    density = jax_density(record(model, starts[0]))
    check_jax(density, model, starts)
    kernel = Kernel(potential_fn=lambda z: -density(z))
    keys = jax.random.split(jax.random.PRNGKey(seed), len(starts))
    batches = [slice(None)] if vectorised else list(range(len(starts)))
    states = [kernel.init(keys[i], warmup, starts.numpy()[i], (), {}) for i in batches]

    def loop(length: int) -> Any:
        def step(state: Any, _: None) -> Any:
            state = kernel.sample(state, (), {})
            return state, (state.z, state.diverging)

        run = jax.jit(lambda state: jax.lax.scan(step, state, length=length))
        return run.lower(states[0]).compile()

    adapt, sample = loop(warmup), loop(steps)
    compiled = time.process_time()
    states = [jax.block_until_ready(adapt(state)[0]) for state in states]
    warm = time.process_time()
    found = [jax.block_until_ready(sample(state)[1]) for state in states]
    end = time.process_time()
    values = [torch.tensor(jax.device_get(z)) for z, _ in found]
    chains = values[0].transpose(0, 1) if vectorised else torch.stack(values)
    divergences = sum(int(diverging.sum()) for _, diverging in found)
    return Run(chains, end - warm, warm - compiled, compiled - begin, divergences)


def check_jax(
    density: Callable[..., Any], model: EnergyModel, rows: Float[Tensor, "n d"], atol: float = 1e-4
) -> None:
    """The JAX density agrees with the program's: to `atol` nats, or 1e-5 of the value."""
    import jax

    with torch.no_grad():
        expected = model.log_density({"x": rows})
    got = torch.tensor(jax.device_get(jax.vmap(density)(rows.numpy())))
    if not torch.allclose(got, expected, rtol=1e-5, atol=atol):
        gap = (got - expected).abs().max().item()
        raise ValueError(f"the density in JAX is {gap:.2g} nats from the program's.")


def jax_density(recorded: fx.GraphModule) -> Callable[..., Any]:
    """A recorded density as a JAX function of one row `(d,)`.

    Raises:
        NotImplementedError: the record has an operation without a translation here.
    """
    import jax.numpy as jnp

    operations = _operations()
    constants = {}
    for node in recorded.graph.nodes:
        if node.op == "get_attr":
            constants[node] = jnp.asarray(getattr(recorded, node.target).detach().numpy())
        elif node.op == "call_function" and node.target not in operations:
            raise NotImplementedError(f"{node.target} has no translation into JAX: add it.")

    def density(row: Any) -> Any:
        values = dict(constants)
        for node in recorded.graph.nodes:
            if node.op == "placeholder":
                values[node] = row[None]
            elif node.op == "call_function":
                arguments = fx.map_arg(node.args, values.__getitem__)
                settings = {k: v for k, v in node.kwargs.items() if k in ("alpha", "beta")}
                values[node] = operations[node.target](*arguments, **settings)
            elif node.op == "output":
                return jnp.ravel(fx.map_arg(node.args[0], values.__getitem__))[0]
        raise AssertionError("a graph ends with its output")

    return density


def _operations() -> dict[object, Callable[..., Any]]:
    """What each tensor operation is in JAX."""
    import jax
    import jax.numpy as jnp
    from jax.scipy.special import logsumexp

    def axes(dim: object) -> Any:
        return tuple(dim) if isinstance(dim, list | tuple) else dim

    def sliced(x: Any, dim: int = 0, start: int = 0, end: int = 2**62, step: int = 1) -> Any:
        stop = min(end, x.shape[dim])
        return x[(slice(None),) * (dim % x.ndim) + (slice(start, stop, step),)]

    return {
        ATEN.add.Tensor: lambda a, b, alpha=1: a + alpha * b,
        ATEN.sub.Tensor: lambda a, b, alpha=1: a - alpha * b,
        ATEN.rsub.Scalar: lambda a, b, alpha=1: b - alpha * a,
        ATEN.mul.Tensor: lambda a, b: a * b,
        ATEN.div.Tensor: lambda a, b: a / b,
        ATEN.pow.Tensor_Scalar: lambda a, b: a**b,
        ATEN.neg.default: lambda a: -a,
        ATEN.exp.default: jnp.exp,
        ATEN.log.default: jnp.log,
        ATEN.log1p.default: jnp.log1p,
        ATEN.sin.default: jnp.sin,
        ATEN.cos.default: jnp.cos,
        ATEN.tanh.default: jnp.tanh,
        ATEN.sigmoid.default: jax.nn.sigmoid,
        ATEN.relu.default: jax.nn.relu,
        ATEN.silu.default: jax.nn.silu,
        ATEN.softplus.default: jax.nn.softplus,
        ATEN.mm.default: lambda a, b: a @ b,
        ATEN.addmm.default: lambda c, a, b: c + a @ b,
        ATEN.t.default: lambda a: a.T,
        ATEN.permute.default: jnp.transpose,
        ATEN.transpose.int: jnp.swapaxes,
        ATEN.cat.default: lambda parts, dim=0: jnp.concatenate(parts, dim),
        ATEN.sum.dim_IntList: lambda a, dim, keepdim=False: a.sum(axes(dim), keepdims=keepdim),
        ATEN.logsumexp.default: lambda a, dim, keepdim=False: logsumexp(
            a, axes(dim), keepdims=keepdim
        ),
        ATEN.select.int: lambda a, dim, index: jnp.take(a, index, dim),
        ATEN.slice.Tensor: sliced,
        ATEN.unsqueeze.default: jnp.expand_dims,
        ATEN.squeeze.dim: lambda a, dim: jnp.squeeze(a, axes(dim)),
        ATEN.squeeze.dims: lambda a, dim: jnp.squeeze(a, axes(dim)),
        ATEN.view.default: jnp.reshape,
        ATEN._unsafe_view.default: jnp.reshape,
        ATEN.expand.default: lambda a, shape: jnp.broadcast_to(a, tuple(shape)),
        ATEN.zeros.default: lambda shape: jnp.zeros(tuple(shape)),
        ATEN._to_copy.default: lambda a: jnp.asarray(a, jnp.float32),
        ATEN.detach.default: lambda a: a,
        ATEN.clone.default: lambda a: a,
    }
