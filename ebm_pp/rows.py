"""Lines of a report, and how they are shown: as text, or as a table in a notebook."""

import html
from typing import NamedTuple

HEAD = ("", "value", "wanted", "verdict")


class Row(NamedTuple):
    """One line of a report.

    name: what was measured.
    value: the number the verdict is about.
    text: that number for people, with its error and where it was found.
    wanted: the threshold; empty if there is none.
    verdict: a word or two; empty if there is no threshold.
    """

    name: str
    value: float
    text: str
    wanted: str
    verdict: str


def shown(value: float, digits: int, sign: str = "") -> str:
    """A number for people: so many digits behind the point, large ones as powers of ten.

    Examples:
        >>> shown(1.23456, 3), shown(-1.6e49, 4), shown(0.5, 1, "+")
        ('1.235', '-1.6000e+49', '+0.5')
    """
    kind = "f" if abs(value) < 1e6 else "e"
    return f"{value:{sign}.{digits}{kind}}"


def as_text(rows: tuple[Row, ...], verdict: str) -> str:
    """Aligned columns, and the verdict below them; columns that are empty everywhere left out."""
    return _text(_cells(rows), verdict)


def as_html(rows: tuple[Row, ...], verdict: str) -> str:
    """The same as a table."""
    return _html(_cells(rows), verdict)


def columns_as_text(columns: dict[str, list[str]], verdict: str) -> str:
    """Columns by their heads, aligned, and a verdict below them."""
    return _text([tuple(columns), *zip(*columns.values(), strict=True)], verdict)


def columns_as_html(columns: dict[str, list[str]], verdict: str) -> str:
    """The same as a table."""
    return _html([tuple(columns), *zip(*columns.values(), strict=True)], verdict)


def _text(table: list[tuple[str, ...]], verdict: str) -> str:
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = ["  ".join(map(str.ljust, line, widths)).rstrip() for line in table]
    return "\n".join([*lines, "", verdict])


def _html(table: list[tuple[str, ...]], verdict: str) -> str:
    top, *table = table
    head = "".join(f"<th>{name}</th>" for name in top)
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in cells) + "</tr>"
        for cells in table
    )
    return (
        f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
        f"<p>{html.escape(verdict)}</p>"
    )


def _cells(rows: tuple[Row, ...]) -> list[tuple[str, ...]]:
    table = [HEAD, *((row.name, row.text, row.wanted, row.verdict) for row in rows)]
    shown = [i for i in range(len(HEAD)) if i < 2 or any(line[i] for line in table[1:])]
    return [tuple(line[i] for i in shown) for line in table]
