"""The pool of a round: rows of data, draws of q, of the base measure mu and of the outskirts o.

The draws come from the defensive mixture log q_mix = log[(1 - alpha) q + alpha (.92 mu + .08 o)],
an exact density: where q misses, mu still places negatives, and beyond mu the outskirts do
(outskirts.py), so the energy can't leak mass there unseen. Each row is scored once. A draw without
a density (beyond its support, or where log p~ or log q is no number) is rejected: it stays in the
pool with weight zero, a good draw standing in for its values, and is counted.
"""

import math
import time
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ebm_pp.chains import metropolis
from ebm_pp.density import EnergyModel, Sites
from ebm_pp.generator import Generator
from ebm_pp.moments import compare_moments
from ebm_pp.outskirts import Outskirts
from ebm_pp.pareto import chain_statistics
from ebm_pp.partition import bridge, log_partition_from_weights, sandwich
from ebm_pp.policy import PolicyGenerator
from ebm_pp.sampling import log_ratio, with_stand_ins
from ebm_pp.stored import Data, at_most

CHAINS = 4  # independence-MH chains laid through the pool's draws
WATCHED = 4  # columns that ArviZ judges in a round, 5 ms each
OUTER = 0.08  # of the base measure's draws, those from the outskirts
LOST = 0.5  # a run ends when more of its draws are rejected


class Pool(NamedTuple):
    """Rows in the order data, draws of q, draws of the base measure, draws of the outskirts.

    Attributes:
        x: all rows.
        log_q: log q_mix of every row.
        n_data: rows of data.
        log_q_generator: log q alone, of the draws of q.
        rejected: which draws have no density, shape (n,); never rows of data.
        n_outer: draws of the outskirts; being ours, they are not counted if they are rejected.
        step_log_q: log pi of every step of trajectories; None for other programs.
    """

    x: Sites
    log_q: Float[Tensor, " n"]
    n_data: int
    log_q_generator: Float[Tensor, " m"]
    rejected: Bool[Tensor, " n"]
    n_outer: int = 0
    step_log_q: Float[Tensor, "n T"] | None = None

    @property
    def draws(self) -> slice:
        """Where the draws of q are."""
        return slice(self.n_data, self.n_data + len(self.log_q_generator))

    @property
    def rejected_share(self) -> float:
        """Rejected draws of q and of the base measure, as a fraction."""
        counted = self.rejected[self.n_data : len(self.rejected) - self.n_outer]
        return counted.double().mean().item()


def pick(x: Data, rows: Int[Tensor, " m"] | Bool[Tensor, " n"] | slice) -> Sites:
    """The named rows of every site: where rows are read from a file, if they are in one."""
    return {name: value[rows] for name, value in x.items()}


def stack(*parts: Sites) -> Sites:
    """Rows of several draws, one after the other."""
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def n_rows(x: Data) -> int:
    """How many rows."""
    return len(next(iter(x.values())))


@torch.no_grad()
def scored(
    model: EnergyModel, pool: Pool
) -> tuple[Pool, dict[str, Float[Tensor, " n"]], Float[Tensor, " n"]]:
    """Every term of log p~ at every row, and log p~: -inf where a draw is rejected.

    Returns:
        (pool, terms, log p~), draws whose log p~ is no number now rejected too.

    Raises:
        FloatingPointError: log p~ is not finite at a row of data, or most draws are rejected; the
            text names a row and a term.
    """
    terms = model.terms(pool.x)
    log_density = torch.stack(list(terms.values())).sum(0)
    at_data = ~log_density[: pool.n_data].isfinite()
    if at_data.any():
        raise FloatingPointError(_no_number("row", at_data, terms, log_density))
    bad = pool.rejected | log_density.isnan() | (log_density == math.inf)
    pool = pool._replace(rejected=bad)
    if pool.rejected_share > LOST:
        first = bad & ~at_data.new_zeros(1)
        raise FloatingPointError(
            f"{pool.rejected_share:.0%} of the draws have no density; "
            + _no_number("draw", first, terms, log_density)
        )
    return pool, terms, torch.where(bad, -math.inf, log_density)


