import copy
import functools
import math
import subprocess
import sys

import pyro
import pyro.distributions as dist
import pytest
import torch
from generators import GENERATORS, PROGRAMS, disturb, model_of, plane
from scipy.integrate import quad
from torch import nn
from torch.distributions import constraints
from torch.func import jacrev, vmap

from ebm_pp.circle import Circle
from ebm_pp.config import FitConfig
from ebm_pp.coupling_masks import _codes, moved_by_layers
from ebm_pp.density import EnergyModel
from ebm_pp.errors import GeneratorError
from ebm_pp.generator import FlowGenerator
from ebm_pp.sampling import log_partition
from ebm_pp.tilting import tilt
from ebm_pp.training import Status, fit

F64 = torch.float64


def normals(width):
    """A program of `width` independent coordinates."""

    def program():
        pyro.sample("x", dist.Normal(0.0, torch.full((width,), 1.5)).to_event(1))

    return program


def random_flow(model, strength=0.2, **settings):
    return disturb(FlowGenerator(model, hidden=(16,), bins=6, **settings).double(), strength)


@pytest.mark.parametrize("generator", [name for name in GENERATORS if "flow" in name[:4]])
@pytest.mark.parametrize("program", ["circle", "gust", "recipe"])
def test_flows_serve_the_circle(program, generator):
    assert GENERATORS[generator](model_of(program))  # no GeneratorError, so no test is skipped


@pytest.mark.parametrize("program", PROGRAMS)
def test_latent_space_against_the_jacobian(program):
    model = model_of(program)
    flow = random_flow(model, start=model.sample_base(200))

    def flat(eps):
        """The sites as one vector; of a simplex all parts but the last, as Pyro measures it."""
        x, _ = flow.latent_to_sites(eps[None])
        cut = {name: v[0, :-1] if name == "parts" else v[0] for name, v in x.items()}
        return torch.cat([value.reshape(-1) for value in cut.values()])

    eps = torch.randn(50, model.dim, dtype=F64)
    x, log_det = flow.latent_to_sites(eps)
    brute = torch.linalg.slogdet(vmap(jacrev(flat))(eps)).logabsdet
    torch.testing.assert_close(log_det, brute, rtol=0, atol=1e-8)
    log_normal = dist.Normal(0.0, 1.0).log_prob(eps).sum(-1)
    torch.testing.assert_close(flow.log_prob(x), log_normal - log_det, rtol=0, atol=1e-8)


def test_latent_space_of_a_student_t():
    flow = random_flow(model_of("recipe"), base="student_t")
    eps = torch.randn(50, 7, dtype=F64)
    x, log_det = flow.latent_to_sites(eps)
    heavy = flow._base().log_prob(eps)[:, -2:]  # y's; those of angle and bounded sites are normal
    log_base = dist.Normal(0.0, 1.0).log_prob(eps[:, :-2]).sum(-1) + heavy.sum(-1)
    torch.testing.assert_close(flow.log_prob(x), log_base - log_det, rtol=0, atol=1e-8)


def test_student_t_has_its_tail():
    flow = FlowGenerator(model_of("line"), base="student_t")
    df = 2.0
    x = torch.tensor([0.3, 30.0, -300.0], dtype=F64)
    expected = torch.distributions.StudentT(df).log_prob(x)  # splines do nothing out there
    torch.testing.assert_close(flow.log_prob({"x": x}), expected)
    flow.log_prob({"x": x}).sum().backward()
    assert flow.raw_df.grad.abs().item() > 0


# Far out ---------------------------------------------------------------------------------------
def every_support():
    pyro.sample("mu", dist.Normal(0.0, 1.0))
    pyro.sample("w", dist.MultivariateNormal(torch.zeros(2), torch.eye(2)))
    pyro.sample("free", dist.ImproperUniform(constraints.real, (2,), ()).to_event(1))
    two = dist.Categorical(torch.ones(2))
    pyro.sample("mix", dist.MixtureSameFamily(two, dist.StudentT(2.0, torch.zeros(2), 1.0)))
    pyro.sample("s", dist.LogNormal(0.0, 1.0))
    pyro.sample("below", dist.ImproperUniform(constraints.less_than(0.0), (), ()))
    pyro.sample("u", dist.Uniform(-1.0, torch.ones(2)).to_event(1))
    pyro.sample("parts", dist.Dirichlet(torch.ones(3)))
    pyro.sample("angle", dist.VonMises(0.0, 1.0))
    pyro.sample("corr", dist.LKJCholesky(3))


