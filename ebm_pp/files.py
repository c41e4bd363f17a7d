"""Programs and rows in files: how the command line reads and writes them.

A table has one column a site, or `x[0]`, `x[1]`, ... of a vector `x` (see `names.column_names`);
an npz file has one array a site. Nothing that is read runs code but the program itself.
"""

import importlib
import importlib.util
import inspect
import sys
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from torch import Tensor

from ebm_pp.data import columns
from ebm_pp.density import EnergyModel, Sites
from ebm_pp.errors import DataError, ProgramError
from ebm_pp.names import column_names

ENDINGS = (".csv", ".csv.gz", ".parquet", ".npz")


def find_program(spec: str) -> Callable[..., Any]:
    """The program that `module:name` or `file.py:name` names; a class is called without arguments.

    A file is loaded by where it lies, whatever it is called: two files of one name are two
    programs, and none can stand in for a module of Python's own. Modules beside it can be
    imported.

    Raises:
        ProgramError: no such file, module or name, or it fails when it is imported or called.
    """
    where, _, name = spec.rpartition(":")
    if not where or not name:
        raise ProgramError(
            f"program {spec!r} not found: no name of a function or class in it.\n  Name it as "
            "module:name or file.py:name."
        )
    try:
        module = _from_file(Path(where)) if where.endswith(".py") else _from_path(where)
    except ProgramError:
        raise
    except ModuleNotFoundError as error:
        raise ProgramError(
            f"program {spec!r} not found: {error}.\n  Name it as module:name or file.py:name, or "
            "install what it imports."
        ) from error
    except (Exception, SystemExit) as error:  # whatever a user's file does when it is run
        raise ProgramError(
            f"program {spec!r}: importing {where} failed with {type(error).__name__}: {error}.\n"
            "  Correct the file, or run it alone with python to see where."
        ) from error
    if not hasattr(module, name):
        there = [k for k, v in vars(module).items() if callable(v) and not k.startswith("_")]
        raise ProgramError(
            f"program {spec!r} not found: {where} has no {name!r}; it has {there[:10]}.\n"
            "  Name it as module:name or file.py:name."
        )
    found: Any = getattr(module, name)
    if not inspect.isclass(found):
        return found
    try:
        made: Any = found()
    except Exception as error:  # the user's own constructor
        raise ProgramError(
            f"program {spec!r}: {name}() failed with {type(error).__name__}: {error}.\n  A class "
            "is called without arguments: give them defaults, or name an instance."
        ) from error
    return made


def _from_file(path: Path) -> ModuleType:
    """The module of a file, under a name that no other file has."""
    if not path.is_file():
        raise ProgramError(f"program file {path}: no such file.\n  Check the path.")
    full = path.resolve()
    name = f"ebm_pp_program_{abs(hash(str(full))):x}"
    spec = importlib.util.spec_from_file_location(name, full)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # pickles and dataclasses look their module up
    with _beside(full.parent):
        spec.loader.exec_module(module)
    return module


def _from_path(name: str) -> ModuleType:
    with _beside(Path.cwd()):
        return importlib.import_module(name)


@contextmanager
def _beside(folder: Path) -> Iterator[None]:
    """Modules in the folder can be imported meanwhile, and are forgotten afterwards if new."""
    before = set(sys.modules)
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        for name in set(sys.modules) - before:
            origin = getattr(sys.modules[name], "__file__", None)
            if origin and Path(origin).parent == folder and not name.startswith("ebm_pp_program_"):
                del sys.modules[name]  # another program's folder may have one of this name


def read_rows(path: Path, model: EnergyModel) -> dict[str, Any]:
    """Rows of a CSV, parquet or npz file, one array a site.

    Raises:
        DataError: no such file, another format, a damaged file, a site without a column, or text
            in one.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file.\n  Check the path.")
    if path.suffix == ".npz":
        return _read_arrays(path, model)
    if not str(path).endswith(ENDINGS):
        raise DataError(
            f"{path}: expected .csv, .csv.gz, .parquet or .npz.\n  Save the table as one of these."
        )
    read = pd.read_parquet if path.suffix == ".parquet" else pd.read_csv
    try:
        table = read(path)
    except (ValueError, OSError, EOFError, LookupError, zipfile.BadZipFile) as error:
        raise DataError(
            f"{path}: not a table ({type(error).__name__}: {error}).\n  Most likely a damaged "
            "file, or one of another format: open it elsewhere, and save it again."
        ) from error
    if not len(table):
        raise DataError(f"{path}: 0 rows.\n  Most likely a header alone: save the rows too.")
    labels = column_names({name: int(np.prod(site.shape)) for name, site in model.sites.items()})
    return {
        name: _columns(table, name, labels[name], path).reshape(len(table), *site.shape)
        for name, site in model.sites.items()
    }


def _columns(table: pd.DataFrame, name: str, labels: list[str], path: Path) -> NDArray[Any]:
    """The numbers of one site."""
    wanted = [name] if name in table and len(labels) == 1 else labels
    if not set(wanted) <= set(table):
        raise DataError(
            f"site {name!r}: no column of that name in {path}; it has {list(table)}.\n"
            f"  Expected {'the column' if len(wanted) == 1 else 'the columns'} {wanted}."
        )
    for column in wanted:
        if table[column].dtype.kind not in "fiub":
            bad = pd.to_numeric(table[column], errors="coerce").isna() & table[column].notna()
            first = int(bad.to_numpy().argmax())
            raise DataError(
                f"site {name!r}: column {column!r} of {path} holds text: {int(bad.sum())} of "
                f"{len(table)} cells, the first {table[column].iloc[first]!r} at row {first}; "
                "expected numbers.\n  Correct or remove these rows; a missing value is an empty "
                "cell."
            )
    return table[wanted].to_numpy()


def _read_arrays(path: Path, model: EnergyModel) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            arrays = np.load(file, allow_pickle=False)
            if not isinstance(arrays, Mapping):
                raise ValueError("one array instead of one a site")
            return {name: arrays[name] for name in arrays if name in model.sites}
    except (ValueError, OSError, EOFError, KeyError, MemoryError, zipfile.BadZipFile) as error:
        raise DataError(
            f"{path}: not an npz file of numbers ({type(error).__name__}: {error}).\n  Most "
            "likely a damaged file, or arrays of objects (None, text): save arrays of numbers."
        ) from error


def write_rows(rows: Sites, path: Path) -> None:
    """Writes rows as `read_rows` reads them.

    Raises:
        DataError: another ending than .csv, .csv.gz, .parquet or .npz.
    """
    if not str(path).endswith(ENDINGS):
        raise DataError(
            f"{path}: expected .csv, .csv.gz, .parquet or .npz.\n  Name a file of one of these."
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npz":
        write_arrays({name: value.numpy() for name, value in rows.items()}, path)
        return
    table = pd.DataFrame({name: column.numpy() for name, column in columns(rows).items()})
    if path.suffix == ".parquet":
        table.to_parquet(path)
    else:
        table.to_csv(path, index=False)


def write_arrays(arrays: Mapping[str, NDArray[Any] | Tensor], path: Path) -> None:
    """An npz file; `np.savez` itself takes no array called `file`."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, value in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as entry:
                np.lib.format.write_array(entry, np.asarray(value), allow_pickle=False)
