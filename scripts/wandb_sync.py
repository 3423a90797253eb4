"""`make wandb-sync`: build every run's W&B copy again from its files and upload it, and the published curves beside
them; with --offline, the missing ones on this machine only, for `make dashboard`."""

import argparse

from ln.suite.errors import Mistake, fail, results_folder
from ln.suite.runs.tracking import has_key, open_leet, rebuild, unmirrored
from ln.suite.showing.onward import onward
from ln.suite.showing.published_runs import published_runs, upload


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", default="results", type=results_folder)
    parser.add_argument("--offline", action="store_true", help="make the copies that are missing here; upload nothing")
    arguments = parser.parse_args()
    orders = unmirrored(arguments.results, everything=not arguments.offline)
    published = published_runs(arguments.results, everything=not arguments.offline)
    mode = "offline" if arguments.offline else "online"
    if not arguments.offline and not has_key():
        print(f"no W&B key is set (WANDB_API_KEY, or `wandb login`): {len(orders)} runs and verdict tables stay here")
        return
    try:
        for number, order in enumerate(orders, 1):
            rebuild(order, mode)
            print(f"{number} of {len(orders)}: {order['folder']}", flush=True)
        for run in published:
            upload(run, arguments.results, mode)
            print(run.name, flush=True)
        if arguments.offline:
            open_leet(arguments.results)
    except Mistake as mistake:
        fail(mistake)
    if not arguments.offline:
        print(onward("synced"))


if __name__ == "__main__":
    main()
