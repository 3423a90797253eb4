"""A sweep as one looks at it: a table redrawn in place on a terminal, a line per event elsewhere. Reads files only."""

import shutil
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TextIO

from ln.suite.runs.folder import DONE, FAILED, INTERRUPTED, RUNNING
from ln.suite.runs.read import COMPLETE, DIVERGED, PARTIAL, read_metrics, run_info
from ln.suite.showing.text import duration
from ln.suite.sweeps.cells import SweepCell
from ln.suite.sweeps.launch import BUSY, Notes

LOOK_SECONDS = 1.0
WAITING = "waiting"
MARKS = {
    COMPLETE: "✓",
    DIVERGED: "∞",
    FAILED: "✗",
    BUSY: "busy",
    INTERRUPTED: "stopped",
    WAITING: "·",
    RUNNING: "▶",
    PARTIAL: "◑",
}
COLOURS = {COMPLETE: "32", DIVERGED: "33", FAILED: "31", BUSY: "33", INTERRUPTED: "33", WAITING: "2", RUNNING: "36",
           PARTIAL: "32"}  # fmt: skip


@dataclass(frozen=True)
class State:
    """A cell as its files and the sweep's notes tell it."""

    cell: SweepCell
    status: str
    metric: str = ""
    best: float | None = None
    speed: float | None = None  # steps per second
    share: float = 0.0  # of the steps it is to take
    seconds: float = 0.0  # trained so far

    @property
    def whole(self) -> float | None:
        """Seconds of the whole run, measured or expected."""
        return self.seconds / self.share if self.share else None


def look(cell: SweepCell, notes: Notes) -> State:
    outcome, begun = notes.outcome(cell.folder), notes.begun(cell.folder)
    info = run_info(cell.folder) or {}
    if outcome is not None:
        status = outcome.status
    elif begun is not None:
        status = RUNNING
    else:
        status = info["status"] if info.get("status") in DONE else WAITING
    select = info.get("identity", {}).get("train", {}).get("select")
    if select is None or status in (WAITING, BUSY):
        return State(cell, status)
    if status == COMPLETE and "final" in info:
        best = info["final"].get(select["metric"])
        return State(cell, status, select["metric"], best, info.get("steps_per_second"), 1.0, info.get("seconds", 0.0))
    # A line being written at this moment is no damage.
    records = read_metrics(cell.folder / "metrics.jsonl", warn=lambda sentence: None)
    values = [r[select["metric"]] for r in records if r.get(select["metric"]) is not None]
    best = (min if select["direction"] == "lower" else max)(values) if values else None
    if not records:
        return State(cell, status, select["metric"])
    step, seconds = records[-1]["step"], records[-1].get("seconds", 0.0)
    wanted = info.get("stop_step", info.get("last_step", step))
    share = 1.0 if status in (DIVERGED, PARTIAL) else min(1.0, step / wanted)
    return State(cell, status, select["metric"], best, step / seconds if seconds else None, share, seconds)


def seconds_left(states: list[State], jobs: int) -> float | None:
    """What is left of the whole sweep with `jobs` runs at a time; None while nothing tells how long a run takes."""
    known: dict[str, list[float]] = {}
    for state in states:
        if state.whole:
            known.setdefault(state.cell.row, []).append(state.whole)
    every = [seconds for row in known.values() for seconds in row]
    if not every:
        return None
    left = []
    for state in states:
        if state.status in (WAITING, RUNNING):
            like = known.get(state.cell.row, every)
            left.append((state.whole or sum(like) / len(like)) - state.seconds)
    return max([sum(left) / jobs, *left])


def summary(states: list[State], jobs: int) -> str:
    counts = Counter(state.status for state in states)
    parts = [f"{counts.pop(COMPLETE, 0)} of {len(states)} complete"]
    others = (RUNNING, WAITING, PARTIAL, DIVERGED, FAILED, BUSY, INTERRUPTED)
    parts += [f"{counts[status]} {status}" for status in others if counts[status]]
    speeds = [state.speed for state in states if state.status == RUNNING and state.speed]
    if speeds:
        parts.append(f"{sum(speeds):.3g} steps/s")
    if counts[WAITING] or counts[RUNNING]:
        left = seconds_left(states, jobs)
        parts.append("time left unknown" if left is None else f"about {duration(left)} left")
    return ", ".join(parts)


