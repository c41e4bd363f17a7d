import math
import time

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints
from pyro.nn import PyroModule

from ebm_pp.circle import Circle
from ebm_pp.density import EnergyModel
from ebm_pp.errors import DataError


def recipe():
    pyro.sample("mix", dist.Dirichlet(torch.ones(3)))
    pyro.sample("yield", dist.Beta(2.0, 2.0))
    pyro.sample("heat", dist.Gamma(2.0, 1.0))
    pyro.sample("angle", Circle())
    with pyro.plate("runs", 2):
        pyro.sample("x", dist.Normal(0.0, 1.0))


@pytest.fixture(scope="module")
def model():
    return EnergyModel(recipe)


@pytest.fixture
def rows(model):
    return model.constrain(torch.randn(40, model.dim))[0]


def with_value(rows, name, row, value):
    changed = rows[name].clone()
    changed[row] = torch.as_tensor(value, dtype=changed.dtype)
    return {**rows, name: changed}


def message(model, x):
    with pytest.raises(DataError) as caught:
        model.check(x)
    return str(caught.value)


def test_good_rows_come_back_unchanged(model, rows):
    checked = model.check(dict(reversed(rows.items())))
    assert list(checked) == list(model.sites)
    for name, value in checked.items():
        assert torch.equal(value, rows[name])


def test_numpy_lists_integers_and_frames_are_converted():
    def program():
        pyro.sample("x", dist.Normal(0.0, 1.0))
        pyro.sample("v", dist.Normal(torch.zeros(2), 1.0).to_event(1))

    model = EnergyModel(program)
    v = [[1.0, 2.0], [3.0, 4.0]]
    frame = pd.DataFrame({"x": [1, 2]})
    fixed = np.array([1.0, 2.0])
    fixed.setflags(write=False)
    for x in ([1.0, 2], np.array([1, 2]), frame["x"], fixed, np.array([1, 2], dtype=">f8")):
        checked = model.check({"x": x, "v": v})
        assert checked["x"].dtype == checked["v"].dtype == torch.float32
        assert checked["x"].tolist() == [1.0, 2.0]
        assert checked["v"].tolist() == v
    assert model.double().check({"x": [1, 2], "v": v})["x"].dtype == torch.float64


def test_dtype_follows_the_parameters():
    class Program(PyroModule):
        def __init__(self):
            super().__init__()
            self.loc = torch.nn.Parameter(torch.zeros((), dtype=torch.float64))

        def forward(self):
            pyro.sample("x", dist.Normal(self.loc, 1.0))

    model = EnergyModel(Program())
    assert model.check({"x": torch.zeros(3)})["x"].dtype == torch.float64
    assert model.float().check({"x": np.zeros(3)})["x"].dtype == torch.float32


@pytest.mark.parametrize("data", [torch.zeros(3), [1.0], None, pd.DataFrame({"x": [1.0]})])
def test_not_a_dict(model, data):
    text = message(model, data)
    assert f"the data are {type(data).__name__}" in text
    assert "expected a dict from site name to rows" in text
    assert "'heat'" in text


def test_missing_site(model, rows):
    del rows["heat"]
    text = message(model, rows)
    assert "site 'heat' is missing from the data" in text
    assert "got ['mix', 'yield', 'angle', 'x']" in text
    assert "rename" in text


def test_unknown_site(model, rows):
    text = message(model, {**rows, "cold": rows["heat"]})
    assert "site 'cold' of the data is unknown to the program" in text
    assert "leave it out" in text


@pytest.mark.parametrize(
    ("name", "shape", "phrases"),
    [
        ("heat", (40, 1), ("shape (40, 1)", "expected (n,)", "reshape to (-1,)")),
        ("heat", (), ("shape ()", "expected (n,)", "leading dimension of rows is missing")),
        ("mix", (40, 4), ("shape (40, 4)", "expected (n, 3)")),
        ("mix", (3,), ("shape (3,)", "x[None]")),
        ("x", (40,), ("shape (40,)", "expected (n, 2)")),
        ("x", (2, 40), ("shape (2, 40)", "rows first")),
    ],
)
def test_wrong_shape(model, rows, name, shape, phrases):
    text = message(model, {**rows, name: torch.zeros(shape)})
    assert f"site {name!r} has shape" in text
    for phrase in phrases:
        assert phrase in text


@pytest.mark.parametrize(
    ("value", "dtype"),
    [
        (np.array(["a"] * 40), "<U1"),
        (np.array([None] * 40), "object"),
        (np.array([True] * 40), "bool"),
        (np.ones(40, dtype=complex), "complex128"),
        (torch.ones(40, dtype=torch.bool), "bool"),
        (torch.ones(40, dtype=torch.complex64), "complex64"),
        (pd.Series(pd.date_range("2013-01-01", periods=40)), "datetime64"),
    ],
)
def test_wrong_dtype(model, rows, value, dtype):
    text = message(model, {**rows, "heat": value})
    assert "site 'heat' has dtype" in text
    assert dtype in text
    assert "expected real numbers" in text
    assert "convert it to floating point" in text


