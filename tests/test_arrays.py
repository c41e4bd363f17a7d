"""Every container that users bring: the same rows, or an error that names the cause."""

import math
from array import array
from collections import deque
from datetime import date, timedelta
from decimal import Decimal
from fractions import Fraction
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import scipy.sparse
import torch
import xarray as xr

from ebm_pp import DataError, EnergyModel, EnergyNet, FitConfig, FlowGenerator, diagnose, fit
from ebm_pp.sampling import log_prob

pytestmark = [
    pytest.mark.filterwarnings("ignore:The PyTorch API of MaskedTensors"),
    pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors"),
]
X = [0.5, 2.0, 3.25, 1.0]
V = [[0.5, 2.0], [3.25, 1.0], [4.0, 8.0]]


def program():
    pyro.sample("x", dist.Normal(0.0, 5.0))


def vector():
    pyro.sample("v", dist.Normal(torch.zeros(2), 5.0).to_event(1))


SCALAR, VECTOR = EnergyModel(program), EnergyModel(vector)


class Polars:
    """A column that only gives itself as an array, and says where it is null."""

    def __init__(self, values, nulls=()):
        self.values, self.nulls = values, nulls

    def to_numpy(self):
        return np.array(self.values)

    def is_null(self):
        return np.isin(np.arange(len(self.values)), self.nulls)


class Interface(Polars):
    def __array__(self, dtype=None, copy=None):
        return np.array(self.values, dtype=dtype)


def masked_tensor(values, mask):
    return torch.masked.masked_tensor(torch.tensor(values), torch.tensor(mask))


GOOD = {
    "list": lambda x: x,
    "tuple": tuple,
    "numpy": np.array,
    "float16": lambda x: np.array(x, np.float16),
    "big-endian": lambda x: np.array(x, ">f8"),
    "longdouble": lambda x: np.array(x, np.longdouble),
    "reversed view": lambda x: np.array(x[::-1])[::-1],
    "object": lambda x: np.array(x, object),
    "decimals": lambda x: [Decimal(str(v)) for v in x],
    "fractions": lambda x: [Fraction(v) for v in x],
    "array": lambda x: array("d", x),
    "deque": deque,
    "unmasked": np.ma.array,
    "mask of none": lambda x: np.ma.array(x, mask=[False] * 4),
    "Series": pd.Series,
    "Series, other index": lambda x: pd.Series(x, index=[7, 7, 1, 0]),
    "Index": pd.Index,
    "Float64": lambda x: pd.array(x, dtype="Float64"),
    "Series of Float32": lambda x: pd.Series(x, dtype="Float32"),
    "arrow": lambda x: pd.Series(x, dtype="double[pyarrow]"),
    "sparse column": lambda x: pd.arrays.SparseArray(x),
    "DataArray": xr.DataArray,
    "decoded": lambda x: xr.DataArray(x, attrs={"units": "m"}),
    "fill value of none": lambda x: xr.DataArray(x, attrs={"_FillValue": -999.0}),
    "tensor": torch.tensor,
    "double": lambda x: torch.tensor(x, dtype=torch.float64),
    "bfloat16": lambda x: torch.tensor(x).bfloat16(),
    "with a graph": lambda x: torch.tensor(x, requires_grad=True),
    "Parameter": lambda x: torch.nn.Parameter(torch.tensor(x)),
    "list of tensors": lambda x: [torch.tensor(v, requires_grad=True) for v in x],
    "list of numpy": lambda x: [np.float32(v) for v in x],
    "MaskedTensor": lambda x: masked_tensor(x, [True] * 4),
    "to_numpy": Polars,
    "__array__": Interface,
}


@pytest.mark.parametrize("name", GOOD)
def test_the_same_rows_from_every_container(name):
    taken = GOOD[name](list(X))
    rows = SCALAR.check({"x": taken})["x"]
    assert rows.dtype == torch.float32
    assert rows.tolist() == X
    exact = SCALAR.log_density({"x": torch.tensor(X)})
    torch.testing.assert_close(SCALAR.log_density({"x": taken}).detach(), exact, rtol=0, atol=0)


