"""A run's folder in Weights & Biases, from its files alone.

Run as a program beside training (tracking.py starts it): one JSON line on standard input begins a run's folder, an
empty line ends it, the end of input ends the program. It imports nothing of ours, so that it starts without torch, and
gives way to training: whatever the network does, training never waits for it.
"""

import contextlib
import io
import json
import os
import queue
import re
import subprocess
import sys
import tarfile
import tempfile
import threading
from pathlib import Path
from typing import Any

AXES = ("step", "epoch", "seconds")  # a curve is logged once and can be looked at against each of them
ROOT = Path(__file__).resolve().parents[3]
FILES = ("run.json", "config.yaml", "metrics.jsonl", "diff.patch")  # of a run's folder, beside its pictures
LOOK_SECONDS = 2.0  # how often a run being trained is looked at
INIT_SECONDS, FINISH_SECONDS = 30.0, 60.0  # patience with the network
UNFINISHED = ("failed", "interrupted", "running")


def quiet_wandb() -> Any:
    """The wandb package, which prints nothing; imported late, since it takes a second or two."""
    os.environ["WANDB_SILENT"] = "true"
    import wandb

    return wandb


def project() -> str:
    """$WANDB_PROJECT, or ours; $WANDB_ENTITY is W&B's own to read."""
    return os.environ.get("WANDB_PROJECT") or "layer-normalization"


class Mirrored:
    """One folder as one W&B run: `catch_up` logs what is new in metrics.jsonl, `finish` adds results, pictures and the
    folder itself. While the run is trained, `pid` is the process whose machine W&B watches when online."""

    def __init__(self, folder: Path, mode: str, pid: int | None = None):
        wandb = quiet_wandb()
        self.folder, self.wandb = folder, wandb
        self.info = json.loads((folder / "run.json").read_text())
        self.read = 0  # bytes of metrics.jsonl that are logged
        self.defined: set[str] = set()
        identity, place = self.info["identity"], Place(folder)
        experiment, norm, source = identity["experiment"], identity["norm"]["name"], identity["source"]
        self.select = identity["train"]["select"]
        provenance = {key: self.info.get(key) for key in ("commit", "dirty", "packages", "hardware", "device", "data")}
        self.run = wandb.init(
            project=project(),
            dir=str(place.top.resolve()),
            mode=mode,
            # Under a W&B agent the run has the agent's name. Else its own: sent again, it replaces what was there.
            id=os.environ.get("WANDB_RUN_ID") or place.id(self.info),
            name=place.name(identity),
            group=place.group(identity),
            job_type=norm,
            tags=[experiment, norm, identity["profile"], f"data {source['status']}"],
            config={**identity, "provenance": provenance},
            settings=settings(wandb, self.info.get("commit"), pid if mode == "online" else None),
        )
        for axis in AXES:
            self.run.define_metric(axis, hidden=True)
        use(self.run, dataset(wandb, source))
        code = code_of(wandb, self.info.get("commit"), place.top)
        if code is not None:
            self.run.log_artifact(code)

    def catch_up(self) -> None:
        """Log the whole lines of metrics.jsonl that were added since the last look."""
        path = self.folder / "metrics.jsonl"
        if not path.exists():
            return
        with path.open("rb") as file:
            file.seek(self.read)
            added = file.read()
        whole = added[: added.rfind(b"\n") + 1]
        self.read += len(whole)
        for line in whole.splitlines():
            self._log(json.loads(line))

    def _log(self, record: dict[str, Any]) -> None:
        values = {key: value for key, value in record.items() if value is not None}
        if values.pop("final", False):  # one value per run, and no point of a curve
            self.run.summary.update({f"final/{key}": value for key, value in values.items()})
            return
        for key in values.keys() - self.defined - {*AXES}:
            best = {"lower": "min,last", "higher": "max,last"}[self.select["direction"]]
            self.run.define_metric(key, step_metric="step", summary=best if key == self.select["metric"] else None)
            self.defined.add(key)
        self.run.log(values)

    def finish(self) -> None:
        """Log the rest, the run's pictures and how it ended."""
        self.catch_up()
        info = json.loads((self.folder / "run.json").read_text())
        known = ("status", "backend", "best_step", "steps_per_second", "peak_memory_bytes", "diverged_at")
        self.run.summary.update({key: info[key] for key in known if key in info})
        log_pictures(self.wandb, self.run, self.folder)
        if (self.folder / "diff.patch").exists():  # where W&B's page of a run looks for it
            self.run.save(str(self.folder / "diff.patch"), base_path=str(self.folder), policy="now")
        if info["status"] not in UNFINISHED:
            self.run.log_artifact(self._as_artifact(info))
        self.run.finish(exit_code=int(info["status"] in UNFINISHED))

    def _as_artifact(self, info: dict[str, Any]) -> Any:
        """The run's folder, with best.pt where $WANDB_LOG_MODEL asks for models; its files stay where they are."""
        artifact = self.wandb.Artifact(Place.id(info), "run", metadata={"status": info["status"], "hash": info["hash"]})
        asked = os.environ.get("WANDB_LOG_MODEL", "").lower() in ("end", "checkpoint", "true", "1")
        for path in sorted(self.folder.iterdir()):
            if path.name in FILES or path.suffix == ".png" or (asked and path.name == "best.pt"):
                artifact.add_file(str(path), policy="immutable", skip_cache=True)
        return artifact


