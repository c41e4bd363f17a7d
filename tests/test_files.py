"""Programs and rows in files, and what the command line makes of bad ones."""

import gzip
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import zipfile

import numpy as np
import pandas as pd
import pytest
import torch

import ebm_pp
from ebm_pp import cli, runs
from ebm_pp.files import find_program, read_rows

WELL = """
import pyro, pyro.distributions as dist, torch
from torch import nn

class Program(nn.Module):
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.tensor(0.1))

    def forward(self):
        x = pyro.sample("x", dist.Normal(0.0, 2.0))
        pyro.factor("f", -self.w * x**POWER)
"""
SHORT = ["--rounds", "1", "--batch", "64", "--quiet"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, power in (("a", 2), ("b", 4)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "my_model.py").write_text(WELL.replace("POWER", str(power)))
    x = np.random.default_rng(0).normal(size=300)
    pd.DataFrame({"x": x}).to_csv("t.csv", index=False)
    return tmp_path


def energy_at_2(program):
    return ebm_pp.EnergyModel(program).energy({"x": torch.tensor([2.0])}).item()


def test_two_files_of_one_name_are_two_programs(folder):
    found = [find_program(f"{name}/my_model.py:Program") for name in ("a", "b", "a")]
    assert [energy_at_2(program) for program in found] == pytest.approx([0.4, 1.6, 0.4])


@pytest.mark.parametrize("name", ["random", "torch", "numpy", "ebm_pp", "json", "my model"])
def test_a_file_is_itself_whatever_it_is_called(folder, name):
    shutil.copy("a/my_model.py", f"a/{name}.py")
    before = sys.modules.get(name)
    assert energy_at_2(find_program(f"a/{name}.py:Program")) == pytest.approx(0.4)
    assert sys.modules.get(name) is before
    assert sys.path[0] != str(folder / "a")


def test_a_file_imports_what_lies_beside_it(folder):
    for name, factor in (("a", 2), ("b", 3)):
        (folder / name / "constants.py").write_text(f"FACTOR = {factor}")
        text = (folder / name / "my_model.py").read_text()
        (folder / name / "my_model.py").write_text(
            "from constants import FACTOR\n" + text.replace("-self.w", "-FACTOR * self.w")
        )
    found = [find_program(f"{name}/my_model.py:Program") for name in ("a", "b")]
    assert [energy_at_2(program) for program in found] == pytest.approx([0.8, 4.8])
    assert "constants" not in sys.modules


BAD_PROGRAMS = {
    "no such file": ("c/none.py:Program", "no such file"),
    "no such name": ("a/my_model.py:Other", "has no 'Other'; it has"),
    "no name": ("a/my_model.py", "Name it as"),
    "no module": ("no_such_module:Program", "No module named"),
    "raises": ("raises.py:Program", "RuntimeError: not today"),
    "leaves": ("leaves.py:Program", "SystemExit"),
    "syntax": ("syntax.py:Program", "SyntaxError"),
    "arguments": ("arguments.py:Program", "called without arguments"),
}


@pytest.mark.parametrize("name", BAD_PROGRAMS)
def test_a_bad_program_is_named(folder, name, capsys):
    (folder / "raises.py").write_text("raise RuntimeError('not today')")
    (folder / "leaves.py").write_text("import sys; sys.exit(0)")
    (folder / "syntax.py").write_text("def Program(:")
    (folder / "arguments.py").write_text("class Program:\n    def __init__(self, n): pass")
    spec, words = BAD_PROGRAMS[name]
    assert cli.main(["fit", spec, "--data", "t.csv", "--out", "runs/x", *SHORT]) == 2
    assert words in capsys.readouterr().err


def test_a_run_finds_its_program_from_anywhere(folder, monkeypatch, capsys):
    assert cli.main(["fit", "a/my_model.py:Program", "--data", "t.csv", "--out", "a/runs/one",
                     *SHORT]) in (0, 1)  # fmt: skip
    printed = capsys.readouterr().out
    settings = json.loads((folder / "a/runs/one/run.json").read_text())
    assert settings["absolute"] == str(folder / "a/my_model.py")
    assert settings["from_run"] == "../../my_model.py"
    elsewhere = folder / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    assert cli.main(["diagnose", "../a/runs/one"]) in (0, 1)
    assert capsys.readouterr().out == printed
    # Moved with its program; the old place has another one now.
    shutil.move(folder / "a", folder / "moved")
    (folder / "a").mkdir()
    shutil.copy(folder / "b/my_model.py", folder / "a/my_model.py")
    assert cli.main(["diagnose", "../moved/runs/one"]) in (0, 1)
    assert capsys.readouterr().out == printed
    # Changed since.
    (folder / "moved/my_model.py").write_text(WELL.replace("POWER", "6"))
    cli.main(["diagnose", "../moved/runs/one"])
    assert "has changed since" in capsys.readouterr().err
    (folder / "moved/my_model.py").unlink()
    (folder / "a/my_model.py").unlink()
    assert cli.main(["diagnose", "../moved/runs/one"]) == 2
    assert "is gone" in capsys.readouterr().err


def test_compare_compares_two_programs(folder, capsys):
    for name in ("a", "b"):
        cli.main(["fit", f"{name}/my_model.py:Program", "--data", "t.csv", "--out",
                  f"runs/{name}", *SHORT])  # fmt: skip
    capsys.readouterr()
    assert cli.main(["compare", "runs/a", "runs/b", "--json"]) in (0, 1)
    elpd = [row["elpd"] for row in json.loads(capsys.readouterr().out).values()]
    assert abs(elpd[0] - elpd[1]) > 1e-3


# Bad files -------------------------------------------------------------------------------------
def _write(folder):
    x = np.random.default_rng(0).normal(size=30)
    (folder / "cell.csv").write_text("x\n" + "\n".join(map(str, x)) + "\nn/a?\n")
    (folder / "head.csv").write_text("x\n")
    (folder / "empty.csv").write_text("")
    (folder / "binary.csv").write_bytes(bytes(range(256)) * 4)
    (folder / "nan.csv").write_text("x\n1.0\nNA\n2.0\n" + "0.5\n" * 20)
    (folder / "other.csv").write_text("y\n" + "1.0\n" * 20)
    (folder / "four.csv").write_text("x\n1\n2\n3\n4\n")
    (folder / "folder.csv").mkdir()
    np.savez(folder / "objects.npz", x=np.array([1.0, None]))
    (folder / "torn.npz").write_bytes((folder / "objects.npz").read_bytes()[:100])
    np.save(folder / "array.npy", x)
    shutil.copy(folder / "array.npy", folder / "array.npz")
    pd.DataFrame({"x": x}).to_parquet(folder / "whole.parquet")
    (folder / "torn.parquet").write_bytes((folder / "whole.parquet").read_bytes()[:-40])
    packed = gzip.compress(b"x\n" + b"1.5\n" * 500)
    (folder / "torn.csv.gz").write_bytes(packed[: len(packed) // 2])
    (folder / "wrong.csv.gz").write_text("x\n1\n")
    (folder / "notes.txt").write_text("x\n1\n")


BAD_FILES = {
    "cell.csv": "holds text: 1 of 31 cells, the first 'n/a?' at row 30",
    "head.csv": "0 rows",
    "empty.csv": "not a table",
    "binary.csv": "DataError",
    "nan.csv": "row",
    "other.csv": "no column of that name",
    "four.csv": "4 rows",
    "folder.csv": "a folder; expected a file",
    "missing.csv": "no such file",
    "objects.npz": "arrays of objects",
    "torn.npz": "not an npz file",
    "array.npz": "npz file",
    "torn.parquet": "not a table",
    "torn.csv.gz": "not a table",
    "wrong.csv.gz": "not a table",
    "notes.txt": "expected .csv",
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_bad_file_is_exit_code_2_and_names_the_cause(folder, name, capsys):
    _write(folder)
    command = ["fit", "a/my_model.py:Program", "--data", name, "--out", "runs/x", "--rounds", "1"]
    assert cli.main([*command, "--batch", "2", "--quiet"]) == 2
    assert BAD_FILES[name] in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["npz", "csv", "csv.gz", "parquet"])
def test_a_file_larger_than_memory_is_not_called_damaged(folder, kind, monkeypatch, capsys):
    path = folder / f"large.{kind}"
    if kind == "npz":
        header = io.BytesIO()
        large = {"descr": "<f4", "fortran_order": False, "shape": (10**15,)}
        np.lib.format.write_array_header_1_0(header, large)
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("x.npy", header.getvalue() + bytes(100))
    else:
        path.write_bytes(b"x")

    def full(*_, **__):
        raise MemoryError("Unable to allocate 7 GiB")

    monkeypatch.setattr(pd, "read_csv", full)
    monkeypatch.setattr(pd, "read_parquet", full)
    command = ["fit", "a/my_model.py:Program", "--out", "runs/x", *SHORT]
    assert cli.main([*command, "--data", str(path)]) == 2
    told = capsys.readouterr().err
    size = path.stat().st_size
    assert f"large.{kind}: {size:,} bytes, which need more memory than there is" in told
    assert "MemoryError: Unable to allocate" in told
    assert "memory-mapped" in told


BAD_NUMBERS = {
    ("--rounds", "0"): "rounds=0",
    ("--batch", "-1"): "batch=-1",
    ("--seed", "-1"): "seed=-1",
    ("--batch", "500"): "240 rows; expected at least one batch of 500",
}


@pytest.mark.parametrize("more", BAD_NUMBERS)
def test_a_number_out_of_range_is_exit_code_2(folder, more, capsys):
    command = ["fit", "a/my_model.py:Program", "--data", "t.csv", "--out", "runs/x", "--quiet"]
    assert cli.main([*command, *more]) == 2
    assert BAD_NUMBERS[more] in capsys.readouterr().err


def test_the_folder_is_made_and_probed_before_training(folder, capsys):
    (folder / "taken").write_text("a file")
    begun = cli.main(["fit", "a/my_model.py:Program", "--data", "t.csv", "--out", "taken/run",
                      "--rounds", "100000", "--quiet"])  # fmt: skip
    assert begun == 2
    assert "can't be written" in capsys.readouterr().err


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    (folder / "my_model.py").write_text(WELL.replace("POWER", "2"))
    x = np.random.default_rng(0).normal(size=300)
    pd.DataFrame({"x": x}).to_csv(folder / "t.csv", index=False)
    out = folder / "one"
    cli.main(["fit", f"{folder}/my_model.py:Program", "--data", f"{folder}/t.csv", "--out",
              str(out), *SHORT])  # fmt: skip
    return out


DAMAGE = {
    "no run.json": ("run.json", None),
    "run.json torn": ("run.json", b"{"),
    "run.json without program": ("run.json", b'{"seed": 0}'),
    "run.json of another kind": ("run.json", b"[1]"),
    "fit.pt torn": ("fit.pt", b"PK\x03\x04"),
    "fit.pt empty": ("fit.pt", b""),
    "held_out.npz torn": ("held_out.npz", b"PK\x03\x04"),
    "no held_out.npz": ("held_out.npz", None),
    "groups.npy of text": ("groups.npy", b"text"),
    "numbers.npy of text": ("numbers.npy", b"text"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_run_is_exit_code_2(run, tmp_path, name, capsys):
    shutil.copytree(run, tmp_path / "copy")
    file, content = DAMAGE[name]
    if content is None:
        (tmp_path / "copy" / file).unlink()
    else:
        (tmp_path / "copy" / file).write_bytes(content)
    assert cli.main(["diagnose", str(tmp_path / "copy")]) == 2
    assert "Error: " in capsys.readouterr().err


FIELDS = {
    "dtype": "load", "status": "X", "config": {"rounds": 0}, "history": 3, "flow": {"x": 1},
    "model": 3, "generator": {}, "offset": "x", "n_train": None, "outskirts": {"a": 1},
}  # fmt: skip


@pytest.mark.parametrize("field", [*FIELDS, "new setting", "nan", "nan of q", "without"])
def test_a_file_whose_fields_are_wrong_is_a_checkpoint_error(run, tmp_path, field):
    program = find_program(f"{run.parent}/my_model.py:Program")
    content = torch.load(run / "fit.pt", weights_only=True)
    if field in FIELDS:
        content[field] = FIELDS[field]
    elif field == "nan":
        content["model"] = {k: v * float("nan") for k, v in content["model"].items()}
    elif field == "nan of q":  # a buffer
        content["generator"]["loc"] *= float("nan")
    elif field == "without":
        del content["config"]
    else:
        content["config"]["field_of_tomorrow"] = 1
    torch.save(content, tmp_path / "fit.pt")
    with pytest.raises(ebm_pp.CheckpointError, match=r"fit\.pt"):
        ebm_pp.load(tmp_path / "fit.pt", program)


def test_a_save_that_is_killed_leaves_the_old_file(run, tmp_path, monkeypatch):
    fit = ebm_pp.load(run / "fit.pt", find_program(f"{run.parent}/my_model.py:Program"))
    ebm_pp.save(fit, tmp_path / "fit.pt")
    whole = (tmp_path / "fit.pt").read_bytes()

    def torn(content, file):
        file.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", torn)
    with pytest.raises(KeyboardInterrupt):
        ebm_pp.save(fit, tmp_path / "fit.pt")
    assert (tmp_path / "fit.pt").read_bytes() == whole
    assert [path.name for path in tmp_path.iterdir()] == ["fit.pt"]


def test_the_unforeseen_is_exit_code_3_and_one_line(run, monkeypatch, capsys):
    def broken(*_, **__):
        raise ZeroDivisionError("somewhere deep")

    monkeypatch.setattr(runs, "diagnose", broken)
    assert cli.main(["diagnose", str(run)]) == 3
    error = capsys.readouterr().err
    assert "ZeroDivisionError: somewhere deep" in error
    assert "--traceback" in error
    assert "Traceback" not in error
    assert cli.main(["diagnose", str(run), "--traceback"]) == 3
    assert "Traceback" in capsys.readouterr().err


def test_an_interrupt_before_the_fit_is_exit_code_130(run, monkeypatch, capsys):
    timer = threading.Timer(0.3, lambda: os.kill(os.getpid(), signal.SIGINT))
    monkeypatch.setattr(cli, "read_run", lambda *_: timer.start() or threading.Event().wait(5))
    assert cli.main(["diagnose", str(run)]) == 130
    assert "Interrupted" in capsys.readouterr().err


class Interrupted:
    """What an import makes of Ctrl-C while a class body is run."""

    def __set_name__(self, owner, name):
        raise KeyboardInterrupt


def in_a_class_body():
    type("Record", (), {"field": Interrupted()})


def in_another_error():
    try:
        raise KeyboardInterrupt
    except KeyboardInterrupt as error:
        raise ebm_pp.ProgramError("importing failed") from error


def while_another_is_told():
    try:
        raise KeyboardInterrupt
    finally:
        raise OSError("the terminal is gone")


@pytest.mark.parametrize("ends", [in_a_class_body, in_another_error, while_another_is_told])
def test_an_interrupt_that_others_turned_into_an_error_is_one(ends, run, monkeypatch, capsys):
    monkeypatch.setattr(cli, "read_run", lambda *_: ends())
    assert cli.main(["diagnose", str(run)]) == 130
    assert capsys.readouterr().err == "Interrupted: nothing more was written.\n"


def test_the_package_runs_as_a_module():
    shown = subprocess.run(
        [sys.executable, "-m", "ebm_pp", "--help"], capture_output=True, text=True, check=True
    )
    assert "exit codes: 0 healthy" in shown.stdout


def test_sample_keeps_a_site_called_log_weight(tmp_path, capsys):
    (tmp_path / "m.py").write_text(WELL.replace("POWER", "2").replace('"x"', '"log_weight"'))
    x = np.random.default_rng(0).normal(size=300)
    pd.DataFrame({"log_weight": x}).to_csv(tmp_path / "t.csv", index=False)
    cli.main(["fit", f"{tmp_path}/m.py:Program", "--data", f"{tmp_path}/t.csv", "--out",
              f"{tmp_path}/run", *SHORT])  # fmt: skip
    command = ["sample", f"{tmp_path}/run", "--n", "50", "--weighted", "--out"]
    assert cli.main([*command, f"{tmp_path}/d.csv"]) in (0, 1)
    table = pd.read_csv(tmp_path / "d.csv")
    assert list(table) == ["log_weight", "log_weight_"]
    assert table["log_weight"].std() > 0.3
    model = ebm_pp.EnergyModel(find_program(f"{tmp_path}/m.py:Program"))
    assert len(read_rows(tmp_path / "d.csv", model)["log_weight"]) == 50
