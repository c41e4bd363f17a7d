"""A user's Python file as a module, by where it lies and not by what it is called.

Two files of one name are two modules, and none can stand in for one of Python's own or for an
installed one. What lies beside the file can be imported, when it is loaded and when its functions
run, and is out of everyone else's way in between: another folder may have the same names.
"""

import builtins
import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any


@dataclass(frozen=True, eq=False)
class Beside:
    """What lies beside a file: a finder of modules, in Python's sense.

    Attributes:
        file: the file.
        names: packages and modules that were found there.
        modules: what was loaded of them.
    """

    file: Path
    names: set[str] = field(default_factory=set)
    modules: dict[str, ModuleType] = field(default_factory=dict)

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:  # noqa: ANN401
        """A module beside the file, ahead of installed ones but not of Python's; never itself."""
        if path is not None or name in sys.stdlib_module_names or name == self.file.stem:
            return None
        folder = self.file.parent
        found = PathFinder.find_spec(name, [str(folder), *sys.path])
        if found is None:
            return None
        places = [found.origin, *(found.submodule_search_locations or [])]
        if not any(place and Path(place).parent == folder for place in places):
            return None
        self.names.add(name)
        return found


def module_at(path: Path) -> ModuleType:
    """The module of a file, run anew.

    Raises:
        Exception: whatever running it raises.
    """
    full = path.resolve()
    name = f"ebm_pp_program_{hashlib.sha256(str(full).encode()).hexdigest()[:16]}"
    spec = importlib.util.spec_from_file_location(name, full)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    beside = Beside(full)

    def importing(*args: Any, **kwargs: Any) -> ModuleType:  # noqa: ANN401 - Python's own
        with _importable(beside):
            return builtins.__import__(*args, **kwargs)

    # An import inside a function of the file is run later, when its folder is out of the way.
    vars(module)["__builtins__"] = {**vars(builtins), "__import__": importing}
    sys.modules[name] = module  # pickles and dataclasses look their module up
    try:
        with _importable(beside):
            spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


@contextmanager
def _importable(beside: Beside) -> Iterator[None]:
    if beside in sys.meta_path:  # an import inside an import
        yield
        return
    before = dict(sys.modules)
    sys.modules.update(beside.modules)
    sys.meta_path.insert(0, beside)
    try:
        yield
    finally:
        sys.meta_path.remove(beside)
        for name in [n for n in sys.modules if n.partition(".")[0] in beside.names]:
            beside.modules[name] = sys.modules.pop(name)
            if name in before:
                sys.modules[name] = before[name]
