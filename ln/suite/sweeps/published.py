"""The runs that came with the code: committed, so that a fresh clone has them and trains nothing to see a verdict."""

import subprocess
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from ln.suite.config import Recipe, identity_hash
from ln.suite.runs.folder import DONE
from ln.suite.runs.read import run_info
from ln.suite.sweeps.wanted import Cell


def published(cells: Iterable[Cell], recipes: Iterable[Recipe], results: str) -> list[Cell]:
    """Of the cells those that are done, committed as they are, and runs of just these recipes. With `data=auto` it does
    not matter which data are found here: the runs tell theirs."""
    by_name = {(recipe.experiment, recipe.norm.name): recipe for recipe in recipes}
    committed = _listed(results) - _listed(results, "--modified")
    return [
        cell
        for cell in cells
        if (cell.folder / "run.json").resolve() in committed
        and (recipe := by_name.get((cell.experiment, cell.norm))) is not None
        and _is_of(cell.folder, replace(recipe, seed=cell.seed))
    ]


def _listed(results: str, *more: str) -> set[Path]:
    """What git keeps under the results; nothing where there is no git, or where they lie elsewhere."""
    command = ["git", "--literal-pathspecs", "ls-files", "-z", *more, "--", results]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return set()
    return {Path(name).resolve() for name in answer.stdout.split("\0") if name.endswith("/run.json")}


def _is_of(folder: Path, recipe: Recipe) -> bool:
    info = run_info(folder)
    if info is None or info["status"] not in DONE:
        return False
    source = info["identity"]["source"]
    return info["hash"] == identity_hash(recipe, source) and recipe.data in ("auto", source["status"])


def in_words(found: int, of: int, group: str, profile: str, add: bool = True) -> str:
    """`24 of 24 runs are published ones; make reproduce-mnist RESULTS=mine trains your own`."""
    more = "" if profile == "laptop" else f" PROFILE={profile}"
    name = group.replace("_", "-")
    rest = (
        f", {of - found} to be carried out" if add else f", and `make sweep-{name}{more}` adds the other {of - found}"
    )
    return (
        f"{found} of {of} runs are published ones{rest if found < of else ''}; "
        f"`make reproduce-{name}{more} RESULTS=mine` trains your own"
    )
