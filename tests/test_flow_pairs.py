"""Of any two coordinates some layer moves one given the other, in any number of dimensions."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch

from ebm_pp import Circle, EnergyModel, FlowGenerator
from ebm_pp.coupling_masks import moved_by_layers
from ebm_pp.given import AFFINE

DEFAULT = {d: (2, 2 if d == 2 else 4 if d <= 14 else 5) for d in range(2, 129)}


def unmixed(masks):
    """Pairs (i, j) that no layer tells apart."""
    moved = torch.stack(masks).int()
    apart = (moved[:, :, None] != moved[:, None, :]).any(0)
    d = moved.shape[1]
    return int((~apart & ~torch.eye(d, dtype=torch.bool)).sum())


@pytest.mark.parametrize("affine", [2, AFFINE])
def test_every_pair_is_mixed_at_the_default_layers(affine):
    for d, (_, splines) in DEFAULT.items():
        assert unmixed(moved_by_layers(d, affine, splines)) == 0, d


@pytest.mark.parametrize(
    "layers", [(2, 0), (0, 2), (6, 0), (0, 6), (3, 3), (1, 1), (8, 4), (2, 7)]
)
def test_every_pair_is_mixed_whatever_the_layers(layers):
    for d in (2, 3, 5, 9, 17, 40, 64):
        masks = moved_by_layers(d, *layers)
        assert unmixed(masks) == 0, d
        assert all(len(mask) == d for mask in masks)


def normal(d):
    return EnergyModel(lambda: pyro.sample("x", dist.Normal(torch.zeros(d), 2.0).to_event(1)))


@pytest.mark.parametrize("d", [2, 3, 9, 16, 33])
def test_a_conditioner_sees_the_other_of_every_pair(d):
    """By numbers: the mixed second derivative of log q of some direction of every pair."""
    torch.manual_seed(0)
    flow = FlowGenerator(normal(d)).double()
    with torch.no_grad():
        for p in flow.parameters():
            p.add_(0.3 * torch.randn_like(p))
    x = torch.randn(d, dtype=torch.float64)
    with torch.enable_grad():
        hessian = torch.autograd.functional.hessian(
            lambda v: flow.log_prob({"x": v[None]}).sum(), x
        )
    off = hessian[~torch.eye(d, dtype=torch.bool)]
    assert (off.abs() > 1e-9).all()


def test_angles_and_lines_are_mixed_too():
    def program():
        pyro.sample("a", Circle().expand((6,)).to_event(1))
        pyro.sample("x", dist.Normal(torch.zeros(6), 1.0).to_event(1))

    flow = FlowGenerator(EnergyModel(program))
    index = torch.arange(12)
    assert unmixed([torch.isin(index, layer.moved) for layer in flow.layers]) == 0


def ring(n, generator):
    turn = 2 * math.pi * torch.rand(n, generator=generator)
    radius = 2 + 0.1 * torch.randn(n, generator=generator)
    return torch.stack([radius * turn.cos(), radius * turn.sin()], 1)


def test_a_ring_in_a_pair_that_was_blind():
    """KL of the truth from the flow: 1.15 nats where no layer tells the two apart."""
    d, pair, generator = 9, [0, 2], torch.Generator().manual_seed(0)
    torch.manual_seed(0)

    def draw(n):
        x = torch.randn(n, d, generator=generator)
        x[:, pair] = ring(n, generator)
        return x

    flow = FlowGenerator(normal(d), {"x": draw(4000)})
    adam = torch.optim.Adam(flow.parameters(), 4e-3)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(adam, 150)
    for _ in range(150):
        loss = -flow.log_prob({"x": draw(256)}).mean()
        adam.zero_grad()
        loss.backward()
        adam.step()
        decay.step()
    x = draw(4000)
    radius = x[:, pair].norm(dim=1)
    others = [k for k in range(d) if k not in pair]
    log_p = (
        dist.Normal(2.0, 0.1).log_prob(radius) - radius.log() - math.log(2 * math.pi)
        + dist.Normal(0.0, 1.0).log_prob(x[:, others]).sum(1)
    )  # fmt: skip
    with torch.no_grad():
        kl = (log_p - flow.log_prob({"x": x})).mean().item()
    assert kl < 0.5


# d, affine layers, splines: which coordinates each layer moves, written out
CODES = {
    (1, 2, 2): "1 1 1 1",
    (3, 2, 4): "101 010 110 001 101 010",
    (5, 2, 4): "10101 01010 10101 10010 01100 01011",
    (7, 2, 4): "1010101 0101010 1010101 1001011 0110011 0101100",
    (5, 8, 4): "10101 10101 10010 10010 01100 01100 01011 01011 10101 10010 01100 01011",
    (6, 1, 3): "101010 101001 100110 011010",
    (6, 3, 0): "101001 100110 011010",
    (9, 2, 3): "110111011 011101101 101001101 100110100 011010011",
    (20, 2, 4): "10101011011101010101 01010101110111111111 10101010101001101010 "
    "10010110100110100101 01100110011010011001 01011001101010010110",
}


@pytest.mark.parametrize("layers", CODES)
def test_the_same_settings_build_the_same_layers(layers):
    masks = ["".join(str(int(bit)) for bit in mask) for mask in moved_by_layers(*layers)]
    assert " ".join(masks) == CODES[layers]
