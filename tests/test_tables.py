"""Results as data: a row a run and a row a check, with numbers as numbers."""

import csv
import re
from pathlib import Path

import pytest

from ln.suite.errors import Mistake
from ln.suite.judging.claims import load_claims
from ln.suite.showing.report import groups
from ln.suite.showing.tables import CLAIMS, claims, runs, write_tables
from tests.conftest import ROOT
from tests.page_results import metrics_of, write_run


def test_a_row_for_each_run_and_each_check(tmp_path: Path) -> None:
    for norm in ("layer", "none"):
        for seed in range(3):
            write_run(tmp_path, "draw", norm, seed, metrics_of("draw"))
    made = runs(tmp_path)
    assert [(row["norm"], row["seed"]) for row in made] == [(n, s) for n in ("layer", "none") for s in range(3)]
    assert {row["status"] for row in made} == {"complete"}
    assert all(0 < row["final/test_bound"] < 1 for row in made)
    judged = claims(tmp_path)
    assert len(judged) == sum(len(load_claims(group).checks) for group in groups())
    faster = next(row for row in judged if row["claim"] == "draw_faster")
    assert faster["low"] <= faster["measured"] <= faster["high"]
    assert (faster["seeds"], faster["data"], faster["profile"]) == (3, "embedded", "laptop")
    bound = next(row for row in judged if row["claim"] == "draw_bound_layer")
    assert (bound["published"], bound["verdict"]) == (82.09, "not_run")
    paths = write_tables(tmp_path)
    with paths[1].open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == CLAIMS
    assert [row["claim"] for row in rows] == [row["claim"] for row in judged]
    assert float(next(row for row in rows if row["claim"] == "draw_faster")["measured"]) == faster["measured"]


def test_a_folder_that_is_not_there_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(Mistake, match="is not a folder with results"):
        write_tables(tmp_path / "absent")


def test_the_docs_lines_load_them_in_a_notebook(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(tmp_path / "results", "mnist_b4", "layer", 0, metrics_of("mnist"))
    monkeypatch.chdir(tmp_path)
    lines = re.search(r"```python\n(.*?showing\.tables.*?)```", (ROOT / "docs/commands.md").read_text(), re.DOTALL)
    assert lines is not None
    names: dict[str, list[dict[str, object]]] = {}
    exec(re.sub(r"^  ", "", lines[1], flags=re.MULTILINE), names)
    assert 0 < float(capsys.readouterr().out) < 1
    assert [row["seed"] for row in names["every_run"]] == [0]
    assert {row["group"] for row in names["checks"]} == {*groups()}
