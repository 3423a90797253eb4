"""`make table`: write results/runs.csv, a row for each run, and results/claims.csv, one for each check of a claim."""

import argparse

from ln.suite.errors import Mistake, fail, results_folder
from ln.suite.showing.onward import onward
from ln.suite.showing.tables import write_tables


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", default="results", type=results_folder)
    arguments = parser.parse_args()
    try:
        print(*write_tables(arguments.results), onward("tables"), sep="\n")
    except Mistake as mistake:
        fail(mistake)


if __name__ == "__main__":
    main()
