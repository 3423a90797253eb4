"""The types of a recipe, and what makes two recipes the same.

Hydra composes `configs/`; `recipe_of` merges the result into these dataclasses, so that a misspelt key dies
here even when it came in with Hydra's `+`.
"""

import dataclasses
import hashlib
import importlib
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.errors import HydraException
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ln.kernels import BACKENDS
from ln.norms import NormConfig
from ln.suite.errors import Mistake
from ln.suite.until import Until

if TYPE_CHECKING:
    from ln.suite.task import Task

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
PROFILES = ("smoke", "laptop", "full")
DATA = ("auto", "original", "substitute", "embedded")
DEVICES = ("auto", "cpu", "cuda")
GRAPH = ("auto", "off")
TRACKING = ("auto", "online", "offline", "disabled")
# Where, how and how far a recipe is carried out; these cannot change its result.
NOT_IDENTITY = ("device", "backend", "graph", "threads", "tracking", "results", "until")


@dataclasses.dataclass
class Select:
    """Which checkpoint the test split is evaluated on."""

    metric: str = MISSING  # a validation metric, such as valid_error
    direction: str = "lower"  # lower | higher is better


@dataclasses.dataclass
class Train:
    batch_size: int = MISSING
    epochs: float | None = None  # the run's length: epochs or steps, exactly one of the two
    steps: int | None = None
    evaluate_every: float | None = None  # in the same unit; or
    evaluate_every_steps: int | None = None  # in steps, exactly one of the two
    optimizer: dict[str, Any] = MISSING  # {_target_: torch.optim.Adam, lr: ...}
    clip_norm: float | None = None  # gradient norm is cut to this
    clip_per_tensor: bool = False  # each tensor's own norm instead of the norm of all
    select: Select = dataclasses.field(default_factory=Select)


@dataclasses.dataclass
class Recipe:
    experiment: str = MISSING
    task: str = MISSING  # import path of the Task class
    norm: Any = MISSING  # NormConfig; OmegaConf cannot fill frozen dataclasses, so recipe_of does
    profile: str = MISSING
    seed: int = MISSING
    data: str = MISSING
    train: Train = MISSING
    model: Any = None  # the task's own Settings
    device: str = "auto"
    backend: str = "auto"  # of the recurrent layers
    graph: str = "auto"  # on CUDA: auto captures what it can, off nothing
    threads: int = 0
    tracking: str = "auto"
    results: str = "results"
    until: str | None = None  # stop early: a share of the run (0.1), 20epochs or 5000steps


def names(group: str) -> list[str]:
    """The choices that `configs/<group>/` offers."""
    return sorted(path.stem for path in (CONFIGS / group).glob("*.yaml"))


def at_profile(smoke: Any, laptop: Any, full: Any, *, _root_: DictConfig) -> Any:
    """`${at:1,10,60}`: one setting's value at smoke, laptop and full, side by side in the recipe."""
    return dict(zip(PROFILES, (smoke, laptop, full), strict=True))[_root_.profile]


OmegaConf.register_new_resolver("at", at_profile, replace=True)


def imported(path: str) -> Any:
    """The class or function that a config names by its import path; ln itself imports no experiment."""
    module, _, name = path.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise Mistake(f"{path} cannot be imported: {error}") from error


def recipe_of(composed: DictConfig) -> Recipe:
    """The typed recipe of a composed Hydra config.

    Raises:
        Mistake: a key the schema does not know, a value of the wrong type or out of range.
    """
    task: type[Task] = imported(composed.task)
    schema = OmegaConf.structured(Recipe)
    schema.model = OmegaConf.structured(task.Settings)
    try:
        recipe = OmegaConf.to_object(OmegaConf.merge(schema, composed))
        assert isinstance(recipe, Recipe)
        recipe.norm = norm_of(recipe.norm)
    except OmegaConfBaseException as error:
        key = error.full_key or error.key
        raise Mistake(f"{key}: {str(error).splitlines()[0]}") from error
    except ValueError as error:
        raise Mistake(str(error)) from error
    check(recipe)
    return recipe


def not_composed(error: HydraException) -> Mistake:
    """Why Hydra could not compose what was asked for, in one sentence."""
    cause = error.__cause__ or error
    if isinstance(cause, OmegaConfBaseException):
        return Mistake(f"{cause.full_key or cause.key}: {str(cause).splitlines()[0]}")
    return Mistake(" ".join(str(cause).split()))


