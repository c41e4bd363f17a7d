"""Neural transport: Pyro's NUTS in the generator's latent space, a second opinion on its draws.

    NUTS on -log p~(T(eps)) - log|det dT/deps|,      T the generator's map

It walks, so it can leave the draws of q; it is never part of training. Source: Hoffman et al.
2019, arXiv:1903.03704.
"""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from pyro.infer import MCMC, NUTS
from torch import Tensor

from ebm_pp.chains import Chains
from ebm_pp.counts import count
from ebm_pp.errors import GeneratorError
from ebm_pp.sampling import Fitted, log_density_of, require_fit, seeded
from ebm_pp.surroundings import trainable

__all__ = ["neutra_hmc"]


@trainable()
def neutra_hmc(
    fit: Fitted,
    n: int = 1000,
    chains: int = 4,
    warmup: int = 200,
    *,
    max_tree_depth: int = 6,
    seed: int | None = None,
) -> Chains:
    """Pyro's NUTS in the generator's latent space: a sampler that can leave the draws of q.

    The energy is evaluated one state at a time, about 10 to 100 times per draw: slow. Use it to
    check an important result.

    Args:
        fit: a fit whose generator offers `latent_to_sites` (a `FlowGenerator` does).
        n: draws in all, split over the chains.
        chains: number of chains, run one after the other from independent N(0, I) starts.
        warmup: steps per chain spent on step size and mass matrix, not returned.
        max_tree_depth: a trajectory has at most 2^depth leapfrog steps.
        seed: see the module.

    Raises:
        DataError: a number of draws, chains or steps is too small.
        GeneratorError: the generator has no latent space with known Jacobian.

    Source: Hoffman et al. 2019, arXiv:1903.03704.
    """
    require_fit("neutra_hmc", fit)
    to_sites = getattr(fit.generator, "latent_to_sites", None)
    if to_sites is None:
        raise GeneratorError(
            f"neutra_hmc: generator {type(fit.generator).__name__} has no `latent_to_sites`; "
            "expected a smooth map from R^d to the sites with its log-Jacobian.\n"
            "  Use a FlowGenerator, or independence_mh, which needs only draws and log q."
        )

    def potential(state: dict[str, Tensor]) -> Tensor:
        x, log_jacobian = to_sites(state["eps"].unsqueeze(0))
        return -(fit.model.log_density(x) + log_jacobian).squeeze(0)

    n, chains, warmup = count("n", n), count("chains", chains), count("warmup", warmup, 0)
    max_tree_depth = count("max_tree_depth", max_tree_depth)
    steps = max(n // chains, 1)
    with seeded(seed):
        with torch.no_grad():
            like = fit.generator.rsample_and_log_prob(1)[1]
        runs = [
            _nuts(
                potential, like.new_empty(fit.model.dim).normal_(), steps, warmup, max_tree_depth
            )
            for _ in range(chains)
        ]
    eps = torch.stack([states for states, _, _ in runs])
    with torch.no_grad():
        flat, _ = to_sites(eps.flatten(0, 1))
        log_q = fit.generator.log_prob(flat).reshape(chains, steps)
    log_density = log_density_of(fit.model, flat).reshape(chains, steps)
    accepted = torch.ones(chains, steps, dtype=torch.bool, device=eps.device)
    accepted[:, 1:] = (eps[:, 1:] != eps[:, :-1]).any(-1)
    values = {name: v.unflatten(0, (chains, steps)) for name, v in flat.items()}
    acceptance = sum(rate for _, rate, _ in runs) / chains
    return Chains(values, log_density, log_q, accepted, acceptance, sum(d for _, _, d in runs))


def _nuts(
    potential: Callable[[dict[str, Tensor]], Tensor],
    start: Float[Tensor, " d"],
    steps: int,
    warmup: int,
    max_tree_depth: int,
) -> tuple[Float[Tensor, "steps d"], float, int]:
    """One NUTS chain: its states, accepted fraction, and number of divergences."""
    found: dict[str, Any] = {}

    def record(kernel: NUTS, state: object, stage: str, step: int) -> None:
        if stage.startswith("Sample"):  # the kernel forgets its statistics when the run ends
            found.update(kernel.diagnostics())

    chain = MCMC(
        NUTS(potential_fn=potential, max_tree_depth=max_tree_depth),
        num_samples=steps,
        warmup_steps=warmup,
        initial_params={"eps": start},
        hook_fn=record,
        disable_progbar=True,
    )
    chain.run()
    rate, divergences = float(found["acceptance rate"]), len(found["divergences"])
    return chain.get_samples()["eps"], rate, divergences
