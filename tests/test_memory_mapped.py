"""Rows of a file: the same fit as from memory, nothing written, no memory for what is not read."""

import math
import subprocess
import sys

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

from ebm_pp import EnergyModel, diagnose, fit, stored, to_datatree
from ebm_pp.config import FitConfig
from ebm_pp.errors import DataError
from ebm_pp.stored import Stored, some_rows
from models.network import Network

SHORT = FitConfig(
    rounds=2, pool=256, batch=64, energy_steps=4, generator_steps=2, warm_start_steps=5,
    progress=False,
)  # fmt: skip


@pytest.fixture
def rows():
    return torch.randn(3000, 3, dtype=torch.float64) * torch.tensor([1.0, 2.0, 0.5]) + 1


@pytest.fixture
def on_disk(tmp_path, rows):
    """The rows as a read-only file of a type."""

    def make(dtype):
        np.save(tmp_path / "rows.npy", rows.numpy().astype(dtype))
        return np.load(tmp_path / "rows.npy", mmap_mode="r")

    return make


def learned(x, held_out=None):
    torch.manual_seed(1)
    model = EnergyModel(Network(torch.randn(500, 3), width=8))
    result = fit(model, {"x": x}, config=SHORT, held_out=held_out)
    numbers = [*model.parameters(), *result.generator.state_dict().values()]
    return result, torch.cat([number.detach().float().flatten() for number in numbers])


def scalar():
    pyro.sample("x", dist.Gamma(2.0, 1.0))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_same_fit_as_from_memory(on_disk, rows, dtype):
    mapped = on_disk(dtype)
    before = mapped.filename.read_bytes()
    _, expected = learned(rows.float())
    _, found = learned(mapped)
    assert torch.equal(found, expected)
    assert mapped.filename.read_bytes() == before


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_same_fit_from_a_tensor_of_a_file(tmp_path, rows, dtype):
    path = str(tmp_path / "rows.bin")
    rows.to(dtype).numpy().tofile(path)
    size = rows.numel()
    tensor = torch.from_file(path, shared=False, size=size, dtype=dtype).view(-1, 3)
    assert torch.equal(learned(tensor)[1], learned(rows.float())[1])


def test_data_that_fit_into_a_pool_are_read_whole(on_disk, rows):
    few = on_disk(np.float64)[:200]
    assert torch.equal(learned(few)[1], learned(rows[:200].float())[1])


def test_held_out_rows_diagnosis_and_tree_take_a_file_too(on_disk, rows, monkeypatch):
    monkeypatch.setattr(stored, "MOST_ROWS", 300)
    mapped = {"x": on_disk(np.float64)}
    result, found = learned(mapped["x"], held_out=mapped)
    again, expected = learned(rows.float(), held_out={"x": rows.float()})
    assert torch.equal(found, expected)
    assert result.history[-1]["held_out"] == again.history[-1]["held_out"]
    groups = torch.arange(len(rows)) // 10
    report = diagnose(result, mapped, 400, groups=groups)
    assert len(report.evidence.data.side.beyond) == 300
    tree = to_datatree(result, data=mapped, n=100)
    observed = tree["observed_data"]["x"].values
    assert observed.shape == (300, 3)
    in_file = {tuple(row) for row in rows.float().tolist()}
    assert {tuple(row) for row in observed.tolist()} <= in_file


def test_statistics_of_all_rows_come_from_rows_all_over_the_file(on_disk, rows, monkeypatch):
    monkeypatch.setattr(stored, "MOST_ROWS", 400)
    model = EnergyModel(Network(torch.randn(500, 3), width=8))
    some = stored.representative(model.stored({"x": on_disk(np.float64)}))["x"].double()
    error = rows.std(0) / math.sqrt(400)
    assert len(some) == 400
    assert ((some.mean(0) - rows.mean(0)).abs() < 3 * error).all()


@pytest.mark.parametrize("piece", [1, 7, 10**6])
def test_errors_count_over_all_pieces(tmp_path, monkeypatch, piece):
    monkeypatch.setattr("ebm_pp.stored.AT_ONCE", piece)
    model, x = EnergyModel(scalar), np.linspace(1, 2, 100)

    def text():
        np.save(tmp_path / "x.npy", x)
        with pytest.raises(DataError) as caught:
            model.stored({"x": np.load(tmp_path / "x.npy", mmap_mode="r")})
        return str(caught.value)

    x[[17, 31, 32, 50, 98, 99]] = -3.0
    x[[20, 90]] = 0.0
    outside = "6 of 100 rows lie outside GreaterThanEq(0) (first: row 17, value -3; rows 17, 31, "
    assert outside + "32, 50, 98, ...)" in text()
    x[x < 0] = 1.0
    edge = "2 of 100 rows lie on the boundary of GreaterThanEq(0) (first: row 20, value 0; rows "
    assert edge + "20, 90)" in text()
    x[99] = math.nan
    assert "1 of 100 rows are NaN or infinite (first: row 99, value nan)" in text()


