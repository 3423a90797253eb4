"""The report page: what it shows, who can read it, how large it is and how long it takes."""

import base64
import html.parser
import io
import json
import re
import shutil
import time
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ln.suite.errors import Mistake
from ln.suite.judging.claims import load_claims
from ln.suite.judging.published import Key, published_curves
from ln.suite.judging.verdicts import read_verdicts, strongest
from ln.suite.runs.read import Measured
from ln.suite.showing.figures import mean_curve
from ln.suite.showing.page import Built, curves, pictures, write_page
from ln.suite.showing.page.found import find_runs
from ln.suite.showing.panels import published_in
from ln.suite.showing.report import groups
from ln.suite.showing.text import markdown
from tests.conftest import ROOT
from tests.page_results import large_results, metrics_of, small_results, write_run

VOID = {"meta", "link", "img", "input", "br"}


class Page(html.parser.HTMLParser):
    """Elements of a page: (tag, attributes, ancestors, text of its own)."""

    def __init__(self, text: str):
        super().__init__()
        self.open: list[dict[str, Any]] = []
        self.elements: list[dict[str, Any]] = []
        self.feed(text)
        assert not self.open, f"never closed: {[element['tag'] for element in self.open]}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        element = {"tag": tag, **{k: v or "" for k, v in attrs}, "text": "", "inside": [e["tag"] for e in self.open]}
        self.elements.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop()["tag"] == tag

    def handle_data(self, data: str) -> None:
        for element in self.open:
            element["text"] += data

    def all(self, tag: str, **wanted: str) -> list[dict[str, Any]]:
        return [e for e in self.elements if e["tag"] == tag and wanted.items() <= e.items()]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_results(tmp_path_factory.mktemp("small") / "results")


@pytest.fixture(scope="module")
def built(small: Path) -> Built:
    return write_page(small)


@pytest.fixture(scope="module")
def page(built: Built) -> Page:
    return Page(built.page.read_text())


# --- what it says


def test_every_claim_has_the_verdict_of_the_most_faithful_profile_that_judged_it(small: Path, page: Page) -> None:
    rows = [row for row in page.all("tr") if "data-verdict" in row]
    assert len(rows) == sum(len(load_claims(group).claims) for group in groups())
    mnist = [row for row in rows if row["data-experiment"] == "mnist"]
    profiles = set()
    for row, *both in zip(mnist, *(read_verdicts(small / p / "mnist") for p in ("full", "laptop")), strict=True):
        verdict = strongest(both)
        assert verdict is not None
        assert row["data-verdict"] == verdict["verdict"]
        assert row["data-data"] == verdict["data"]
        assert verdict["sentence"] in row["text"]
        assert verdict["measured"] in row["text"]
        assert verdict["profile"] in row["text"]
        profiles.add(verdict["profile"])
    # Only layer norm at batch 128 was run at full: its curve is judged there, what compares two norms at laptop.
    assert profiles == {"full", "laptop"}
    assert {row["data-data"] for row in rows if row["data-experiment"] != "mnist"} == {"no-runs"}


def test_claims_that_were_not_judged_are_folded_beside_the_figure(page: Page) -> None:
    badges = [e for e in page.all("span") if "article" in e["inside"] and "badge" in e.get("class", "")]
    assert {badge["class"] for badge in badges} > {"badge not_run"}
    for badge in badges:
        assert ("details" in badge["inside"]) == (badge["class"] == "badge not_run")


def test_diverged_runs_are_shown_and_unfinished_ones_are_named_and_do_not_count(page: Page) -> None:
    article = page.all("article")[1]  # after full's
    text = " ".join(article["text"].split())
    assert "Judged from 18 runs, of which 1 diverged (mnist_b4, none, seed 2 at step 1007)" in text
    assert "3 unfinished, which do not count:" in text
    assert "mnist_b4, weight, seed 0 (running at step 0)" in text
    assert "mnist_b4, weight, seed 1 (interrupted at step 950)" in text
    assert "mnist_b4, weight, seed 2 (unreadable at step 1000)" in text
    plots = json.loads(page.all("script", id="data")[0]["text"])["plots"]["mnist-laptop"]
    assert "weight" not in {line["norm"] for line in plots["lines"]}
    lost = [line for line in plots["lines"] if "diverged" in line]
    assert [(line["norm"], line["seed"], line["diverged"]) for line in lost] == [("none", 2, 1007)]


