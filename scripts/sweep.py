"""`make sweep-<experiment>`: run every cell, several at a time, then judge; `make sweep-learning-rate`: a setting."""

import argparse
import sys

from ln.config import Mistake, fail
from ln.sweep import launcher_arguments, notes_for, run_cells, stop_requests
from ln.sweep_plan import plan
from ln.sweep_results import closing_lines, conclude_sweep
from ln.sweep_table import watched


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("group", help="an experiment with claims, such as mnist, or a grid of configs/sweep/")
    parser.add_argument("--profile", default="laptop")
    parser.add_argument("--norms", help="comma list; the claims' own by default")
    parser.add_argument("--seeds", help="comma list; the claims' own by default")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--launcher", default="local", help="a file of configs/hydra/launcher/")
    parser.add_argument("--results", default="results")
    parser.add_argument("overrides", nargs="*", help="Hydra overrides, such as train.epochs=3 device=cuda")
    arguments = parser.parse_intermixed_args()
    try:
        swept = plan(arguments.group, arguments.profile, arguments.results, arguments.norms, arguments.seeds)
        launcher = launcher_arguments(arguments.launcher, arguments.jobs, arguments.overrides)
        with notes_for(arguments.results) as notes:
            with stop_requests(notes, swept.cells), watched(swept.cells, notes, arguments.jobs):
                run_cells(swept, [*launcher, *arguments.overrides], notes)
            stopped, (lines, failed) = notes.stopping, closing_lines(swept.cells, notes)
        print(conclude_sweep(arguments.group, arguments.profile, arguments.results, arguments.overrides))
    except Mistake as mistake:
        fail(mistake)
    print("\n".join(lines), file=sys.stderr)
    sys.exit(130 if stopped else int(failed))


if __name__ == "__main__":
    main()
