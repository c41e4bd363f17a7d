"""Models side by side on held-out rows, in the layout of ArviZ's `compare`.

A fit's normalised log density of row i is l_i = log p~(x_i) - log Z, and log Z is itself an
estimate. The expected log predictive density of n rows and its error are

    elpd = sum_i l_i,    se^2 = n^2 [mse(mean l) + se(log Z)^2],

mse the squared standard error of a mean over rows (or groups of them). Two models see the same
rows, so their difference is taken row by row, and both their errors of log Z stay in it:

    dse^2 = n^2 [mse(mean (l - l')) + se(log Z)^2 + se(log Z')^2].
"""

import math
from collections.abc import Mapping
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from ebm_pp.errors import DataError
from ebm_pp.labels import Labels, rows_and_labels
from ebm_pp.moments import mean_squared_error
from ebm_pp.partition import log_partition_from_weights
from ebm_pp.sampling import Fitted, log_density_of, propose, require_fit, seeded

STEPS = 1000  # of the weights' fixed point


def compare(
    fits: Mapping[str, Fitted],
    held_out: Mapping[str, Any],
    *,
    n: int = 20_000,
    groups: Labels | None = None,
    seed: int | None = 0,
) -> pd.DataFrame:
    """Fits ranked by the log-likelihood of rows that none of them was trained on.

    All programs must have the same sites: log densities are in the units of these.

    Args:
        fits: by name, two at least.
        held_out: rows of every site; of more than 100,000 so many are taken.
        n: draws of each generator, for log Z.
        groups: a label per row; only rows of different groups count as independent.
        seed: of the draws; the global random stream is left alone.

    Returns:
        A row per fit, the best first, as `arviz_stats.compare` has it (so `arviz_plots`'
        `plot_compare` draws it): `rank`; `elpd`, nats summed over rows; `p`, always nan (there is
        no posterior of parameters here); `elpd_diff`, how far below the best; `weight`, of the
        mixture of the fits with the highest held-out likelihood (stacking; Yao et al. 2018,
        arXiv:1704.02030); `se` and `dse`, of `elpd` and `elpd_diff`, errors of log Z included;
        `warning`, whether the weights behind log Z are too heavy-tailed for its error to be
        trusted; and `log_partition_se`, in nats a row.

    Raises:
        DataError: fewer than two fits, the rows do not fit a program, or groups are not one
            label a row.
        ProgramError: most draws have no density.

    Examples:
        >>> compare({"energy": result, "other": other}, held_out)  # doctest: +SKIP
    """
    _require_comparable(fits)
    scores, errors, warnings = [], [], []
    for fit in fits.values():
        with seeded(seed):
            log_z = log_partition_from_weights(propose(fit, n).log_weights)
        rows, labels = rows_and_labels(fit.model, held_out, groups)
        scores.append(log_density_of(fit.model, rows).double().cpu() - log_z.value)
        errors.append(log_z.standard_error)
        warnings.append(log_z.heavy or not log_z.agrees)
    each = torch.stack(scores)
    rows_n = each.shape[1]
    squared = torch.tensor(errors, dtype=torch.float64).square()
    elpd = each.sum(1)
    best = int(elpd.argmax())
    difference = mean_squared_error(each[best] - each, labels) + squared + squared[best]
    difference[best] = 0.0
    table = pd.DataFrame(
        {
            "elpd": elpd,
            "p": math.nan,
            "elpd_diff": elpd[best] - elpd,
            "weight": _stacking(each),
            "se": rows_n * (mean_squared_error(each, labels) + squared).sqrt(),
            "dse": rows_n * difference.sqrt(),
            "warning": warnings,
            "log_partition_se": errors,
        },
        index=list(fits),
    ).sort_values("elpd", ascending=False)
    table.insert(0, "rank", range(len(fits)))
    return table


def _require_comparable(fits: Mapping[str, Fitted]) -> None:
    """Refuses what is not two fits or more of the same sites."""
    if not isinstance(fits, Mapping):
        raise DataError(
            f"compare was given a {type(fits).__name__}; expected a dict of fits by name.\n  Pass "
            '{"one": fit, "other": other_fit}.'
        )
    for name, fit in fits.items():
        require_fit(f"compare: {name!r}", fit)
    if len(fits) < 2:
        raise DataError(
            f"compare: got {len(fits)} fits; expected two or more, by name.\n  Pass "
            '{"one": fit, "other": other_fit}.'
        )
    sites = {name: sorted(fit.model.sites) for name, fit in fits.items()}
    first = next(iter(fits))
    for name, names in sites.items():
        if names != sites[first]:
            raise DataError(
                f"fit {name!r} has the sites {names}, {first!r} has {sites[first]}; "
                "expected the same.\n  Log densities of different variables can't be compared."
            )


def _stacking(scores: Float[Tensor, "k n"]) -> Float[Tensor, " k"]:
    """Argmax over the simplex of sum_i log sum_k w_k exp l_ki, concave; by EM's fixed point."""
    weights = torch.full((len(scores),), 1 / len(scores), dtype=scores.dtype)
    for _ in range(STEPS):
        shares = torch.softmax(scores + weights.log()[:, None], 0).mean(1)
        if (shares - weights).abs().max() < 1e-9:
            break
        weights = shares
    return weights
