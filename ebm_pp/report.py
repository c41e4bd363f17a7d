"""One HTML page about a fit that opens anywhere, without a network: verdict, pictures, numbers."""

import base64
import dataclasses
import html
import importlib.metadata
import io
import math
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from jaxtyping import Int
from matplotlib.figure import Figure
from torch import Tensor

from ebm_pp.density import Sites
from ebm_pp.diagnostics import Report, diagnose
from ebm_pp.errors import ProgramError
from ebm_pp.plots import (
    plot_energy_on_circle,
    plot_factors,
    plot_moment_gaps,
    plot_pairs,
    plot_training,
    plot_weights,
)
from ebm_pp.pool import n_rows
from ebm_pp.sampling import importance_sample, resample, slices
from ebm_pp.training import Fit
from ebm_pp.uncertainty import MOST, readable, standard_errors

PAIRS_AT_MOST = 6  # sites in the picture of pairs: more would be too small to see

Picture = tuple[str, str, Figure]  # heading, what it shows, the figure


def write_report(
    fit: Fit,
    held_out: Sites,
    path: str | Path,
    *,
    groups: Int[Tensor, " rows"] | None = None,
    title: str = "fit",
    seed: int | None = 0,
) -> Report:
    """Diagnoses a fit and writes the page.

    Args:
        fit: the fit.
        held_out: rows that it was not trained on.
        path: the file to write; its folder is made.
        groups: a label per row; rows of one label go together.
        title: of the page, usually the program's name.
        seed: of all draws.

    Returns:
        The report that the page shows.

    Raises:
        DataError: the rows do not fit the program.
        ProgramError: the density or log q of a draw is not a number.
        GeneratorError: no draw of the generator has any weight.
    """
    report = diagnose(fit, held_out, groups=groups, seed=seed)
    pictures = _pictures(fit, held_out, report, seed)
    page = _page(fit, held_out, report, pictures, groups, title, seed)
    for _, _, figure in pictures:
        plt.close(figure)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding="utf-8")
    return report


def _pictures(fit: Fit, held_out: Sites, report: Report, seed: int | None) -> list[Picture]:
    model = fit.model
    draws = importance_sample(fit, max(4 * n_rows(held_out), 4000), seed=seed)
    corrected = resample(draws, max(n_rows(held_out), 2000), seed=seed)
    with torch.no_grad():
        at_rows = torch.cat([model.log_density(x) - fit.generator.log_prob(x)
                             for x in slices(held_out)])  # fmt: skip
    some = sorted(model.sites, key=lambda name: -model.sites[name].dim)[-PAIRS_AT_MOST:]
    shown = [name for name in model.sites if name in some and model.sites[name].dim <= 8]
    found = [
        (
            "Importance weights",
            "Log weights of the generator's draws (orange) and of held-out rows (blue). Two "
            "narrow peaks at one place are a good fit; rows far to the right of all draws are "
            "where the generator misses a mode.",
            plot_weights(draws.log_weights, at_rows),
        )
    ]
    if shown:
        found.append(
            (
                "Data beside draws",
                "Every pair of sites: data in blue below the diagonal, weighted draws in orange "
                "above it.",
                plot_pairs(model, held_out, corrected, shown),
            )
        )
    found.append(
        (
            "Moments",
            "By how many standard errors the data's mean of each statistic is above the "
            "model's. Beyond the dashed lines a factor is wrong or missing.",
            plot_moment_gaps(report),
        )
    )
    found.append(
        (
            "Terms of the density",
            "What every site and factor contributes, at data (blue) and at weighted draws "
            "(orange): 5th to 95th percentile and mean.",
            plot_factors(model, held_out, corrected),
        )
    )
    for name, site in model.sites.items():
        if site.circular and not site.shape:
            caption = f"The energy along {name}, all other sites held at rows of the data."
            found.append(
                (f"Energy along {name}", caption, plot_energy_on_circle(fit, held_out, name))
            )
    if fit.history:
        caption = "Diagnosis of every round of the training."
        found.append(("Training", caption, plot_training(fit)))
    return found


