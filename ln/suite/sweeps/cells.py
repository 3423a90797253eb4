"""What a sweep runs: the cells of an experiment's claims, or of a definition in configs/sweep/.

A definition is a W&B sweep over our recipes. `wandb agent` runs it as it stands; `make sweep-<name>` runs a grid here.
"""

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ln.suite.config import CONFIGS, names, nearest
from ln.suite.errors import Mistake
from ln.suite.judging.claims import load_claims
from ln.suite.overrides import parsed, quoted
from ln.suite.runs.folder import run_folder
from ln.suite.sweeps.wanted import wanted


@dataclass(frozen=True)
class SweepCell:
    """One run of a sweep."""

    row: str  # experiment and norm, and the swept setting where there is one
    experiment: str
    norm: str
    seed: int
    folder: Path


@dataclass(frozen=True)
class SweepPlan:
    cells: list[SweepCell]
    multiruns: list[list[str]]  # Hydra's arguments; each combination of one's comma lists is a cell


@dataclass(frozen=True)
class Definition:
    """A W&B sweep definition of configs/sweep/, read as Hydra arguments."""

    name: str
    method: str
    metric: str  # of the final record
    description: str
    parameters: dict[str, list[Any]]
    fixed: list[str]  # arguments that every run has
    setting: str | None  # the parameter that is neither experiment, norm nor seed

    @classmethod
    def load(cls, name: str) -> "Definition":
        document = yaml.safe_load((CONFIGS / "sweep" / f"{name}.yaml").read_text())
        # As Hydra reads them: YAML takes 1e-3 for text, and the run's folder is named after the number.
        parameters = {
            key: [parsed([f"{key}={value}"])[0].value() for value in entry.get("values", [])]
            for key, entry in document["parameters"].items()
        }
        return cls(
            name=document["name"],
            method=document["method"],
            metric=document["metric"]["name"].removeprefix("final/"),
            description=document["description"],
            parameters=parameters,
            fixed=[word for word in document["command"] if "=" in word and not word.startswith("results=")],
            setting=next((key for key in parameters if key not in ("experiment", "norm", "seed")), None),
        )


def definitions() -> list[str]:
    """The definitions that can be run here: grids over a setting."""
    return [name for name in names("sweep") if (d := Definition.load(name)).method == "grid" and d.setting]


def plan(group: str, profile: str, results: str, norms: str | None, seeds: str | None) -> SweepPlan:
    """The cells of `group`, a claims file's name or a definition's.

    Raises:
        Mistake: an unknown group, norm or profile, an empty list, a seed that is not a whole number.
    """
    claims = names("claims")
    if group in claims:
        return _of_claims(group, profile, results, norms, seeds)
    if group not in definitions():
        hint = "; it is a search for W&B agents (see its header)" if group in names("sweep") else ""
        known, like = ", ".join([*claims, *definitions()]), nearest(group, [*claims, *definitions()])
        raise Mistake(f"{group} is not an experiment or a sweep that runs here{hint}; choose one of {known}{like}")
    return _of_definition(Definition.load(group), profile, results, norms, seeds)


def _of_claims(group: str, profile: str, results: str, norms: str | None, seeds: str | None) -> SweepPlan:
    chosen = wanted(group, profile, norms, seeds)
    cells = [SweepCell(f"{e} {n}", e, n, s, run_folder(results, profile, e, n, s)) for e, n, s in chosen]
    return SweepPlan(
        cells, [[*lists, f"profile={profile}", f"results={quoted(results)}"] for lists in chosen.multiruns()]
    )


def _of_definition(d: Definition, profile: str, results: str, norms: str | None, seeds: str | None) -> SweepPlan:
    experiment = next(word.partition("=")[2] for word in d.fixed if word.startswith("experiment="))
    # The lists are checked as those of any experiment with claims are; the definition has its own where none is given.
    given = wanted(_claims_of(experiment), profile, norms, seeds)
    parameters = dict(d.parameters)
    if norms is not None:
        parameters["norm"] = given.norms[experiment]
    if seeds is not None:
        parameters["seed"] = given.seeds
    assert d.setting is not None
    short = d.setting.rpartition(".")[2]
    cells = []
    for value, norm, seed in itertools.product(parameters[d.setting], parameters["norm"], parameters["seed"]):
        folder = run_folder(value_root(results, d, value), profile, experiment, norm, seed)
        cells.append(SweepCell(f"{short} {value} {norm}", experiment, norm, seed, folder))
    lists = [f"{key}={','.join(map(str, values))}" for key, values in parameters.items()]
    # Each value's runs have a results folder of their own, so that a folder still holds one recipe's run.
    root = quoted(results, f"/{value_root('', d, f'${{{d.setting}}}')}")
    return SweepPlan(cells, [[*d.fixed, *lists, f"profile={profile}", f"results={root}"]])


def value_root(results: str | Path, definition: Definition, value: Any) -> Path:
    """Where the runs with one value of the swept setting live."""
    return Path(results) / "sweeps" / definition.name / str(value)


def _claims_of(experiment: str) -> str:
    return next(group for group in names("claims") if experiment in load_claims(group).runs.experiments)
