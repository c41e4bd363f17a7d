"""One HTML page about a fit that opens anywhere, without a network: verdict, pictures, numbers."""

import base64
import dataclasses
import html
import importlib.metadata
import io
import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import matplotlib.pyplot as plt
import torch
from jaxtyping import Int
from matplotlib.figure import Figure
from torch import Tensor

from ebm_pp.data import columns
from ebm_pp.density import EnergyModel, Rows, Sites
from ebm_pp.diagnostics import Report, diagnose
from ebm_pp.errors import DataError, GeneratorError, ProgramError
from ebm_pp.files import first_line, writing
from ebm_pp.findings_verdict import findings_as_html
from ebm_pp.fitted import Fit
from ebm_pp.labels import Labels
from ebm_pp.names import file_name
from ebm_pp.plots import (
    plot_calibration,
    plot_energy_map,
    plot_energy_slice,
    plot_factors,
    plot_moment_gaps,
    plot_pairs,
    plot_reweighting,
    plot_training,
    plot_weights,
)
from ebm_pp.pool import n_rows, pick
from ebm_pp.sampling import Draws, importance_sample, log_density_of, resample, slices
from ebm_pp.support import describe
from ebm_pp.uncertainty import MOST, readable, standard_errors

Maker = tuple[str, str, str, Callable[[], Figure]]  # a picture's name, heading, caption, drawing

WIDEST = 1400.0  # pixels of a picture on the page
COLUMNS = 8  # numbers in the picture of all pairs: more would be too small to see


class Picture(NamedTuple):
    """A picture of a fit.

    * name: of its file.
    * heading: above it.
    * caption: what it shows, and how to read it.
    * png: itself; empty if it can't be drawn.
    * missing: why not; empty if it can.
    """

    name: str
    heading: str
    caption: str
    png: bytes
    missing: str = ""


def write_report(
    fit: Fit,
    held_out: Rows,
    path: str | Path,
    *,
    groups: Labels | None = None,
    numbers: Int[Tensor, " rows"] | None = None,
    title: str = "fit",
    seed: int | None = 0,
) -> Report:
    """Diagnoses a fit and writes the page.

    Args:
        fit: the fit.
        held_out: rows that it was not trained on.
        path: the file to write; its folder is made.
        groups: a label per row; rows of one label go together.
        numbers: of the rows, as a user's file counts them.
        title: of the page, usually the program's name.
        seed: of all draws.

    Returns:
        The report that the page shows.

    Raises:
        DataError: the rows do not fit the program.
        ProgramError: most draws have no density.
        GeneratorError: no draw of the generator has any weight.
    """
    held_out = fit.model.check(held_out)
    report = diagnose(fit, held_out, groups=groups, numbers=numbers, seed=seed)
    shown = pictures(fit, held_out, report, seed, widest=WIDEST)
    page = _page(fit, held_out, report, shown, groups, title, seed)
    with writing(Path(path)) as part:
        part.write_text(page, encoding="utf-8", errors="backslashreplace")
    return report


