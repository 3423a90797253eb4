"""The first part of a run: it ends early, is no other run for it, and goes on."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import ln.suite.runs.train
from ln.suite.config import Recipe, identity_hash
from ln.suite.errors import Mistake
from ln.suite.runs.folder import Run
from ln.suite.runs.read import load_runs, read_metrics
from ln.suite.runs.train import carry_out
from ln.suite.showing.page.found import find_runs
from ln.suite.sweeps.wanted import cells, wanted
from ln.suite.until import Until

Make = Callable[..., Recipe]
FOUR = ["experiment=mnist_b128", "train.epochs=4", "train.evaluate_every=1"]


def metrics(run: Run) -> list[dict[str, Any]]:
    records = read_metrics(run.folder / "metrics.jsonl")
    return [{key: value for key, value in record.items() if key != "seconds"} for record in records]


@pytest.mark.parametrize(
    ("text", "step"), [(None, 88), ("0.1", 9), ("1", 88), ("2epochs", 22), ("30steps", 30), ("1epoch", 11)]
)
def test_a_part_is_a_share_epochs_or_steps(text: str | None, step: int) -> None:
    assert Until.of(text).step(last_step=88, steps_per_epoch=11) == step


@pytest.mark.parametrize("text", ["0", "1.5", "-1", "ten", "5 epochs", "0epochs", "2.5steps", "nan", ""])
def test_what_is_no_part_is_one_sentence(text: str, recipe: Make) -> None:
    with pytest.raises(Mistake, match=r"is no part of a run; give a share such as 0.1"):
        recipe(*FOUR, f"until='{text}'")


def test_a_part_is_the_beginning_of_the_whole_run_and_goes_on_to_it(recipe: Make, tmp_path: Path) -> None:
    whole = carry_out(recipe(*FOUR, f"results={tmp_path}/whole"))
    part = carry_out(recipe(*FOUR, "until=0.3"))  # 1.2 epochs: ends with the evaluation after the second
    info = json.loads((part.folder / "run.json").read_text())
    assert (info["status"], info["epoch"]) == ("partial", 2.0)
    assert info["step"] == 2 * info["last_step"] / 4
    assert info["hash"] == whole.info["hash"] == identity_hash(part.recipe, part.source)
    assert metrics(part) == metrics(whole)[:2]
    assert not (part.folder / "best.pt").exists()
    further = carry_out(recipe(*FOUR, "until=3epochs"))
    assert (further.info["status"], metrics(further)) == ("partial", metrics(whole)[:3])
    to_the_end = carry_out(recipe(*FOUR))
    assert (to_the_end.info["status"], metrics(to_the_end)) == ("complete", metrics(whole))
    assert "step" not in to_the_end.info
    assert not (part.folder / "checkpoint.pt").exists()


def test_a_part_that_is_done_is_skipped(recipe: Make, capsys: pytest.CaptureFixture[str]) -> None:
    before = (carry_out(recipe(*FOUR, "until=2epochs")).folder / "run.json").read_bytes()
    for smaller in ("2epochs", "0.5", "3steps"):
        run = carry_out(recipe(*FOUR, f"until={smaller}"))
        assert "already partial, skipped" in capsys.readouterr().out
    assert (run.folder / "run.json").read_bytes() == before


def test_a_part_without_its_checkpoint_is_not_lost_to_going_on(recipe: Make) -> None:
    part = carry_out(recipe(*FOUR, "until=2epochs"))
    for checkpoint in part.folder.glob("checkpoint*"):
        checkpoint.unlink()
    files = {path: path.read_bytes() for path in part.folder.glob("*.json*")}
    with pytest.raises(Mistake, match=r"no checkpoint to go on from; choose another place with RESULTS="):
        carry_out(recipe(*FOUR))
    assert {path: path.read_bytes() for path in part.folder.glob("*.json*")} == files


def test_the_plan_counts_only_what_is_wanted(recipe: Make, tmp_path: Path) -> None:
    part = carry_out(recipe("experiment=mnist_b128", "norm=layer", "until=0.5"))
    chosen = wanted("mnist", "smoke", "layer", "0,1")

    def at(until: str | None) -> tuple[Any, Any]:
        found = {(c.experiment, c.seed): c for c in cells(tmp_path / "results", "smoke", chosen, until)}
        return found["mnist_b128", 0], found["mnist_b128", 1]

    mine, other = at("1epochs")
    assert (mine.done, mine.share, mine.seconds) == (True, 0.5, 0.0)
    assert (other.done, other.status) == (False, "missing")
    assert other.seconds == pytest.approx(part.info["seconds"])
    mine, other = at(None)
    assert (mine.done, mine.status) == (False, "partial")
    assert math.isclose(mine.seconds, other.seconds / 2)


@pytest.mark.parametrize("end", [KeyboardInterrupt, RuntimeError, SystemExit])
def test_a_part_counts_while_its_run_goes_on_and_after_that_was_stopped(
    recipe: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: type[BaseException]
) -> None:
    part = carry_out(recipe(*FOUR, "until=2epochs"))
    counted = load_runs(tmp_path / "results", "smoke", "mnist_b128")
    whole = carry_out(recipe(*FOUR, f"results={tmp_path}/whole"))
    original = Run.append

    def append(run: Run, record: dict[str, Any]) -> None:
        original(run, record)  # the third epoch's is measured
        assert load_runs(tmp_path / "results", "smoke", "mnist_b128") == counted
        raise end

    with monkeypatch.context() as patch:
        patch.setattr(Run, "append", append)
        with pytest.raises(end):
            carry_out(recipe(*FOUR))
    status = {KeyboardInterrupt: "interrupted", RuntimeError: "failed", SystemExit: "running"}[end]  # the last: a kill
    assert json.loads((part.folder / "run.json").read_text())["status"] == status
    assert len(metrics(part)) == 3
    assert load_runs(tmp_path / "results", "smoke", "mnist_b128") == counted
    [shown] = find_runs(tmp_path / "results", "smoke", "mnist_b128")
    assert (shown.status, len(shown.records)) == ("partial", 2)
    [cell] = cells(tmp_path / "results", "smoke", wanted("mnist", "smoke", "layer", "0"), "2epochs")[:1]
    assert (cell.status, cell.share, cell.done) == (status, 0.75, True)
    again = carry_out(recipe(*FOUR, "until=1epochs"))  # that part is still done
    assert again.info["status"] == "partial"
    to_the_end = carry_out(recipe(*FOUR))
    assert (to_the_end.info["status"], metrics(to_the_end)) == ("complete", metrics(whole))
    assert "part" not in to_the_end.info


@pytest.mark.parametrize("left", ["nothing whole", "what is older than the part"])
def test_a_part_is_not_lost_to_a_damaged_checkpoint(recipe: Make, monkeypatch: pytest.MonkeyPatch, left: str) -> None:
    monkeypatch.setattr(ln.suite.runs.train, "CHECKPOINT_SECONDS", 0.0)
    part = carry_out(recipe(*FOUR, "until=2epochs"))
    (part.folder / "checkpoint.pt").write_bytes(b"")
    if left == "nothing whole":
        (part.folder / "checkpoint.previous.pt").write_bytes(b"")
    before = (part.folder / "metrics.jsonl").read_bytes()
    for _ in range(2):
        with pytest.raises(Mistake, match=r"holds the first 20 of 40 steps of a run, but no checkpoint to go on from"):
            carry_out(recipe(*FOUR))
        assert (part.folder / "metrics.jsonl").read_bytes() == before
        [runs] = load_runs(part.recipe.results, "smoke", "mnist_b128").values()
        assert runs[0].partial
