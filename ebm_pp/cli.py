"""`ebm-pp fit | sample | diagnose | report | compare`: a program and a file in, a fit out."""

import argparse
import dataclasses
import importlib
import inspect
import json
import math
import sys
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import shtab
import torch
from torch import Tensor

from ebm_pp.checkpoint import load, save
from ebm_pp.comparison import compare
from ebm_pp.config import FitConfig
from ebm_pp.data import columns
from ebm_pp.datatree import to_datatree
from ebm_pp.density import EnergyModel, Sites
from ebm_pp.diagnostics import Report, diagnose
from ebm_pp.errors import CheckpointError, DataError, GeneratorError, ProgramError
from ebm_pp.evidence import Labels
from ebm_pp.findings import look_at
from ebm_pp.pareto import threshold
from ebm_pp.partition import log_partition_from_weights
from ebm_pp.pool import n_rows, pick
from ebm_pp.report import pictures, write_report
from ebm_pp.sampling import importance_sample, resample
from ebm_pp.training import Fit, fit

EXAMPLES = {
    "fit": """  ebm-pp fit models.planar:Planar --data points.npz --out runs/planar
  ebm-pp fit my_model.py:program --data table.csv --out runs/mine --rounds 30""",
    "diagnose": "  ebm-pp diagnose runs/planar --data other_rows.csv",
    "report": "  ebm-pp report runs/planar",
    "sample": """  ebm-pp sample runs/planar --n 1000 --out draws.csv
  ebm-pp sample runs/planar --weighted --out draws.parquet""",
    "compare": "  ebm-pp compare runs/planar runs/simpler --json",
}
FILES = """
DATA is a CSV, parquet or npz file. One column (array) per site; a vector site x has the columns
x[0], x[1], ... Without --held-out, every fifth row at random is held out.

exit codes: 0 healthy, 1 the diagnosis found a problem (of `sample` and `compare`: weights too
heavy-tailed to be trusted), 2 bad input."""


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    options = _parser().parse_args(arguments)
    commanded = {"fit": _fit, "diagnose": _diagnose, "report": _report,
                 "sample": _sample, "compare": _compare}[options.command]  # fmt: skip
    mpl.use("agg")
    try:
        return commanded(options)
    except (ProgramError, DataError, GeneratorError, CheckpointError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="ebm-pp",
        description="Fit an energy model declared as a Pyro program, and diagnose the fit.",
        epilog="\n".join(["examples:", *EXAMPLES.values(), FILES]),
        formatter_class=raw,
    )
    shtab.add_argument_to(parser, help="print the completion script of a shell, for its start-up")
    commands = parser.add_subparsers(dest="command", required=True)

    def command(name: str, does: str) -> argparse.ArgumentParser:
        """A subcommand with its own examples."""
        epilog = f"examples:\n{EXAMPLES[name]}\n{FILES}"
        return commands.add_parser(
            name, help=does, description=does, epilog=epilog, formatter_class=raw
        )

    fitting = command("fit", "fit a program to a file of data")
    fitting.add_argument("program", help="module:name or file.py:name of a Pyro program")
    _file(fitting, "--data", "CSV, parquet or npz file", required=True)
    _file(fitting, "--held-out", "file of rows never trained on")
    _folder(fitting, "--out", "folder to write", required=True)
    fitting.add_argument("--rounds", type=int, help="at most so many rounds")
    fitting.add_argument("--batch", type=int, help="rows of data a step")
    fitting.add_argument("--seed", type=int, default=0, help="of everything random (0)")
    fitting.add_argument("--quiet", action="store_true", help="no progress bar")
    again = command("diagnose", "print the report of a fit and redraw pictures")
    page = command("report", "write report.html, a page that opens anywhere")
    for one in (again, page):
        _folder(one, "out", "folder that `fit` wrote")
        _file(one, "--data", "other rows than the held-out ones")
    draws = command("sample", "write draws of a fit to a file")
    _folder(draws, "run", "folder that `fit` wrote")
    draws.add_argument("--n", type=int, default=1000, help="how many (1000)")
    _file(draws, "--out", "CSV, parquet or npz file to write", required=True)
    draws.add_argument("--weighted", action="store_true",
                       help="the generator's own draws, with a column log_weight")  # fmt: skip
    draws.add_argument("--seed", type=int, default=0, help="of the draws (0)")
    ranks = command("compare", "rank fits on held-out rows")
    _folder(ranks, "runs", "folders that `fit` wrote, two or more", nargs="+")
    _file(ranks, "--data", "rows; by default the held-out ones, if the same")
    for one in (fitting, again, page, ranks):
        one.add_argument("--json", action="store_true", help="print JSON, for programs")
    return parser


def _file(parser: argparse.ArgumentParser, name: str, says: str, **more: Any) -> None:  # noqa: ANN401
    """A path whose completion is files."""
    parser.add_argument(name, type=Path, help=says, **more).complete = shtab.FILE  # type: ignore[attr-defined]


