import math

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.func import jacrev, vmap

from ebm_pp.spline import RAW_BOUND, SMALLEST_BIN, rational_quadratic

F64 = torch.float64
BOUND = 5.0


def bounded(raw):
    return raw / (1 + (raw / RAW_BOUND) ** 2) ** 0.5


def raw_spline(bins, periodic, strength=1.0):
    return strength * torch.randn(3 * bins - (not periodic), dtype=F64)


@pytest.mark.parametrize("periodic", [False, True])
@pytest.mark.parametrize("bins", [1, 2, 8])
def test_spline_is_monotone_and_fills_its_box(bins, periodic):
    raw = raw_spline(bins, periodic)
    x = torch.linspace(-BOUND, BOUND, 20_001, dtype=F64)
    for inverse in (False, True):
        y, log_slope = rational_quadratic(
            x, raw[:, None].expand(-1, len(x)), BOUND, inverse=inverse
        )
        assert (y.diff() > 0).all()
        torch.testing.assert_close(y[[0, -1]], x[[0, -1]])
        rise = (log_slope.exp()[1:] + log_slope.exp()[:-1]) / 2 * x.diff()  # the integral of dy/dx
        assert rise.sum().item() == pytest.approx(2 * BOUND, rel=1e-3)


@pytest.mark.parametrize("periodic", [False, True])
def test_spline_meets_its_knots_with_their_slopes(periodic):
    bins = 5
    raw = raw_spline(bins, periodic)
    soft = bounded(raw)
    fractions = soft[: 2 * bins].reshape(2, bins).softmax(-1)
    sizes = 2 * BOUND * (SMALLEST_BIN + (1 - bins * SMALLEST_BIN) * fractions)
    x_k, y_k = sizes.cumsum(-1)[:, :-1] - BOUND  # inner knots
    slopes = soft[2 * bins :].exp()[1 if periodic else 0 :]
    for inverse, (start, end) in ((False, (x_k, y_k)), (True, (y_k, x_k))):
        for side in (-1e-11, 1e-11):
            y, log_slope = rational_quadratic(
                start + side, raw[:, None].expand(-1, bins - 1), BOUND, inverse=inverse
            )
            torch.testing.assert_close(y, end, rtol=0, atol=1e-8)
            expected = -slopes.log() if inverse else slopes.log()
            torch.testing.assert_close(log_slope, expected, rtol=0, atol=1e-7)


def textbook(x, raw, *, inverse):
    """The spline of one box as Durkan et al. write it, differentiated by autograd."""
    bins = (raw.shape[-2] + 1) // 3
    soft = bounded(raw)
    shares = soft[..., : 2 * bins, :].unflatten(-2, (2, bins)).softmax(-2)
    sizes = 2 * BOUND * (SMALLEST_BIN + (1 - bins * SMALLEST_BIN) * shares)
    left = sizes.cumsum(-2) - sizes - BOUND
    slopes = soft[..., 2 * bins :, :].exp()
    one = torch.ones_like(x).unsqueeze(-2)
    ends = (slopes, slopes[..., :1, :]) if raw.shape[-2] == 3 * bins else (one, slopes, one)
    slopes = torch.cat(ends, -2)
    inside = x.abs() <= BOUND
    point = torch.where(inside, x, 0.0)
    k = (point.unsqueeze(-2) >= left[..., int(inverse), 1:, :]).sum(-2, keepdim=True)
    w, h, x_k, y_k, d_k, d_next = (
        columns.gather(-2, k).squeeze(-2)
        for columns in (
            sizes[..., 0, :, :], sizes[..., 1, :, :], left[..., 0, :, :], left[..., 1, :, :],
            slopes[..., :-1, :], slopes[..., 1:, :],
        )
    )  # fmt: skip
    s = h / w
    bend = d_k + d_next - 2 * s
    if inverse:
        rise = point - y_k
        a, b, c = h * (s - d_k) + rise * bend, h * d_k - rise * bend, -s * rise
        xi = 2 * c / (-b - (b.square() - 4 * a * c).sqrt())
    else:
        xi = (point - x_k) / w
    both = xi * (1 - xi)
    below = s + bend * both
    slope = s.square() * (d_next * xi.square() + 2 * s * both + d_k * (1 - xi).square())
    log_slope = slope.log() - 2 * below.log()
    if inverse:
        y, log_slope = x_k + w * xi, -log_slope
    else:
        y = y_k + h * (s * xi.square() + d_k * both) / below
    return torch.where(inside, y, x), torch.where(inside, log_slope, 0.0)