@pytest.mark.parametrize("dtype", ["<f4", ">f4", "<f8", ">f8", "f2", "u1", "<i4", ">u2", "<i8"])
@pytest.mark.parametrize("target", [torch.float32, torch.float64])
def test_rows_of_every_type_and_layout(tmp_path, monkeypatch, dtype, target):
    monkeypatch.setattr(stored, "MAPPED", 1000)  # of several reads each
    whole = (np.arange(600) % 251).astype(dtype).reshape(100, 6)
    np.save(tmp_path / "x.npy", whole)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    at = torch.tensor([99, 0, 5, 5, -1, 42])
    for view in (lambda x: x, lambda x: x[10::3], lambda x: x[:, 1:3], lambda x: x[:, 2]):
        x, expected = view(mapped), torch.from_numpy(view(whole).astype(np.float64)).to(target)
        rows = Stored(x, target, torch.device("cpu"))
        assert len(rows) == len(expected)
        for i in (slice(None), slice(3, 17), slice(2, 2), at % len(expected)):
            assert rows[i].dtype == target
            assert torch.equal(rows[i], expected[i])


@pytest.mark.parametrize("mode", ["c", "r+"])
def test_changes_that_the_user_made_are_kept(tmp_path, mode):
    """Letting pages of a private mapping go would lose them."""
    np.save(tmp_path / "x.npy", np.zeros((5000, 4), dtype=np.float32))
    mapped = np.load(tmp_path / "x.npy", mmap_mode=mode)
    mapped[4000] = 7.0
    rows = Stored(np.asarray(mapped)[1:], torch.float32, torch.device("cpu"))
    for _ in range(2):
        assert rows[3998:4001].sum(1).tolist() == [0.0, 28.0, 0.0]
    assert mapped[4000].tolist() == [7.0] * 4


def test_what_is_read_is_a_copy(on_disk):
    mapped = on_disk(np.float32)
    first = mapped[0].copy()
    rows = Stored(mapped, torch.float32, torch.device("cpu"))
    rows[:].zero_()
    rows[torch.tensor([0])].zero_()
    assert (mapped[0] == first).all()


def test_every_row_is_as_likely_as_any_other():
    """Stretches of 2000 / 90 rows do not end at rows; chi-square of 2000 cells."""
    repeats = 4000
    at = torch.stack([some_rows(2000, 90) for _ in range(repeats)])
    assert (at.diff() >= 0).all()
    counts = torch.bincount(at.flatten(), minlength=2000).double()
    expected = 90 * repeats / 2000
    statistic = ((counts - expected) ** 2 / expected).sum().item()
    assert len(counts) == 2000
    assert abs(statistic - 2000) < 3 * math.sqrt(2 * 2000) + 90  # edges are drawn less evenly


def test_some_rows_are_distinct_where_there_are_few_more():
    assert some_rows(90, 90) == slice(None)
    for n in (91, 200, 360):
        assert len(some_rows(n, 90).unique()) == 90
    at = some_rows(10**12, 1000)  # at once
    assert at.min() >= 0
    assert at.max() < 10**12
    assert len(at.unique()) == 1000


MEASURED = r"""
import re, sys
import numpy as np, torch
from ebm_pp import EnergyModel, fit
from ebm_pp.config import FitConfig
from models.network import Network

def peak(x):
    model = EnergyModel(Network(torch.from_numpy(np.array(x[:500])).float(), width=8))
    fit(model, {"x": x}, config=FitConfig(
        rounds=2, pool=8192, batch=512, energy_steps=2, generator_steps=2, warm_start_steps=5,
        progress=False))
    status = open("/proc/self/status").read()  # getrusage would count the parent's peak
    return int(re.findall(r"VmHWM:\s+(\d+)", status)[0]) / 1024

torch.set_num_threads(1)
mapped = np.load(sys.argv[1], mmap_mode="r")
peak(mapped[:200_000])  # the second fit of a process finds the first one's memory in pieces
print(peak(mapped[:200_000]), peak(mapped))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc")
def test_peak_memory_does_not_grow_with_the_rows(tmp_path):
    """256 MB of a file against its first 51 MB, in a process of its own, not its first fit."""
    path = tmp_path / "rows.npy"
    file = np.lib.format.open_memmap(path, mode="w+", dtype=np.float64, shape=(1_000_000, 32))
    some = np.random.default_rng(0).normal(size=(20_000, 32))
    for i in range(0, len(file), len(some)):
        file[i : i + len(some)] = some
    del file
    command = [sys.executable, "-c", MEASURED, str(path)]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    small, large = map(float, text.split())
    assert large - small < 80
