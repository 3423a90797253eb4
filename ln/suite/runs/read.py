"""Runs as they are read back: the one place that turns a run's files into what verdicts, figures and pages look at.

Nothing here writes. A run that counts is done (complete or diverged) or `partial`: the first part of its recipe, whose
curve ends early and which has no numbers of the end. A run that goes on from there, or was stopped doing so, counts as
that part until it comes to more.
"""

import functools
import json
import math
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

from ln.norms import NORMS
from ln.suite.errors import Mistake

COMPLETE, DIVERGED = "complete", "diverged"
PARTIAL = "partial"  # carried out up to `until`; goes on from its checkpoint
COUNTED = (COMPLETE, DIVERGED, PARTIAL)
WHOLE = ("identity", "hash", "data")  # of run.json: what a run's first part has of the run
# What readers take from run.json; what is there is of its kind.
NUMBERS = ("seconds", "steps", "steps_per_second", "step", "epoch", "last_step", "stop_step", "diverged_at")
TEXTS = ("hash", "commit", "hardware", "device", "backend", "python", "started", "error")  # or null
SECTIONS = ("identity", "data", "final", "packages", "part", "pictures")


@dataclass(frozen=True)
class Measured:
    """A run as read from its folder."""

    info: dict[str, Any]
    records: list[dict[str, Any]]

    @property
    def diverged(self) -> bool:
        return self.info["status"] == DIVERGED

    @property
    def partial(self) -> bool:
        return self.info["status"] == PARTIAL

    @property
    def data(self) -> str:
        """original, substitute or embedded."""
        return self.info["data"]["status"]

    def curve(self, metric: str, x: str = "step") -> tuple[list[float], list[float]]:
        """The evaluations of a metric: x values (step, epoch or seconds) and values."""
        points = [
            (r[x], r[metric]) for r in self.records if not r.get("final") and None not in (r.get(x), r.get(metric))
        ]
        return [p[0] for p in points], [p[1] for p in points]

    def until(self, step: float) -> "Measured":
        """Its first part: what it would be had it stopped at `step`."""
        return replace(self, records=[r for r in self.records if r["step"] <= step and not r.get("final")])

    def has(self, metric: str, at: int | str) -> bool:
        """Whether `value` has something to read; of a diverged run it always has, the worst."""
        return self.diverged or bool(self._values(metric, at))

    def value(self, metric: str, at: int | str, lower: bool) -> float:
        """A metric `at` the end of training (last), at its best (best), on the checkpoint that validation chose
        (final), or after so many updates. A diverged run's is as bad as can be, and so is a value that is no number."""
        values = [] if self.diverged else self._values(metric, at)
        finite = [value for value in values if math.isfinite(value)]
        if not finite or (at != "best" and not math.isfinite(values[-1])):
            return math.inf if lower else -math.inf
        return finite[-1] if at != "best" else (min(finite) if lower else max(finite))

    def _values(self, metric: str, at: int | str) -> list[float]:
        if at == "final":
            return [r[metric] for r in self.records if r.get("final") and r.get(metric) is not None]
        steps, values = self.curve(metric)
        return [v for step, v in zip(steps, values, strict=True) if step == at] if isinstance(at, int) else values


Seeds = dict[int, Measured]
Runs = dict[str, Seeds]  # norm -> seed -> run


@functools.cache
def say_once(sentence: str) -> None:
    """Say on stderr what was passed over, once however often a command reads it."""
    print(sentence, file=sys.stderr, flush=True)


def run_folders(experiment: Path, warn: Callable[[str], None] = say_once) -> list[Path]:
    """The folders `<norm>/<seed>` of an experiment that hold a run; what else lies there, such as a copy, is named."""
    found = []
    for path in sorted(experiment.glob("*/*/run.json")):
        folder = path.parent
        if folder.parent.name in NORMS and re.fullmatch(r"0|[1-9][0-9]*", folder.name):
            found.append(folder)
        else:
            warn(f"{folder} is no run's folder, which is <norm>/<seed>; it is passed over")
    return found