def test_ragged_rows(model, rows):
    text = message(model, {**rows, "x": [[1.0, 2.0], [1.0]]})
    assert "site 'x': rows have different lengths" in text
    assert "(n, 2)" in text


def test_different_numbers_of_rows(model, rows):
    text = message(model, {**rows, "heat": rows["heat"][:-1]})
    assert "different numbers of rows" in text
    assert "'mix': 40" in text
    assert "'heat': 39" in text
    assert "drop whole rows" in text


def test_no_rows(model, rows):
    text = message(model, {name: value[:0] for name, value in rows.items()})
    assert "the data are empty: 0 rows" in text
    assert "data=None" in text


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ["mix", "yield", "heat", "angle", "x"])
def test_not_finite(model, rows, name, bad):
    text = message(model, with_value(with_value(rows, name, 17, bad), name, 31, bad))
    assert f"site {name!r}: 2 of 40 rows are NaN or infinite (first: row 17, value" in text
    assert "rows 17, 31" in text
    assert "drop these rows" in text


def test_many_bad_rows_are_counted_not_listed(model, rows):
    rows["heat"][7:] = math.nan
    text = message(model, rows)
    assert "33 of 40 rows" in text
    assert "rows 7, 8, 9, 10, 11, ..." in text


@pytest.mark.parametrize(
    ("name", "value", "support"),
    [
        ("mix", [0.5, 0.6, 0.1], "Simplex"),
        ("mix", [1.2, -0.1, -0.1], "Simplex"),
        ("yield", 1.2, "Interval(0, 1)"),
        ("heat", -3.0, "GreaterThanEq(0)"),
    ],
)
def test_outside_the_support(model, rows, name, value, support):
    text = message(model, with_value(rows, name, 5, value))
    assert f"site {name!r}: 1 of 40 rows lie outside {support} (first: row 5, value" in text
    assert "support in the program" in text


@pytest.mark.parametrize(
    ("name", "value", "support"),
    [
        ("mix", [0.4, 0.0, 0.6], "Simplex"),
        ("yield", 1.0, "Interval(0, 1)"),
        ("yield", 0.0, "Interval(0, 1)"),
        ("yield", np.nextafter(1.0, 0.0), "Interval(0, 1)"),  # one, in single precision
        ("heat", 0.0, "GreaterThanEq(0)"),
    ],
)
def test_on_the_boundary(model, rows, name, value, support):
    text = message(model, with_value(rows, name, 17, value))
    assert f"site {name!r}: 1 of 40 rows lie on the boundary of {support}" in text
    assert "first: row 17, value" in text
    assert "rescale, or jitter inside" in text


BOUNDARIES = {
    "positive": (constraints.positive, (), 0.0, -1.0),
    "less_than": (constraints.less_than(2.0), (), 2.0, 3.0),
    "half_open": (constraints.half_open_interval(0.0, 2.0), (), 0.0, 2.5),
    "interval_vector": (
        constraints.independent(constraints.interval(torch.zeros(2), torch.tensor([1.0, 4.0])), 1),
        (2,),
        [0.5, 4.0],
        [0.5, 5.0],
    ),
    "ordered": (constraints.ordered_vector, (3,), [1.0, 2.0, 2.0], [1.0, 3.0, 2.0]),
    "positive_ordered": (
        constraints.positive_ordered_vector,
        (2,),
        [0.0, 2.0],
        [-1.0, 2.0],
    ),
    "lower_cholesky": (
        constraints.lower_cholesky,
        (2, 2),
        [[0.0, 0.0], [1.0, 1.0]],
        [[1.0, 1.0], [1.0, 1.0]],
    ),
    "corr_cholesky": (
        constraints.corr_cholesky,
        (2, 2),
        [[1.0, 0.0], [1.0, 0.0]],
        [[1.0, 0.0], [1.0, 1.0]],
    ),
}


@pytest.mark.parametrize("name", BOUNDARIES)
def test_boundaries_of_every_support(name):
    support, shape, edge, outside = BOUNDARIES[name]

    def program():
        pyro.sample("x", dist.ImproperUniform(support, (), shape))

    model = EnergyModel(program)
    rows = model.constrain(torch.randn(9, model.dim))[0]
    model.check(rows)
    assert "1 of 9 rows lie on the boundary of" in message(model, with_value(rows, "x", 3, edge))
    assert "1 of 9 rows lie outside" in message(model, with_value(rows, "x", 3, outside))


def test_angles_of_any_winding_are_data(model, rows):
    rows["angle"] = rows["angle"] + 20 * math.pi
    model.check(rows)


def test_simplex_rounding_is_forgiven_in_single_precision():
    def program():
        pyro.sample("p", dist.Dirichlet(torch.ones(200)))

    p = torch.rand(50, 200).softmax(-1)
    EnergyModel(program).check({"p": p})


def test_a_million_rows_are_quick(model):
    rows = model.constrain(torch.randn(1_000_000, model.dim))[0]
    start = time.process_time()
    model.check(rows)
    assert time.process_time() - start < 2
