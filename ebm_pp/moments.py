"""Moment gaps: where the model's averages differ from the data's.

For a statistic s, in units of its standard error,

    gap = (E_data[s] - E_w[s]) / SE,
    SE^2 = var_data / n_data + var_data / n_train + sum_i W_i^2 (s_i - E_w[s])^2,

E_w the average over draws of q with self-normalised, Pareto-smoothed weights W, whose error is the
delta method's. The middle term is there because a fitted model carries the sampling error of the
rows it was fitted to. For s a factor of the program this *is* the score of the log-likelihood in
that factor's scale: zero at the optimum. A discriminator's accuracy near 1/2 does not imply it.
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ebm_pp.density import EnergyModel, Sites
from ebm_pp.names import column_names
from ebm_pp.pareto import psis
from ebm_pp.trajectory import Layout

# Two-sided probability beyond three standard errors, shared out over all statistics of a report.
LEVEL = math.erfc(3 / math.sqrt(2))
FEW = 30  # rows: their own variance is a poor guess
VISITS = 10  # trajectories: shares of integers that fewer visit are too skewed for a z


class Gap(NamedTuple):
    """How far the data's mean of a statistic is above the model's.

    z: in standard errors of the difference.
    size: in standard deviations of the statistic over the data.
    """

    z: float
    size: float


def compare_moments(
    data: dict[str, Float[Tensor, " n"]],
    draws: dict[str, Float[Tensor, " m"]],
    log_weights: Float[Tensor, " m"],
    n_train: int = 0,
    groups: Int[Tensor, " n"] | None = None,
) -> dict[str, Gap]:
    """The gap of every statistic; see the module.

    Args:
        data: each statistic at rows of data.
        draws: the same statistics at draws of q.
        log_weights: log p~ - log q of the draws.
        n_train: rows the model was fitted to; 0 if it was not fitted.
        groups: a label per row of data; rows of one label (hours of a day) may go together.

    Returns:
        A gap per statistic; positive where the data's mean is the higher. A statistic that is the
        same constant everywhere has the gap 0. Few rows say little of their own spread, one row
        nothing: the model's counts where it is larger.
    """
    at_data = torch.stack([data[name].detach().double() for name in data])
    at_draws = torch.stack([draws[name].detach().double() for name in data])
    smoothed, _ = psis(log_weights.double())
    weights = torch.where(smoothed == -math.inf, 0.0, smoothed.exp())
    # A statistic may be -inf (log of no mass) where the weight is zero.
    at_draws = torch.where(weights == 0, 0.0, at_draws)
    mean = at_draws @ weights
    importance = ((at_draws - mean[:, None]) * weights).square().sum(-1)
    n_data = at_data.shape[-1]
    squared_error = mean_squared_error(at_data, groups)
    variance = mean_squared_error(at_data) * n_data
    if n_data < FEW:
        of_model = (at_draws - mean[:, None]).square() @ weights
        variance = torch.fmax(variance, of_model)
        squared_error = torch.fmax(squared_error, of_model / n_data)
    sampling = squared_error * (1 + n_data / n_train if n_train else 1.0)
    difference = at_data.mean(-1) - mean
    # Rounding of a sum of constants is no difference.
    scale = at_data.abs().mean(-1) + mean.abs()
    difference = torch.where(difference.abs() <= 1e-6 * scale, 0.0, difference)
    z = _ratio(difference, (sampling + importance).sqrt())
    size = _ratio(difference, variance.sqrt())
    return {name: Gap(z[i].item(), size[i].item()) for i, name in enumerate(data)}


def mean_squared_error(
    rows: Float[Tensor, "k n"], groups: Int[Tensor, " n"] | None = None
) -> Float[Tensor, " k"]:
    """The squared standard error of each mean over rows: var / n if the rows are independent.

    Of one row it is not known, nan.

    With groups only these are independent: sum_g (sum_{i in g} (s_i - mean))^2 / n^2, times
    G / (G - 1) for G groups (the linearised ratio estimate; Cochran 1977, section 9.6).
    """
    n = rows.shape[-1]
    if groups is None:
        return rows.var(-1) / n if n > 1 else torch.full_like(rows[:, 0], math.nan)
    labels, group = groups.unique(return_inverse=True)
    centred = rows - rows.mean(-1, keepdim=True)
    sums = centred.new_zeros(len(rows), len(labels)).index_add(-1, group, centred)
    return sums.square().sum(-1) / n**2 * (len(labels) / (len(labels) - 1))


def moment_gaps(
    data: dict[str, Float[Tensor, " n"]],
    draws: dict[str, Float[Tensor, " m"]],
    log_weights: Float[Tensor, " m"],
    n_train: int = 0,
) -> dict[str, float]:
    """`compare_moments`, in standard errors only."""
    return {
        name: gap.z for name, gap in compare_moments(data, draws, log_weights, n_train).items()
    }


def family_threshold(m: int) -> float:
    """The |z| that the largest of `m` gaps of a perfect model passes with probability .0027.

    Three standard errors for one statistic; by Bonferroni's inequality for more.

    Examples:
        >>> round(family_threshold(1), 3), round(family_threshold(50), 2)
        (3.0, 4.04)
    """
    return -torch.special.ndtri(torch.tensor(LEVEL / (2 * m), dtype=torch.float64)).item()


def coordinate_names(model: EnergyModel) -> list[str]:
    """A name per unconstrained coordinate: the site's, with an index if it has several."""
    names = column_names({site.name: site.dim for site in model.sites.values()})
    return [label for site in model.sites for label in names[site]]


