"""Generated scenes of coloured shapes: rendered as small pictures and described in captions of graded detail.

A caption says something of some of a scene's objects: "a large cross and a red thing". Caption a is more general than b
where each object of a can be matched with one of b, no two with the same, that has all the attributes named: a partial
order that is known, and what order embeddings have to learn. Shapes: N scenes, A side of a picture, K filters.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from ln.suite.data import Source
from ln.suite.data.precomp import CAPTIONS, SPLITS, Captioned

SHAPES = ("circle", "square", "triangle", "cross")
COLOURS = {
    "red": (214, 39, 40),
    "green": (44, 160, 44),
    "blue": (31, 90, 200),
    "yellow": (240, 200, 40),
    "purple": (148, 60, 189),
    "black": (30, 30, 30),
}
SIZES = {"small": 5, "large": 9}  # half the width, in pixels
NOTHING_SAID = "thing"  # the noun of an object whose shape is not told
SIDE, BACKGROUND = 48, 235
SCENES = {"train": 600, "valid": 100, "test": 100}
FILTERS, WIDTH, STRIDE = 128, 9, 2  # of the features


@dataclass(frozen=True)
class Thing:
    """An object of a scene, or what a caption says of one: None where it says nothing."""

    size: str | None = None
    colour: str | None = None
    shape: str | None = None

    def words(self) -> list[str]:
        return ["a", *(word for word in (self.size, self.colour) if word), self.shape or NOTHING_SAID]

    def covers(self, other: "Thing") -> bool:
        """Whether all that is said of this one is true of the other."""
        return (
            self.size in (None, other.size)
            and self.colour in (None, other.colour)
            and self.shape in (None, other.shape)
        )


def parsed(caption: list[str]) -> list[Thing]:
    """The things that a caption's words name; the inverse of `described`."""
    things: list[Thing] = []
    said: dict[str, str] = {}
    for word in [*caption, "and"]:
        if word == "and":
            things.append(Thing(**said))
            said = {}
        for name, known in (("size", SIZES), ("colour", COLOURS), ("shape", SHAPES)):
            if word in known:
                said[name] = word
    return things


def described(things: list[Thing]) -> list[str]:
    words: list[str] = []
    for thing in things:
        words += [*(["and"] if words else []), *thing.words()]
    return words


def more_general(a: list[str], b: list[str]) -> bool:
    """Whether caption a is true of everything that caption b is true of; a caption is so of itself."""
    return contained(parsed(a), parsed(b))


def contained(ours: list[Thing], theirs: list[Thing]) -> bool:
    """Whether each of our things covers one of theirs, no two the same."""
    if not ours:
        return True
    first, rest = ours[0], ours[1:]
    return len(ours) <= len(theirs) and any(
        first.covers(other) and contained(rest, [*theirs[:i], *theirs[i + 1 :]]) for i, other in enumerate(theirs)
    )


def graded(things: list[Thing], generator: np.random.Generator) -> list[list[str]]:
    """Five captions, each more general than the next; the last says all.

    What is known of the things is told in a random order, and the captions stop at even distances.
    """
    facts = [(i, name) for i in range(len(things)) for name in ("there", "size", "colour", "shape")]
    told = [facts[k] for k in generator.permutation(len(facts))]
    captions = []
    for stop in np.linspace(2, len(told), CAPTIONS).round().astype(int):
        said: dict[int, dict[str, str]] = {}
        for i, name in told[:stop]:
            known = said.setdefault(i, {})
            if name != "there":
                known[name] = getattr(things[i], name)
        captions.append(described([Thing(**said[i]) for i in sorted(said)]))
    return captions


def rendered(things: list[Thing], generator: np.random.Generator) -> np.ndarray:
    """(A, A, 3) uint8: each thing somewhere in a quarter of its own."""
    picture = np.full((SIDE, SIDE, 3), BACKGROUND, np.uint8)
    half = SIDE // 2
    for thing, quarter in zip(things, generator.permutation(4), strict=False):
        assert thing.size
        assert thing.colour
        assert thing.shape
        r = SIZES[thing.size]
        corner = half * np.array(divmod(int(quarter), 2))
        y0, x0 = corner + generator.integers(r + 1, half - r - 1, 2, endpoint=True)
        y, x = np.mgrid[:SIDE, :SIDE] - np.array([y0, x0])[:, None, None]
        inside = {
            "circle": x * x + y * y <= (r + 0.4) ** 2,
            "square": np.maximum(abs(x), abs(y)) <= 0.85 * r,
            "triangle": (2 * abs(x) <= y + r) & (abs(y) <= r),
            "cross": (np.minimum(abs(x), abs(y)) <= r / 4) & (np.maximum(abs(x), abs(y)) <= r),
        }[thing.shape]
        picture[inside] = COLOURS[thing.colour]
    return picture


def features_of(pictures: np.ndarray) -> np.ndarray:
    """(N, 2K) float32 from pictures (N, A, A, 3): the mean and the largest response of K fixed random filters."""
    generator = torch.Generator().manual_seed(0)
    filters = torch.randn(FILTERS, 3, WIDTH, WIDTH, generator=generator)
    filters -= filters.mean((2, 3), keepdim=True)  # blind to an even background
    images = torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255
    found = []
    for some in images.split(64):
        responses = F.conv2d(some, filters, stride=STRIDE).relu_()
        found.append(torch.cat([responses.mean((2, 3)), responses.amax((2, 3))], 1))
    return torch.cat(found).numpy()


def make() -> dict[str, Captioned]:
    """Always the same scenes, no two alike. Features are standardized by the training split's mean and deviation and
    scaled to length 1."""
    generator = np.random.default_rng(0)
    seen: set[tuple[str, ...]] = set()
    made: dict[str, tuple[np.ndarray, list[list[str]], list[str]]] = {}
    for split in SPLITS:
        shown: list[np.ndarray] = []
        captions: list[list[str]] = []
        names: list[str] = []
        while len(shown) < SCENES[split]:
            things = [
                Thing(*(str(generator.choice(list(choices))) for choices in (SIZES, COLOURS, SHAPES)))
                for _ in range(int(generator.integers(2, 3, endpoint=True)))
            ]
            key = tuple(sorted(" ".join(thing.words()) for thing in things))
            if key in seen:
                continue
            seen.add(key)
            shown.append(rendered(things, generator))
            captions += graded(things, generator)
            names.append(" ".join(captions[-1]))
        made[split] = (np.stack(shown), captions, names)
    raw = {split: features_of(pictures) for split, (pictures, _, _) in made.items()}
    mean, deviation = raw["train"].mean(0), raw["train"].std(0)
    splits = {}
    for split, (pictures, captions, names) in made.items():
        features = (raw[split] - mean) / deviation
        features /= np.linalg.norm(features, axis=1, keepdims=True)
        splits[split] = Captioned(features.astype(np.float32), captions, names, pictures)
    return splits


def embedded() -> Source:
    sizes = "/".join(str(count) for count in SCENES.values())
    return Source("generated scenes", "embedded", f"scenes of 2 or 3 shapes, {sizes}, version 1", make)
