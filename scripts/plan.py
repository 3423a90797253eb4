"""`make plan-<experiment>`: what would run, what is done, how long the rest will take, and which seeds its claims
take."""

import argparse
from collections import Counter
from collections.abc import Sequence

from ln.suite.errors import Mistake, fail, results_folder
from ln.suite.judging.claims import load_claims
from ln.suite.judging.power import POWER, planned
from ln.suite.showing.onward import onward
from ln.suite.showing.text import duration
from ln.suite.sweeps.pace import Pace, estimated
from ln.suite.sweeps.preflight import recipes_of
from ln.suite.sweeps.published import published
from ln.suite.sweeps.wanted import Cell, cells, wanted


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("group")
    parser.add_argument("--profile", default="laptop")
    parser.add_argument("--norms")
    parser.add_argument("--seeds")
    parser.add_argument("--results", default="results", type=results_folder)
    parser.add_argument("--until", help="only so much of each run: a share such as 0.1, 20epochs, 5000steps")
    arguments = parser.parse_args()
    group, profile = arguments.group, arguments.profile
    try:
        chosen = wanted(group, profile, arguments.norms, arguments.seeds)
        recipes = recipes_of([*lists, f"profile={profile}"] for lists in chosen.multiruns())
        by_name = {(recipe.experiment, recipe.norm.name): recipe for recipe in recipes}
        found = cells(arguments.results, profile, chosen, arguments.until, lambda *cell: estimated(by_name[cell]))
    except Mistake as mistake:
        fail(mistake)
    for cell in found:
        time = "time unknown" if cell.seconds is None else f"{_about([cell])} left"
        left = "" if cell.done else f"{cell.share:4.0%} behind it, {time}"
        print(f"{cell.experiment:22} {cell.norm:7} seed {cell.seed:<3} {cell.status:12} {left}")
    counts = Counter(cell.status for cell in found)
    rest = [cell for cell in found if not cell.done]
    unknown = sum(cell.seconds is None for cell in rest)
    states = ", ".join(f"{number} {status}" for status, number in counts.items())
    more = f" and {unknown} of unknown length" if unknown else ""
    print(f"\n{len(found)} runs: {states}; {_about(rest)} left{more}, one after the other")
    print(*_bases([cell.pace for cell in rest if cell.pace]), sep="", end="")
    lines = list(planned(load_claims(group), profile))
    if lines:
        print(f"\nseeds that give each claim a power of {POWER:.0%} for the effect that is expected:")
        print("\n".join(f"  {line}" for line in lines))
    asked = {"NORMS": arguments.norms, "SEEDS": arguments.seeds, "UNTIL": arguments.until}
    said = "".join(f" {name}={value}" for name, value in asked.items() if value)
    # `make reproduce-` trains nothing beside published runs unless some are asked for.
    beside = not said and published(found, recipes, arguments.results)
    after = "nothing left" if not rest else "planned beside published runs" if beside else "planned"
    print(f"\n{onward(after, group, profile, arguments.results, said)}")


def _about(cells: Sequence[Cell]) -> str:
    """How long some runs take: `about 3 min`, or `at least 3 h` where an evaluation was not waited for."""
    cut_off = any(cell.pace and cell.pace.at_least for cell in cells)
    return f"{'at least' if cut_off else 'about'} {duration(sum(cell.seconds or 0.0 for cell in cells))}"


def _bases(paces: Sequence[Pace]) -> list[str]:
    """What the times are estimated from, a line each."""
    hardware = dict.fromkeys(pace.hardware or "an unknown machine" for pace in paces if not pace.steps)
    steps = [pace.steps for pace in paces if pace.steps]
    lines = [f"estimated from runs on {', '.join(hardware)}"] if hardware else []
    if steps:
        several = f"{min(steps)} to {max(steps)} steps" if min(steps) < max(steps) else f"{steps[0]} steps"
        lines.append(f"estimated from {several} and an evaluation of each recipe here")
    return [f"{line}\n" for line in lines]


if __name__ == "__main__":
    main()