def run_info(folder: Path, warn: Callable[[str], None] = say_once) -> dict[str, Any] | None:
    """What the run.json in a run's folder says; None where there is none or, which is said, it is damaged."""
    path = folder / "run.json"
    try:
        return sound_info(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        warn(f"{path} cannot be read ({error}); this run is passed over")
        return None


def sound_info(text: bytes) -> dict[str, Any]:
    """What a run.json says.

    Raises:
        ValueError: it is cut short, or something in it is not of the kind that a run writes.
    """
    try:
        info: dict[str, Any] = _parsed(text)
        _check_kinds(info)
        if (part := part_of(info)) is not None:
            _check_kinds(part)
            _ = part["step"] / part["last_step"], part["epoch"]
        if info["status"] in COUNTED or part is not None:
            _ = info["identity"]["seed"], info["data"]["name"], info["data"]["status"]
    except (TypeError, KeyError, ZeroDivisionError) as error:
        raise ValueError(f"no {error}" if isinstance(error, KeyError) else str(error)) from error
    return info


def _check_kinds(info: dict[str, Any]) -> None:
    """Raise TypeError for what is not of the kind that a run writes."""
    if not isinstance(info["status"], str):
        raise TypeError("its status is no word")
    for key in NUMBERS:
        if not _is_number(info.get(key, 0)):
            raise TypeError(f"its {key} is no number")
    for key in TEXTS:
        if not isinstance(info.get(key), str | None):
            raise TypeError(f"its {key} is no text")
    identity = info.get("identity", {})
    sections = {key: info[key] for key in SECTIONS if key in info}
    if isinstance(identity, dict):
        sections |= {key: identity[key] for key in ("source", "norm", "train", "model") if key in identity}
    for key, section in sections.items():
        if not isinstance(section, dict):
            raise TypeError(f"its {key} is no mapping")
    if not all(map(_is_number, info.get("final", {}).values())):
        raise TypeError("its final metrics are no numbers")


def _parsed(text: bytes) -> Any:
    """JSON, in which NaN and the infinities, which it has not, are null: a run writes them so."""
    return json.loads(text, parse_constant=lambda name: None)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def part_of(info: dict[str, Any]) -> dict[str, Any] | None:
    """What run.json says of the run's first part where that is what counts of it; None of any other run."""
    if info["status"] == PARTIAL:
        return info
    if info["status"] in COUNTED or "part" not in info:
        return None
    return {key: info[key] for key in WHOLE} | info["part"]


def counting(info: dict[str, Any], records: list[dict[str, Any]]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Of a run that goes on from its first part that part, which counts; any other run as it is."""
    part = part_of(info)
    return (info, records) if part is None else (part, [r for r in records if r["step"] <= part["step"]])


def load_runs(results: str | Path, profile: str, experiment: str) -> Runs:
    """The runs of an experiment that count, by norm and seed. What is damaged or no run's is named and passed over."""
    runs: Runs = {}
    for folder in run_folders(Path(results) / profile / experiment):
        info = run_info(folder)
        if info is None or (info["status"] not in COUNTED and part_of(info) is None):
            continue
        info, records = counting(info, read_metrics(folder / "metrics.jsonl"))
        if not whole(info, records):
            say_once(f"{folder}/metrics.jsonl lacks the end of a complete run; this run is passed over")
            continue
        runs.setdefault(folder.parent.name, {})[int(folder.name)] = Measured(info, records)
    return runs


def whole(info: dict[str, Any], records: list[dict[str, Any]]) -> bool:
    """Whether the records of a run that says it is complete have its end."""
    return info["status"] != COMPLETE or any(record.get("final") for record in records)


def read_metrics(path: Path, warn: Callable[[str], None] = say_once) -> list[dict[str, Any]]:
    """The records of a metrics.jsonl, up to a line that was cut short or damaged (said once)."""
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return []
    except OSError as error:
        warn(f"{path} cannot be read: {error.strerror}")
        return []
    records: list[dict[str, Any]] = []
    for number, line in enumerate(lines, 1):
        if not line and number == len(lines):
            break  # what follows the last line's end
        try:
            record = _parsed(line)
            if not isinstance(record["step"], int) or any(isinstance(v, str | list | dict) for v in record.values()):
                raise TypeError
        except (ValueError, TypeError, KeyError):
            warn(f"{path}: line {number} of {len(lines)} is cut short or damaged; read up to it")
            break
        records.append(record)
    return records


def finished_run(folder: Path, command: str) -> tuple[dict[str, Any], Path]:
    """The run.json of a complete run and the file of its chosen weights; `command` makes such a run.

    Raises:
        Mistake: no run, not a complete one, or its weights are not there.
    """

    def refuse(sentence: str) -> NoReturn:
        raise Mistake(sentence)

    info = run_info(folder, warn=refuse)
    if info is None:
        raise Mistake(f"{folder} holds no run; `{command}` makes one")
    if info["status"] != COMPLETE:
        raise Mistake(f"{folder}: the run is {info['status']}, not complete; carry it out to its end first")
    path = folder / "best.pt"
    if not path.exists():
        raise Mistake(
            f"{path} is not there (weights are not kept with published results); delete the folder, run again"
        )
    return info, path