def test_a_torn_line_is_said_once(built: Built, small: Path, page: Page, capsys: pytest.CaptureFixture[str]) -> None:
    said = "laptop/mnist_b4/weight/1/metrics.jsonl: the last line is cut short; read up to it"
    assert built.notes == [said]
    assert page.all("main")[0]["text"].count(said) == 1
    write_page(small)
    assert capsys.readouterr().out == ""


def test_a_figure_older_than_its_runs_is_said(small: Path, tmp_path: Path) -> None:
    results = tmp_path / "results"
    shutil.copytree(small, results)
    write_run(results, "mnist_b128", "layer", 3, metrics_of("mnist"))
    write_run(results, "mnist_b128", "batch", 3, metrics_of("mnist"))
    assert any("make verdict-mnist PROFILE=laptop" in note for note in write_page(results).notes)


def test_smoke_runs_show_only_where_there_is_nothing_else(tmp_path: Path, page: Page) -> None:
    assert not [e for e in page.elements if "smoke" in e.get("id", "")]
    write_run(tmp_path, "mnist_b128", "layer", 0, metrics_of("mnist"), profile="smoke")
    assert 'id="mnist-smoke-title"' in write_page(tmp_path).page.read_text()


def test_a_page_of_no_runs_says_how_to_get_some(tmp_path: Path) -> None:
    text = write_page(tmp_path).page.read_text()
    assert "make reproduce-mnist" in text
    assert len(text) < 300_000  # nothing to draw, so no plotting library
    with pytest.raises(Mistake, match="is not a folder with results"):
        write_page(tmp_path / "absent")


# --- the curves


def test_the_mean_is_the_figures_and_thinning_keeps_the_ends(small: Path) -> None:
    found = find_runs(small, "laptop", "mnist_b4")
    document = load_claims("mnist")
    lines = curves.payload(document, found, points=1000)["lines"]
    means = {line["norm"]: line for line in lines if line["seed"] is None and line["experiment"] == "mnist_b4"}
    for norm in ("none", "layer"):
        runs = [Measured(run.info, run.records) for run in found if run.norm == norm]
        where, expected = mean_curve([run.curve("test_error", "epoch") for run in runs])
        assert np.allclose(np.array(means[norm]["y"]["step"]) * means[norm]["epochsPerStep"], where)
        assert np.allclose(means[norm]["y"]["test_error"], expected, rtol=10.0**-curves.DIGITS)
        _, likelihood = mean_curve([run.curve("train_nll", "epoch") for run in runs], log=True)
        assert np.allclose(means[norm]["y"]["train_nll"], likelihood, rtol=10.0**-curves.DIGITS)
    thin = curves.payload(document, found, points=5)["lines"]
    for whole, kept in zip(lines, thin, strict=True):
        assert len(kept["y"]["step"]) == min(5, len(whole["y"]["step"]))
        for metric, values in kept["y"].items():
            assert (values[0], values[-1]) == (whole["y"][metric][0], whole["y"][metric][-1])


def test_published_values_and_every_quantity_of_the_figure_are_offered() -> None:
    for group in groups():
        document = load_claims(group)
        plots = curves.payload(document, [], points=5)["plots"]
        panels = document.figure.panels
        offered = {(plot["experiment"], plot["metric"]) for plot in plots}
        assert {(p.experiment, p.metric) for p in panels} <= offered
        drawn = {curve.key.norm for panel in panels for curve, _ in published_in(panel)}
        assert drawn == {line["norm"] for plot in plots for line in plot["published"]}
        for plot in plots:
            for line in plot["published"]:
                curve = published_curves()[Key(plot["experiment"], plot["metric"], line["norm"])]
                assert line["axis"] == plot["x"] == curve.axis
                assert len(line["x"]) == len(line["y"]) == 5
                assert (line["x"][-1], line["y"][0]) == pytest.approx((curve.x[-1], curve.y[0]), rel=1e-3)


# --- one file, readable by everyone


