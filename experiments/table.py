"""Writes an experiment's rows to results/ with what is needed to run it again."""

import platform
import subprocess
from collections.abc import Sequence
from pathlib import Path

import torch

RESULTS = Path(__file__).parent / "results"
Row = dict[str, str | int | float | bool]


def write_table(name: str, title: str, command: str, rows: Sequence[Row], notes: str = "") -> str:
    """Writes results/NAME.md and returns its text."""
    text = "\n".join(
        [
            f"# {title}\n",
            f"Command: `{command}`  ",
            f"Commit: {commit()}; torch {torch.__version__}, Python {platform.python_version()}, "
            f"{torch.get_num_threads()} thread; CPU seconds are of the process.\n",
            markdown(rows),
            "",
            notes.strip(),
        ]
    )
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.md").write_text(text.rstrip() + "\n")
    return text


def markdown(rows: Sequence[Row]) -> str:
    """Rows as a table; a column for every key, in order of appearance."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    lines = ["| " + " | ".join(columns) + " |", "|" + " --- |" * len(columns)]
    lines += ["| " + " | ".join(_cell(row.get(c, "")) for c in columns) + " |" for row in rows]
    return "\n".join(lines)


def _cell(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.4f}" if isinstance(value, float) else str(value)


def commit() -> str:
    """The commit that is checked out, and whether anything that matters differs from it."""

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", *arguments], capture_output=True, text=True, check=True, cwd=RESULTS.parent
        ).stdout.strip()

    dirty = (
        " with uncommitted changes"
        if git("status", "--porcelain", "--", "../ebm_pp", "../models", "*.py")
        else ""
    )
    return git("rev-parse", "--short", "HEAD") + dirty