def _page(
    fit: Fit,
    held_out: Sites,
    report: Report,
    pictures: list[Picture],
    groups: Int[Tensor, " rows"] | None,
    title: str,
    seed: int | None,
) -> str:
    name, text = html.escape(title), html.escape
    head, _, rest = report.verdict.partition(": ")
    mark = "good" if report.ok else "bad"
    ended = text(f"{fit.status.value} {fit.detail}".strip())
    figures = "".join(_figure(i, *picture) for i, picture in enumerate(pictures))
    rows = "".join(
        f'<tr class="{"" if row.verdict in ("", "ok") else "off"}"><th scope="row">'
        f"{text(row.name)}</th><td>{text(row.text)}</td><td>{text(row.wanted)}</td>"
        f"<td>{text(row.verdict)}</td></tr>"
        for row in report.rows
    )
    sites = "".join(
        f'<tr><th scope="row">{text(site)}</th><td>{text(str(known.shape))}</td>'
        f"<td>{text(str(known.support))}</td></tr>"
        for site, known in fit.model.sites.items()
    )
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
<main><section id="numbers"><h2>Numbers</h2><div class="wide" tabindex="0" role="region"
aria-label="Measurements"><table><thead><tr><th scope="col">measured</th><th scope="col">value</th>
<th scope="col">wanted</th><th scope="col">verdict</th></tr></thead><tbody>{rows}</tbody></table>
</div><p>{n_rows(held_out)} held-out rows, {report.evidence.n} draws of the generator.</p>
</section>
<section id="pictures"><h2>Pictures</h2>{figures}</section>
<section id="parameters"><h2>Parameters</h2>{_parameters(fit, held_out, groups, seed)}</section>
<section id="settings"><h2>Settings</h2><div class="wide" tabindex="0" role="region"
aria-label="Sites"><table><thead><tr><th scope="col">site</th><th scope="col">shape</th>
<th scope="col">support</th></tr></thead><tbody>{sites}</tbody></table></div>
<details><summary>Configuration</summary><dl>{listed}</dl></details>
<p>{fit.n_train} training rows; round {fit.best_round + 1} returned. {text(versions)}.</p>
</section></main><script>{SCRIPT}</script></body></html>
"""


def _parameters(
    fit: Fit, held_out: Sites, groups: Int[Tensor, " rows"] | None, seed: int | None
) -> str:
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
    except ProgramError as error:
        return f"<p>No standard errors: {html.escape(str(error))}</p>"
    lines = "".join(
        f'<tr><th scope="row">{html.escape(name)}</th><td>{value:.4g}</td><td>{error:.2g}</td>'
        f"<td>{html.escape(factor)}</td></tr>"
        for name, value, error, factor in zip(
            found.names, found.values.tolist(), found.standard_errors.tolist(), found.factors,
            strict=True,
        )
    )  # fmt: skip
    note = "" if found.ok else f"<p>{html.escape(found.verdict)}</p>"
    return (
        '<div class="wide" tabindex="0" role="region" aria-label="Parameters"><table><thead><tr>'
        '<th scope="col">parameter</th><th scope="col">value</th>'
        '<th scope="col">standard error</th><th scope="col">factors</th></tr></thead>'
        f"<tbody>{lines}</tbody></table></div>{note}"
        "<p>Standard errors are those of maximum likelihood from the training rows' number, "
        "networks held fixed.</p>"
    )


def _figure(index: int, heading: str, caption: str, figure: Figure) -> str:
    buffer = io.BytesIO()
    width = figure.get_figwidth()
    figure.savefig(buffer, format="png", dpi=min(110, math.ceil(1400 / width)))
    data = base64.b64encode(buffer.getvalue()).decode()
    alt = html.escape(f"{heading}. {caption}", quote=True)
    return (
        f'<figure><h3 id="picture{index}">{html.escape(heading)}</h3>'
        f'<button type="button" class="zoom" aria-label="Enlarge: {html.escape(heading)}">'
        f'<img src="data:image/png;base64,{data}" alt="{alt}"></button>'
        f"<figcaption>{html.escape(caption)}</figcaption></figure>"
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
