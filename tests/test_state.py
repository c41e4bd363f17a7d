"""State of the user's that a program changes: in place, from run to run, or by failing."""

import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize

import ebm_pp
from ebm_pp import EnergyModel, ProgramError
from ebm_pp.capture import capture
from ebm_pp.checks import MASS

SHORT = ebm_pp.FitConfig(
    rounds=4, batch=128, pool=512, warm_start_steps=20, energy_steps=20, progress=False
)


# In place --------------------------------------------------------------------------------------
def subtract_mean(x):
    x -= x.mean(-1, keepdim=True)
    return x


def set_entry(x):
    x[0] = 0.5
    return x


def masked(x):
    x[x > 0] = 0.0
    return x


def by_numpy(x):
    x.detach().numpy()[...] = 1.0
    return x


IN_PLACE = {
    "relu": nn.ReLU(inplace=True),
    "dropout of nothing": nn.Dropout(0.0, inplace=True),
    "times": lambda x: x.mul_(2.0),
    "minus": lambda x: x.sub_(torch.tensor([1.0, 0.5])),
    "mean": subtract_mean,
    "entry": set_entry,
    "copy": lambda x: x.copy_(torch.ones(2)),
    "clamp": lambda x: x.clamp_(-0.5, 0.5),
    "exp": lambda x: x.exp_(),
    "masked": masked,
    "data": lambda x: x.data.mul_(2.0),
    "numpy": by_numpy,
}


@pytest.mark.filterwarnings("ignore:this program runs draw by draw")
@pytest.mark.parametrize("later", [False, True])
@pytest.mark.parametrize("way", IN_PLACE)
def test_a_value_changed_in_place_is_the_programs_alone(way, later):
    change, weight = IN_PLACE[way], nn.Linear(2, 1).double()

    def program(net):
        s = pyro.sample("s", dist.LogNormal(torch.zeros(2).double(), 1.0).to_event(1))
        x = pyro.sample("x", dist.Normal(s.clone() if later else torch.zeros(2), 1.0).to_event(1))
        pyro.factor("f", -net(change(x)).sum())
        pyro.factor("g", -(x.sin() * change(s)).sum())  # sees what the first has left

    torch.set_default_dtype(torch.float64)
    try:
        model = EnergyModel(program, weight)
        rows = {"s": torch.rand(5, 2) + 0.1, "x": torch.randn(5, 2)}
    finally:
        torch.set_default_dtype(torch.float32)
    kept = {name: value.clone() for name, value in rows.items()}
    expected = []
    for s, x in zip(kept["s"], kept["x"], strict=True):
        base = dist.LogNormal(0.0, 1.0).log_prob(s).sum()
        base = base + dist.Normal(s if later else 0.0, 1.0).log_prob(x).sum()
        s, x = s.clone(), x.clone()
        f = weight(change(x)).sum()
        expected.append((base - f - (x.sin() * change(s)).sum()).detach())
    for _ in range(2):
        torch.testing.assert_close(model.log_density(rows).detach(), torch.stack(expected))
        assert all(torch.equal(rows[name], kept[name]) for name in rows)
    density = capture(model, rows).density
    if density is not None:
        torch.testing.assert_close(density(rows).detach(), torch.stack(expected))
        assert all(torch.equal(rows[name], kept[name]) for name in rows)


def test_gradients_through_a_value_changed_in_place():
    def program():
        x = pyro.sample("x", dist.LogNormal(torch.zeros(2), 1.0).to_event(1))
        x *= 2
        pyro.factor("f", -x.square().sum())

    x = torch.tensor([[0.5, 1.5]], requires_grad=True)
    (found,) = torch.autograd.grad(EnergyModel(program).log_density({"x": x}).sum(), x)
    # d/dx [-log x - (log x)^2 / 2 - 4 x^2]
    exact = -(1 + x.log()) / x - 8 * x
    torch.testing.assert_close(found, exact.detach())