WHOLE = {
    "list": list,
    "numpy": np.array,
    "unsigned": lambda x: np.array(x, np.uint8),
    "Int64": lambda x: pd.array(x, dtype="Int64"),
    "int32": lambda x: torch.tensor(x, dtype=torch.int32),
    "range": lambda x: range(1, 4),
}


@pytest.mark.parametrize("name", WHOLE)
def test_whole_numbers_too(name):
    assert SCALAR.check({"x": WHOLE[name]([1, 2, 3])})["x"].tolist() == [1.0, 2.0, 3.0]
    expected = SCALAR.energy({"x": torch.tensor([1.0, 2.0, 3.0])})
    assert torch.equal(SCALAR.energy({"x": WHOLE[name]([1, 2, 3])}), expected)


TABLES = {
    "lists": lambda v: v,
    "DataFrame": pd.DataFrame,
    "DataFrame of mixed numbers": lambda v: pd.DataFrame(v).astype({0: "Float64", 1: "float32"}),
    "column of arrays": lambda v: pd.Series([np.array(row) for row in v]),
    "column of lists": pd.Series,
    "rows as arrays": lambda v: [np.array(row) for row in v],
    "rows as tensors": lambda v: [torch.tensor(row) for row in v],
    "matrix": lambda v: np.asfortranarray(v),
    "DataArray": xr.DataArray,
}


@pytest.mark.parametrize("name", TABLES)
def test_tables(name):
    assert VECTOR.check({"v": TABLES[name](V)})["v"].tolist() == V


MISSING = {
    "masked": lambda: np.ma.masked_equal([0.5, -999.0, 3.0, -999.0], -999.0),
    "masked integers": lambda: np.ma.array([1, 2, 3, 4], mask=[0, 1, 0, 1]),
    "a list with masked": lambda: [0.5, np.ma.masked, 3.0, np.ma.masked],
    "None": lambda: [0.5, None, 3.0, None],
    "NaN": lambda: [0.5, math.nan, 3.0, math.nan],
    "objects": lambda: np.array([1, None, Decimal(3), Decimal("NaN")], object),
    "NA": lambda: pd.Series([1, None, 3, None], dtype="Int64"),
    "NA among objects": lambda: pd.Series([1, pd.NA, 3, pd.NA], dtype=object),
    "NaT among objects": lambda: pd.Series([1.0, pd.NaT, 3.0, pd.NaT], dtype=object),
    "extension array": lambda: pd.array([0.5, None, 3.0, None], dtype="Float64"),
    "arrow": lambda: pd.Series([1, None, 3, None], dtype="int64[pyarrow]"),
    "DataArray": lambda: xr.DataArray([0.5, np.nan, 3.0, np.nan]),
    "not decoded": lambda: xr.DataArray([1, -999, 3, -999], attrs={"_FillValue": -999}),
    "two fill values": lambda: xr.DataArray(
        [1.0, -9.0, 3.0, -8.0], attrs={"missing_value": [-9.0, -8.0]}
    ),
    "MaskedTensor": lambda: masked_tensor([0.5, 9.0, 3.0, 9.0], [True, False, True, False]),
    "masked integers of torch": lambda: masked_tensor([1, 9, 3, 9], [True, False, True, False]),
    "to_numpy": lambda: Polars([0.5, 0.0, 3.0, 0.0], [1, 3]),
}


@pytest.mark.parametrize("name", MISSING)
def test_what_the_object_calls_missing_is_refused_by_row(name):
    with pytest.raises(DataError) as caught:
        SCALAR.check({"x": MISSING[name]()})
    assert "site 'x': 2 of 4 rows are NaN or infinite (first: row 1" in str(caught.value)
    assert "rows 1, 3" in str(caught.value)
    assert "masked" in str(caught.value)


