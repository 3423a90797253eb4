"""The first ten minutes on a machine with a GPU: `make gpu-check`.

Each check is carried out by a process of its own and ends as a row of a table: that the kernels start and agree with
float64, that every experiment gives on the GPU what it gives on the CPU, captured or not, that a run goes on after it
was killed and from the other device, and how fast it is beside cuDNN. The exit status is 0 where all have passed.
Without a GPU, what can be known without one: the kernels compile for three GPUs, and runs on a simulated device.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ln.kernels.triton import backend as triton_backend
from ln.suite.errors import Mistake
from ln.suite.runs.device import NVIDIA_DRIVER, unusable_gpu
from ln.suite.showing.onward import onward

MINUTES, WITHOUT_GPU = 10, 30
EXPERIMENTS = (
    "mnist_b128 invariance seq_mnist draw handwriting order_embeddings skip_thoughts attentive_reader convnet "
    "associative_retrieval"
)
CAPTURED = ("mnist_b128", "seq_mnist", "draw", "handwriting")
# Random numbers of a GPU are not a CPU's, and dropout, noise and samples are drawn with them.
BETWEEN_DEVICES, SAME_DEVICE = 0.1, 1e-3  # largest relative difference of the first training loss
FIRST_RUN = "make reproduce-draw PROFILE=full NORMS=none,layer SEEDS=0 DEVICE=cuda"
SPEED = """
import json
from scripts.bench import BASELINE, SHAPES, measure, ratio
for name in ("lstm28", "lstm784", "gru20"):
    found = measure(SHAPES[name], [BASELINE, "ln torch", "ln triton"], "cuda", 1, 5)
    ratios = [ratio(found, n, BASELINE) for n in ("ln torch", "ln triton")]
    print(json.dumps([name, found[BASELINE].get("ms"), *ratios]))
"""
FLOAT64 = """
import torch
from ln import kernels
from ln.norms import NormConfig
from tests.recurrent_cases import judge
from tests.test_triton import OnDevice, case
load = kernels.load
kernels.load = lambda name: OnDevice(load(name))
for backend in ("triton", "torch", "reference"):
    for cell in ("lstm", "gru"):
        for norm in ("none", "layer", "batch"):
            cfg = NormConfig(norm)
            tensors, p = case(cell, cfg, 8, 33, 17, 65)
            try:
                judge(backend, cell, tensors, p, cfg, lengths=torch.arange(33) % 9)
            except AssertionError as error:
                print("FAULT", str(error).splitlines()[0])
