"""Programs and rows in files: how the command line reads and writes them.

A table has one column a site, or `x[0]`, `x[1]`, ... of a vector `x` (see `names.column_names`);
an npz file has one array a site. Nothing that is read runs code but the program itself.
"""

import csv
import gzip
import importlib
import inspect
import os
import sys
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
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
from ebm_pp.loading import module_at
from ebm_pp.names import column_names, entry_name

ENDINGS = (".csv", ".csv.gz", ".parquet", ".npz")
NAME_IT = "Name it as module:name or file.py:name"


def find_program(spec: str, folder: Path | None = None) -> Callable[..., Any]:
    """The program that `module:name` or `file.py:name` names; a class is called without arguments.

    A file, and a module that is a file in the folder, is loaded by where it lies (see loading.py).

    Args:
        spec: what to find.
        folder: where files and modules are looked for; by default where one stands.

    Raises:
        ProgramError: no such file, module or name, or it fails when it is imported or called.
    """
    where, _, name = spec.rpartition(":")
    if not where or not name:
        raise ProgramError(
            f"program {spec!r} not found: no name of a function or class in it.\n  {NAME_IT}."
        )
    module = _module(spec, where, Path() if folder is None else folder)
    if not hasattr(module, name):
        there = [k for k, v in vars(module).items() if callable(v) and not k.startswith("_")]
        raise ProgramError(
            f"program {spec!r} not found: {where} has no {name!r}; it has {there[:10]}.\n"
            f"  {NAME_IT}."
        )
    found: Any = getattr(module, name)
    if not inspect.isclass(found):
        return found
    try:
        made: Any = found()
    except (Exception, SystemExit) as error:  # the user's own constructor
        raise ProgramError(
            f"program {spec!r}: {name}() failed with {type(error).__name__}: {error}.\n  A class "
            "is called without arguments: give them defaults, or name an instance."
        ) from error
    return made


def program_file(spec: str, folder: Path | None = None) -> Path | None:
    """The file that a program is in; None of an installed module."""
    where = spec.rpartition(":")[0]
    inside = where if where.endswith(".py") else f"{where.replace('.', '/')}.py"
    file = (Path() if folder is None else folder) / inside
    return file if where and there(file) else None


def _module(spec: str, where: str, folder: Path) -> ModuleType:
    file = program_file(spec, folder)
    if where.endswith(".py") and file is None:
        raise ProgramError(f"program file {folder / where}: no such file.\n  Check the path.")
    try:
        if file is not None and (where.endswith(".py") or "." not in where):
            return module_at(file)
        module = _from_package(where, folder)
    except ModuleNotFoundError as error:
        raise ProgramError(
            f"program {spec!r} not found: {error}.\n  {NAME_IT}, or install what it imports."
        ) from error
    except (Exception, SystemExit) as error:  # whatever a user's file does when it is run
        raise ProgramError(
            f"program {spec!r}: importing {where} failed with {type(error).__name__}: {error}.\n"
            "  Correct the file, or run it alone with python to see where."
        ) from error
    loaded = getattr(module, "__file__", None)
    if file is not None and (loaded is None or Path(loaded).resolve() != file.resolve()):
        raise ProgramError(
            f"program {spec!r}: a module {where} is loaded from {loaded} already; expected "
            f"{file}.\n  Name it as file.py:name, or start Python anew."
        )
    return module


def _from_package(name: str, folder: Path) -> ModuleType:
    sys.path.insert(0, str(folder.resolve()))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(folder.resolve()))


def read_rows(path: Path, model: EnergyModel) -> dict[str, Any]:
    """Rows of a CSV, parquet or npz file, one array a site.

    Of a parquet file a vector site may also be one column of lists.

    Raises:
        DataError: no such file, another format, a damaged file, a site without a column or with
            two, or text in one.
    """
    kind = _ending(path)
    if not there(path):
        what = "a folder; expected a file" if os.path.isdir(path) else "no such file"
        raise DataError(f"{path}: {what}.\n  Check the path.")
    if kind == ".npz":
        return _read_arrays(path, model)
    try:
        table = _read_parquet(path) if kind == ".parquet" else _read_csv(path)
    except DataError:
        raise
    except MemoryError as error:
        raise _too_large(path, error) from error
    except Exception as error:  # a damaged file can fail anywhere in pandas and pyarrow
        raise DataError(
            f"{path}: not a table ({first_line(error)}).\n  Most likely a damaged "
            "file, or one of another format: open it elsewhere, and save it again."
        ) from error
    if not len(table):
        raise DataError(f"{path}: 0 rows.\n  Most likely a header alone: save the rows too.")
    labels = column_names({name: int(np.prod(site.shape)) for name, site in model.sites.items()})
    return {
        name: _site(table, name, labels[name], path).reshape(len(table), *site.shape)
        for name, site in model.sites.items()
    }


