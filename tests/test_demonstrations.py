"""What is refused about demonstrations, naming trajectory and step."""

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

from ebm_pp import DataError, Dynamics, EnergyModel, PolicyGenerator, Space, pad, trajectory

T, N = 3, 5
START = dist.Normal(torch.zeros(2), 1.0).to_event(1)


class Program(nn.Module):
    def __init__(self, world):
        super().__init__()
        self.world, self.weight = world, nn.Parameter(torch.tensor(1.0))

    def forward(self):
        tau = trajectory(self.world, T)
        cost = tau.actions.reshape(T, -1).sum(-1) + tau.states[:-1].reshape(T, -1).sum(-1)
        with pyro.plate("time", T):
            pyro.factor("cost", -self.weight * cost)


def moved(s, a):
    return 0.9 * s + a


REAL = EnergyModel(Program(Dynamics(START, moved, Space.real(2))))
BOX = EnergyModel(Program(Dynamics(START, lambda s, a: s + 0 * a, Space.box([-1.0] * 2, 1.0))))
EDGES = EnergyModel(
    Program(Dynamics(START, lambda s, a: s + 0 * a, Space.box([-1.0] * 2, 1.0, edges=True)))
)
TABLE = torch.eye(3)[torch.tensor([[1, 2], [2, 0], [0, 1]])]
TABULAR = EnergyModel(Program(Dynamics.tabular(TABLE, torch.full((3,), 1 / 3))))


def rows(model=REAL):
    torch.manual_seed(0)
    world = model.layout.dynamics
    actions = world.actions.feasible(torch.randn(N, T, *world.actions.shape))
    states = [world.reset(N)]
    for t in range(T):
        states.append(world.advance(states[-1], actions[:, t]))
    return {"states": torch.stack(states, 1), "actions": actions}


@pytest.mark.parametrize("model", [REAL, BOX, EDGES, TABULAR])
def test_good_demonstrations_pass(model):
    checked = model.check({k: v.numpy() for k, v in rows(model).items()})
    assert checked["states"].dtype == (torch.long if model is TABULAR else torch.float32)


def broken(model, site, at, value):
    x = rows(model)
    x[site] = x[site].clone()
    x[site][at] = value
    return model, x


@pytest.mark.parametrize(
    ("case", "phrases"),
    [
        (lambda: broken(REAL, "states", (3, 2, 1), torch.nan),
         ["trajectory 3, step 2", "NaN", "missing observation"]),
        (lambda: broken(REAL, "actions", (1, 0, 0), torch.inf),
         ["trajectory 1, step 0", "action"]),
        (lambda: broken(REAL, "states", (2, 3, 0), 7.0),
         ["trajectory 2, step 3", "contradicts", "off by"]),
        (lambda: broken(BOX, "actions", (4, 1, 0), 1.5),
         ["trajectory 4, step 1", "outside the box", "-1, -1 to 1, 1"]),
        (lambda: broken(BOX, "actions", (4, 1, 1), 1.0), ["boundary", "edges=True"]),
        (lambda: broken(TABULAR, "actions", (0, 2), 5),
         ["trajectory 0, step 2", "integers 0 to 1"]),
        (lambda: broken(TABULAR, "states", (1, 1), (rows(TABULAR)["states"][1, 1] + 2) % 3),
         ["trajectory 1, step 1", "can't follow"]),
    ],
)  # fmt: skip
def test_the_first_bad_step_is_named(case, phrases):
    model, x = case()
    with pytest.raises(DataError) as error:
        model.check(x)
    assert all(phrase in str(error.value) for phrase in phrases), error.value


def test_mass_at_the_ends_of_a_box_is_welcome_where_declared():
    model, x = broken(EDGES, "actions", (4, 1, 1), 1.0)
    model.check(x)


