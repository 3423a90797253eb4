"""`make compare THEIRS=<folder>`: another results folder beside this one, here and as <folder>/compare.html."""

import argparse

from ln.suite.errors import Mistake, fail, results_folder
from ln.suite.showing.compare import compare, in_words
from ln.suite.showing.onward import onward
from ln.suite.showing.page.compare import write_comparison


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "theirs", nargs="?", type=results_folder, help="a results folder, such as one that RESULTS= named"
    )
    parser.add_argument("--results", default="results", type=results_folder)
    arguments = parser.parse_args()
    try:
        if arguments.theirs is None:
            raise Mistake("make compare THEIRS=<folder> takes a results folder, such as the RESULTS= of yours")
        found = compare(arguments.theirs, arguments.results)
        page = write_comparison(found, arguments.theirs)
    except Mistake as mistake:
        fail(mistake)
    print("\n\n".join("\n".join(in_words(one)) for one in found))
    print(f"\n{page}\n{onward('page', file=page)}")


if __name__ == "__main__":
    main()
