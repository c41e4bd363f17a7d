"""Slips in a table, as a user meets them: the fit warns, the report begins with the rows."""

import math
import re

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

import ebm_pp
from ebm_pp import cli
from ebm_pp.errors import DataError

N = 1544
FAST = ebm_pp.FitConfig.fast(
    rounds=1, pool=512, batch=128, warm_start_steps=15, energy_steps=5, progress=False
)


class Weather(nn.Module):
    def __init__(self):
        super().__init__()
        self.pull = nn.Parameter(torch.zeros(2))

    def forward(self):
        speed = pyro.sample("speed", dist.LogNormal(2.1, 0.6))
        temperature = pyro.sample("temperature", dist.Normal(15.0, 10.0))
        pyro.sample("pressure", dist.Normal(1013.0, 10.0))
        direction = pyro.sample("direction", ebm_pp.Circle())
        pyro.factor("from the east", self.pull[0] * direction.cos())
        pyro.factor("warm", -(self.pull[1] ** 2) * ((temperature - 15) / 10) ** 2 / speed)


def clean():
    z = torch.randn(N, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return {
        "speed": (2.1 + 0.48 * z[:, 0]).exp(),
        "temperature": 15 + 8 * z[:, 1],
        "pressure": 1013 + 8 * z[:, 2],
        "direction": torch.remainder(0.5 + 0.6 * z[:, 3] + math.pi, 2 * math.pi) - math.pi,
    }


# name: (site, the slip, rows that have it)
SLIPS = {
    "a digit held down": ("speed", lambda v: 0 * v + 1e9, 1),
    "knots by 1000": ("speed", lambda v: 1943.844 * v, 3),
    "code 9999": ("speed", lambda v: 0 * v + 9999, 3),
    "code -999": ("temperature", lambda v: 0 * v - 999, 10),
    "kelvins": ("temperature", lambda v: v + 273.15, 3),
    "pascals": ("pressure", lambda v: 100 * v, 10),
    "point lost": ("pressure", lambda v: (10 * v).round(), 1),
    "sign": ("pressure", lambda v: -v, 3),
    "a date": ("temperature", lambda v: 20130415.0 + torch.arange(len(v)), 3),
    "degrees": ("direction", lambda v: 100 + 20.0 * torch.arange(len(v)), 3),
}


def with_slip(name):
    """The table, the site and the numbers of the rows."""
    site, slip, k = SLIPS[name]
    x, rows = clean(), torch.arange(17, N, 150)[:k]
    x[site][rows] = slip(x[site][rows]).double()
    return x, site, rows.tolist()


def told(text, site):
    """The numbers of the rows that a text names first, up to five."""
    found = re.search(rf"site '{site}': (?:row (\d+) has|\d+ rows \(([\d, ]+))", text)
    return {int(number) for number in (found[1] or found[2]).split(", ") if number}


def require_no_contradiction(report):
    """Of a bad report: no line says the opposite of another, nor of its own numbers."""
    rows = {row.name: row for row in report.rows}
    low, high = map(float, rows["log Z between"].text.split(" and "))
    assert low - 1e-3 <= rows["log Z"].value <= high + 1e-3
    if rows["log Z"].verdict == "not to be trusted":
        assert "ok" not in [
            rows[name].verdict
            for name in ("largest moment gap", "log-likelihood of rows", "offset b - log Z")
        ]
    for row in report.rows:
        if row.wanted.startswith(">= "):
            enough = float(row.text) >= float(row.wanted[3:])
            assert row.verdict == ("ok" if enough else "low")
    assert "Healthy" not in str(report)
    assert not report.ok


@pytest.mark.parametrize("name", SLIPS)
def test_the_report_of_a_fit_begins_with_the_rows(name):
    x, site, rows = with_slip(name)
    with pytest.warns(UserWarning, match=f"the data:\nsite '{site}'") as caught:
        fit = ebm_pp.fit(ebm_pp.EnergyModel(Weather()), x, config=FAST)
    assert told(str(caught[0].message), site) <= set(rows)
    assert "Far rows: training rows" in str(fit)
    report = ebm_pp.diagnose(fit, x, n=1000)
    assert report.problems[0] == "far_rows"
    assert report.where == site
    (finding,) = (found for whose, found in report.evidence.findings if whose == "these rows")
    assert sorted(finding.rows) == rows
    named = told(report.verdict, site)
    assert named <= set(rows)
    assert len(named) == min(len(rows), 5)
    require_no_contradiction(report)
    mended = {name: np.delete(value.numpy(), rows) for name, value in x.items()}
    assert ebm_pp.findings.look_at(fit.model, fit.model.stored(mended)) == ()


@pytest.mark.parametrize(
    ("value", "words"),
    [(3e38, "at row 17 the term 'temperature' is -inf"), (1e39, "first: row 17")],
)
def test_a_number_without_a_density_stops_the_fit_at_its_row(value, words):
    x = clean()
    x["temperature"][17] = value
    with pytest.raises(DataError, match=words):
        ebm_pp.fit(ebm_pp.EnergyModel(Weather()), x, config=FAST)


PROGRAM = """
import pyro, pyro.distributions as dist, torch
from torch import nn

class Weather(nn.Module):
    def __init__(self):
        super().__init__()
        self.pull = nn.Parameter(torch.zeros(()))

    def forward(self):
        speed = pyro.sample("speed", dist.LogNormal(2.1, 0.6))
        temperature = pyro.sample("temperature", dist.Normal(15.0, 10.0))
        pyro.factor("pull", self.pull * speed.log() * (temperature - 15) / 10)
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "weather.py").write_text(PROGRAM)
    for module in ("runs", "report"):  # most of a command's time
        monkeypatch.setattr(f"ebm_pp.{module}.pictures", lambda *_, **__: [])
    return tmp_path


def write_table(rows, value):
    x = {name: column[:400].clone() for name, column in clean().items()}
    x["speed"][rows] = value
    pd.DataFrame({k: x[k].numpy() for k in ("speed", "temperature")}).to_csv("t.csv", index=False)


def test_every_command_names_the_rows_of_the_file(folder, capsys):
    """Some are trained on, some held out; the file's numbers stay with them."""
    rows = list(range(3, 400, 40))
    write_table(rows, 1e6)
    words = "fit weather.py:Weather --data t.csv --out run --rounds 1 --batch 32 --quiet"
    with pytest.warns(UserWarning, match="10 rows"):
        assert cli.main(words.split()) == 1
    first = capsys.readouterr().out
    for command in ("diagnose run", "report run"):
        assert cli.main(command.split()) == 1
        assert first.split("\n\n", 1)[1] in capsys.readouterr().out
    for text in (first, (folder / "run" / "report.txt").read_text()):
        assert "Far rows: training rows, site 'speed': " in text
        trained, held_out = (
            line for line in text.splitlines() if line.startswith(("  training", "  these"))
        )
        parts = [told(line, "speed") for line in (trained, held_out)]
        assert parts[0] | parts[1] <= set(rows)
        assert not parts[0] & parts[1]
        assert "Healthy" not in text
    page = (folder / "run" / "report.html").read_text()
    assert held_out.strip().split(" (fatal)")[0].replace("'", "&#x27;") in page


def test_a_row_without_a_density_has_the_number_of_the_file(folder, capsys):
    write_table([321], 1e38)
    x = pd.read_csv("t.csv")
    x.loc[321, ["speed", "temperature"]] = [8.0, 3e38]
    x.to_csv("t.csv", index=False)
    with pytest.warns(UserWarning, match="row 321"):
        assert cli.main(["fit", "weather.py:Weather", "--data", "t.csv", "--out", "run"]) == 2
    assert "at row 321 the term 'temperature' is -inf" in capsys.readouterr().err