def test_the_page_needs_no_network_and_its_links_lead_somewhere(page: Page, small: Path) -> None:
    ids = {e["id"] for e in page.elements if "id" in e}
    for element in page.elements:
        source = element.get("src", element.get("href", "") if element["tag"] == "link" else "")
        assert not re.match(r"(https?:)?//", source), source[:80]
    for link in page.all("a"):
        where = link["href"]
        if where.startswith("#"):
            assert where[1:] in ids, where
        elif not where.startswith("https://arxiv.org/"):
            assert (small / where).exists(), where
    for name in ("config.yaml", "run.json", "metrics.jsonl"):
        assert page.all("a", href=f"laptop/mnist_b4/none/2/{name}")
    text = page.all("article")[1]["text"]
    for said in ("012345678", "a CPU", "torch 2.11.0", "Python 3.11.9"):
        assert said in text


def test_sensitivity_and_speed_stand_beside_the_claims(page: Page, small: Path) -> None:
    shown = (small / "index.html").read_text().partition('<section id="beside"')[2].partition("</section>")[0]
    assert "<h3>Sensitivity</h3>" in shown
    assert "<h3>Speed</h3>" in shown
    assert '<a href="sweeps/learning_rate/figure-laptop.png">' in shown
    assert "Learning rate, profile laptop" in shown
    assert "CPU 2 threads bars" in shown


def test_landmarks_labels_headings_and_alternative_texts(page: Page) -> None:
    for landmark in ("header", "nav", "main", "footer"):
        assert len(page.all(landmark)) == 1
    ids = Counter(e["id"] for e in page.elements if "id" in e)
    assert max(ids.values()) == 1
    for element in page.elements:
        for reference in element.get("aria-labelledby", "").split():
            assert reference in ids
        if element["tag"] == "img":
            assert len(element["alt"]) > 10
        if element["tag"] in ("select", "input"):
            assert "label" in element["inside"]
        if element["tag"] == "th":
            assert element["scope"] in ("row", "col")
        if "tabindex" in element:
            assert element["tabindex"] == "0"
            assert element["aria-label"]
    levels = [int(e["tag"][1]) for e in page.elements if re.fullmatch(r"h\d", e["tag"])]
    assert levels[0] == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))
    assert page.all("output", id="count")[0]["aria-live"] == "polite"
    assert page.all("html")[0]["lang"] == "en"
    animations = [e for e in page.all("img") if e["src"].startswith("data:image/gif")]
    assert animations
    assert all("details" in e["inside"] for e in animations)  # nothing moves before it is asked to


def rgb(colour: str) -> np.ndarray:
    return np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)], dtype=np.float64)


def test_contrasts_are_aa_in_both_schemes() -> None:
    style = (ROOT / "ln" / "suite" / "showing" / "page" / "page.css").read_text()
    pair = r"light-dark\((#\w{6}), (#\w{6})\)"
    named = {name: (a, b) for name, a, b in re.findall(rf"--(\w+): {pair}", style)}
    assert rgb(named["raised"][1]).tolist() == list(curves.DARK)  # what the norms' colours are made for
    pairs = [(named[text], named[ground]) for text in ("text", "quiet", "link") for ground in ("page", "raised")]
    badges = re.findall(rf"background: {pair}; color: {pair}", style)
    assert len(badges) == 5
    pairs += [((c, d), (a, b)) for a, b, c, d in badges]
    for text, ground in pairs:
        for scheme in (0, 1):
            assert curves.contrast(rgb(text[scheme]), rgb(ground[scheme])) >= 4.5, (text, ground, scheme)
    for norm in curves.palette().values():
        assert curves.contrast(rgb(norm["dark"]), rgb(named["page"][1])) >= 4.5


def test_the_same_results_are_the_same_page(built: Built, small: Path) -> None:
    before = built.page.read_bytes(), built.markdown.read_bytes()
    again = write_page(small)
    assert (again.page.read_bytes(), again.markdown.read_bytes()) == before
    assert str(small).encode() not in before[0] + before[1]  # no path of this machine