@functools.cache
def model_of_every_support(dtype):
    return EnergyModel(every_support).to(dtype)


def test_heavy_tails_are_those_of_the_real_line():
    model = model_of_every_support(F64)
    real = {"mu", "w", "free", "mix"}
    expected = [name in real for name, site in model.sites.items() for _ in range(site.dim)]
    flow = FlowGenerator(model, base="student_t")
    assert (~(flow.light | flow.circular)).tolist() == expected
    latent, log_base = flow._sample_base(4000)
    line = torch.distributions.StudentT(torch.tensor(2.0, dtype=F64)).log_prob(latent)
    line = torch.where(torch.tensor(expected), line, dist.Normal(0.0, 1.0).log_prob(latent))
    line = torch.where(flow.circular, -math.log(2 * math.pi), line)
    torch.testing.assert_close(log_base, line.sum(-1))
    log_base.sum().backward()
    assert (flow.raw_df.grad != 0).tolist() == expected
    farthest = latent.detach().abs().amax(0)
    assert (farthest[flow.light] < 6).all()
    assert (farthest[torch.tensor(expected)] > 10).all()  # of 4,000 draws with 2 degrees


def test_files_from_before_have_heavy_tails_everywhere():
    model = model_of("dose")
    old = FlowGenerator(model, base="student_t")
    state = {name: value for name, value in old.state_dict().items() if name != "light"}
    old.load_state_dict(state)
    x = {"amount": torch.tensor([1e9], dtype=F64), "share": torch.tensor([0.5], dtype=F64)}
    z, log_det = model.unconstrain(x)
    expected = torch.distributions.StudentT(2.0).log_prob(z).sum(-1) + log_det
    torch.testing.assert_close(old.log_prob(x), expected)


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("base", ["normal", "student_t"])
@pytest.mark.parametrize("strength", [0.0, 0.05, 0.2])
@torch.no_grad()
def test_far_rows_have_a_density_or_none(strength, base, dtype):
    """However far out a row lies, log q is finite or -inf, of the flow's own draws too."""
    model = model_of_every_support(dtype)
    flow = FlowGenerator(model, base=base, affine=8, log_scale=5.0)
    flow = disturb(flow, strength)
    x, log_q = flow.rsample_and_log_prob(1000)
    assert log_q.isfinite().all()
    assert not flow.log_prob(x).isnan().any()
    assert flow.log_prob(x).dtype == dtype
    for far in (1e3, 1e5, 1e8):
        for name in ("mu", "w", "free", "mix"):
            rows = {**x, name: far * torch.randn_like(x[name])}
            assert not flow.log_prob(rows).isnan().any(), (name, far)
    if strength == 0:
        rows = {name: value[:50] for name, value in x.items()}
        rows["mu"] = torch.full_like(rows["mu"], 1e8)
        law = dist.Normal(0.0, 1.0) if base == "normal" else dist.StudentT(2.0)
        moved = law.log_prob(rows["mu"]) - law.log_prob(x["mu"][:50])
        torch.testing.assert_close(flow.log_prob(rows) - flow.log_prob(x)[:50], moved)


@torch.no_grad()
def test_rows_on_an_edge_have_no_density_and_rows_of_nan_none_that_is_known():
    flow = random_flow(model_of("recipe"))
    x = {name: value.repeat_interleave(5, 0) for name, value in flow.coordinates.constrain(
        torch.zeros(1, len(flow.loc), dtype=F64))[0].items()}  # fmt: skip
    inner = flow.log_prob(x)[0]
    x["amount"][1], x["amount"][2], x["y"][3, 0] = 0.0, math.inf, -math.inf
    x["parts"][4] = torch.tensor([1.0, 0.0, 0.0])
    log_q = flow.log_prob(x)
    assert log_q[0] == inner
    assert (log_q[1:] == -math.inf).all()
    for name in x:
        rows = {key: value.clone() for key, value in x.items()}
        rows[name][1] = math.nan  # even where another site is on its edge
        assert flow.log_prob(rows).isnan().tolist() == [False, True, False, False, False]