@pytest.mark.parametrize(
    ("x", "phrases"),
    [
        ({**rows(), "states": [row.tolist() for row in rows()["states"][:4]] + [[[0.0, 0.0]]]},
         ["trajectory 4 has 1 steps", "expected 4", "pad("]),
        ({k: v[:0] for k, v in rows().items()}, ["0 rows"]),
        ({k: v[:, :-1] for k, v in rows().items()}, ["another horizon"]),
        ({"states": rows()["states"]}, ["'actions'", "missing"]),
        ({**rows(), "actions": rows()["actions"][:2]}, ["different numbers of rows"]),
    ],
)  # fmt: skip
def test_shapes_that_can_not_be_are_named(x, phrases):
    with pytest.raises(DataError) as error:
        REAL.check(x)
    assert all(phrase in str(error.value) for phrase in phrases), error.value


def test_fractions_are_no_integers():
    x = rows(TABULAR)
    states = x["states"].float()
    states[2, 1] = 0.5
    with pytest.raises(DataError, match=r"trajectory 2 holds 0\.5"):
        TABULAR.check({**x, "states": states})


def test_pad_ends_in_an_absorbing_state():
    found = pad([torch.ones(3, 2), torch.ones(4, 2)], [torch.ones(2, 1), torch.ones(3, 1)], 3)
    assert found["states"][0].tolist() == [[1, 1, 1], [1, 1, 1], [0, 0, 0], [0, 0, 0]]
    assert found["states"][1].tolist() == [[1, 1, 1]] * 4
    assert found["actions"][0].tolist() == [[1], [1], [0]]


KINDS = [
    lambda x: np.array(x), lambda x: torch.tensor(x), list, tuple, lambda x: np.array(x, np.uint8),
    lambda x: np.array(x, np.int32), lambda x: np.array(x, object), pd.Series,
    lambda x: pd.array(x, dtype="Int64"), lambda x: np.array(x, np.float32),
]  # fmt: skip


@pytest.mark.parametrize("of_states", KINDS)
@pytest.mark.parametrize("of_actions", KINDS)
def test_pad_takes_the_numbers_of_a_table(of_states, of_actions):
    found = pad([of_states([0, 4, 8]), of_states([5, 6, 7, 3])],
                [of_actions([1, 2]), of_actions([3, 2, 1])], 3)  # fmt: skip
    assert found["states"].tolist() == [
        [[0, 1], [4, 1], [0, 0], [0, 0]],
        [[5, 1], [6, 1], [7, 1], [3, 1]],
    ]
    assert found["actions"].tolist() == [[1, 2, 0], [3, 2, 1]]
    assert found["states"].is_floating_point()


@pytest.mark.parametrize("width", [None, 1, 2])
@pytest.mark.parametrize("action", [None, 1, 3])
@pytest.mark.parametrize("horizon", [4, 6])
def test_pad_against_a_plain_loop(width, action, horizon):
    lengths = [4, 1, 3]
    states = [torch.randn(n + 1, *(() if width is None else (width,))) for n in lengths]
    actions = [torch.randn(n, *(() if action is None else (action,))) for n in lengths]
    found, dim = pad(states, actions, horizon), (width or 1) + 1
    for i, n in enumerate(lengths):
        for t in range(horizon + 1):
            alive = t < n or (t == n and n == horizon)
            state = [*states[i][t].reshape(-1).tolist(), 1.0] if alive else [0.0] * dim
            assert found["states"][i, t].tolist() == state
        for t in range(horizon):
            move = actions[i][t] if t < n else torch.zeros_like(actions[i][0])
            assert torch.equal(found["actions"][i, t], move)


def test_pad_by_name_and_of_one_block():
    states = {"a": np.ones((3, 2)), "b": np.full((4, 2), 2.0)}
    actions = {"b": np.full((3, 1), 3.0), "a": np.ones((2, 1))}
    found = pad(states, actions, 3)
    listed = pad([states["a"], states["b"]], [actions["a"], actions["b"]], 3)
    assert torch.equal(found["states"], listed["states"])
    assert torch.equal(found["actions"], listed["actions"])
    block = pad(np.ones((5, 4, 2)), np.ones((5, 3, 1)), 3)
    assert block["states"].shape == (5, 4, 3)


def test_pad_keeps_precision_and_whole_actions():
    found = pad([np.ones((2, 1)), np.ones((3, 1), int)], [np.array([1]), [0, 1]], 2)
    assert found["states"].dtype == torch.float64
    assert found["actions"].dtype == torch.long
    of_none = pad([np.ones((1, 2)), np.ones((2, 2))], [[], [[0.5]]], 2)
    assert of_none["actions"].tolist() == [[[0.0], [0.0]], [[0.5], [0.0]]]


