"""Nothing measured is lost: done runs stay done, damaged files fall back, a full disk is one sentence."""

import itertools
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import ln.suite.runs.train
from experiments.mnist import Mnist
from experiments.order_embeddings.network import ranks, recalls
from experiments.skip_thoughts.evaluation import Protocol, cross_validated, relatedness
from ln.suite.config import Recipe, imported, names
from ln.suite.errors import Mistake
from ln.suite.files import replacing, write_text
from ln.suite.optimizers import AdamAsPublished
from ln.suite.runs.checkpoint import load_optimizer, load_whole
from ln.suite.runs.read import finished_run, load_runs, read_metrics, run_info
from ln.suite.runs.tracking import unmirrored
from ln.suite.runs.train import built, carry_out
from ln.suite.showing.page.build import write_page
from ln.suite.showing.report import conclude
from ln.suite.sweeps.cells import SweepCell
from ln.suite.sweeps.launch import Notes
from ln.suite.sweeps.table import look
from ln.suite.sweeps.wanted import cells, wanted
from ln.suite.task import evaluation, wrong
from tests.test_train import metrics, stopped_run

Make = Callable[..., Recipe]
RUN = "experiment=mnist_b128"
# One of each task.
EXPERIMENTS = [name for name in names("experiment") if not any(name.startswith(f"{n}_") for n in names("experiment"))]


def status(folder: Path) -> str:
    return json.loads((folder / "run.json").read_text())["status"]


# --- a done run stays done


def drawing(self: Mnist, folder: Path) -> None:
    (folder / "weights.png").write_bytes(bytes(str(float(self.model.state_dict()["0.weight"].sum())), "ascii"))


def no_step(self: Mnist, step: int) -> Any:
    raise AssertionError("a done run was trained again")


@pytest.mark.parametrize("ending", [KeyboardInterrupt, RuntimeError("no font"), Mistake("the disk is full")])
def test_what_goes_wrong_with_pictures_leaves_a_complete_run_complete(
    recipe: Make, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], ending: Any
) -> None:
    def fail(self: Mnist, folder: Path) -> None:
        (folder / "weights.png").write_bytes(b"half a pic")
        raise ending

    monkeypatch.setattr(Mnist, "draw", fail)
    made = recipe(RUN)
    if ending is KeyboardInterrupt:
        with pytest.raises(KeyboardInterrupt):
            carry_out(made)
    else:
        assert carry_out(made).done
        assert "warning: " in capsys.readouterr().err
    folder = Path(made.results) / "smoke" / "mnist_b128" / "layer" / "0"
    assert status(folder) == "complete"
    assert not list(folder.glob("*.png"))
    before = (folder / "metrics.jsonl").read_bytes()
    monkeypatch.setattr(Mnist, "draw", drawing)
    monkeypatch.setattr(Mnist, "batch", no_step)
    carry_out(made)  # the same command draws what is missing
    assert (folder / "weights.png").exists()
    assert (folder / "metrics.jsonl").read_bytes() == before


@pytest.mark.parametrize("harm", ["missing", "torn"])
def test_a_picture_is_drawn_again_from_the_kept_weights(
    recipe: Make, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], harm: str
) -> None:
    monkeypatch.setattr(Mnist, "draw", drawing)
    folder = carry_out(recipe(RUN)).folder
    picture, known = folder / "weights.png", (folder / "run.json").read_bytes()
    whole = picture.read_bytes()
    carry_out(recipe(RUN))
    assert "drawing" not in capsys.readouterr().out  # what is whole is left alone
    if harm == "torn":
        picture.write_bytes(whole[:3])
    else:
        picture.unlink()
    carry_out(recipe(RUN))
    assert picture.read_bytes() == whole
    assert (folder / "run.json").read_bytes() == known
    (folder / "best.pt").unlink()  # as with published runs: nothing to draw from, and nothing said
    picture.unlink()
    capsys.readouterr()
    carry_out(recipe(RUN))
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("where", ["append", "write", "tidy", "save_checkpoint"])
def test_ctrl_c_at_any_point_of_the_end_loses_nothing(
    recipe: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, where: str
) -> None:
    undisturbed = carry_out(recipe(RUN, f"results={tmp_path}/undisturbed"))
    made = recipe(RUN)
    original = getattr(ln.suite.runs.train.Run, where)
    for before, call in itertools.product((True, False), (0, -1)):
        calls: list[Any] = []

        def stopping(self: Any, *args: Any, before: bool = before, call: int = call, **more: Any) -> Any:
            last = where in ("tidy", "save_checkpoint") or "complete" in args or any("final" in str(a) for a in args)
            calls.append(args)  # noqa: B023
            at = len(calls) == 1 if call == 0 else last  # noqa: B023
            if at and before:
                raise KeyboardInterrupt
            result = original(self, *args, **more)
            if at:
                raise KeyboardInterrupt
            return result

        with monkeypatch.context() as patch:
            patch.setattr(ln.suite.runs.train.Run, where, stopping)
            with pytest.raises(KeyboardInterrupt):
                carry_out(made)
    assert metrics(carry_out(made)) == metrics(undisturbed)


