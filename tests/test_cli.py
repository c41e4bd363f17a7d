"""The command line as its user types it, and the pictures it leaves."""

import json
import shutil
import subprocess

import numpy as np
import pandas as pd
import pytest
import shtab
import torch

from ebm_pp import EnergyModel, cli, files
from ebm_pp.errors import DataError, ProgramError

PROGRAM = """
import torch, pyro, pyro.distributions as dist
from torch import nn
from ebm_pp import Circle

class Compass(nn.Module):
    def __init__(self):
        super().__init__()
        self.weights = nn.Parameter(torch.zeros(2))

    def forward(self):
        angle = pyro.sample("angle", Circle())
        x = pyro.sample("x", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.factor("pull", self.weights[0] * angle.cos() + self.weights[1] * x.sum(-1))
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "compass.py").write_text(PROGRAM)
    random = np.random.default_rng(0)
    x = random.normal(0.3, 1, (600, 2))
    table = pd.DataFrame({"angle": random.vonmises(0, 1, 600), "x[0]": x[:, 0], "x[1]": x[:, 1]})
    table.to_csv(tmp_path / "rows.csv", index=False)
    table.to_parquet(tmp_path / "rows.parquet")
    np.savez(tmp_path / "rows.npz", angle=table["angle"], x=x)
    return tmp_path


@pytest.fixture
def program(folder):
    return files.find_program(f"{folder / 'compass.py'}:Compass")


def test_fit_then_diagnose(folder, capsys):
    out = folder / "run"
    spec = f"{folder / 'compass.py'}:Compass"
    common = ["--data", str(folder / "rows.csv"), "--out", str(out), "--quiet"]
    code = cli.main(["fit", spec, *common, "--rounds", "3", "--batch", "128"])
    printed = capsys.readouterr().out
    assert code in (0, 1)
    assert "Pareto k-hat" in printed
    names = {path.name for path in out.iterdir()}
    assert names >= {"fit.pt", "draws.nc", "held_out.npz", "run.json", "report.txt"}
    assert names >= {"training.png", "weights.png", "pairs.png", "energy_angle.png"}
    assert names >= {"moments.png", "terms.png"}
    assert json.loads((out / "run.json").read_text())["program"] == spec
    assert cli.main(["diagnose", str(out)]) == code
    again = capsys.readouterr().out
    assert again == printed  # the same report, to the digit
    assert cli.main(["diagnose", str(out), "--json"]) == code
    found = json.loads(capsys.readouterr().out)
    assert found["ok"] == (code == 0)
    assert found["verdict"] in printed.replace("\n", " ")
    assert found["rows"][0]["name"] == "proposal: Pareto k-hat"


@pytest.fixture
def run(folder):
    spec = f"{folder / 'compass.py'}:Compass"
    common = ["--data", str(folder / "rows.csv"), "--quiet", "--batch", "128"]
    cli.main(["fit", spec, *common, "--out", str(folder / "one"), "--rounds", "3"])
    cli.main(["fit", spec, *common, "--out", str(folder / "two"), "--rounds", "1"])
    return folder


def test_sample_writes_what_the_program_reads(run, program, capsys):
    model = EnergyModel(program)
    for kind in ("csv", "parquet", "npz"):
        path = run / f"draws.{kind}"
        assert cli.main(["sample", str(run / "one"), "--n", "50", "--out", str(path)]) in (0, 1)
        rows = model.check(files.read_rows(path, model))
        assert rows["x"].shape == (50, 2)
    assert "Wrote 50 draws" in capsys.readouterr().out
    weighted = run / "weighted.csv"
    cli.main(["sample", str(run / "one"), "--n", "50", "--out", str(weighted), "--weighted"])
    table = pd.read_csv(weighted)
    assert list(table) == ["angle", "x[0]", "x[1]", "log_weight"]
    assert table["log_weight"].std() > 0
    assert cli.main(["sample", str(run / "one"), "--out", str(run / "draws.txt")]) == 2
    assert cli.main(["sample", str(run / "one"), "--n", "0", "--out", str(weighted)]) == 2


def test_compare_ranks_runs_on_the_same_rows(run, capsys):
    runs = [str(run / "one"), str(run / "two")]
    capsys.readouterr()
    assert cli.main(["compare", *runs, "--json"]) in (0, 1)
    found = json.loads(capsys.readouterr().out)
    assert set(found) == set(runs)
    assert sorted(fit["rank"] for fit in found.values()) == [0, 1]
    assert cli.main(["compare", *runs]) in (0, 1)
    assert "elpd_diff" in capsys.readouterr().out
    np.savez(run / "two" / "held_out.npz", angle=np.zeros(3), x=np.zeros((3, 2)))
    assert cli.main(["compare", *runs]) == 2
    assert "not those of" in capsys.readouterr().err
    assert cli.main(["compare", *runs, "--data", str(run / "rows.csv")]) in (0, 1)
    assert cli.main(["compare", runs[0]]) == 2


def test_formats_agree(folder, program):
    model = EnergyModel(program)
    read = [files.read_rows(folder / f"rows.{kind}", model) for kind in ("csv", "parquet", "npz")]
    for rows in read:
        assert rows["x"].shape == (600, 2)
        for name in ("x", "angle"):
            np.testing.assert_allclose(rows[name], read[0][name])


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["fit", "no_such:Thing", "--data", "rows.csv"], "not found"),
        (["fit", "compass.py:Nothing", "--data", "rows.csv"], "not found"),
        (["fit", "compass.py:Compass", "--data", "missing.csv"], "no such file"),
        (["fit", "compass.py:Compass", "--data", "compass.py"], "expected .csv"),
        (["diagnose", "."], "no such file"),
    ],
)
def test_bad_input_is_told_and_exits_with_two(folder, monkeypatch, capsys, arguments, text):
    monkeypatch.chdir(folder)
    more = ["--out", "run"] if arguments[0] == "fit" else []
    assert cli.main([*arguments, *more]) == 2
    assert text in capsys.readouterr().err


def test_a_missing_column_is_named(folder, program):
    model = EnergyModel(program)
    (folder / "bad.csv").write_text("angle,x[0]\n0.1,0.2\n")
    with pytest.raises(DataError, match=r"site 'x': no column.*bad\.csv"):
        files.read_rows(folder / "bad.csv", model)
    with pytest.raises(ProgramError, match="Name it as"):
        files.find_program("models.planar")


@pytest.mark.parametrize("command", ["fit", "diagnose", "report", "sample", "compare"])
def test_every_command_has_examples_that_parse(command, capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main([command, "--help"])
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    assert "exit codes" in text
    lines = [line.split() for line in text.splitlines() if line.startswith("  ebm-pp ")]
    assert lines
    for words in lines:
        assert cli._parser().parse_args(words[1:]).command == command


def test_a_shell_completes_commands_and_options(tmp_path):
    if shutil.which("bash") is None:
        pytest.skip("no bash on this machine")
    script = shtab.complete(cli._parser(), "bash")
    asked = """
    COMP_WORDS=(ebm-pp %s); COMP_CWORD=$((${#COMP_WORDS[@]} - 1)); _shtab_ebm_pp ebm-pp
    echo "${COMPREPLY[@]}"
    """
    for words, expected in (("com", "compare"), ("fit --ro", "--rounds")):
        run = subprocess.run(
            ["bash", "-c", script + asked % words], capture_output=True, text=True, cwd=tmp_path
        )
        assert run.stdout.split() == [expected]


def test_version_is_the_packages():
    from importlib.metadata import version

    import ebm_pp

    assert ebm_pp.__version__ == version("ebm-pp")
    assert torch.is_tensor(ebm_pp.Circle().sample())
