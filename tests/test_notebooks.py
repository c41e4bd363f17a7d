"""Every notebook runs from top to bottom."""

import runpy
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import pytest

NOTEBOOKS = sorted((Path(__file__).parents[1] / "experiments" / "notebooks").glob("*.py"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path):
    mpl.use("Agg")
    names = runpy.run_path(str(path))
    assert plt.get_fignums(), "a notebook shows something"
    plt.close("all")
    assert names["__name__"] != "__main__"
