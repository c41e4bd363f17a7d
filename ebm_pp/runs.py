"""The folder of a run: all a reader of a fit needs, written whole and read from anywhere."""

import hashlib
import json
import os
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from ebm_pp.checkpoint import load, save
from ebm_pp.config import FitConfig
from ebm_pp.datatree import to_datatree
from ebm_pp.density import Sites
from ebm_pp.diagnostics import Report, diagnose
from ebm_pp.errors import CheckpointError, DataError
from ebm_pp.files import (
    find_program,
    first_line,
    program_file,
    read_rows,
    there,
    write_arrays,
    writing,
)
from ebm_pp.findings import said
from ebm_pp.fitted import Fit
from ebm_pp.labels import Labels, as_labels
from ebm_pp.names import file_name
from ebm_pp.pool import n_rows
from ebm_pp.report import pictures

# What is made from a fit: of an older one it must not lie beside the new one.
MADE = ["report.txt", "report.html", "draws.nc"] + [
    f"{name}.png" for name in ("weights", "pairs", "reweighting", "moments", "calibration",
                               "terms", "energy", "training")
]  # fmt: skip


def write_run(
    result: Fit,
    held_out: Sites,
    out: Path,
    *,
    groups: Labels | None = None,
    numbers: Int[Tensor, " rows"] | None = None,
    spec: str = "",
    seed: int = 0,
) -> Report:
    """Diagnoses a fit on held-out rows and writes everything a reader needs into a folder.

    With `numbers` the held-out rows are called as a user's file counts them, now and later.

    Files: `fit.pt` (see `checkpoint`), `held_out.npz`, `run.json`, `report.txt`, `draws.nc`
    (ArviZ), and the pictures `weights.png`, `pairs.png`, `reweighting.png`, `moments.png`,
    `calibration.png`, `terms.png`, `energy.png` (in the plane), `energy_SITE.png` (of an angle),
    `training.png`. Those of an older run go first, and its `report.html`.
    """
    with ExitStack() as whole:  # the old run is replaced when the new one is written
        names = ["fit.pt", "held_out.npz", "run.json"]
        names += [] if groups is None else ["groups.npy"]
        names += [] if numbers is None else ["numbers.npy"]
        part = {name: whole.enter_context(writing(out / name)) for name in names}
        save(result, part["fit.pt"])
        write_arrays({k: value.cpu() for k, value in held_out.items()}, part["held_out.npz"])
        settings = {"program": spec, "seed": seed, **_where(spec, out)}
        part["run.json"].write_text(json.dumps(settings) + "\n")
        if groups is not None:
            np.save(part["groups.npy"], as_labels(groups, n_rows(held_out)).numpy())
        if numbers is not None:
            np.save(part["numbers.npy"], numbers.numpy())
        angles = [f"energy_{file_name(site)}.png" for site in result.model.sites]
        older = {*MADE, *angles, "groups.npy", "numbers.npy"} - part.keys()
        for old in [out / name for name in older]:
            if old.is_file():
                old.unlink()
    return write_diagnosis(result, held_out, out, seed, groups, numbers)


def write_diagnosis(
    result: Fit,
    held_out: Sites,
    out: Path,
    seed: int,
    groups: Labels | None = None,
    numbers: Int[Tensor, " rows"] | None = None,
) -> Report:
    """The report, the tree and the pictures of a run; a picture that can't be drawn says why."""
    report = diagnose(result, held_out, groups=groups, numbers=numbers, seed=seed)
    text = f"{result.status.value} {result.detail}\n\n{report}\n"
    with writing(out / "report.txt") as part:
        part.write_text(text, encoding="utf-8")
    tree = to_datatree(result, data=held_out, seed=seed)
    with writing(out / "draws.nc") as part:
        tree.to_netcdf(part, engine="h5netcdf")
    missing = []
    for picture in pictures(result, held_out, report, seed):
        file = out / f"{picture.name}.png"
        if picture.missing:
            missing.append(f"{file.name}: {picture.missing}")
            file.unlink(missing_ok=True)  # of an older run
            continue
        with writing(file) as part:
            part.write_bytes(picture.png)
    if missing:
        lines = "\n".join(missing)
        print(lines, file=sys.stderr)
        with writing(out / "report.txt") as part:
            part.write_text(f"{text}\n{lines}\n", encoding="utf-8")
    return report