def site_statistics(
    model: EnergyModel, z: Float[Tensor, "n d"], like: Float[Tensor, "m d"]
) -> dict[str, Float[Tensor, " n"]]:
    """First and second moments of every unconstrained coordinate; cos and sin of an angle.

    Args:
        model: names the coordinates and says which are angles.
        z: unconstrained rows.
        like: rows that set the centre and scale in which squares are taken.
    """
    centre, scale = like.mean(0), like.std(0, correction=0)
    scale = torch.where(scale > 0, scale, 1.0)
    found = {}
    for j, name in enumerate(coordinate_names(model)):
        if model.circular[j]:
            found[f"cos {name}"], found[f"sin {name}"] = z[:, j].cos(), z[:, j].sin()
        else:
            u = (z[:, j] - centre[j]) / scale[j]
            found[name], found[f"{name}^2"] = u, u.square()
    return found


def trajectory_statistics(
    layout: Layout, data: Sites, draws: Sites
) -> tuple[dict[str, Float[Tensor, " n"]], dict[str, Float[Tensor, " m"]]]:
    """Few numbers of a trajectory, however long: averages over its time, and where it starts.

    Of vectors the time average of every coordinate and of its square, in the data's location and
    scale; of integers the share of time at each that at least ten trajectories visit. Constants
    are 0 everywhere.

    Returns:
        The statistics of the data and those of the draws, of the same names.
    """
    parts = zip(layout.pack(data), layout.pack(draws), strict=True)
    spaces = (layout.dynamics.space, layout.dynamics.actions)
    at_data: dict[str, Tensor] = {}
    at_draws: dict[str, Tensor] = {}
    for name, space, (mine, others) in zip(("states", "actions"), spaces, parts, strict=True):
        moments = _integer_shares if space.n else _time_moments
        moments(name, mine, others, at_data, at_draws)
        if name == "states":
            moments("start", mine[:, :1], others[:, :1], at_data, at_draws)
    return at_data, at_draws


def _time_moments(
    name: str, data: Tensor, draws: Tensor, at_data: dict[str, Tensor], at_draws: dict[str, Tensor]
) -> None:
    flat = data.double().flatten(0, 1)
    centre, spread = flat.mean(0), flat.std(0, correction=0)
    scale = torch.where(spread > 0, spread, 1.0)
    for x, found in ((data, at_data), (draws, at_draws)):
        u = (x.double() - centre) / scale
        for j in range(u.shape[-1]):
            found[f"{name}[{j}]"] = u[..., j].mean(1)
            found[f"{name}[{j}]^2"] = u[..., j].square().mean(1)


def _integer_shares(
    name: str, data: Tensor, draws: Tensor, at_data: dict[str, Tensor], at_draws: dict[str, Tensor]
) -> None:
    for k in torch.cat([data.flatten(), draws.flatten()]).unique().tolist():
        visits = [(x == k).any(1).double().mean().item() * len(data) for x in (data, draws)]
        if max(visits) >= VISITS:
            for x, found in ((data, at_data), (draws, at_draws)):
                found[f"{name} = {k}"] = (x == k).double().mean(1)


def _ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
    """The quotient, with 0 / 0 = 0: equal constants do not differ."""
    return torch.where(numerator == 0, 0.0, numerator / denominator)
