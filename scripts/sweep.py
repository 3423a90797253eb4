"""`make sweep-<experiment>`: run every cell, several at a time, then judge; `make sweep-learning-rate`: a setting."""

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path

from ln.suite.config import Recipe, names
from ln.suite.errors import Mistake, fail, results_folder
from ln.suite.overrides import check_overrides, words
from ln.suite.runs.folder import INTERRUPTED
from ln.suite.showing.onward import onward
from ln.suite.sweeps.cells import Definition, SweepCell, definitions, plan
from ln.suite.sweeps.conclude import closing_lines, conclude_sweep
from ln.suite.sweeps.launch import Outcome, launcher_arguments, notes_for, run_cells, run_in_turn, stop_requests
from ln.suite.sweeps.preflight import check_runs, recipes_of
from ln.suite.sweeps.published import in_words, published
from ln.suite.sweeps.table import watched
from ln.suite.sweeps.wanted import cells, wanted


def parser(description: str | None) -> argparse.ArgumentParser:
    """What a command that runs experiments takes."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("group", help="an experiment with claims, such as mnist, or a grid of configs/sweep/")
    parser.add_argument("--profile", default="laptop")
    parser.add_argument("--norms", help="comma list; the claims' own by default")
    parser.add_argument("--seeds", help="comma list; the claims' own by default")
    parser.add_argument("--results", default="results", type=results_folder)
    parser.add_argument("overrides", nargs="*", help="Hydra overrides, such as train.epochs=3 device=cuda")
    parser.add_argument("--overrides", dest="more", default="", help="the same, as one text of words")
    return parser


def given(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """The command line, with all overrides in one list.

    Raises:
        Mistake: an override that cannot be read, or that asks for other cells than the command does.
    """
    arguments = parser.parse_intermixed_args()
    arguments.overrides += words(arguments.more)
    group = arguments.group
    setting = Definition.load(group).setting if group in definitions() else None
    varied = {setting: f"it is what make sweep-{group.replace('_', '-')} varies"} if setting else {}
    check_overrides(arguments.overrides, varied)
    return arguments


def sweep(
    arguments: argparse.Namespace, jobs: int, launcher: str = "local", *, table: bool = True, add: bool = True
) -> int:
    """Carry out what the arguments ask for, `jobs` runs at a time, and conclude; the command's exit status.

    table: show the sweep as a whole, each run writing to its own log; else one run after the other, here.
    add: carry out what the published runs lack of what is asked for; else they are judged as they are.
    """
    group, profile, results, overrides = arguments.group, arguments.profile, arguments.results, arguments.overrides
    swept = plan(group, profile, results, arguments.norms, arguments.seeds)
    multiruns = [[*lists, *overrides] for lists in swept.multiruns]
    recipes = recipes_of(multiruns)
    chosen = launcher_arguments(launcher, jobs, overrides)
    ready = there_already(arguments, recipes, add) if group in names("claims") else {}
    published_cells = [cell for cell in swept.cells if cell.folder in ready]
    if published_cells == swept.cells or (ready and not add):
        return concluded(arguments, published_cells, ready, stopped=False, trained=False)
    check_runs(multiruns, here=launcher == "local")
    if not table and group in names("claims"):
        outcomes = run_in_turn(swept.cells, recipes, ready)
        stopped = any(outcome.status == INTERRUPTED for outcome in outcomes.values())
    else:
        with notes_for(results) as notes:
            for folder, outcome in ready.items():
                notes.end(folder, outcome)
            with stop_requests(notes, swept.cells), watched(swept.cells, notes, jobs):
                run_cells(swept, [*chosen, *overrides], notes)
            outcomes, stopped = notes.outcomes(swept.cells), notes.stopping
    return concluded(arguments, swept.cells, outcomes, stopped)


def concluded(
    arguments: argparse.Namespace,
    cells: list[SweepCell],
    outcomes: Mapping[Path, Outcome],
    stopped: bool,
    trained: bool = True,
) -> int:
    """Judge and draw what there is and say what is not; the command's exit status."""
    lines, failed = closing_lines(cells, outcomes)
    print(conclude_sweep(arguments.group, arguments.profile, arguments.results, arguments.overrides))
    print("".join(f"{line}\n" for line in lines), end="", file=sys.stderr)
    if not (stopped or failed):
        elsewhere = arguments.results != "results" and arguments.group in names("claims")
        after = "published" if not trained else "reproduced elsewhere" if elsewhere else "reproduced"
        print(onward(after, arguments.group, arguments.profile, arguments.results))
    return 130 if stopped else int(failed)


def there_already(arguments: argparse.Namespace, recipes: list[Recipe], add: bool) -> dict[Path, Outcome]:
    """The published runs among those that are asked for, which is said, as nothing is trained for them."""
    until = next((o.partition("=")[2] for o in reversed(arguments.overrides) if o.startswith("until=")), None)
    chosen = wanted(arguments.group, arguments.profile, arguments.norms, arguments.seeds)
    found = cells(arguments.results, arguments.profile, chosen, until)
    ready = published(found, recipes, arguments.results)
    if ready:
        print(in_words(len(ready), len(found), arguments.group, arguments.profile, add), flush=True)
    return {cell.folder: Outcome(cell.status) for cell in ready}


def main() -> None:
    command = parser(__doc__)
    command.add_argument("--jobs", type=int, default=1, help="runs at a time")
    command.add_argument("--launcher", default="local", help="a file of configs/hydra/launcher/")
    try:
        arguments = given(command)
        sys.exit(sweep(arguments, arguments.jobs, arguments.launcher))
    except Mistake as mistake:
        fail(mistake)


if __name__ == "__main__":
    main()
