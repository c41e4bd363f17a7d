"""`ebm-pp fit | sample | diagnose | report | compare`: a program and a file in, a fit out."""

import argparse
import dataclasses
import json
import math
import sys
import traceback
from pathlib import Path
from typing import Any

import matplotlib as mpl
import shtab
import torch

from ebm_pp.comparison import compare
from ebm_pp.config import FitConfig
from ebm_pp.density import EnergyModel
from ebm_pp.diagnostics import Report
from ebm_pp.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    GeneratorError,
    ProgramError,
)
from ebm_pp.evidence import require_density
from ebm_pp.files import (
    find_program,
    first_line,
    read_rows,
    write_rows,
)
from ebm_pp.findings import look_at, said
from ebm_pp.fitted import Fit, Status
from ebm_pp.names import unused
from ebm_pp.partition import log_partition_from_weights
from ebm_pp.pool import n_rows, pick
from ebm_pp.report import write_report
from ebm_pp.runs import read_run, require_writable, write_diagnosis, write_run
from ebm_pp.sampling import importance_sample, resample
from ebm_pp.stored import representative
from ebm_pp.training import fit

EXAMPLES = {
    "fit": """  ebm-pp fit models.planar:Planar --data points.npz --out runs/planar
  ebm-pp fit my_model.py:program --data table.csv --out runs/mine --rounds 30""",
    "diagnose": "  ebm-pp diagnose runs/planar --data other_rows.csv",
    "report": "  ebm-pp report runs/planar",
    "sample": """  ebm-pp sample runs/planar --n 1000 --out draws.csv
  ebm-pp sample runs/planar --weighted --out draws.parquet""",
    "compare": "  ebm-pp compare runs/planar runs/simpler --json",
}
INTERRUPTED = 130  # as a shell says of Ctrl-C
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
    except (KeyboardInterrupt, Exception) as error:  # the last place: what was not foreseen too
        if options.traceback:
            traceback.print_exc()
        code, said = _ended(error)
        print(said, file=sys.stderr)
        return code


def _ended(error: BaseException) -> tuple[int, str]:
    """The exit code for what ended a command, and what to say."""
    cause: BaseException | None = error
    while cause is not None:  # Python and others may turn an interrupt into an error of theirs
        if isinstance(cause, KeyboardInterrupt):
            return INTERRUPTED, "Interrupted: nothing more was written."
        cause = cause.__cause__ or cause.__context__
    if isinstance(
        error, ProgramError | DataError | GeneratorError | CheckpointError | ConfigError
    ):
        return 2, f"{type(error).__name__}: {error}"
    again = "Run again with --traceback to see where, and report it."
    return 3, f"Unforeseen {first_line(error)}\n  {again}"


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


def _fit(options: argparse.Namespace) -> int:
    chosen = {k: v for k in ("rounds", "batch") if (v := getattr(options, k)) is not None}
    chosen |= {"seed": options.seed, "progress": not options.quiet and sys.stderr.isatty()}
    FitConfig(**chosen)  # what is out of range is said before anything is read
    require_writable(options.out)
    torch.manual_seed(options.seed)  # of the networks' initial weights
    model = EnergyModel(find_program(options.program))
    data = model.check(read_rows(options.data, model))
    if model.layout is None:  # before rows are split: a row without a density is told by the file
        with torch.no_grad():
            require_density(model, representative(data))
    numbers, held_out_numbers = torch.arange(n_rows(data)), None
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
        held_out_numbers, numbers = shuffled[:fifth], shuffled[fifth:]
    else:
        held_out = model.check(read_rows(options.held_out, model))
    chosen_config = _config(model, chosen)
    with said():  # by `check`, which knew the numbers of the file's rows
        result = fit(model, data, config=chosen_config, held_out=held_out)
    result = dataclasses.replace(result, findings=look_at(model, data, numbers))
    report = write_run(
        result, held_out, options.out, numbers=held_out_numbers, spec=options.program,
        seed=options.seed,
    )  # fmt: skip
    code = _tell(result, report, options)
    if result.status is not Status.INTERRUPTED:
        return code
    print(f"Interrupted: what was fitted so far is in {options.out}.", file=sys.stderr)
    return INTERRUPTED


def _config(model: EnergyModel, chosen: dict[str, Any]) -> FitConfig:
    """What `fit` would take, with the options chosen."""
    if model.layout is not None:
        horizon, opaque = model.layout.horizon, model.layout.dynamics.opaque
        return FitConfig.trajectories(horizon, opaque=opaque, **chosen)
    return FitConfig(**chosen)


def _diagnose(options: argparse.Namespace) -> int:
    run = read_run(options.out, options.data)
    report = write_diagnosis(run.fit, run.rows, options.out, run.seed, run.groups, run.numbers)
    return _tell(run.fit, report, options)


def _report(options: argparse.Namespace) -> int:
    run = read_run(options.out, options.data)
    path = options.out / "report.html"
    with said():
        report = write_report(
            run.fit, run.rows, path, groups=run.groups, numbers=run.numbers, title=run.program,
            seed=run.seed,
        )  # fmt: skip
    return _tell(run.fit, report, options, f"Wrote {path}.\n\n")


def _sample(options: argparse.Namespace) -> int:
    result = read_run(options.run, None).fit
    if options.n < 1:
        raise DataError(f"--n {options.n}: expected at least 1.\n  Leave it out for 1000.")
    FitConfig(seed=options.seed)  # its range is the same
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
    runs = {str(path): read_run(path, options.data) for path in options.runs}
    if len(runs) < 2:
        raise CheckpointError(
            "compare: got one folder; expected two different ones or more.\n  Name another run."
        )
    first = runs[str(options.runs[0])]
    for path, (_, rows, *_) in runs.items():
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
