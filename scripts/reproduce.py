"""`make reproduce-<experiment>`: run what its claims need, judge them, draw the figure."""

import argparse
import sys
from pathlib import Path

from ln import train
from ln.config import Mistake, fail
from ln.plan import cells, wanted
from ln.report import conclude, terminal_table
from ln.tracking import mirror_verdicts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("group", help="an experiment with claims, such as mnist")
    parser.add_argument("--profile", default="laptop")
    parser.add_argument("--norms", help="comma list; the claims' own by default")
    parser.add_argument("--seeds", help="comma list; the claims' own by default")
    parser.add_argument("--results", default="results")
    parser.add_argument("overrides", nargs="*", help="Hydra overrides, such as train.epochs=3 device=cuda")
    arguments = parser.parse_intermixed_args()
    try:
        chosen = wanted(arguments.group, arguments.profile, arguments.norms, arguments.seeds)
        lists = {key[:-1]: ",".join(map(str, values)) for key, values in chosen.items()}
        sys.argv[1:] = [
            "-m",
            *(f"{key}={values}" for key, values in lists.items()),
            f"profile={arguments.profile}",
            f"results={arguments.results}",
            *arguments.overrides,
        ]
        failed = train.run()
        verdicts, figure = conclude(arguments.group, arguments.profile, arguments.results)
        if figure is not None:
            mirror_verdicts(Path(arguments.results) / arguments.profile / arguments.group, arguments.overrides)
    except Mistake as mistake:
        fail(mistake)
    print(f"\n{terminal_table(verdicts)}\n\nfigure: {figure or 'none, no run is finished'}")
    unfinished = [cell for cell in cells(arguments.results, arguments.profile, chosen) if not cell.done]
    for cell in unfinished:
        print(f"not finished: {cell.folder} ({cell.status})", file=sys.stderr)
    sys.exit(1 if failed or unfinished else 0)


if __name__ == "__main__":
    main()
