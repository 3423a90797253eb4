"""The mirror of a run's files in Weights & Biases, kept by a process beside this one (ln/suite/runs/mirror.py).

The files are the truth; W&B is derived from them and can be rebuilt. This process only writes a line to a pipe when a
run begins and ends, so a slow, hung or missing network, or a W&B that fails, cannot slow or fail a run.
"""

import atexit
import json
import netrc
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ln.suite.config import TRACKING, unknown
from ln.suite.errors import Mistake
from ln.suite.files import write_text
from ln.suite.runs import mirror
from ln.suite.runs.folder import DONE, Run
from ln.suite.runs.read import PARTIAL, run_info, say_once

OUR_QUERY = re.compile(r"\^\([\w|]*\)\$")  # of leet's metrics, as written here
SAME_MODE = {"run": "online", "shared": "online", "dryrun": "offline"}  # W&B's other words in $WANDB_MODE
LEAVE_SHARE = 0.01  # of the time that training took: how long the command waits for W&B at its end


def mode_of(request: str) -> str:
    """`auto` is what $WANDB_MODE says, else online where an API key is set, else offline.

    Raises:
        Mistake: $WANDB_MODE is no mode of W&B's.
    """
    if request != "auto":
        return request
    said = os.environ.get("WANDB_MODE", "").strip().lower()
    if not said:
        return "online" if has_key() else "offline"
    modes = TRACKING[1:]
    if SAME_MODE.get(said, said) not in modes:
        raise unknown("WANDB_MODE", said, "a mode of W&B's", modes)
    return SAME_MODE.get(said, said)