def dataset(wandb: Any, source: dict[str, str]) -> Any:
    """The data that a run was trained on, by name and hash; equal data is one version, and nothing of it is sent."""
    artifact = wandb.Artifact(re.sub(r"[^\w.-]+", "-", source["name"]), "dataset", metadata=source)
    with artifact.new_file("source.json") as file:
        json.dump(source, file, indent=1, sort_keys=True)
    return artifact


def use(run: Any, artifact: Any) -> None:
    """As run.use_artifact(artifact), which refuses offline, where the same record can be written."""
    run._log_artifact(artifact, use_after_commit=True)


def code_of(wandb: Any, commit: str | None, top: Path) -> Any:
    """What made the run, as it was committed, whenever it is mirrored; None where git does not know the commit. It is
    unpacked once in W&B's folder, and the runs point to it there."""
    if commit is None:
        return None
    folder = top.resolve() / "wandb" / "code" / commit
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        wanted = ["git", "-C", str(ROOT), "archive", commit, "--", ".", ":(exclude)results", ":(exclude)tests"]
        packed = subprocess.run(wanted, capture_output=True, check=False)
        if packed.returncode != 0:
            return None
        with tempfile.TemporaryDirectory(dir=folder.parent) as place:
            with tarfile.open(fileobj=io.BytesIO(packed.stdout)) as archive:
                archive.extractall(f"{place}/code", filter="data")
            with contextlib.suppress(OSError):  # another mirror was first
                Path(place, "code").rename(folder)
    artifact = wandb.Artifact("code", "code", metadata={"commit": commit})
    artifact.add_dir(str(folder), policy="immutable", skip_cache=True)
    return artifact


class Place:
    """What a folder's path tells: `<top>/[sweeps/<sweep>/<value>/]<profile>/<experiment>/<norm>/<seed>`."""

    def __init__(self, folder: Path):
        root = folder.parents[3]
        in_sweep = len(root.parts) > 2 and root.parts[-3] == "sweeps"
        self.top = root.parents[2] if in_sweep else root
        self.sweep, self.value = (root.parts[-2], root.parts[-1]) if in_sweep else ("", "")

    def name(self, identity: dict[str, Any]) -> str:
        setting = f" {self.sweep} {self.value}" if self.sweep else ""
        return f"{identity['experiment']} {identity['norm']['name']}{setting} seed {identity['seed']}"

    def group(self, identity: dict[str, Any]) -> str:
        return f"{self.sweep or identity['experiment']}/{identity['profile']}"

    @staticmethod
    def id(info: dict[str, Any]) -> str:
        identity = info["identity"]
        return "-".join(map(str, (*(identity[key] for key in ("profile", "experiment")), identity["norm"]["name"],
                                  identity["seed"], info["hash"])))  # fmt: skip


