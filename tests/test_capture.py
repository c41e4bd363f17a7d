import threading
import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from programs_with_parameters import VALID
from torch import nn

import ebm_pp
from ebm_pp import EnergyModel
from ebm_pp.capture import RESHAPES, capture, still_right
from models.network import Network
from models.recipe import Recipe, draws


def network(n=6, d=3):
    x = torch.randn(n, d, generator=torch.Generator().manual_seed(0))
    model = EnergyModel(Network(x, width=16, waves=4, wells=0))
    return model, {"x": x}


def test_a_network_becomes_plain_linear_layers():
    model, x = network()
    captured, why, _ = capture(model, x)
    assert why == "yes"
    targets = [node.target for node in captured.graph.nodes if node.op == "call_function"]
    linear = [m for m in model.modules() if isinstance(m, nn.Linear) and m.bias is not None]
    assert targets.count(torch.ops.aten.addmm.default) == len(linear)
    assert not {torch.ops.aten.unsqueeze.default, torch.ops.aten._unsafe_view.default} & {*targets}
    assert torch.ops.aten.unsqueeze.default in RESHAPES


@pytest.mark.parametrize("name", [name for name in VALID if VALID[name].batching == "vmap"])
def test_every_program_keeps_its_numbers(name):
    case = VALID[name]
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = EnergyModel(case.make(), *case.args)
        if not model.proper:
            return
        x, others = model.sample_base(6), model.sample_base(6)
    density = capture(model, x).density
    if density is not None:
        torch.testing.assert_close(density(others), model.log_density(others))


def test_it_follows_the_parameters():
    torch.manual_seed(0)
    model = EnergyModel(Recipe())
    x = draws(50, seed=0)
    captured = capture(model, x).density
    others = draws(50, seed=1)
    for _ in range(2):
        torch.testing.assert_close(captured(others), model.log_density(others))
        gradients = [
            torch.autograd.grad(density(others).square().sum(), [*model.parameters()])
            for density in (captured, model.log_density)
        ]
        for got, expected in zip(*gradients, strict=True):
            torch.testing.assert_close(got, expected)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 0.1 * torch.randn_like(parameter)