def has_key() -> bool:
    """Whether W&B can log in: an API key in the environment, or in the netrc file for the host of $WANDB_BASE_URL."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL") or "https://api.wandb.ai").hostname
    given = os.environ.get("NETRC")
    files = [given] if given else ["~/.netrc", "~/_netrc"]
    for path in map(os.path.expanduser, files):
        try:
            if host and netrc.netrc(path).authenticators(host) is not None:
                return True
        except (OSError, netrc.NetrcParseError, UnicodeDecodeError):
            continue
    return False


class Mirror:
    """The process that mirrors this process's runs, started with the first of them."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[str] | None = None
        self.started = 0.0

    def tell(self, order: dict[str, Any] | None) -> None:
        """Begin a folder, or end the one that was begun (None)."""
        if self.process is None:
            self._start()
        assert self.process is not None
        assert self.process.stdin is not None
        try:
            self.process.stdin.write((json.dumps(order) if order else "") + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:  # it ended and has said why; the files are there
            return

    def _start(self) -> None:
        self.started = time.monotonic()
        self.process = subprocess.Popen(
            # By path and without its folder on sys.path: as a module it would import this package, and so torch.
            [sys.executable, "-P", str(Path(__file__).with_name("mirror.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
            start_new_session=True,  # Ctrl-C is for the training; the mirror then writes down how it ended
        )
        atexit.register(self.leave)

    def leave(self) -> None:
        """End it, and wait for it no longer than a hundredth of the time that training took; it ends by itself."""
        assert self.process is not None
        assert self.process.stdin is not None
        try:
            self.process.stdin.close()
            self.process.wait(LEAVE_SHARE * (time.monotonic() - self.started))
        except (BrokenPipeError, subprocess.TimeoutExpired):
            self.process.returncode = 0  # not ours to wait for any longer


_beside = Mirror()


def begin(run: Run) -> None:
    """Mirror a run's folder in W&B from here to `end`, unless its recipe disables it."""
    mode = mode_of(run.recipe.tracking)
    if mode != "disabled":
        _beside.tell({"folder": str(run.folder), "mode": mode, "pid": os.getpid()})


def begin_done(run: Run) -> None:
    """A done run is mirrored again only where a W&B agent asked for it and waits for its numbers."""
    if "WANDB_SWEEP_ID" in os.environ:
        begin(run)


def end() -> None:
    """The run that was begun, if any, has written its last file."""
    if _beside.process is not None:
        _beside.tell(None)


def mirror_verdicts(folder: Path, overrides: list[str]) -> None:
    """Put a folder's verdicts.json and figures into W&B as a run of their own, as the runs' `tracking=` asks."""
    mode = mode_of(next((o.partition("=")[2] for o in overrides if o.startswith("tracking=")), "auto"))
    if mode != "disabled":
        _beside.tell({"folder": str(folder), "mode": mode, "verdicts": True})


def unmirrored(results: str | Path, *, everything: bool) -> list[dict[str, Any]]:
    """The done and partial runs and the verdicts under a results folder, as orders for `rebuild`: all, or those without
    a copy here."""
    orders: list[dict[str, Any]] = []
    for path in sorted(Path(results).rglob("run.json")):
        info = run_info(path.parent)
        if info is None or info["status"] not in (*DONE, PARTIAL):
            continue
        try:
            name = mirror.Place.id(info)
        except (KeyError, TypeError):
            say_once(f"{path} does not tell whose run it is; it is passed over")
            continue
        if everything or not has_copy(results, name):
            orders.append({"folder": str(path.parent)})
    for path in sorted(Path(results).glob("*/*/verdicts.json")):
        if everything or not has_copy(results, mirror.verdicts_id(path.parent)):
            orders.append({"folder": str(path.parent), "verdicts": True})
    return orders


def has_copy(results: str | Path, name: str) -> bool:
    """Whether W&B's folder under a results folder has a run of this id."""
    return any(Path(results, "wandb").glob(f"*run-*-{name}"))


def open_leet(results: str | Path) -> None:
    """Have `wandb leet` open a results folder on the newest experiment's runs and on what validation chooses by, unless
    its user looks for other metrics there."""
    place = Path(results, "wandb")
    path = place / ".wandb-leet.json"
    try:
        state = json.loads(path.read_text())
        query = state.get("metrics_filter", {}).get("query", "")
    except (OSError, ValueError, AttributeError):
        state, query = {}, ""
    copies: dict[str, dict[str, Any]] = {}  # by the name of their folder
    for info in (run_info(file.parent) for file in sorted(Path(results).rglob("run.json"))):
        if info and "identity" in info:
            copies |= {copy.name: info for copy in sorted(place.glob(f"*run-*-{mirror.Place.id(info)}"))[-1:]}
    if not copies or (query and not OUR_QUERY.fullmatch(query)):
        return
    identities = {name: info["identity"] for name, info in copies.items()}
    chosen = sorted({identity["train"]["select"]["metric"] for identity in identities.values()})
    state["metrics_filter"] = {"query": f"^({'|'.join(chosen)})$"}
    if "selected_runs" not in state:
        newest = identities[max(copies, key=lambda name: copies[name].get("started", ""))]
        alike = {name for name, i in identities.items() if all(i[k] == newest[k] for k in ("experiment", "profile"))}
        latest = max(place.glob("*run-*-*"), key=lambda copy: copy.name.partition("run-")[2]).name
        state |= {"selected_runs": sorted(alike), "pinned_run": min(alike), "latest_run": latest}
    write_text(path, json.dumps(state))


def rebuild(order: dict[str, Any], mode: str) -> None:
    """Make a folder's copy in W&B from its files.

    Raises:
        Mistake: W&B refused it or cannot be reached.
    """
    folder = Path(order["folder"])
    try:
        if "verdicts" in order:
            mirror.mirror_verdicts(folder, mode)
        else:
            mirror.Mirrored(folder, mode).finish()
    except Exception as error:  # whatever W&B and the network come up with
        raise Mistake(f"{folder} is not in W&B: {mirror.first_line(error)}") from error


def entity() -> str:
    """Whose workspaces and reports: $WANDB_ENTITY, or the default of the account that the key belongs to.

    Raises:
        Mistake: there is no key, or W&B cannot be reached.
    """
    if not has_key():
        raise Mistake("no W&B key is set; set WANDB_API_KEY or run `wandb login`, or see the JSON with --dry-run")
    if owner := os.environ.get("WANDB_ENTITY"):
        return owner
    import wandb

    try:
        default = wandb.Api(timeout=int(mirror.INIT_SECONDS)).default_entity
    except Exception as error:
        raise Mistake(f"W&B cannot be reached: {mirror.first_line(error)}") from error
    if default is None:
        raise Mistake("this W&B account has no default entity; set WANDB_ENTITY to the one that is to own the pages")
    return default