def test_a_row_on_an_edge_takes_no_gradient_with_it():
    flow = random_flow(model_of("dose"), base="student_t")
    x = {"amount": torch.tensor([1.0, 0.0], dtype=F64), "share": torch.full((2,), 0.3).double()}
    both = torch.autograd.grad(flow.log_prob(x).clamp_min(-1e9).sum(), [*flow.parameters()])
    one = {name: value[:1] for name, value in x.items()}
    inner = torch.autograd.grad(flow.log_prob(one).sum(), [*flow.parameters()])
    for got, expected in zip(both, inner, strict=True):
        torch.testing.assert_close(got, expected)


def positive():
    s = pyro.sample("s", dist.LogNormal(0.0, 1.0))
    pyro.factor("decay", -s)


def interval():
    s = pyro.sample("s", dist.Uniform(0.0, 1.0))
    pyro.factor("decay", -5 * s)


def simplex():
    s = pyro.sample("s", dist.Dirichlet(torch.ones(3)))
    pyro.factor("decay", -3 * s[..., 0])


def positive_and_heavy():
    s = pyro.sample("s", dist.LogNormal(0.0, 1.0))
    x = pyro.sample("x", dist.StudentT(2.0))
    pyro.factor("decay", -s - 0.1 * x.abs())


DECAY = quad(lambda z: math.exp(-math.exp(z) - z * z / 2) / math.sqrt(2 * math.pi), -12, 5)[0]
TAIL = quad(lambda x: 2 * math.exp(-0.1 * x) * (2 + x * x) ** -1.5, 0, math.inf)[
    0
]  # Student's, df 2
EXACT = {
    positive: DECAY,
    interval: (1 - math.exp(-5)) / 5,
    simplex: quad(lambda s: 2 * (1 - s) * math.exp(-3 * s), 0, 1)[0],
    positive_and_heavy: DECAY * TAIL,
}


@pytest.mark.parametrize("program", EXACT)
def test_given_densities_of_bounded_sites_against_quadrature(program):
    found = fit(EnergyModel(program), config=FitConfig.fast(rounds=4, progress=False))
    assert found.status is Status.FINISHED
    log_z = log_partition(found, 20_000, seed=0)
    assert abs(log_z.value - math.log(EXACT[program])) < 4 * log_z.standard_error
    assert log_z.standard_error < 0.01


def test_start_sets_location_and_spread():
    model = model_of("dose")
    rows = model.sample_base(1000)
    z, _ = model.unconstrain(rows)
    flow = FlowGenerator(model, rows, scale=2.0)
    torch.testing.assert_close(flow.loc, z.mean(0))
    torch.testing.assert_close(flow.scale, 2 * z.std(0, correction=0))
    with torch.no_grad():
        draws, _ = model.unconstrain(flow.rsample_and_log_prob(4000)[0])  # the identity so far
    assert ((draws.mean(0) - z.mean(0)).abs() < 3 * flow.scale / math.sqrt(4000)).all()
    torch.testing.assert_close(draws.std(0), flow.scale, rtol=0.06, atol=0)


def test_start_centres_angles_at_their_mean_direction():
    model = model_of("gust")
    rows = model.sample_base(1000)
    angles = math.pi + 0.3 * torch.randn(1000, dtype=F64)  # on both sides of the seam
    rows["direction"] = torch.atan2(angles.sin(), angles.cos())
    assert rows["direction"].mean().abs() < 0.5  # where their plain mean is far off
    flow = FlowGenerator(model, rows, scale=3.0)
    assert torch.cos(flow.loc[0]).item() == pytest.approx(-1.0, abs=1e-3)
    assert flow.scale[0] == 1.0  # a circle is not stretched
    uniform = {**rows, "direction": torch.linspace(-3, 3, 1000, dtype=F64)}
    log_q = flow.log_prob(rows) - flow.log_prob(uniform)
    torch.testing.assert_close(log_q, torch.zeros_like(log_q))  # it starts uniform