def test_one_masked_number_costs_its_row():
    holed = np.ma.array(V, mask=[[0, 0], [0, 1], [0, 0]])
    for table in (holed, list(holed), [list(row) for row in holed], pd.DataFrame(holed)):
        with pytest.raises(DataError, match=r"1 of 3 rows are NaN or infinite .first: row 1"):
            VECTOR.check({"v": table})


def test_the_users_own_array_is_left_as_it_is():
    holed = np.ma.masked_equal([0.5, -999.0], -999.0)
    with pytest.raises(DataError):
        SCALAR.check({"x": holed})
    assert holed.data.tolist() == [0.5, -999.0]


WRONG = {
    "dates": (lambda: np.array(["2013-01-01"], "datetime64[D]"), "dates", "timedelta64(1, 'D')"),
    "dates as objects": (lambda: [date(2013, 1, 1)] * 4, "dates", "date"),
    "zoned dates": (lambda: pd.Series(pd.date_range("2013", periods=4, tz="UTC")), "dates", "D'"),
    "durations": (lambda: np.array([1, 2], "timedelta64[h]"), "durations", "timedelta64(1, 'h')"),
    "durations as objects": (lambda: [1.0, timedelta(1)], "durations|text", "timedelta"),
    "numpy durations as objects": (
        lambda: np.array([1.0, np.timedelta64(1, "D")], object), "durations", "timedelta64"),
    "text": (lambda: ["1.5", "2.5"], "text", "pd.to_numeric"),
    "bytes": (lambda: np.array([b"1.5"]), "text", "pd.to_numeric"),
    "text of pandas": (lambda: pd.Series(["1.5", None], dtype="string"), "text", "str"),
    "one cell of text": (lambda: [1.0, "n/a"], "text", "pd.to_numeric"),
    "flags": (lambda: [True, False], "flags", "bool"),
    "flags of pandas": (lambda: pd.array([True, None], dtype="boolean"), "flags", "bool"),
    "flags of torch": (lambda: torch.tensor([True]), "flags", "bool"),
    "a flag among numbers": (lambda: np.array([1.0, True], object), "flags", "bool"),
    "complex": (lambda: [1j, 2.0], "real and an imaginary part", "complex128"),
    "categories": (lambda: pd.Categorical([1, 2, 1]), "categories", "category"),
    "column of categories": (lambda: pd.Series([1.5], dtype="category"), "categories", "category"),
    "fields": (lambda: np.zeros(3, [("a", "f4"), ("b", "f4")]), "several fields", "x['field']"),
    "periods": (lambda: pd.period_range("2013", periods=3, freq="D"), "dates|text", "Period"),
    "all None": (lambda: [None, None], "missing entries", "None"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_what_is_no_number_is_named(name):
    make, cause, phrase = WRONG[name]
    with pytest.raises(DataError) as caught:
        SCALAR.check({"x": make()})
    text = str(caught.value)
    assert "site 'x' has dtype" in text
    assert "expected real numbers" in text
    assert any(part in text for part in cause.split("|")), text
    assert phrase in text
    assert "floating point" in text


NO_ARRAY = {
    "dict": (lambda: {"x": [1.0]}, "x['name']"),
    "generator": (lambda: (v for v in X), "list(x)"),
    "set": (lambda: {1.0, 2.0}, "list(x)"),
    "values of a dict": (lambda: {"a": 1.0}.values(), "list(x)"),
    "None": (lambda: None, "an array"),
    "namespace": (lambda: SimpleNamespace(), "an array"),
    "scipy's sparse": (lambda: scipy.sparse.csr_array(np.eye(2)), "x.toarray()"),
    "torch's sparse": (lambda: torch.eye(2).to_sparse(), "x.to_dense()"),
    "packed": (lambda: xr.DataArray([1, 2], attrs={"scale_factor": 0.1}), "decode_cf"),
}


@pytest.mark.parametrize("name", NO_ARRAY)
def test_what_is_no_array_is_named(name):
    make, fix = NO_ARRAY[name]
    with pytest.raises(DataError, match="site 'x'") as caught:
        SCALAR.check({"x": make()})
    assert fix in str(caught.value)


RAGGED = {
    "lists": lambda: [[1.0, 2.0], [1.0]],
    "tensors": lambda: [torch.zeros(2), torch.zeros(3)],
    "column of arrays": lambda: pd.Series([np.zeros(2), np.zeros(3)]),
    "nested": lambda: torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)]),
    "a number among rows": lambda: [[1.0, 2.0], 3.0],
}


