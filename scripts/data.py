"""`make data`: which data each experiment finds here, and where the rest is to be had. `make data-<experiment>`:
fetch and prepare what may be fetched (DATA=substitute: what stands in for the original, though that may be had)."""

import argparse

from ln.suite.config import CONFIGS
from ln.suite.errors import Mistake, fail, results_folder
from ln.suite.showing.onward import onward
from ln.suite.sweeps.data import fetch, table


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("group", nargs="?", help="an experiment with claims; without one, the table of all")
    parser.add_argument("--data", default="auto", choices=("auto", "original", "substitute"))
    parser.add_argument("--results", default="results", type=results_folder)
    given = parser.parse_args(arguments)
    try:
        if given.group:
            fetch(given.group, given.data)
            print(onward("fetched", given.group))
        else:
            groups = sorted(path.stem for path in (CONFIGS / "claims").glob("*.yaml"))
            print("\n".join(table(groups, given.results)), onward("data"), sep="\n")
    except Mistake as mistake:
        fail(mistake)


if __name__ == "__main__":
    main()
