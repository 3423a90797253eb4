"""The pictures of a complete run: drawn at its end, and again from the weights it kept where one is missing or torn.

A run is done without them, so that one cannot be drawn is a warning.
"""

import hashlib
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ln.suite.errors import one_sentence
from ln.suite.runs.checkpoint import load_whole
from ln.suite.runs.folder import Run
from ln.suite.runs.read import COMPLETE
from ln.suite.task import Task, evaluation, stream_seed


def draw(run: Run, task: Task) -> None:
    """Draw what the model shows, into the run's folder, and note the pictures in run.json."""
    try:
        with _emptied(run.folder / ".pictures") as folder:
            with evaluation(task, stream_seed(run.recipe.seed, "draw")):
                task.draw(folder)
            drawn = {path.name: _sha256(path) for path in sorted(folder.iterdir())}
            for name in drawn:
                (folder / name).replace(run.folder / name)
        run.write(run.info["status"], pictures=drawn)
    except Exception as error:
        _warn(f"{run.folder} is complete, but its pictures cannot be drawn ({one_sentence(error)})")


def draw_again(run: Run, task: Callable[[], Task]) -> None:
    """Draw them from best.pt where that is there and a picture is not as it was; `task` makes the untrained task."""
    if run.info["status"] != COMPLETE or not run.held or not (run.folder / "best.pt").exists():
        return
    drawn = run.info.get("pictures")  # of an older run, or one that was stopped before, nothing is known
    if drawn is not None and all(_sha256(run.folder / name) == sha256 for name, sha256 in drawn.items()):
        return
    print(f"{run.folder}: drawing its pictures from best.pt", flush=True)
    try:
        made = task()
        made.model.load_state_dict(load_whole(run.folder / "best.pt", made.device))
    except Exception as error:
        _warn(f"the pictures of {run.folder} cannot be drawn again ({one_sentence(error)})")
        return
    draw(run, made)


@contextmanager
def _emptied(folder: Path) -> Iterator[Path]:
    """A folder beside the old pictures, so that each is replaced by a whole one."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _sha256(path: Path) -> str | None:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None


def _warn(sentence: str) -> None:
    print(f"warning: {sentence}", file=sys.stderr, flush=True)
