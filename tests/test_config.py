"""What makes two recipes the same."""

import dataclasses
from collections.abc import Callable

import pytest

from ln.suite.config import Recipe, differing, identity, identity_hash
from ln.suite.errors import Mistake

SOURCE = {"name": "MNIST", "status": "original", "sha256": "0"}


def test_where_a_recipe_runs_is_no_part_of_it(recipe: Callable[..., Recipe]) -> None:
    here, there = (
        recipe("experiment=mnist_b128"),
        recipe("experiment=mnist_b128", "threads=7", "device=cpu", "backend=torch", "graph=off", "results=x"),
    )
    assert identity_hash(here, SOURCE) == identity_hash(there, SOURCE)


def test_data_is(recipe: Callable[..., Recipe]) -> None:
    made = recipe("experiment=mnist_b128")
    assert identity_hash(made, SOURCE) != identity_hash(made, {**SOURCE, "status": "embedded"})


def test_every_setting_is(recipe: Callable[..., Recipe]) -> None:
    base = identity_hash(recipe("experiment=mnist_b128"), SOURCE)
    for change in (
        "seed=1",
        "norm=batch",
        "train.batch_size=64",
        "model.hidden=31",
        "train.optimizer.lr=0.1",
        "norm.eps=0.1",
    ):
        assert (
            identity_hash(recipe("experiment=mnist_b128", f"++{change}" if "." in change else change), SOURCE) != base
        )


def test_a_setting_added_later_leaves_old_runs_valid(recipe: Callable[..., Recipe]) -> None:
    made = recipe("experiment=mnist_b128")
    before = identity_hash(made, SOURCE)
    fields = [(f.name, f.type, f) for f in dataclasses.fields(made.model)]
    later = dataclasses.make_dataclass("Settings", [*fields, ("depth", int, dataclasses.field(default=2))])
    made.model = later(**dataclasses.asdict(made.model))
    assert identity_hash(made, SOURCE) == before
    made.model.depth = 3
    assert identity_hash(made, SOURCE) != before


def test_differing_names_the_leaves(recipe: Callable[..., Recipe]) -> None:
    a = identity(recipe("experiment=mnist_b128"), SOURCE)
    b = identity(recipe("experiment=mnist_b128", "model.hidden=8", "seed=2"), SOURCE)
    assert differing(a, b) == ["model.hidden: 32 -> 8", "seed: 0 -> 2"]


def test_profiles_stand_side_by_side(recipe: Callable[..., Recipe]) -> None:
    epochs = [
        recipe("experiment=mnist_b128", f"profile={p}", "data=auto").train.epochs for p in ("smoke", "laptop", "full")
    ]
    assert epochs == [2, 6, 130]


def test_evaluations_are_counted_in_the_lengths_unit_or_in_steps(recipe: Callable[..., Recipe]) -> None:
    made = recipe("experiment=order_embeddings", "profile=full", "data=auto")
    assert (made.train.epochs, made.train.steps, made.train.evaluate_every_steps) == (100, None, 100)
    with pytest.raises(Mistake, match=r"train.evaluate_every, train.evaluate_every_steps: give one"):
        recipe("experiment=order_embeddings", "train.evaluate_every=1")
    with pytest.raises(Mistake, match=r"train.evaluate_every, train.evaluate_every_steps: give one"):
        recipe("experiment=order_embeddings", "train.evaluate_every_steps=null")
