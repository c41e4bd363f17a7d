"""What is refused about demonstrations, naming trajectory and step."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

from ebm_pp import DataError, Dynamics, EnergyModel, Space, pad, trajectory

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


@pytest.mark.parametrize(
    ("states", "actions", "phrase"),
    [
        ([], [], "0 demonstrations"),
        ([torch.ones(2, 1)], [torch.ones(2, 1)], "one\nstate more|last state is missing"),
        ([torch.ones(6, 1)], [torch.ones(5, 1)], "at most 3"),
    ],
)
def test_pad_refuses(states, actions, phrase):
    with pytest.raises(DataError, match=phrase):
        pad(states, actions, 3)
