"""Runs as they are read back: the one place that turns a run's files into what verdicts, figures and pages look at.

Nothing here writes. A run that counts is done (complete or diverged) or `partial`: the first part of its recipe, whose
curve ends early and which has no numbers of the end.
"""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ln.suite.errors import Mistake

COMPLETE, DIVERGED = "complete", "diverged"
PARTIAL = "partial"  # carried out up to `until`; goes on from its checkpoint
COUNTED = (COMPLETE, DIVERGED, PARTIAL)


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
        points = [(r[x], r[metric]) for r in self.records if not r.get("final") and r.get(metric) is not None]
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


def load_runs(results: str | Path, profile: str, experiment: str) -> Runs:
    """The runs of an experiment that count, by norm and seed. Folders that are no seed's are passed over."""
    runs: Runs = {}
    for path in sorted((Path(results) / profile / experiment).glob("*/*/run.json")):
        if not path.parent.name.isdigit():
            continue
        info = json.loads(path.read_text())
        if info["status"] in COUNTED:
            records = read_metrics(path.parent / "metrics.jsonl")
            runs.setdefault(path.parent.parent.name, {})[int(path.parent.name)] = Measured(info, records)
    return runs


def read_metrics(path: Path, warn: Callable[[str], None] = print) -> list[dict[str, Any]]:
    """The records of a metrics.jsonl, up to a last line that was cut short (said once)."""
    records = []
    lines = path.read_text().splitlines() if path.exists() else []
    for number, line in enumerate(lines, 1):
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            warn(f"{path}: line {number} of {len(lines)} is cut short; read up to it")
            break
    return records


def finished_run(folder: Path, command: str) -> tuple[dict[str, Any], Path]:
    """The run.json of a complete run and the file of its chosen weights; `command` makes such a run.

    Raises:
        Mistake: no run, not a complete one, or its weights are not there.
    """
    try:
        info = json.loads((folder / "run.json").read_text())
    except FileNotFoundError:
        raise Mistake(f"{folder} holds no run; `{command}` makes one") from None
    if info["status"] != COMPLETE:
        raise Mistake(f"{folder}: the run is {info['status']}, not complete; carry it out to its end first")
    path = folder / "best.pt"
    if not path.exists():
        raise Mistake(
            f"{path} is not there (weights are not kept with published results); delete the folder, run again"
        )
    return info, path
