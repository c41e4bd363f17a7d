"""Pictures of fits to trajectories. Every function returns its figure, and takes axes."""

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from ebm_pp.counts import count
from ebm_pp.density import EnergyModel, Sites
from ebm_pp.errors import DataError, GeneratorError
from ebm_pp.evidence import Diagnosable
from ebm_pp.partition import ess_fraction, log_partition_from_weights
from ebm_pp.plots_sites import DATA, DRAWS, axes_or_new
from ebm_pp.policy import PolicyGenerator
from ebm_pp.sampling import seeded
from ebm_pp.step_weights import soft_value_of, step_log_weights

CELLS = 60  # of the cost map, each way


def plot_trajectories(
    fit: Diagnosable,
    data: Sites,
    coordinates: tuple[int, int] = (0, 1),
    *,
    n: int = 15,
    names: tuple[str, str] | None = None,
    ax: Axes | None = None,
    seed: int | None = 0,
) -> Figure:
    """Demonstrations and the policy's trajectories over a map of the learned cost.

    The map is the cost of one step in the middle of the horizon, standing at the state with the
    demonstrations' mean action; other coordinates at the demonstrations' median. What the cost
    says of other actions or times is not in it, nor is the terminal cost.

    Args:
        fit: a fit of a program with trajectory sites, whose states are vectors.
        data: demonstrations.
        coordinates: which two of the state's.
        n: at most so many of each are drawn.
        names: of the two coordinates, with units.
        ax: to draw on; by default a new figure's.
        seed: of the policy's draws.

    Raises:
        GeneratorError: the generator is no `PolicyGenerator`.
        DataError: the states are integers, or have no such coordinates.
    """
    policy = _policy_of(fit, "plot_trajectories")
    space = policy.layout.dynamics.space
    if space.n or max(coordinates) >= space.shape[0] or min(coordinates) < 0:
        got = f"integers 0 to {space.n - 1}" if space.n else f"vectors of {space.shape[0]}"
        raise DataError(
            f"plot_trajectories: coordinates {coordinates} of states that are {got}; expected two "
            "of a vector.\n  Choose others, or show the costs of integers as a table."
        )
    n = count("n", n)
    rows = fit.model.check(data)
    with seeded(seed), torch.no_grad():
        x, _ = policy.rsample_and_log_prob(n)
    figure, ax = axes_or_new(ax, (6.2, 4.8))
    paths = [
        policy.layout.pack(part).states[:n, :, list(coordinates)].cpu().numpy()
        for part in (rows, x)
    ]
    edges = [_edges(np.concatenate([p[..., i].ravel() for p in paths])) for i in (0, 1)]
    cost = _cost_map(fit.model, policy, rows, coordinates, edges)
    mesh = ax.pcolormesh(*edges, cost, cmap="Greys", shading="nearest", alpha=0.75, lw=0)
    mesh.set_rasterized(True)
    ax.figure.colorbar(mesh, ax=ax, label="learned cost of a step (nats)")
    labels = ("demonstrations", "policy")
    for path, colour, label in zip(paths, (DATA, DRAWS), labels, strict=True):
        ax.add_collection(LineCollection([*path], colors=colour, lw=1.0, alpha=0.6))
        ax.plot(*path[:, 0].T, "o", color=colour, ms=3, label=label)
    ax.set_xlim(edges[0][0], edges[0][-1])
    ax.set_ylim(edges[1][0], edges[1][-1])
    first, second = names or tuple(f"state[{i}]" for i in coordinates)
    ax.set(xlabel=first, ylabel=second, title="a dot is where a trajectory starts")
    ax.legend(loc="upper right", framealpha=0.9)
    return figure


def plot_horizon(
    fit: Diagnosable,
    n: int = 1000,
    *,
    axes: tuple[Axes, Axes] | None = None,
    seed: int | None = 0,
) -> Figure:
    """ESS / n and log Z of the first t steps, against t.

    With the optimal soft value log Z is 0 at every t; what it moves by is the policy's and the
    soft value's error. The dashed line is E_q[log weight], at most log Z.

    Args:
        fit: a fit of a program with trajectory sites.
        n: trajectories of the policy.
        axes: two, to draw on; by default a new figure's.
        seed: of the draws.

    Raises:
        GeneratorError: the generator is no `PolicyGenerator`.
    """
    n = count("n", n)
    policy = _policy_of(fit, "plot_horizon")
    with seeded(seed), torch.no_grad():
        x, _ = policy.rsample_and_log_prob(n)
    steps = step_log_weights(fit.model, policy, x, soft_value_of(fit.model, policy, x))
    so_far = steps.double().cumsum(1)
    times = np.arange(1, steps.shape[1] + 1)
    estimates = [log_partition_from_weights(column) for column in so_far.unbind(1)]
    value = np.array([estimate.value for estimate in estimates])
    error = np.array([estimate.standard_error for estimate in estimates])
    if axes is None:
        axes = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")[1]
    left, right = axes
    figure, _ = axes_or_new(left, (9.0, 3.6))
    left.plot(times, [ess_fraction(column) for column in so_far.unbind(1)], color=DATA, lw=1.5)
    left.set(xlabel="steps t", ylabel="ESS / n of the first t steps", ylim=(0, 1.05))
    right.axhline(0.0, color="0.6", lw=1)
    right.fill_between(times, value - error, value + error, color=DATA, alpha=0.2, lw=0)
    right.plot(times, value, color=DATA, lw=1.5, label="log Z (+- 1 standard error)")
    mean = so_far.mean(0).cpu().numpy()
    right.plot(times, mean, color=DRAWS, ls="--", lw=1.5, label="mean log weight")
    right.set(xlabel="steps t", ylabel="nats")
    right.legend(frameon=False)
    return figure


@torch.no_grad()
def _cost_map(
    model: EnergyModel,
    policy: PolicyGenerator,
    rows: Sites,
    coordinates: tuple[int, int],
    centres: list[NDArray[np.floating]],
) -> NDArray[np.floating]:
    """The cost of a step in the middle, at every cell; second coordinate first, as meshes want."""
    layout = policy.layout
    tau = layout.pack(rows)
    first, second = np.meshgrid(*centres)
    states = tau.states.flatten(0, 1).median(0).values.repeat(first.size, 1)
    for i, values in zip(coordinates, (first, second), strict=True):
        states[:, i] = torch.as_tensor(values.ravel()).to(states)
    action = tau.actions.flatten(0, 1)
    whole = bool(layout.dynamics.actions.n)
    action = action.mode(0).values if whole else action.mean(0)
    step = (layout.horizon - 1) // 2
    found: list[Tensor] = []
    for part in states.split(max(200_000 // layout.horizon, 1)):
        stay = part[:, None].expand(-1, layout.horizon + 1, -1)
        repeated = action.expand(len(part), layout.horizon, *action.shape)
        found.append(-model.stage_log_density(layout.unpack(stay, repeated))[:, step])
    return torch.cat(found).cpu().numpy().reshape(first.shape)


def _edges(values: NDArray[np.floating]) -> NDArray[np.floating]:
    low, high = np.quantile(values, [0.002, 0.998])
    margin = 0.06 * (high - low) or 1.0
    return np.linspace(low - margin, high + margin, CELLS)


def _policy_of(fit: Diagnosable, what: str) -> PolicyGenerator:
    if isinstance(fit.generator, PolicyGenerator):
        return fit.generator
    raise GeneratorError(
        f"{what}: the generator is a {type(fit.generator).__name__}; expected a PolicyGenerator."
        "\n  Pictures of other fits are in ebm_pp.plots."
    )
