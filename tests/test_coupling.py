import math

import pytest
import torch
from torch.func import jacrev, vmap

from ebm_pp.coupling import FAR, LOG_SCALE_BOUND, Coupling

F64 = torch.float64
BOUND = 5.0
CASES = [
    pytest.param(d, sites, bins, id=f"{d}-{sites}-{'spline' if bins else 'affine'}")
    for d in (1, 2, 3, 5)
    for sites in ("line", "circle", "mixed")
    for bins in (0, 6)
    if not (d == 1 and sites == "mixed")
]


def angles(d, sites):
    """Which coordinates are angles; in `mixed` layers both kinds are moved and kept from d = 5."""
    if sites == "mixed":
        return torch.arange(d) // 2 % 2 == 0 if d > 2 else torch.tensor([False, True])
    return torch.full((d,), sites == "circle")


def layer(d, sites, bins, *, strength=0.2, complement=False):
    """A layer whose every parameter is random (its maps' raw numbers then have an sd of about 1
    on points of width 8); at strength 0 as it starts.
    """
    moved = (torch.arange(d) % 2 == 0) != (complement and d > 1)
    made = Coupling(moved, angles(d, sites), bins=bins, hidden=(16,), bound=BOUND).double()
    if strength:
        for parameter in made.parameters():
            torch.nn.init.normal_(parameter, std=strength)
    return made


def points(n, circular, width=8.0):
    """Inside and outside the splines' box; angles everywhere on the circle."""
    x = width * (2 * torch.rand(n, len(circular), dtype=F64) - 1)
    return torch.where(circular, x * math.pi / width, x)


def apart(x, y, circular):
    """The largest distance, on the circle along it."""
    turns = torch.where(circular, torch.round((x - y) / (2 * math.pi)), 0.0)
    return (x - y - 2 * math.pi * turns).abs().max().item()


@pytest.mark.parametrize("complement", [False, True])
@pytest.mark.parametrize(("d", "sites", "bins"), CASES)
def test_inverse_is_the_inverse(d, sites, bins, complement):
    f, circular = layer(d, sites, bins, complement=complement), angles(d, sites)
    x = points(500, circular)
    y, log_det = f(x)
    assert apart(x, y, circular) > 1e-3  # it does something
    back, log_det_back = f.inverse(y)
    assert apart(back, x, circular) < 1e-10
    torch.testing.assert_close(log_det_back, -log_det, rtol=0, atol=1e-9)
    forth, _ = f(f.inverse(x)[0])
    assert apart(forth, x, circular) < 1e-10
    assert (y[:, circular].abs() <= math.pi).all()


@pytest.mark.parametrize("direction", ["forward", "inverse"])
@pytest.mark.parametrize(("d", "sites", "bins"), CASES)
def test_log_det_against_the_jacobian(d, sites, bins, direction):
    f, circular = layer(d, sites, bins), angles(d, sites)
    x = points(100, circular)
    move = getattr(f, direction)
    jacobian = vmap(jacrev(lambda row: move(row[None])[0][0]))(x)
    torch.testing.assert_close(
        move(x)[1], torch.linalg.slogdet(jacobian).logabsdet, rtol=0, atol=1e-10
    )


@pytest.mark.parametrize(("d", "sites", "bins"), CASES)
def test_starts_as_the_identity(d, sites, bins):
    f, circular = layer(d, sites, bins, strength=0), angles(d, sites)
    x = points(200, circular)
    for move in (f.forward, f.inverse):
        y, log_det = move(x)
        assert apart(x, y, circular) < 1e-12
        torch.testing.assert_close(log_det, torch.zeros_like(log_det), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("d", "sites", "bins"), CASES)
def test_kept_coordinates_are_kept(d, sites, bins):
    f, circular = layer(d, sites, bins), angles(d, sites)
    x = points(50, circular)
    moved = torch.arange(d) % 2 == 0
    y, _ = f(x)
    assert torch.equal(y[:, ~moved], x[:, ~moved])
    assert (y[:, moved] != x[:, moved]).any(0).all()


def test_identity_outside_the_box():
    f = layer(2, "line", 6)
    x = torch.tensor([[-5.0000001], [5.001], [-7.0], [1e3], [-1e3]], dtype=F64)
    x = torch.cat([x, torch.linspace(-3, 3, 5, dtype=F64)[:, None]], -1)
    for move in (f.forward, f.inverse):
        y, log_det = move(x)
        assert torch.equal(y, x)
        assert torch.equal(log_det, torch.zeros_like(log_det))


def test_value_and_slope_are_continuous_at_the_box():
    f = layer(1, "line", 6, strength=2.0)
    x = torch.tensor([[-5 + 1e-9], [-5.0], [5.0], [5 - 1e-9]], dtype=F64)
    y, log_det = f(x)
    torch.testing.assert_close(y, x, rtol=0, atol=1e-8)
    torch.testing.assert_close(log_det, torch.zeros_like(log_det), rtol=0, atol=1e-5)


@pytest.mark.parametrize("bins", [0, 6])
def test_far_points_and_wild_parameters_stay_finite(bins):
    f = layer(2, "line", bins, strength=30.0)
    x = 1e3 * torch.tensor([[1.0, 1.0], [-1.0, 1.0], [1.0, -1.0], [-1.0, -1.0]], dtype=F64)
    for move in (f.forward, f.inverse):
        y, log_det = move(x)
        assert y.isfinite().all()
        assert (log_det.abs() <= LOG_SCALE_BOUND).all()
    there_and_back, _ = f.inverse(f(x)[0])
    torch.testing.assert_close(there_and_back, x, rtol=1e-9, atol=0)