def _no_number(
    what: str, bad: Bool[Tensor, " n"], terms: dict[str, Tensor], log_density: Tensor
) -> str:
    """Which row, and the term that spoils its density."""
    row = int(bad.nonzero()[0])
    name = next((k for k, term in terms.items() if not term[row].isfinite()), "")
    term = f": {name!r} is {terms[name][row].item()}" if name else ""
    of = "data" if what == "row" else "the pool"
    return f"the log density is {log_density[row].item()} at {what} {row} of {of}{term}"


@torch.no_grad()
def draw_pool(
    model: EnergyModel,
    generator: Generator,
    data: Data | None,
    size: int,
    base_share: float,
    outer: Outskirts | None = None,
) -> Pool:
    """`size` draws of the mixture, and at most `size` rows of the data, with their log q_mix.

    Args:
        model: gives the base measure, and says which draws are inside their supports.
        generator: q.
        data: rows; None for a given density.
        size: draws.
        base_share: alpha.
        outer: the outskirts; without them mu has their share.

    Raises:
        FloatingPointError: q has no density at a row of data, or no draw has one.
    """
    if isinstance(generator, PolicyGenerator):
        return _draw_trajectories(generator, data, size)
    n_all = min(round(base_share * size), size - 1)  # at least one draw is of q
    n_outer = round(OUTER * n_all) if outer is not None else 0
    n_base = n_all - n_outer if model.proper else 0
    x_q, log_q = generator.rsample_and_log_prob(size - n_base - n_outer)
    parts, n_data = [x_q], 0
    if data is not None:
        parts.insert(0, at_most(data, size))
        n_data = n_rows(parts[0])
    if n_base:
        parts.append(model.sample_base(n_base))
    if n_outer and outer is not None:
        parts.append(model.constrain(outer.sample(n_outer))[0])
    x = stack(*parts)
    bad = ~model.inside(x)
    bad[:n_data] = False
    of_q = slice(n_data, n_data + len(log_q))
    bad[of_q] |= ~log_q.isfinite()
    if bad.all():
        raise FloatingPointError("no draw has a density: all are outside their supports")
    x = with_stand_ins(x, bad)
    log_m = log_q
    if len(bad) > len(log_q):
        elsewhere = [slice(n_data), slice(of_q.stop, None)]
        log_m = generator.log_prob(stack(*[pick(x, rows) for rows in elsewhere]))
        log_m = torch.cat([log_m[:n_data], log_q, log_m[n_data:]])
    shares = [(model.log_base(x), n_base)] if n_base else []
    if n_outer and outer is not None:
        z, log_jacobian = model.unconstrain(x)
        shares.append((outer.log_prob(z) + log_jacobian, n_outer))
    if shares:
        log_m = log_m + math.log(len(log_q) / size)
        for log_other, n_other in shares:
            log_m = torch.logaddexp(log_m, log_other + math.log(n_other / size))
    lost = ~log_m.isfinite()
    if lost[:n_data].any():
        row = int(lost.nonzero()[0])
        raise FloatingPointError(f"log q is {log_m[row].item()} at row {row} of data")
    bad |= lost
    return Pool(x, torch.where(bad, 0.0, log_m), n_data, log_q, bad, n_outer)


def _draw_trajectories(generator: PolicyGenerator, data: Data | None, size: int) -> Pool:
    """A pool of at most `size` demonstrations and `size` trajectories of the policy."""
    states, actions, step_log_q = generator.simulate(size)
    x = generator.layout.unpack(states, actions)
    log_q = step_log_q.sum(1)
    bad = ~log_q.isfinite()
    if data is None:
        return Pool(x, log_q, 0, log_q, bad, 0, step_log_q)
    some = at_most(data, size)
    step_log_q = torch.cat([generator.step_log_prob(some), step_log_q])
    bad = torch.cat([bad.new_zeros(n_rows(some)), bad])
    return Pool(stack(some, x), step_log_q.sum(1), n_rows(some), log_q, bad, 0, step_log_q)