"""


@dataclass
class Checks:
    """The table so far; no check begins after the last minute."""

    deadline: float
    rows: list[tuple[str, bool | None, str]] = field(default_factory=list)

    def row(self, name: str, passed: bool | None, said: str) -> None:
        """passed None: not carried out, which does not count as passed."""
        self.rows.append((name, passed, said))
        word = {True: "pass", False: "FAIL", None: "left out"}[passed]
        print(f"{word:9}{name:48}{said}", flush=True)

    def carry_out(self, name: str, check: Callable[[], str]) -> None:
        """A check says what it found, or raises AssertionError, Mistake or TimeoutExpired."""
        if self.left < 15:
            self.row(name, None, "no time was left")
            return
        try:
            self.row(name, True, check())
        except subprocess.TimeoutExpired as late:
            self.row(name, False, f"no end after {late.timeout:.0f} s")
        except (AssertionError, Mistake) as fault:
            self.row(name, False, str(fault))

    @property
    def left(self) -> float:
        return self.deadline - time.monotonic()

    def python(self, *arguments: str, most: float = 240) -> subprocess.CompletedProcess[str]:
        """What a process of its own says. One that is late leaves no process of those that it started behind."""
        command, pipe = [sys.executable, *arguments], subprocess.PIPE
        with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, start_new_session=True) as process:
            try:
                out, said = process.communicate(timeout=max(1.0, min(most, self.left)))
            except BaseException:
                os.killpg(process.pid, signal.SIGKILL)
                raise
        return subprocess.CompletedProcess(command, process.returncode, out, said)

    def pytest(self, *arguments: str, most: float = 240) -> str:
        done = self.python("-m", "pytest", "-x", "-p", "no:cacheprovider", *arguments, most=most)
        lines = done.stdout.strip().splitlines() or done.stderr.strip().splitlines() or ["no output"]
        failed = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
        assert done.returncode == 0, (failed or lines)[-1]
        return lines[-1].strip("= ")


class Runs:
    """Short runs of experiments in a folder of their own."""

    def __init__(self, folder: Path, checks: Checks) -> None:
        self.folder, self.checks = folder, checks

    def command(self, place: str, experiment: str, *overrides: str) -> list[str]:
        fixed = ["profile=smoke", "tracking=disabled", f"results={self.folder / place}", "norm=layer", "seed=0"]
        return ["-m", "ln.train", f"experiment={experiment}", *fixed, *overrides]

    def run(self, place: str, experiment: str, *overrides: str) -> list[dict[str, Any]]:
        """Its metrics."""
        done = self.checks.python(*self.command(place, experiment, *overrides), most=120)
        said = done.stderr.strip().splitlines() or ["no message"]
        assert done.returncode == 0, f"{experiment} {' '.join(overrides)}: {said[-1]}"
        return self.metrics(place, experiment)

    def metrics(self, place: str, experiment: str) -> list[dict[str, Any]]:
        path = self.folder / place / "smoke" / experiment / "layer" / "0" / "metrics.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def same(self, experiment: str, one: list[dict[str, Any]], other: list[dict[str, Any]], most: float) -> str:
        a, b = one[0]["train_loss"], other[0]["train_loss"]
        off = abs(a - b) / max(abs(a), 1e-12)
        assert off <= most, (
            f"{experiment}: first training losses {a:.6g} and {b:.6g} differ by {off:.2g}, over {most:g}"
        )
        return f"{a:.6g} and {b:.6g}"

    def devices(self, experiment: str) -> str:
        on_cpu, on_cuda = (self.run(d, experiment, f"device={d}") for d in ("cpu", "cuda"))
        return self.same(experiment, on_cpu, on_cuda, BETWEEN_DEVICES)

    def capture(self, experiment: str) -> str:
        captured = self.metrics("cuda", experiment) or self.run("cuda", experiment, "device=cuda")
        return self.same(
            experiment, captured, self.run("uncaptured", experiment, "device=cuda", "graph=off"), SAME_DEVICE
        )

    def from_the_cpu(self) -> str:
        self.run("moved", "mnist_b128", "device=cpu", "until=0.5")
        moved, whole = self.run("moved", "mnist_b128", "device=cuda"), self.run("whole", "mnist_b128", "device=cpu")
        return self.ends(moved, whole)

    def killed(self) -> str:
        longer = ("device=cuda", "train.epochs=40")
        process = subprocess.Popen(
            [sys.executable, *self.command("killed", "mnist_b128", *longer)],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        until = time.monotonic() + min(90, self.checks.left)
        while not self.metrics("killed", "mnist_b128") and process.poll() is None and time.monotonic() < until:
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=60)
        records = self.metrics("killed", "mnist_b128")
        assert records, "the run had measured nothing after 90 s"
        assert not records[-1].get("final"), "the run had ended before it could be stopped"
        return self.ends(self.run("killed", "mnist_b128", *longer), self.run("undisturbed", "mnist_b128", *longer))

    def ends(self, one: list[dict[str, Any]], other: list[dict[str, Any]]) -> str:
        a, b = one[-1]["test_nll"], other[-1]["test_nll"]
        steps = [r["step"] for r in one]
        assert steps == sorted(steps), "the curve doubles back"
        assert len(one) == len(other), f"{len(one)} measurements, and {len(other)} without the break"
        assert abs(a - b) <= 0.02 * abs(b), f"the test NLL is {a:.6g}, and {b:.6g} without the break"
        return f"test NLL {a:.6g}, {b:.6g} without the break"


def starts() -> str:
    reason = triton_backend.available()
    assert reason is None, reason
    name, (major, minor) = torch.cuda.get_device_name(), torch.cuda.get_device_capability()
    return f"{name} (sm_{major}{minor}), driver {driver()}, torch {torch.__version__}"


def driver() -> str:
    try:
        words = NVIDIA_DRIVER.read_text().splitlines()[0].split()
    except (OSError, IndexError):
        return "unknown"
    return next((word for word in words if word[:1].isdigit() and "." in word), "unknown")


def agreement(checks: Checks) -> str:
    done = checks.python("-c", FLOAT64, most=180)
    faults = [line for line in done.stdout.splitlines() if line.startswith("FAULT")]
    assert done.returncode == 0, (done.stderr.strip().splitlines() or ["no message"])[-1]
    assert not faults, faults[0].removeprefix("FAULT ")
    return "triton, torch and reference: at most twice the float32 reference's error"


def speeds(checks: Checks) -> Iterator[tuple[str, str]]:
    done = checks.python("-c", SPEED, most=240)
    assert done.returncode == 0, (done.stderr.strip().splitlines() or ["no message"])[-1]
    for line in done.stdout.splitlines():
        name, cudnn, *ratios = json.loads(line)
        shown = ", ".join(
            f"{which} {'skipped' if value is None else f'{value:.2f}x'}"
            for which, value in zip(("torch", "triton"), ratios, strict=True)
        )
        yield name, f"cuDNN without norm {'skipped' if cudnn is None else f'{cudnn:.2f} ms'}; layer norm: {shown}"


def with_gpu(checks: Checks, folder: Path) -> None:
    runs = Runs(folder, checks)
    checks.carry_out("the driver and the kernels start", starts)
    if not checks.rows[-1][1]:
        return
    checks.carry_out("backends against float64", lambda: agreement(checks))
    for experiment in EXPERIMENTS.split():
        checks.carry_out(f"CPU and CUDA: {experiment}", lambda e=experiment: runs.devices(e))  # type: ignore[misc]
    for experiment in CAPTURED:
        checks.carry_out(f"captured and not: {experiment}", lambda e=experiment: runs.capture(e))  # type: ignore[misc]
    checks.carry_out("killed and gone on with", runs.killed)
    checks.carry_out("a CPU's checkpoint on CUDA", runs.from_the_cpu)

    def speed() -> str:
        found = [f"{name}: {said}" for name, said in speeds(checks)]
        return "; ".join(found)

    checks.carry_out("speed beside cuDNN", speed)
    checks.carry_out("tests that need a GPU", lambda: checks.pytest("-m", "gpu", "tests", most=checks.left))


def without_gpu(checks: Checks) -> None:
    for name, test in (
        ("every launch compiles for sm_80, sm_90, sm_100", "tests/test_triton_offline.py"),
        ("runs on a simulated device", "tests/test_simulated_cuda.py"),
    ):
        checks.carry_out(name, lambda t=test: checks.pytest("-m", "slow or not slow", t, most=checks.left))  # type: ignore[misc]


def main(arguments: list[str] | None = None) -> int:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args(
        arguments
    )
    cuda = torch.cuda.is_available()
    checks = Checks(time.monotonic() + 60 * (MINUTES if cuda else WITHOUT_GPU))
    if cuda:
        with tempfile.TemporaryDirectory() as folder:
            with_gpu(checks, Path(folder))
    else:
        why = unusable_gpu(NVIDIA_DRIVER) or "torch sees no GPU here"
        print(f"{why}; what can be checked without one:")
        without_gpu(checks)
    passed = sum(row[1] is True for row in checks.rows)
    where = f"{torch.cuda.get_device_name()}, driver {driver()}" if cuda else f"no GPU, {platform.machine()}"
    faults = ", ".join(row[0] for row in checks.rows if row[1] is not True) or "none"
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    print(f"\nto send in: gpu-check at {commit or 'no commit'} on {where}, torch {torch.__version__}: ", end="")
    print(f"{passed} of {len(checks.rows)} passed; not: {faults}")
    if cuda and passed == len(checks.rows):
        print(onward("gpu", command=FIRST_RUN))
    elif not cuda:
        print(onward("no gpu"))
    return int(passed < len(checks.rows))


if __name__ == "__main__":
    os.chdir(Path(__file__).resolve().parent.parent)
    sys.exit(main())
