"""Which runs an experiment's claims need, which are done, and how long the rest will take."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ln.suite.config import PROFILES, names, unknown
from ln.suite.errors import Mistake
from ln.suite.judging.claims import load_claims
from ln.suite.runs.folder import DONE, run_folder
from ln.suite.runs.read import COMPLETE, load_runs, part_of, read_metrics, run_folders, run_info
from ln.suite.sweeps.pace import Pace, pace_of
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
    pace: Pace | None = None  # what `seconds` is estimated from


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


def cells(
    results: str | Path,
    profile: str,
    wanted: Wanted,
    until: str | None = None,
    estimate: Callable[[str, str], Pace] | None = None,
) -> list[Cell]:
    """The wanted runs and their state, read from their folders; `until`: so much of each is wanted. `estimate`: how
    long a run of an experiment and norm takes, asked where no run of the experiment tells.

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
        if pace is None and estimate is not None and not done:
            pace = estimate(experiment, norm)
        target = pace.share(part) if pace else None
        left = 0.0 if done else (None if pace is None or target is None else pace.seconds * max(0.0, target - share))
        found.append(Cell(experiment, norm, seed, folder, status, share, left, done, pace))
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
            pace = pace_of(part_of(info) or info)
        except (KeyError, TypeError, ZeroDivisionError):  # it tells no pace, and is named where it is judged
            continue
        norm = run.parent.name
        paces[norm] = max(paces.get(norm, pace), pace, key=lambda p: p.seconds)
    return paces


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
