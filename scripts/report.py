"""`make report`: write results/index.html, the page to look at, and results/REPORT.md."""

import argparse

from ln.suite.errors import Mistake, fail, results_folder
from ln.suite.showing.onward import onward
from ln.suite.showing.page import write_page


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", default="results", type=results_folder)
    arguments = parser.parse_args()
    try:
        built = write_page(arguments.results)
    except Mistake as mistake:
        fail(mistake)
    print(*built.notes, sep="\n", end="\n" if built.notes else "")
    print(
        f"{built.page} ({built.page.stat().st_size / 1e6:.1f} MB)\n{built.markdown}\n{onward('page', file=built.page)}"
    )


if __name__ == "__main__":
    main()