class Stepwise(torch.autograd.Function):
    """A function whose gradient is not that of the operations in it."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x):
        return x.round()

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, gradient):
        return gradient


def test_a_gradient_that_the_record_would_change_is_noticed():
    weight = nn.Parameter(torch.tensor(1.7))

    class Program(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = weight

        def forward(self):
            x = pyro.sample("x", dist.Normal(0.0, 1.0))
            pyro.factor("energy", -Stepwise.apply(self.weight * x))

    model = EnergyModel(Program())
    x = {"x": torch.linspace(-2, 2, 7)}
    captured = capture(model, x).density
    if captured is None:
        return
    got, expected = (
        torch.autograd.grad(density(x).sum(), [*model.parameters()])[0]
        for density in (captured, model.log_density)
    )
    torch.testing.assert_close(got, expected)


def test_a_program_that_runs_as_a_loop_is_left_alone():
    def program(weight):
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        pyro.factor("energy", -weight * x.square())

    model = EnergyModel(program, torch.tensor(2.0), batching="loop")
    captured = capture(model, {"x": torch.randn(5)})
    assert (captured.density, captured.why) == (None, "no: the program runs by loop")


# What a record cannot see ----------------------------------------------------------------------
class Knob(nn.Module):
    """-k w x^2 over N(0, 2^2), k read from the weight or from elsewhere, but not as a tensor."""

    def __init__(self, read):
        super().__init__()
        self.w, self.read, self.beta = nn.Parameter(torch.ones(())), read, 1.0
        self.register_buffer("heat", torch.ones(()))
        self.kept = torch.ones(())

    def forward(self):
        x = pyro.sample("x", dist.Normal(0.0, 2.0))
        pyro.factor("well", -self.read(self) * self.w * x**2)


class Shared:
    factor = 1.0


def rebind(program):
    program.heat = torch.full((), 4.0)


def rebind_attribute(program):
    program.kept = torch.full((), 4.0)


def share(program):
    Shared.factor = 4.0


FROZEN = {  # what leaves its tensor: wrong at other parameters
    "numpy": lambda p: float(p.w.detach().numpy()),
    "tolist": lambda p: p.w.tolist(),
    "a table": lambda p: sum(p.w.detach().numpy().reshape(1)),
    "a copy": lambda p: torch.tensor(p.w.tolist()),
    "data": lambda p: torch.from_numpy(p.w.detach().numpy().copy()),
}
CHANGED = {  # what a callback changes: how
    "attribute": (lambda p: p.beta, lambda p: setattr(p, "beta", 4.0)),
    "global": (lambda p: Shared.factor, share),
    "buffer rebound": (lambda p: p.heat, rebind),
    "tensor rebound": (lambda p: p.kept, rebind_attribute),
    "mode": (lambda p: 1.0 if p.training else 4.0, lambda p: p.eval()),
}
SEEN = {  # tensors changed in place stay the same tensors
    "buffer in place": (lambda p: p.heat, lambda p: p.heat.fill_(4.0)),
    "tensor in place": (lambda p: p.kept, lambda p: p.kept.fill_(4.0)),
}


@pytest.mark.parametrize("way", FROZEN)
def test_numbers_that_left_their_tensor_are_noticed_at_other_parameters(way):
    captured = capture(EnergyModel(Knob(FROZEN[way])), {"x": torch.linspace(-2, 2, 7)})
    assert captured.density is None
    assert "other numbers" in captured.why or "no: " in captured.why


@pytest.mark.parametrize("way", CHANGED | SEEN)
def test_what_changes_later_is_noticed_in_the_next_round(way):
    Shared.factor = 1.0
    read, change = (CHANGED | SEEN)[way]
    model = EnergyModel(Knob(read))
    captured = capture(model, {"x": torch.linspace(-2, 2, 7)})
    assert captured.why == "yes"
    assert still_right(model, captured) is captured
    change(model.program)
    after = still_right(model, captured)
    assert (after.density is None) == (way in CHANGED)
    assert ("other numbers" in after.why) == (way in CHANGED)
    density = after.density or model.log_density
    expected = dist.Normal(0.0, 2.0).log_prob(torch.tensor(1.0)) - 4.0
    rows = {"x": torch.ones(7)}
    assert density(rows)[0].item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("way", ["numpy", "tolist"])
def test_a_weight_read_as_a_number_is_fitted_right(way):
    data = {"x": torch.randn(2000, generator=torch.Generator().manual_seed(0)) * 0.5}
    model = EnergyModel(Knob(FROZEN[way]))
    config = ebm_pp.FitConfig(
        rounds=15, pool=1024, batch=128, warm_start_steps=100, energy_steps=20, progress=False
    )
    result = ebm_pp.fit(model, data, config=config)
    # 1 / (2 var) = 1 / 8 + k w: the gradient reaches one of the two equal factors, w.
    truth = 0.5 / data["x"].square().mean().item() - 0.125
    assert model.program.w.item() ** 2 == pytest.approx(truth, rel=0.07)
    assert all(info["captured"].startswith("no: ") for info in result.history)


def test_history_says_when_a_record_was_given_up():
    model = EnergyModel(Knob(lambda p: p.beta))
    data = {"x": torch.randn(1000, generator=torch.Generator().manual_seed(0)) * 0.5}

    def temper(round_, info):
        if round_ == 1:
            model.program.beta = 4.0

    config = ebm_pp.FitConfig(
        rounds=4, pool=512, batch=128, warm_start_steps=20, energy_steps=5, progress=False
    )
    history = ebm_pp.fit(model, data, config=config, callback=temper).history
    assert [info["captured"] == "yes" for info in history] == [True, True, False, False]


# One copy of the user's state ------------------------------------------------------------------
@pytest.mark.parametrize("way", ["attribute", "buffer in place", "buffer rebound", "global"])
def test_the_energy_trained_evaluated_and_returned_is_one(way):
    """A callback that tempers: beta w x^2 with beta = 4 from round 2 on has w = truth / 4."""
    Shared.factor = 1.0
    read, change = (CHANGED | SEEN)[way]
    model = EnergyModel(Knob(read))
    data = {"x": torch.randn(2000, generator=torch.Generator().manual_seed(0)) * 0.5}
    config = ebm_pp.FitConfig(
        rounds=25, pool=1024, batch=256, warm_start_steps=100, energy_steps=20, progress=False
    )
    result = ebm_pp.fit(
        model, data, config=config, callback=lambda r, info: change(model.program) if r == 2 else 0
    )
    truth = 0.5 / data["x"].square().mean().item() - 0.125
    beta = float(read(model.program))
    assert beta == 4.0
    assert beta * model.program.w.item() == pytest.approx(truth, rel=0.07)
    assert abs(result.history[-1]["offset_gap"]) < 0.05
    one, two = torch.zeros(1), torch.ones(1)
    energy = model.energy({"x": two}) - model.energy({"x": one})
    assert energy.item() == pytest.approx(truth, rel=0.07)


class Keeps(nn.Module):
    """Keeps a computed tensor, a lock and a hook's notes: nothing of it can be copied."""

    def __init__(self):
        super().__init__()
        self.layer, self.head = nn.Linear(2, 16), nn.Linear(16, 1)
        self.lock, self.notes = threading.Lock(), []
        self.layer.register_forward_hook(lambda module, i, o: self.notes.append(1))

    def forward(self, x):
        with self.lock:
            self.features = torch.tanh(self.layer(x))
        return self.head(self.features).squeeze(-1)


def norm(way):
    return lambda: nn.Sequential(way(nn.Linear(2, 16)), nn.SiLU(), nn.Linear(16, 1))


@pytest.mark.parametrize(
    "make",
    [Keeps, norm(nn.utils.weight_norm), norm(nn.utils.parametrizations.weight_norm)],
    ids=["keeps", "old weight_norm", "weight_norm"],
)
@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_a_model_that_cannot_be_copied_is_fitted(make):
    torch.manual_seed(0)

    def program(net):
        x = pyro.sample("x", dist.Normal(torch.zeros(2), 2.0).to_event(1))
        pyro.factor("f", -net(x).sum())

    config = ebm_pp.FitConfig(
        rounds=2, batch=128, pool=512, warm_start_steps=20, energy_steps=10, progress=False
    )
    result = ebm_pp.fit(EnergyModel(program, make()), {"x": torch.randn(600, 2)}, config=config)
    assert len(result.history) == 2
    assert result.status.name != "NON_FINITE"
