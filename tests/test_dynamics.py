"""A world as it is declared: what its step may give, what is refused, and what stays untouched."""

import random

import jaxtyping
import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
import torch.distributions as torch_dist
from torch import nn

from ebm_pp import (
    Dynamics,
    EnergyModel,
    FitConfig,
    Opaque,
    PolicyGenerator,
    ProgramError,
    Space,
    fit,
    trajectory,
)

M = 2
START = dist.Normal(torch.zeros(M), 1.0).to_event(1)
TABLE = torch.full((3, 2, 3), 1 / 3)


class Regulate(nn.Module):
    def __init__(self, dynamics, horizon=3):
        super().__init__()
        self.dynamics, self.horizon = dynamics, horizon
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self):
        tau = trajectory(self.dynamics, self.horizon)
        with pyro.plate("time", self.horizon):
            size = tau.states[:-1].reshape(self.horizon, -1).square().sum(-1)
            pyro.factor("position", -self.weight * size)


def world(step, start=START, **spaces):
    return Dynamics(start, step, Space.real(M), **spaces)


def simulate(dynamics, dtype=torch.float32):
    """States of the default policy, by a model of this type."""
    model = EnergyModel(Regulate(dynamics)).to(dtype)
    torch.manual_seed(3)
    return PolicyGenerator(model).simulate(5)[0]


def streams():
    """Where torch's and numpy's random numbers stand; Python's the type checker of tests draws."""
    return torch.get_rng_state().tolist(), [*map(str, np.random.get_state())]


def by_all_streams(s, a):
    return s + np.random.randn() + random.random() + torch.randn_like(s)


class RandomStart(torch_dist.Distribution):
    """A law whose draws come from numpy and Python."""

    arg_constraints = {}  # noqa: RUF012

    def __init__(self):
        super().__init__(event_shape=torch.Size([M]), validate_args=False)

    def sample(self, shape=()):
        rows = np.random.randn(*shape, M) + random.random()
        return torch.as_tensor(rows, dtype=torch.float32) + torch.randn(M)


@pytest.mark.parametrize(
    "make",
    [
        lambda: world(lambda s, a: s),
        lambda: world(lambda s, a: dist.Normal(s, 1.0).to_event(1)),
        lambda: world(by_all_streams),
        lambda: world(by_all_streams, RandomStart()),
        lambda: world(Opaque(by_all_streams), RandomStart()),
        lambda: Dynamics.tabular(TABLE, torch.ones(3) / 3),
    ],
    ids=["certain", "noise", "any stream", "start", "opaque", "table"],
)
def test_a_world_leaves_random_streams_alone(make):
    before = streams()
    make()
    assert streams() == before


def fails(s, a):
    by_all_streams(s, a)
    raise RuntimeError("no such body")


def test_streams_are_left_alone_by_a_step_that_fails():
    before = streams()
    with pytest.raises(ProgramError, match="RuntimeError: no such body") as error:
        world(fails)
    assert isinstance(error.value.__cause__, RuntimeError)
    assert streams() == before