SPLINES = [
    pytest.param(bins, periodic, inverse, id=f"{bins}-{'circle' if periodic else 'line'}-{way}")
    for bins in (1, 2, 8)
    for periodic in (False, True)
    for way, inverse in (("forward", False), ("inverse", True))
]


def two_splines(bins, periodic, *, n=200, strength=1.5):
    """Points of two coordinates, one in six of them outside the box, each with its own spline."""
    x = 1.2 * BOUND * (2 * torch.rand(2, n, dtype=F64) - 1)
    return x, strength * torch.randn(2, 3 * bins - (not periodic), n, dtype=F64)


def gradients(spline, x, raw, *, inverse):
    """Of a sum with a weight of its own for every number: no two errors cancel."""
    x, raw = x.clone().requires_grad_(), raw.clone().requires_grad_()
    y, log_slope = spline(x, raw, inverse=inverse)
    torch.manual_seed(1)
    loss = (torch.randn_like(x) * y + torch.randn_like(x) * log_slope).sum()
    return torch.autograd.grad(loss, (x, raw))


def ours(x, raw, *, inverse):
    return rational_quadratic(x, raw, BOUND, inverse=inverse)


@pytest.mark.parametrize(("bins", "periodic", "inverse"), SPLINES)
def test_spline_against_the_textbook(bins, periodic, inverse):
    x, raw = two_splines(bins, periodic)
    for got, expected in zip(
        ours(x, raw, inverse=inverse), textbook(x, raw, inverse=inverse), strict=True
    ):
        torch.testing.assert_close(got, expected, rtol=1e-11, atol=1e-11)
    for got, expected in zip(
        gradients(ours, x, raw, inverse=inverse),
        gradients(textbook, x, raw, inverse=inverse),
        strict=True,
    ):
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("bins", "periodic", "inverse"), SPLINES)
def test_spline_gradients_against_difference_quotients(bins, periodic, inverse):
    x, raw = two_splines(bins, periodic, n=6, strength=1.0)
    x[:, :2] = BOUND * torch.tensor([1.01, -1.01])  # gradient one to x, none to raw
    inputs = (x.requires_grad_(), raw.requires_grad_())
    assert torch.autograd.gradcheck(lambda *args: ours(*args, inverse=inverse), inputs)
    dx, draw = torch.autograd.grad(
        sum(out.sum() for out in ours(*inputs, inverse=inverse)), inputs
    )
    assert (dx[:, :2] == 1).all()
    assert (draw[..., :2] == 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize(("bins", "periodic", "inverse"), SPLINES)
def test_dy_dx_is_the_slope_at_knots_and_ends_too(bins, periodic, inverse, dtype):
    raw = raw_spline(bins, periodic, strength=0.5).to(dtype)
    shares = bounded(raw[: 2 * bins].double()).reshape(2, bins).softmax(-1)
    sizes = 2 * BOUND * (SMALLEST_BIN + (1 - bins * SMALLEST_BIN) * shares)
    knots = sizes.cumsum(-1)[int(inverse), :-1] - BOUND
    ends = torch.tensor([-BOUND, BOUND, -BOUND - 1, BOUND + 1], dtype=F64)
    x = torch.cat([knots, ends]).to(dtype).requires_grad_()
    raw = raw[:, None].repeat(1, len(x)).requires_grad_()
    y, log_slope = ours(x, raw, inverse=inverse)
    (dx,) = torch.autograd.grad(y.sum(), x, retain_graph=True)
    torch.testing.assert_close(dx, log_slope.exp(), rtol=1e-4 if dtype != F64 else 1e-12, atol=0)
    (draw,) = torch.autograd.grad(y.sum() + log_slope.sum(), raw)
    assert draw.dtype == dtype
    assert draw.isfinite().all()


@pytest.mark.parametrize("inverse", [False, True])
def test_transforms_see_the_same_gradients(inverse):
    x, raw = two_splines(4, periodic=False, n=5)
    jacobians = vmap(
        jacrev(
            lambda x, raw: torch.stack(ours(x[:, None], raw[..., None], inverse=inverse)), (0, 1)
        ),
        in_dims=(1, 2),
    )(x, raw)
    for of_row, weights in ((0, (1.0, 0.0)), (1, (0.0, 1.0))):
        inputs = (x.clone().requires_grad_(), raw.clone().requires_grad_())
        outputs = ours(*inputs, inverse=inverse)
        loss = sum(weight * out.sum() for weight, out in zip(weights, outputs, strict=True))
        for jacobian, gradient in zip(jacobians, torch.autograd.grad(loss, inputs), strict=True):
            summed = jacobian[:, of_row].sum((1, 2)).movedim(0, -1)
            torch.testing.assert_close(summed, gradient, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("of_raw", [False, True])
def test_second_derivatives(inverse, of_raw):
    def penalty(spline):
        x, raw = two_splines(4, periodic=False, n=20)
        inputs = (x.requires_grad_(), raw.requires_grad_(of_raw))
        torch.manual_seed(1)
        loss = sum((torch.randn_like(x) * out).sum() for out in spline(*inputs, inverse=inverse))
        (first,) = torch.autograd.grad(loss, x, create_graph=True)
        return torch.autograd.grad(first.square().sum(), inputs[: 1 + of_raw])

    torch.manual_seed(0)
    got = penalty(ours)
    torch.manual_seed(0)
    for one, other in zip(got, penalty(textbook), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("inverse", [False, True])
def test_wild_splines_keep_their_digits_in_float32(inverse):
    """The textbook's expressions cancel here: their float32 logarithms are NaN at some points."""
    x, raw = two_splines(8, periodic=False, n=4000, strength=5.0)
    x, raw = x.float(), raw.float()
    exact = textbook(x.double(), raw.double(), inverse=inverse)
    y, log_slope = ours(x, raw, inverse=inverse)
    assert (y - exact[0]).square().mean().sqrt() < 2e-5
    assert (log_slope - exact[1]).square().mean().sqrt() < 2e-4
    assert all(gradient.isfinite().all() for gradient in gradients(ours, x, raw, inverse=inverse))


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_no_seam_in_the_inverse_and_in_the_spline_at_its_ends(dtype):
    raw = raw_spline(6, periodic=True, strength=0.3).to(dtype)
    ends = torch.tensor([-math.pi, math.pi], dtype=dtype)
    for inverse in (False, True):
        y, log_slope = rational_quadratic(
            ends, raw[:, None].expand(-1, 2), math.pi, inverse=inverse
        )
        torch.testing.assert_close(y, ends)
        torch.testing.assert_close(log_slope[0], log_slope[1], rtol=0, atol=1e-4)
        expected = bounded(raw)[12:13] * (-1 if inverse else 1)
        torch.testing.assert_close(log_slope[:1], expected, rtol=0, atol=1e-4)  # not that of x = y


def inside_out(x, raw):
    """Both ways and all gradients, as one list."""
    raw = raw.detach().clone().requires_grad_()
    found = [*rational_quadratic(x, raw, BOUND, inverse=False)]
    found += rational_quadratic(x, raw, BOUND, inverse=True)
    return [*found, *torch.autograd.grad(sum(out.sum() for out in found), raw)]


def in_fake_mode(x, raw):
    with FakeTensorMode(allow_non_fake_inputs=True):
        assert isinstance(inside_out(x, raw)[-1], FakeTensor)


def in_inference_mode(x, raw):
    with torch.inference_mode():
        rational_quadratic(x, raw, BOUND, inverse=False)


def under_vmap(x, raw):
    vmap(lambda x, raw: rational_quadratic(x, raw, BOUND, inverse=True))(x[None], raw[None])


def on_no_device(x, raw):
    with torch.device("meta"):
        inside_out(x.to("meta"), raw.to("meta"))


def in_place(x, raw):
    for out in inside_out(x, raw):
        out.detach().zero_()


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize(
    "before", [in_fake_mode, in_inference_mode, under_vmap, on_no_device, in_place]
)
def test_a_call_in_another_mode_changes_no_later_one(before, dtype):
    """Sizes that no other test has, so that nothing is kept from one of them."""
    bins = 41 + (dtype == F64)
    torch.manual_seed(0)
    x, raw = 3 * torch.randn(20, dtype=dtype), torch.randn(3 * bins, 20, dtype=dtype)
    before(x, raw)
    found = inside_out(x, raw)
    before(x, raw)
    for one, again in zip(found, inside_out(x, raw), strict=True):
        assert torch.equal(one, again)
        assert not one.is_inference()
    y, log_slope = textbook(x, raw, inverse=False)
    torch.testing.assert_close(found[0], y, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(found[1], log_slope, rtol=1e-2, atol=1e-2)
