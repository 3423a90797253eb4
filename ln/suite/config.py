"""The types of a recipe, and what makes two recipes the same.

Hydra composes `configs/`; `recipe_of` merges the result into these dataclasses, so that a misspelt key dies
here even when it came in with Hydra's `+`.
"""

import dataclasses
import difflib
import hashlib
import importlib
import inspect
import json
import math
import re
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ln.kernels import BACKENDS
from ln.norms import NormConfig
from ln.suite.errors import Mistake
from ln.suite.until import Until

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
PROFILES = ("smoke", "laptop", "full")
DATA = ("auto", "original", "substitute", "embedded")
DEVICES = ("auto", "cpu", "cuda")
GRAPH = ("auto", "off")
TRACKING = ("auto", "online", "offline", "disabled")
SECTIONS = ("train", "model", "norm")  # of a recipe
LEARNING_RATE = "train.optimizer.lr"  # of the optimizer's own settings the one that every recipe has
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


# NormConfig is frozen, which OmegaConf cannot fill: the same fields in a class that it can.
NormSection = dataclasses.make_dataclass(
    "NormSection",
    [
        (field.name, typing.get_type_hints(NormConfig)[field.name], dataclasses.field(default=field.default))
        for field in dataclasses.fields(NormConfig)
    ],
)


@dataclasses.dataclass
class Recipe:
    experiment: str = MISSING
    task: str = MISSING  # import path of the Task class
    norm: Any = MISSING  # NormConfig
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


def by_norm(values: DictConfig, *, _root_: DictConfig) -> Any:
    """`${by_norm:{none:0.003,layer:0.001}}`: a setting chosen for each norm; one that is not named has `none`'s."""
    return values.get(_root_.norm.name, values["none"])


OmegaConf.register_new_resolver("at", at_profile, replace=True)
OmegaConf.register_new_resolver("by_norm", by_norm, replace=True)


def imported(path: str, said: str = "") -> Any:
    """The class or function that a config names by its import path, after the key `said`; ln itself imports no
    experiment."""
    module, _, name = path.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise Mistake(f"{said}{path} cannot be imported: {error}") from error


def recipe_of(composed: DictConfig) -> Recipe:
    """The typed recipe of a composed Hydra config.

    Raises:
        Mistake: a key the schema does not know, a value of the wrong type or out of range.
    """
    try:
        values: Any = OmegaConf.to_container(composed, resolve=True)
    except OmegaConfBaseException as error:
        raise Mistake(f"{error.full_key or error.key}: {str(error).splitlines()[0]}") from error
    if not isinstance(values.get("task"), str):
        raise Mistake(f"task={shown(values.get('task'))} must be the import path of a Task")
    schema = OmegaConf.structured(Recipe)
    schema.train, schema.norm = OmegaConf.structured(Train), OmegaConf.structured(NormSection)
    schema.model = OmegaConf.structured(imported(values["task"], "task=").Settings)
    _fill(schema, values, "", settings_of(schema))
    _try_sections(schema.model, "model.")
    try:
        recipe = OmegaConf.to_object(schema)
    except OmegaConfBaseException as error:  # a value that is still missing
        raise Mistake(f"{error.full_key or error.key} is not given") from error
    assert isinstance(recipe, Recipe)
    recipe.norm = norm_of(dataclasses.asdict(recipe.norm))
    check(recipe)
    return recipe


def _fill(section: DictConfig, values: dict[str, Any], prefix: str, known: list[str]) -> None:
    """Put the values into a typed section; a key or a type that does not fit raises Mistake."""
    hints = typing.get_type_hints(OmegaConf.get_type(section))
    for key, value in values.items():
        path = f"{prefix}{key}"
        if key not in hints:
            raise unknown_setting(path, known)
        if dataclasses.is_dataclass(OmegaConf.get_type(section, key)):
            if not isinstance(value, dict):
                inside = next(other for other in known if other.startswith(f"{path}."))
                raise Mistake(f"{path}={shown(value)} must be a section of settings, such as {inside}")
            _fill(section[key], value, f"{path}.", known)
            continue
        try:
            section[key] = literal(value) if isinstance(value, str) else value
        except OmegaConfBaseException as error:
            raise Mistake(f"{path}={shown(value)} must be {_in_words(hints[key])}") from error


def _try_sections(model: DictConfig, prefix: str) -> None:
    """A section of the model's settings may refuse its values itself; it does not know what it is called."""
    for key in map(str, model):
        if dataclasses.is_dataclass(OmegaConf.get_type(model, key)):
            _try_sections(model[key], f"{prefix}{key}.")
            try:
                OmegaConf.to_object(model[key])
            except ValueError as error:
                raise Mistake(f"{prefix}{key}.{error}") from error


def literal(text: str) -> str:
    r"""The text as OmegaConf is to be given it so that nothing in it is interpolated: `${` becomes `\${`."""
    return re.sub(r"(\\*)\$\{", lambda found: 2 * found[1] + r"\${", text)


def _in_words(kind: Any) -> str:
    """What a value of this type is: `a number or null`."""
    if kind is type(None):
        return "null"
    options = typing.get_args(kind)
    if types.NoneType in options:
        return " or ".join(_in_words(option) for option in options)
    plain = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
    return plain.get(kind) or ("a list" if typing.get_origin(kind) in (list, tuple) else "a mapping of keys to values")


