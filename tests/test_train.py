"""Runs: the same twice, the same after a kill, refused when they are others, and never lost to bad input."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import ln.suite.runs.train
from experiments.mnist import Mnist
from ln.suite.config import Recipe, names
from ln.suite.errors import Mistake
from ln.suite.runs.folder import Run
from ln.suite.runs.read import read_metrics
from ln.suite.runs.train import carry_out
from tests.conftest import ROOT

Make = Callable[..., Recipe]
# A loop that writes a checkpoint every 20 ms, so that a kill finds one.
CHECKPOINTING = "import ln.suite.runs.train as t; t.CHECKPOINT_SECONDS = 0.02; t.main()"


def metrics(run: Run) -> list[dict[str, Any]]:
    return timeless(run.folder)


def timeless(folder: Path) -> list[dict[str, Any]]:
    return [{k: v for k, v in r.items() if k != "seconds"} for r in read_metrics(folder / "metrics.jsonl")]


def command(results: Path, *overrides: str, code: str = "import ln.suite.runs.train as t; t.main()") -> list[str]:
    fixed = ["profile=smoke", "tracking=disabled", "threads=1", f"results={results}"]
    return [sys.executable, "-c", code, *overrides, *fixed]


def run_command(results: Path, *overrides: str, **more: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(results, *overrides), cwd=ROOT, capture_output=True, text=True, check=False, **more)


@pytest.mark.parametrize("experiment", names("experiment"))
@pytest.mark.parametrize("norm", names("norm"))
def test_smoke(recipe: Make, experiment: str, norm: str) -> None:
    """Every experiment with every norm: trains, evaluates, finishes; fast weights refuse what does not fit them."""
    made = recipe(f"experiment={experiment}", f"norm={norm}")
    if getattr(made.model, "unit", None) == "fast" and norm in ("batch", "weight"):
        with pytest.raises(Mistake, match=f"norm={norm} does not fit fast weights"):
            carry_out(made)
        return
    run = carry_out(made)
    info = json.loads((run.folder / "run.json").read_text())
    assert info["status"] == "complete"
    assert info["data"]["status"] == "embedded"
    records = metrics(run)
    assert len(records) >= 3  # at least two evaluations and the final one
    assert any(key.startswith("test_") for key in records[-1])


def test_the_same_seed_twice_is_identical_and_seeds_differ(recipe: Make, tmp_path: Path) -> None:
    first = carry_out(recipe("experiment=mnist_b128"))
    again = carry_out(recipe("experiment=mnist_b128", f"results={tmp_path}/again"))
    other = carry_out(recipe("experiment=mnist_b128", "seed=1"))
    assert metrics(first) == metrics(again)
    assert metrics(first) != metrics(other)


def test_a_done_run_is_skipped(recipe: Make, capsys: pytest.CaptureFixture[str]) -> None:
    before = (carry_out(recipe("experiment=mnist_b128")).folder / "run.json").read_bytes()
    run = carry_out(recipe("experiment=mnist_b128", "threads=2"))  # threads are no part of the identity
    assert "already complete, skipped" in capsys.readouterr().out
    assert (run.folder / "run.json").read_bytes() == before


def test_another_recipe_is_refused_and_the_differing_keys_are_printed(recipe: Make) -> None:
    run = carry_out(recipe("experiment=mnist_b128"))
    before = (run.folder / "metrics.jsonl").read_bytes()
    with pytest.raises(Mistake, match=r"model.hidden: 32 -> 16") as caught:
        carry_out(recipe("experiment=mnist_b128", "model.hidden=16"))
    assert "train.optimizer" not in str(caught.value)
    assert (run.folder / "metrics.jsonl").read_bytes() == before


def test_a_run_killed_again_and_again_writes_the_metrics_of_an_undisturbed_one(recipe: Make, tmp_path: Path) -> None:
    # Batch norm has running statistics besides its weights, so more can go wrong.
    overrides = ["experiment=mnist_b4", "norm=batch", "train.epochs=3", "train.evaluate_every=0.25"]
    undisturbed = carry_out(recipe(*overrides))
    results = tmp_path / "killed"
    folder = results / undisturbed.folder.relative_to(undisturbed.recipe.results)
    kills = 0
    for lines in (3, 7):
        process = subprocess.Popen(
            command(results, *overrides, code=CHECKPOINTING), cwd=ROOT, stdout=subprocess.DEVNULL
        )
        path = folder / "metrics.jsonl"
        while process.poll() is None and not (path.exists() and path.read_bytes().count(b"\n") >= lines):
            time.sleep(0.002)
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            kills += 1
        process.wait()
    assert kills == 2
    assert (folder / "checkpoint.pt").exists()
    finished = subprocess.run(
        command(results, *overrides, code=CHECKPOINTING), cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "going on from step" in finished.stdout
    assert timeless(folder) == metrics(undisturbed)
    assert not (folder / "checkpoint.pt").exists()


def test_ctrl_c_saves_and_says_how_to_go_on(recipe: Make, tmp_path: Path) -> None:
    overrides = ["experiment=mnist_b4", "train.epochs=30", "train.evaluate_every=1"]
    process = subprocess.Popen(
        command(tmp_path, *overrides), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    folder = tmp_path / "smoke" / "mnist_b4" / "layer" / "0"
    while process.poll() is None and not (folder / "metrics.jsonl").exists():
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "the same command goes on from there" in said
    assert "Traceback" not in said
    assert json.loads((folder / "run.json").read_text())["status"] == "interrupted"
    assert torch.load(folder / "checkpoint.pt", weights_only=True)["step"] > 0


class Stop(Exception):
    pass


def interrupt_at(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Make the loop checkpoint after every step and fall over before `step`."""
    original = Mnist.batch

    def batch(self: Mnist, number: int) -> Any:
        if number == step:
            raise Stop
        return original(self, number)

    monkeypatch.setattr(Mnist, "batch", batch)
    monkeypatch.setattr(ln.suite.runs.train, "CHECKPOINT_SECONDS", 0.0)


