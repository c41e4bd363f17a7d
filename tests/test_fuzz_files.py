"""Files of any bytes given to the loaders and the command line."""

import contextlib
import functools
import inspect
import io
import json
import math
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from fuzzing import as_users_call, names, odd, same, tried, weighing
from hypothesis import example, given
from hypothesis import strategies as st
from test_fuzz_entrance import Program, fitted, rows

import ebm_pp
from ebm_pp import EnergyModel, cli, files

SCRATCH = tempfile.TemporaryDirectory(prefix="ebm_pp_fuzz_")
HERE = Path(SCRATCH.name)
KINDS = [".csv", ".csv.gz", ".parquet", ".npz"]
single = st.floats(width=32, allow_nan=False, allow_infinity=False, allow_subnormal=False)


# --- tables -------------------------------------------------------------------------------------
@functools.cache
def model_of(shapes):
    def program():
        for name, shape in shapes:
            pyro.sample(name, dist.Normal(torch.zeros(shape), 1.0).to_event(len(shape)))

    return EnergyModel(program)


sites = st.dictionaries(names, st.sampled_from([(), (1,), (2,), (3,), (2, 2)]), min_size=1,
                        max_size=3)  # fmt: skip


@weighing(2)
@given(sites, st.integers(1, 5), st.sampled_from(KINDS), st.data())
def test_rows_written_are_read_back_whole(shapes, n, kind, data):
    model = model_of(tuple(shapes.items()))
    path = HERE / f"rows{kind}"
    given_ = {}
    for name, shape in shapes.items():
        size = n * math.prod(shape)
        numbers = data.draw(st.lists(single, min_size=size, max_size=size))
        given_[name] = torch.tensor(numbers, dtype=torch.float32).reshape(n, *shape)
    with as_users_call():
        files.write_rows(given_, path)
        read = model.lazy(files.read_rows(path, model))
        assert same({name: read[name][:] for name in given_}, given_)


TABLE = {"x": np.arange(12.0).reshape(6, 2) / 8, "y": np.arange(1.0, 7.0) / 4}


@functools.cache
def whole(kind):
    """The bytes of a table that the program reads."""
    path = HERE / f"whole{kind}"
    files.write_rows({name: torch.tensor(value) for name, value in TABLE.items()}, path)
    return path.read_bytes()


@st.composite
def damage(draw, content):
    """Bytes that were hurt: cut, overwritten, repeated, of another kind."""
    how = draw(
        st.sampled_from(["cut", "tail", "flip", "flip", "insert", "zeros", "twice", "junk"])
    )
    at = draw(st.integers(0, len(content)))
    if how == "cut":
        return content[:at]
    if how == "tail":
        return content[at:]
    if how == "flip":
        hurt = bytearray(content)
        for _ in range(draw(st.integers(1, 4))):
            hurt[draw(st.integers(0, len(content) - 1))] ^= draw(st.integers(1, 255))
        return bytes(hurt)
    if how == "insert":
        return content[:at] + draw(st.binary(min_size=1, max_size=8)) + content[at:]
    if how == "zeros":
        return content[:at] + bytes(len(content) - at)
    return content + content if how == "twice" else draw(st.binary(max_size=64))


@weighing(8)
@given(st.sampled_from(KINDS), st.sampled_from(KINDS), st.data())
def test_a_damaged_table_is_refused_by_its_path_or_gives_numbers(kind, content, data):
    path = HERE / f"damaged{kind}"
    path.write_bytes(data.draw(damage(whole(data.draw(st.sampled_from([kind, content]))))))
    model = fitted().model
    found = tried(files.read_rows, path, model, names=[str(path)])
    if found is None:
        return
    checked = tried(model.check, found)
    if checked is not None:
        assert checked.keys() == TABLE.keys()
        assert all(value.isfinite().all() for value in checked.values())
    if kind in (".csv.gz", ".npz") and checked is not None and kind == content:
        # Check sums: what is read is what was written.
        assert all(len(value) in (6, 12) for value in checked.values())


cell = st.one_of(
    st.sampled_from(["", "1", "-2.5", "1e5", "nan", "inf", "a", "1,5", '"', "NA", " 3 ", "0x10",
                     "1_000", "True", "2020-01-01", "1;2", "\ufeff", "\uff11", "\u22121"]),
    st.floats(-5, 5).map(str), st.text(max_size=3),
)  # fmt: skip
header = st.lists(
    st.sampled_from(["x[0]", "x[1]", "y", "x", "", "y ", "X[0]", "x.0", "y.1", '"y"', "\ufeffy"]),
    max_size=5,
) | st.just(["x[0]", "x[1]", "y"])