def shown(value: Any) -> str:
    """A value as one writes it on the command line."""
    return value if isinstance(value, str) else json.dumps(value, default=str)


def settings_of(schema: DictConfig, prefix: str = "") -> list[str]:
    """The dotted keys of a typed config's settings."""
    found: list[str] = []
    for key in map(str, schema):
        section = dataclasses.is_dataclass(OmegaConf.get_type(schema, key))
        found += settings_of(schema[key], f"{prefix}{key}.") if section else [f"{prefix}{key}"]
    return found


def settings_of_every_recipe() -> list[str]:
    """The settings that do not depend on the experiment's task."""
    schema = OmegaConf.structured(Recipe)
    schema.norm, schema.train = OmegaConf.structured(NormSection), OmegaConf.structured(Train)
    return settings_of(schema)


def unknown_setting(key: str, known: Sequence[str]) -> Mistake:
    """That no setting has this name, and which has the nearest."""
    section = key.rpartition(".")[0]
    beside = [other for other in known if other.rpartition(".")[0] == section]
    like = nearest(key, [*known, LEARNING_RATE])
    return Mistake(f"{key} is no setting of this recipe{like or '; choose from ' + ', '.join(beside or known)}")


def unknown(key: str, value: str, kind: str, known: Sequence[str]) -> Mistake:
    """`norm=lyer is not a normalization; choose one of ...; did you mean layer?`"""
    return Mistake(f"{key}={value} is not {kind}; choose one of {', '.join(known)}{nearest(value, known)}")


def nearest(name: str, known: Sequence[str]) -> str:
    """`; did you mean train.epochs?`, or nothing where no known name is like it."""
    last = {other.rpartition(".")[2]: other for other in reversed(known)}
    found = difflib.get_close_matches(name, known, 1, 0.75)
    found = found or [last[key] for key in difflib.get_close_matches(name.rpartition(".")[2], list(last), 1, 0.75)]
    return f"; did you mean {found[0]}?" if found else ""


def norm_of(section: dict[str, Any]) -> NormConfig:
    """The norm of a recipe's section; a setting that makes no sense raises Mistake."""
    try:
        return NormConfig(**section)
    except ValueError as error:
        sentence = str(error)
        raise Mistake(sentence if sentence.startswith("norm=") else f"norm.{sentence}") from error


def check(recipe: Recipe) -> None:
    """Refuse values no run can have."""
    choices = {"profile": PROFILES, "data": DATA, "device": DEVICES, "backend": ("auto", *BACKENDS)}
    for key, allowed in (choices | {"graph": GRAPH, "tracking": TRACKING}).items():
        if getattr(recipe, key) not in allowed:
            raise unknown(key, getattr(recipe, key), f"a choice of {key}", allowed)
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
    for section in ("train", "model"):
        _check_numbers(getattr(recipe, section), f"{section}.")
    check_optimizer(train.optimizer)


def _check_numbers(section: Any, prefix: str) -> None:
    for field in dataclasses.fields(section):
        key, value = f"{prefix}{field.name}", getattr(section, field.name)
        if dataclasses.is_dataclass(value):
            _check_numbers(value, f"{key}.")
            continue
        # Every size and rate of every experiment is positive; those that may be 0 say so in their default.
        zero = field.metadata.get("zero", False)
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if number and not (math.isfinite(value) and (value > 0 or (zero and value == 0))):
            raise Mistake(f"{key}={value} must be positive{' or 0' if zero else ''}")


def check_optimizer(settings: dict[str, Any]) -> None:
    """Refuse an optimizer that cannot be made, by the setting that is the reason."""
    target = settings.get("_target_")
    if not isinstance(target, str):
        raise Mistake(f"train.optimizer._target_={shown(target)} must be a class's import path: torch.optim.Adam")
    kind = imported(target, "train.optimizer._target_=")
    rest = {key: value for key, value in settings.items() if key != "_target_"}
    accepted = [name for name in inspect.signature(kind).parameters if name != "params"]
    for key in rest:
        if key not in accepted:
            raise unknown_setting(f"train.optimizer.{key}", [f"train.optimizer.{name}" for name in accepted])

    def refusal(chosen: dict[str, Any]) -> Exception | None:
        try:
            kind([torch.zeros(1, requires_grad=True)], **chosen)
        except Exception as error:
            return error
        return None

    if (error := refusal(rest)) is not None:
        alone = (key for key in rest if refusal({k: v for k, v in rest.items() if k != key}) is None)
        culprit = next(alone, None)
        if culprit is None:
            raise Mistake(f"train.optimizer={shown(settings)} cannot be made: {error}") from error
        raise Mistake(f"train.optimizer.{culprit}={shown(rest[culprit])} cannot be used: {error}") from error


def zero_allowed(default: Any) -> Any:
    """A Settings field that may be 0, such as a dropout rate."""
    return dataclasses.field(default=default, metadata={"zero": True})


def as_yaml(recipe: Recipe) -> str:
    """The recipe as its values, with nothing in them to interpolate."""
    values = json.loads(json.dumps(dataclasses.asdict(recipe)))
    return str(yaml.safe_dump(values, sort_keys=False, allow_unicode=True))


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
