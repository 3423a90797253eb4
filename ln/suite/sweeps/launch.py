"""Carry out every cell of a sweep, several at a time, through one of Hydra's launchers.

What each cell comes to is noted in a folder of the sweep's own, which the live table and the closing list read. A cell
that fails, or whose process dies, leaves the others to go on; one that another sweep holds is left to that one. The
same command again goes on with what is not done.
"""

import hashlib
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import hydra
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from ln.suite.config import CONFIGS, Recipe, names, recipe_of
from ln.suite.errors import Mistake, one_sentence
from ln.suite.files import cannot_write, write_text
from ln.suite.overrides import check_choices, command_line, for_hydra, not_composed, quoted
from ln.suite.runs.device import take_gpu
from ln.suite.runs.folder import DONE, FAILED, INTERRUPTED, Busy, run_folder
from ln.suite.runs.read import run_info
from ln.suite.runs.train import carry_out
from ln.suite.sweeps.cells import SweepCell, SweepPlan

BUSY = "busy"
MOST_USUAL_JOBS = 4  # each may take 1.5 GB
NOTES = "LN_SWEEP_NOTES"  # environment variable that tells a cell's process where to write


@dataclass(frozen=True)
class Outcome:
    """What became of a cell in this sweep."""

    status: str  # a run's status, or busy
    sentence: str = ""


class Notes:
    """A folder with two small files per cell: that it was begun, and its outcome. No two processes write one file."""

    def __init__(self, folder: Path):
        self.folder = folder

    def _path(self, cell: Path, suffix: str) -> Path:
        return self.folder / (hashlib.sha256(str(cell).encode()).hexdigest()[:16] + suffix)

    def begin(self, cell: Path, overrides: list[str]) -> None:
        begun = {"pid": os.getpid(), "host": platform.node(), "overrides": overrides}
        self._path(cell, ".begun").write_text(json.dumps(begun))

    def end(self, cell: Path, outcome: Outcome) -> None:
        if not self.folder.exists():
            return  # the sweep's own process is gone; the run's files tell the rest
        with suppress(Mistake):  # on a full disk the run's files tell the rest too
            write_text(self._path(cell, ".ended"), json.dumps([outcome.status, outcome.sentence]))

    def begun(self, cell: Path) -> dict[str, Any] | None:
        path = self._path(cell, ".begun")
        return json.loads(path.read_text() or "null") if path.exists() else None

    def outcome(self, cell: Path) -> Outcome | None:
        path = self._path(cell, ".ended")
        return Outcome(*json.loads(path.read_text())) if path.exists() else None

    def outcomes(self, cells: Iterable[SweepCell]) -> dict[Path, Outcome]:
        """What became of the cells that were begun; of one that could not say so, its files do not tell either."""
        found = {}
        for cell in cells:
            if outcome := self.outcome(cell.folder):
                found[cell.folder] = outcome
            elif self.begun(cell.folder) and not self.stopping:
                found[cell.folder] = Outcome(FAILED, f"it ended without a word (see {cell.folder / 'output.log'})")
        return found

    @property
    def stopping(self) -> bool:
        """Whether no further cell is to be begun: asked for, or the sweep's own process is gone."""
        return (self.folder / "stop").exists() or not self.folder.exists()

    def stop(self) -> None:
        (self.folder / "stop").touch()

    def in_flight(self, cells: list[SweepCell]) -> list[SweepCell]:
        return [cell for cell in cells if self.begun(cell.folder) and not self.outcome(cell.folder)]


@hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name="config")
def _job(composed: DictConfig) -> None:
    # Launchers pickle this function by value; the work is in one that their processes import.
    cell(composed)


def cell(composed: DictConfig) -> None:
    """One run of a sweep, in whichever process the launcher gave it. Notes its outcome and raises nothing."""
    notes = Notes(Path(os.environ[NOTES]))
    folder = run_folder(composed.results, composed.profile, composed.experiment, composed.norm.name, composed.seed)
    if notes.stopping or notes.outcome(folder):
        return
    in_sweeps_process = os.getpid() == int(os.environ[NOTES + "_PID"])
    if not in_sweeps_process and "Joblib" in HydraConfig.get().launcher._target_:
        # Ctrl-C reaches every process of the terminal; the sweep hears it and asks the cells to stop, by SIGTERM.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    # Not resolved: an escaped `${` in them is to stay escaped, for whoever gives them to Hydra again.
    notes.begin(folder, OmegaConf.to_container(HydraConfig.get().overrides.task, resolve=False))  # type: ignore[arg-type]
    if composed.device != "cpu":
        take_gpu()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "output.log").open("a") as log, redirect_stdout(log), redirect_stderr(log):
            outcome = attempted(lambda: recipe_of(composed))
    except OSError as error:
        outcome = Outcome(FAILED, str(cannot_write(folder / "output.log", error)))
    if outcome.status == INTERRUPTED and in_sweeps_process:
        notes.stop()
    notes.end(folder, outcome)


def attempted(recipe: Callable[[], Recipe]) -> Outcome:
    """Carry out a recipe, whatever becomes of it."""
    try:
        return Outcome(carry_out(recipe()).info["status"])
    except Busy as busy:
        return Outcome(BUSY, str(busy))
    except KeyboardInterrupt:
        return Outcome(INTERRUPTED)
    except Exception as error:
        return Outcome(FAILED, one_sentence(error))