def stopped_run(recipe: Make, monkeypatch: pytest.MonkeyPatch, *overrides: str) -> Path:
    with monkeypatch.context() as patch:
        interrupt_at(patch, 15)
        with pytest.raises(Stop):
            carry_out(recipe("experiment=mnist_b128", *overrides))
    made = recipe("experiment=mnist_b128", *overrides)
    return Path(made.results) / "smoke" / "mnist_b128" / made.norm.name / "0"


def test_an_unexpected_failure_leaves_its_traceback_in_the_folder(
    recipe: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = stopped_run(recipe, monkeypatch)
    assert "Stop" in (folder / "error.log").read_text()
    assert json.loads((folder / "run.json").read_text())["status"] == "failed"
    assert carry_out(recipe("experiment=mnist_b128")).info["status"] == "complete"


def test_a_checkpoint_cut_short_falls_back_to_the_one_before(
    recipe: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    undisturbed = carry_out(recipe("experiment=mnist_b128", f"results={tmp_path}/undisturbed"))
    folder = stopped_run(recipe, monkeypatch)
    whole = (folder / "checkpoint.pt").read_bytes()
    (folder / "checkpoint.pt").write_bytes(whole[: len(whole) // 2])
    run = carry_out(recipe("experiment=mnist_b128"))
    said = capsys.readouterr().out
    assert "going back to the one before" in said
    assert "going on from step 14" in said
    assert metrics(run) == metrics(undisturbed)


def test_a_full_disk_during_a_checkpoint_leaves_the_last_good_one(
    recipe: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = stopped_run(recipe, monkeypatch)
    good = (folder / "checkpoint.pt").read_bytes()
    monkeypatch.setattr(ln.suite.runs.train, "CHECKPOINT_SECONDS", 0.0)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(good) // 2, hard))
        with pytest.raises(Mistake, match="the last good checkpoint is kept"):
            carry_out(recipe("experiment=mnist_b128"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert (folder / "checkpoint.pt").read_bytes() == good
    assert not list(folder.glob("*.new*"))
    assert carry_out(recipe("experiment=mnist_b128")).info["status"] == "complete"


def test_a_loss_that_is_not_finite_marks_the_run_diverged_with_its_step(
    recipe: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Mnist.loss

    def loss(self: Mnist, batch: Any) -> Any:
        losses = original(self, batch)
        loss.calls += 1
        return {"loss": losses["loss"] * (float("nan") if loss.calls == 7 else 1.0)}

    loss.calls = 0
    monkeypatch.setattr(Mnist, "loss", loss)
    run = carry_out(recipe("experiment=mnist_b128"))
    assert run.info["status"] == "diverged"
    assert run.info["diverged_at"] == 7
    assert metrics(run)[-1]["diverged"] is True
    assert carry_out(recipe("experiment=mnist_b128")).done  # a result, not something to try again


def test_two_processes_never_work_on_one_run(recipe: Make) -> None:
    made = recipe("experiment=mnist_b128")
    source = Mnist.find("embedded").identity
    held = Run.open(made, source)
    with pytest.raises(Mistake, match=rf"being worked on by process {os.getpid()}"):
        Run.open(made, source)
    held.close()
    Run.open(made, source).close()  # the lock goes with its owner


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (
            ["experiment=mnist_b128", "norm=lyer"],
            "norm=lyer is not a normalization; choose one of batch, layer, none, rms, weight",
        ),
        (["experiment=mnits"], "experiment=mnits is not an experiment; choose one of"),
        (["experiment=mnist_b128", "profile=big"], "profile=big is not a profile; choose one of full, laptop, smoke"),
        (["experiment=mnist_b128", "train.epohcs=3"], "epohcs"),
        (["experiment=mnist_b128", "+train.epohcs=3"], "train.epohcs"),
        (["experiment=mnist_b128", "+model.deep=3"], "model.deep"),
        (["experiment=mnist_b128", "train.batch_size=0"], "train.batch_size=0 must be positive"),
        (["experiment=mnist_b128", "model.hidden=-5"], "model.hidden=-5 must be positive"),
        (["experiment=mnist_b128", "train.batch_size=many"], "train.batch_size"),
        (["experiment=mnist_b128", "seed=-1"], "seed=-1 must not be negative"),
        (["experiment=mnist_b128", "train.optimizer._target_=torch.optim.Adman"], "train.optimizer"),
        (["experiment=mnist_b128", "+train.optimizer.lrr=1"], "train.optimizer"),
        (["experiment=mnist_b128", "train.select.metric=valid_eror"], "choose one of"),
        (["experiment=mnist_b128", "+norm.epps=1"], "norm.epps"),
        (["experiment=mnist_b128", "data=substitute"], "data=substitute is not offered here"),
    ],
)
def test_bad_input_is_one_sentence(
    overrides: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    fixed = ["profile=smoke", "tracking=disabled", "threads=1", f"results={tmp_path}/results"]
    keys = {override.split("=")[0] for override in overrides}
    monkeypatch.setattr(sys, "argv", ["train", *(f for f in fixed if f.split("=")[0] not in keys), *overrides])
    with pytest.raises(SystemExit) as stopped:
        ln.suite.runs.train.main()
    assert stopped.value.code == 1
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("error: ")
    assert said in lines[0]


def test_cuda_without_cuda(recipe: Make) -> None:
    with pytest.raises(Mistake, match="sees no CUDA device"):
        carry_out(recipe("experiment=mnist_b128", "device=cuda"))


def test_a_backend_can_be_asked_for(recipe: Make, tmp_path: Path) -> None:
    run = carry_out(recipe("experiment=seq_mnist", "backend=torch", "train.steps=3"))
    assert run.info["backend"] == "torch"
    with pytest.raises(Mistake, match="backend=triton cannot run lstm"):
        carry_out(recipe("experiment=seq_mnist", "backend=triton", f"results={tmp_path}/triton"))
    with pytest.raises(Mistake, match="backend=cudnn is not a choice of backend; choose one of auto, "):
        recipe("experiment=seq_mnist", "backend=cudnn")


def test_an_unwritable_results_folder(recipe: Make) -> None:
    with pytest.raises(Mistake, match="cannot be written"):
        carry_out(recipe("experiment=mnist_b128", "results=/dev/null/results"))


def test_a_failed_run_leaves_the_sweep_going(tmp_path: Path) -> None:
    broken = tmp_path / "smoke" / "mnist_b128" / "layer" / "0"
    broken.mkdir(parents=True)
    (broken / "run.json").write_text("{")
    done = run_command(tmp_path, "-m", "experiment=mnist_b128", "seed=0,1")
    assert done.returncode == 1
    assert done.stderr.count("error: ") == 1
    assert "delete the folder to start it again" in done.stderr
    assert json.loads((broken.parent / "1" / "run.json").read_text())["status"] == "complete"


@pytest.mark.gpu
def test_a_captured_graph_trains_as_the_plain_loop_does(
    recipe: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graphed = carry_out(recipe("experiment=mnist_b128", "device=cuda"))
    monkeypatch.setattr(Mnist, "static_shapes", False)
    plain = carry_out(recipe("experiment=mnist_b128", "device=cuda", f"results={tmp_path}/plain"))
    for a, b in zip(metrics(graphed), metrics(plain), strict=True):
        assert a.keys() == b.keys()
        assert a["step"] == b["step"]
    assert metrics(graphed)[-1]["test_nll"] == pytest.approx(metrics(plain)[-1]["test_nll"], rel=1e-3)
