"""The HTML page: what it says, that it needs no network, and how a browser shows it."""

import re
import shutil
from html.parser import HTMLParser

import matplotlib.pyplot as plt
import pyro
import pyro.distributions as dist
import pytest
import torch

from ebm_pp import (
    Circle,
    EnergyModel,
    Fit,
    FitConfig,
    FlowGenerator,
    Status,
    diagnose,
    fit,
    importance_sample,
    runs,
)
from ebm_pp.cli import main, write_run
from ebm_pp.plots import plot_factors, plot_moment_gaps
from ebm_pp.report import _few, write_report
from models import gaussian

SHORT = FitConfig(
    rounds=6, pool=1024, batch=256, energy_steps=20, warm_start_steps=100, energy_lr=2e-2,
    progress=False,
)  # fmt: skip


@pytest.fixture(scope="module")
def fitted():
    data = gaussian.draws(gaussian.true_parameters(2), 3000, 0)
    torch.manual_seed(0)
    return fit(EnergyModel(gaussian.Gaussian(2)), data, config=SHORT)


@pytest.fixture(scope="module")
def held_out():
    return gaussian.draws(gaussian.true_parameters(2), 1000, 1)


class Page(HTMLParser):
    """Which tags a page has, with their attributes; and whether they are closed."""

    VOID = ("meta", "link", "img", "br")

    def __init__(self, text):
        super().__init__()
        self.tags, self.open = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_one_page_with_verdict_pictures_and_parameters(fitted, held_out, tmp_path):
    path, open_before = tmp_path / "new" / "report.html", plt.get_fignums()
    report = write_report(fitted, held_out, path, title="a <b> & c")
    assert str(report) == str(diagnose(fitted, held_out))
    text = path.read_text()
    page = Page(text)
    assert not page.open
    assert "a &lt;b&gt; &amp; c" in text
    assert report.verdict.split(": ")[1][:40] in text
    assert text.count("<img") >= 4
    assert all(attrs["alt"] for tag, attrs in page.tags if tag == "img")
    for _, attrs in page.tags:  # nothing is loaded from elsewhere
        for name in ("src", "href"):
            assert attrs.get(name, "#").startswith(("#", "data:")), attrs
    assert len(text) < 3e6
    assert "coupling_weights[0]" in text
    assert plt.get_fignums() == open_before


def test_the_picture_of_pairs_leaves_out_what_has_no_room():
    def program():
        pyro.sample("many", dist.Normal(torch.zeros(9), 1.0).to_event(1))
        pyro.sample("some", dist.Normal(torch.zeros(5), 1.0).to_event(1))
        pyro.sample("too", dist.Normal(torch.zeros(4), 1.0).to_event(1))
        pyro.sample("one", dist.Normal(0.0, 1.0))

    assert _few(EnergyModel(program)) == ["some", "one"]


