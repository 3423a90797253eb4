"""What is wrong with all runs of a sweep is said once, before the first of them begins."""

import itertools
from collections.abc import Iterable, Sequence
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.errors import HydraException

from ln.suite.config import CONFIGS, Recipe, imported, recipe_of
from ln.suite.errors import Mistake
from ln.suite.overrides import check_choices, for_hydra, not_composed, parsed
from ln.suite.runs.device import device_of
from ln.suite.runs.tracking import mode_of
from ln.suite.task import Task


def check_runs(multiruns: Iterable[Sequence[str]], here: bool = True) -> None:
    """Refuse what no run of Hydra's multirun arguments could be carried out with.

    here: the runs are this machine's, so that its devices, data and disk count too.

    Raises:
        Mistake: an unknown name or a misspelt key, a value that a recipe refuses, a device, data or a results folder
            that cannot be had.
    """
    recipes = recipes_of(multiruns)
    if not here:
        return
    for results, device, mode in {(recipe.results, recipe.device, recipe.tracking) for recipe in recipes}:
        device_of(device)
        mode_of(mode)
        try:
            Path(results).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise Mistake(f"{results} cannot be written: {error.strerror}") from error
    for task, data in {(recipe.task, recipe.data) for recipe in recipes}:
        kind: type[Task] = imported(task)
        kind.find(data)  # prints which data it took, and why no better


def recipes_of(multiruns: Iterable[Sequence[str]]) -> list[Recipe]:
    """Each experiment under each norm of Hydra's multirun arguments, other lists at their first value.

    Raises:
        Mistake: an unknown name or a misspelt key, a value that a recipe refuses.
    """
    return [recipe for arguments in multiruns for recipe in _recipes(arguments)]


def _recipes(arguments: Sequence[str]) -> list[Recipe]:
    check_choices([*arguments])
    try:
        choices = []
        for override in parsed(for_hydra(arguments)):
            if override.is_sweep_override():
                values = [f"{override.get_key_element()}={value}" for value in override.sweep_string_iterator()]
            else:
                assert override.input_line is not None
                values = [override.input_line]
            choices.append(values if override.key_or_group in ("experiment", "norm") else values[:1])
        with initialize_config_dir(str(CONFIGS), version_base="1.3"):
            return [recipe_of(compose("config", [*chosen])) for chosen in itertools.product(*choices)]
    except HydraException as error:
        raise not_composed(error) from error
