"""How long a run takes: from runs like it, or, where there is none, from a few of its steps that are timed here."""

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import cache
from hashlib import sha256
from typing import Any

import torch

from ln.suite.config import Recipe, identity_hash, imported
from ln.suite.data import Source, cache_folder, looking_only
from ln.suite.files import write_text
from ln.suite.runs.device import device_of
from ln.suite.runs.folder import cpu_name
from ln.suite.runs.read import COMPLETE
from ln.suite.runs.step import GRAPH_WARMUP_STEPS, Step, length, optimizer_of
from ln.suite.runs.train import built
from ln.suite.task import Task, evaluation
from ln.suite.until import Until

ENOUGH_SECONDS, MOST_STEPS = 2.0, 20  # of timed steps
EVALUATION_SECONDS = 5.0  # of processor time, after which an evaluation is cut off


@dataclass(frozen=True)
class Pace:
    """What is known of the length of a run."""

    seconds: float  # of the whole run
    last_step: int
    steps_per_epoch: int | None
    hardware: str = ""  # of the run that it is taken from, where it is
    steps: int = 0  # that were timed for it here, where no run tells
    at_least: bool = False  # the evaluation among them was cut off

    def share(self, until: Until) -> float | None:
        """Which share of the whole run `until` is; None where nothing tells."""
        if until.unit == "epochs" and self.steps_per_epoch is None:
            return None
        return until.step(self.last_step, self.steps_per_epoch or 0) / self.last_step


def pace_of(info: dict[str, Any]) -> Pace:
    """Of a run that is complete or partial, from its run.json."""
    whole = info["status"] == COMPLETE
    last_step = info["steps"] if whole else info["last_step"]
    seconds = info["seconds"] if whole else info["seconds"] * last_step / info["step"]
    epochs = info["identity"]["train"]["epochs"]
    per_epoch = last_step / epochs if epochs else None if whole else info["step"] / info["epoch"]
    return Pace(seconds, last_step, round(per_epoch) if per_epoch else None, info.get("hardware") or "")


def estimated(recipe: Recipe) -> Pace:
    """From a few steps and an evaluation of the recipe; timed once on each machine with as many free cores, in seconds.

    Raises:
        Mistake: its data or device cannot be had.
    """
    device = device_of(recipe.device, recipe.profile)
    threads = recipe.threads or _free_cores()
    source = _source(recipe.task, recipe.data)
    machine = torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name()
    made_for = [identity_hash(recipe, source.identity), machine, threads, torch.__version__]
    path = cache_folder("pace") / f"{sha256(json.dumps(made_for).encode()).hexdigest()[:16]}.json"
    with suppress(OSError, ValueError, TypeError):  # not there yet, or damaged
        return Pace(**json.loads(path.read_bytes()))
    said = f"timing a few steps of {recipe.experiment} with norm {recipe.norm.name} at {recipe.profile}"
    print(said, file=sys.stderr, flush=True)
    torch.set_num_threads(threads)
    found = timed(recipe, built(imported(recipe.task), recipe, source, device))
    write_text(path, json.dumps(asdict(found)))
    return found


def _free_cores() -> int:
    """The cores that nothing else uses now, at least one: threads that wait for a core stretch a step many times."""
    busy = round(os.getloadavg()[0]) if hasattr(os, "getloadavg") else 0
    return max(1, (os.cpu_count() or 1) - busy)


@cache
def _source(task: str, request: str) -> Source:
    """The data, loaded once for all norms; nothing is downloaded for an estimate."""
    with looking_only():
        source: Source = imported(task).find(request)
    return Source(source.name, source.status, source.sha256, cache(source.load))


def timed(recipe: Recipe, task: Task) -> Pace:
    """The length of a run from some of its steps, after the first ones, which are slower, and an evaluation."""
    step = Step(task, optimizer_of(recipe.train, task.model, task.device), recipe.train, recipe.graph)
    first = GRAPH_WARMUP_STEPS + 1 if step.can_graph else 1
    task.model.train()
    for number in range(first):
        step(task.batch(number))
    seconds, count = 0.0, 0
    while count < MOST_STEPS and seconds < ENOUGH_SECONDS:
        with _stopwatch(task.device) as passed:
            step(task.batch(first + count))
        seconds, count = seconds + passed(), count + 1
    with _stopwatch(task.device) as passed:
        whole = _evaluated(task)
    last_step, every = length(recipe.train, task.steps_per_epoch)
    total = last_step * seconds / count + last_step / every * passed()
    return Pace(total, last_step, task.steps_per_epoch, steps=count, at_least=not whole)


@contextmanager
def _stopwatch(device: torch.device) -> Iterator[Callable[[], float]]:
    """The seconds that a block takes: on a CPU the processor's where they are fewer, as on a busy machine."""
    wall, processor = time.perf_counter(), time.process_time()
    found = 0.0
    yield lambda: found
    if device.type == "cuda":
        torch.cuda.synchronize()
    found = time.perf_counter() - wall
    if device.type == "cpu":
        found = min(found, time.process_time() - processor)


class _Enough(Exception):
    """The evaluation takes longer than is waited for."""


def _evaluated(task: Task) -> bool:
    """Evaluate as along the way, and say whether that came to its end in EVALUATION_SECONDS."""

    def stop(number: int, frame: Any) -> None:
        raise _Enough

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, EVALUATION_SECONDS)
    try:
        with evaluation(task, 0):
            for split in task.curve_splits:
                task.evaluate(split)
        return True
    except _Enough:
        return False
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0.0)
        signal.signal(signal.SIGPROF, before)