@weighing(6)
@given(header, st.lists(st.lists(cell, max_size=5), max_size=4), st.sampled_from("\n\r;\t"))
def test_a_table_of_any_text_is_refused_by_its_path_or_read_as_it_stands(head, lines, end):
    path = HERE / "text.csv"
    text = [",".join(line) for line in [head, *lines]]
    path.write_text(end.join(text), encoding="utf-8", newline="")
    found = tried(files.read_rows, path, fitted().model, names=[str(path)])
    if found is not None:
        assert found["x"].shape == (len(found["y"]), 2)
        tried(fitted().model.check, found)


def read_as_given(path, columns):
    """Rows of a table whose columns hold one value each, or a refusal; no other value."""
    found = tried(files.read_rows, path, fitted().model)
    checked = None if found is None else tried(fitted().model.check, found)
    if checked is not None:
        read = {"x[0]": checked["x"][:, 0], "x[1]": checked["x"][:, 1], "y": checked["y"]}
        for name, value in read.items():
            assert value.tolist() == [float(np.float32(columns[name]))] * 3
    return checked


PLAIN = {"x[0]": -1, "x[1]": 2.5, "y": np.float32(0.3)}


@weighing(3)
@given(st.dictionaries(st.sampled_from(["x", "y", "x[0]", "x[1]"]), odd, max_size=3))
@example(PLAIN)
def test_arrays_and_columns_of_any_type_are_refused_by_their_path_or_read(columns):
    path = HERE / "odd.npz"
    try:
        np.savez(path, **{name: np.array([value] * 3) for name, value in columns.items()})
    except (TypeError, ValueError, OverflowError, RuntimeError):  # numpy can't write it
        return
    read_as_given(path, columns)
    path = HERE / "odd.parquet"
    try:
        pd.DataFrame({name: [value] * 3 for name, value in columns.items()}).to_parquet(path)
    except Exception:  # nor pyarrow
        return
    checked = read_as_given(path, columns)
    assert checked is not None or columns is not PLAIN


# --- saved fits ---------------------------------------------------------------------------------
@functools.cache
def saved():
    ebm_pp.save(fitted(), HERE / "fit.pt")
    return (HERE / "fit.pt").read_bytes()


def same_fit(one, other):
    """Whether two fits give the same numbers."""
    with as_users_call():
        x = ebm_pp.importance_sample(one, 20, seed=0)
        y = ebm_pp.importance_sample(other, 20, seed=0)
    return same(x.values, y.values) and same(x.log_weights, y.log_weights)


@weighing(5)
@given(st.data())
def test_a_damaged_fit_is_refused_by_its_path_or_is_the_same(data):
    path = HERE / "damaged.pt"
    path.write_bytes(data.draw(damage(saved())))
    found = tried(ebm_pp.load, path, Program(), names=[str(path)])
    if found is not None:
        assert same_fit(found, fitted())


def changed(content, where, value):
    """Nested settings with one of them another."""
    first, *rest = where
    inside = dict(content)
    inside[first] = changed(inside[first], rest, value) if rest else value
    return inside


def places(content, depth=2):
    for name, value in content.items():
        yield (name,)
        if isinstance(value, dict) and depth > 1:
            yield from ((name, *more) for more in places(value, depth - 1))


SAVED = (str, int, float, type(None), list, tuple, dict, torch.Tensor)
safe = odd.filter(lambda v: isinstance(v, SAVED))


@weighing(2)
@given(st.data(), safe)
def test_a_fit_with_another_setting_is_refused_by_its_path_or_works(data, value):
    saved()
    content = torch.load(HERE / "fit.pt", weights_only=True)
    where = data.draw(st.sampled_from(list(places(content))))
    path = HERE / "changed.pt"
    torch.save(changed(content, where, value), path)
    found = tried(ebm_pp.load, path, Program(), names=[str(path)])
    if found is not None:
        assert isinstance(found.status, ebm_pp.Status)
        assert str(found)
        tried(ebm_pp.importance_sample, found, 10, seed=0)


@pytest.mark.parametrize("at", [torch.tensor(3.0), torch.tensor([]), torch.tensor([7, 9]), 3.0])
def test_a_layer_that_moves_nothing_is_of_a_damaged_file(at):
    saved()
    content = torch.load(HERE / "fit.pt", weights_only=True)
    torch.save(changed(content, ("generator", "layers.0.moved"), at), HERE / "changed.pt")
    with as_users_call(), pytest.raises(ebm_pp.CheckpointError, match=r"changed\.pt"):
        ebm_pp.load(HERE / "changed.pt", Program())


# --- runs, by the command line ------------------------------------------------------------------
PROGRAM = (
    "import torch, pyro, pyro.distributions as dist\nfrom torch import nn\n\n\n"
    + inspect.getsource(Program)
)


