"""Names of sites where they become keys: of columns, of variables in a tree, of files.

A site may be called anything, as the columns of real tables are: `wind/dir`, `x [mm]`, `draw`.
Every name here is as the user wrote it unless it would be lost: then it is changed as little as
makes it a key of its own, so that no two sites ever share one.
"""

import re
from collections.abc import Iterable, Mapping

# Dimensions and variables that the tree has beside the sites (datatree.py), and ArviZ's own word
# for chains and draws taken together.
RESERVED = frozenset({"chain", "draw", "sample", "row", "round", "log_weight"})
BRACKETS = ("[]", "()", "{}", "<>")


def column_names(sizes: Mapping[str, int]) -> dict[str, list[str]]:
    """A name for every number of every site: `x` of a single number, else `x[0]`, `x[1]`, ...

    Beside a site that is itself called `x[0]` the numbers of `x` are `x(0)`, `x(1)`, ...

    Args:
        sizes: how many numbers each site has.

    Examples:
        >>> column_names({"angle": 1, "x": 2})
        {'angle': ['angle'], 'x': ['x[0]', 'x[1]']}
        >>> column_names({"x": 2, "x[0]": 1})
        {'x': ['x(0)', 'x(1)'], 'x[0]': ['x[0]']}
    """
    found: dict[str, list[str]] = {}
    taken = {name for name, size in sizes.items() if size == 1}
    for name, size in sizes.items():
        if size == 1:
            found[name] = [name]
            continue
        for pair in BRACKETS:
            found[name] = [f"{name}{pair[0]}{j}{pair[1]}" for j in range(size)]
            if not taken & {*found[name]}:
                break
        taken |= {*found[name]}
    return found


def variable_names(names: Iterable[str]) -> dict[str, str]:
    """The names of sites' variables in a tree, and so in NetCDF, where `/` is a path.

    A name that needs no change has none. In others `/` is `.`, what no file can hold is %XX, and
    `_` follows until the name is no other's and none that the tree needs itself: a dimension like
    `draw` or `x_dim_0`.

    Examples:
        >>> variable_names(["x [mm]", "wind/dir", "wind.dir", "draw", "v_dim_0"])
        {'x [mm]': 'x [mm]', 'wind/dir': 'wind.dir_', 'wind.dir': 'wind.dir', 'draw': 'draw_',
         'v_dim_0': 'v_dim_0_'}
    """
    names = list(names)
    found = {name: name for name in names if name == _writable(name)}
    for name in names:
        written = _writable(name)
        while name not in found and written in found.values():
            written += "_"
        found.setdefault(name, written)
    return {name: found[name] for name in names}


def _writable(name: str) -> str:
    written = re.sub(r"[\x00-\x1f]|^\.+$", _escape, name.replace("/", ".")) or "%"
    return f"{written}_" if written in RESERVED or re.search(r"_dim_\d+$", written) else written


def file_name(name: str) -> str:
    """The name of a site as a part of a file's, on any system; long ones are cut and numbered.

    Examples:
        >>> file_name("wind/dir"), file_name("x [mm]"), file_name("direction")
        ('wind%2Fdir', 'x%20%5Bmm%5D', 'direction')
    """
    written = re.sub(r"[^\w.-]|^\.", _escape, name, flags=re.ASCII)
    if len(written) <= 100:
        return written
    return f"{written[:80]}-{sum(ord(c) * (i + 1) for i, c in enumerate(name)):x}"


def unused(name: str, names: Mapping[str, object]) -> str:
    """The name, or with `_` behind it where a site has it already."""
    while name in names:
        name += "_"
    return name


def _escape(found: re.Match[str]) -> str:
    return "".join(f"%{byte:02X}" for byte in found.group().encode("utf-8"))