def test_an_observation_changed_in_place_stays_the_users():
    seen = torch.tensor([1.0, 2.0])

    def program(data):
        m = pyro.sample("m", dist.Normal(0.0, 1.0))
        y = pyro.sample("y", dist.Normal(m, 1.0).expand([2]).to_event(1), obs=data)
        y -= 1.0
        pyro.factor("f", -m * y.sum())

    model = EnergyModel(program, seen)
    for _ in range(2):
        terms = model.terms({"m": torch.ones(1)})
        assert terms["f"].item() == pytest.approx(-1.0)
    assert torch.equal(seen, torch.tensor([1.0, 2.0]))


# Changed by its own runs -----------------------------------------------------------------------
def declared(net):
    x = pyro.sample("x", dist.Normal(torch.zeros(4), 2.0).to_event(1))
    pyro.factor("f", -net(x).sum())


def two_layers(norm):
    return nn.Sequential(norm(nn.Linear(4, 16)), nn.Tanh(), norm(nn.Linear(16, 3)))


class Kept(nn.Module):
    """Changes a buffer, a number or a tensor in every run; `enters` says whether it comes back."""

    def __init__(self, kind, enters):
        super().__init__()
        self.layer, self.kind, self.enters = nn.Linear(4, 1), kind, enters
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))
        self.register_buffer("level", torch.zeros(()))
        self.register_buffer("flag", torch.tensor(False))
        self.calls, self.last = 0, torch.zeros(4)

    def forward(self, x):
        self.steps += 1
        self.calls += 1
        self.level.mul_(0.9).add_(0.1 * self.calls)
        self.last = self.last + 1.0
        self.flag.logical_not_()
        state = {
            "steps": self.steps / 1e4, "level": self.level / 1e3, "calls": self.calls / 1e4,
            "last": self.last.sum() / 1e3, "flag": self.flag * 1e-2,
        }  # fmt: skip
        return self.layer(x) * (1 + (state[self.kind] if self.enters else 0.0))


@pytest.mark.parametrize("kind", ["steps", "level", "calls", "last", "flag"])
def test_state_that_only_counts_is_legal_and_as_it_was(kind):
    net = Kept(kind, False)
    model = EnergyModel(declared, net, batching="loop")
    x = torch.ones(2, 4)
    assert torch.equal(model.energy({"x": x}), model.energy({"x": x}))
    assert net.steps.item() == net.calls < 200


@pytest.mark.parametrize("kind", ["steps", "level", "calls", "last", "flag"])
def test_state_that_enters_is_named(kind):
    with pytest.raises(ProgramError, match=rf"'f' depends on '{kind}'.*\n.*callback"):
        EnergyModel(declared, Kept(kind, True), batching="loop")


SPECTRAL = {"new": parametrizations.spectral_norm, "old": nn.utils.spectral_norm}


@pytest.mark.filterwarnings("ignore:.*spectral_norm.*is deprecated")
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("way", SPECTRAL)
def test_spectral_norm_is_refused_whatever_the_start(way, seed):
    torch.manual_seed(seed)
    net = two_layers(SPECTRAL[way])
    buffer = "_[uv]" if way == "new" else "weight_[uv]"
    with pytest.raises(ProgramError, match=rf"depends on '0\..*{buffer}'.*\n.*matrix_norm"):
        EnergyModel(declared, net)


@pytest.mark.filterwarnings("ignore:.*spectral_norm.*is deprecated")
@pytest.mark.parametrize("way", SPECTRAL)
def test_spectral_norm_in_eval_is_told(way):
    with pytest.warns(UserWarning, match=r"its norm will not stay 1.*\n.*matrix_norm"):
        EnergyModel(declared, two_layers(SPECTRAL[way]).eval())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        EnergyModel(declared, two_layers(SPECTRAL[way]).eval().requires_grad_(False))


class UnitNorm(nn.Module):
    def forward(self, weight):
        return weight / torch.linalg.matrix_norm(weight, 2)


