"""Which runs an experiment's claims need, which are done, and how long the rest will take."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ln.suite.config import PROFILES, names
from ln.suite.errors import Mistake
from ln.suite.judging.claims import load_claims
from ln.suite.runs.folder import COMPLETE, DONE, read_metrics, run_folder


@dataclass(frozen=True)
class Cell:
    """One run that is wanted."""

    experiment: str
    norm: str
    seed: int
    folder: Path
    status: str  # a run's status, or missing
    share: float  # of its steps that are behind it
    seconds: float | None  # what is left, estimated from runs like it; None where there are none

    @property
    def done(self) -> bool:
        return self.status in DONE


@dataclass(frozen=True)
class Wanted:
    """Which runs are asked for."""

    norms: dict[str, list[str]]  # by experiment
    seeds: list[int]

    def __iter__(self) -> Iterator[tuple[str, str, int]]:
        """Experiment, norm and seed of each run."""
        return ((e, norm, seed) for e, norms in self.norms.items() for norm in norms for seed in self.seeds)

    def multiruns(self) -> list[list[str]]:
        """Hydra's arguments, whose comma lists multiply: experiments that run under the same norms go together."""
        together: dict[str, list[str]] = {}
        for experiment, norms in self.norms.items():
            together.setdefault(",".join(norms), []).append(experiment)
        seeds = ",".join(map(str, self.seeds))
        return [[f"experiment={','.join(e)}", f"norm={norms}", f"seed={seeds}"] for norms, e in together.items()]


def wanted(group: str, profile: str, norms: str | None = None, seeds: str | None = None) -> Wanted:
    """The runs of the claims, or with the comma lists of norms and seeds that the user gives.

    Raises:
        Mistake: an unknown name, an empty list, a seed that is not a whole number.
    """
    runs = load_claims(group)["runs"]
    runs = {**runs, **runs.get(profile, {})}  # a profile may run fewer experiments or norms
    if profile not in PROFILES:
        raise Mistake(f"profile={profile} is not a profile; choose one of {', '.join(PROFILES)}")
    chosen = norms.split(",") if norms is not None else runs["norms"]
    for norm in chosen:
        if norm not in names("norm"):
            raise Mistake(f"norm={norm} is not a normalization; choose one of {', '.join(names('norm'))}")
    if seeds is None:
        numbers = list(range(runs["seeds"][profile]))
    else:
        try:
            numbers = [int(seed) for seed in seeds.split(",")]
        except ValueError:
            raise Mistake(f"seeds={seeds} is not a comma list of whole numbers such as 0,1,2") from None
    only = runs.get("only", {})  # variants that make sense under some norms
    by_experiment = {e: [norm for norm in chosen if norm in only.get(e, chosen)] for e in runs["experiments"]}
    return Wanted({e: norms for e, norms in by_experiment.items() if norms}, numbers)


def cells(results: str | Path, profile: str, wanted: Wanted) -> list[Cell]:
    """The wanted runs and their state, read from their folders."""
    speeds_of = {e: _seconds_by_norm(Path(results) / profile / e) for e in wanted.norms}
    found = []
    for experiment, norm, seed in wanted:
        folder, speeds = run_folder(results, profile, experiment, norm, seed), speeds_of[experiment]
        status, share = _state(folder, speeds)
        whole = speeds.get(norm, max(speeds.values(), default=None))
        left = 0.0 if status in DONE else (None if whole is None else whole[0] * (1 - share))
        found.append(Cell(experiment, norm, seed, folder, status, share, left))
    return found


def _seconds_by_norm(folder: Path) -> dict[str, tuple[float, int]]:
    """For each norm with a complete run: the longest run's seconds and its steps."""
    speeds: dict[str, tuple[float, int]] = {}
    for path in folder.glob("*/*/run.json"):
        info = json.loads(path.read_text())
        if info["status"] == COMPLETE:
            norm = path.parent.parent.name
            speeds[norm] = max(speeds.get(norm, (0.0, 0)), (info["seconds"], info["steps"]))
    return speeds


def _state(folder: Path, speeds: dict[str, tuple[float, int]]) -> tuple[str, float]:
    path = folder / "run.json"
    if not path.exists():
        return "missing", 0.0
    status = json.loads(path.read_text())["status"]
    if status in DONE:
        return status, 1.0
    records = read_metrics(folder / "metrics.jsonl")
    steps = max((seconds_steps[1] for seconds_steps in speeds.values()), default=0)
    return status, min(1.0, records[-1]["step"] / steps) if records and steps else 0.0


def duration(seconds: float) -> str:
    """12 s, 3 min, 1 h 20 min."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"
