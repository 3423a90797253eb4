"""What people read: the README's table, the terminal's, the figures, the plan, the help."""

import re
import shutil
import subprocess
import tomllib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from ln.suite.config import Recipe, names
from ln.suite.errors import Mistake
from ln.suite.judging.claims import RunsAt, RunsWanted
from ln.suite.runs.train import carry_out
from ln.suite.showing import speeds
from ln.suite.showing.report import conclude, groups, terminal_table, with_block
from ln.suite.showing.scoreboard import readme_block
from ln.suite.showing.text import duration
from ln.suite.sweeps import wanted as plan
from ln.suite.sweeps.wanted import cells, wanted
from tests.conftest import ROOT
from tests.page_results import metrics_of, write_run


def test_the_readmes_table_is_not_stale() -> None:
    readme = (ROOT / "README.md").read_text()
    assert with_block(readme, readme_block(ROOT / "results")) == readme, "run `make readme`"


@pytest.mark.parametrize(("page", "block"), [("README.md", speeds.readme_block), ("docs/layers.md", speeds.docs_block)])
def test_the_speeds_are_those_of_the_committed_bench(page: str, block: Callable[[Path], str], tmp_path: Path) -> None:
    said = (ROOT / page).read_text()
    assert with_block(said, block(ROOT / "results")) == said, "run `make readme`"
    with pytest.raises(Mistake, match="`make bench` writes it"):
        block(tmp_path)


def test_every_experiment_has_claims_and_its_command_in_the_readme() -> None:
    readme = (ROOT / "README.md").read_text()
    for group in groups():
        assert f"make reproduce-{group.replace('_', '-')}" in readme


@pytest.mark.parametrize("experiment", names("experiment"))
def test_every_recipe_opens_with_its_claim_cost_command_and_deviations(experiment: str) -> None:
    text = (ROOT / "configs" / "experiment" / f"{experiment}.yaml").read_text()
    header = "".join(line for line in text.splitlines(keepends=True) if line.startswith("#"))
    for word in ("Cost:", "Command: make reproduce-", "Deviations"):
        assert word in header, f"{experiment}.yaml's header names no {word}"


def test_conclude_judges_and_draws(recipe: Callable[..., Recipe], tmp_path: Path) -> None:
    for norm in ("layer", "batch"):
        for seed in (0, 1):
            carry_out(recipe("experiment=mnist_b128", f"norm={norm}", f"seed={seed}"))
    verdicts, figure = conclude("mnist", "smoke", tmp_path / "results")
    assert figure is not None
    assert figure.stat().st_size > 10_000
    assert figure.with_suffix(".svg").exists()
    by_claim = {verdict["claim"]: verdict for verdict in verdicts}
    assert by_claim["mnist_faster_b128"]["verdict"] != "not_run"
    assert by_claim["mnist_faster_b128"]["seeds"] == [0, 1]
    assert by_claim["mnist_better_b4"]["verdict"] == "not_run"
    table = terminal_table(verdicts)
    assert "[smoke, embedded, 2 seeds]" in re.sub(r"\s+", " ", table)
    before = figure.read_bytes()
    assert conclude("mnist", "smoke", tmp_path / "results")[1] == figure
    assert figure.read_bytes() == before  # the same runs, the same picture


def test_a_figure_of_published_curves_alone_is_not_called_measured(tmp_path: Path) -> None:
    """`skip_thoughts_cost` has numbers and no curve of the figure's; what an earlier verdict drew goes."""
    folder = tmp_path / "laptop" / "skip_thoughts"
    write_run(tmp_path, "skip_thoughts", "layer", 0, metrics_of("skip_thoughts"))
    assert conclude("skip_thoughts", "laptop", tmp_path)[1] == folder / "figure.png"
    shutil.rmtree(folder / "layer")
    write_run(tmp_path, "skip_thoughts_cost", "layer", 0, ["test_step_ratio"])
    assert conclude("skip_thoughts", "laptop", tmp_path)[1] is None
    assert sorted(path.name for path in folder.iterdir()) == ["verdicts.json"]