def require_writable(out: Path) -> None:
    """Makes the folder and tries to write in it, before anything is trained.

    Raises:
        DataError: it can't be made or written.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=out).close()
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise DataError(
            f"{out}: can't be written ({why}).\n  Name a folder that you may write to."
        ) from error


def _where(spec: str, out: Path) -> dict[str, str]:
    """Where the program's file is: absolutely, from the run's folder, and what is in it."""
    file = program_file(spec)
    if file is None:
        return {}
    full = file.resolve()
    digest = hashlib.sha256(full.read_bytes()).hexdigest()
    from_run = os.path.relpath(full, out.resolve())
    return {"absolute": str(full), "from_run": from_run, "sha256": digest}


def _program_of(settings: dict[str, str], out: Path) -> Callable[..., Any]:
    """The program of a run, from where its file is now: it may have moved with the run."""
    spec = settings["program"]
    where, _, name = spec.rpartition(":")
    if "sha256" not in settings:
        return find_program(spec)
    tried = [out / settings["from_run"], Path(settings["absolute"])]
    tried += [file for file in [program_file(spec)] if file is not None]
    found = [path for path in tried if there(path)]
    same = [p for p in found if hashlib.sha256(p.read_bytes()).hexdigest() == settings["sha256"]]
    if not found:
        raise CheckpointError(
            f"{out}: the program's file is gone; looked for {[str(path) for path in tried]}.\n"
            "  Put it back beside the run, or where it was."
        )
    if not same:
        print(f"{found[0]} has changed since this fit was made.", file=sys.stderr)
    file = (same or found)[0].resolve()
    if "." not in where or where.endswith(".py"):
        return find_program(f"{file}:{name}")
    return find_program(spec, file.parents[where.count(".")])  # of a package: from above it


class Run(NamedTuple):
    """What `ebm-pp fit` wrote.

    fit: the fit.
    rows: to judge it by.
    groups: their labels, if they have any.
    numbers: of the rows in the file that they were taken from, if they were.
    program: its name.
    seed: of everything random.
    """

    fit: Fit
    rows: Sites
    groups: Labels | None
    numbers: Int[Tensor, " rows"] | None
    program: str
    seed: int


def read_run(out: Path, data: Path | None) -> Run:
    """Reads a folder; with `data` the fit is to be judged by that file's rows.

    Raises:
        CheckpointError: the folder is none that `fit` wrote, or damaged.
        DataError: the rows do not fit the program.
    """
    run = out / "run.json"
    if not there(run):
        raise CheckpointError(
            f"{run}: no such file; expected a folder that `ebm-pp fit` wrote.\n  Check the path."
        )
    settings = _settings(out)
    result = load(out / "fit.pt", _program_of(settings, out))
    rows = read_rows(data or out / "held_out.npz", result.model)
    with nullcontext() if data else said():  # by the report, which knows the file's numbers
        held_out = result.model.check(rows)
    groups = None if data else _array(out / "groups.npy")
    numbers = None if data else _numbers(out / "numbers.npy", n_rows(held_out))
    return Run(result, held_out, groups, numbers, settings["program"], int(settings["seed"]))


def _settings(out: Path) -> dict[str, str]:
    """What `run.json` holds, as text.

    Raises:
        CheckpointError: it is damaged, or lacks something.
    """
    run = out / "run.json"
    try:
        settings = json.loads(run.read_text(encoding="utf-8"))
        text = {name: str(settings[name]) for name in ("program", "seed")}
        if "sha256" in settings:
            text |= {name: str(settings[name]) for name in ("absolute", "from_run", "sha256")}
        FitConfig(seed=settings["seed"])  # a flag or a fraction is none
    except (ValueError, LookupError, TypeError, OSError, RecursionError) as error:
        raise CheckpointError(
            f"{run}: damaged ({first_line(error)}).\n  Fit again, or take the folder from a copy."
        ) from error
    return text


def _numbers(saved: Path, n: int) -> Int[Tensor, " n"] | None:
    """Numbers of the held-out rows, if any were saved and the rows are still as many.

    Raises:
        CheckpointError: they are damaged.
    """
    found = _array(saved)
    if found is None:
        return None
    if found.dtype.kind != "i":
        raise CheckpointError(
            f"{saved}: {found.dtype}; expected whole numbers, one a held-out row.\n"
            "  Fit again, or take the folder from a copy."
        )
    return torch.from_numpy(found.astype(np.int64)) if found.shape == (n,) else None


def _array(saved: Path) -> np.ndarray | None:
    """Labels or numbers of the held-out rows, if any were saved.

    Raises:
        CheckpointError: they are damaged.
    """
    if not there(saved):
        return None
    try:
        return np.load(saved, allow_pickle=False)
    except Exception as error:  # whatever numpy makes of torn bytes
        raise CheckpointError(
            f"{saved}: damaged ({first_line(error)}).\n  Fit again, or take the folder from a "
            "copy."
        ) from error