@torch.no_grad()
def test_flow_density_has_no_seam():
    model = model_of("gust")
    flow = random_flow(model, strength=0.3, start=model.sample_base(100))
    seam = [math.pi - 1e-9, -math.pi + 1e-9, -math.pi, math.pi, 3 * math.pi]
    x = {"direction": torch.tensor(seam, dtype=F64), "speed": torch.full((5,), 2.0, dtype=F64)}
    log_q = flow.log_prob(x)
    torch.testing.assert_close(log_q, log_q[:1].expand(5), rtol=0, atol=1e-6)
    # The flow's own seam lies opposite its mean direction, and is none either.
    for angle in flow.loc[0] + torch.tensor([math.pi, -math.pi, 0.0]):
        around = angle + torch.tensor([-1e-9, 0.0, 1e-9], dtype=F64)
        log_q = flow.log_prob({"direction": around, "speed": x["speed"][:3]})
        torch.testing.assert_close(log_q, log_q[:1].expand(3), rtol=0, atol=1e-6)


def test_one_constant_coordinate_is_an_error():
    model = model_of("plane")
    rows = model.sample_base(50)
    rows["x"][:, 1] = 3.0
    with pytest.raises(GeneratorError) as caught:
        FlowGenerator(model, rows)
    text = str(caught.value)
    for part in (
        "site 'x[1]' has spread",
        "spread 0.0 over 50 rows",
        "expected a positive",
        "constant",
    ):
        assert part in text


def test_unknown_base_is_an_error():
    with pytest.raises(GeneratorError, match=r"base='cauchy'; expected 'normal' or 'student_t'"):
        FlowGenerator(model_of("line"), base="cauchy")


def test_start_of_one_row_is_an_error():
    model = model_of("line")
    with pytest.raises(GeneratorError, match="over 1 rows"):
        FlowGenerator(model, model.sample_base(1))


@pytest.mark.parametrize("program", ["line", "recipe"])
def test_state_dict_round_trip(program):
    model = model_of(program)
    flow = random_flow(model, start=model.sample_base(100), base="student_t")
    twin = FlowGenerator(model, **flow.settings)
    twin.load_state_dict(flow.state_dict())
    x = model.sample_base(20)
    torch.testing.assert_close(twin.log_prob(x), flow.log_prob(x), rtol=0, atol=1e-12)


def test_deepcopy_is_independent():
    model = model_of("recipe")
    flow = random_flow(model)
    twin = copy.deepcopy(flow)
    x, log_q = flow.rsample_and_log_prob(20)
    torch.testing.assert_close(twin.log_prob(x), log_q, rtol=0, atol=1e-8)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.add_(0.1)
    torch.testing.assert_close(flow.log_prob(x), log_q, rtol=0, atol=1e-8)
    assert (twin.log_prob(x) - log_q).abs().max() > 1e-3


def test_flow_has_the_models_dtype():
    assert next(FlowGenerator(EnergyModel(PROGRAMS["line"])).parameters()).dtype == torch.float32
    flow = FlowGenerator(model_of("line"))  # a model without parameters has one too
    assert {
        tensor.dtype for tensor in flow.state_dict().values() if tensor.is_floating_point()
    } == {F64}


def test_flow_does_not_own_the_models_parameters():
    model = EnergyModel(Bumpy())
    flow = FlowGenerator(model)
    assert {id(p) for p in flow.parameters()}.isdisjoint(id(p) for p in model.parameters())
    assert not any("energy" in name for name in flow.state_dict())


@pytest.mark.parametrize("d", [1, 2, 3, 5, 8])
def test_any_two_coordinates_meet(d):
    """After training nothing is independent by construction: every output sees every input."""
    flow = random_flow(EnergyModel(normals(d)), strength=0.5)

    def latent(x):
        for layer in flow.layers:
            x, _ = layer(x)
        return x[0]

    x = torch.randn(30, 1, d, dtype=F64)
    jacobian = vmap(jacrev(latent))(x)[:, :, 0]
    assert (jacobian.abs().amax(0) > 0).all()


# Tilt ------------------------------------------------------------------------------------------
class Bumpy(nn.Module):
    """A program with a network, an angle, a plate and an observed site."""

    def __init__(self):
        super().__init__()
        self.energy = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1))

    def forward(self):
        angle = pyro.sample("angle", dist.VonMises(0.0, 0.5))
        with pyro.plate("trials", 2):
            y = pyro.sample("y", dist.Normal(angle.cos(), 1.5))
        pyro.sample("seen", dist.Normal(y.sum(), 1.0), obs=torch.tensor(0.3))
        features = torch.cat([angle.sin().unsqueeze(-1), y], -1)
        pyro.factor("bump", -self.energy(features).squeeze(-1))