def pictures(
    fit: Fit, held_out: Sites, report: Report, seed: int | None, *, widest: float = math.inf
) -> list[Picture]:
    """Every picture of a fit and its report, for the page or for files.

    One that can't be drawn, as numbers far out or not finite make some, says why in `missing`.

    Args:
        fit: the fit.
        held_out: rows that it was not trained on.
        report: of `diagnose` with them.
        seed: of the draws.
        widest: a picture has at most so many pixels across.
    """
    draws = importance_sample(fit, max(4 * n_rows(held_out), 4000), seed=seed)
    corrected = resample(draws, max(n_rows(held_out), 2000), seed=seed)
    kept = draws.log_weights > -math.inf
    draws = Draws(pick(draws.values, kept), draws.log_weights[kept])
    with torch.no_grad():
        log_q = torch.cat([fit.generator.log_prob(x) for x in slices(held_out)])
    at_rows = log_density_of(fit.model, held_out) - log_q
    makers: list[Maker] = [
        (
            "weights",
            "Importance weights",
            "Log weights of the generator's draws (orange) and of held-out rows (blue). Two "
            "narrow peaks at one place are a good fit; rows far to the right of all draws are "
            "where the generator misses a mode.",
            lambda: plot_weights(draws.log_weights, at_rows),
        ),
        *_beside(fit.model, held_out, draws, corrected),
        (
            "moments",
            "Moments",
            "By how many standard errors the data's mean of each statistic is above the "
            "model's. Beyond the dashed lines a factor is wrong or missing.",
            lambda: plot_moment_gaps(report),
        ),
        (
            "calibration",
            "Calibration of the density",
            "Are held-out rows as likely as the model says of its own draws? In the band: yes. "
            "Above it at the left: more rows at low densities than the model expects. The band "
            "takes rows as independent.",
            lambda: plot_calibration(fit, held_out, seed=seed),
        ),
        (
            "terms",
            "Terms of the density",
            "What every site and factor contributes, at data (blue) and at weighted draws "
            "(orange): 5th to 95th percentile and mean.",
            lambda: plot_factors(fit.model, held_out, corrected),
        ),
        *_energies(fit.model, held_out),
    ]
    if fit.history:
        caption = "Diagnosis of every round of the training."
        makers.append(("training", "Training", caption, lambda: plot_training(fit)))
    return [_drawn(*maker, widest) for maker in makers]


def _drawn(
    name: str, heading: str, caption: str, draw: Callable[[], Figure], widest: float
) -> Picture:
    before = set(plt.get_fignums())
    try:
        figure, buffer = draw(), io.BytesIO()
        dpi = math.ceil(min(110, widest / figure.get_figwidth()))
        figure.savefig(buffer, format="png", dpi=dpi)
        return Picture(name, heading, caption, buffer.getvalue())
    except Exception as error:  # a fit's verdict and other pictures don't hang on this one
        return Picture(name, heading, caption, b"", f"not drawn ({first_line(error)})")
    finally:
        for number in set(plt.get_fignums()) - before:
            plt.close(number)


def _beside(model: EnergyModel, held_out: Sites, draws: Draws, corrected: Sites) -> list[Maker]:
    """Data beside draws, of as many sites as there is room for."""
    shown = _few(model)
    if not shown:
        return []
    return [
        (
            "pairs",
            "Data beside draws",
            "Data in blue below the diagonal, weighted draws in orange above it.",
            lambda: plot_pairs(model, held_out, corrected, shown),
        ),
        (
            "reweighting",
            "What the weights do",
            "Draws of the generator before (dashed) and after (solid) weighting, on the data.",
            lambda: plot_reweighting(model, held_out, draws, shown),
        ),
    ]


def _energies(model: EnergyModel, held_out: Sites) -> list[Maker]:
    """The energy of a program in the plane, and along every angle."""
    found: list[Maker] = []
    numbers = list(columns(held_out))
    if len(numbers) == 2 == model.dim:
        caption = "The learned energy, with contours of the density at 1, 2, 4 and 8 nats."
        surface = partial(plot_energy_map, model, held_out, *numbers)
        found.append(("energy", "Energy", caption, surface))
    taken: set[str] = set()  # in small letters: some systems know no others
    for name, site in model.sites.items():
        if site.circular and not site.shape:
            file = f"energy_{file_name(name)}"
            while file.lower() in taken:
                file += "_"
            taken.add(file.lower())
            caption = f"The energy along {name}, all other sites held at rows of the data."
            circle = partial(plot_energy_slice, model, held_out, name)
            found.append((file, f"Energy along {name}", caption, circle))
    return found


def _few(model: EnergyModel) -> list[str]:
    """As many sites, in their order, as a picture of all pairs has room for."""
    names, room = [], COLUMNS
    for name, site in model.sites.items():
        size = math.prod(site.shape)
        if size <= room:
            names.append(name)
            room -= size
    return names