def _folder(parser: argparse.ArgumentParser, name: str, says: str, **more: Any) -> None:  # noqa: ANN401
    """A path whose completion is folders."""
    parser.add_argument(name, type=Path, help=says, **more).complete = shtab.DIRECTORY  # type: ignore[attr-defined]


def _tell(result: Fit, report: Report, options: argparse.Namespace, wrote: str = "") -> int:
    """Prints a report, for people or as JSON; the exit code."""
    status = f"{result.status.value} {result.detail}".strip()
    if options.json:
        rows = [row._asdict() for row in report.rows]
        for row in rows:  # JSON knows no nan
            row["value"] = row["value"] if math.isfinite(row["value"]) else None
        found = {"ok": report.ok, "verdict": report.verdict, "problems": report.problems}
        print(json.dumps({"status": status, **found, "rows": rows}, indent=1))
    else:
        print(f"{wrote}{status}\n\n{report}")
    return 0 if report.ok else 1


def write_run(
    result: Fit,
    held_out: Sites,
    out: Path,
    *,
    groups: Labels | None = None,
    spec: str = "",
    seed: int = 0,
) -> Report:
    """Diagnoses a fit on held-out rows and writes everything a reader needs into a folder.

    Files: `fit.pt` (see `checkpoint`), `held_out.npz`, `run.json`, `report.txt`, `draws.nc`
    (ArviZ), and the pictures `weights.png`, `pairs.png`, `reweighting.png`, `moments.png`,
    `calibration.png`, `terms.png`, `energy.png` (in the plane), `energy_SITE.png` (of an angle),
    `training.png`.
    """
    out.mkdir(parents=True, exist_ok=True)
    save(result, out / "fit.pt")
    arrays: dict[str, Any] = {name: value.cpu().numpy() for name, value in held_out.items()}
    np.savez_compressed(out / "held_out.npz", **arrays)
    (out / "run.json").write_text(json.dumps({"program": spec, "seed": seed}) + "\n")
    if groups is not None:
        np.save(out / "groups.npy", np.asarray(groups))
    return _write_diagnosis(result, held_out, out, seed, groups)


def _write_diagnosis(
    result: Fit, held_out: Sites, out: Path, seed: int, groups: Labels | None = None
) -> Report:
    report = diagnose(result, held_out, groups=groups, seed=seed)
    (out / "report.txt").write_text(f"{result.status.value} {result.detail}\n\n{report}\n")
    tree = to_datatree(result, data=held_out, seed=seed)
    tree.to_netcdf(out / "draws.nc", engine="h5netcdf")
    for picture in pictures(result, held_out, report, seed):
        picture.figure.savefig(out / f"{picture.name}.png", dpi=110)
        plt.close(picture.figure)
    return report


def _fit(options: argparse.Namespace) -> int:
    torch.manual_seed(options.seed)  # of the networks' initial weights
    model = EnergyModel(find_program(options.program))
    data = model.check(read_rows(options.data, model))
    numbers = torch.arange(n_rows(data))
    if options.held_out is None:
        shuffled = torch.randperm(
            n_rows(data), generator=torch.Generator().manual_seed(options.seed)
        )
        fifth = n_rows(data) // 5
        held_out, data = pick(data, shuffled[:fifth]), pick(data, shuffled[fifth:])
        numbers = shuffled[fifth:]
    else:
        held_out = model.check(read_rows(options.held_out, model))
    chosen = {k: v for k in ("rounds", "batch") if (v := getattr(options, k)) is not None}
    progress = not options.quiet and sys.stderr.isatty()
    config = FitConfig(seed=options.seed, progress=progress, **chosen)
    with warnings.catch_warnings():
        # `check` has said it, by the numbers of the file's rows; those of the split are of no use.
        warnings.filterwarnings("ignore", message="the data:")
        result = fit(model, data, config=config, held_out=held_out)
    result = dataclasses.replace(result, findings=look_at(model, data, numbers))
    report = write_run(result, held_out, options.out, spec=options.program, seed=options.seed)
    return _tell(result, report, options)


def _diagnose(options: argparse.Namespace) -> int:
    result, held_out, groups, settings = _read_run(options.out, options.data)
    report = _write_diagnosis(result, held_out, options.out, settings["seed"], groups)
    return _tell(result, report, options)


def _report(options: argparse.Namespace) -> int:
    result, held_out, groups, settings = _read_run(options.out, options.data)
    path = options.out / "report.html"
    report = write_report(
        result, held_out, path, groups=groups, title=settings["program"], seed=settings["seed"]
    )
    return _tell(result, report, options, f"Wrote {path}.\n\n")


def _sample(options: argparse.Namespace) -> int:
    result, _, _, _ = _read_run(options.run, None)
    if options.n < 1:
        raise DataError(f"--n {options.n}: expected at least 1.")
    n = options.n if options.weighted else 4 * options.n  # so that few rows appear twice
    draws = importance_sample(result, max(n, 1000), seed=options.seed)
    weights = log_partition_from_weights(draws.log_weights)
    if options.weighted:
        rows = pick({**draws.values, "log_weight": draws.log_weights}, slice(options.n))
    else:
        rows = resample(draws, options.n, seed=options.seed)
    write_rows({name: value.cpu() for name, value in rows.items()}, options.out)
    print(f"Wrote {options.n} draws to {options.out}. Weights: ESS/n {weights.ess:.3f}, "
          f"Pareto k {weights.pareto_k:.2f}.")  # fmt: skip
    if weights.pareto_k <= threshold(len(draws.log_weights)):
        return 0
    print("These weights are too heavy-tailed: run `ebm-pp diagnose`.", file=sys.stderr)
    return 1