def norm_of(section: dict[str, Any]) -> NormConfig:
    known = [field.name for field in dataclasses.fields(NormConfig)]
    for key in section:
        if key not in known:
            raise Mistake(f"norm.{key} is no setting of a normalization; choose from {', '.join(known)}")
    return NormConfig(**section)


def check(recipe: Recipe) -> None:
    """Refuse values no run can have."""
    choices = {"profile": PROFILES, "data": DATA, "device": DEVICES, "backend": ("auto", *BACKENDS)}
    for key, allowed in (choices | {"graph": GRAPH, "tracking": TRACKING}).items():
        if getattr(recipe, key) not in allowed:
            raise Mistake(f"{key}={getattr(recipe, key)} is not a {key}; choose one of {', '.join(allowed)}")
    train = recipe.train
    if (train.epochs is None) == (train.steps is None):
        raise Mistake("train.epochs, train.steps: give one of the two, the other null")
    if (train.evaluate_every is None) == (train.evaluate_every_steps is None):
        raise Mistake("train.evaluate_every, train.evaluate_every_steps: give one of the two, the other null")
    if train.select.direction not in ("lower", "higher"):
        raise Mistake(f"train.select.direction={train.select.direction} is neither lower nor higher")
    Until.of(recipe.until)
    if recipe.seed < 0:
        raise Mistake(f"seed={recipe.seed} must not be negative")
    if recipe.threads < 0:
        raise Mistake(f"threads={recipe.threads} must not be negative (0 means all)")
    for section, values in (("train", dataclasses.asdict(train)), ("model", dataclasses.asdict(recipe.model))):
        for key, value in values.items():
            # Every size and rate of every experiment is positive; those that may be 0 say so in their default.
            if isinstance(value, int | float) and not isinstance(value, bool) and value <= 0:
                field = {f.name: f for f in dataclasses.fields(getattr(recipe, section))}[key]
                if not (value == 0 and field.metadata.get("zero")):
                    raise Mistake(f"{section}.{key}={value} must be positive")


def zero_allowed(default: Any) -> Any:
    """A Settings field that may be 0, such as a dropout rate."""
    return dataclasses.field(default=default, metadata={"zero": True})


def identity(recipe: Recipe, source: dict[str, str]) -> dict[str, Any]:
    """What makes a run this run and no other: the recipe without where it runs, and the data it is trained on."""
    fields = {key: value for key, value in dataclasses.asdict(recipe).items() if key not in (*NOT_IDENTITY, "data")}
    return {**json.loads(json.dumps(fields)), "source": source}


def identity_hash(recipe: Recipe, source: dict[str, str]) -> str:
    """A short hash of the identity without what stands at its default.

    So a new setting leaves the runs made before it valid; a default, once runs exist, must not change its meaning.
    """
    fields = {key: value for key, value in _without_defaults(recipe).items() if key not in (*NOT_IDENTITY, "data")}
    return hashlib.sha256(json.dumps({**fields, "source": source}, sort_keys=True).encode()).hexdigest()[:16]


def _without_defaults(settings: Any) -> dict[str, Any]:
    found = {}
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if dataclasses.is_dataclass(value):
            found[field.name] = _without_defaults(value)
        elif value != field.default:
            found[field.name] = value
    return found


def differing(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> list[str]:
    """`key: old -> new` for every leaf in which two identities differ."""
    lines = []
    for key in sorted({*old, *new}):
        before, after = old.get(key), new.get(key)
        if isinstance(before, dict) and isinstance(after, dict):
            lines += differing(before, after, f"{prefix}{key}.")
        elif before != after:
            lines.append(f"{prefix}{key}: {before} -> {after}")
    return lines


def check_choices(arguments: list[str]) -> None:
    """Refuse unknown names on the command line before Hydra composes anything.

    Raises:
        Mistake: an experiment, norm or profile that no file under configs/ describes, or an empty list of them.
    """
    what = {"experiment": "an experiment", "norm": "a normalization", "profile": "a profile"}
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if not equals or key not in what:
            continue
        known = names(key)
        for name in value.split(","):
            if name not in known:
                raise Mistake(f"{key}={name} is not {what[key]}; choose one of {', '.join(known)}")


def for_jobs(arguments: list[str]) -> list[str]:
    """A multirun's arguments with `train.epochs=3` as `train.epochs=choice(3)`, and so for every key of a section.

    Hydra then sets the key in each job; in the multirun's own config, which has no experiment yet, it does not exist.
    """
    pattern = re.compile(r"((?:train|model|norm)\.[\w.]+)=(?!\w+\()(.+)")
    return [pattern.sub(r"\1=choice(\2)", argument) for argument in arguments]