@pytest.mark.parametrize("name", RAGGED)
def test_rows_of_several_lengths(name):
    with pytest.raises(DataError, match="site 'v': rows have different lengths"):
        VECTOR.check({"v": RAGGED[name]()})


@pytest.mark.parametrize("make", [list, np.array, lambda x: torch.tensor(x, dtype=torch.float64)])
def test_numbers_beyond_single_precision_are_not_called_missing(make):
    with pytest.raises(DataError, match="beyond single precision") as caught:
        SCALAR.check({"x": make([1.0, 1e300])})
    assert "1 of 2 rows" in str(caught.value)
    assert SCALAR.double().check({"x": make([1.0, 1e300])})["x"][1] == 1e300
    SCALAR.float()


def test_a_dataset_is_a_dict_of_rows():
    data = xr.Dataset({"x": ("time", X)})
    assert SCALAR.check(data)["x"].tolist() == X


@pytest.fixture(scope="module")
def small():
    """A short fit of a positive site."""

    def positive():
        x = pyro.sample("x", dist.LogNormal(0.0, 1.0))
        pyro.factor("f", -pyro.param("w", torch.tensor(0.1)) * x)

    torch.manual_seed(0)
    config = FitConfig(
        rounds=1, batch=64, pool=256, warm_start_steps=5, energy_steps=2, progress=False
    )
    return fit(EnergyModel(positive), {"x": torch.randn(200).exp()}, config=config)


def at_every_door(fitted, x):
    model = fitted.model
    return {
        "energy": model.energy({"x": x}),
        "log_base": model.log_base({"x": x}),
        "log_density": model.log_density({"x": x}),
        "term f": model.terms({"x": x})["f"],
        "log q": fitted.generator.log_prob({"x": x}),
    }


@pytest.mark.parametrize(
    "make",
    [list, np.array, pd.Series, lambda x: np.array(x, np.float32), lambda x: np.array(x, object),
     lambda x: torch.tensor(x, dtype=torch.float64), lambda x: torch.tensor(x).half()],
)  # fmt: skip
def test_unchecked_doors_convert(small, make):
    exact = at_every_door(small, torch.tensor([0.5, 2.0, 3.25]))
    found = at_every_door(small, make([0.5, 2.0, 3.25]))
    for name in exact:
        assert torch.equal(found[name], exact[name]), name
    rows = {"x": make([0.5, 2.0, 3.25])}
    values = log_prob(small, rows, n=100, seed=0).values
    assert torch.equal(values, log_prob(small, {"x": [0.5, 2.0, 3.25]}, n=100, seed=0).values)


def test_outside_the_support_no_density_is_finite(small):
    x = torch.tensor([1.0, -1.0, 0.0, math.nan, math.inf])
    found = at_every_door(small, x)
    for name in ("log_base", "log_density", "log q"):
        assert found[name].isfinite().tolist() == [True, False, False, False, False], name
        assert found[name][1] == found[name][2] == -math.inf, name
        assert found[name][3].isnan(), name
    for call in (
        lambda: log_prob(small, {"x": x[1:2]}, n=100),
        lambda: diagnose(small, {"x": x[:2]}, n=100),
    ):
        with pytest.raises(DataError, match=r"1 of . rows lie outside"):
            call()


