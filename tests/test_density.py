import contextlib
import copy
import dataclasses
import math
import pickle
import warnings

import programs
import pyro
import pyro.distributions as dist
import pytest
import torch
from programs import INVALID, VALID
from pyro import poutine
from pyro.distributions import constraints
from pyro.infer.autoguide import init_to_value
from pyro.infer.mcmc.util import initialize_model

from ebm_pp.circle import Circle, wrap
from ebm_pp.density import EnergyModel
from ebm_pp.errors import DataError, ProgramError


def compiled(entry, **kwargs):
    with warnings.catch_warnings():
        if entry.warns:
            warnings.simplefilter("ignore", UserWarning)
        return EnergyModel(copy.deepcopy(entry.make()), *copy.deepcopy(entry.args), **kwargs)


def inside(model, n):
    """Draws inside every support, from coordinates of the size of one."""
    z = torch.randn(n, model.dim, dtype=model.dtype)
    return model.constrain(z)[0]


@contextlib.contextmanager
def double():
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


def load_parameters(model):
    """Put the model's `pyro.param` values where Pyro looks for them."""
    for name, constraint in model._declared.items():
        start = getattr(model, "param:" + name.replace(".", "%2E"))
        value = dist.transforms.transform_to(constraint)(start)
        pyro.param(name, value.detach(), constraint=constraint)


def by_trace(model, x):
    """The oracle: Pyro's own trace, draw by draw, with the model's `pyro.param` values."""
    rows = []
    for i in range(len(next(iter(x.values())))):
        with pyro.get_param_store().scope():
            load_parameters(model)
            conditioned = poutine.condition(
                model.program, data={name: value[i] for name, value in x.items()}
            )
            trace = poutine.trace(conditioned).get_trace(*model.args, **model.kwargs)
            trace.compute_log_prob()
            rows.append(
                {
                    name: node["log_prob_sum"]
                    for name, node in trace.nodes.items()
                    if node["type"] == "sample"
                    and not isinstance(node["fn"], pyro.poutine.subsample_messenger._Subsample)
                    and not (node["is_observed"] and getattr(node["fn"], "_mask", None) is False)
                    and not (node["is_observed"] and node["mask"] is False)
                }
            )
    return {name: torch.stack([row[name].detach() for row in rows]) for name in rows[0]}


def test_there_are_many_programs():
    assert len(VALID) >= 40
    assert len(INVALID) >= 25


