"""Which runs an experiment's claims need, which are done, and how long the rest will take."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ln.suite.config import PROFILES, names, unknown
from ln.suite.errors import Mistake
from ln.suite.judging.claims import load_claims
from ln.suite.runs.folder import DONE, run_folder
from ln.suite.runs.read import COMPLETE, load_runs, part_of, read_metrics, run_folders, run_info
from ln.suite.until import Until


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
    done: bool  # no more of it is wanted


@dataclass(frozen=True)
class Wanted:
    """Which runs are asked for."""

    norms: dict[str, list[str]]  # by experiment
    seeds: list[int]
    others: bool = False  # done runs of other seeds count as well, as they do in a verdict

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
    runs = load_claims(group).runs
    if profile not in PROFILES:
        raise unknown("profile", profile, "a profile", PROFILES)
    here = runs.at(profile)
    # One that is given twice is one.
    chosen = list(dict.fromkeys(norms.split(","))) if norms is not None else list(here.norms)
    for norm in chosen:
        if norm not in names("norm"):
            raise unknown("norm", norm, "a normalization", names("norm"))
    if seeds is None:
        numbers = list(range(runs.seeds[profile]))
    else:
        try:
            numbers = list(dict.fromkeys(int(seed) for seed in seeds.split(",")))
        except ValueError:
            raise Mistake(f"seeds={seeds} is not a comma list of whole numbers such as 0,1,2") from None
    by_experiment = {e: [norm for norm in chosen if norm in runs.only.get(e, chosen)] for e in here.experiments}
    return Wanted({e: norms for e, norms in by_experiment.items() if norms}, numbers, others=seeds is None)


@dataclass(frozen=True)
class Pace:
    """What a run that is done, wholly or in part, tells of the others like it."""

    seconds: float  # of the whole run
    last_step: int
    steps_per_epoch: int | None

    def share(self, until: Until) -> float | None:
        """Which share of the whole run `until` is; None where nothing tells."""
        if until.unit == "epochs" and self.steps_per_epoch is None:
            return None
        return until.step(self.last_step, self.steps_per_epoch or 0) / self.last_step


def cells(results: str | Path, profile: str, wanted: Wanted, until: str | None = None) -> list[Cell]:
    """The wanted runs and their state, read from their folders; `until`: so much of each is wanted.

    Raises:
        Mistake: `until` is no part of a run.
    """
    part = Until.of(until)
    paces_of = {e: _paces(Path(results) / profile / e) for e in wanted.norms}
    found = []
    for experiment, norm, seed in wanted:
        folder, paces = run_folder(results, profile, experiment, norm, seed), paces_of[experiment]
        pace = paces.get(norm, max(paces.values(), key=lambda p: p.seconds, default=None))
        status, share, done = _state(folder, pace, part)
        target = pace.share(part) if pace else None
        left = 0.0 if done else (None if pace is None or target is None else pace.seconds * max(0.0, target - share))
        found.append(Cell(experiment, norm, seed, folder, status, share, left, done))
    if wanted.others:
        found += _others(Path(results) / profile, wanted)
        order = list(wanted.norms)
        found.sort(key=lambda c: (order.index(c.experiment), wanted.norms[c.experiment].index(c.norm), c.seed))
    return found


def _others(folder: Path, wanted: Wanted) -> list[Cell]:
    """The done runs of seeds that were not asked for."""
    found = []
    for experiment, norms in wanted.norms.items():
        for norm, runs in load_runs(folder.parent, folder.name, experiment).items():
            for seed in runs.keys() - set(wanted.seeds) if norm in norms else ():
                status = runs[seed].info["status"]
                if status in DONE:
                    place = folder / experiment / norm / str(seed)
                    found.append(Cell(experiment, norm, seed, place, status, 1.0, 0.0, True))
    return found


def _paces(folder: Path) -> dict[str, Pace]:
    """For each norm the slowest of its runs that are complete or partial."""
    paces: dict[str, Pace] = {}
    for run in run_folders(folder):
        info = run_info(run)
        if info is None or (info["status"] != COMPLETE and part_of(info) is None):
            continue
        try:
            pace = _pace(part_of(info) or info)
        except (KeyError, TypeError, ZeroDivisionError):  # it tells no pace, and is named where it is judged
            continue
        norm = run.parent.name
        paces[norm] = max(paces.get(norm, pace), pace, key=lambda p: p.seconds)
    return paces


def _pace(info: dict[str, Any]) -> Pace:
    """Of a run that is complete or partial, from its run.json."""
    whole = info["status"] == COMPLETE
    last_step = info["steps"] if whole else info["last_step"]
    seconds = info["seconds"] if whole else info["seconds"] * last_step / info["step"]
    epochs = info["identity"]["train"]["epochs"]
    per_epoch = last_step / epochs if epochs else None if whole else info["step"] / info["epoch"]
    return Pace(seconds, last_step, round(per_epoch) if per_epoch else None)


def _state(folder: Path, pace: Pace | None, until: Until) -> tuple[str, float, bool]:
    """A run's status, the share of its whole that is behind it, and whether no more of it is wanted."""
    info = run_info(folder)
    if info is None:
        return "missing", 0.0, False
    status = info["status"]
    if status in DONE:
        return status, 1.0, True
    part = part_of(info)
    done = part is not None and until.reached(part)
    records, steps = read_metrics(folder / "metrics.jsonl"), info.get("last_step", pace.last_step if pace else 0)
    return status, min(1.0, records[-1]["step"] / steps) if records and steps else 0.0, done
