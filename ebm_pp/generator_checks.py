"""Whether a generator keeps its protocol, asked of a few of its draws before a run."""

import torch

from ebm_pp.config import FitConfig
from ebm_pp.density import EnergyModel
from ebm_pp.errors import GeneratorError
from ebm_pp.generator import Generator
from ebm_pp.pool import pick
from ebm_pp.support import describe


@torch.no_grad()
def check_generator(
    model: EnergyModel, generator: Generator, config: FitConfig, has_data: bool
) -> None:
    """The three names exist, agree with each other, and suffice for the chosen loss."""
    if not isinstance(generator, Generator):
        raise GeneratorError(
            f"{type(generator).__name__} is no generator; expected the names has_rsample, "
            "rsample_and_log_prob and log_prob.\n  Wrap it in an object that has them."
        )
    if not generator.has_rsample and config.generator_loss in ("reverse_kl", "jensen"):
        raise GeneratorError(
            f"generator_loss={config.generator_loss!r} needs draws that carry a gradient, but "
            f"{type(generator).__name__}.has_rsample is False.\n"
            "  Use generator_loss='weighted_forward_kl' or 'score_function'."
        )
    if config.generator_loss == "jensen" and not has_data:
        raise GeneratorError(
            "generator_loss='jensen' compares with data, but none were given.\n"
            "  Use 'weighted_forward_kl' or 'reverse_kl' for a given density."
        )
    x, log_q = generator.rsample_and_log_prob(64)
    if set(x) != set(model.sites):
        raise GeneratorError(
            f"{type(generator).__name__} draws the sites {sorted(x)}; expected the program's, "
            f"{sorted(model.sites)}.\n  Return a dict with one entry per site."
        )
    for name, site in model.sites.items():
        got, expected = x[name], (64, *site.shape)
        whole = site.trajectory is not None and site.trajectory.space.n
        dtype = torch.long if whole else model.dtype
        if tuple(got.shape) != expected or got.dtype != dtype:
            raise GeneratorError(
                f"site {name!r}: {type(generator).__name__} draws {got.dtype} of shape "
                f"{tuple(got.shape)}; expected {dtype} of shape {expected}.\n"
                "  Most likely a trailing dimension or a default dtype: reshape or convert."
            )
    kept = model.inside(x) & log_q.isfinite()
    if not kept.any():
        raise GeneratorError(
            f"{type(generator).__name__}: none of 64 draws is inside the supports "
            f"{ {name: describe(site.support) for name, site in model.sites.items()} } with a "
            "finite log q; expected most.\n  Most likely it draws unconstrained numbers, or its "
            "start is too wide: return draws of the sites."
        )
    again, log_q = generator.log_prob(pick(x, kept)), log_q[kept]
    if log_q.shape != again.shape or not torch.allclose(log_q, again, rtol=1e-3, atol=1e-2):
        raise GeneratorError(
            f"{type(generator).__name__}: log q of its own draws, shape {tuple(log_q.shape)}, "
            f"differs from log_prob, shape {tuple(again.shape)}.\n  Most likely a log-determinant "
            "has the wrong sign, or a Jacobian of the support is missing; expected equal `(n,)`."
        )