@pytest.fixture(scope="module")
def tilted():
    """A program, its own model, a flow, and the model of the tilted program."""
    program = Bumpy()
    base = EnergyModel(program).double()
    flow = random_flow(base)
    return program, base, flow, EnergyModel(tilt(program, flow)).double()


def test_tilt_is_the_flow_times_the_energy(tilted):
    _, base, flow, model = tilted
    assert model.batching == "vmap"
    x = base.sample_base(64)
    expected = flow.log_prob(x) - base.energy(x)
    torch.testing.assert_close(model.log_density(x), expected, rtol=0, atol=1e-10)
    torch.testing.assert_close(model.log_base(x), base.log_base(x), rtol=0, atol=1e-10)
    factor = model.terms(x)["tilt"]
    torch.testing.assert_close(factor, flow.log_prob(x) - base.log_base(x), rtol=0, atol=1e-10)


def test_tilt_trains_the_energy_and_not_the_flow(tilted):
    program, _, flow, model = tilted
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert {id(p) for p in trained} == {id(p) for p in program.parameters()}
    gradient = torch.autograd.grad(model.log_density(model.sample_base(8)).sum(), trained)
    assert all(g.abs().max() > 0 for g in gradient)
    assert not any(parameter.requires_grad for parameter in flow.parameters())


def test_tilt_at_an_energy_of_zero_is_the_flow_itself(tilted):
    program, base, flow, model = tilted
    last = copy.deepcopy(program.energy[-1].state_dict())
    nn.init.zeros_(program.energy[-1].weight)
    nn.init.zeros_(program.energy[-1].bias)
    x, log_q = flow.rsample_and_log_prob(32)
    seen = base.terms(x)["seen"]  # observed: part of the energy
    torch.testing.assert_close(model.log_density(x) - seen, log_q, rtol=0, atol=1e-8)
    program.energy[-1].load_state_dict(last)


@torch.no_grad()
def test_tilt_by_the_base_measure_itself_changes_nothing():
    model = model_of("plane")
    flow = FlowGenerator(model)
    flow.loc.copy_(torch.tensor([1.0, -1.0]))  # exactly the base: the flow starts as the identity
    tilted = EnergyModel(tilt(plane, flow)).double()
    x = model.sample_base(32)
    torch.testing.assert_close(tilted.energy(x), torch.zeros(32, dtype=F64), rtol=0, atol=1e-6)


# Which layer moves what ------------------------------------------------------------------------
LAYERS = [
    (2, 4), (2, 5), (2, 6), (8, 4), (8, 5), (8, 6), (0, 4), (4, 0), (2, 0), (1, 0), (0, 1), (1, 1),
    (6, 4), (3, 5), (1, 3), (3, 1), (1, 8), (0, 12), (16, 2), (24, 0), (40, 40),
]  # fmt: skip


def apart(moved):
    """Pairs (i, j) of which some layer moves i and keeps j, of codes `(layers, d)`."""
    return (moved[:, :, None] & ~moved[:, None, :]).any(0)


def off_diagonal(pairs):
    return pairs[~torch.eye(len(pairs), dtype=torch.bool)]


@pytest.mark.parametrize(("affine", "splines"), LAYERS)
def test_of_any_two_coordinates_some_layer_moves_one_given_the_other(affine, splines):
    for d in range(2, 129):
        moved = torch.stack(moved_by_layers(d, affine, splines))
        pairs = apart(moved)
        assert off_diagonal(pairs | pairs.T).all(), d
        assert moved.any(1).all(), d  # every layer moves some
        assert not moved.all(1).any(), d  # given some
        assert moved.any(0).all() or affine + splines == 1, d
        extra = len(moved) - affine - splines  # only where needed, and affine
        needed = d if d <= 2 or splines < 2 else d / (2**splines - 2)
        assert extra == 0 or 2 ** (affine + splines * (splines < 2)) - 2 < needed, d


