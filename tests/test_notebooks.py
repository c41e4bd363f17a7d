"""Every notebook runs from top to bottom, in few rounds."""

import re
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import pytest

NOTEBOOKS = sorted((Path(__file__).parents[1] / "experiments" / "notebooks").glob("*.py"))
PARAMETERS = re.compile(r'# %% tags=\["parameters"\]\nrounds = \d+')


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path):
    mpl.use("Agg")
    short, found = PARAMETERS.subn("rounds = 2", path.read_text())
    assert found == 1, "one cell of parameters, which sets `rounds`"
    exec(compile(short, str(path), "exec"), {"__name__": path.stem})
    assert plt.get_fignums(), "a notebook shows something"
    plt.close("all")
