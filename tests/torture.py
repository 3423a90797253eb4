"""`make torture`: runs killed, stopped, starved of disk and found damaged, in all the ways we know; a table at the end.

Each try is a process forked from one that has all loaded, as many side by side as there are cores. It passes if the run
ends as an undisturbed one would, or is refused in one sentence that names the file, and if nothing measured is lost.
`python -m tests.torture --only damaged` is one part.
"""

import os

os.environ["OMP_NUM_THREADS"] = "1"  # a forked process has no second thread

import argparse
import dataclasses
import functools
import itertools
import json
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from hydra import compose, initialize_config_dir

import ln.suite.runs.folder as folder_of_a_run
import ln.suite.runs.train as training
from ln.suite.config import CONFIGS, Recipe, recipe_of
from ln.suite.errors import Mistake
from ln.suite.runs.folder import Run, run_folder
from ln.suite.runs.read import load_runs
from ln.suite.showing.page import build
from ln.suite.showing.report import conclude
from ln.suite.showing.scoreboard import readme_block
from ln.suite.sweeps.cells import SweepCell
from ln.suite.sweeps.launch import Notes, cores
from ln.suite.sweeps.table import look
from ln.suite.sweeps.wanted import cells, wanted
from scripts import reproduce
from tests.test_train import timeless

DONE, CRASHED, REFUSED, STOPPED, TRACEBACK = 0, 137, 3, 130, 1  # how a try's process ends
BATCH_NORM = ["experiment=mnist_b4", "norm=batch", "train.epochs=3", "train.evaluate_every=0.25"]  # the most state
SHORT = ["experiment=mnist_b128", "norm=layer"]
OFTEN = 0.02  # seconds from one checkpoint of the long run to the next
NAMES = [
    *("plain", "my results", "a,b", "a=b", "ü", "ergebnis/é", "名前", "(a)", "[a]", "{a}", "a'b", 'a"b', "a#b", "~a"),
    *("a;touch y", "a&b", "${seed}", "$HOME", "a:b", "a\\b", "%s", "*", "trailing ", "-n", "a\\", "+a"),
]

Try = tuple[str, Callable[[Path], str | None]]  # its name, and what is wrong after it in this folder, or None


def recipe(results: Path, *overrides: str) -> Recipe:
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        fixed = ["profile=smoke", "tracking=disabled", "threads=1", "data=embedded"]
        made = recipe_of(compose("config", [*fixed, *overrides]))
    made.results = str(results)
    return made


def fork(action: Callable[[], Any], log: Path) -> int:
    """Begin `action` in a process of its own; its number."""
    number = os.fork()
    if number:
        return number
    code = DONE
    with log.open("a") as said:
        os.dup2(said.fileno(), 1)
        os.dup2(said.fileno(), 2)
        try:
            action()
        except Mistake as mistake:
            print(f"error: {mistake}", flush=True)
            code = REFUSED
        except KeyboardInterrupt:
            code = STOPPED
        except SystemExit as exit_:
            code = int(exit_.code or 0)
        except BaseException:
            traceback.print_exc()
            code = TRACEBACK
        sys.stdout.flush()
    os._exit(code)


def ended(number: int) -> int:
    code = os.waitstatus_to_exitcode(os.waitpid(number, 0)[1])
    return 128 - code if code < 0 else code


def carry_out(made: Recipe, log: Path, before: Callable[[], Any] = lambda: None, often: float = 0.0) -> int:
    return ended(fork(functools.partial(carried_out, made, before, often), log))


def carried_out(made: Recipe, before: Callable[[], Any] = lambda: None, often: float = 0.0) -> None:
    """`often`: seconds from one checkpoint to the next; 0 is after every step."""
    training.CHECKPOINT_SECONDS = often
    before()
    training.carry_out(made)


def folder_of(made: Recipe) -> Path:
    return run_folder(made.results, made.profile, made.experiment, made.norm.name, made.seed)


class Undisturbed:
    """What a recipe comes to when nothing happens to it."""

    def __init__(self, place: Path, overrides: list[str], often: float = 0.0):
        self.overrides, self.made = overrides, recipe(place / overrides[0], *overrides)
        # In this process, which then has imported and read what the tries need.
        with (place / "log").open("a") as log, redirect_stdout(log), redirect_stderr(log), ExitStack() as stack:
            met = {
                name: stack.enter_context(
                    mock.patch.object(owner, name, autospec=True, side_effect=getattr(owner, name))
                )
                for owner, name in POINTS
            }
            carried_out(self.made, often=often)
        self.calls = {name: point.call_count for name, point in met.items()}
        self.records = timeless(folder_of(self.made))
        started = time.perf_counter()
        assert carry_out(recipe(place / "again" / overrides[0], *overrides), place / "log", often=often) == DONE
        self.seconds = time.perf_counter() - started

    def differs(self, made: Recipe, log: Path) -> str | None:
        """Carry the recipe out to its end; what is not as it is here."""
        code = carry_out(made, log)
        if code != DONE:
            return f"ends with {code}: {last_line(log)}"
        if json.loads((folder_of(made) / "run.json").read_text())["status"] != "complete":
            return "is not complete"
        return None if timeless(folder_of(made)) == self.records else "writes other metrics"