def _page(
    fit: Fit,
    held_out: Sites,
    report: Report,
    shown: list[Picture],
    groups: Labels | None,
    title: str,
    seed: int | None,
) -> str:
    name, text = html.escape(title), html.escape
    head, _, rest = report.verdict.partition(": ")
    mark = "good" if report.ok else "bad"
    ended = text(f"{fit.status.value} {fit.detail}".strip())
    figures = "".join(map(_figure, shown))
    off = [row.verdict not in ("", "ok") for row in report.rows]
    measured = [(row.name, row.text, row.wanted, row.verdict) for row in report.rows]
    numbers = _table("Measurements", ("measured", "value", "wanted", "verdict"), measured, off)
    declared = [(s.name, str(s.shape), describe(s.support)) for s in fit.model.sites.values()]
    sites = _table("Sites", ("site", "shape", "support"), declared)
    settings = dataclasses.asdict(fit.config) | {"seed of this page": seed}
    listed = "".join(f"<dt>{text(k)}</dt><dd>{text(str(v))}</dd>" for k, v in settings.items())
    packages = ("ebm-pp", "torch", "pyro-ppl", "arviz-base", "arviz-stats")
    versions = ", ".join(f"{p} {importlib.metadata.version(p)}" for p in packages)
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,">
<title>{name}: {text(head)}</title><style>{STYLE}</style></head><body>
<header><h1>{name}</h1>
<p class="verdict {mark}" role="status"><strong>{text(head)}:</strong> {text(rest)}</p>
<p>How training ended: {ended}</p>
<nav aria-label="On this page"><a href="#numbers">Numbers</a> <a href="#pictures">Pictures</a>
<a href="#parameters">Parameters</a> <a href="#settings">Settings</a></nav></header>
<main><section id="numbers"><h2>Numbers</h2>{findings_as_html(report.evidence.findings)}
{numbers}
<p>{n_rows(held_out)} held-out rows, {report.evidence.n} draws of the generator.</p></section>
<section id="pictures"><h2>Pictures</h2>{figures}</section>
<section id="parameters"><h2>Parameters</h2>{_parameters(fit, held_out, groups, seed)}</section>
<section id="settings"><h2>Settings</h2>{sites}
<details><summary>Configuration</summary><dl>{listed}</dl></details>
<p>{fit.n_train} training rows; round {fit.best_round + 1} returned. {text(versions)}.</p>
</section></main><script>{SCRIPT}</script></body></html>
"""


def _parameters(fit: Fit, held_out: Sites, groups: Labels | None, seed: int | None) -> str:
    """The program's own parameters, not its networks', with errors from the held-out scores."""
    named = {
        name: p
        for name, p in fit.model.named_parameters()
        if p.requires_grad and (name.startswith("param:") or "." not in readable(name))
    }
    size = sum(p.numel() for p in named.values())
    if not named or size > MOST or not fit.n_train:
        return f"<p>{size} trained numbers outside of networks: none, or too many to list.</p>"
    try:
        found = standard_errors(fit, held_out, list(named), groups=groups, seed=seed)
    except (ProgramError, DataError, GeneratorError) as error:
        return f"<p>No standard errors: {html.escape(str(error))}</p>"
    numbers = zip(found.values.tolist(), found.standard_errors.tolist(), strict=True)
    texts = [(f"{value:.4g}", f"{error:.2g}") for value, error in numbers]
    rows = [
        (name, *text, factor)
        for name, text, factor in zip(found.names, texts, found.factors, strict=True)
    ]
    table = _table("Parameters", ("parameter", "value", "standard error", "factors"), rows)
    note = "" if found.ok else f"<p>{html.escape(found.verdict)}</p>"
    return (
        f"{table}{note}<p>Standard errors are those of maximum likelihood from as many rows as "
        "were trained on, networks held fixed.</p>"
    )


def _table(
    label: str,
    head: tuple[str, ...],
    rows: Sequence[tuple[str, ...]],
    off: Sequence[bool] | None = None,
) -> str:
    """A table that scrolls by itself on a narrow screen; rows that are `off` stand out."""
    top = "".join(f'<th scope="col">{html.escape(cell)}</th>' for cell in head)
    body = ""
    for (name, *cells), bad in zip(rows, off or [False] * len(rows), strict=True):
        rest = "".join(f"<td>{html.escape(cell)}</td>" for cell in cells)
        start = '<tr class="off">' if bad else "<tr>"
        body += f'{start}<th scope="row">{html.escape(name)}</th>{rest}</tr>'
    return (
        f'<div class="wide" tabindex="0" role="region" aria-label="{label}"><table>'
        f"<thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _figure(picture: Picture) -> str:
    data = base64.b64encode(picture.png).decode()
    heading, caption = html.escape(picture.heading), html.escape(picture.caption)
    if picture.missing:
        return f"<h3>{heading}</h3><p>{html.escape(picture.missing)}</p>"
    return (
        f'<figure><h3>{heading}</h3><button type="button" class="zoom" '
        f'aria-label="Enlarge: {heading}"><img src="data:image/png;base64,{data}" '
        f'alt="{heading}. {caption}"></button><figcaption>{caption}</figcaption></figure>'
    )


STYLE = """
:root{color-scheme:light dark;--ink:#1c2430;--paper:#fff;--line:#c9d1da;--good:#1d6b3a;
--bad:#a3321f;--off:#fbe9e5;--link:#2b5c93}
@media(prefers-color-scheme:dark){:root{--ink:#e6eaf0;--paper:#15191f;--line:#3a434e;
--good:#7fd6a0;--bad:#ff9d87;--off:#3a211c;--link:#8fbdf0}}
*{box-sizing:border-box}
body{margin:0 auto;max-width:64rem;padding:1rem;background:var(--paper);color:var(--ink);
font:16px/1.5 system-ui,sans-serif}
h1{font-size:1.5rem;margin:.5rem 0;overflow-wrap:anywhere}
a{color:var(--link);margin-right:1rem}
.verdict{border-left:.4rem solid;padding:.6rem 1rem;font-size:1.1rem}
.verdict.good{border-color:var(--good)}.verdict.good strong{color:var(--good)}
.verdict.bad{border-color:var(--bad)}.verdict.bad strong{color:var(--bad)}
.wide{overflow-x:auto}
table{border-collapse:collapse;font-variant-numeric:tabular-nums}
th,td{text-align:left;padding:.3rem .7rem;border-bottom:1px solid var(--line);font-weight:normal}
thead th{font-weight:600}
tr.off{background:var(--off)}
figure{margin:1.5rem 0}
figure h3{margin:.2rem 0}
.zoom{border:1px solid var(--line);padding:0;background:#fff;cursor:zoom-in;display:block;
max-width:100%}
.zoom img{max-width:100%;height:auto;display:block}
.zoom[aria-expanded=true]{position:fixed;inset:0;z-index:1;max-width:none;overflow:auto;
cursor:zoom-out}
.zoom[aria-expanded=true] img{max-width:none;min-width:100%}
dl{display:grid;grid-template-columns:max-content 1fr;gap:.1rem 1rem}dd{margin:0}
:focus-visible{outline:3px solid var(--link)}
"""
SCRIPT = """
const buttons=[...document.querySelectorAll('.zoom')];
const set=(b,open)=>b.setAttribute('aria-expanded',open);
buttons.forEach(b=>{set(b,false);b.onclick=()=>set(b,b.getAttribute('aria-expanded')!=='true');});
document.onkeydown=e=>{if(e.key==='Escape')buttons.forEach(b=>set(b,false));};
"""
