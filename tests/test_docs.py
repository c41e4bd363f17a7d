"""The documentation: complete, true to the code, and built without another host.

What needs no further package is always checked. Building the site needs those of the extra `docs`,
and is skipped without them.
"""

import ast
import importlib
import importlib.util
import inspect
import os
import re
import subprocess
import sys
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import pytest

import ebm_pp
from ebm_pp import diagnostics, plots, plots_trajectory, report
from ebm_pp.findings_verdict import HEADS
from ebm_pp.training import Status

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
NEEDED = ("mkdocs", "material", "mkdocstrings", "jupytext", "nbconvert", "latex2mathml")
GUIDE = [  # in the order in which they are read
    *("declare", "fit", "diagnose", "sample", "sites", "demonstrations", "compare"),
    *("command_line", "saving"),
]
BLOCK = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)
PAGES = sorted(DOCS.rglob("*.md"))


def text_of(name):
    return (DOCS / name).read_text()


def blocks(page):
    return BLOCK.findall(page.read_text())


def public_names():
    """Every name that has an entry; where a module has its name too, the name in that module."""
    clash = [name for name in ebm_pp.__all__ if (ROOT / "ebm_pp" / f"{name}.py").exists()]
    names = [f"{name}.{name}" if name in clash else name for name in ebm_pp.__all__]
    names += [f"plots.{name}" for name in plots.__all__]
    for module in (plots_trajectory, report):
        names += [
            f"{module.__name__.removeprefix('ebm_pp.')}.{name}"
            for name, value in vars(module).items()
            if inspect.isfunction(value)
            and value.__module__ == module.__name__
            and not name.startswith("_")
        ]
    return [f"ebm_pp.{name}" for name in names]


def test_every_public_name_has_an_entry():
    entries = re.findall(
        r"^::: (\S+)$", "\n".join(p.read_text() for p in DOCS.glob("api/*")), re.M
    )
    assert set(public_names()) <= set(entries)
    assert len(entries) == len(set(entries)), "no entry twice"


def test_every_page_is_in_the_navigation():
    nav = set(re.findall(r"(\S+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.M))
    assert nav == {str(page.relative_to(DOCS)) for page in PAGES}


def test_linked_notebooks_and_pictures_exist():
    experiments = ROOT / "experiments"
    for page in PAGES:
        text = page.read_text()
        for name in re.findall(r"\(notebooks/(\w+)\.md", text):
            assert (experiments / "notebooks" / f"{name}.py").exists(), name
        for name in re.findall(r"\(pictures/(\w+\.png)\)", text):
            assert (experiments / "results" / name).exists(), name
    shown = set(re.findall(r"\(pictures/(\w+\.png)\)", text_of("gallery.md")))
    assert shown == {path.name for path in (experiments / "results").glob("*.png")}


def test_every_guide_page_is_run():
    assert {page.stem for page in DOCS.glob("guide/*.md")} == {*GUIDE, "index"}


def test_every_problem_and_status_has_an_entry():
    page = text_of("troubleshooting.md")
    code = inspect.getsource(diagnostics._problems) + inspect.getsource(
        diagnostics._generator_problem
    )
    problems = {*re.findall(r'"([a-z]+_[a-z_]+)"', code), *HEADS}
    assert problems >= {"leaked_mass", "dropped_mode", "other_start", "poor_mixing"}
    assert problems <= set(re.findall(r"^### (\w+)$", page, re.M))
    quoted = " ".join(page.replace("\n> ", " ").split())
    for status in Status:
        assert f"### {status.name} {{#status-{status.name.lower().replace('_', '-')}}}" in page
        assert status.value in quoted, status


def test_messages_are_those_of_the_code():
    page = text_of("troubleshooting.md")
    phrases = re.findall(r"^### (.+) \{#", page[page.index("{#messages}") :], re.M)
    said = [
        node.value
        for path in (ROOT / "ebm_pp").glob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]
    assert len(phrases) > 15
    for phrase in phrases:
        assert any(phrase in text for text in said), phrase


def test_fields_that_are_named_exist():
    page = text_of("troubleshooting.md") + text_of("guide/fit.md")
    fields = set(ebm_pp.FitConfig.__dataclass_fields__)
    assert set(re.findall(r"FitConfig\((\w+)=", page)) <= fields
    table = page[page.index("| field | change it when |") :]
    named = re.findall(r"^\| `(\w+)` \|", table[: table.index("\n\n")], re.M)
    assert named
    assert set(named) <= fields
    advice = "".join(re.findall(r"^- \*\*Change\*\*: (?:.+\n)(?:  .+\n)*", page, re.M))
    known = {*fields, *inspect.signature(ebm_pp.FlowGenerator).parameters, *ebm_pp.__all__}
    advised = set(re.findall(r"`(\w+)(?:=[^`(]*)?`", advice))
    assert len(advised) > 10
    assert advised <= known | {"n", "held_out", "if", "reverse_kl"}


def test_mathematics_names_what_exists():
    page = text_of("mathematics.md")
    for name in re.findall(r"`(ebm_pp\.[\w.]+)`", page):
        module, _, attribute = name.rpartition(".")
        assert hasattr(importlib.import_module(module), attribute), name
    tests = re.findall(r"`(tests/\w+\.py)::(\w+)`", page)
    assert len(tests) > 30
    for path, name in tests:
        assert re.search(rf"^(?:def|class) {name}\b", (ROOT / path).read_text(), re.M), name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(DOCS)))