def last_line(log: Path) -> str:
    lines = log.read_text().strip().splitlines() if log.exists() else []
    return lines[-1] if lines else ""


# --- the tries


def kills(undisturbed: Undisturbed, count: int, number: int) -> Iterator[Try]:
    """SIGKILL or SIGINT at a random moment, several times in a run; every other run goes on from its first part."""
    for i in range(count):

        def attempt(place: Path, i: int = i) -> str | None:
            made, log, chance = recipe(place, *undisturbed.overrides), place / "log", random.Random(i)
            part = dataclasses.replace(made, until="0.3")
            if i % 2 and carry_out(part, log, often=OFTEN) != DONE:
                return f"its part ends with {last_line(log)}"
            counted = 3 if i % 2 else 0  # evaluations, which every reader is to find from here on
            for _ in range(3):
                process = fork(functools.partial(carried_out, made, often=OFTEN), log)
                time.sleep(chance.uniform(0, undisturbed.seconds))
                os.kill(process, number)
                if ended(process) == TRACEBACK:
                    return f"a traceback: {last_line(log)}"
                if counted and len(counting(made)) < counted:
                    return f"{counted - len(counting(made))} evaluations of its part count no longer"
            return undisturbed.differs(made, log)

        yield f"{signal.Signals(number).name} {i}", attempt


def counting(made: Recipe) -> list[dict[str, Any]]:
    """What verdicts are judged from."""
    runs = load_runs(made.results, made.profile, made.experiment)
    return [record for by_seed in runs.values() for run in by_seed.values() for record in run.records]


POINTS: list[tuple[Any, str]] = [
    (Run, "append"), (Run, "write"), (Run, "save_checkpoint"), (Run, "tidy"), (Run, "cut_metrics"), (Path, "replace"),
    (Path, "unlink"), (os, "fsync"), (torch, "save"), (folder_of_a_run, "write_text"), (training, "draw"),
]  # fmt: skip


def at_point(owner: Any, name: str, call: int, after: bool, event: Callable[[], Any]) -> Callable[[], None]:
    """Make the call of that number meet the event, before it or after."""

    def install() -> None:
        original, count = getattr(owner, name), itertools.count()

        def disturbed(*arguments: Any, **more: Any) -> Any:
            now = next(count) == call
            if now and not after:
                event()
            result = original(*arguments, **more)
            if now and after:
                event()
            return result

        setattr(owner, name, disturbed)

    return install


