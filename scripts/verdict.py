"""`make verdict-<experiment>`: judge the claims again from the files, without training."""

import argparse

from ln.suite.errors import Mistake, fail, results_folder
from ln.suite.showing.onward import onward
from ln.suite.showing.report import conclude, terminal_table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("group")
    parser.add_argument("--profile", default="laptop")
    parser.add_argument("--results", default="results", type=results_folder)
    arguments = parser.parse_args()
    try:
        verdicts, figure = conclude(arguments.group, arguments.profile, arguments.results)
    except Mistake as mistake:
        fail(mistake)
    print(f"{terminal_table(verdicts)}\n\nfigure: {figure or 'none, no run has its curves'}")
    after = "judged" if any(verdict["data"] for verdict in verdicts) else "nothing to judge"
    print(onward(after, arguments.group, arguments.profile, arguments.results))


if __name__ == "__main__":
    main()
