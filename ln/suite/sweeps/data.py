"""Which data an experiment finds here, where the rest is to be had, and getting it.

Both ask the tasks' own `find`, so that what is said is what a run would take.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml

from ln.suite.config import CONFIGS, imported
from ln.suite.data import Absent, NotOffered, Origin, Source, last_line, looking_only
from ln.suite.errors import Mistake
from ln.suite.judging.claims import load_claims
from ln.suite.runs.read import run_folders, run_info

STATUSES = ("original", "substitute", "embedded")
Find = Callable[[str], Source]


@dataclass(frozen=True)
class Offer:
    """What an experiment finds for one status."""

    status: str
    source: Source | None  # None: it is not there, or damaged
    origin: Origin | None  # where it is to be had; None for what a recipe makes
    damage: str | None = None


def finds(group: str) -> list[Find]:
    """How each task of an experiment finds its data; variants of a recipe share their task."""
    paths: dict[str, None] = {}
    for experiment in load_claims(group).runs.experiments:
        written = yaml.safe_load((CONFIGS / "experiment" / f"{experiment}.yaml").read_text(encoding="utf-8"))
        if "task" in written:
            paths[written["task"]] = None
    return [imported(path).find for path in paths]


def offers(find: Find) -> list[Offer]:
    """What is there for each status that the task offers, best first; nothing is downloaded."""
    found = []
    with looking_only():
        for status in STATUSES:
            try:
                source = find(status)
                found.append(Offer(status, source, source.origin))
            except NotOffered:
                continue
            except Absent as absent:
                found.append(Offer(status, None, absent.origin))
            except Mistake as mistake:
                found.append(Offer(status, None, None, str(mistake)))
    return found


def published(group: str, results: str | Path) -> dict[str, list[dict[str, str]]]:
    """The sources of the runs in a results folder, by status."""
    sources: dict[str, list[dict[str, str]]] = {}
    for experiment in load_claims(group).runs.experiments:
        for place in sorted(Path(results).glob(f"*/{experiment}")):
            for folder in run_folders(place):
                source = ((run_info(folder) or {}).get("identity") or {}).get("source")
                if source and source not in sources.setdefault(source["status"], []):
                    sources[source["status"]].append(source)
    return sources


def compared(source: Source, runs: list[dict[str, str]]) -> str:
    """How runs on this source stand to the runs that were made on data of the same status."""
    if not runs:
        return ""
    if source.identity in runs:
        return "identical with the runs' in results"
    others = ", ".join(f"{run['name']} {_short(run['sha256'])}" for run in runs)
    return f"comparable, not identical: the runs in results are on {others}"


def table(groups: list[str], results: str | Path) -> Iterator[str]:
    """Lines that say for each experiment what is here, which of it a run takes, and where the rest is to be had."""
    for group in groups:
        yield group
        runs = published(group, results)
        for find in finds(group):
            taken = False
            for offer in offers(find):
                mark, note = " ", ""
                if offer.damage:
                    said, taken = f"damaged: {offer.damage}", True  # auto takes nothing in its place
                elif offer.source:
                    said = f"{offer.source.name} [{_short(offer.source.sha256)}]"
                    mark, taken = " " if taken else "*", True
                    note = compared(offer.source, runs.get(offer.status, []))
                else:
                    said = f"not here: {offer.origin.name}" if offer.origin else "not here"
                yield f" {mark} {offer.status:10}  {said}"
                if note:
                    yield f"{'':15}{note}"
                if offer.origin:
                    yield f"{'':15}from {offer.origin.where}"
                    yield f"{'':15}{offer.origin.size}; terms: {offer.origin.terms}{_how(group, offer)}"
    yield "* is what a run takes (data=auto); in [] its sha256's beginning, which is part of a run's identity"


def _how(group: str, offer: Offer) -> str:
    if offer.source:
        return ""
    if offer.origin is None or offer.origin.fetch is None:
        return "; to be got by hand"
    request = " DATA=substitute" if offer.status == "substitute" else ""
    return f"; make data-{group.replace('_', '-')}{request} fetches it"


def _short(sha256: str) -> str:
    return re.sub(r"([0-9a-f]{12})[0-9a-f]{52}", r"\1", sha256)


def fetch(group: str, request: str = "auto") -> None:
    """Bring the data of each task of an experiment into data/ and prepare them: the original, or what stands in for it
    where the original is not to be had or `request` says so.

    Raises:
        Mistake: nothing that was asked for could be had; a file is damaged.
    """
    wanted = [request] if request != "auto" else ["original", "substitute"]
    for find in finds(group):
        refusals = []
        for status in wanted:
            try:
                source = _got(find, status)
            except NotOffered:
                continue
            except Absent as absent:
                refusals.append(str(absent))
                continue
            print(f"{group}: {source.name} [{source.status}], sha256 {source.sha256}; preparing it", flush=True)
            source.load()
            break
        else:
            raise Mistake("; ".join(refusals) or f"{group} has no data to fetch for data={request}")
        for refusal in refusals:
            print(f"not to be had: {refusal}", flush=True)


def _got(find: Find, status: str) -> Source:
    """What `find` finds once that which it misses, one set of data after the other, has been fetched."""
    tried: set[str] = set()
    while True:
        try:
            with looking_only():
                return find(status)
        except Absent as absent:
            origin = absent.origin
            if origin is None or origin.fetch is None or origin.name in tried:
                raise
        tried.add(origin.name)
        print(f"fetching {origin.name} ({origin.size}; terms: {origin.terms}) from {origin.where}", flush=True)
        try:
            origin.fetch()
        except Mistake:
            raise
        except Exception as error:  # whatever the network, the hub or the disk says
            raise Absent(
                f"{origin.name} could not be fetched from {origin.where} ({last_line(error)})", origin
            ) from error