@pytest.mark.parametrize("name", VALID)
def test_valid_program_equals_a_loop(name):
    entry = VALID[name]
    with double():
        model = compiled(entry).double()
        assert model.batching == entry.batching
        x = inside(model, 3)
        expected = by_trace(model, x)
        terms = model.terms(x)
        assert list(terms) == list(expected)
        for key, term in terms.items():
            assert term.shape == (3,)
            torch.testing.assert_close(term, expected[key], rtol=1e-9, atol=1e-9)
        total = sum(expected.values())
        base = sum(expected[site] for site in model.sites)
        torch.testing.assert_close(model.log_density(x), total, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(model.log_base(x), base, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(model.energy(x), base - total, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", INVALID)
def test_invalid_program_is_refused(name):
    entry = INVALID[name]
    with pytest.raises(ProgramError) as caught:
        EnergyModel(entry.make(), *entry.args)
    for phrase in entry.phrases:
        assert phrase in str(caught.value)


@pytest.mark.parametrize("name", [name for name in VALID if VALID[name].pyro_knows])
def test_potential_is_pyros(name):
    entry = VALID[name]
    with double(), pyro.get_param_store().scope(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pyro's own, about plates
        model = compiled(entry, batching="loop").double()
        load_parameters(model)
        z = torch.randn(2, model.dim)
        x, log_jacobian = model.constrain(z)
        _, potential, transforms, _ = initialize_model(
            model.program,
            model.args,
            model.kwargs,
            max_plate_nesting=2,
            init_strategy=init_to_value(values={k: v[0].detach() for k, v in x.items()}),
        )
        ours = -(model.log_density(x) + log_jacobian)
        for i in range(2):
            free = {site: transforms[site](x[site][i]) for site in model.sites}
            theirs = potential({k: v.detach() for k, v in free.items()}).detach()
            torch.testing.assert_close(ours[i].detach(), theirs, rtol=1e-6, atol=1e-6)


GRADIENTS = ["many_supports", "Network", "PyroNetwork", "param_statements", "funnel", "Recurrent"]


@pytest.mark.parametrize("name", GRADIENTS)
def test_gradients_are_those_of_a_loop(name):
    with double():
        model = compiled(VALID[name]).double()
        loop = copy.deepcopy(model)
        loop._compiled = dataclasses.replace(loop._compiled, batching="loop")
        results = []
        for candidate in (model, loop):
            torch.manual_seed(1)
            x = {k: v.requires_grad_() for k, v in inside(candidate, 3).items()}
            inputs = [*x.values(), *candidate.parameters()]
            out = (candidate.log_density(x) * torch.tensor([1.0, -2.0, 0.5])).sum()
            results.append(torch.autograd.grad(out, inputs))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-10)


def test_signs():
    def program():
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        pyro.factor("reward", 3.0 * x)
        pyro.sample("y", dist.Normal(x, 1.0), obs=torch.tensor(2.0))

    model, x = EnergyModel(program), {"x": torch.tensor([0.0, 1.0])}
    normal = torch.distributions.Normal(0.0, 1.0)
    seen = normal.log_prob(2.0 - x["x"])
    terms = model.terms(x)
    torch.testing.assert_close(terms["reward"], 3 * x["x"])
    torch.testing.assert_close(terms["x"], normal.log_prob(x["x"]))
    torch.testing.assert_close(terms["y"], seen)
    torch.testing.assert_close(model.energy(x), -3 * x["x"] - seen)
    torch.testing.assert_close(model.log_base(x), normal.log_prob(x["x"]))
    torch.testing.assert_close(model.log_density(x), model.log_base(x) - model.energy(x))


def test_without_factors_the_energy_is_zero():
    model = compiled(VALID["no_factor"])
    assert model.energy(model.sample_base(4)).tolist() == [0.0] * 4


# --- constrain and unconstrain ----------------------------------------------------------------

TRANSFORMED = [*programs.SUPPORTS, *programs.IMPROPER, *programs.UNKNOWN_TO_PYRO]
TRANSFORMED += ["plates_nested", "plate_of_simplices", "circle_vector_in_plate", "many_supports"]


@pytest.mark.parametrize("name", TRANSFORMED)
def test_round_trip(name):
    with double():
        model = compiled(VALID[name], batching="loop").double()
        z = torch.randn(20, model.dim)
        x, forward = model.constrain(z)
        again, backward = model.unconstrain(x)
    assert forward.shape == backward.shape == (20,)
    assert {k: tuple(v.shape[1:]) for k, v in x.items()} == {
        k: site.shape for k, site in model.sites.items()
    }
    z = torch.where(model.circular, wrap(z), z)
    torch.testing.assert_close(again, z, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(backward, -forward, rtol=1e-8, atol=1e-8)
    model.check(x)


def coordinates(site, value):
    """The numbers of one draw that the reference measure counts."""
    kind = type(site.support)
    if kind is type(constraints.simplex):
        return value[..., :-1].flatten()
    if kind in (type(constraints.lower_cholesky), type(constraints.positive_definite)):
        return value[torch.tril_indices(*value.shape).unbind()]
    if kind in (type(constraints.corr_cholesky), type(constraints.corr_matrix)):
        return value[torch.tril_indices(*value.shape, offset=-1).unbind()]
    return value.flatten()


@pytest.mark.parametrize("name", TRANSFORMED)
def test_log_jacobian_is_autograds(name):
    with double():
        model = compiled(VALID[name], batching="loop").double()
        z = torch.randn(model.dim)

        def flat(z):
            x = model.constrain(z[None])[0]
            return torch.cat([coordinates(s, x[k][0]) for k, s in model.sites.items()])

        jacobian = torch.autograd.functional.jacobian(flat, z)
        assert jacobian.shape == (model.dim, model.dim)
        expected = torch.linalg.slogdet(jacobian).logabsdet
        torch.testing.assert_close(model.constrain(z[None])[1][0], expected, rtol=1e-8, atol=1e-8)


def test_small_parts_of_a_simplex_survive_single_precision():
    model = compiled(VALID["improper_simplex"])
    x = torch.tensor([[0.6, 0.4, 1e-9], [1e-9, 1.0, 1e-12]])
    z, _ = model.unconstrain({"x": x})
    exact = torch.tensor([0.6, 0.4]).log() - torch.tensor([0.4, 1e-9]).log()
    torch.testing.assert_close(z[0], exact + torch.tensor([2.0, 1.0]).log(), rtol=1e-5, atol=0)
    torch.testing.assert_close(model.constrain(z)[0]["x"], x, rtol=1e-5, atol=1e-12)


# --- the circle -----------------------------------------------------------------------------


def test_wrap_is_exact_inside_and_lands_in_the_half_open_interval():
    edge = torch.tensor(math.pi)
    x = torch.tensor([0.0, -math.pi, 1.5, -3.0, 3.1415])
    assert torch.equal(wrap(x), x)
    for dtype in (torch.float32, torch.float64):
        many = torch.cat([torch.linspace(-50, 50, 20001), edge * torch.arange(-21, 22)]).to(dtype)
        near = torch.cat([torch.nextafter(many, many + 1), many, torch.nextafter(many, many - 1)])
        wrapped = wrap(near)
        pi = torch.tensor(math.pi, dtype=dtype)
        assert ((wrapped >= -pi) & (wrapped < pi)).all()
        torch.testing.assert_close(wrapped.cos(), near.cos(), rtol=0, atol=2e-5)


@pytest.mark.parametrize("name", ["von_mises", "circle", "torus", "mixture_of_angles"])
def test_no_seam(name):
    with double():
        model = compiled(VALID[name]).double()
        assert bool(model.circular.all())
        assert all(site.circular for site in model.sites.values())
        eps = 1e-6
        ends = torch.tensor([[math.pi - eps], [-math.pi + eps], [math.pi + eps], [7 * math.pi]])
        x, log_jacobian = model.constrain(ends.expand(4, model.dim))
        assert torch.equal(log_jacobian, torch.zeros(4))
        assert ((x["a"] >= -math.pi) & (x["a"] < math.pi)).all()
        density = model.log_density(x)
        assert (density - density[0]).abs().max() < 1e-4
        turned = {"a": x["a"] + 2 * math.pi}
        torch.testing.assert_close(model.log_density(turned), density, rtol=0, atol=1e-9)
        torch.testing.assert_close(*[model.unconstrain(y)[0] for y in (x, turned)])


def test_circle_distribution():
    fn = Circle().expand((3,)).to_event(1)
    draws = fn.sample((20000,))
    assert draws.shape == (20000, 3)
    assert fn.batch_shape == ()
    assert ((draws >= -math.pi) & (draws < math.pi)).all()
    assert draws.cos().mean(0).abs().max() < 0.02
    torch.testing.assert_close(
        fn.log_prob(draws[:2] + 100), torch.full((2,), -3 * math.log(2 * math.pi))
    )
    with pytest.raises(ValueError, match="circular"):
        Circle(validate_args=True).log_prob(torch.tensor(math.nan))


def test_angles_are_marked_in_order():
    def program():
        pyro.sample("p", dist.Dirichlet(torch.ones(3)))
        pyro.sample("a", Circle())
        pyro.sample("x", dist.Normal(0.0, 1.0))

    model = EnergyModel(program)
    assert model.circular.tolist() == [False, False, True, False]
    assert model.dim == 4
    assert list(model.sites) == ["p", "a", "x"]


# --- parameters -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["PyroNetwork", "param_statements", "network_as_argument"])
def test_instances_do_not_share_and_a_cleared_store_does_not_hurt(name):
    pyro.clear_param_store()
    pyro.param("mine", torch.tensor(3.0))
    one, other = compiled(VALID[name]), compiled(VALID[name])
    x = {"x": torch.randn(4, 2)}
    other.load_state_dict(one.state_dict())
    before = other.log_density(x)
    torch.testing.assert_close(one.log_density(x), before)
    with torch.no_grad():
        for p in one.parameters():
            p.add_(0.5)
    assert not torch.allclose(one.log_density(x), before)
    torch.testing.assert_close(other.log_density(x), before)
    assert list(pyro.get_param_store().keys()) == ["mine"]
    pyro.clear_param_store()
    torch.testing.assert_close(other.log_density(x), before)


def test_names_of_parameters():
    assert dict(compiled(VALID["param_statements"]).named_parameters()).keys() == {
        "param:w",
        "param:a%2Escale",
    }
    assert set(compiled(VALID["PyroNetwork"]).state_dict()) == {
        *(f"program.net.{i}.{kind}" for i in (0, 2) for kind in ("weight", "bias")),
        *(f"program.inner.{kind}" for kind in ("weight", "bias")),
        "program.loc",
        "program.scale_unconstrained",
        "program.shift_unconstrained",
    }


@pytest.mark.parametrize("name", ["PyroNetwork", "param_statements", "network_in_partial"])
def test_gradient_steps_move_every_parameter(name):
    model = compiled(VALID[name])
    x = {"x": torch.randn(8, 2)}
    optimiser = torch.optim.SGD(model.parameters(), 0.1)
    before = {k: v.clone() for k, v in model.named_parameters()}
    density = model.log_density(x)
    density.mean().backward()
    optimiser.step()
    # A constant of the energy has the gradient one; no parameter has none.
    assert all(not torch.equal(before[k], v) for k, v in model.named_parameters())
    assert not torch.allclose(model.log_density(x), density)


@pytest.mark.parametrize(
    "name",
    ["PyroNetwork", "param_statements", "network_in_partial", "many_supports", "Recurrent"],
)
def test_copies(name):
    model = compiled(VALID[name])
    x = inside(model, 4)
    before = model.log_density(x).detach()
    clones = [copy.deepcopy(model)]
    if name != "many_supports":
        clones.append(pickle.loads(pickle.dumps(model)))
    for clone in clones:
        assert not {id(p) for p in clone.parameters()} & {id(p) for p in model.parameters()}
        with torch.no_grad():
            for p in clone.parameters():
                p.add_(0.1)
        torch.testing.assert_close(model.log_density(x), before)
        if list(model.parameters()):
            assert not torch.allclose(clone.log_density(x), before)
        clone.load_state_dict(model.state_dict())
        torch.testing.assert_close(clone.log_density(x), before)
        torch.testing.assert_close(clone.constrain(clone.unconstrain(x)[0])[0], x)


@pytest.mark.parametrize("name", ["PyroNetwork", "interval", "observed", "param_statements"])
def test_double_is_exact_in_default_single(name):
    model = compiled(VALID[name]).double()
    assert model.dtype == torch.float64
    x = inside(model, 4)
    assert all(value.dtype == torch.float64 for value in x.values())
    result = model.log_density(x)
    assert result.dtype == torch.float64
    with double():
        torch.testing.assert_close(sum(by_trace(model, x).values()), result.detach())
    assert torch.get_default_dtype() == torch.float32
    assert next(iter(model.sample_base(3).values())).dtype == torch.float64


def test_bounds_follow_the_dtype():
    def program():
        pyro.sample("x", dist.Uniform(0.0, 0.3))

    model = EnergyModel(program).double()
    x, _ = model.constrain(torch.full((1, 1), 30.0, dtype=torch.float64))
    assert x["x"].item() <= 0.3
    assert torch.isfinite(model.log_density(x)).all()


def test_the_global_stream_is_left_alone():
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    EnergyModel(programs.many_supports)
    assert torch.equal(torch.rand(2), expected)


def test_random_starts_follow_the_users_seed():
    starts = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        starts.append(next(compiled(VALID["random_start"]).parameters()).detach())
    assert torch.equal(starts[0], starts[1])
    assert not torch.equal(starts[0], starts[2])


def test_compiling_leaves_parameters_as_they_are():
    network = programs.PyroNetwork()
    before = copy.deepcopy(network.state_dict())
    torch.testing.assert_close(EnergyModel(network).program.state_dict(), before, rtol=0, atol=0)


# --- Pyro around the model --------------------------------------------------------------------


def test_outer_handlers_see_and_change_nothing():
    model = compiled(VALID["plate_vectorised"])
    x = inside(model, 3)
    expected = model.log_density(x)
    with pyro.plate("outer", 7), poutine.scale(scale=3.0), poutine.trace() as outer:
        torch.testing.assert_close(model.log_density(x), expected)
    assert not outer.trace.nodes


def test_validation_is_put_back():
    model = compiled(VALID["real"])
    for state in (True, False):
        with pyro.validation_enabled(state):
            model.log_density({"x": torch.zeros(2)})
            assert dist.is_validation_enabled() is state


def test_a_program_can_train_a_guide_that_uses_the_model():
    # Pyro's SVI asks parameters for their unconstrained form after the model has run.
    model = compiled(VALID["PyroNetwork"])

    def target():
        x = pyro.sample("x", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.factor("e", -model.energy({"x": x[None]})[0])

    pyro.clear_param_store()
    guide = pyro.infer.autoguide.AutoNormal(target)
    svi = pyro.infer.SVI(target, guide, pyro.optim.Adam({"lr": 0.01}), pyro.infer.Trace_ELBO())
    assert all(math.isfinite(svi.step()) for _ in range(2))
    pyro.clear_param_store()


# --- batching ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in VALID if VALID[name].warns])
def test_the_loop_is_announced(name):
    with pytest.warns(UserWarning, match=r"(?s)draw by draw.*torch\.where"):
        model = EnergyModel(VALID[name].make())
    assert model.batching == "loop"


def test_a_chosen_strategy_is_verified_too():
    with pytest.raises(ProgramError, match=r"batching='vmap' cannot evaluate.*data-dependent"):
        EnergyModel(programs.branch, batching="vmap")
    for program in (programs.same_size_hierarchy, programs.sum_without_dim):
        with pytest.raises(ProgramError, match="batching='plate' cannot evaluate"):
            EnergyModel(program, batching="plate")
    assert EnergyModel(programs.branch, batching="loop").batching == "loop"  # and no warning
    assert EnergyModel(programs.plate_of_vectors, batching="plate").batching == "plate"
    with pytest.raises(ProgramError, match="expected auto, vmap, plate or loop"):
        EnergyModel(programs.branch, batching="fast")


def test_a_plate_hidden_by_a_zero_start_is_refused():
    class SumOverDraws(programs.ZeroStart):
        def forward(self):
            pyro.factor("e", self.net(pyro.sample("x", programs.vector(2))).sum())

    with pytest.raises(ProgramError, match="batching='plate' cannot evaluate"):
        EnergyModel(SumOverDraws(), batching="plate")


def test_dropout_switched_on_later():
    model = EnergyModel(programs.Dropout().eval())
    x = {"x": torch.zeros(2, 2)}
    model.log_density(x)
    with pytest.raises(ProgramError, match=r"draws random numbers.*\n.*\.eval\(\)"):
        model.train().log_density(x)


def test_a_parameter_after_compilation():
    calls = []

    def program():
        calls.append(0)
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        w = pyro.param("late", torch.tensor(1.0)) if len(calls) > 1000 else 1.0
        pyro.factor("e", -w * x**2)

    model = EnergyModel(program)
    calls.extend([0] * 1000)
    with pytest.raises(ProgramError, match="'late' is new after compilation"):
        model.log_density({"x": torch.zeros(2)})


def test_a_missing_site():
    with pytest.raises(DataError, match="site 'y' is missing"):
        compiled(VALID["no_factor"]).log_density({"x": torch.zeros(2)})


# --- the base measure -------------------------------------------------------------------------


def test_base_moments():
    torch.manual_seed(0)
    n = 20000
    draws = compiled(VALID["many_supports"]).sample_base(n)
    assert {k: tuple(v.shape) for k, v in draws.items()} == {
        "p": (n, 3),
        "r": (n,),
        "u": (n,),
        "x": (n, 2),
    }
    for name, mean in {"p": 1 / 3, "r": 2.0, "u": 0.5, "x": 0.0}.items():
        value = draws[name]
        error = (value.mean(0) - mean).abs() / (value.std(0) / n**0.5)
        assert error.max() < 4


def test_base_of_a_hierarchy_and_of_plates():
    torch.manual_seed(0)
    model = compiled(VALID["plate_vectorised"])
    draws = model.sample_base(20000)
    assert draws["x"].shape == (20000, 4)
    corr = torch.corrcoef(torch.cat([draws["mu"][:, None], draws["x"]], 1).T)
    assert abs(corr[0, 1] - 0.5**0.5) < 0.02  # x = mu + noise
    assert abs(corr[1, 2] - 0.5) < 0.02
    assert draws["x"].std() == pytest.approx(2**0.5, abs=0.03)


def test_base_of_a_chain_whose_first_step_looks_independent():
    # x_0 has the location 0 * mu: its values do not show the dependence, its gradient does.
    draws = compiled(VALID["plate_sequential"]).sample_base(4000)
    slope = (draws["mu"] * draws["x_2"]).mean() / draws["mu"].square().mean()
    assert slope == pytest.approx(2.0, abs=0.1)


def test_base_of_a_rare_dependence():
    model = compiled(VALID["rare_dependence"])
    assert model._compiled.roots == {"x"}
    assert compiled(VALID["many_supports"])._compiled.roots == {"p", "r", "u", "x"}
    # The network after the sites has no batching rule; what it depends on is known all the same.
    assert compiled(VALID["Recurrent"])._compiled.roots == {"x"}


def test_base_without_a_batching_rule():
    def program():
        r = pyro.sample("r", dist.Gamma(20.0, 10.0))
        with pyro.plate("p", 3):
            s = pyro.sample("s", dist.Gamma(2.0, r))
            pyro.sample("x", dist.Normal(torch.zeros(2), s[:, None]).to_event(1))

    draws = EnergyModel(program).sample_base(20000)
    assert {k: tuple(v.shape[1:]) for k, v in draws.items()} == {"r": (), "s": (3,), "x": (3, 2)}
    assert (draws["s"] * draws["r"][:, None]).mean() == pytest.approx(2.0, abs=0.05)
    assert (draws["x"] / draws["s"][..., None]).std() == pytest.approx(1.0, abs=0.02)


def test_base_of_a_program_that_neither_batches_nor_broadcasts():
    def program():
        r = pyro.sample("r", dist.Gamma(torch.tensor([20.0, 20.0]), 10.0).to_event(1))
        pyro.sample("s", dist.Gamma(2.0, r.sum()))
        pyro.factor("e", -(r[0] ** 2))

    draws = EnergyModel(program).sample_base(300)
    assert draws["s"].shape == (300,)
    assert len(draws["s"].unique()) == 300
    assert draws["s"].mean() == pytest.approx(0.5, abs=0.1)


IMPROPER = ["improper_real", "scaled_site", "masked_plate", "masked_distribution"]


@pytest.mark.parametrize("name", IMPROPER)
def test_improper_base(name):
    model = compiled(VALID[name])
    assert not model.proper
    assert not model.sites["x"].proper
    with pytest.raises(ProgramError, match="site 'x' has an improper base measure"):
        model.sample_base(3)


def test_a_sometimes_masked_base_is_improper():
    model = compiled(VALID["value_dependent_mask_of_a_site"])
    assert [site.proper for site in model.sites.values()] == [True, False]
    assert not model.double().proper


def test_improper_base_is_flat():
    model = compiled(VALID["improper_real"])
    assert model.log_base({"x": torch.randn(3, 2)}).tolist() == [0.0] * 3
    assert compiled(VALID["real"]).proper


def test_repr_of_sites():
    site = compiled(VALID["plates_nested"]).sites["b"]
    assert (site.shape, site.dim, site.circular, site.proper) == ((2, 3), 6, False, True)