def path_of(what: str, path: object) -> Path:
    """A path of whatever a caller names a file by.

    Raises:
        DataError: it is none.
    """
    name = os.fsdecode(path) if isinstance(path, bytes) else path
    if isinstance(name, str | os.PathLike) and name != "":
        return Path(name)
    raise DataError(f"{what}: the path is {path!r}; expected text or a Path.\n  Name a file.")


def there(path: Path) -> bool:
    """Whether there is such a file; of no name that a file can have."""
    try:
        return path.is_file()
    except (OSError, ValueError):  # too long, or with a character that no name can have
        return False


def _ending(path: Path) -> str:
    """Which of `ENDINGS` a file has, however it is written.

    Raises:
        DataError: none of them.
    """
    for ending in ENDINGS:
        if path.name.lower().endswith(ending):
            return ending
    raise DataError(
        f"{path}: expected .csv, .csv.gz, .parquet or .npz.\n  Save the table as one of these."
    )


def _read_csv(path: Path) -> pd.DataFrame:
    """A table with the names that stand in its first line, though two of them may be the same."""
    packed = _ending(path) == ".csv.gz"
    table = pd.read_csv(path, compression="gzip" if packed else None, low_memory=False)
    unpack: Any = gzip.open if packed else open
    with unpack(path, "rt", newline="", encoding="utf-8-sig") as file:
        names, *first = islice(filter(None, csv.reader(file)), 2)
    if first and len(first[0]) > len(names):
        table = _without_surplus(table, path)
    return table.set_axis(names, axis=1)


def _without_surplus(table: pd.DataFrame, path: Path) -> pd.DataFrame:
    """Rows with a cell more than the header: names of rows in front, or a comma at their ends.

    Pandas takes the first cells for an index. It is right if they are text or count the rows.

    Raises:
        DataError: neither or both, so that nobody can say which cell is which column's.
    """
    index, one = table.index, not isinstance(table.index, pd.MultiIndex)
    numbered = one and (index.dtype.kind == "O" or list(index) == list(range(1, len(table) + 1)))
    ends_empty = one and bool(table.iloc[:, -1].isna().all())
    if numbered and not ends_empty:
        return table.reset_index(drop=True)
    if ends_empty and not numbered:
        table = table.reset_index()
        return table.iloc[:, :-1].set_axis(table.columns[1:], axis=1)
    raise DataError(
        f"{path}: its rows have more cells than the header has names ({list(table.columns)}).\n"
        "  Most likely a column without a name: name it."
    )


def _read_parquet(path: Path) -> pd.DataFrame:
    """A table whose index, if it has a name, is a column like the others."""
    table = pd.read_parquet(path)
    named = [name for name in table.index.names if name is not None and name not in table]
    return (table.reset_index(level=named) if named else table).rename(columns=str)


def _site(table: pd.DataFrame, name: str, labels: list[str], path: Path) -> NDArray[Any]:
    """The numbers of one site, a row each."""
    there = list(table.columns)
    of_one = [f"{name}[0]"] if len(labels) == 1 else labels
    wanted = next((w for w in (labels, of_one) if set(w) <= set(there)), [name])
    if not set(wanted) <= set(there):
        raise DataError(
            f"site {name!r}: no column of that name in {path}; it has {there}.\n"
            f"  Expected {'the column' if len(labels) == 1 else 'the columns'} {labels}."
        )
    for label in wanted:
        if there.count(label) > 1:
            raise DataError(
                f"site {name!r}: {there.count(label)} columns of {path} are called {label!r}; "
                "expected one.\n  Rename or remove the others."
            )
    if len(wanted) < len(labels):
        return _lists(table[name], name, len(labels), path)
    return np.stack([_numbers(table[label], name, label, path) for label in wanted], 1)


def _lists(column: pd.Series, name: str, size: int, path: Path) -> NDArray[Any]:
    """A column whose cells are lists of numbers."""
    try:
        cells = [np.ravel(np.array(np.asarray(c).tolist(), dtype=np.float64)) for c in column]
    except (ValueError, TypeError) as error:
        raise DataError(
            f"site {name!r}: cells of column {name!r} of {path} are no lists of numbers "
            f"({error}).\n  Give {size} columns, {name}[0] and so on."
        ) from error
    for row, cell in enumerate(cells):
        if len(cell) != size:
            raise DataError(
                f"site {name!r}: column {name!r} of {path} has {len(cell)} numbers at row {row}; "
                f"expected {size}, as a list or in columns {name}[0] and so on."
                "\n  Most likely another length than the program's."
            )
    return np.stack(cells)


