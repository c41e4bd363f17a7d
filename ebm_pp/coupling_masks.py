"""Which coordinates each layer of a flow moves, so that every pair of them meets.

A coupling layer moves some coordinates, given those that it keeps. The list of layers that move a
coordinate is its code: where two codes differ, one of the two is moved given the other.
"""

import math
from itertools import chain, combinations

import torch
from jaxtyping import Bool, Int
from torch import Tensor


def moved_by_layers(d: int, affine: int, splines: int) -> list[Bool[Tensor, " d"]]:
    """Which coordinates each layer moves: of the affine layers (more, if too few), of the splines.

    No two coordinates have one code, the list of layers that move them: of any two, some layer
    moves one and keeps the other. Where the spline layers have codes enough, it is one of these;
    the affine layers then make codes equally long as far as they can, so that nearly always either
    of the two is moved where the other is not. Every coordinate is moved by one of several affine
    layers too: a double well that none moved cost .25 nats. With two layers for every bit of the
    index, one moves the coordinates with that bit and one the rest.
    """
    if d == 1 or affine + splines == 0:  # nothing to meet
        return [torch.ones(d, dtype=torch.bool)] * (affine + splines)
    bits = (d - 1).bit_length()
    if 2 * bits <= (splines or affine):
        pairs = [(torch.arange(d) >> (i // 2 % bits)) & 1 for i in range(affine + splines)]
        return [bit == i % 2 for i, bit in enumerate(pairs)]
    while _n_apart(affine, splines) < d:
        affine += 1
    index = torch.arange(d)
    if splines < 2:
        return [*_codes(affine + splines, index)]
    turn = index // n_codes(splines)  # how often its code among the splines was given before
    of_splines = _codes(splines, index % n_codes(splines))
    if affine < 2:
        return [*((index + turn) % 2 == 0).expand(affine, -1), *of_splines]
    missing = (math.ceil((affine + splines) / 2) - of_splines.sum(0)).clamp(1, affine)
    of_affine = torch.empty(affine, d, dtype=torch.bool)
    for size in missing.unique().tolist():
        some = (missing == size).nonzero()[:, 0]
        nth = torch.arange(len(some)) % int((turn[some] == 0).sum()) % math.comb(affine, size)
        of_affine[:, some] = _codes(affine, nth + turn[some], size)
    return [*of_affine, *of_splines]


def n_codes(layers: int) -> int:
    """How many ways there are to move a coordinate in some layers but not in all."""
    return 2**layers - 2 if layers > 1 else layers + 1  # of a single one, to move it or not


def _n_apart(affine: int, splines: int) -> int:
    """How many coordinates `moved_by_layers` can give codes of their own."""
    if splines < 2:
        return n_codes(affine + splines)
    return 2**affine * n_codes(splines)


def _codes(
    layers: int, index: Int[Tensor, " d"], size: int | None = None
) -> Bool[Tensor, "layers d"]:
    """Codes by coordinate, those with `size` ones first, with half of the layers if not given.

    These are then complements in pairs. Codes that differ in half of their places or more come
    before others of their size, so that either of two coordinates is moved a quarter of the times
    where the other is not (Hamming's code, at eight).
    """
    middle = layers / 2 if size is None else size
    sizes = sorted(range(layers, -1, -1), key=lambda k: abs(k - middle))
    codes: dict[int, None] = {}
    for subset in chain.from_iterable(combinations(range(layers), k) for k in sizes):
        code = sum(2**layer for layer in subset)
        codes |= dict.fromkeys((code, 2**layers - 1 - code) if 2 * middle == layers else (code,))
        if len(codes) >= len(index) + 256:  # of very many, not all
            break
    first: list[int] = []
    for code in codes:
        if all((code ^ other).bit_count() >= layers / 2 for other in first):
            first.append(code)
    order = sorted(dict.fromkeys([*first, *codes]), key=lambda c: abs(c.bit_count() - middle))
    chosen = torch.tensor(order)[index % len(order)]
    return (chosen >> torch.arange(layers).unsqueeze(1)) & 1 == 1