OUTSIDE = {
    "exponential": (lambda: dist.Exponential(1.0), [-1.0, -1e-3]),
    "half normal": (lambda: dist.HalfNormal(1.0), [-1.0, -0.1]),
    "gamma": (lambda: dist.Gamma(2.0, 1.0), [-1.0, -5.0]),
    "uniform": (lambda: dist.Uniform(-1.0, 2.0), [-1.5, 2.5]),
    "beta": (lambda: dist.Beta(2.0, 2.0), [-0.5, 1.2]),
    "pareto": (lambda: dist.Pareto(1.0, 3.0), [0.5, -2.0]),
    "simplex": (lambda: dist.Dirichlet(torch.ones(2)), [[0.7, 0.7], [1.5, -0.5]]),
    "in a vector": (lambda: dist.Exponential(torch.ones(2)).to_event(1), [[1.0, -1.0], [-1.0, 1]]),
    "improper": (
        lambda: dist.ImproperUniform(dist.constraints.positive, (), ()), [-1.0, -2.0]),
}  # fmt: skip


@pytest.mark.parametrize("name", OUTSIDE)
def test_no_mass_outside_any_support(name):
    make, values = OUTSIDE[name]

    def bounded():
        x = pyro.sample("x", make())
        pyro.factor("f", x.sum().square().clamp(max=50.0))

    model = EnergyModel(bounded)
    x = {"x": torch.tensor(values)}
    inside = model.constrain(torch.randn(5, model.dim))[0]
    flow = FlowGenerator(model)
    for density in (model.log_density, model.log_base, flow.log_prob):
        assert (density(x) == -math.inf).all()
        assert density(inside).isfinite().all()
    assert torch.equal(model.log_density(inside), model.log_base(inside) - model.energy(inside))


def test_a_factor_that_is_no_number_outside_gives_no_density_there():
    def rooted():
        x = pyro.sample("x", dist.Exponential(1.0))
        pyro.factor("f", x.log())

    assert EnergyModel(rooted).log_density({"x": torch.tensor([-1.0])}).item() == -math.inf


@pytest.mark.parametrize("rows", [np.array(X), pd.Series(X), list(X), torch.tensor(X).double()])
def test_a_flow_starts_from_any_container(rows):
    flow = FlowGenerator(SCALAR, {"x": rows, "other": 1})
    assert torch.equal(flow.loc, torch.tensor(X).mean(0, keepdim=True))


def test_a_flow_names_the_missing_rows_it_was_given():
    for rows in ([1.0, None, 2.0], np.ma.masked_equal([1.0, -9.0, 2.0], -9.0), [1.0, math.inf, 2]):
        with pytest.raises(DataError, match=r"1 of 3 rows are NaN or infinite .first: row 1"):
            FlowGenerator(SCALAR, {"x": rows})


ROWS = torch.tensor([[0.0, 1.0], [2.0, 4.0], [3.0, 2.0], [1.0, 1.0]])
NETS = {
    "numpy": lambda x: x.numpy(),
    "double of numpy": lambda x: x.double().numpy(),
    "DataFrame": lambda x: pd.DataFrame(x.numpy()),
    "lists": lambda x: x.tolist(),
    "integers": lambda x: x.long(),
    "integers of numpy": lambda x: x.long().numpy(),
    "half": lambda x: x.half(),
    "DataArray": lambda x: xr.DataArray(x.numpy()),
    "graph": lambda x: x.clone().requires_grad_(),
}


@pytest.mark.parametrize("name", NETS)
def test_an_energy_network_takes_the_same_containers(name):
    torch.manual_seed(0)
    exact = EnergyNet(ROWS)
    torch.manual_seed(0)
    net = EnergyNet(NETS[name](ROWS))
    assert torch.equal(net(ROWS), exact(ROWS))
