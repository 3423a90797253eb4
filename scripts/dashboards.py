"""`make dashboards`: a W&B workspace per experiment and a report per claims file; with --dry-run their JSON only."""

import argparse
from pathlib import Path

from ln.suite.errors import Mistake, fail, results_folder
from ln.suite.runs.tracking import entity
from ln.suite.showing.onward import onward
from ln.suite.showing.workspaces import chosen, save, write_json


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("group", nargs="?", help="a claims file, such as mnist; all by default")
    parser.add_argument("--profile", default="laptop")
    parser.add_argument("--results", default="results", type=results_folder)
    parser.add_argument("--dry-run", type=Path, metavar="FOLDER", help="write the JSON there and send nothing")
    arguments = parser.parse_args()
    try:
        owner = "" if arguments.dry_run else entity()
        for group in chosen(arguments.group):
            if arguments.dry_run:
                print(*write_json(group, arguments.profile, arguments.results, arguments.dry_run), sep="\n")
            else:
                print(*save(group, arguments.profile, arguments.results, owner), sep="\n")
    except Mistake as mistake:
        fail(mistake)
    print(onward("dashboards on disk" if arguments.dry_run else "dashboards"))


if __name__ == "__main__":
    main()
