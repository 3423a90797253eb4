"""The runs of a results folder as the page shows them: the done ones, which count, and the others, which are named."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ln.norms import NORMS
from ln.suite.runs.read import COUNTED, Measured, Runs, counting, read_metrics, run_folders, run_info, whole

UNREADABLE = "unreadable"
FILES = ("config.yaml", "run.json", "metrics.jsonl")
AXES = ("step", "epoch", "seconds")
SHOWN_METRICS = 3  # of a run, in the table of runs


@dataclass(frozen=True)
class PageRun(Measured):
    """A run, done or not, with where it lies; `folder` is relative to the results folder."""

    experiment: str
    norm: str
    seed: int
    folder: str
    files: list[str]  # of the run's three, those that are there
    torn: bool  # the last line of metrics.jsonl is cut short

    @property
    def status(self) -> str:
        return self.info["status"]

    @property
    def done(self) -> bool:
        return self.status in COUNTED

    @property
    def evaluations(self) -> list[dict[str, Any]]:
        """The records of the curve: neither the test split's at the end nor the mark of a run that diverged."""
        return [r for r in self.records if not r.get("final") and not r.get("diverged")]

    @property
    def name(self) -> str:
        return f"{self.experiment}, {self.norm}, seed {self.seed}"

    def last_step(self) -> int:
        return self.records[-1]["step"] if self.records else 0

    def at_the_end(self, first: Sequence[str]) -> list[tuple[str, float]]:
        """A few metrics of the test split, those the claims use before others."""
        final = {k: v for k, v in self.info.get("final", {}).items() if isinstance(v, int | float)}
        order = [name for name in first if name in final]
        return [(name, final[name]) for name in [*order, *(n for n in final if n not in order)][:SHOWN_METRICS]]


def find_runs(results: Path, profile: str, experiment: str) -> list[PageRun]:
    """Every run of an experiment, by norm in the figures' order and by seed."""
    found = []
    for folder in run_folders(results / profile / experiment):
        info = run_info(folder) or {"status": UNREADABLE}
        said: list[str] = []
        info, records = counting(info, read_metrics(folder / "metrics.jsonl", warn=said.append))
        if not whole(info, records):
            info = {**info, "status": UNREADABLE}
        name = folder.relative_to(results).as_posix()
        files = [file for file in FILES if (folder / file).exists()]
        norm, seed = folder.parent.name, int(folder.name)
        found.append(PageRun(info, records, experiment, norm, seed, name, files, torn=bool(said)))
    order = {norm: place for place, norm in enumerate(NORMS)}
    return sorted(found, key=lambda run: (order[run.norm], run.seed))


def measured(found: Sequence[PageRun]) -> Runs:
    """What verdicts are judged from: the done runs by norm and seed."""
    runs: Runs = {}
    for run in found:
        if run.done:
            runs.setdefault(run.norm, {})[run.seed] = run
    return runs


def made_with(found: Sequence[PageRun]) -> list[tuple[str, int]]:
    """What the done runs were made with, in words, and how many runs each."""
    counts: dict[str, int] = {}
    for run in found:
        if not run.done:
            continue
        info = run.info
        packages = ", ".join(f"{name} {version}" for name, version in sorted(info.get("packages", {}).items()))
        words = (
            f"commit {commit(info)}; {info.get('hardware', 'unknown hardware')} ({info.get('device', '?')}, "
            f"{info.get('threads', '?')} threads, backend {info.get('backend', '?')}); "
            f"Python {info.get('python', '?')}, {packages}"
        )
        counts[words] = counts.get(words, 0) + 1
    return sorted(counts.items(), key=lambda item: -item[1])


def commit(info: dict[str, Any]) -> str:
    """A short commit; `+` where the code had changes that were not committed."""
    return (info.get("commit") or "unknown")[:9] + ("+" if info.get("dirty") else "")