def _numbers(column: pd.Series, name: str, label: str, path: Path) -> NDArray[Any]:
    """A column of numbers, whatever pandas has them in; missing cells are nan."""
    kind = column.dtype.kind
    if kind in "fiu":
        return column.to_numpy(dtype=np.float64, na_value=np.nan)
    if kind == "O":
        found = pd.to_numeric(column.astype(object), errors="coerce")
        bad = (found.isna() & column.notna()).to_numpy()
        if not bad.any():
            return found.to_numpy(dtype=np.float64)
        first = int(bad.argmax())
        raise DataError(
            f"site {name!r}: column {label!r} of {path} holds text: {int(bad.sum())} of "
            f"{len(column)} cells, the first {column.iloc[first]!r} at row {first}; "
            "expected numbers.\n  Correct or remove these rows; a missing value is an empty "
            "cell."
        )
    raise DataError(
        f"site {name!r}: column {label!r} of {path} holds {column.dtype}; expected numbers.\n"
        "  Convert it to a number first, with its unit in mind."
    )


def _read_arrays(path: Path, model: EnergyModel) -> dict[str, Any]:
    """Arrays by the names of their entries; numpy's own reader takes `x.npy` for `x`."""
    found = {}
    try:
        with zipfile.ZipFile(path) as archive:
            entries = {entry.removesuffix(".npy"): entry for entry in archive.namelist()}
            for name in model.sites:
                if (entry := entries.get(entry_name(name))) is not None:
                    with archive.open(entry) as file:
                        found[name] = np.lib.format.read_array(file, allow_pickle=False)
    except MemoryError as error:
        raise _too_large(path, error) from error
    except Exception as error:  # a damaged archive can fail in any of its codecs
        raise DataError(
            f"{path}: not an npz file of numbers ({first_line(error)}).\n  Most "
            "likely a damaged file, or arrays of objects (None, text): save arrays of numbers."
        ) from error
    return found


def _too_large(path: Path, error: MemoryError) -> DataError:
    return DataError(
        f"{path}: {path.stat().st_size:,} bytes, which need more memory than there is "
        f"({first_line(error)}).\n  Most likely too many rows: give some of them, or in Python "
        "memory-mapped arrays, numpy.load(file, mmap_mode='r'). A small file is damaged."
    )


def first_line(error: BaseException) -> str:
    """Of an error: its class, and the first line of what it says."""
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:200]}"


def write_rows(rows: Sites, path: Path) -> None:
    """Writes rows as `read_rows` reads them.

    Raises:
        DataError: another ending than .csv, .csv.gz, .parquet or .npz, or a place that can't be
            written.
    """
    kind = _ending(path)
    with writing(path) as beside:
        if kind == ".npz":
            write_arrays({name: value.numpy() for name, value in rows.items()}, beside)
            return
        table = pd.DataFrame({name: column.numpy() for name, column in columns(rows).items()})
        if kind == ".parquet":
            table.to_parquet(beside)
        else:
            plain = all(name.isprintable() and name == name.strip() for name in table)
            quoting = csv.QUOTE_MINIMAL if plain else csv.QUOTE_NONNUMERIC
            packed = "gzip" if kind == ".csv.gz" else None
            table.to_csv(beside, index=False, compression=packed, quoting=quoting)


def write_arrays(arrays: Mapping[str, NDArray[Any] | Tensor], path: Path) -> None:
    """An npz file; `np.savez` itself takes no array called `file`."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, value in arrays.items():
            with archive.open(f"{entry_name(name)}.npy", "w", force_zip64=True) as entry:
                np.lib.format.write_array(entry, np.asarray(value), allow_pickle=False)


@contextmanager
def writing(path: Path) -> Iterator[Path]:
    """A file beside `path` to write to, which takes its place in the end, whole or not at all.

    Raises:
        DataError: the system does not allow it.
    """
    try:
        path = path.resolve()  # a link stays one
        beside = path.with_name(f".{os.getpid()}.{path.name[-200:]}")
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path}: no name that a file can have ({error}).\n  Name another place."
        ) from error
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield beside
            with beside.open("rb+") as file:
                os.fsync(file.fileno())
            beside.replace(path)
        finally:
            beside.unlink(missing_ok=True)
    except OSError as error:
        raise DataError(
            f"{path}: can't be written ({error.strerror or error}).\n  Name a place that you may "
            "write to, with room left."
        ) from error