def crashes(undisturbed: Undisturbed, code: int) -> Iterator[Try]:
    """A crash, or Ctrl-C, before and after the calls that write: the first ones, one in the middle, the last ones."""
    event = (lambda: os._exit(CRASHED)) if code == CRASHED else (lambda: os.kill(os.getpid(), signal.SIGINT))
    for owner, name in POINTS:
        calls = undisturbed.calls[name]
        chosen = sorted({0, 1, calls // 3, calls // 2, calls - 2, calls - 1} & set(range(calls)))
        for call, after in itertools.product(chosen, (False, True)):

            def attempt(
                place: Path, owner: Any = owner, name: str = name, call: int = call, after: bool = after
            ) -> str | None:
                made, log = recipe(place, *undisturbed.overrides), place / "log"
                struck = carry_out(made, log, at_point(owner, name, call, after, event))
                if struck not in (code, DONE) or (code == CRASHED and struck == DONE):
                    return f"ends with {struck}: {last_line(log)}"
                path = folder_of(made) / "run.json"
                complete = path.exists() and json.loads(path.read_text())["status"] == "complete"
                before = path.stat().st_mtime_ns if complete else None
                wrong = undisturbed.differs(made, log)
                if complete and "going on from" in log.read_text() and path.stat().st_mtime_ns != before:
                    return "a complete run was trained again"
                return wrong

            yield f"{name} {call} of {calls} {'after' if after else 'before'}", attempt


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 4
    path.write_bytes(data)


def to_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


DAMAGE: dict[str, Callable[[Path], Any]] = {
    "emptied": lambda path: path.write_bytes(b""),
    "cut short": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "{}": lambda path: path.write_text("{}\n"),
    "[]": lambda path: path.write_text("[]\n"),
    "not UTF-8": lambda path: path.write_bytes(b"\xff\xfe\x00bad" * 9),
    "one bit": flip,
    "missing": lambda path: path.unlink(),
    "a folder": to_folder,
}
FILES = ("run.json", "metrics.jsonl", "config.yaml", "checkpoint.pt", "checkpoint.previous.pt", "best.pt")


def read(results: Path) -> None:
    """All that reads runs."""
    conclude("mnist", "smoke", results)
    found = cells(results, "smoke", wanted("mnist", "smoke"))
    for cell in found:
        look(SweepCell("", cell.experiment, cell.norm, cell.seed, cell.folder), Notes(results))
    build.write_page(results)
    readme_block(results)


def damages(undisturbed: Undisturbed, stopped: Path) -> Iterator[Try]:
    """Each file of a complete and of a stopped run, damaged; read by all readers, and begun again."""
    complete = Path(undisturbed.made.results)
    for (kind, origin), file, damage in itertools.product(
        (("complete", complete), ("stopped", stopped)), FILES, DAMAGE
    ):
        made = recipe(origin, *undisturbed.overrides)
        if not (folder_of(made) / file).exists():
            continue

        def attempt(
            place: Path, kind: str = kind, origin: Path = origin, file: str = file, damage: str = damage
        ) -> str | None:
            results, log = place / "results", place / "log"
            shutil.copytree(origin, results)
            made = recipe(results, *undisturbed.overrides)
            path = folder_of(made) / file
            DAMAGE[damage](path)
            metrics = folder_of(made) / "metrics.jsonl"
            before = metrics.read_bytes() if metrics.is_file() else b""
            code = ended(fork(lambda: read(results), log))
            if code not in (DONE, REFUSED):
                return f"reading ends with {code}: {last_line(log)}"
            code = carry_out(made, log)
            if code == REFUSED:
                sound = str(folder_of(made)) in last_line(log) and (
                    not metrics.is_file() or metrics.read_bytes() == before
                )
                return None if sound else f"is refused: {last_line(log)}"
            if code != DONE:
                return f"ends with {code}: {last_line(log)}"
            if kind == "complete" and file in ("run.json", "metrics.jsonl"):
                return None
            return None if timeless(folder_of(made)) == undisturbed.records else "writes other metrics"

        yield f"{kind} {file} {damage}", attempt


def strays(undisturbed: Undisturbed) -> Iterator[Try]:
    """Copies and other files beside the runs."""
    for stray in ("layer/0_backup", "layer_old/0", "layer/copy of 0", "layer/-1", "lay er/0", "layer/00", "layer/0/0"):

        def attempt(place: Path, stray: str = stray) -> str | None:
            results, log = place / "results", place / "log"
            shutil.copytree(undisturbed.made.results, results)
            made = recipe(results, *undisturbed.overrides)
            shutil.copytree(folder_of(made), folder_of(made).parents[1] / stray)
            code = ended(fork(lambda: read(results), log))
            return None if code == DONE else f"reading ends with {code}: {last_line(log)}"

        yield stray, attempt


def full_disks(undisturbed: Undisturbed) -> Iterator[Try]:
    """A disk with so many bytes left; then some are freed, and the run goes on."""
    for left in (0, 4096, 20480, 40960, 65536, 131072, 262144, 393216, 524288, 1048576):

        def attempt(place: Path, left: int = left) -> str | None:
            made, log = recipe(place / "disk", *undisturbed.overrides), place / "log"
            with disk(place / "disk"):
                ballast = place / "disk" / "ballast"
                free = shutil.disk_usage(place / "disk").free
                ballast.write_bytes(b"\0" * max(0, free - left))
                code = carry_out(made, log)
                path = folder_of(made) / "run.json"
                if code == REFUSED:
                    if str(place / "disk") not in last_line(log) or "cannot be written" not in last_line(log):
                        return f"says {last_line(log)}"
                    if path.exists() and json.loads(path.read_text())["status"] != "failed":
                        return f"says {json.loads(path.read_text())['status']}"
                elif code != DONE:
                    return f"ends with {code}: {last_line(log)}"
                ballast.unlink()
                return undisturbed.differs(made, log)

        yield f"{left} bytes left", attempt


def read_only_disks(undisturbed: Undisturbed) -> Iterator[Try]:
    for done in (True, False):

        def attempt(place: Path, done: bool = done) -> str | None:
            made, log = recipe(place / "disk", *undisturbed.overrides), place / "log"
            with disk(place / "disk"):
                if done and carry_out(made, log) != DONE:
                    return last_line(log)
                subprocess.run(["mount", "-o", "remount,ro", place / "disk"], check=True)
                code = carry_out(made, log)
                if done:
                    return None if code == DONE else f"ends with {code}: {last_line(log)}"
                named = str(place / "disk") in last_line(log) and "Read-only" in last_line(log)
                return None if code == REFUSED and named else f"ends with {code}: {last_line(log)}"

        yield f"read-only, {'done' if done else 'new'}", attempt


class disk:
    """A small disk of its own, as `tmpfs`; needs the right to mount."""

    def __init__(self, place: Path):
        self.place = place

    def __enter__(self) -> None:
        self.place.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", self.place]
        subprocess.run(command, check=True, capture_output=True)

    def __exit__(self, *_: object) -> None:
        subprocess.run(["umount", self.place], check=True)
        self.place.rmdir()


def can_mount(place: Path) -> bool:
    try:
        with disk(place / "try"):
            return True
    except (OSError, subprocess.CalledProcessError):
        return False


def odd_names(undisturbed: Undisturbed) -> Iterator[Try]:
    """Results folders whose names mean something to Hydra, YAML or a shell."""
    for name in NAMES:

        def attempt(place: Path, name: str = name) -> str | None:
            results, log = place / name, place / "log"
            fixed = ["--profile=smoke", "--norms=layer", "--seeds=0", "--jobs=1", f"--results={results}"]
            sys.argv = ["reproduce", "mnist", *fixed, "tracking=disabled", "threads=1", "data=embedded"]
            code = ended(fork(reproduce.main, log))
            runs = sorted(path.parent.relative_to(place) for path in place.rglob("run.json"))
            expected = [
                folder_of(recipe(Path(name), f"experiment={e}", "norm=layer")) for e in ("mnist_b128", "mnist_b4")
            ]
            if code != DONE:
                return f"ends with {code}: {last_line(log)}"
            return None if runs == sorted(expected) else f"made {', '.join(map(str, runs))}"

        yield f"{name!r}", attempt


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="the kinds whose name has this in it")
    parser.add_argument(
        "--kills", type=int, default=30, help="runs that are killed three times each, and so for Ctrl-C"
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="torture-") as temporary:
        place = Path(temporary).resolve()
        long, short = Undisturbed(place, BATCH_NORM, OFTEN), Undisturbed(place, SHORT)
        stopped = place / "stopped"
        halfway = at_point(Run, "save_checkpoint", 12, True, lambda: os._exit(CRASHED))
        assert carry_out(recipe(stopped, *short.overrides), place / "log", halfway) == CRASHED
        read(Path(short.made.results))
        kinds: dict[str, Iterator[Try]] = {
            "killed (SIGKILL)": kills(long, options.kills, signal.SIGKILL),
            "stopped (SIGINT)": kills(long, options.kills, signal.SIGINT),
            "crash points": crashes(short, CRASHED),
            "Ctrl-C points": crashes(short, STOPPED),
            "damaged files": damages(short, stopped),
            "stray folders": strays(short),
            "odd names": odd_names(short),
        }
        if can_mount(place):
            kinds |= {"full disk": full_disks(short), "read-only disk": read_only_disks(short)}
        else:
            print("full disk, read-only disk: left out, since no tmpfs can be mounted here")
        failures = [
            failure for kind, tries in kinds.items() if options.only in kind for failure in tortured(kind, tries, place)
        ]
    print("\n".join([*failures, f"{len(failures)} failures in {time.perf_counter() - started:.0f} s"]))
    sys.exit(bool(failures))


def tortured(kind: str, tries: Iterable[Try], place: Path) -> list[str]:
    """Carry out a kind's tries, side by side, and print its row: tried | passed | seconds."""
    started, every, told = time.perf_counter(), list(tries), place / "told"
    told.touch()

    def share(number: int) -> None:
        here = place / f"try{number}"
        for name, attempt in every[number :: cores()]:
            here.mkdir()
            try:
                wrong = attempt(here)
            except Exception as error:
                wrong = f"{type(error).__name__}: {error}"
            shutil.rmtree(here)
            with told.open("a") as file:
                file.write(json.dumps([name, wrong]) + "\n")

    for process in [fork(functools.partial(share, number), place / "log") for number in range(cores())]:
        ended(process)
    results = dict(json.loads(line) for line in told.read_text().splitlines())
    told.unlink()
    failures = [f"{kind}, {name}: {wrong}" for name, _ in every if (wrong := results.get(name, "it has told nothing"))]
    seconds = time.perf_counter() - started
    print(f"{kind:18} {len(every):5} tried | {len(every) - len(failures):5} passed | {seconds:5.0f} s", flush=True)
    return failures


if __name__ == "__main__":
    main()