@pytest.mark.parametrize("affine", [2, 8])
def test_up_to_30_coordinates_the_default_has_a_spline_for_every_pair(affine):
    for d in range(3, 31):
        splines = 4 if d <= 14 else 5
        moved = torch.stack(moved_by_layers(d, affine, splines))
        assert len(moved) == affine + splines
        pairs = apart(moved[affine:])
        assert off_diagonal(pairs | pairs.T).all(), d


@pytest.mark.parametrize(
    ("affine", "splines", "most"), [(2, 4, 6), (2, 5, 20), (8, 4, 128), (8, 5, 128), (6, 4, 54)]
)
def test_either_of_two_coordinates_is_moved_given_the_other(affine, splines, most):
    for d in range(2, most + 1):
        assert off_diagonal(apart(torch.stack(moved_by_layers(d, affine, splines)))).all(), d


@pytest.mark.parametrize(("affine", "splines"), [(2, 4), (2, 5), (3, 4), (8, 4), (8, 5)])
def test_every_coordinate_is_moved_by_an_affine_layer_and_a_spline(affine, splines):
    """A double well that no affine layer moved cost .25 nats."""
    for d in range(2, 29):
        moved = torch.stack(moved_by_layers(d, affine, splines))
        assert moved[:affine].any(0).all(), d
        assert moved[affine:].any(0).all(), d


def test_how_many_splines_a_flow_has():
    made = {}
    for d in (2, 3, 14, 15, 64):
        flow = FlowGenerator(EnergyModel(normals(d)))
        made[d] = flow.settings["splines"]
        assert len(flow.layers) == 2 + made[d]
    assert made == {2: 2, 3: 4, 14: 4, 15: 5, 64: 5}


def test_too_few_layers_for_a_code_each_are_made_more_and_saved_so():
    model = EnergyModel(normals(20))
    flow = FlowGenerator(model, affine=1, splines=0)
    assert flow.settings["affine"] == len(flow.layers) == 5  # 2^5 - 2 = 30 codes
    assert len(FlowGenerator(model, **flow.settings).layers) == 5
    assert len(FlowGenerator(model, affine=0, splines=0).layers) == 0


def lines_and_angles(n_lines, n_angles):
    def program():
        pyro.sample("x", dist.Normal(0.0, torch.ones(n_lines)).to_event(1))
        pyro.sample("a", Circle().expand((n_angles,)).to_event(1))
        pyro.sample("s", dist.LogNormal(0.0, torch.ones(2)).to_event(1))

    return program


@pytest.mark.parametrize("settings", [{}, {"base": "student_t", "affine": 8}, {"splines": 1}])
@pytest.mark.parametrize("program", [normals(9), normals(33), lines_and_angles(6, 8)])
def test_of_any_two_coordinates_one_layer_makes_one_depend_on_the_other(program, settings):
    """By the Jacobian of every layer; angles and lines alike, and of the log density with it."""
    flow = random_flow(EnergyModel(program), strength=0.3, **settings)
    x = torch.randn(20, 1, len(flow.loc), dtype=F64)
    depends = torch.zeros(2 * [len(flow.loc)], dtype=torch.bool)
    for layer in flow.layers:

        def moved(at, layer=layer):
            return layer(at)[0][0]

        jacobian = vmap(jacrev(moved))(x)[:, :, 0]
        depends |= jacobian.abs().amax(0) > 0
    assert off_diagonal(depends | depends.T).all()


@pytest.mark.parametrize("program", [normals(16), lines_and_angles(6, 8)])
@torch.no_grad()
def test_many_coordinates_there_and_back(program):
    model = EnergyModel(program).double()
    flow = random_flow(model, strength=0.15)
    x, log_q = flow.rsample_and_log_prob(50)
    torch.testing.assert_close(flow.log_prob(x), log_q, rtol=0, atol=1e-7)

    def flat(z):
        u = z[None]
        for layer in flow.layers:
            u, _ = layer(u)
        return u[0]

    z = torch.randn(10, model.dim, dtype=F64)
    u, total = z, torch.zeros(())
    for layer in flow.layers:
        u, log_det = layer(u)
        total = total + log_det
    brute = torch.linalg.slogdet(vmap(jacrev(flat))(z)).logabsdet
    torch.testing.assert_close(total, brute, rtol=0, atol=1e-8)


