"""`ebm-pp fit | sample | diagnose | report | compare`: a program and a file in, a fit out."""

import argparse
import hashlib
import json
import math
import os
import sys
import traceback
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import shtab
import torch
from torch import Tensor

from ebm_pp.checkpoint import load, save
from ebm_pp.comparison import compare
from ebm_pp.config import FitConfig
from ebm_pp.datatree import to_datatree
from ebm_pp.density import EnergyModel, Sites
from ebm_pp.diagnostics import Report, diagnose
from ebm_pp.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    GeneratorError,
    ProgramError,
)
from ebm_pp.files import find_program, read_rows, write_arrays, write_rows
from ebm_pp.labels import Labels
from ebm_pp.names import unused
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
heavy-tailed to be trusted), 2 bad input, 3 anything unforeseen, 130 interrupted."""


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    options = _parser().parse_args(arguments)
    commanded = {"fit": _fit, "diagnose": _diagnose, "report": _report,
                 "sample": _sample, "compare": _compare}[options.command]  # fmt: skip
    mpl.use("agg")
    try:
        return commanded(options)
    except (ProgramError, DataError, GeneratorError, CheckpointError, ConfigError) as error:
        if options.traceback:
            traceback.print_exc()
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("Interrupted before there was anything to keep.", file=sys.stderr)
        return 130
    except Exception as error:  # the last place: whatever was not foreseen
        if options.traceback:
            traceback.print_exc()
        first = str(error).strip().splitlines()[:1] or [""]
        print(
            f"Unforeseen {type(error).__name__}: {first[0][:300]}\n  Run again with --traceback "
            "to see where, and report it.",
            file=sys.stderr,
        )
        return 3


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
    for one in (fitting, again, page, draws, ranks):
        one.add_argument("--traceback", action="store_true", help="show where an error arose")
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
    _probe(out)
    save(result, out / "fit.pt")
    write_arrays({k: value.cpu() for k, value in held_out.items()}, out / "held_out.npz")
    settings = {"program": spec, "seed": seed, **_where(spec, out)}
    (out / "run.json").write_text(json.dumps(settings) + "\n")
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
    shown, missing = pictures(result, held_out, report, seed)
    for picture in shown:
        picture.figure.savefig(out / f"{picture.name}.png", dpi=110)
        plt.close(picture.figure)
    for line in missing:
        print(line, file=sys.stderr)
    return report


def _probe(out: Path) -> None:
    """Makes the folder and tries to write in it, before anything is trained.

    Raises:
        DataError: it can't be made or written.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        probe = out / ".probe"
        probe.write_text("")
        probe.unlink()
    except OSError as error:
        raise DataError(
            f"--out {out}: can't be written ({error}).\n  Name a folder that you may write to."
        ) from error


def _where(spec: str, out: Path) -> dict[str, str]:
    """Where the program's file is: absolutely, from the run's folder, and what is in it."""
    file = Path(spec.rpartition(":")[0])
    if file.suffix != ".py" or not file.is_file():
        return {}
    full = file.resolve()
    digest = hashlib.sha256(full.read_bytes()).hexdigest()
    from_run = os.path.relpath(full, out.resolve())
    return {"absolute": str(full), "from_run": from_run, "sha256": digest}


def _program_of(settings: dict[str, Any], out: Path) -> str:
    """The program's spec as it can be read from here: its file may have moved with the run."""
    spec = str(settings["program"])
    where, _, name = spec.rpartition(":")
    if "sha256" not in settings:
        return spec
    tried = [out / settings["from_run"], Path(settings["absolute"]), Path(where)]
    there = [path for path in tried if path.is_file()]
    same = [p for p in there if hashlib.sha256(p.read_bytes()).hexdigest() == settings["sha256"]]
    if not there:
        raise CheckpointError(
            f"{out}: the program's file is gone; looked for {[str(path) for path in tried]}.\n"
            "  Put it back beside the run, or where it was."
        )
    if not same:
        print(f"{there[0]} has changed since this fit was made.", file=sys.stderr)
    return f"{(same or there)[0]}:{name}"


def _fit(options: argparse.Namespace) -> int:
    chosen = {k: v for k in ("rounds", "batch") if (v := getattr(options, k)) is not None}
    progress = not options.quiet and sys.stderr.isatty()
    config = FitConfig(seed=options.seed, progress=progress, **chosen)
    _probe(options.out)
    torch.manual_seed(options.seed)  # of the networks' initial weights
    model = EnergyModel(find_program(options.program))
    data = model.check(read_rows(options.data, model))
    if options.held_out is None:
        shuffled = torch.randperm(
            n_rows(data), generator=torch.Generator().manual_seed(options.seed)
        )
        fifth = n_rows(data) // 5
        if not fifth:
            raise DataError(
                f"{options.data} has {n_rows(data)} rows; expected at least 5, a fifth of which "
                "is held out.\n  Give more rows, or rows to judge by: --held-out FILE."
            )
        held_out, data = pick(data, shuffled[:fifth]), pick(data, shuffled[fifth:])
    else:
        held_out = model.check(read_rows(options.held_out, model))
    result = fit(model, data, config=config, held_out=held_out)
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
        raise DataError(f"--n {options.n}: expected at least 1.\n  Leave it out for 1000.")
    n = options.n if options.weighted else 4 * options.n  # so that few rows appear twice
    draws = importance_sample(result, max(n, 1000), seed=options.seed)
    weights = log_partition_from_weights(draws.log_weights)
    if options.weighted:
        weight = unused("log_weight", draws.values)
        rows = pick({**draws.values, weight: draws.log_weights}, slice(options.n))
    else:
        rows = resample(draws, options.n, seed=options.seed)
    write_rows({name: value.cpu() for name, value in rows.items()}, options.out)
    print(f"Wrote {options.n} draws to {options.out}. Weights: ESS/n {weights.ess:.3f}, "
          f"Pareto k {weights.pareto_k:.2f}.")  # fmt: skip
    if not weights.heavy and weights.agrees:
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
        raise CheckpointError(
            f"{run}: no such file; expected a folder that `ebm-pp fit` wrote.\n  Check the path."
        )
    try:
        settings = json.loads(run.read_text())
        program, seed = str(settings["program"]), int(settings["seed"])
        saved = out / "groups.npy"
        groups = torch.from_numpy(np.load(saved)) if saved.exists() and not data else None
    except (ValueError, KeyError, TypeError, EOFError, OSError) as error:
        raise CheckpointError(
            f"{out}: run.json or groups.npy is damaged ({type(error).__name__}: {error}).\n  Fit "
            "again, or take the folder from a copy."
        ) from error
    result = load(out / "fit.pt", find_program(_program_of(settings, out)))
    held_out = result.model.check(read_rows(data or out / "held_out.npz", result.model))
    return result, held_out, groups, {"program": program, "seed": seed}