def test_conclude_before_anything_ran(tmp_path: Path) -> None:
    verdicts, figure = conclude("mnist", "laptop", tmp_path)
    assert figure is None
    assert {verdict["verdict"] for verdict in verdicts} == {"not_run"}


def test_the_plan_tells_what_is_done_and_estimates_the_rest(recipe: Callable[..., Recipe], tmp_path: Path) -> None:
    carry_out(recipe("experiment=mnist_b128", "norm=layer"))
    found = cells(tmp_path / "results", "smoke", wanted("mnist", "smoke", "layer,batch", "0,1"))
    assert len(found) == 2 * 2 * 2
    states = {(cell.experiment, cell.norm, cell.seed): cell for cell in found}
    assert states["mnist_b128", "layer", 0].done
    missing = states["mnist_b128", "batch", 1]
    assert missing.status == "missing"
    assert missing.seconds is not None
    assert missing.seconds > 0
    assert states["mnist_b4", "layer", 0].seconds is None  # nothing like it ran


@pytest.mark.parametrize(
    ("norms", "seeds", "said"), [("lyer", None, "norm=lyer"), ("", None, "norm="), (None, "one", "seeds=one")]
)
def test_a_plan_of_nonsense_is_one_sentence(norms: str | None, seeds: str | None, said: str) -> None:
    with pytest.raises(Mistake, match=said):
        wanted("mnist", "laptop", norms, seeds)


def test_a_variant_runs_only_under_the_norms_it_makes_sense_for(monkeypatch: pytest.MonkeyPatch) -> None:
    runs = RunsWanted(
        ("a", "b", "c"), ("none", "layer"), {"smoke": 2}, {"b": ["layer"]}, laptop=RunsAt(("a",), ("none",))
    )
    monkeypatch.setattr(plan, "load_claims", lambda group: SimpleNamespace(runs=runs))
    found = wanted("any", "smoke")
    assert set(found) == {(e, n, s) for e in "abc" for n in ("none", "layer") for s in (0, 1)} - {
        ("b", "none", 0),
        ("b", "none", 1),
    }
    assert found.multiruns() == [
        ["experiment=a,c", "norm=none,layer", "seed=0,1"],
        ["experiment=b", "norm=layer", "seed=0,1"],
    ]
    assert wanted("any", "smoke", norms="none").norms == {"a": ["none"], "c": ["none"]}
    assert wanted("any", "laptop", seeds="0").norms == {"a": ["none"]}


def test_durations_are_read_at_a_glance() -> None:
    assert [duration(seconds) for seconds in (12, 200, 6000)] == ["12 s", "3 min", "1 h 40 min"]


def test_make_alone_lists_every_command() -> None:
    said = subprocess.run(["make"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    targets = re.findall(r"^([a-z%-]+):.*## ", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert len(targets) > 8
    for target in targets:
        assert f"make {target.replace('%', '<experiment>')}" in said


def test_the_readmes_example_runs(capsys: pytest.CaptureFixture[str]) -> None:
    for example in re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL):
        exec(compile(example, "README.md", "exec"), {})
        said = [line.partition("# ")[2] for line in example.splitlines() if line.startswith("print(")]
        words = [line.partition(" ")[2] for line in said]  # but for the backend, which is the machine's
        assert [line.partition(" ")[2] for line in capsys.readouterr().out.splitlines()] == words


def test_links_of_the_readme_and_the_docs_lead_somewhere() -> None:
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    made = {"scoreboard.png", "claims.csv", "runs.csv"}
    for page in pages:
        for link in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
            if not link.startswith("https://") and Path(link).name not in made:
                assert (page.parent / link).exists(), f"{page.name}: {link}"


def test_the_citation_is_of_this_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert citation["cff-version"] == "1.2.0"
    assert (citation["version"], citation["license"]) == (project["version"], project["license"])
    assert {"message", "title", "authors"} <= citation.keys()
    holder = re.search(r"Copyright \(c\) \d+ (.*)", (ROOT / "LICENSE").read_text())
    assert holder is not None
    assert [author["name"] for author in citation["authors"]] == [holder[1]]
    for reference in citation["references"]:
        assert {"type", "title", "authors"} <= reference.keys()