def mirror_verdicts(folder: Path, mode: str) -> None:
    """`<top>/<profile>/<group>/`: the verdicts as a table and the figures, as a run of its own."""
    wandb = quiet_wandb()
    verdicts = json.loads((folder / "verdicts.json").read_text())
    group, profile = folder.name, folder.parent.name
    run = wandb.init(
        project=project(),
        dir=str(folder.parents[1].resolve()),
        mode=mode,
        id=verdicts_id(folder),
        name=f"{group} verdicts",
        group=f"{group}/{profile}",
        job_type="verdicts",
        settings=settings(wandb),
    )
    columns = [
        "claim",
        "sentence",
        "source",
        "published",
        "on_paper",
        "measured",
        "verdict",
        "reason",
        "data",
        "scale",
        "seeds",
    ]
    rows = [[str(verdict[column]) for column in columns] for verdict in verdicts]
    run.log({"verdicts": wandb.Table(columns=columns, data=rows)})
    log_pictures(wandb, run, folder)
    run.finish()


def verdicts_id(folder: Path) -> str:
    return f"{folder.parent.name}-{folder.name}-verdicts"


def log_pictures(wandb: Any, run: Any, folder: Path) -> None:
    pictures = {path.stem: wandb.Image(str(path)) for path in sorted(folder.glob("*.png"))}
    if pictures:
        run.log({f"pictures/{stem}": picture for stem, picture in pictures.items()})


def settings(wandb: Any, commit: str | None = None, pid: int | None = None) -> Any:
    """W&B's, with the commit of the files in place of today's, and the machine watched only for a process `pid`."""
    return wandb.Settings(
        init_timeout=INIT_SECONDS,
        finish_timeout=FINISH_SECONDS,
        silent=True,
        console="off",
        disable_git=commit is None,
        git_commit=commit,
        save_code=False,
        x_disable_stats=pid is None,
        x_stats_pid=pid or os.getpid(),
        x_disable_meta=True,
    )


class Follower:
    """The folders of one training process, one after the other."""

    def __init__(self) -> None:
        self.offline = False  # once W&B could not be reached
        self.said: set[str] = set()
        self.current: Mirrored | None = None

    def begin(self, order: dict[str, Any]) -> None:
        self.end()
        folder, mode = Path(order["folder"]), "offline" if self.offline else order["mode"]
        try:
            if "verdicts" in order:
                mirror_verdicts(folder, mode)
            else:
                self.current = Mirrored(folder, mode, order.get("pid"))
        except Exception as error:
            if mode == "offline":
                self.say(f"W&B has no copy of {folder} ({first_line(error)}); the run goes on, its files are complete")
                return
            self.offline = True
            quiet_wandb().teardown()  # else the name of the run that failed stays taken
            self.say(f"W&B cannot be reached ({first_line(error)}); going on offline, `make wandb-sync` uploads later")
            self.begin(order)

    def look(self) -> None:
        if self.current is not None:
            self._try(self.current.catch_up)

    def end(self) -> None:
        if self.current is not None:
            self._try(self.current.finish)
        self.current = None

    def _try(self, action: Any) -> None:
        assert self.current is not None
        try:
            action()
        except Exception as error:
            self.say(f"W&B has no whole copy of {self.current.folder} ({first_line(error)}); its files are complete")
            self.current = None

    def say(self, sentence: str) -> None:
        if sentence not in self.said:
            self.said.add(sentence)
            print(sentence, file=sys.stderr, flush=True)


def first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0]}" if str(error) else type(error).__name__


def main() -> None:
    os.nice(19)  # training goes first
    lines: queue.Queue[str | None] = queue.Queue()

    def listen() -> None:
        for line in sys.stdin:
            lines.put(line)
        lines.put(None)

    threading.Thread(target=listen, daemon=True).start()
    follower = Follower()
    while True:
        try:
            line = lines.get(timeout=LOOK_SECONDS)
        except queue.Empty:
            follower.look()
            continue
        if line is None:
            break
        if line.strip():
            follower.begin(json.loads(line))
        else:
            follower.end()
    follower.end()


if __name__ == "__main__":
    main()
