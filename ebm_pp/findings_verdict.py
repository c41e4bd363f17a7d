"""What is wrong with rows, as the first block of a report and the first words of its verdict."""

import html
from collections.abc import Sequence

from ebm_pp.findings import Finding

HEADS = {  # of a verdict, by the kind of the first finding
    "constant_column": "Constant column",
    "another_unit": "Another unit",
    "collinear": "Columns that determine one another",
    "tied_rows": "Tied rows",
    "repeated_rows": "Repeated rows",
    "far_rows": "Far rows",
    "coded_rows": "Codes among the values",
    "precision": "Lost digits",
}
Findings = Sequence[tuple[str, Finding]]


def rows_first(
    findings: Findings, other_problems: bool, verdict: str
) -> tuple[tuple[str, ...], str, str]:
    """A verdict that names the rows before any cause on the model's side.

    Args:
        findings: each with whose rows these are.
        other_problems: whether the fit has a problem.
        verdict: what is said of the fit.

    Returns:
        Keys of problems, one per kind of fatal finding; the first one's site; the verdict. Without
        a fatal finding there are no keys, and cautions are named only before another problem.
    """
    fatal = [(whose, finding) for whose, finding in findings if finding.fatal]
    if fatal:
        whose, first = fatal[0]
        others = {f.kind: (who, f) for who, f in reversed(fatal) if f.kind != first.kind}
        said = [f"{HEADS[first.kind]}: {whose}, {first}"]
        said += [f"Also {who}, {finding}" for who, finding in reversed(others.values())]
        if other_problems:
            said.append(f"What follows may come from that. {verdict}")
        return tuple(dict.fromkeys(f.kind for _, f in fatal)), first.site, " ".join(said)
    if findings and other_problems:
        whose, first = findings[0]
        return (), "", f"Perhaps the data: {whose}, {first} If not that: {verdict}"
    return (), "", verdict


def findings_as_text(findings: Findings) -> str:
    """The block `data`, one line per finding and an empty one; nothing without findings."""
    lines = [f"  {line}" for line in _lines(findings)]
    return "\n".join(["data", *lines, "", ""]) if lines else ""


def findings_as_html(findings: Findings) -> str:
    """The same as a list."""
    items = "".join(f"<li>{html.escape(line)}</li>" for line in _lines(findings))
    return f"<p>data</p><ul>{items}</ul>" if items else ""


def _lines(findings: Findings) -> list[str]:
    return [
        f"{whose}, {finding.text} ({'fatal' if finding.fatal else 'caution'})"
        for whose, finding in findings
    ]
