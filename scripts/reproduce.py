"""`make reproduce-<experiment>`: run what its claims need, judge them, draw the figure."""

import argparse
import sys

from ln.suite.errors import Mistake, fail
from ln.suite.overrides import quoted
from ln.suite.runs import train
from ln.suite.sweeps.conclude import conclude_sweep
from ln.suite.sweeps.launch import usual_jobs
from ln.suite.sweeps.preflight import check_runs
from ln.suite.sweeps.wanted import cells, wanted
from scripts.sweep import given, parser, sweep


def one_by_one(arguments: argparse.Namespace) -> int:
    """The runs in this process, each with a progress bar, and conclude; the command's exit status."""
    chosen = wanted(arguments.group, arguments.profile, arguments.norms, arguments.seeds)
    where = [f"profile={arguments.profile}", f"results={quoted(arguments.results)}", *arguments.overrides]
    multiruns = [[*lists, *where] for lists in chosen.multiruns()]
    check_runs(multiruns)
    failed = False
    for lists in multiruns:
        sys.argv[1:] = ["-m", *lists]
        failed |= train.run()
    print(conclude_sweep(arguments.group, arguments.profile, arguments.results, arguments.overrides))
    until = next((o.partition("=")[2] for o in reversed(arguments.overrides) if o.startswith("until=")), None)
    unfinished = [cell for cell in cells(arguments.results, arguments.profile, chosen, until) if not cell.done]
    for cell in unfinished:
        print(f"not finished: {cell.folder} ({cell.status})", file=sys.stderr)
    return int(failed or bool(unfinished))


def main() -> None:
    command = parser(__doc__)
    command.add_argument("--jobs", type=int, help="runs at a time; by default as many as suit the profile and machine")
    try:
        arguments = given(command)
        jobs = usual_jobs(arguments.profile, arguments.overrides) if arguments.jobs is None else arguments.jobs
        sys.exit(one_by_one(arguments) if jobs == 1 else sweep(arguments, jobs))
    except Mistake as mistake:
        fail(mistake)


if __name__ == "__main__":
    main()
