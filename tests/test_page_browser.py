"""The report page in headless Chromium: it loads in silence, and its filters, toggles and colours do what they say."""

import html
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ln.suite.judging.claims import load_claims
from ln.suite.showing.page import Built, curves, write_page
from ln.suite.showing.report import groups
from tests.page_results import large_results, small_results

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    return write_page(small_results(tmp_path_factory.mktemp("small") / "results"))


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., tuple[dict[str, Any], list[str]]]:
    """Open a page in headless Chromium, run a script in it that returns an object; that and the console's lines."""
    if CHROMIUM is None:
        pytest.skip("no chromium on this machine (apt-get install chromium)")

    def visit(page: Path, script: str, address: str = "") -> tuple[dict[str, Any], list[str]]:
        probe = f"""<script>addEventListener("load", async () => {{
          const wait = (ms) => new Promise((done) => setTimeout(done, ms));
          const drawn = async () => {{ while (!panels.every((p) => p.canvas.data)) await wait(50); }};
          const change = async (box, to) => {{
            if (to === undefined) box.click();
            else {{ box.value = to; box.dispatchEvent(new Event("change", {{ bubbles: true }})); }}
            await wait(200);
          }};
          const said = document.createElement("pre");
          said.id = "said";
          const result = await (async () => {{ {script} }})().catch((error) => ({{ error: String(error) }}));
          said.textContent = JSON.stringify(result);
          document.body.append(said);
        }});</script></body>"""
        copy = page.with_name("probe.html")
        copy.write_text(page.read_text().replace("</body>", probe))
        command = [
            str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
            "--disable-background-networking", "--disable-component-update", "--disable-sync",
            f"--user-data-dir={tmp_path_factory.mktemp('profile')}", "--enable-logging=stderr",
            "--virtual-time-budget=30000", "--dump-dom", f"file://{copy}{address}",
        ]  # fmt: skip
        answer = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        copy.unlink()
        console = [line for line in answer.stderr.splitlines() if ":CONSOLE" in line]
        found = re.search(r'<pre id="said">(.*?)</pre>', answer.stdout, re.DOTALL)
        assert found, f"the page said nothing; console: {console}"
        return json.loads(html.unescape(found.group(1))), console

    return visit


def test_curves_toggle_by_norm_and_switch_axes_and_quantities(built: Built, browser: Callable[..., Any]) -> None:
    script = """
      await drawn();
      const panel = panels.find((p) => p.element.dataset.key === "mnist-laptop");
      const look = () => ({ lines: panel.canvas.data.map((t) => t.name), x: panel.canvas.data[0]?.x.at(-1),
        title: panel.canvas.layout.xaxis.title.text, y: panel.canvas.layout.yaxis.title.text,
        colours: [...new Set(panel.canvas.data.map((t) => t.line.color))], label: panel.canvas.ariaLabel,
        rows: panel.element.querySelectorAll(".values tbody tr").length });
      const input = (value) => panel.element.querySelector(`input[value=${value}]`);
      const out = { first: look() };
      await change(panel.publishedBox); out.published = look();
      await change(panel.publishedBox); out.again = look();
      await change(input("seconds")); out.seconds = look();
      await change(input("step")); out.step = look();
      await change(input("batch")); out.toggled = look();
      await change(panel.select, 3); out.quantity = look();
      out.lost = panel.canvas.data.find((t) => t.name === "no norm, seed 2");
      return out;"""
    said, console = browser(built.page, script)
    assert console == []
    assert "error" not in said
    first = said["first"]
    assert len(first["lines"]) == 3 * 4  # three norms' seeds and means
    assert first["lines"][-3:] == ["no norm", "batch norm", "layer norm"]  # the means lie on top
    assert set(first["colours"]) == {curves.palette()[norm]["light"] for norm in ("none", "batch", "layer")}
    assert (first["title"], first["x"]) == ("epoch", 2.5)
    assert (said["seconds"]["title"], said["step"]["title"]) == ("seconds", "iteration")
    assert (said["seconds"]["x"], said["step"]["x"]) == (20, 1000)
    assert not any("batch" in name for name in said["toggled"]["lines"])
    assert said["toggled"]["rows"] == first["rows"] - 1 == 2
    assert {*said["published"]["lines"][:3]} == {f"published, {n}" for n in ("no norm", "batch norm", "layer norm")}
    assert said["published"]["lines"][3:] == first["lines"]  # which lie on top
    assert said["again"]["lines"] == first["lines"]
    assert said["quantity"]["y"] == "Test error"
    assert "diverged" in said["quantity"]["label"]
    assert "diverged at step 1007" in said["lost"]["hovertemplate"]
    assert max(said["lost"]["marker"]["size"]) > 0


def test_filters_count_and_live_in_the_address(built: Built, browser: Callable[..., Any]) -> None:
    claims = {group: len(load_claims(group).claims) for group in groups()}
    rows, mnist = sum(claims.values()), claims["mnist"]
    script = """
      const look = () => ({ shown: rows
          .filter((row) => !row.hidden && !row.closest("details").hidden).map((row) => row.dataset.experiment),
        count: document.getElementById("count").textContent, hash: location.hash,
        open: folds.filter((fold) => fold.open).length, experiment: form.elements.experiment.value });
      const out = { opened: look() };
      await change(form.elements.verdict, "not_run"); out.both = look();
      await change(form.querySelector("[type=reset]")); out.all = look();
      await change(form.elements.data, "embedded"); out.data = look();
      return out;"""
    said, console = browser(built.page, script, "#experiment=mnist")
    assert console == []
    assert said["opened"]["experiment"] == "mnist"
    assert said["opened"]["shown"] == ["mnist"] * mnist
    assert said["opened"]["count"] == f"{mnist} of {rows} claims"
    assert {*said["both"]["shown"]} == {"mnist"}  # the published numbers, which smoke does not judge
    assert len(said["both"]["shown"]) < mnist
    assert (said["opened"]["open"], said["all"]["open"]) == (1, 0)  # folded until some are asked for
    assert said["both"]["hash"] == "#experiment=mnist&verdict=not_run"
    assert len(said["all"]["shown"]) == rows
    assert {*said["data"]["shown"]} == {"mnist"}  # but for claims about norms that were not run, which have no data
    assert len(said["both"]["shown"]) < len(said["data"]["shown"]) <= mnist


def test_the_theme_turns_the_page_and_its_plots(built: Built, browser: Callable[..., Any]) -> None:
    script = """
      await drawn();
      const look = () => [getComputedStyle(document.body).backgroundColor, themeButton.textContent,
        panels[0].canvas.data.at(-1).line.color];
      const out = { before: look() };
      await change(themeButton); out.after = look();
      return out;"""
    said, console = browser(built.page, script)
    assert console == []
    layer = curves.palette()["layer"]
    assert said["before"] == ["rgb(255, 255, 255)", "Dark colours", layer["light"]]
    assert said["after"] == ["rgb(16, 19, 23)", "Light colours", layer["dark"]]


def test_300_runs_load_without_a_word_on_the_console(tmp_path: Path, browser: Callable[..., Any]) -> None:
    script = """
      await drawn();
      return { plots: document.querySelectorAll(".plot .main-svg").length, width: root.scrollWidth - innerWidth };"""
    said, console = browser(write_page(large_results(tmp_path / "results", evaluations=80)).page, script)
    assert console == []
    assert said["plots"] >= len(groups())
    assert said["width"] <= 0  # nothing sticks out to the side