# The circle ------------------------------------------------------------------------------------
def around_the_seam():
    """The same angle from the left, from the right, twice exactly, and a turn further."""
    turns = [math.pi - 1e-10, -math.pi + 1e-10, -math.pi, math.pi, 3 * math.pi, -5 * math.pi]
    return torch.tensor(turns, dtype=F64)


@pytest.mark.parametrize("bins", [0, 6])
@pytest.mark.parametrize("coordinate", [0, 1])  # moved, kept
def test_no_seam(bins, coordinate):
    f = layer(2, "circle", bins, strength=1.0)
    x = torch.full((6, 2), 0.7, dtype=F64)
    x[:, coordinate] = around_the_seam()
    y, log_det = f(x)
    torch.testing.assert_close(y.cos(), y[:1].cos().expand_as(y), rtol=0, atol=1e-7)
    torch.testing.assert_close(y.sin(), y[:1].sin().expand_as(y), rtol=0, atol=1e-7)
    torch.testing.assert_close(log_det, log_det[:1].expand_as(log_det), rtol=0, atol=1e-7)


@pytest.mark.parametrize("bins", [0, 6])
def test_rotating_the_circle_covers_it_once(bins):
    f = layer(1, "circle", bins, strength=0.5)
    x = torch.linspace(-math.pi, math.pi, 4001, dtype=F64)[:-1, None]
    y, log_det = f(x)
    assert ((y[:, 0].roll(-1) - y[:, 0]) % (2 * math.pi) < 0.1).all()  # forward, all the way
    density = log_det.exp().mean().item()  # of the pull-back of the uniform law, times 2 pi
    assert density == pytest.approx(1.0, abs=1e-3)


# Numbers ---------------------------------------------------------------------------------------
@pytest.mark.parametrize("bins", [0, 6])
@pytest.mark.parametrize("direction", ["forward", "inverse"])
@pytest.mark.parametrize("strength", [0.0, 0.2, 1.0])
def test_gradients_are_finite_everywhere(bins, direction, strength):
    f = layer(5, "mixed", bins, strength=strength)
    specials = torch.tensor(
        [0.0, BOUND, -BOUND, 1e3, -1e3, 1e-300, 4.999999999999, 2.5], dtype=F64
    )
    x = specials[:, None].expand(-1, 5).clone()
    x[:, angles(5, "mixed")] = torch.linspace(-math.pi, math.pi, 8, dtype=F64)[:, None]
    x.requires_grad_()
    y, log_det = getattr(f, direction)(x)
    (y.sum() + log_det.sum()).backward()
    assert x.grad.isfinite().all()
    for name, parameter in f.named_parameters():
        assert parameter.grad.isfinite().all(), name


@pytest.mark.parametrize(("d", "sites", "bins"), CASES)
def test_float32_round_trip(d, sites, bins):
    f, circular = layer(d, sites, bins, strength=0.15).float(), angles(d, sites)
    x = points(2000, circular).float()
    y, log_det = f(x)
    back, log_det_back = f.inverse(y)
    assert y.dtype == log_det.dtype == torch.float32
    assert apart(back, x, circular) < 1e-4
    assert (log_det + log_det_back).abs().max() < 1e-4


def test_a_layer_is_one_pass_of_its_conditioner():
    f = layer(5, "mixed", 6)
    passes = []
    f.conditioner[0].register_forward_hook(lambda *_: passes.append(1))
    x = points(10, angles(5, "mixed"))
    f(x)
    f.inverse(x)
    assert len(passes) == 2


def test_state_dict_round_trip():
    f, g = layer(5, "mixed", 6), layer(5, "mixed", 6, strength=0)
    g.load_state_dict(f.state_dict())
    x = points(20, angles(5, "mixed"))
    assert torch.equal(f(x)[0], g(x)[0])


def test_a_conditioner_sees_logarithms_far_out():
    """sign(x) B (1 + log(|x| / B)) beyond B = 10, x itself inside, with one slope at the seam."""
    made = Coupling(torch.tensor([False, True]), torch.zeros(2).bool(), hidden=()).double()
    with torch.no_grad():
        made.conditioner[-1].weight[0] = 0.7  # the shift is 0.7 times what it sees
    assert FAR == 10

    def seen(x):
        return made(torch.stack([x, torch.zeros_like(x)])[None])[0][0, 1] / 0.7

    x = torch.tensor([-1e8, -100.0, -10.01, -9.99, 0.3, 9.99, 27.0, 1e30], dtype=F64)
    expected = torch.tensor([math.copysign(10 * (1 + math.log(abs(v) / 10)), v) for v in x])
    expected = torch.where(x.abs() > 10, expected.double(), x)
    torch.testing.assert_close(vmap(seen)(x), expected, rtol=1e-7, atol=0)
    slope = vmap(jacrev(seen))(x)
    inside = x.abs() <= 10
    torch.testing.assert_close(slope, torch.where(inside, 1.0, 10 / x.abs()), rtol=1e-7, atol=0)
