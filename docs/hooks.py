"""What mkdocs can't do by itself: notebooks as pages, pictures of results, formulas as MathML.

* Every `experiments/notebooks/*.py` becomes `notebooks/NAME.md`, in the order of the files. With
  `extra.execute_notebooks` it is run first, and its outputs and pictures are on the page.
* Every `experiments/results/*.png` can be shown as `pictures/NAME.png`.
* `$...$` and `$$...$$` become MathML, which browsers draw without a script.

Nothing is written outside the site's folder. mkdocs calls the functions whose names begin with
`on_`: https://www.mkdocs.org/dev-guide/plugins/#events.
"""

import html
import re
from pathlib import Path
from typing import Any

import jupytext
from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from nbclient import NotebookClient
from nbconvert import MarkdownExporter
from nbformat import NotebookNode

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "experiments" / "notebooks").glob("*.py"))
PICTURES = sorted((ROOT / "experiments" / "results").glob("*.png"))
NAV = {"Notebooks": "notebooks"}  # the line of mkdocs.yml that stands for all notebooks
TIMEOUT = 1200  # seconds a cell may take
QUIET = ["--Application.log_level=ERROR"]  # the kernel warns that this machine can hear itself
TITLE = re.compile(r"^# (.+)$", re.MULTILINE)
FORMULA = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)
FUNCTION = re.compile(r"<mi>(log|exp|sin|cos|min|det)</mi>(?=(<mo[^>]*>[(\[&])?)")
BAR = '<mo stretchy="false">&#x0007C;</mo>'
TIGHT = '<mo stretchy="false" lspace="0" rspace="0">&#x0007C;</mo>'
NOT_RUN = "Built without running the notebook, so without its outputs; `make docs` runs it."


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Puts the notebooks into the navigation."""
    pages = [f"notebooks/{path.stem}.md" for path in NOTEBOOKS]
    config.nav = [{"Notebooks": pages} if entry == NAV else entry for entry in config.nav or []]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the notebooks' pages and all pictures."""
    for path in NOTEBOOKS:
        page, outputs = notebook_page(path, execute=config.extra["execute_notebooks"])
        files.append(File.generated(config, f"notebooks/{path.stem}.md", content=page))
        for name, picture in outputs.items():
            files.append(File.generated(config, f"notebooks/{name}", content=picture))
    for path in PICTURES:
        files.append(File.generated(config, f"pictures/{path.name}", abs_src_path=str(path)))
    return files


def on_page_content(content: str, **_: Any) -> str:  # noqa: ANN401 - page, config and files
    """Formulas as MathML."""
    return FORMULA.sub(_mathml, content)


def notebook_page(path: Path, *, execute: bool) -> tuple[str, dict[str, bytes]]:
    """A notebook as Markdown, and its pictures by name.

    Args:
        path: a notebook in jupytext's percent format, whose first heading is the page's title.
        execute: whether to run it, in the root of the repository.
    """
    notebook = jupytext.read(path)
    if execute:
        where = {"metadata": {"path": str(ROOT)}}
        NotebookClient(notebook, timeout=TIMEOUT, resources=where, extra_arguments=QUIET).execute()
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.source = re.sub(r"  # noqa.*", "", cell.source)
            cell.outputs = _shown(cell.outputs)
    names = {"unique_key": path.stem, "output_files_dir": path.stem}
    page, resources = MarkdownExporter().from_notebook_node(notebook, names)
    note = f"*From `{path.relative_to(ROOT)}`.*" + ("" if execute else f"\n\n*{NOT_RUN}*")
    page = TITLE.sub(lambda title: f"{title[0]}\n\n{note}", page, count=1)
    return page.replace("![png]", "![Output of the cell above]"), resources["outputs"] or {}


def _shown(outputs: list[NotebookNode]) -> list[NotebookNode]:
    """Outputs without progress bars; a figure that is drawn and returned is shown once."""
    drawn = any(
        output.output_type == "display_data" and "image/png" in output.data for output in outputs
    )
    return [
        output
        for output in outputs
        if output.get("name") != "stderr"
        and not (drawn and output.output_type == "execute_result" and "image/png" in output.data)
    ]


def _mathml(found: re.Match[str]) -> str:
    display = "block" if found[1] == "div" else "inline"
    drawn = convert(html.unescape(found[2]), display=display)
    return FUNCTION.sub(_spaced, drawn.replace(BAR, TIGHT))


def _spaced(found: re.Match[str]) -> str:
    """A function's name with thin spaces about it, none before a bracket."""
    after = "0" if found[2] else "0.17em"
    return f'<mo lspace="0.17em" rspace="{after}" form="prefix">{found[1]}</mo>'