def test_code_names_what_exists(page):
    for block in blocks(page):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.Attribute) and getattr(node.value, "id", "") == "ebm_pp":
                assert hasattr(ebm_pp, node.attr), node.attr
            if isinstance(node, ast.ImportFrom) and node.module:
                module = importlib.import_module(node.module)
                for alias in node.names:
                    assert hasattr(module, alias.name) or importlib.import_module(
                        f"{node.module}.{alias.name}"
                    )


def test_the_guide_runs(tmp_path, monkeypatch, capsys):
    mpl.use("Agg")
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "guide"}
    for page in GUIDE:
        for block in blocks(DOCS / "guide" / f"{page}.md"):
            short = re.sub(r"\brounds=\d+", "rounds=2", block)
            short = re.sub(r"\bwarmup=\d+", "warmup=2", short).replace("n=100,", "n=4,")
            exec(compile(short, page, "exec"), names)
    assert (tmp_path / "runs" / "report.html").exists()
    assert "log Z" in capsys.readouterr().out
    plt.close("all")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The whole site, its notebooks not run."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip(f"{', '.join(missing)} not installed: they are the extra `docs`")
    out = tmp_path_factory.mktemp("site")
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(out)],
        cwd=ROOT,
        env=os.environ | {"EXECUTE_NOTEBOOKS": "false", "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stdout + built.stderr
    return {path.relative_to(out): path.read_text() for path in out.rglob("*.html")}


def test_the_site_fetches_nothing_from_elsewhere(site):
    for path, page in site.items():
        for tag in re.findall(r"<(?:script|link|img|iframe|source)\b[^>]*>", page):
            assert not re.search(r"\b(?:src|href)=[\"']?(?:https?:)?//", tag), (path, tag)
    styles = (DOCS / "assets" / "site.css").read_text()
    assert "url(" not in styles
    assert "@import" not in styles


def test_the_site_has_every_name_and_notebook(site):
    pages = "".join(page for path, page in site.items() if path.parts[0] == "api")
    for name in public_names():
        assert f'id="{name}"' in pages, name
    for path in (ROOT / "experiments" / "notebooks").glob("*.py"):
        page = site[Path("notebooks", f"{path.stem}.html")]
        title = re.search(r"^# # (.+)$", path.read_text(), re.M)[1]
        assert re.search(rf"<h1[^>]*>{re.escape(title)}", page)


def test_formulas_are_drawn_without_a_script(site):
    page = site[Path("mathematics.html")]
    assert page.count("<math") > 80
    for path, text in site.items():
        assert "arithmatex" not in text, path
        assert "<merror" not in text, path