@functools.cache
def run():
    """A folder as `fit` writes it, without pictures."""
    folder = HERE / "run"
    folder.mkdir()
    (HERE / "program.py").write_text(PROGRAM)
    with as_users_call():
        ebm_pp.save(fitted(), folder / "fit.pt")
        files.write_arrays(rows(), folder / "held_out.npz")
    np.save(folder / "groups.npy", np.arange(40) // 4)
    np.save(folder / "numbers.npy", np.arange(40))
    settings = {"program": f"{HERE / 'program.py'}:Program", "seed": 0}
    (folder / "run.json").write_text(json.dumps(settings))
    return folder


def commanded(*words):
    """The exit code and what was printed to the error stream."""
    told, shown = io.StringIO(), io.StringIO()
    with as_users_call(), contextlib.redirect_stderr(told), contextlib.redirect_stdout(shown):
        try:
            code = cli.main([str(word) for word in words])
        except SystemExit as stopped:  # of argparse
            code = stopped.code
    assert "Traceback" not in told.getvalue()
    return code, told.getvalue()


json_ = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner,
                                                                max_size=3), max_leaves=6,
)  # fmt: skip


@weighing(2)
@given(
    st.sampled_from(["fit.pt", "held_out.npz", "run.json", "groups.npy", "numbers.npy"]), st.data()
)
def test_a_command_says_which_file_of_a_run_is_damaged(name, data):
    folder = HERE / "hurt"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(run(), folder)
    content = (run() / name).read_bytes()
    if name == "run.json" and data.draw(st.booleans()):
        settings = json.loads(content)
        settings[data.draw(st.sampled_from([*settings, "sha256", "absolute"]))] = data.draw(json_)
        hurt = json.dumps(data.draw(st.sampled_from([settings, data.draw(json_)]))).encode()
    else:
        hurt = data.draw(damage(content))
    (folder / name).write_bytes(hurt)
    code, told = commanded("sample", folder, "--n", "5", "--out", HERE / "draws.csv")
    assert code in (0, 1, 2), told
    assert code != 2 or "hurt" in told or "program" in told, told


word = st.one_of(
    st.sampled_from([
        "fit", "sample", "diagnose", "report", "compare", "--n", "--out", "--data", "--seed",
        "--rounds", "--batch", "--weighted", "--json", "--quiet", "--held-out", "-1", "0", "1",
        "3", "1e3", "nan", "", ".", "/", "x" * 300, "rows.csv", "a\0b", "no:Such", "program.py",
    ]),
    st.text(max_size=4),
)  # fmt: skip


@weighing(6)
@given(
    st.sampled_from(["fit", "sample", "diagnose", "report", "compare"]), st.lists(word, max_size=6)
)
def test_a_command_of_any_words_ends_with_a_code(command, words):
    run()
    with contextlib.chdir(HERE):
        code, told = commanded(command, *words)
    assert code in (0, 1, 2), told


VALUES = ["0", "-1", "1", "2", "9" * 30, "1.5", "nan", "", "x", str(2**63), str(2**63 - 1)]


@weighing(2)
@given(
    st.sampled_from(["--n", "--seed"]),
    st.sampled_from(VALUES),
    st.sampled_from(
        ["d.csv", "d.npz", "d.parquet", "d.txt", "", ".", "d" * 300 + ".csv", "a\0.csv"]
    ),
)
def test_sample_takes_any_option(option, value, out):
    run()
    with contextlib.chdir(HERE):
        code, told = commanded("sample", "run", "--out", out, option, value)
    assert code in (0, 1, 2), told


# --- programs in files --------------------------------------------------------------------------
STOPS = [
    "raise ValueError('no')", "x = ", "import no_such_module", "exit(3)", "from nowhere import *",
    "\0", "1/0", "raise SystemExit",
]  # fmt: skip
GOES = "import pyro, pyro.distributions as d\ndef Program(): pyro.sample('x', d.Beta(2, 2))"
LINES = [
    *STOPS, GOES, "import torch", "def Program(): pass", "Program = 3", "Program = None",
    "class Program:\n    pass", "class Program:\n    def __init__(self, n): pass",
    "class Program:\n    def __call__(self): return 1", "Program = print",
    "def Program(n): pass", "import pyro\ndef Program():\n    pyro.sample(3, 4)",
]  # fmt: skip


@weighing(3)
@given(
    st.lists(st.sampled_from(LINES), max_size=3), st.sampled_from(["Program", "Other", "a.b", ""])
)
@example(["Program = 3", GOES, "import torch"], "Program")
@example([GOES, "Program = 3"], "Program")
@example([GOES, "raise SystemExit"], "Program")
def test_a_file_of_any_code_is_refused_by_name(lines, name):
    path = HERE / "odd_program.py"
    path.write_text("\n".join(lines))
    found = tried(files.find_program, f"{path}:{name}", names=["odd_program"])
    model = None if found is None else tried(EnergyModel, found)
    last = [line for line in lines if "Program" in line][-1:]
    goes = name == "Program" and last == [GOES] and not set(lines) & set(STOPS)
    assert (list(model.sites) if model else None) == (["x"] if goes else None)