def _compare(options: argparse.Namespace) -> int:
    runs = {str(path): _read_run(path, options.data) for path in options.runs}
    if len(runs) < 2:
        raise CheckpointError("compare: got one folder; expected two different ones or more.")
    first = runs[str(options.runs[0])]
    for path, (_, rows, _, _) in runs.items():
        same = rows.keys() == first[1].keys() and all(
            torch.equal(rows[k], first[1][k]) for k in rows
        )
        if not same:
            raise DataError(
                f"{path}: its held-out rows are not those of {options.runs[0]}; expected the "
                "same, which no fit was trained on.\n  Name them: --data FILE."
            )
    table = compare({path: run[0] for path, run in runs.items()}, first[1], groups=first[2])
    print(table.to_json(orient="index", indent=1) if options.json else table.round(3).to_string())
    return int(table.warning.any())


def _read_run(out: Path, data: Path | None) -> tuple[Fit, Sites, Tensor | None, dict[str, Any]]:
    """What `fit` wrote: the fit, rows to judge it by, their groups, program and seed."""
    run = out / "run.json"
    if not run.is_file():
        raise CheckpointError(f"{run}: no such file; expected a folder that `ebm-pp fit` wrote.")
    settings = json.loads(run.read_text())
    result = load(out / "fit.pt", find_program(settings["program"]))
    file = data or out / "held_out.npz"
    held_out = result.model.check(read_rows(file, result.model))
    saved = out / "groups.npy"
    groups = torch.from_numpy(np.load(saved)) if saved.exists() and not data else None
    return result, held_out, groups, settings


def find_program(spec: str) -> Callable[..., Any]:
    """The program that `module:name` or `file.py:name` names; a class is called without arguments.

    Raises:
        ProgramError: nothing by that name.
    """
    module_name, _, name = spec.partition(":")
    path = Path(module_name)
    folder, module_name = (
        (path.parent, path.stem) if path.suffix == ".py" else (Path(), module_name)
    )
    sys.path.insert(0, str(folder.resolve()))
    try:
        found: Any = getattr(importlib.import_module(module_name), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ProgramError(
            f"program {spec!r} not found: {error}.\n  Name it as module:name or file.py:name."
        ) from error
    finally:
        sys.path.pop(0)
    made: Any = found() if inspect.isclass(found) else found
    return made


def read_rows(path: Path, model: EnergyModel) -> dict[str, Any]:
    """Rows of a CSV, parquet or npz file, one array a site.

    Raises:
        DataError: no such file, another format, or a site without a column.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file.")
    if path.suffix == ".npz":
        try:
            arrays = np.load(path)
        except (ValueError, OSError, zipfile.BadZipFile) as error:
            raise DataError(f"{path}: not an npz file ({error}).") from error
        return {name: arrays[name] for name in arrays if name in model.sites}
    readers = {".csv": pd.read_csv, ".gz": pd.read_csv, ".parquet": pd.read_parquet}
    if path.suffix not in readers:
        raise DataError(f"{path}: expected .csv, .csv.gz, .parquet or .npz, got {path.suffix!r}.")
    try:
        table = readers[path.suffix](path)
    except (ValueError, OSError) as error:  # pandas' own errors are ValueErrors
        raise DataError(f"{path}: not a table ({error}).") from error
    rows: dict[str, Any] = {}
    for name, site in model.sites.items():
        vector = [f"{name}[{i}]" for i in range(int(np.prod(site.shape)))]
        columns = [name] if name in table or not site.shape else vector
        if not set(columns) <= set(table):
            raise DataError(
                f"site {name!r}: no column of that name in {path}; it has {list(table)}.\n"
                f"  Expected a column {name!r}, or {vector} for a vector."
            )
        rows[name] = table[columns].to_numpy().reshape(len(table), *site.shape)
    return rows


def write_rows(rows: Sites, path: Path) -> None:
    """Writes rows as `read_rows` reads them: a column a number, named x or x[0], x[1], ...

    Raises:
        DataError: another ending than .csv, .csv.gz, .parquet or .npz.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npz":
        arrays: dict[str, Any] = {name: value.numpy() for name, value in rows.items()}
        np.savez_compressed(path, **arrays)
        return
    table = pd.DataFrame({name: column.numpy() for name, column in columns(rows).items()})
    if path.suffix == ".parquet":
        table.to_parquet(path)
    elif path.suffix in (".csv", ".gz"):
        table.to_csv(path, index=False)
    else:
        raise DataError(f"{path}: expected .csv, .csv.gz, .parquet or .npz, got {path.suffix!r}.")
