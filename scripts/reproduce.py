"""`make reproduce-<experiment>`: run what its claims need, judge them, draw the figure. Where published runs are, they
are judged as they are, unless particular norms, seeds or settings are asked for."""

import sys

from ln.suite.errors import Mistake, fail
from ln.suite.sweeps.launch import usual_jobs
from scripts.sweep import given, parser, sweep


def main() -> None:
    command = parser(__doc__)
    command.add_argument("--jobs", type=int, help="runs at a time; by default as many as suit the profile and machine")
    try:
        arguments = given(command)
        jobs = usual_jobs(arguments.profile, arguments.overrides) if arguments.jobs is None else arguments.jobs
        particular = any([arguments.norms, arguments.seeds, arguments.overrides])
        sys.exit(sweep(arguments, jobs, table=jobs > 1, add=particular))
    except Mistake as mistake:
        fail(mistake)


if __name__ == "__main__":
    main()
