"""A run on disk: results/<profile>/<experiment>/<norm>/<seed>/ as plain files.

run.json        status, identity and its hash, provenance, speed, final metrics
config.yaml     the composed recipe
metrics.jsonl   one JSON object per evaluation; the only source of numbers
checkpoint.pt, checkpoint.previous.pt, .lock     not committed
"""

import fcntl
import json
import os
import platform
import resource
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import IO, Any

import torch

from ln.suite.config import Recipe, differing, identity, identity_hash
from ln.suite.errors import Mistake

COMPLETE, DIVERGED, RUNNING, INTERRUPTED, FAILED = "complete", "diverged", "running", "interrupted", "failed"
DONE = (COMPLETE, DIVERGED)  # a diverged run is a result, not something to try again
PACKAGES = ("torch", "torchvision", "triton", "numpy", "hydra-core", "wandb")


class Busy(Mistake):
    """Another living process holds the run's folder."""


def run_folder(results: str | Path, profile: str, experiment: str, norm: str, seed: int) -> Path:
    return Path(results) / profile / experiment / norm / str(seed)


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


@dataclass
class Run:
    """One run's folder, held by this process from `open` to `close`."""

    folder: Path
    recipe: Recipe
    source: dict[str, str]
    info: dict[str, Any] = field(default_factory=dict)
    _lock: IO[str] | None = None
    _metrics: IO[str] | None = None

    @classmethod
    def open(cls, recipe: Recipe, source: dict[str, str]) -> "Run":
        """Take the run's folder: new, unfinished (then `checkpoint` tells where to go on) or done.

        Raises:
            Mistake: the folder holds another recipe's run, belongs to a living process, or cannot be written.
        """
        folder = run_folder(recipe.results, recipe.profile, recipe.experiment, recipe.norm.name, recipe.seed)
        info = {"status": RUNNING, "hash": identity_hash(recipe, source), "identity": identity(recipe, source)}
        run = cls(folder, recipe, source, info)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            run._take_lock()
        except OSError as error:
            raise Mistake(f"{folder} cannot be written: {error.strerror}") from error
        if (folder / "run.json").exists():
            run._compare()
        return run

    def _take_lock(self) -> None:
        # The kernel lets go of the lock when its owner dies, so a lock is never stale.
        self._lock = (self.folder / ".lock").open("a+")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lock.seek(0)
            owner = self._lock.read().strip()
            self._lock.close()
            raise Busy(f"{self.folder} is being worked on by {owner}") from None
        self._lock.truncate(0)
        self._lock.write(f"process {os.getpid()} on {platform.node()}")
        self._lock.flush()

    def _compare(self) -> None:
        try:
            old = json.loads((self.folder / "run.json").read_text())
            old_identity, old_hash = old["identity"], old["hash"]
        except (json.JSONDecodeError, KeyError) as error:
            self.close()
            raise Mistake(
                f"{self.folder}/run.json cannot be read ({error}); delete the folder to start it again"
            ) from error
        if old_hash != self.info["hash"]:
            keys = "; ".join(differing(old_identity, self.info["identity"]))
            self.close()
            raise Mistake(
                f"{self.folder} holds a run of another recipe ({keys}); "
                "choose another place with RESULTS=<folder> (results=<folder>), or delete it"
            )
        self.info = old

    @property
    def done(self) -> bool:
        return self.info["status"] in DONE

    # --- metrics.jsonl

    def append(self, record: dict[str, Any]) -> None:
        if self._metrics is None:
            self._metrics = (self.folder / "metrics.jsonl").open("a")
        self._metrics.write(json.dumps(record) + "\n")
        self._metrics.flush()

    # --- checkpoints

    def save_checkpoint(self, state: dict[str, Any]) -> None:
        """Write a checkpoint so that at any moment one whole checkpoint is on disk.

        Raises:
            Mistake: the disk is full or the folder cannot be written; the last good checkpoint is untouched.
        """
        metrics = self.folder / "metrics.jsonl"
        state = {**state, "metrics_bytes": metrics.stat().st_size if metrics.exists() else 0}
        new, current, previous = (self.folder / f"checkpoint{s}.pt" for s in (".new", "", ".previous"))
        try:
            if self._metrics is not None:
                os.fsync(self._metrics.fileno())
            with new.open("wb") as file:
                torch.save(state, file)
                file.flush()
                os.fsync(file.fileno())
        except (OSError, RuntimeError) as error:  # torch's zip writer turns a full disk into RuntimeError
            new.unlink(missing_ok=True)
            kept = "the last good checkpoint is kept" if current.exists() else "there was none before it"
            raise Mistake(f"{current} cannot be written ({str(error).splitlines()[0]}); {kept}") from error
        if current.exists():
            current.replace(previous)
        new.replace(current)

    def load_checkpoint(self, device: torch.device) -> dict[str, Any] | None:
        """The newest whole checkpoint, or None; metrics.jsonl is cut back to it."""
        metrics = self.folder / "metrics.jsonl"
        size = metrics.stat().st_size if metrics.exists() else 0
        state = None
        for name in ("checkpoint.pt", "checkpoint.previous.pt"):
            path = self.folder / name
            if not path.exists():
                continue
            try:
                found = torch.load(path, map_location=device, weights_only=True)
            except Exception as error:  # a file cut short fails in many ways, all of which mean: not this one
                print(f"{path} cannot be read ({str(error).splitlines()[0]}); going back to the one before", flush=True)
                continue
            if found["metrics_bytes"] <= size:
                state = found
                break
            print(f"{path} knows more than metrics.jsonl holds; going back to the one before", flush=True)
        if metrics.exists():
            os.truncate(metrics, state["metrics_bytes"] if state else 0)
        return state

    # --- run.json

    def write(self, status: str, **fields: Any) -> None:
        """Update run.json; written whole or not at all. What an earlier try failed of is no longer so."""
        self.info.pop("error", None)
        self.info.update(fields, status=status)
        temporary = self.folder / "run.json.tmp"
        temporary.write_text(json.dumps(self.info, indent=2, sort_keys=True, allow_nan=False) + "\n")
        temporary.replace(self.folder / "run.json")

    def finish(self, status: str, **fields: Any) -> None:
        """A done run keeps no checkpoints: what was learned is in metrics.jsonl, the chosen model in best.pt."""
        self.write(status, **fields)
        for name in ("checkpoint.pt", "checkpoint.previous.pt", "error.log"):
            (self.folder / name).unlink(missing_ok=True)

    def close(self) -> None:
        if self._metrics is not None:
            self._metrics.close()
            self._metrics = None
        if self._lock is not None:
            self._lock.close()
            self._lock = None


def provenance(device: torch.device) -> dict[str, Any]:
    """What a run was made with: commit, packages, machine. No path of the machine."""

    def git(*arguments: str) -> str:
        answer = subprocess.run(["git", *arguments], capture_output=True, text=True, check=False)
        return answer.stdout.strip()

    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    hardware = torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name()
    return {
        "commit": git("rev-parse", "HEAD") or None,
        # Results are written while runs go on; only changes to what makes them count.
        "dirty": bool(git("status", "--porcelain", "--", "ln", "experiments", "configs")),
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
