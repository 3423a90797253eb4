"""A run's folder in Weights & Biases, from its files alone.

Run as a program beside training (tracking.py starts it): one JSON line on standard input begins a run's folder, an
empty line ends it, the end of input ends the program. It imports nothing of ours, so that it starts without torch, and
gives way to training: whatever the network does, training never waits for it.
"""

import json
import os
import queue
import sys
import threading
from pathlib import Path
from typing import Any

PROJECT = "layer-normalization"
LOOK_SECONDS = 2.0  # how often a run being trained is looked at
INIT_SECONDS, FINISH_SECONDS = 30.0, 60.0  # patience with the network
UNFINISHED = ("failed", "interrupted", "running")


def quiet_wandb() -> Any:
    """The wandb package, which prints nothing; imported late, since it takes a second or two."""
    os.environ["WANDB_SILENT"] = "true"
    import wandb

    return wandb


class Mirrored:
    """One folder as one W&B run: `catch_up` logs what is new in metrics.jsonl, `finish` adds results and pictures."""

    def __init__(self, folder: Path, mode: str):
        wandb = quiet_wandb()
        self.folder, self.wandb = folder, wandb
        self.info = json.loads((folder / "run.json").read_text())
        self.read = 0  # bytes of metrics.jsonl that are logged
        self.defined: set[str] = set()
        identity, place = self.info["identity"], Place(folder)
        provenance = {key: self.info.get(key) for key in ("commit", "dirty", "packages", "hardware", "device", "data")}
        self.run = wandb.init(
            project=PROJECT,
            dir=str(place.top.resolve()),
            mode=mode,
            # Under a W&B agent the run has the agent's name. Else its own: sent again, it replaces what was there.
            id=os.environ.get("WANDB_RUN_ID") or place.id(self.info),
            name=place.name(identity),
            group=place.group(identity),
            job_type=identity["norm"]["name"],
            config={**identity, "provenance": provenance},
            settings=settings(wandb),
        )

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
        axes = ("step", "epoch", "seconds")
        curves = {key: value for key, value in values.items() if key not in axes}
        for key in curves.keys() - self.defined:
            self.run.define_metric(key, step_metric="step")
            self.run.define_metric(f"by_seconds/{key}", step_metric="seconds")
            self.defined.add(key)
        self.run.log({**values, **{f"by_seconds/{key}": value for key, value in curves.items()}})

    def finish(self) -> None:
        """Log the rest, the run's pictures and how it ended."""
        self.catch_up()
        info = json.loads((self.folder / "run.json").read_text())
        known = ("status", "backend", "best_step", "steps_per_second", "peak_memory_bytes", "diverged_at")
        self.run.summary.update({key: info[key] for key in known if key in info})
        log_pictures(self.wandb, self.run, self.folder)
        self.run.finish(exit_code=int(info["status"] in UNFINISHED))


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
        project=PROJECT,
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


def settings(wandb: Any) -> Any:
    return wandb.Settings(
        init_timeout=INIT_SECONDS,
        finish_timeout=FINISH_SECONDS,
        silent=True,
        console="off",
        disable_git=True,
        save_code=False,
        x_disable_stats=True,
        x_disable_meta=True,
    )


class Follower:
    """The folders of one training process, one after the other."""

    def __init__(self) -> None:
        self.offline = False  # once W&B could not be reached
        self.said: set[str] = set()
        self.current: Mirrored | None = None

    def begin(self, order: dict[str, str]) -> None:
        self.end()
        folder, mode = Path(order["folder"]), "offline" if self.offline else order["mode"]
        try:
            if "verdicts" in order:
                mirror_verdicts(folder, mode)
            else:
                self.current = Mirrored(folder, mode)
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