def run_in_turn(
    cells: Iterable[SweepCell], recipes: Iterable[Recipe], ready: Mapping[Path, Outcome]
) -> dict[Path, Outcome]:
    """Carry out the cells that are not ready one after the other in this process, each with its progress bar, until
    Ctrl-C; all outcomes. recipes: one of each experiment and norm."""
    outcomes = dict(ready)
    by_name = {(recipe.experiment, recipe.norm.name): recipe for recipe in recipes}
    for cell in cells:
        if cell.folder in outcomes:
            continue
        outcome = outcomes[cell.folder] = attempted(
            partial(replace, by_name[cell.experiment, cell.norm], seed=cell.seed)
        )
        if outcome.status == INTERRUPTED:
            break
        if outcome.sentence:  # which is said at the end
            print(f"{cell.row} seed {cell.seed}: {outcome.status}", flush=True)
    return outcomes


def cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def usual_jobs(profile: str, overrides: list[str]) -> int:
    """How many runs at a time suit this machine: on the CPU the laptop profile's small runs gain little from a second
    core, and go side by side; a GPU is one run's."""
    device = next((o.partition("=")[2] for o in reversed(overrides) if o.startswith("device=")), "auto")
    on_cpu = device == "cpu" or (device == "auto" and not torch.cuda.is_available())
    return min(cores(), MOST_USUAL_JOBS) if profile == "laptop" and on_cpu else 1


def launcher_arguments(launcher: str, jobs: int, overrides: list[str]) -> list[str]:
    """Hydra's arguments for a launcher: how many cells at once, and a cell's share of the cores.

    Raises:
        Mistake: an unknown launcher, or fewer than one job.
    """
    known = names("hydra/launcher")
    if launcher not in known:
        raise Mistake(f"LAUNCHER={launcher} is not a launcher; choose one of {', '.join(known)}")
    if jobs < 1:
        raise Mistake(f"JOBS={jobs} runs nothing; give the number of runs at a time, at least 1")
    arguments = [f"hydra/launcher={launcher}"]
    if launcher == "local":
        arguments.append(f"hydra.launcher.n_jobs={jobs}")
    elif launcher == "slurm":
        arguments.append(f"hydra.launcher.array_parallelism={jobs}")
    if not any(override.startswith("threads=") for override in overrides):
        share = max(1, cores() // jobs) if launcher == "local" else "${hydra:launcher.cpus_per_task}"
        arguments.append(f"threads={share}")
    return arguments


@contextmanager
def notes_for(results: str) -> Iterator[Notes]:
    """This sweep's notes, under the results so that a cluster's machines see them; removed at the end."""
    folder = (Path(results) / f".sweep-{platform.node()}-{os.getpid()}").resolve()
    shutil.rmtree(folder, ignore_errors=True)
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        raise Mistake(f"{results} cannot be written: {error.strerror}") from error
    try:
        yield Notes(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def stop_requests(notes: Notes, cells: list[SweepCell]) -> Iterator[None]:
    """Ctrl-C or SIGTERM: no cell is begun any more, those in flight save their state and stop; a second one kills."""

    def stop(number: int, frame: Any) -> None:
        signal.signal(number, signal.default_int_handler)
        notes.stop()
        for cell in notes.in_flight(cells):
            begun = notes.begun(cell.folder) or {}
            if begun.get("pid") == os.getpid():
                raise KeyboardInterrupt
            if begun.get("host") == platform.node():
                os.kill(begun["pid"], signal.SIGTERM)

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def run_cells(plan: SweepPlan, arguments: list[str], notes: Notes) -> None:
    """Carry out every cell of the plan; afterwards each has an outcome, but for those that a stop left out.

    Raises:
        Mistake: what was asked for cannot be composed.
    """
    os.environ["HYDRA_FULL_ERROR"] = "1"
    for multirun in plan.multiruns:
        check_choices([*multirun, *arguments])
    for multirun in plan.multiruns:
        run_multirun(for_hydra([*multirun, *arguments]), plan.cells, notes)


def run_multirun(command: list[str], cells: list[SweepCell], notes: Notes) -> None:
    """Carry out one multirun of Hydra's, whose cells are among `cells`, and begin it anew when a process has died."""
    environment = {NOTES: str(notes.folder), NOTES + "_PID": str(os.getpid())}
    exported = [f"+hydra.job.env_set.{key}={quoted(value)}" for key, value in environment.items()]
    while not notes.stopping:
        try:
            with command_line(["-m", *command, *exported]):
                _job()
            return
        except HydraException as error:
            raise not_composed(error) from error
        except KeyboardInterrupt:
            return
        except BrokenProcessPool:
            # A process died, and joblib ends the others with it. The culprit is among those in flight.
            if notes.stopping:
                return
            for suspect in notes.in_flight(cells):
                run_alone(suspect, notes)


def run_alone(suspect: SweepCell, notes: Notes) -> None:
    """Carry out a cell in a process with no other beside it, so that its death is nobody else's."""
    begun = notes.begun(suspect.folder)
    assert begun is not None
    overrides = [o for o in begun["overrides"] if not o.startswith(("hydra.", "hydra/", "+hydra."))]
    with (suspect.folder / "output.log").open("a") as log:
        code = subprocess.run([sys.executable, "-m", "ln.train", *overrides], stdout=log, stderr=log).returncode
    info = run_info(suspect.folder) or {}
    if code < 0:
        reason = f"its process died ({signal.Signals(-code).name}); SIGKILL is often for want of memory"
        notes.end(suspect.folder, Outcome(FAILED, f"{reason} (see {suspect.folder / 'output.log'})"))
    elif info.get("status") in DONE:
        notes.end(suspect.folder, Outcome(info["status"]))
    else:
        notes.end(suspect.folder, Outcome(FAILED, info.get("error", f"see {suspect.folder / 'output.log'}")))