@pytest.mark.parametrize("way", ["exact norm", "orthogonal"])
def test_the_norm_that_is_advised_is_one_after_training(way):
    def unit(layer):
        if way == "orthogonal":
            return parametrizations.orthogonal(layer)
        parametrize.register_parametrization(layer, "weight", UnitNorm())
        return layer

    torch.manual_seed(0)
    net = two_layers(unit)
    rows = {"x": torch.randn(600, 4) * torch.tensor([1.0, 0.3, 1.0, 1.0])}
    start = net[0].weight.detach().clone()
    result = ebm_pp.fit(EnergyModel(declared, net), rows, config=SHORT)
    assert not torch.allclose(net[0].weight, start)
    for layer in (net[0], net[2]):
        assert torch.linalg.matrix_norm(layer.weight, 2).item() == pytest.approx(1.0, abs=1e-5)
    assert torch.equal(result.model.energy(rows), result.model.energy(rows))


@pytest.mark.parametrize("layer", [nn.BatchNorm1d(3), nn.BatchNorm2d(3)])
def test_batch_normalisation_in_training_mode_is_refused(layer):
    shape = (3, 5) if isinstance(layer, nn.BatchNorm1d) else (3, 5, 5)

    def program(net):
        x = pyro.sample("x", dist.Normal(torch.zeros(shape), 1.0).to_event(len(shape)))
        pyro.factor("f", net(x[None]).sin().sum())

    with pytest.raises(ProgramError, match=r"depends on 'running_mean'.*\n.*LayerNorm"):
        EnergyModel(program, layer.train(), batching="loop")
    EnergyModel(program, layer.eval(), batching="loop")


def test_a_network_that_keeps_features_can_be_compiled_again():
    class Features(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 3)

        def forward(self, x):
            self.features = self.layer(x)
            return self.features.tanh()

    net = Features()
    model = EnergyModel(declared, net)
    before = model.energy({"x": torch.ones(3, 4)})  # leaves a tensor of an ended vmap behind
    again = EnergyModel(declared, net).energy({"x": torch.ones(3, 4)})
    torch.testing.assert_close(before, again)


# Cut off ---------------------------------------------------------------------------------------
WALLS = {
    "far": lambda x: x.abs() > 2.2,
    "beyond float steps": lambda x: x > 55.0,
    "very far": lambda x: x < -3e4,
    "half": lambda x: x < 0,
    "most": lambda x: x.abs() > 0.6,
    "a band": lambda x: (x - 1).abs() < 0.2,
}


@pytest.mark.parametrize("name", WALLS)
def test_supports_cut_off_anywhere_evaluate_right(name):
    def program():
        x = pyro.sample("x", dist.Normal(0.0, 10.0))
        pyro.factor("wall", torch.where(WALLS[name](x), -torch.inf, 0.0))

    x = torch.tensor([-1e5, -2.5, -0.1, 0.0, 0.3, 1.0, 2.5, 60.0])
    found = EnergyModel(program).log_density({"x": x})
    expected = torch.where(WALLS[name](x), -torch.inf, dist.Normal(0.0, 10.0).log_prob(x))
    torch.testing.assert_close(found, expected)


def test_a_wall_in_many_dimensions_and_one_of_an_observation():
    def ball():
        x = pyro.sample("x", dist.Normal(torch.zeros(8), 1.0).to_event(1))
        pyro.factor("wall", torch.where(x.norm() > 2.0, -torch.inf, 0.0))

    def corner():
        x = pyro.sample("x", dist.Normal(torch.zeros(8), 1.0).to_event(1))
        pyro.factor("wall", torch.where((x > 30.0).all(), -torch.inf, 0.0))

    def observed():
        bound = pyro.sample("bound", dist.Gamma(2.0, 1.0))
        pyro.sample("y", dist.Uniform(0.0, bound), obs=torch.tensor(1.5))

    x = torch.stack([torch.zeros(8), torch.full((8,), 31.0)])
    for program in (ball, corner):
        assert EnergyModel(program).energy({"x": x}).tolist() == [0.0, torch.inf]
    energy = EnergyModel(observed).energy({"bound": torch.tensor([1.0, 2.0])})
    torch.testing.assert_close(energy, torch.tensor([torch.inf, 2.0]).log().clamp_max(torch.inf))


