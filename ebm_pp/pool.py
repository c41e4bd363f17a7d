"""The pool of a round: rows of data, draws of q and of the base measure, each scored once.

The draws come from the defensive mixture log q_mix = log[(1 - alpha) q + alpha mu], an exact
density: where q misses, mu still places negatives, so the energy can't leak mass there unseen.
"""

import math
import time
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ebm_pp.density import EnergyModel, Sites
from ebm_pp.diagnostics import moment_gaps
from ebm_pp.generator import Generator
from ebm_pp.pareto import chain_statistics
from ebm_pp.partition import bridge, log_partition_from_weights
from ebm_pp.policy import PolicyGenerator
from ebm_pp.sampling import metropolis
from ebm_pp.stored import Data, at_most

CHAINS = 4  # independence-MH chains laid through the pool's draws
WATCHED = 4  # columns that ArviZ judges in a round, 5 ms each


class Pool(NamedTuple):
    """Rows in the order data, draws of q, draws of the base measure.

    Attributes:
        x: all rows.
        log_q: log q_mix of every row.
        n_data: rows of data.
        log_q_generator: log q alone, of the draws of q.
        step_log_q: log pi of every step of trajectories; None for other programs.
    """

    x: Sites
    log_q: Float[Tensor, " n"]
    n_data: int
    log_q_generator: Float[Tensor, " m"]
    step_log_q: Float[Tensor, "n T"] | None = None

    @property
    def draws(self) -> slice:
        """Where the draws of q are."""
        return slice(self.n_data, self.n_data + len(self.log_q_generator))


def pick(x: Data, rows: Int[Tensor, " m"] | slice) -> Sites:
    """The named rows of every site: where rows are read from a file, if they are in one."""
    return {name: value[rows] for name, value in x.items()}


def stack(*parts: Sites) -> Sites:
    """Rows of several draws, one after the other."""
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def n_rows(x: Data) -> int:
    """How many rows."""
    return len(next(iter(x.values())))


def require_finite(log_density: Tensor, pool: Pool) -> None:
    """A density must be a number at every row; -inf (no mass there) is one for draws."""
    bad = log_density.isnan() | (log_density == math.inf) | ~pool.log_q.isfinite()
    bad[: pool.n_data] |= log_density[: pool.n_data].isinf()
    if bad.any():
        row = int(bad.nonzero()[0])
        kind = "data" if row < pool.n_data else "a draw"
        raise FloatingPointError(
            f"log density {log_density[row].item()} and log q {pool.log_q[row].item()} at {kind} "
            f"({int(bad.sum())} rows of the pool)"
        )


@torch.no_grad()
def draw_pool(
    model: EnergyModel, generator: Generator, data: Data | None, size: int, base_share: float
) -> Pool:
    """`size` draws of the mixture, and at most `size` rows of the data, with their log q_mix."""
    if isinstance(generator, PolicyGenerator):
        return _draw_trajectories(generator, data, size)
    n_base = round(base_share * size) if model.proper else 0
    x_q, log_q = generator.rsample_and_log_prob(size - n_base)
    others = []
    n_data = 0
    if data is not None:
        others.append(at_most(data, size))
        n_data = n_rows(others[0])
    if n_base:
        others.append(model.sample_base(n_base))
    if not others:
        return Pool(x_q, log_q, 0, log_q)
    elsewhere = stack(*others)
    log_q_elsewhere = generator.log_prob(elsewhere)
    rows = [pick(elsewhere, slice(n_data)), x_q, pick(elsewhere, slice(n_data, None))]
    x = stack(*[part for part in rows if len(next(iter(part.values())))])
    log_q_all = torch.cat([log_q_elsewhere[:n_data], log_q, log_q_elsewhere[n_data:]])
    if n_base:
        share = n_base / size
        log_base = model.log_base(x)
        log_q_all = torch.logaddexp(log_q_all + math.log(1 - share), log_base + math.log(share))
    return Pool(x, log_q_all, n_data, log_q)


def _draw_trajectories(generator: PolicyGenerator, data: Data | None, size: int) -> Pool:
    """A pool of at most `size` demonstrations and `size` trajectories of the policy."""
    states, actions, step_log_q = generator.simulate(size)
    x = generator.layout.unpack(states, actions)
    log_q = step_log_q.sum(1)
    if data is None:
        return Pool(x, log_q, 0, log_q, step_log_q)
    some = at_most(data, size)
    step_log_q = torch.cat([generator.step_log_prob(some), step_log_q])
    return Pool(stack(some, x), step_log_q.sum(1), n_rows(some), log_q, step_log_q)


