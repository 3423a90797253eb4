"""What a user types, as Hydra reads it: overrides in its grammar, checked, and its refusals in one sentence."""

import re
import shlex
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, Override, OverrideType
from hydra.errors import HydraException
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from ln.suite.config import SECTIONS, literal, names, settings_of_every_recipe, unknown, unknown_setting
from ln.suite.errors import Mistake

GROUPS = {"experiment": "an experiment", "norm": "a normalization", "profile": "a profile"}
# Which runs there are and where they lie is asked for by variables; a second word on it would run others.
VARIABLES = {
    "experiment": "name it in the command, as in make reproduce-mnist",
    "task": "another task is another experiment, with a recipe of its own in configs/experiment/",
    "norm": "use NORMS=<comma list> (--norms)",
    "norm.name": "use NORMS=<comma list> (--norms)",
    "seed": "use SEEDS=<comma list> (--seeds)",
    "profile": "use PROFILE=<profile> (--profile)",
    "results": "use RESULTS=<folder> (--results)",
}


def quoted(text: str, below: str = "") -> str:
    """`text` as a Hydra string that stands for itself whatever characters it holds, then `below`, which may
    interpolate: `results=` + quoted("my, ${results}", "/${seed}")."""
    whole = literal(text) + below
    # Inside quotes a backslash counts before a quote and at the end, and there alone.
    return "'" + re.sub(r"(\\*)('|\Z)", lambda found: 2 * found[1] + (r"\'" if found[2] else ""), whole) + "'"


def words(text: str) -> list[str]:
    """The words of OVERRIDES, told apart by blanks; quotes keep one together.

    Raises:
        Mistake: a quote that is not closed.
    """
    try:
        return shlex.split(text)
    except ValueError as error:
        raise Mistake(f"OVERRIDES={text} cannot be told apart into words: {error}") from error


def parsed(arguments: Iterable[str]) -> list[Override]:
    """Hydra's reading of the overrides among command line arguments.

    Raises:
        Mistake: one that it cannot read.
    """
    parser, found = OverridesParser.create(), []
    for argument in arguments:
        if argument.startswith("-") or ("=" not in argument and not argument.startswith("~")):
            continue  # an option, or an option's value
        try:
            found.append(parser.parse_override(argument))
        except HydraException as error:
            reason = str(error).splitlines()[-1].partition("See https")[0].strip().rstrip(".")
            raise Mistake(
                f"{argument} cannot be read as key=value ({reason}); a value with other characters than "
                """letters, digits and . / _ - : belongs in quotes: key="'a (b)'" """.rstrip()
            ) from error
    return found


def check_choices(arguments: Iterable[str]) -> None:
    """Refuse unknown names on the command line before Hydra composes anything.

    Raises:
        Mistake: an experiment, norm or profile that no file under configs/ describes, or an empty list of them; an
            override that Hydra cannot read.
    """
    for override in parsed(arguments):
        key = override.key_or_group
        if key not in GROUPS or override.is_delete():
            continue
        known, value = names(key), override.value()
        if isinstance(value, Glob):
            if not value.filter(known):
                raise Mistake(f"{override.input_line} finds nothing; choose from {', '.join(known)}")
            continue
        chosen = list(override.sweep_string_iterator()) if override.is_discrete_sweep() else [value]
        for name in chosen:
            if name not in known:
                shown = "" if name is None else str(name)
                raise unknown(key, shown, GROUPS[key], known)


def check_overrides(overrides: Sequence[str], more: Mapping[str, str] | None = None) -> None:
    """Refuse what the runs of a command cannot be given besides: their own cells, or several values for one folder.

    more: keys that the command itself sets, and what to do instead of overriding them.

    Raises:
        Mistake: such an override, or a word that is none.
    """
    for word in overrides:
        if word.startswith(("-", "=", "@")) or ("=" not in word and not word.startswith("~")):
            raise Mistake(f"{word} is not an override; write key=value, such as train.epochs=3")
    instead = {**VARIABLES, **(more or {})}
    for override in parsed(overrides):
        if override.key_or_group in instead:
            raise Mistake(
                f"{override.input_line} in the overrides would run other cells than were asked for; "
                f"{instead[override.key_or_group]}"
            )
        if override.is_sweep_override():
            raise Mistake(
                f"{override.input_line} asks for several values, but a run's folder holds one; give one, "
                "or put a grid into configs/sweep/"
            )


def for_hydra(arguments: Iterable[str]) -> list[str]:
    """The arguments with `train.epochs=3` as `++train.epochs=3`, and so for every key of a recipe's sections.

    Hydra then sets the key in each job; in a multirun's own config, which has no experiment yet, it does not exist.
    Whether it exists in the recipe is for `recipe_of` to say, which knows all keys.
    """

    def one(argument: str) -> str:
        plain = [o for o in parsed([argument]) if o.type == OverrideType.CHANGE and o.key_or_group not in GROUPS]
        return f"++{argument}" if plain and plain[0].key_or_group.split(".")[0] in SECTIONS else argument

    return [one(argument) for argument in arguments]


@contextmanager
def command_line(arguments: Sequence[str]) -> Iterator[None]:
    """Give Hydra, which reads sys.argv alone, these arguments; afterwards it is as it was."""
    before = sys.argv
    sys.argv = [before[0], *arguments]
    try:
        yield
    finally:
        sys.argv = before


def not_composed(error: HydraException) -> Mistake:
    """Why Hydra could not compose what was asked for, in one sentence."""
    cause = error.__cause__ or error
    if isinstance(cause, ConfigKeyError | ConfigAttributeError):
        whole = re.match(r"Could not override '([^']+)'", str(error))  # the cause knows its first part alone
        return unknown_setting(whole[1] if whole else str(cause.full_key or cause.key), settings_of_every_recipe())
    if isinstance(cause, OmegaConfBaseException):
        return Mistake(f"{cause.full_key or cause.key}: {str(cause).splitlines()[0]}")
    return Mistake(" ".join(str(cause).split()))