OTHERS = {
    "none": (lambda s, a: None, ["None", "return is missing"]),
    "tuple": (lambda s, a: (s, 1.0), ["tuple of 2 (Tensor, float)", "next states alone"]),
    "environment": (
        lambda s, a: (s, 0.0, False, False, {}),
        ["tuple of 5 (Tensor, float, bool, bool, dict)", "next states alone"],
    ),
    "dict": (lambda s, a: {"state": s}, ["dict of 1 (str)", "next states alone"]),
    "list": (lambda s, a: [s, s], ["list of 2"]),
    "array": (lambda s, a: s.numpy(), ["a ndarray", "Opaque(step)"]),
    "frame": (lambda s, a: pd.DataFrame(s.numpy()), ["a DataFrame", "Opaque(step)"]),
    "number": (lambda s, a: s.sum().item(), ["a float", "(n, state)"]),
    "whole number": (lambda s, a: 0, ["an int", "(n, state)"]),
    "function": (lambda s, a: lambda: s, ["a function", "expected a tensor or a distribution"]),
    "class": (lambda s, a: dist.Normal, ["expected a tensor or a distribution"]),
    "scalar tensor": (lambda s, a: s.sum(), ["shape ()", "leading n is lost"]),
    "one row": (lambda s, a: s[0], ["shape (2,)", "leading n is lost"]),
    "transposed": (lambda s, a: (s + a).T, ["shape (2, 3)", "expected (3, 2)"]),
    "one column": (lambda s, a: s[:, :1], ["shape (3, 1)"]),
    "more columns": (lambda s, a: torch.cat([s, a], -1), ["shape (3, 4)"]),
    "one axis more": (lambda s, a: s[:, None], ["shape (3, 1, 2)"]),
    "complex": (lambda s, a: s + 0j, ["complex64", "real part"]),
    "law of one row": (
        lambda s, a: dist.Normal(s[0], 1.0).to_event(1),
        ["a Independent", "batch shape () and event shape (2,)", "expected (3,) and (2,)"],
    ),
    "law without rows": (
        lambda s, a: torch_dist.MultivariateNormal(torch.zeros(2), torch.eye(2)),
        ["MultivariateNormal of batch shape () and event shape (2,)", "lack the leading n"],
    ),
    "law of one column": (
        lambda s, a: torch_dist.Normal(s[:, :1], 1.0),
        ["Normal of batch shape (3, 1) and event shape ()"],
    ),
    "law of one axis more": (
        lambda s, a: dist.Normal(s[:, None], 1.0).to_event(1),
        ["batch shape (3, 1) and event shape (2,)"],
    ),
    "law of integers": (
        lambda s, a: torch_dist.Categorical(logits=s),
        ["Categorical of batch shape (3,) and event shape ()"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", OTHERS)
def test_what_is_no_next_state_is_named(kind):
    step, phrases = OTHERS[kind]
    with pytest.raises(ProgramError) as error:
        world(step)
    told = str(error.value)
    assert all(phrase.replace("an int", "a int") in told for phrase in phrases), told
    assert told.startswith("dynamics: step gave")


OF_SIMULATORS = [
    kind for kind in OTHERS
    if "law" not in kind and kind not in ("list", "array", "frame", "transposed", "one row")
]  # fmt: skip


@pytest.mark.parametrize("kind", OF_SIMULATORS)
def test_a_simulators_step_is_named_when_it_is_used(kind):
    step, phrases = OTHERS[kind]
    dynamics = world(Opaque(step))
    states, actions = torch.zeros(3, M), torch.zeros(3, M)
    with pytest.raises(ProgramError) as error:
        dynamics.advance(states, actions)
    assert phrases[0].replace("an int", "a int") in str(error.value), error.value


def test_a_step_that_spoils_later_rows_only_is_named_too():
    def step(s, a):
        return s if len(s) < 4 else s.sum(0)

    with pytest.raises(ProgramError, match=r"shape \(2,\) for 5 states"):
        simulate(world(step))


@pytest.mark.parametrize(
    ("start", "states", "phrases"),
    [
        (START, Space.real(3), ["start drew shape (2, 2)", "expected (2, 3)", "two worlds"]),
        (dist.Bernoulli(0.5), Space.real(2), ["start drew shape (3,)", "expected (3, 2)"]),
        (dist.Delta(torch.tensor(4)), Space.discrete(2), ["start drew 4", "integers 0 to 1"]),
        (dist.Delta(torch.tensor(0.5)), Space.discrete(2), ["start drew 0.5", "integers 0 to 1"]),
    ],
)
def test_a_start_outside_the_declared_states_is_named(start, states, phrases):
    with pytest.raises(ProgramError) as error:
        Dynamics(start, lambda s, a: s, Space.real(2), states=states)
    assert all(phrase in str(error.value) for phrase in phrases), error.value


@pytest.fixture
def unchecked():
    """Without the type checks of tests, which come before ours and draw from Python's stream."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("step", [lambda s, a: s, by_all_streams, Opaque(by_all_streams)])
def test_a_world_leaves_pythons_stream_alone(step):
    before = random.getstate()
    world(step)
    assert random.getstate() == before


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("parts", "told"),
    [
        ({"start": torch.zeros(2)}, "start is a Tensor; expected the law of s_0"),
        ({"start": np.zeros(2)}, "start is a ndarray"),
        ({"start": torch.zeros}, "start is a builtin_function_or_method"),
        (
            {"step": TABLE},
            "step is a Tensor; expected a function of states and actions, or Opaque",
        ),
        ({"step": None}, "step is a NoneType"),
        ({"actions": 2}, "actions is a int; expected a Space.\n  Declare Space.real(m)"),
        ({"actions": (2,)}, "actions is a tuple"),
        ({"states": 2}, "states is a int"),
        ({"states": torch.zeros(2)}, "states is a Tensor"),
    ],
)
def test_parts_of_another_type_are_named(parts, told):
    whole = {"start": START, "step": lambda s, a: s, "actions": Space.real(2)} | parts
    with pytest.raises(ProgramError) as error:
        Dynamics(**whole)
    assert str(error.value).startswith(f"dynamics: {told}"), error.value


HALF = torch.tensor([0.5, 0.25])
PRECISIONS = {
    "double": lambda s, a: (s + HALF * a).double(),
    "double constant": lambda s, a: s + HALF.double() * a,
    "half": lambda s, a: (s + HALF * a).half(),
    "whole": lambda s, a: (s + HALF * a).round().long(),
    "flags": lambda s, a: s > a,
    "double law": lambda s, a: dist.Delta((s + HALF * a).double(), event_dim=1),
    "law of integers": lambda s, a: dist.Categorical(logits=torch.stack([s, a], -1)).to_event(1),
    "flags of a law": lambda s, a: dist.Bernoulli(logits=s).to_event(1),
    "opaque double": Opaque(lambda s, a: (s + HALF * a).double()),
    "opaque array": Opaque(lambda s, a: s.numpy() + HALF.numpy() * a.numpy()),
    "opaque double array": Opaque(lambda s, a: s.numpy() + HALF.double().numpy() * a.numpy()),
    "opaque list": Opaque(lambda s, a: (s + HALF * a).tolist()),
    "opaque rows": Opaque(lambda s, a: [row.numpy() for row in s + HALF * a]),
    "opaque frame": Opaque(lambda s, a: pd.DataFrame((s + HALF * a).numpy())),
    "opaque with gradient": Opaque(lambda s, a: (s + HALF * a).requires_grad_()),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", PRECISIONS)
def test_next_states_take_the_precision_of_the_states(kind, dtype):
    step = PRECISIONS[kind]
    dynamics = world(step)
    states, actions = torch.randn(5, M, dtype=dtype), torch.randn(5, M, dtype=dtype)
    moved = dynamics.advance(states, actions)
    assert moved.dtype == dtype
    assert moved.shape == states.shape
    exact = states + HALF.to(dtype) * actions
    if kind in ("whole", "flags"):
        exact = step(states, actions).to(dtype)
    if "law of" not in kind and "of a law" not in kind:
        torch.testing.assert_close(moved, exact, rtol=0, atol=0.01 if kind == "half" else 1e-6)
    if isinstance(step, Opaque):
        assert not moved.requires_grad
    assert simulate(dynamics, dtype).dtype == dtype


def test_a_gradient_runs_through_a_step_of_another_precision():
    actions = torch.zeros(4, M, requires_grad=True)
    moved = world(PRECISIONS["double"]).advance(torch.zeros(4, M), actions)
    (gradient,) = torch.autograd.grad(moved.sum(), actions)
    assert gradient.tolist() == [HALF.tolist()] * 4


INTEGERS = {
    "floats": lambda s, a: (s + 1).remainder(3).float(),
    "int32": lambda s, a: (s + 1).remainder(3).int(),
    "opaque int32 array": Opaque(lambda s, a: ((s + 1) % 3).numpy().astype(np.int32)),
    "opaque float array": Opaque(lambda s, a: ((s + 1) % 3).numpy().astype(float)),
    "opaque list": Opaque(lambda s, a: ((s + 1) % 3).tolist()),
    "binomial": lambda s, a: torch_dist.Binomial(2, 0.5 * torch.ones(len(s))),
}


@pytest.mark.parametrize("kind", INTEGERS)
def test_integer_states_stay_integers(kind):
    start = dist.Categorical(torch.ones(3))
    dynamics = Dynamics(start, INTEGERS[kind], Space.discrete(2), Space.discrete(3))
    states = torch.tensor([0, 1, 2])
    moved = dynamics.advance(states, torch.zeros(3, dtype=torch.long))
    assert moved.dtype == torch.long
    if kind != "binomial":
        assert moved.tolist() == [1, 2, 0]
    assert simulate(dynamics).dtype == torch.long


@pytest.mark.parametrize("opaque", [False, True])
@pytest.mark.parametrize(
    ("step", "phrase"),
    [
        (lambda s, a: s + 3, "step gave [345]; expected the integers 0 to 2"),
        (lambda s, a: s - 3, "step gave -[123]; expected the integers"),
        (lambda s, a: s + 0.5, r"step gave [012]\.5; expected the integers"),
        (lambda s, a: s * torch.nan, "step gave nan; expected the integers"),
    ],
)
def test_what_is_no_integer_of_the_space_is_named(step, phrase, opaque):
    start = dist.Categorical(torch.ones(3))
    step = Opaque(step) if opaque else step
    with pytest.raises(ProgramError, match=phrase):
        Dynamics(start, step, Space.discrete(2), Space.discrete(3)).advance(
            torch.tensor([0, 1]), torch.tensor([0, 1])
        )


def test_a_start_of_flags_is_one_of_integers():
    """Bernoulli draws are floating-point numbers."""
    law = torch_dist.Bernoulli(0.5)
    dynamics = Dynamics(law, lambda s, a: 1 - s, Space.discrete(2), Space.discrete(2))
    states = dynamics.reset(6)
    assert states.dtype == torch.long
    assert (dynamics.advance(states, states) == 1 - states).all()


def test_errors_of_a_step_tell_their_type():
    def step(s, a):
        return s @ torch.eye(3)

    with pytest.raises(ProgramError, match="in the step of its dynamics with RuntimeError"):
        world(step)


def test_costs_are_found_with_noise_of_either_library():
    """Two libraries, one law: the same fit, number by number."""
    torch.manual_seed(0)
    data = {"states": torch.randn(40, 4, M), "actions": torch.randn(40, 3, M)}
    config = FitConfig.trajectories(
        3, rounds=2, pool=60, warm_start_steps=10, energy_steps=5, generator_steps_max=2,
        progress=False,
    )  # fmt: skip
    found = []
    for lib in (dist, torch_dist):
        noisy = world(lambda s, a, lib=lib: lib.Independent(lib.Normal(s + 0.3 * a, 0.2), 1))
        model = EnergyModel(Regulate(noisy))
        fit(model, data, config=config)
        found.append(model.program.weight.item())
    assert found[0] == pytest.approx(found[1], abs=1e-6)
    assert found[0] != 1
