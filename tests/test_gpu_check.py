"""The table of `make gpu-check`: what counts as passed, and what it does without a GPU."""

import json
import subprocess
import time
from pathlib import Path

import pytest

from scripts import gpu_check
from scripts.gpu_check import Checks, Runs


def test_a_check_passes_fails_is_late_or_is_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    checks = Checks(time.monotonic() + 100)

    def wrong() -> str:
        raise AssertionError("the numbers differ")

    def late() -> str:
        raise subprocess.TimeoutExpired("python", 7)

    checks.carry_out("right", lambda: "equal")
    checks.carry_out("wrong", wrong)
    checks.carry_out("late", late)
    checks.deadline = time.monotonic()
    checks.carry_out("unreached", wrong)
    assert [passed for _, passed, _ in checks.rows] == [True, False, False, None]
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["pass", "FAIL", "FAIL", "left"]
    assert "no end after 7 s" in lines[2]


def test_a_late_check_leaves_no_process_behind(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    begun = tmp_path / "pid"

    def late(self: object, timeout: float) -> None:
        while not begun.exists() or not begun.read_text():
            time.sleep(0.02)
        raise subprocess.TimeoutExpired("python", timeout)

    monkeypatch.setattr(subprocess.Popen, "communicate", late)
    starts = "import subprocess, sys; p = subprocess.Popen(['sleep', '60']); open(sys.argv[1], 'w').write(str(p.pid))"
    with pytest.raises(subprocess.TimeoutExpired):
        Checks(time.monotonic() + 100).python("-c", f"{starts}; p.wait()", str(begun))
    state = Path(f"/proc/{begun.read_text().strip()}/stat")
    until = time.monotonic() + 10
    while state.exists() and state.read_text().split()[2] != "Z" and time.monotonic() < until:
        time.sleep(0.02)
    assert not state.exists() or state.read_text().split()[2] == "Z"


@pytest.mark.parametrize("broken", [False, True])
def test_without_a_gpu_the_offline_part_decides(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], broken: bool
) -> None:
    def tests(self: Checks, *arguments: str, most: float = 0) -> str:
        assert Path(arguments[-1]).exists()
        assert not (broken and "simulated" in arguments[-1]), "FAILED test_something"
        return "6 passed"

    monkeypatch.setattr(Checks, "pytest", tests)
    assert gpu_check.main([]) == int(broken)
    said = capsys.readouterr().out
    assert said.startswith("torch sees no GPU here; what can be checked without one:\n")
    assert f"{2 - broken} of 2 passed" in said
    assert gpu_check.FIRST_RUN not in said


def test_numbers_of_two_runs_are_compared(tmp_path: Path) -> None:
    runs = Runs(tmp_path, Checks(time.monotonic() + 100))
    folder = tmp_path / "cpu" / "smoke" / "draw" / "layer" / "0"
    folder.mkdir(parents=True)
    records = [{"step": 1, "train_loss": 2.0}, {"step": 2, "final": True, "test_nll": 0.5}]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    assert runs.metrics("cpu", "draw") == records
    assert runs.metrics("cuda", "draw") == []
    off = [{"step": 1, "train_loss": 2.1}, {"step": 2, "final": True, "test_nll": 0.6}]
    assert runs.same("draw", records, off, 0.1) == "2 and 2.1"
    with pytest.raises(AssertionError, match="differ by"):
        runs.same("draw", records, off, 0.01)
    with pytest.raises(AssertionError, match=r"0\.5, and 0\.6 without the break"):
        runs.ends(records, off)
    with pytest.raises(AssertionError, match="doubles back"):
        runs.ends([records[1], records[0], records[1]], records)
    assert runs.ends(records, records) == "test NLL 0.5, 0.5 without the break"


def test_every_experiment_is_compared() -> None:
    recipes = {path.stem for path in Path("configs/experiment").glob("*.yaml")}
    claims = {path.stem for path in Path("configs/claims").glob("*.yaml")}
    named = set(gpu_check.EXPERIMENTS.split())
    assert named <= recipes
    assert {name.split("_b1")[0] for name in named} >= claims
    assert set(gpu_check.CAPTURED) <= named