def test_a_bad_fit_is_said_to_be_bad_at_the_top(held_out, tmp_path):
    model = EnergyModel(gaussian.Gaussian(2))
    narrow = FlowGenerator(model, {"x": 0.3 * held_out["x"]})
    bad = Fit(model, narrow, (), Status.LAGGING, SHORT, 0.0, 1000)
    report = write_report(bad, held_out, tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text()
    assert not report.ok
    assert 'class="verdict bad"' in text
    assert text.index(report.verdict.split(":")[0]) < text.index("<table")
    assert '<tr class="off">' in text


def test_the_command_line_writes_it(fitted, held_out, tmp_path, capsys):
    write_run(fitted, held_out, tmp_path, spec="models.gaussian:Gaussian")
    assert main(["report", str(tmp_path)]) in (0, 1)
    assert "report.html" in capsys.readouterr().out
    assert "models.gaussian:Gaussian" in (tmp_path / "report.html").read_text()
    assert main(["report", str(tmp_path / "nothing")]) == 2


def test_nothing_of_an_older_run_stays_beside_a_new_one(fitted, held_out, tmp_path, monkeypatch):
    def stopped(*_, **__):
        raise KeyboardInterrupt

    write_run(fitted, held_out, tmp_path, spec="models.gaussian:Gaussian")
    main(["report", str(tmp_path)])
    site = next(iter(fitted.model.sites))
    (tmp_path / f"energy_{site}.png").write_text("of the angle that this site was")
    (tmp_path / "energy_of_the_atom.png").write_text("the user's")
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", stopped)
        with pytest.raises(KeyboardInterrupt):
            write_run(fitted, held_out, tmp_path)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before
    with monkeypatch.context() as patch:
        patch.setattr(runs, "diagnose", stopped)
        with pytest.raises(KeyboardInterrupt):
            write_run(fitted, held_out, tmp_path)
    left = {file.name for file in tmp_path.iterdir()}
    assert left == {"fit.pt", "held_out.npz", "run.json", "energy_of_the_atom.png"}


def test_notebooks_show_the_status_first_and_well_formed_tables(fitted, held_out):
    draws = importance_sample(fitted, 500, seed=0)
    fit_, drawn = fitted._repr_html_(), draws._repr_html_()
    for text in (fit_, drawn, diagnose(fitted, held_out)._repr_html_()):
        assert not Page(text).open
    assert fit_.startswith(f"<p><strong>{fitted.status.value}")
    assert "<td>x</td>" in fit_
    assert "500 draws of q, worth 4" in drawn
    mean = torch.softmax(draws.log_weights.double(), 0) @ draws.values["x"].double()
    assert f"<td>x[1]</td><td>{mean[1]:.4g}</td>" in drawn


def test_notebooks_show_a_program_as_its_sites_and_factors():
    def program():
        angle = pyro.sample("angle", Circle())
        rate = pyro.sample("rate", dist.Beta(2.0, torch.tensor([2.0, 3.0])).to_event(1))
        pyro.factor("a < b", angle.cos() * rate[..., 0])

    text = EnergyModel(program)._repr_html_()
    assert not Page(text).open
    assert "<td>angle</td><td>()</td><td>circle</td>" in text
    assert "<td>rate</td><td>(2,)</td><td>Interval(0, 1)</td>" in text
    assert "<td>a &lt; b</td>" in text
    assert "3 unconstrained coordinates; 0 parameters; batched by vmap." in text


def test_the_moment_plot_has_a_line_per_gap(fitted, held_out):
    report = diagnose(fitted, held_out)
    figure = plot_moment_gaps(report, most=3)
    ax = figure.axes[0]
    assert len(ax.get_yticks()) == 3
    worst = max(report.evidence.data.gaps.values(), key=lambda gap: abs(gap.z))
    (points,) = [c for c in ax.collections if len(c.get_offsets()) == 3]
    assert points.get_offsets()[-1][0] == pytest.approx(worst.z)
    plt.close(figure)
    with pytest.raises(ValueError, match="no moment gaps"):
        plot_moment_gaps(diagnose(fitted, None))


def test_the_plot_of_factors_has_their_means(fitted, held_out):
    draws = {"x": held_out["x"] + 1.0}
    figure = plot_factors(fitted.model, held_out, draws)
    terms, elsewhere = fitted.model.terms(held_out), fitted.model.terms(draws)
    for line, values in zip(figure.axes[0].lines, (terms, elsewhere), strict=True):
        means = [value.mean().item() for value in values.values()]
        assert line.get_xdata() == pytest.approx(means, rel=1e-5)
    labels = [text.get_text() for text in figure.axes[0].get_yticklabels()]
    assert labels == ["x", "field", "curvature", "coupling"]
    plt.close(figure)


@pytest.mark.parametrize("width", [390, 1200])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_browser_shows_it(fitted, held_out, tmp_path, width, scheme):
    sync_api = pytest.importorskip("playwright.sync_api")
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("no chromium on this machine")
    write_report(fitted, held_out, tmp_path / "report.html", title="gaussian")
    errors = []
    with sync_api.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        context = browser.new_context(
            viewport={"width": width, "height": 800}, color_scheme=scheme, offline=True
        )
        page = context.new_page()
        page.on("console", lambda message: errors.append(message.text))
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto((tmp_path / "report.html").as_uri())
        assert page.get_by_role("status").is_visible()
        box = page.get_by_role("status").bounding_box()
        assert box["y"] + box["height"] < 800  # without scrolling
        loaded = page.eval_on_selector_all("img", "all => all.map(i => i.naturalWidth > 0)")
        assert len(loaded) >= 4
        assert all(loaded)
        overflow = page.evaluate("document.documentElement.scrollWidth - window.innerWidth")
        assert overflow <= 0  # wide tables scroll on their own
        dark = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (sum(map(int, re.findall(r"\d+", dark)[:3])) < 200) == (scheme == "dark")
        first = page.get_by_role("button").first
        first.focus()
        page.keyboard.press("Enter")
        assert first.get_attribute("aria-expanded") == "true"
        page.keyboard.press("Escape")
        assert first.get_attribute("aria-expanded") == "false"
        browser.close()
    assert errors == []