def test_the_report_is_not_stale(tmp_path: Path) -> None:
    copied = shutil.copytree(ROOT / "results", tmp_path / "results", ignore=shutil.ignore_patterns("*.pt", "wandb"))
    said = (copied / "REPORT.md").read_text(), (copied / "index.html").read_text().partition('id="plotly"')[0]
    made = write_page(copied)
    now = made.markdown.read_text(), made.page.read_text().partition('id="plotly"')[0]
    assert said == now, "run `make report`"


def test_text_cannot_break_out_of_the_page(tmp_path: Path) -> None:
    evil = "</script><script>alert(1)</script>"
    write_run(tmp_path, "mnist_b128", "layer", 0, [*metrics_of("mnist"), evil])
    text = write_page(tmp_path).page.read_text()
    assert "alert(1)" in text
    assert evil not in text
    assert "<script>alert" not in text


def test_report_md_has_every_claim_run_and_figure_and_its_links_resolve(built: Built, small: Path) -> None:
    text = built.markdown.read_text()
    for group in groups():
        document = load_claims(group)
        assert f"## {document.title}" in text
        for claim in document.claims:
            assert markdown(claim.sentence) in text
    for line in text.splitlines():
        if line.startswith("|"):
            assert len(re.findall(r"(?<!\\)\|", line)) in (6, 7), line
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", text)]
    assert "laptop/mnist/figure.png" in links
    assert "laptop/mnist_b4/none/2/metrics.jsonl" in links
    assert all((small / link).exists() for link in links)
    assert "**diverged** at step 1007" in text
    assert "mnist_b4, weight, seed 1 (interrupted at step 950)" in text
    assert max(map(len, re.findall(r"\n{4,}", text)), default=0) == 0


def test_report_md_takes_nothing_of_a_config_for_markdown(tmp_path: Path) -> None:
    evil = "<img src=x onerror=alert(1)>|[a](javascript:b)"
    folder = write_run(tmp_path, "mnist_b128", "layer", 0, [*metrics_of("mnist"), evil])
    info = json.loads((folder / "run.json").read_text())
    info["data"]["name"], info["hardware"] = "| <b>*bold*</b>", "`a` _CPU_ [x](y)"
    info["final"] = {evil: 1.0}
    (folder / "run.json").write_text(json.dumps(info))
    text = write_page(tmp_path).markdown.read_text()
    for raw in ("<img", "<b>", "*bold*<", "](javascript", "](y)", " _CPU_", " | <"):
        assert raw not in text, raw
    assert r"\| &lt;b&gt;\*bold\*&lt;/b&gt; [embedded]" in text
    assert r"\`a\` \_CPU\_ [x]\(y)" in text


# --- three hundred runs


def test_300_runs_take_less_than_ten_seconds_and_five_megabytes(tmp_path: Path) -> None:
    results = large_results(tmp_path / "results")
    started = time.process_time()
    built = write_page(results)
    seconds = time.process_time() - started
    size = built.page.stat().st_size + built.markdown.stat().st_size
    assert seconds < 10
    assert size < 5_000_000
    text = built.page.read_text()
    assert text.count('/metrics.jsonl"') == 300
    assert built.markdown.read_text().count("/metrics.jsonl)") == 300
    plots = json.loads(re.search(r'id="data">(.*?)</script>', text).group(1))["plots"]  # type: ignore[union-attr]
    assert sum(line["seed"] is not None for plot in plots.values() for line in plot["lines"]) == 300


def test_pictures_beyond_the_room_are_linked_instead(small: Path) -> None:
    path = small / "laptop/mnist/figure.png"
    embedded = pictures.Album(small).take(path, "a").data
    assert embedded.startswith("data:image/png;base64,")
    kept = base64.b64decode(embedded.partition(",")[2])
    assert len(kept) < path.stat().st_size
    with Image.open(path) as whole, Image.open(io.BytesIO(kept)) as small_one:
        difference = np.abs(np.asarray(whole.convert("RGB"), float) - np.asarray(small_one.convert("RGB"), float))
    assert difference.max() < 32  # of 255: no colour has become another
    album = pictures.Album(small, room=len(kept))
    assert album.take(path, "a").data == embedded
    assert album.take(path, "a").data == ""
    assert album.take(path, "a").path == "laptop/mnist/figure.png"
