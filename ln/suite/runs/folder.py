"""A run on disk: results/<profile>/<experiment>/<norm>/<seed>/ as plain files.

run.json        status, identity and its hash, provenance, speed, final metrics; `part`, of the part it goes on from
config.yaml     the composed recipe
metrics.jsonl   one JSON object per evaluation; the only source of numbers
diff.patch      what differed from the commit that run.json names, where anything did
checkpoint.pt, checkpoint.previous.pt, best.pt, .lock, .spare     not committed
"""

import fcntl
import hashlib
import json
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import IO, Any, BinaryIO

import torch

from ln.suite.config import Recipe, differing, identity, identity_hash
from ln.suite.errors import Mistake
from ln.suite.files import cannot_write, replacing, write_text
from ln.suite.runs.checkpoint import load_whole
from ln.suite.runs.read import COMPLETE, COUNTED, DIVERGED, PARTIAL, WHOLE, part_of, run_info, sound_info
from ln.suite.until import Until

RUNNING, INTERRUPTED, FAILED = "running", "interrupted", "failed"
DONE = (COMPLETE, DIVERGED)  # a diverged run is a result, not something to try again
PASSING = ("error", "step", "epoch", "stop_step")  # of run.json: how far a try was to go, and how it ended
CHECKPOINTS = ("checkpoint.pt", "checkpoint.previous.pt")  # the newest first
SPARE_BYTES = 16384  # given back when the disk is full, so that run.json can still say so
MAKERS = ("ln", "experiments", "configs")  # what makes a run; results are written while runs go on
PACKAGES = ("torch", "torchvision", "triton", "numpy", "hydra-core", "wandb")


class Busy(Mistake):
    """Another living process holds the run's folder."""


def run_folder(results: str | Path, profile: str, experiment: str, norm: str, seed: int) -> Path:
    return Path(results) / profile / experiment / norm / str(seed)


