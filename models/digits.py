"""Handwritten digits, 8 x 8 pixels of 17 grey levels: real data in 64 dimensions.

The 1,797 images that come with scikit-learn (`pip install scikit-learn`; no download). A grey
level g in 0 ... 16 becomes continuous by uniform jitter, p = (g + u) / 17 in (0, 1), and real by

    x = logit(a + (1 - 2 a) p),   a = 1e-3,

so that site `x` of shape (64,) lies in (-6.91, 6.91): without a, a black pixel would have an
exponential tail that a normal base does not cover. Densities of x become densities of p, whose
mean log is at most the log-likelihood of the 17 levels plus 64 log 17, by

    log density(p) = log density(x) + log_jacobian(x),   log|dx/dp|.

Use `Network` (network.py) as the program. One image in five is held out.

References:
    Alpaydin and Kaynak 1998, Optical recognition of handwritten digits, UCI repository, CC BY 4.0.
    Dinh et al. 2017, Real NVP, arXiv:1605.08803 (the logit transform).
"""

import math

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import logsigmoid

from ebm_pp.density import Sites

LEVELS = 17
ALPHA = 1e-3
HELD_OUT = 360  # images, one in five


def load_digits(seed: int = 0) -> tuple[Sites, Sites]:
    """The images made continuous, split at random.

    Args:
        seed: of the jitter and of the split.

    Returns:
        Training (1,437 rows) and held-out sites (360): `x`, shape (n, 64), in torch's default
        dtype.

    Raises:
        ModuleNotFoundError: scikit-learn is not installed.
    """
    random, levels = np.random.default_rng(seed), _levels()
    pixels = (levels + random.random(levels.shape)) / LEVELS
    rows = from_pixels(torch.from_numpy(pixels[random.permutation(len(pixels))]))
    rows = rows.to(torch.get_default_dtype())
    return {"x": rows[HELD_OUT:]}, {"x": rows[:HELD_OUT]}


def from_pixels(pixels: Float[Tensor, "n 64"]) -> Float[Tensor, "n 64"]:
    """The values of site `x` for pixels p in [0, 1]."""
    return torch.logit(ALPHA + (1 - 2 * ALPHA) * pixels)


def to_pixels(x: Sites) -> Float[Tensor, "n 64"]:
    """Pixels p of site `x`; a model's draws may lie slightly outside [0, 1]."""
    return (torch.sigmoid(x["x"]) - ALPHA) / (1 - 2 * ALPHA)


def log_jacobian(x: Sites) -> Float[Tensor, "n"]:
    """Log|dx/dp|, in float64: add it to a log density of x to have that of the pixels p."""
    rows = x["x"].double()
    log_slope = logsigmoid(rows) + logsigmoid(-rows)
    return math.log(1 - 2 * ALPHA) * rows.shape[1] - log_slope.sum(-1)


def _levels() -> np.ndarray:
    try:
        from sklearn import datasets
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "the digits come with scikit-learn, which is not installed.\n"
            "  Install it: pip install scikit-learn."
        ) from error
    return datasets.load_digits().data