@torch.no_grad()
def diagnose_round(
    model: EnergyModel,
    pool: Pool,
    terms: dict[str, Float[Tensor, " n"]],
    held_out: Float[Tensor, " h"] | None,
    nu: float,
    n_train: int,
) -> dict[str, Any]:
    """ArviZ's view of a round, from the densities at hand: no new evaluation of the model.

    Args:
        model: says which sites are angles.
        pool: the round's pool.
        terms: every term of log p~ at every row of the pool.
        held_out: log p~ at held-out rows.
        nu: draws per datum in the offset's equation.
        n_train: rows of training data.

    Returns:
        One flat record: log Z and its error, ESS fraction and k-hat of the draws of q; r-hat,
        effective draws, mcse and acceptance of independence-MH chains over them; the exact offset
        and its gap to log Z; the largest moment gap and its term; held-out log-likelihood.
    """
    log_density = torch.stack(list(terms.values())).sum(0)
    draws, n_data = pool.draws, pool.n_data
    log_weights = log_density[draws] - pool.log_q_generator
    log_z = log_partition_from_weights(log_weights)
    x_draws = pick(pool.x, draws)
    info: dict[str, Any] = {
        "log_partition": log_z.value,
        "log_partition_se": log_z.standard_error,
        "ess": log_z.ess,
        "pareto_k": log_z.pareto_k,
        **_chain_summary(_watched(model, x_draws, terms, draws), log_weights),
        "offset": math.nan,
        "offset_gap": math.nan,
        "max_moment_gap": math.nan,
        "worst_term": "",
        "held_out": math.nan,
        "held_out_se": math.nan,
        "cpu_seconds": time.process_time(),
    }
    if n_data:
        mixture_weights = log_density - pool.log_q
        info["offset"] = bridge(mixture_weights[:n_data], mixture_weights[n_data:], nu)
        info["offset_gap"] = info["offset"] - log_z.value
        gaps = moment_gaps(
            {name: value[:n_data] for name, value in terms.items()},
            {name: value[draws] for name, value in terms.items()},
            log_weights,
            n_train,
        )
        worst = max(gaps, key=lambda name: abs(gaps[name]))
        info["max_moment_gap"], info["worst_term"] = gaps[worst], worst
    if held_out is not None:
        # With the base measure's draws: mass that q has not reached yet would flatter the score.
        covering = log_partition_from_weights(log_density[n_data:] - pool.log_q[n_data:])
        spread = held_out.std().item() if len(held_out) > 1 else math.nan
        error = spread / math.sqrt(len(held_out))
        info["held_out"] = held_out.mean().item() - covering.value
        info["held_out_se"] = math.hypot(error, covering.standard_error)
    return info


def _watched(
    model: EnergyModel, x: Sites, terms: dict[str, Tensor], draws: slice
) -> Float[Tensor, "n k"]:
    """What the chains are judged by: every coordinate, an angle by cos and sin.

    Of trajectories, whose coordinates are many and may be fixed, the cost features.
    """
    parts: list[Tensor] = []
    if model.layout is not None:
        columns = [term[draws] for name, term in terms.items() if name not in model.sites]
        return torch.stack([c for c in columns if c.std() > 0] or columns, -1)
    for name, value in x.items():
        flat = value.reshape(len(value), -1)
        parts += [flat.cos(), flat.sin()] if model.sites[name].circular else [flat]
    return torch.cat(parts, -1)


def _chain_summary(watched: Float[Tensor, "n k"], log_weights: Tensor) -> dict[str, float]:
    """r-hat, effective draws, mcse in sd, of the worst column watched."""
    if watched.shape[1] > WATCHED:  # those that the weights move most
        shares = torch.softmax(log_weights, 0)
        moved = (shares @ watched - watched.mean(0)).abs() / watched.std(0)
        watched = watched[:, moved.nan_to_num(0.0).topk(WATCHED).indices]
    steps = len(log_weights) // CHAINS
    index, acceptance = metropolis(log_weights[: steps * CHAINS].reshape(CHAINS, steps))
    values = watched[index]
    ess, rhat, mcse = chain_statistics(values)
    spread = values.flatten(0, 1).std(0).cpu().numpy()
    return {
        "acceptance": acceptance,
        "min_ess": float(ess.min()),
        "max_rhat": float(rhat.max()),
        "max_mcse": float((mcse / spread).max()),
    }