def test_a_missing_step_is_missing_after_pad_too():
    holed = np.ma.masked_equal([[1.0, 2.0], [-9.0, 2.0], [1.0, 2.0], [0.0, 0.0]], -9.0)
    found = pad([holed], [torch.ones(3, 2)], 3)
    assert found["states"][0, 1, 0].isnan()
    states = rows(TABULAR)["states"].double()
    states[2, 1] = torch.nan
    with pytest.raises(DataError, match=r"trajectory 2 holds nan.*\n.*missing observation"):
        TABULAR.check({**rows(TABULAR), "states": states})


ONE, TWO = torch.ones(3, 1), torch.ones(2, 1)


@pytest.mark.parametrize(
    ("states", "actions", "phrase"),
    [
        ([], [], "0 demonstrations"),
        ([torch.ones(2, 1)], [torch.ones(2, 1)], "one state more.*\n.*last state is missing"),
        ([torch.ones(5, 1)], [torch.ones(2, 1)], "one state more.*\n.*different trajectories"),
        ([torch.ones(6, 1)], [torch.ones(5, 1)], "at most 3 actions, the horizon.*\n.*Raise"),
        ([ONE, torch.ones(3, 2)], [TWO, TWO], r"trajectory 1: states of shape .2,. a step"),
        ([ONE, ONE], [TWO, torch.ones(2, 2)], r"trajectory 1: actions of shape .2,. a step"),
        ([ONE, ONE], [TWO, torch.ones(2)], r"trajectory 1: actions of shape .. a step"),
        ([ONE, ONE], [TWO], "2 trajectories of states and 1 of actions"),
        (ONE, TWO, "3 trajectories of states and 2 of actions.*\n.*without a list"),
        ([0, 4, 8], [1, 2], r"trajectory 0: states have shape ...*\n.*without a list"),
        ([torch.ones(3, 2, 2)], [TWO], r"shape .3, 2, 2..*\n.*Flatten"),
        ({"a": ONE}, {"b": TWO}, r"names .'a'., actions .'b'."),
        ({"a": ONE}, [TWO], "names .'a'., actions list"),
        ([["left", "right"]], [TWO], "trajectory 0: states has dtype <U5"),
        ([[[1.0], [1.0, 2.0], [1.0]]], [TWO], "trajectory 0: states: rows have different lengths"),
        (3, 2, "trajectories are int"),
        (
            [ONE],
            np.array([3]),
            "trajectory 0: actions are the single number 3.*\n.*without a list",
        ),
        ([ONE], [2.5], "trajectory 0: actions are the single number 2.5"),
    ],
)
def test_pad_refuses(states, actions, phrase):
    with pytest.raises(DataError, match=phrase):
        pad(states, actions, 3)


@pytest.mark.parametrize("horizon", [0, -1, True])
def test_a_horizon_is_a_whole_number(horizon):
    with pytest.raises(DataError, match=r"horizon=.*whole number"):
        pad([ONE], [TWO], horizon)


def test_another_width_is_not_called_another_horizon():
    x = rows()
    states = [[list(s) for s in row] for row in x["states"].tolist()]
    states[1][2] = [0.0]
    with pytest.raises(DataError, match="steps of one trajectory have several widths"):
        REAL.check({**x, "states": states})
    with pytest.raises(DataError, match=r"reshape to \(-1, 3, 2\)"):
        REAL.check({**x, "actions": x["actions"].reshape(N, -1)})


@pytest.mark.parametrize("make", [lambda v: v.numpy(), lambda v: v.tolist(), lambda v: v.double()])
@pytest.mark.parametrize("model", [REAL, TABULAR])
def test_a_policy_and_a_program_score_trajectories_of_any_container(model, make):
    x = rows(model)
    generator = PolicyGenerator(model)
    other = {name: make(value) for name, value in x.items()}
    assert torch.equal(generator.log_prob(other), generator.log_prob(x))
    assert torch.equal(model.log_density(other), model.log_density(x))
    assert torch.equal(model.step_log_density(other), model.step_log_density(x))
