"""Generated scenes: their captions, the order between them against brute force, their pictures and features."""

from itertools import pairwise, permutations, product

import numpy as np
import pytest

from ln.suite.data import scenes
from ln.suite.data.precomp import CAPTIONS, SPLITS, Captioned
from ln.suite.data.scenes import COLOURS, SCENES, SHAPES, SIDE, SIZES, Thing, described, graded, more_general, parsed


@pytest.fixture(scope="module")
def made() -> dict[str, Captioned]:
    return scenes.make()


def test_sizes_and_that_splits_share_no_scene(made: dict[str, Captioned]) -> None:
    names = {split: {" ".join(sorted(name.split(" and "))) for name in made[split].names} for split in SPLITS}
    for split, part in made.items():
        assert len(part.features) == len(names[split]) == SCENES[split]
        assert len(part.captions) == CAPTIONS * SCENES[split]
        assert part.pictures is not None
        assert part.pictures.shape == (SCENES[split], SIDE, SIDE, 3)
    assert not names["train"] & names["valid"]
    assert not names["train"] & names["test"]
    assert not names["valid"] & names["test"]


def test_they_are_always_the_same(made: dict[str, Captioned]) -> None:
    again = scenes.make()["test"]
    assert again.captions == made["test"].captions
    assert np.array_equal(again.features, made["test"].features)


def test_captions_of_a_scene_are_graded(made: dict[str, Captioned]) -> None:
    for i in range(0, len(made["train"].captions), CAPTIONS):
        chain = made["train"].captions[i : i + CAPTIONS]
        for a, b in pairwise(chain):
            assert more_general(a, b)
        assert not more_general(chain[-1], chain[0])
        full = parsed(chain[-1])
        assert all(thing.size and thing.colour and thing.shape for thing in full)


def test_a_caption_is_what_was_parsed() -> None:
    generator = np.random.default_rng(0)
    for _ in range(50):
        things = [
            Thing(*(None if generator.random() < 0.3 else str(generator.choice(list(names))) for names in each))
            for each in [(SIZES, COLOURS, SHAPES)] * int(generator.integers(1, 4))
        ]
        assert parsed(described(things)) == things
    assert " ".join(described([Thing(shape="cross"), Thing("small", "red")])) == "a cross and a small red thing"


def test_more_general_is_true_of_more() -> None:
    """Against the meaning: every scene of two things that b is true of, a is true of; on a small world."""
    world = [Thing(*parts) for parts in product(("small", "large"), ("red", "blue"), ("circle", "square"))]
    pairs = [[a, b] for a, b in product(world, world)]

    def true_of(caption: list[str], scene: list[Thing]) -> bool:
        said = parsed(caption)
        return any(
            all(
                getattr(thing, name) in (None, getattr(other, name))
                for thing, other in zip(said, chosen, strict=True)
                for name in ("size", "colour", "shape")
            )
            for chosen in permutations(scene, len(said))
        )

    options = [Thing(*parts) for parts in product((None, "small"), (None, "red"), (None, "circle", "square"))]
    captions = [described(things) for n in (1, 2) for things in product(options, repeat=n)]
    meaning = [frozenset(i for i, scene in enumerate(pairs) if true_of(caption, scene)) for caption in captions]
    generator = np.random.default_rng(0)
    found = 0
    for i, j in generator.integers(0, len(captions), (3000, 2)):
        # A caption of fewer things is compared in scenes of two, which have a second thing anyway.
        if len(parsed(captions[i])) <= len(parsed(captions[j])):
            expected = meaning[i] >= meaning[j]
            if len(parsed(captions[i])) == len(parsed(captions[j])) == 1 or len(parsed(captions[j])) == 2:
                assert more_general(captions[i], captions[j]) == expected, (captions[i], captions[j])
                found += expected
    assert found > 100


def test_the_order_on_examples() -> None:
    def order(a: str, b: str) -> bool:
        return more_general(a.split(), b.split())

    assert order("a thing", "a small red cross")
    assert order("a red thing and a circle", "a large circle and a small red cross")
    assert order("a red circle", "a red circle")
    assert not order("a red circle and a red circle", "a red circle")
    assert not order("a red thing and a circle", "a red circle and a blue square")
    assert not order("a small red cross", "a red cross")


def test_graded_tells_every_fact_by_the_last_caption() -> None:
    things = [Thing("small", "red", "cross"), Thing("large", "blue", "circle")]
    captions = graded(things, np.random.default_rng(3))
    assert len(captions) == CAPTIONS
    assert captions[-1] == described(things)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("size", list(SIZES))
def test_pictures_show_the_thing_in_its_colour_and_size(shape: str, size: str) -> None:
    picture = scenes.rendered([Thing(size, "blue", shape)], np.random.default_rng(0))
    inside = (picture == COLOURS["blue"]).all(-1)
    assert (picture[~inside] == scenes.BACKGROUND).all()
    rows, columns = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
    assert 2 * 0.8 * SIZES[size] <= np.ptp(columns) + 1 <= 2 * SIZES[size] + 1
    assert 2 * 0.8 * SIZES[size] <= np.ptp(rows) + 1 <= 2 * SIZES[size] + 1


def test_features_see_colours_and_shapes(made: dict[str, Captioned]) -> None:
    """A linear map of them tells what is in a held-out scene, well above chance."""
    from sklearn.linear_model import LogisticRegression

    for words in (("red", "thing"), ("cross", "thing")):
        labels = {split: np.array([words[0] in name for name in made[split].names]) for split in ("train", "test")}
        model = LogisticRegression(max_iter=200).fit(10 * made["train"].features, labels["train"])
        chance = max(labels["test"].mean(), 1 - labels["test"].mean())
        assert model.score(10 * made["test"].features, labels["test"]) > chance + 0.1
    lengths = np.linalg.norm(made["test"].features, axis=1)
    np.testing.assert_allclose(lengths, 1, rtol=1e-5)
