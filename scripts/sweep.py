"""`make sweep-<experiment>`: run every cell, several at a time, then judge; `make sweep-learning-rate`: a setting."""

import argparse
import sys

from ln.suite.errors import Mistake, fail
from ln.suite.overrides import check_overrides, words
from ln.suite.sweeps.cells import Definition, definitions, plan
from ln.suite.sweeps.conclude import closing_lines, conclude_sweep
from ln.suite.sweeps.launch import launcher_arguments, notes_for, run_cells, stop_requests
from ln.suite.sweeps.preflight import check_runs
from ln.suite.sweeps.table import watched


def parser(description: str | None) -> argparse.ArgumentParser:
    """What a command that runs experiments takes."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("group", help="an experiment with claims, such as mnist, or a grid of configs/sweep/")
    parser.add_argument("--profile", default="laptop")
    parser.add_argument("--norms", help="comma list; the claims' own by default")
    parser.add_argument("--seeds", help="comma list; the claims' own by default")
    parser.add_argument("--results", default="results")
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


def sweep(arguments: argparse.Namespace, jobs: int, launcher: str = "local") -> int:
    """Carry out what the arguments ask for, `jobs` runs at a time, and conclude; the command's exit status."""
    swept = plan(arguments.group, arguments.profile, arguments.results, arguments.norms, arguments.seeds)
    check_runs([[*lists, *arguments.overrides] for lists in swept.multiruns], here=launcher == "local")
    chosen = launcher_arguments(launcher, jobs, arguments.overrides)
    with notes_for(arguments.results) as notes:
        with stop_requests(notes, swept.cells), watched(swept.cells, notes, jobs):
            run_cells(swept, [*chosen, *arguments.overrides], notes)
        stopped, (lines, failed) = notes.stopping, closing_lines(swept.cells, notes)
    print(conclude_sweep(arguments.group, arguments.profile, arguments.results, arguments.overrides))
    print("\n".join(lines), file=sys.stderr)
    return 130 if stopped else int(failed)


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
