"""`make findings`: write results/FINDINGS.md, where the paper disagrees with its own figures, tables and equations;
with ONLY=<name>, print one of them."""

import argparse
from pathlib import Path

from ln.suite.errors import Mistake, fail, results_folder
from ln.suite.files import write_text
from ln.suite.judging.findings import finding, findings
from ln.suite.showing.findings import in_full, page, short_list
from ln.suite.showing.onward import onward


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", default="results", type=results_folder)
    parser.add_argument("--only", metavar="NAME", help="print this one and write nothing")
    arguments = parser.parse_args()
    folder = Path(arguments.results)
    try:
        if arguments.only:
            print(in_full(finding(arguments.only)), end="")
            return
        if not folder.is_dir():
            raise Mistake(f"{folder} is not a folder with results")
        found = findings()
    except Mistake as mistake:
        fail(mistake)
    path = folder / "FINDINGS.md"
    write_text(path, page(found))
    print(f"{short_list(found)}\n\n{path}\n{onward('findings')}")


if __name__ == "__main__":
    main()