@pytest.mark.parametrize("constant", [lambda x: torch.tensor(1.5), torch.zeros_like])
def test_a_factor_that_reads_no_value_is_refused(constant):
    def program():
        pyro.factor("e", constant(pyro.sample("x", dist.Normal(0.0, 1.0))))

    with pytest.raises(ProgramError, match="factor 'e' depends on no latent site"):
        EnergyModel(program)


def test_a_wall_around_everything_and_numbers_that_are_none_are_refused():
    def walled(x):
        return torch.where(x > 2.5, 0.0, -torch.inf)

    def nan_beside_a_wall(x):
        return torch.where(x > 0, -torch.inf, torch.where(x > -1, 0.0, torch.nan))

    assert MASS == 8
    for factor, text in (
        (walled, "-inf at 64 of 64 feasible draws"),
        (nan_beside_a_wall, "nan at a feasible draw"),
        (lambda x: x.exp() / 0.0, "inf at a feasible draw"),
    ):
        with pytest.raises(ProgramError, match=f"'e' has the log density {text}"):
            EnergyModel(
                lambda factor=factor: pyro.factor(
                    "e", factor(pyro.sample("x", dist.Normal(0.0, 1.0)))
                )
            )


# Errors of the program -------------------------------------------------------------------------
class Broken(nn.Module):
    def __init__(self, error):
        super().__init__()
        self.w, self.error, self.broken = nn.Parameter(torch.ones(())), error, False

    def forward(self):
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        if self.broken:
            raise self.error
        pyro.factor("f", -self.w * x**2)


ERRORS = [
    KeyError("table"), ZeroDivisionError("division by zero"), OSError("file is closed"),
    RuntimeError("size mismatch"), IndexError("out of range"), ValueError("no"), AssertionError(),
    torch.linalg.LinAlgError("not positive definite"), FloatingPointError("overflow"),
]  # fmt: skip


@pytest.mark.parametrize("batching", ["auto", "plate", "loop"])
@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_an_error_of_the_program_is_told_as_one(error, batching):
    model = EnergyModel(Broken(error), batching=batching)
    model.program.broken = True
    x = {"x": torch.zeros(3)}
    for call in (model.energy, model.log_base, model.log_density, model.terms):
        with pytest.raises(ProgramError, match=rf"failed at 3 draws with {type(error).__name__}"):
            call(x)
    with pytest.raises(ProgramError, match="failed at 5 draws") as caught:
        model.sample_base(5)
    assert caught.value.__cause__ is error
    with pytest.raises(ProgramError, match="failed at a feasible draw"):
        EnergyModel(model.program)


def test_memory_used_up_and_interrupts_are_not_the_programs_fault():
    for error in (MemoryError("full"), torch.OutOfMemoryError("full"), KeyboardInterrupt()):
        model = EnergyModel(Broken(error))
        model.program.broken = True
        with pytest.raises(type(error)):
            model.energy({"x": torch.zeros(3)})


@pytest.mark.parametrize("error", [KeyError("table"), torch.linalg.LinAlgError("singular")])
def test_an_error_in_the_rounds_of_a_fit(error):
    model = EnergyModel(Broken(error))

    def break_it(round_, info):
        model.program.broken = round_ == 1

    data = {"x": torch.randn(600)}
    if isinstance(error, KeyError):
        with pytest.raises(ProgramError, match="KeyError: 'table'"):
            ebm_pp.fit(model, data, config=SHORT, callback=break_it)
        assert model.program.w.isfinite()
    else:
        result = ebm_pp.fit(model, data, config=SHORT, callback=break_it)
        assert result.status is ebm_pp.Status.NON_FINITE
        assert "singular" in result.detail