def table(states: list[State], jobs: int, colour: bool, size: tuple[int, int]) -> list[str]:
    """Rows of experiment and norm, a column per seed, the summary last; at most `size` (columns, lines)."""
    columns, height = size
    rows: dict[str, list[State]] = {}
    for state in states:
        rows.setdefault(state.cell.row, []).append(state)
    # Where the rows are too many for the screen, those at work and those that failed are what one looks for.
    shown = list(rows)
    if len(shown) > height - 3:
        busy = [row for row in rows if any(state.status in (RUNNING, FAILED) for state in rows[row])]
        shown = busy[: height - 3]
    width = max((len(row) for row in rows), default=0)
    metric = next((state.metric for state in states if state.metric), "")
    lines = [f"{'':{width}}  " + "".join(f"{f'seed {state.cell.seed}':<12}" for state in next(iter(rows.values())))]
    for row in shown:
        line, used = f"{row:{width}}  ", width + 2
        for state in rows[row]:
            if used + 12 > columns:
                break
            text = f"{_text(state):<12}"
            line += f"\033[{COLOURS[state.status]}m{text}\033[0m" if colour else text
            used += 12
        lines.append(line)
    hidden = f" ({len(rows) - len(shown)} rows not shown)" if len(shown) < len(rows) else ""
    lines[0] = lines[0][:columns]
    return [*lines, (f"{metric}: " if metric else "") + summary(states, jobs) + hidden]


def _text(state: State) -> str:
    mark = MARKS[state.status]
    best = "" if state.best is None else f" {state.best:.4g}"
    return f"{mark} {state.share:.0%}{best}" if state.status == RUNNING else mark + best


class Watch:
    """Looks at the cells while they run, from a thread."""

    def __init__(self, cells: list[SweepCell], notes: Notes, jobs: int, out: TextIO):
        self.cells, self.notes, self.jobs, self.out = cells, notes, jobs, out
        self.drawn = 0  # lines of the table on the screen
        self.told: dict[SweepCell, str] = {}
        self.over = threading.Event()

    def look(self) -> None:
        states = [look(cell, self.notes) for cell in self.cells]
        if self.out.isatty():
            self.redraw(states)
        else:
            self.tell(states)

    def redraw(self, states: list[State]) -> None:
        size = shutil.get_terminal_size()
        lines = table(states, self.jobs, True, (size.columns, size.lines))
        up = f"\033[{self.drawn}F" if self.drawn else ""
        self.out.write(up + "\033[J" + "".join(f"{line}\n" for line in lines))
        self.out.flush()
        self.drawn = len(lines)

    def tell(self, states: list[State]) -> None:
        """A line for every cell whose status is another than at the last look."""
        first = not self.told
        for state in states:
            before = self.told.get(state.cell)
            self.told[state.cell] = state.status
            if state.status in (before, WAITING) or (first and state.status in DONE):
                continue
            best = "" if state.best is None else f", {state.metric} {state.best:.4g}"
            speed = "" if state.speed is None else f", {state.speed:.3g} steps/s"
            self.out.write(
                f"{time.strftime('%H:%M:%S')} {state.cell.row} seed {state.cell.seed}: {state.status}{best}{speed} "
                f"({summary(states, self.jobs)})\n"
            )
        self.out.flush()

    def _watch(self) -> None:
        while not self.over.wait(LOOK_SECONDS):
            self.look()


@contextmanager
def watched(cells: list[SweepCell], notes: Notes, jobs: int) -> Iterator[None]:
    """Show the cells while the block runs, and once more at its end."""
    watch = Watch(cells, notes, jobs, sys.stdout)
    thread = threading.Thread(target=watch._watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        watch.over.set()
        thread.join()
        watch.look()