def rings(n, d, pair):
    """A ring of radius 2 and width 0.1 in two of d coordinates, normal noise in the others."""
    x = torch.randn(n, d)
    radius, angle = 2 + 0.1 * torch.randn(n), 2 * math.pi * torch.rand(n)
    x[:, pair[0]], x[:, pair[1]] = radius * angle.cos(), radius * angle.sin()
    log_p = dist.Normal(0.0, 1.0).log_prob(x).sum(-1)
    log_p = log_p - dist.Normal(0.0, 1.0).log_prob(x[:, pair]).sum(-1)
    around = dist.Normal(2.0, 0.1).log_prob(radius) - radius.log() - math.log(2 * math.pi)
    return x, log_p + around


@pytest.mark.parametrize(("d", "pair"), [(8, [0, 1]), (9, [0, 2]), (12, [0, 6])])
def test_a_ring_in_coordinates_that_no_spline_used_to_tell_apart(d, pair):
    """Without a layer of either given the other the KL stays above 1, with affine ones at .36."""
    x, _ = rings(4000, d, pair)
    flow = FlowGenerator(EnergyModel(normals(d)), {"x": x})
    optimizer = torch.optim.Adam(flow.parameters(), 4e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 200)
    for _ in range(200):
        loss = -flow.log_prob({"x": rings(256, d, pair)[0]}).mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(flow.parameters(), 10.0)
        optimizer.step()
        schedule.step()
    x, log_p = rings(8000, d, pair)
    with torch.no_grad():
        assert (log_p - flow.log_prob({"x": x})).mean() < 0.25


@pytest.mark.parametrize("program", [normals(9), lines_and_angles(3, 4)])
def test_layers_that_another_version_saved_are_built_again(program):
    """Saved layers say themselves what they move: before, bits of the index up to 8, say."""
    model = EnergyModel(program).double()
    old = random_flow(model)
    bits = [(torch.arange(9) >> i) & 1 == j for i in range(3) for j in (0, 1)]
    old.layers = disturb(old._stack(bits).double(), 0.2)
    x, log_q = old.rsample_and_log_prob(30)
    again = FlowGenerator(model, **old.settings)
    again.load_state_dict(old.state_dict())
    torch.testing.assert_close(again.log_prob(x), log_q, rtol=0, atol=1e-8)
    again.log_prob(x).sum().backward()
    assert all(p.grad is not None for p in again.parameters())


def test_parameters_of_another_program_do_not_load():
    saved = FlowGenerator(EnergyModel(normals(9))).state_dict()
    flow = FlowGenerator(EnergyModel(normals(10)))
    with pytest.raises(RuntimeError, match="size mismatch for loc"):
        flow.load_state_dict(saved)


def test_codes_of_eight_layers_are_far_apart():
    codes = _codes(8, torch.arange(14)).T
    apart = (codes[:, None] & ~codes[None]).sum(-1) + 2 * torch.eye(14, dtype=torch.long)
    assert (apart >= 2).all()


def test_log_scale_bounds_every_affine_layer():
    flow = FlowGenerator(model_of("plane"), affine=1, splines=0, log_scale=4.0)
    with torch.no_grad():
        flow.layers[0].conditioner[-1].bias.fill_(1e3)
    _, log_det = flow.layers[0](torch.zeros(1, 2, dtype=F64))
    assert log_det.item() == pytest.approx(4.0)
    assert flow.settings["log_scale"] == 4.0


# Validation ------------------------------------------------------------------------------------
def test_importing_the_library_leaves_validation_on():
    script = """
import pkgutil, importlib, torch, pyro, ebm_pp
for module in pkgutil.iter_modules(ebm_pp.__path__):
    importlib.import_module(f"ebm_pp.{module.name}")
assert torch.distributions.Distribution._validate_args
assert pyro.settings.get("validate_distributions_pyro")
assert pyro.settings.get("validate_poutine") and pyro.settings.get("validate_infer")
try:
    pyro.distributions.Normal(0.0, -1.0)
except ValueError:
    print("validated")
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.strip() == "validated", done.stderr


def test_validation_is_on_after_zuko_in_these_tests():
    with pytest.raises(ValueError, match="scale"):
        dist.Normal(0.0, -1.0)