# --- checkpoints


def rewritten(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    state = torch.load(path, weights_only=True)
    torch.save(change(state) or state, path)


def flipped(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


DAMAGE: dict[str, Callable[[Path], Any]] = {
    "empty": lambda path: path.write_bytes(b""),
    "cut short": lambda path: path.write_bytes(path.read_bytes()[:-100]),
    "text": lambda path: path.write_text("{}"),
    "one bit": flipped,
    "empty dict": lambda path: torch.save({}, path),
    "a list": lambda path: torch.save([1, 2], path),
    "no model": lambda path: rewritten(path, lambda state: state.pop("model") and None),
    "no seconds": lambda path: rewritten(path, lambda state: state.pop("seconds") and None),
    "other weights": lambda path: rewritten(path, lambda state: state["model"].update({"0.weight": torch.ones(2, 2)})),
    "other moments": lambda path: rewritten(
        path, lambda state: state["optimizer"]["state"][0].update(exp_avg=torch.ones(2, 2))
    ),
    "other generator": lambda path: rewritten(path, lambda state: state.update(rng=torch.zeros(3, dtype=torch.uint8))),
    "half a step": lambda path: rewritten(path, lambda state: state.update(step=15.5)),
    "other losses": lambda path: rewritten(path, lambda state: state["means"].update(pending=[torch.ones(5)])),
    "a best of text": lambda path: rewritten(path, lambda state: state["best"].update(value="x")),
    "a later step": lambda path: rewritten(path, lambda state: state.update(step=10**6)),
    "another recipe": lambda path: rewritten(path, lambda state: state.update(hash="0123")),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_any_defect_of_a_checkpoint_falls_back_to_the_one_before(
    recipe: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: str
) -> None:
    undisturbed = carry_out(recipe(RUN, f"results={tmp_path}/undisturbed"))
    folder = stopped_run(recipe, monkeypatch)
    DAMAGE[damage](folder / "checkpoint.pt")
    run = carry_out(recipe(RUN))
    said = capsys.readouterr().out
    assert f"{folder}/checkpoint.pt" in said
    assert "going back to the one before" in said
    assert "going on from step 14" in said
    assert metrics(run) == metrics(undisturbed)


def test_with_no_whole_checkpoint_a_run_starts_from_fresh_weights(
    recipe: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    undisturbed = carry_out(recipe(RUN, f"results={tmp_path}/undisturbed"))
    folder = stopped_run(recipe, monkeypatch)
    DAMAGE["other generator"](folder / "checkpoint.pt")  # found out after the weights were taken over
    DAMAGE["other generator"](folder / "checkpoint.previous.pt")
    assert metrics(carry_out(recipe(RUN))) == metrics(undisturbed)


def test_numbers_that_a_checkpoint_does_not_know_are_measured_again(
    recipe: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    undisturbed = carry_out(recipe(RUN, f"results={tmp_path}/undisturbed"))
    path = stopped_run(recipe, monkeypatch) / "metrics.jsonl"
    path.write_text(path.read_text().replace('"valid_nll": ', '"valid_nll": 1', 1))
    run = carry_out(recipe(RUN))
    assert "checkpoint.pt knows other lines than metrics.jsonl holds" in capsys.readouterr().out
    assert metrics(run) == metrics(undisturbed)


def test_metrics_that_cannot_be_read_are_one_sentence(recipe: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    path = stopped_run(recipe, monkeypatch) / "metrics.jsonl"
    path.unlink()
    path.mkdir()
    with pytest.raises(Mistake, match=r"layer/0/metrics.jsonl cannot be read: Is a directory"):
        carry_out(recipe(RUN))


def test_a_flipped_bit_anywhere_is_found_or_harmless(tmp_path: Path) -> None:
    path = tmp_path / "state.pt"
    state = {"weight": torch.randn(40), "step": 7, "hash": "abc"}
    torch.save(state, path)
    whole = path.read_bytes()
    found = 0
    for position in range(0, len(whole), 3):
        data = bytearray(whole)
        data[position] ^= 1 << position % 8
        path.write_bytes(data)
        try:
            loaded = load_whole(path)
        except Mistake:
            found += 1
            continue
        assert torch.equal(loaded["weight"], state["weight"])
        assert (loaded["step"], loaded["hash"]) == (7, "abc")
    assert found > 40 * 4 / 3 / 2  # those in the weights at the least


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.RMSprop, AdamAsPublished])
@pytest.mark.parametrize("to_device", [True, False])
def test_how_the_update_is_carried_out_is_the_devices_affair(kind: Any, to_device: bool) -> None:
    """`capturable`, which CUDA graphs need and the CPU refuses, does not come from the file."""
    weight = torch.nn.Parameter(torch.ones(3))
    saved, own = kind([weight]), kind([weight])
    weight.grad = torch.ones(3)
    saved.step()
    state = saved.state_dict()
    for optimizer, capturable in ((state, not to_device), (own.state_dict(), to_device)):
        for group in optimizer["param_groups"]:
            if "capturable" in group:
                group["capturable"] = capturable
    for group in own.param_groups:
        if "capturable" in group:
            group["capturable"] = to_device
    load_optimizer(own, state)
    assert all(group["capturable"] is to_device for group in own.param_groups if "capturable" in group)
    if not to_device:
        own.step()  # the CPU refuses capturable


def test_a_checkpoint_of_another_recipe_is_never_gone_on_from(
    recipe: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    undisturbed = carry_out(recipe(RUN, f"results={tmp_path}/undisturbed"))
    folder = stopped_run(recipe, monkeypatch)
    (folder / "run.json").unlink()
    before = (folder / "metrics.jsonl").read_bytes()
    with pytest.raises(Mistake, match=r"no run.json, which tells whose"):
        carry_out(recipe(RUN, "train.optimizer.lr=0.5"))
    assert (folder / "metrics.jsonl").read_bytes() == before
    assert metrics(carry_out(recipe(RUN))) == metrics(undisturbed)  # its own recipe's goes on


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"{", b"{}", b"[]", b"null", b"\xff\xfe"),
        *(b'{"status": "running"}', b'{"status": "complete", "hash": "0", "identity": []}'),
    ],
)
def test_a_damaged_run_json_is_one_sentence_or_mended(
    recipe: Make, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    folder = stopped_run(recipe, monkeypatch)
    (folder / "run.json").write_bytes(content)
    checkpoint = (folder / "checkpoint.pt").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(ln.suite.runs.train, "train", lambda *_: None)
        carry_out(recipe(RUN))
    assert status(folder) == "running"
    assert (folder / "checkpoint.pt").read_bytes() == checkpoint
    (folder / "run.json").write_bytes(content)
    for path in folder.glob("checkpoint*"):
        path.unlink()
    with pytest.raises(Mistake, match=r"run.json cannot be read .*; delete the folder to start it again"):
        carry_out(recipe(RUN))


# --- the disk


def test_a_full_disk_is_one_sentence_and_the_run_says_failed(recipe: Make) -> None:
    made = recipe(RUN)
    folder = Path(made.results) / "smoke" / "mnist_b128" / "layer" / "0"
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").symlink_to("/dev/full")
    with pytest.raises(Mistake, match=r"layer/0/metrics.jsonl cannot be written: No space left on device"):
        carry_out(made)
    assert status(folder) == "failed"
    assert not (folder / ".spare").exists()


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "figure.png"
    write_text(path, "old")

    def torn(error: BaseException) -> None:
        with replacing(path) as file:
            file.write(b"half")
            raise error

    with pytest.raises(Mistake, match=r"figure.png cannot be written: No space left on device"):
        torn(OSError(28, "No space left on device"))
    with pytest.raises(KeyboardInterrupt):
        torn(KeyboardInterrupt())
    with pytest.raises(FileNotFoundError):  # another file's trouble is not this one's
        torn(FileNotFoundError(2, "No such file", str(tmp_path / "elsewhere" / "data")))
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["figure.png"]
    with pytest.raises(Mistake, match=r"verdicts.json cannot be written: "):
        write_text(path / "verdicts.json", "new")


# --- models that are not finite


def test_a_model_that_is_not_finite_after_the_last_step_is_diverged(
    recipe: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Mnist.evaluate

    def evaluate(self: Mnist, split: str) -> dict[str, float]:
        found = original(self, split)
        with torch.no_grad():
            next(self.model.parameters()).fill_(math.nan)
        return {name: 0.5 for name in found}  # as a metric that only compares

    monkeypatch.setattr(Mnist, "evaluate", evaluate)
    run = carry_out(recipe(RUN, "train.epochs=1", "train.evaluate_every=1"))
    assert run.info["status"] == "diverged"


def test_a_test_split_that_is_not_finite_is_diverged(recipe: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    original = Mnist.evaluate

    def evaluate(self: Mnist, split: str) -> dict[str, float]:
        return original(self, split) | ({"nll": math.inf} if split == "test" else {})

    monkeypatch.setattr(Mnist, "evaluate", evaluate)
    run = carry_out(recipe(RUN))
    assert run.info["status"] == "diverged"
    assert not any(record.get("final") for record in metrics(run))


def test_what_is_built_on_comparing_is_nan_of_a_model_of_nan() -> None:
    """Compared with NaN nothing is less, so such a model would retrieve perfectly, or answer the first class."""
    assert math.isnan(wrong(torch.full((4, 3), math.nan), torch.zeros(4, dtype=torch.long)))
    assert wrong(torch.tensor([[0.0, 1.0], [-math.inf, 0.0]]), torch.tensor([0, 1])) == 1
    for rank in ranks(torch.full((10, 2), math.nan)):
        assert all(map(math.isnan, recalls(rank).values()))
    one = torch.rand(10, 2)
    one[3, 1] = math.nan
    assert all(math.isnan(value) for rank in ranks(one) for value in recalls(rank).values())
    features, labels = np.ones((20, 3)), np.arange(20.0) % 2
    features[4, 1] = math.inf
    assert all(map(math.isnan, cross_validated(features, labels, Protocol())))
    pairs = (features, labels + 1)
    assert all(map(math.isnan, relatedness(pairs, pairs, pairs, Protocol()).values()))


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_a_model_of_nan_diverges_in_every_experiment(recipe: Make, experiment: str) -> None:
    made = recipe(f"experiment={experiment}", "norm=none")
    kind = imported(made.task)
    task = built(kind, made, kind.find("embedded"), torch.device("cpu"))
    with torch.no_grad():
        for parameter in task.model.parameters():
            parameter.fill_(math.nan)
    with evaluation(task, 0):
        found = task.evaluate("valid")
    assert math.isnan(found[made.train.select.metric.removeprefix("valid_")])


# --- readers


def harmed(folder: Path, name: str, content: bytes) -> None:
    (folder / name).write_bytes(content)


@pytest.mark.parametrize(
    ("file", "content"),
    [
        *itertools.product(
            ["run.json"], [b"", b"{", b"{}", b"[]", b"null", b"\xff\xfe{}", b'{"status": "complete"}', b'{"status": 3}']
        ),
        *itertools.product(["metrics.jsonl"], [b"", b"{}\n", b"[1]\n", b"\xff\n", b'{"step": 1, "val']),
    ],
)
def test_readers_name_a_damaged_run_once_and_go_on(
    recipe: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str], file: str, content: bytes
) -> None:
    results = tmp_path / "results"
    whole, folder = (carry_out(recipe(RUN, "norm=none", f"seed={seed}")).folder for seed in (0, 1))
    harmed(folder, file, content)
    capsys.readouterr()
    conclude("mnist", "smoke", results)
    write_page(results)
    chosen = wanted("mnist", "smoke", "none", "0,1")
    found = {cell.folder: look(SweepCell("", cell.experiment, cell.norm, cell.seed, cell.folder), Notes(tmp_path))
             for cell in cells(results, "smoke", chosen)}  # fmt: skip
    assert found[whole].status == "complete"
    unmirrored(results, everything=True)
    assert list(load_runs(results, "smoke", "mnist_b128")["none"]) == [0]
    said = capsys.readouterr().err.splitlines()
    assert any(str(folder / file) in line for line in said)
    assert len(said) == len(set(said))


@pytest.mark.parametrize(
    "change",
    [
        {"status": 3}, {"final": [1]}, {"final": {"test_error": "good"}}, {"seconds": "long"}, {"steps": True},
        {"seconds": math.nan}, {"commit": 3},
        {"packages": None}, {"data": None}, {"identity": []}, {"identity": {"seed": 0, "train": 3}},
        {"identity": {"seed": 0, "source": "mnist"}}, {"status": "partial"}, {"status": "running", "part": "x"},
        {"status": "partial", "step": 0, "last_step": 0, "epoch": 0}, {"status": "running", "part": {"step": 1}},
    ],
)  # fmt: skip
def test_a_run_json_of_other_kinds_of_values_is_passed_over(tmp_path: Path, change: dict[str, Any]) -> None:
    info = {"status": "complete", "identity": {"seed": 0}, "hash": "0", "data": {"name": "a", "status": "embedded"}}
    said: list[str] = []
    (tmp_path / "run.json").write_text(json.dumps(info))
    assert run_info(tmp_path, said.append) == info
    (tmp_path / "run.json").write_text(json.dumps(info | change))
    assert run_info(tmp_path, said.append) is None
    assert len(said) == 1
    assert said[0].startswith(f"{tmp_path}/run.json cannot be read (")


@pytest.mark.parametrize("line", ['{"step": 2, "a": "x"}', '{"step": 2, "a": [1]}', '{"step": 2.5}', "[]", "", "\0"])
def test_metrics_are_read_up_to_what_is_no_record(tmp_path: Path, line: str) -> None:
    path, said = tmp_path / "metrics.jsonl", list[str]()
    path.write_text(f'{{"step": 1, "a": NaN}}\n{line}\n{{"step": 3}}\n')
    assert read_metrics(path, said.append) == [{"step": 1, "a": None}]
    assert said == [f"{path}: line 2 of 4 is cut short or damaged; read up to it"]


@pytest.mark.parametrize("stray", ["none/0_backup", "none_old/0", "none/00", "none/-1", "copy of none/0", "none/²"])
def test_a_copy_beside_the_runs_is_named_and_is_none_of_them(
    recipe: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str], stray: str
) -> None:
    results = tmp_path / "results"
    folder = carry_out(recipe(RUN, "norm=none")).folder
    copy = folder.parents[1] / stray
    shutil.copytree(folder, copy)
    capsys.readouterr()
    conclude("mnist", "smoke", results)
    write_page(results)
    cells(results, "smoke", wanted("mnist", "smoke"))
    assert {norm: list(runs) for norm, runs in load_runs(results, "smoke", "mnist_b128").items()} == {"none": [0]}
    assert capsys.readouterr().err.count(str(copy)) == 1


def test_a_torn_picture_and_torn_verdicts_are_left_out(
    recipe: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = tmp_path / "results"
    carry_out(recipe(RUN, "norm=none"))
    conclude("mnist", "smoke", results)
    figure, verdicts = results / "smoke" / "mnist" / "figure.png", results / "smoke" / "mnist" / "verdicts.json"
    figure.write_bytes(figure.read_bytes()[:2000])
    verdicts.write_text("[{")
    capsys.readouterr()
    write_page(results)
    said = capsys.readouterr().err
    assert said.count(str(figure)) == 1
    assert said.count(str(verdicts)) == 1


def test_weights_of_a_damaged_run_are_refused_in_one_sentence(recipe: Make) -> None:
    folder = carry_out(recipe(RUN)).folder
    assert finished_run(folder, "make")[1] == folder / "best.pt"
    harmed(folder, "run.json", b"{")
    with pytest.raises(Mistake, match=r"run.json cannot be read"):
        finished_run(folder, "make")


def test_a_single_norm_whose_seeds_all_diverged_has_no_number(recipe: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Mnist, "evaluate", lambda self, split: {"nll": math.nan, "error": 0.0})
    for seed in range(3):
        made = recipe(RUN, f"seed={seed}")
        assert carry_out(made).info["status"] == "diverged"
    verdicts, _ = conclude("mnist", "smoke", made.results)
    assert not any("0 [0, 0]" in verdict["measured"] for verdict in verdicts)
