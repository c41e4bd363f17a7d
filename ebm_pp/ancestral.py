"""Draws of the base measure, site by site in program order.

Sites that depend on no other are drawn at once. The rest is drawn given them: under `vmap` with
different random numbers; where a sampler has no batching rule, inside an outer plate, kept only
if the model gives every draw the density that the plate drew it with; else draw by draw.
"""

import warnings
from typing import Literal

import torch
from torch import Tensor

from ebm_pp.checks import agree
from ebm_pp.program import Message, Runner, Sites, in_plate
from ebm_pp.verify import Compiled, evaluate


def draw_base(run: Runner, compiled: Compiled, n: int) -> Sites:
    """Ancestral draws of the base measure from the global random stream.

    Args:
        run: Runs the program once.
        compiled: The record of `compile_program`; every site is proper.
        n: Number of draws.

    Returns:
        Draws, each value `(n, *site_shape)`.
    """
    first: Sites = {}

    def at_once(msg: Message) -> Tensor:
        name, fn = msg["name"], msg["fn"]
        if name not in compiled.roots:
            return fn.sample()
        first[name] = fn.sample((n,))
        return first[name][0]

    run(at_once, lambda msg: None)
    if len(first) == len(compiled.sites):
        return first
    drawn = (
        _by_vmap(run, first, "error")
        or _by_plate(run, compiled, n)
        or _by_vmap(run, first, "ignore")
    )
    if not drawn:
        rows = [_descend(run, {name: v[i] for name, v in first.items()}) for i in range(n)]
        drawn = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
    return {name: drawn[name] for name in compiled.sites}


def _descend(run: Runner, given: Sites) -> Sites:
    """One draw of all sites, given some."""
    drawn = dict(given)

    def supply(msg: Message) -> Tensor:
        if msg["name"] not in drawn:
            drawn[msg["name"]] = msg["fn"].sample()
        return drawn[msg["name"]]

    run(supply, lambda msg: None)
    return drawn


def _by_vmap(run: Runner, first: Sites, slow: Literal["error", "ignore"]) -> Sites | None:
    """Under `vmap`; torch warns where an operation falls back to a loop over draws."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter(slow, UserWarning)
            descend = torch.func.vmap(lambda given: _descend(run, given), randomness="different")
            return descend(first)
    except (RuntimeError, UserWarning):  # a sampler without a batching rule
        return None


def _by_plate(run: Runner, compiled: Compiled, n: int) -> Sites | None:
    drawn: Sites = {}

    def supply(msg: Message) -> Tensor:
        value = msg["fn"].sample()
        drawn[msg["name"]] = value.reshape(n, *compiled.sites[msg["name"]].shape)
        return value

    try:
        terms = in_plate(run, supply, n, compiled.nesting)
        expected = evaluate(run, compiled, drawn)
    except (RuntimeError, ValueError):  # a program that does not broadcast
        return None
    good = all(agree(terms[name], expected[name], 1e-4, 1e-9) for name in compiled.sites)
    return drawn if good else None