@torch.no_grad()
def diagnose_round(
    model: EnergyModel,
    pool: Pool,
    terms: dict[str, Float[Tensor, " n"]],
    log_density: Float[Tensor, " n"],
    held_out: Float[Tensor, " h"] | None,
    nu: float,
    n_train: int,
) -> dict[str, Any]:
    """ArviZ's view of a round, from the densities at hand: no new evaluation of the model.

    Args:
        model: says which sites are angles.
        pool: the round's pool.
        terms: every term of log p~ at every row of the pool.
        log_density: their sum, -inf where a draw is rejected (of `scored`, like the two before).
        held_out: log p~ at held-out rows.
        nu: draws per datum in the offset's equation.
        n_train: rows of training data.

    Returns:
        One flat record: log Z and its error, ESS fraction and k-hat of the draws of q; r-hat,
        effective draws, mcse and acceptance of independence-MH chains over them; the share of
        rejected draws; the exact offset and its gap to log Z; the largest moment gap and its term;
        held-out log-likelihood, and the least that it can be (log Z at its upper bound).
    """
    draws, n_data = pool.draws, pool.n_data
    log_weights = log_ratio(log_density[draws], pool.log_q_generator)
    log_z = log_partition_from_weights(log_weights)
    x_draws = pick(pool.x, draws)
    info: dict[str, Any] = {
        "log_partition": log_z.value,
        "log_partition_se": log_z.standard_error,
        "ess": log_z.ess,
        "pareto_k": log_z.pareto_k,
        "heavy_tail": log_z.heavy,
        **_chain_summary(_watched(model, x_draws, terms, draws), log_weights),
        "rejected": pool.rejected_share,
        "offset": math.nan,
        "offset_gap": math.nan,
        "max_moment_gap": math.nan,
        "worst_term": "",
        "held_out": math.nan,
        "held_out_se": math.nan,
        "held_out_least": math.nan,
        "cpu_seconds": time.process_time(),
    }
    if n_data:
        mixture_weights = log_density - pool.log_q
        info["offset"] = bridge(mixture_weights[:n_data], mixture_weights[n_data:], nu)
        info["offset_gap"] = info["offset"] - log_z.value
        gaps = compare_moments(
            {name: value[:n_data] for name, value in terms.items()},
            {name: value[draws] for name, value in terms.items()},
            log_weights,
            n_train,
        )
        worst = max(gaps, key=lambda name: abs(gaps[name].z))
        info["max_moment_gap"], info["worst_term"] = gaps[worst].z, worst
    if held_out is not None:
        # With all draws of the pool: mass that q has not reached yet would flatter the score.
        of_mixture = log_ratio(log_density[n_data:], pool.log_q[n_data:])
        covering = log_partition_from_weights(of_mixture)
        spread = held_out.std().item() if len(held_out) > 1 else math.nan
        error = spread / math.sqrt(len(held_out))
        info["held_out"] = held_out.mean().item() - covering.value
        info["held_out_se"] = math.hypot(error, covering.standard_error)
        info["held_out_least"] = held_out.mean().item() - sandwich(of_mixture)[1]
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
        flat, site = value.reshape(len(value), -1), model.sites[name]
        turned = flat * (2 * math.pi / site.period)
        parts += [turned.cos(), turned.sin()] if site.circular else [flat]
    return torch.cat(parts, -1)


def _chain_summary(watched: Float[Tensor, "n k"], log_weights: Tensor) -> dict[str, float]:
    """r-hat, effective draws, mcse in sd, of the worst column watched."""
    if not (log_weights > -math.inf).any() or len(log_weights) < CHAINS:
        return dict.fromkeys(("acceptance", "min_ess", "max_rhat", "max_mcse"), math.nan)
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