@dataclass
class Run:
    """One run's folder, held by this process from `open` to `close`."""

    folder: Path
    recipe: Recipe
    source: dict[str, str]
    info: dict[str, Any] = field(default_factory=dict)
    _lock: IO[bytes] | None = None
    _metrics: BinaryIO | None = None

    @classmethod
    def open(cls, recipe: Recipe, source: dict[str, str]) -> "Run":
        """Take the run's folder: new, unfinished (then `checkpoints` tell where to go on) or done.

        Raises:
            Mistake: the folder holds another recipe's run, or part of this one's without its checkpoint; belongs to a
                living process, or cannot be written.
        """
        folder = run_folder(recipe.results, recipe.profile, recipe.experiment, recipe.norm.name, recipe.seed)
        info = {"status": RUNNING, "hash": identity_hash(recipe, source), "identity": identity(recipe, source)}
        run = cls(folder, recipe, source, info)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            run._take_lock()
        except OSError as error:
            # A done run is there to be read, on a read-only disk too.
            if not (folder / "run.json").exists() or not run._known().done:
                raise cannot_write(folder, error) from error
            return run
        try:
            run._known()
            if run.ended:
                run.tidy()
            elif not run.done:
                run._spare().write_bytes(b"\0" * SPARE_BYTES)
        except OSError as error:
            run.close()
            raise cannot_write(run._spare(), error) from error
        except Mistake:
            run.close()
            raise
        return run

    def _take_lock(self) -> None:
        # The kernel lets go of the lock when its owner dies, so a lock is never stale.
        self._lock = (self.folder / ".lock").open("a+b", buffering=0)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lock.seek(0)
            owner = self._lock.read().decode(errors="replace").strip()
            self._lock.close()
            raise Busy(f"{self.folder} is being worked on by {owner}") from None
        self._lock.truncate(0)
        with suppress(OSError):  # on a full disk the lock holds, though it cannot tell its owner
            self._lock.write(f"process {os.getpid()} on {platform.node()}".encode())

    def _known(self) -> "Run":
        """Take over what run.json knows of this run.

        Raises:
            Mistake: it is another recipe's, or it is not there or damaged and nothing else tells whose this folder is.
        """
        path = self.folder / "run.json"
        try:
            old = sound_info(path.read_bytes())
            old_identity, old_hash = old["identity"], old["hash"]
        except FileNotFoundError:
            if self._begun() and not self._own_checkpoint():
                raise Mistake(
                    f"{self.folder} holds what a run has measured but no run.json, which tells whose; "
                    "choose another place with RESULTS=<folder> (results=<folder>), or delete it"
                ) from None
            return self
        except (ValueError, KeyError) as error:
            if self._own_checkpoint():
                print(f"{path} is damaged and is written anew; a checkpoint tells that this is its run", flush=True)
                return self
            raise Mistake(f"{path} cannot be read ({error}); delete the folder to start it again") from error
        if old_hash != self.info["hash"]:
            lines = differing(old_identity, self.info["identity"])
            keys = "; ".join(lines)
            # Data made anew, such as features by another network: the same experiment on other bytes.
            other_data = all(line.startswith(("source.sha256:", "source.name:")) for line in lines)
            what = "of other data, comparable but not identical" if other_data else "of another recipe"
            raise Mistake(
                f"{self.folder} holds a run {what} ({keys}); "
                "choose another place with RESULTS=<folder> (results=<folder>), or delete it"
            )
        self.info = old
        if self.done:
            self.info = part_of(old) or old
        elif part_of(old) and not any((self.folder / c).exists() for c in CHECKPOINTS):
            raise self.cannot_go_on()
        return self

    def cannot_go_on(self) -> Mistake:
        """Of a run whose first part counts: to start it again would lose what is measured."""
        part = part_of(self.info) or self.info
        return Mistake(
            f"{self.folder} holds the first {part['step']} of {part['last_step']} steps of a run, but no checkpoint "
            "to go on from; choose another place with RESULTS=<folder> (results=<folder>), or delete it"
        )

    def _begun(self) -> bool:
        metrics = self.folder / "metrics.jsonl"
        return (metrics.exists() and metrics.stat().st_size > 0) or any((self.folder / c).exists() for c in CHECKPOINTS)

    def _own_checkpoint(self) -> bool:
        for name in CHECKPOINTS:
            with suppress(Mistake):
                if load_whole(self.folder / name).get("hash") == self.info["hash"]:
                    return True
        return False

    @property
    def ended(self) -> bool:
        """Whether it came to its end."""
        return self.info["status"] in DONE

    @property
    def done(self) -> bool:
        """Whether nothing is left to do: it came to its end, or to where the recipe's `until` stops it."""
        part = part_of(self.info)
        return self.ended or (part is not None and Until.of(self.recipe.until).reached(part))

    # --- metrics.jsonl

    def append(self, record: dict[str, Any]) -> None:
        """Add a line to metrics.jsonl.

        Raises:
            Mistake: it cannot be written; the lines before it are whole.
        """
        path = self.folder / "metrics.jsonl"
        line = json.dumps(record).encode() + b"\n"
        try:
            if self._metrics is None:
                self._metrics = path.open("ab", buffering=0)
            end = path.stat().st_size
            if self._metrics.write(line) < len(line):  # the disk was full in the middle of it
                os.truncate(path, end)
                self._metrics.write(line)
        except OSError as error:
            raise cannot_write(path, error) from error

    def cut_metrics(self, size: int) -> None:
        """Cut metrics.jsonl back to what a checkpoint knows, so that a curve never doubles.

        Raises:
            Mistake: there is no checkpoint (0), but a first part of the run that counts.
        """
        if size == 0 and part_of(self.info):
            raise self.cannot_go_on()
        path = self.folder / "metrics.jsonl"
        if path.exists() and path.stat().st_size > size:
            os.truncate(path, size)

    def _measured(self) -> bytes:
        """What metrics.jsonl holds, if it is there.

        Raises:
            Mistake: it cannot be read.
        """
        path = self.folder / "metrics.jsonl"
        try:
            with path.open("rb") as file:
                return file.read(path.stat().st_size)
        except FileNotFoundError:
            return b""
        except OSError as error:
            raise Mistake(f"{path} cannot be read: {error.strerror}") from error

    # --- checkpoints

    def save_checkpoint(self, state: dict[str, Any]) -> None:
        """Write a checkpoint so that at any moment one whole checkpoint is on disk.

        Raises:
            Mistake: the disk is full or the folder cannot be written; the last good checkpoint is untouched.
        """
        current, previous = (self.folder / name for name in CHECKPOINTS)
        new = self.folder / "checkpoint.new.pt"
        try:
            if self._metrics is not None:
                os.fsync(self._metrics.fileno())
            with replacing(new) as file:
                measured = self._measured()
                known = {"metrics_bytes": len(measured), "metrics_sha256": hashlib.sha256(measured).hexdigest()}
                torch.save({**state, **known, "hash": self.info["hash"]}, file)
            if current.exists():
                current.replace(previous)
            new.replace(current)
        except (OSError, Mistake) as error:
            kept = "the last good checkpoint is kept" if current.exists() else "there was none before it"
            cause = cannot_write(new, error) if isinstance(error, OSError) else error
            raise Mistake(f"{cause}; {kept}") from error

    def checkpoints(self, device: torch.device) -> Iterator[tuple[Path, dict[str, Any]]]:
        """The whole checkpoints of this run, the newest first; of each other one it is said why not.

        Raises:
            Mistake: metrics.jsonl cannot be read.
        """
        part, measured = part_of(self.info), self._measured()
        for path in (self.folder / name for name in CHECKPOINTS):
            if not path.exists():
                continue
            try:
                state = load_whole(path, device)
                # Those written before checkpoints had a hash are vouched for by run.json.
                if state.get("hash", self.info["hash"]) != self.info["hash"]:
                    raise Mistake(f"{path} is of another recipe")
                known = measured[: state["metrics_bytes"]]
                if len(known) < state["metrics_bytes"]:
                    raise Mistake(f"{path} knows more than metrics.jsonl holds")
                sha256 = hashlib.sha256(known).hexdigest()
                if state.get("metrics_sha256", sha256) != sha256:
                    raise Mistake(f"{path} knows other lines than metrics.jsonl holds")
                if part is not None and state["step"] < part["step"]:
                    raise Mistake(f"{path} is from before the end of the run's first part, which counts")
            except (Mistake, KeyError, TypeError) as error:
                going_back(path, error)
                continue
            yield path, state

    # --- run.json

    def write(self, status: str, **fields: Any) -> None:
        """Update run.json; written whole or not at all. What an earlier try failed of, or came to, is no longer so; but
        the part that the run goes on from stays in it, and counts, until there is more.

        Raises:
            Mistake: it cannot be written.
        """
        kept = {key: value for key, value in self.info.items() if key not in PASSING}
        if status in COUNTED:
            kept.pop("part", None)
        elif self.info["status"] == PARTIAL:
            kept["part"] = {key: value for key, value in self.info.items() if key not in WHOLE}
        info = {**kept, **fields, "status": status}
        write_text(self.folder / "run.json", json.dumps(info, indent=2, sort_keys=True, allow_nan=False) + "\n")
        self.info = info

    def keep_diff(self) -> None:
        """Write down how what makes this run differs from the commit, where it does; files that git does not know are
        not in it."""
        if diff := _git("diff", "HEAD", "--", *MAKERS):
            write_text(self.folder / "diff.patch", f"{diff}\n")

    def finish(self, status: str, **fields: Any) -> None:
        """The run is done, and stays so whatever comes after."""
        self.write(status, **fields)
        self.tidy()

    def tidy(self) -> None:
        """A done run keeps no checkpoints: what was learned is in metrics.jsonl, the chosen model in best.pt."""
        for name in (*CHECKPOINTS, "error.log"):
            with suppress(OSError):
                (self.folder / name).unlink(missing_ok=True)

    def stop(self, status: str, **fields: Any) -> None:
        """Note how a run that is not done came to a stop; one that is done is left as it is. Raises nothing."""
        # Ctrl-C may have come between the file and `info`.
        self.info = run_info(self.folder, warn=lambda sentence: None) or self.info
        if self.done:
            return
        with suppress(OSError):
            self._spare().unlink(missing_ok=True)
        try:
            self.write(status, **fields)
        except Mistake as mistake:
            print(mistake, file=sys.stderr, flush=True)

    def _spare(self) -> Path:
        return self.folder / ".spare"

    @property
    def held(self) -> bool:
        """Whether the folder can be written by this process; a done run may lie on a read-only disk."""
        return self._lock is not None

    def close(self) -> None:
        with suppress(OSError):
            self._spare().unlink(missing_ok=True)
        for file in (self._metrics, self._lock):
            if file is not None:
                file.close()
        self._metrics = self._lock = None


def going_back(path: Path, error: Exception) -> None:
    """Say why a checkpoint is not gone on from."""
    why = f"{path} has no {error}" if isinstance(error, KeyError) else str(error)
    print(f"{why}; going back to the one before", flush=True)


def _git(*arguments: str) -> str:
    answer = subprocess.run(["git", *arguments], capture_output=True, text=True, errors="replace", check=False)
    return answer.stdout.strip()


def provenance(device: torch.device) -> dict[str, Any]:
    """What a run was made with: commit, packages, machine. No path of the machine."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    hardware = torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name()
    return {
        "commit": _git("rev-parse", "HEAD") or None,
        "dirty": bool(_git("status", "--porcelain", "--", *MAKERS)),
        "packages": versions,
        "python": platform.python_version(),
        "hardware": hardware,
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def peak_memory_bytes(device: torch.device) -> int:
    """Peak of this process so far (CPU) or of the device's allocations."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    scale = 1 if platform.system() == "Darwin" else 1024  # ru_maxrss: bytes on macOS, KiB on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale
