"""make plan: every run that is not done has a length, from runs like it or from steps timed here."""

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import scripts.plan
from ln.suite.config import Recipe, imported
from ln.suite.data import looking_only
from ln.suite.runs.train import built, carry_out
from ln.suite.sweeps import pace
from ln.suite.sweeps.pace import Pace, timed
from ln.suite.task import Task

Make = Callable[..., Recipe]


@pytest.fixture
def plan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[str, str]]:
    """plan("--norms=layer"): what it says of MNIST at smoke, and what it says meanwhile."""
    monkeypatch.setenv("LN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("LN_DATA", str(tmp_path / "none"))
    monkeypatch.setattr(pace, "MOST_STEPS", 2)
    monkeypatch.setattr("os.getloadavg", lambda: (0.0, 0.0, 0.0))  # what else runs meanwhile

    def said(*more: str) -> tuple[str, str]:
        words = ["plan", "mnist", "--profile=smoke", f"--results={tmp_path}/results", "--seeds=0,1", *more]
        monkeypatch.setattr(sys, "argv", words)
        scripts.plan.main()
        answer = capsys.readouterr()
        return answer.out, answer.err

    return said


def test_where_no_run_tells_steps_are_timed_once_on_a_machine(
    plan: Callable[..., tuple[str, str]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    said, meanwhile = plan("--norms=layer,none")
    assert meanwhile.count("timing a few steps of") == 4  # two batch sizes, two norms; not for each seed
    assert "unknown" not in said
    assert "steps and an evaluation of each recipe here" in said
    monkeypatch.setattr(pace, "timed", lambda *_: pytest.fail("it is timed again"))
    again, meanwhile = plan("--norms=layer,none")
    assert (again, meanwhile) == (said, "")
    for path in (tmp_path / "cache" / "pace").iterdir():
        path.write_text("{")
    with pytest.raises(pytest.fail.Exception, match="timed again"):  # what was noted is damaged
        plan("--norms=layer,none")


@pytest.mark.parametrize(("load", "threads"), [(0.2, 4), (2.8, 1), (9.0, 1)])
def test_steps_are_timed_by_the_cores_that_are_free(
    plan: Callable[..., tuple[str, str]], monkeypatch: pytest.MonkeyPatch, load: float, threads: int
) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 4)
    monkeypatch.setattr("os.getloadavg", lambda: (load, 0.0, 0.0))
    by: list[int] = []
    monkeypatch.setattr("torch.set_num_threads", by.append)
    plan("--norms=layer")
    assert by == [threads, 1]  # the recipe at batch 4 has one thread of its own


def test_what_runs_tell_is_not_timed(
    plan: Callable[..., tuple[str, str]], monkeypatch: pytest.MonkeyPatch, recipe: Make
) -> None:
    for experiment in ("mnist_b128", "mnist_b4"):
        carry_out(recipe(f"experiment={experiment}", "norm=layer", "data=embedded"))
    monkeypatch.setattr(scripts.plan, "estimated", lambda *_: pytest.fail("it is timed"))
    said, _ = plan("--norms=layer")
    assert "4 runs: 2 complete, 2 missing; about" in said
    assert "estimated from runs on" in said


def task_of(made: Recipe) -> Task:
    kind: type[Task] = imported(made.task)
    with looking_only():
        return built(kind, made, kind.find("embedded"), torch.device("cpu"))


def test_the_length_counts_steps_and_evaluations(recipe: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a clock by which a step takes 1 s and an evaluation 10 s."""
    made = recipe("experiment=mnist_b128", "norm=layer")
    made = replace(made, train=replace(made.train, epochs=4.0, evaluate_every=2.0))
    task = task_of(made)
    seconds = iter([1.0, 1.0, 10.0])

    class Clock:
        def __init__(self, device: torch.device) -> None:
            self.passed = next(seconds)

        def __enter__(self) -> Callable[[], float]:
            return lambda: self.passed

        def __exit__(self, *_: object) -> None: ...

    monkeypatch.setattr(pace, "_stopwatch", Clock)
    found = timed(made, task)
    steps = 4 * task.steps_per_epoch
    assert found == Pace(steps * 1.0 + 2 * 10.0, steps, task.steps_per_epoch, steps=2)


def test_a_long_evaluation_is_cut_off_and_the_length_said_to_be_at_least_so_much(
    recipe: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = recipe("experiment=mnist_b128", "norm=layer")
    task = task_of(made)

    def endless(split: str) -> dict[str, float]:
        while True:
            sum(range(1000))

    monkeypatch.setattr(task, "evaluate", endless)
    monkeypatch.setattr(pace, "EVALUATION_SECONDS", 0.05)
    monkeypatch.setattr(pace, "MOST_STEPS", 1)
    found = timed(made, task)
    assert found.at_least
    assert found.seconds > 0.05
