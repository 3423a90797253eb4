"""`make plan-<experiment>`: what would run, what is done, how long the rest will take, and which seeds its claims
take."""

import argparse
from collections import Counter

from ln.suite.errors import Mistake, fail
from ln.suite.judging.claims import load_claims
from ln.suite.judging.power import POWER, planned
from ln.suite.showing.text import duration
from ln.suite.sweeps.wanted import cells, wanted


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("group")
    parser.add_argument("--profile", default="laptop")
    parser.add_argument("--norms")
    parser.add_argument("--seeds")
    parser.add_argument("--results", default="results")
    parser.add_argument("--until", help="only so much of each run: a share such as 0.1, 20epochs, 5000steps")
    arguments = parser.parse_args()
    try:
        found = cells(
            arguments.results,
            arguments.profile,
            wanted(arguments.group, arguments.profile, arguments.norms, arguments.seeds),
            arguments.until,
        )
    except Mistake as mistake:
        fail(mistake)
    for cell in found:
        left = (
            ""
            if cell.done
            else f"{cell.share:4.0%} behind it, "
            + ("time unknown" if cell.seconds is None else f"about {duration(cell.seconds)} left")
        )
        print(f"{cell.experiment:22} {cell.norm:7} seed {cell.seed:<3} {cell.status:12} {left}")
    counts = Counter(cell.status for cell in found)
    known = [cell.seconds for cell in found if cell.seconds is not None]
    unknown = len(found) - len(known)
    states = ", ".join(f"{number} {status}" for status, number in counts.items())
    more = f" and {unknown} of unknown length" if unknown else ""
    print(f"\n{len(found)} runs: {states}; about {duration(sum(known))} left{more}")
    lines = list(planned(load_claims(arguments.group), arguments.profile))
    if lines:
        print(f"\npower of {POWER:.0%} takes")
        print("\n".join(f"  {line}" for line in lines))


if __name__ == "__main__":
    main()
