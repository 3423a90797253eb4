"""Lines of handwriting as pen offsets with their text: IAM-OnDB, or composed of Omniglot's or of fonts' strokes.

Shapes: N points of a line. A stroke is an (n, 2) array of pen positions x, y, in the source's own unit, y upwards.
A line is (N, 3) float32: the offset dx, dy from the point before, and 1 where the pen is lifted after this point. The
first point's offset is 0, so that a line holds N - 1 offsets to predict.
"""

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from ln.suite.data import Missing, Source, cache_folder, check_sha256, data_folders, iam_ondb, made_once, pen_strokes
from ln.suite.data.pen_strokes import Writers

SPLITS = ("train", "valid", "test")
COMPOSED_POINTS = 600  # of a composed line, at least: like IAM-OnDB's, longer than the 500 steps of the paper
EMBEDDED_POINTS = 120
COMPOSED_LINES = {"train": 40, "valid": 20, "test": 20}  # per drawer and alphabet
EMBEDDED_LINES = {"train": 16, "valid": 16, "test": 16}  # per font
PREPARATION = "1"  # raise when prepared lines change, so that old caches and old runs are told apart


@dataclass(frozen=True)
class Lines:
    """Lines (N, 3) and their texts for each split; `alphabet` holds every character that occurs, in order."""

    points: dict[str, list[np.ndarray]]
    texts: dict[str, list[str]]
    alphabet: str


def points_of(strokes: Iterable[np.ndarray]) -> np.ndarray:
    """(N, 3) the line that strokes make.

    Points at which the pen rests are dropped, since a density has no bound at an offset that is always 0; a stroke of
    length zero is a dot and stays as one point.

    Raises:
        ValueError: a stroke without points.
    """
    kept = []
    for stroke in strokes:
        if len(stroke) == 0:
            raise ValueError("a stroke without points")
        moved = np.any(np.diff(stroke, axis=0) != 0, axis=1)
        kept.append(stroke[np.concatenate([[True], moved])])
    positions = np.concatenate(kept).astype(np.float64)
    line = np.zeros((len(positions), 3), np.float32)
    line[1:, :2] = np.diff(positions, axis=0)
    line[np.cumsum([len(stroke) for stroke in kept]) - 1, 2] = 1
    return line


def strokes_of(line: np.ndarray) -> list[np.ndarray]:
    """The strokes (n, 2) of a line (N, 3), from position 0; the inverse of `points_of` up to where it begins."""
    positions = np.cumsum(line[:, :2].astype(np.float64), axis=0)
    ends = np.flatnonzero(line[:, 2] > 0.5) + 1
    return [stroke for stroke in np.split(positions, ends) if len(stroke)]


def compose(
    writers: dict[str, Writers], lines_per_writer: dict[str, int], points: int, words: tuple[int, int] = (2, 6)
) -> Lines:
    """Lines of at least `points` points, each in the characters of one writer; always the same for the same input.

    writers: for each split, for each writer, a character's strokes. Random words of `words` characters, spaces between.
    """
    generator = np.random.default_rng(0)
    lines = Lines({split: [] for split in SPLITS}, {split: [] for split in SPLITS}, alphabet_of(writers))
    for split in SPLITS:
        for glyphs in writers[split].values():
            letters = sorted(glyphs)
            for _ in range(lines_per_writer[split]):
                strokes: list[np.ndarray] = []
                text, left, size = "", 0.0, 0
                gap = float(np.mean([_width(glyph) for glyph in glyphs.values()]) * generator.uniform(0.2, 0.5))
                while size < points:
                    if text:
                        text, left = f"{text} ", left + 2 * gap
                    for letter in generator.choice(letters, generator.integers(*words, endpoint=True)):
                        glyph = glyphs[str(letter)]
                        shift = np.array([left - min(stroke[:, 0].min() for stroke in glyph), 0.0])
                        strokes += [stroke + shift for stroke in glyph]
                        text, left, size = text + str(letter), left + _width(glyph) + gap, size + sum(map(len, glyph))
                lines.points[split].append(points_of(strokes))
                lines.texts[split].append(text)
    return lines


def alphabet_of(writers: dict[str, Writers]) -> str:
    letters = {letter for by_writer in writers.values() for glyphs in by_writer.values() for letter in glyphs}
    return "".join(sorted(letters | {" "}))


def _width(glyph: list[np.ndarray]) -> float:
    xs = np.concatenate([stroke[:, 0] for stroke in glyph])
    return float(np.ptp(xs))


def prepared(key: str, prepare: Callable[[], Lines]) -> Lines:
    """What `prepare` makes, made once and kept in the cache under `key`; a file there is always whole."""
    path = cache_folder(f"handwriting-{key[:16]}") / "lines.npz"
    with np.load(made_once(path, lambda path: _write(path, prepare()))) as file:
        points, texts = {}, {}
        for split in SPLITS:
            ends = np.cumsum(file[f"{split}_lengths"])[:-1]
            points[split] = np.split(file[f"{split}_points"], ends)
            texts[split] = str(file[f"{split}_texts"]).split("\n")
        return Lines(points, texts, str(file["alphabet"]))


def _write(path: Path, lines: Lines) -> None:
    arrays: dict[str, np.ndarray] = {"alphabet": np.array(lines.alphabet)}
    for split in SPLITS:
        arrays[f"{split}_points"] = np.concatenate(lines.points[split])
        arrays[f"{split}_lengths"] = np.array([len(line) for line in lines.points[split]])
        arrays[f"{split}_texts"] = np.array("\n".join(lines.texts[split]))
    np.savez(path, **arrays)  # type: ignore[arg-type]


def key_of(parts: Iterable[str]) -> str:
    return hashlib.sha256("\n".join([PREPARATION, *parts]).encode()).hexdigest()


def original() -> Source:
    """IAM-OnDB from the data folders; it needs a registration, so it is not downloaded.

    Raises:
        Missing: it is nowhere.
        Mistake: a file is damaged or one of a pair is not there.
    """
    looked = []
    for folder in (folder / iam_ondb.FOLDER for folder in data_folders()):
        if folder.is_dir():
            forms = iam_ondb.listed_forms(folder)
            key = key_of(iam_ondb.checksums(folder, forms))
            load = partial(prepared, key, partial(_iam, folder, forms))
            return Source("IAM-OnDB", "original", key, load, iam_ondb.ORIGIN)
        looked.append(str(folder))
    raise Missing(
        f"IAM-OnDB (lineStrokes/, ascii/ and {', '.join(iam_ondb.LISTS)}) is not in {' or '.join(looked)}; "
        f"register at {iam_ondb.REGISTER} and unpack it there",
        iam_ondb.ORIGIN,
    )


def _iam(folder: Path, forms: dict[str, list[str]]) -> Lines:
    points: dict[str, list[np.ndarray]] = {split: [] for split in SPLITS}
    texts: dict[str, list[str]] = {split: [] for split in SPLITS}
    for split, names in forms.items():
        for form in names:
            for strokes, text in iam_ondb.read_form(folder, form):
                points[split].append(points_of(strokes))
                texts[split].append(iam_ondb.in_alphabet(text))
    return Lines(points, texts, iam_ondb.ALPHABET)


def substitute() -> Source:
    """Lines composed of the strokes of Omniglot's characters, one drawer and alphabet to a line.

    Raises:
        Missing: the two archives are nowhere.
        Mistake: one is cut short or altered.
    """
    looked = []
    for folder in (folder / pen_strokes.OMNIGLOT_FOLDER for folder in data_folders()):
        if all((folder / name).exists() for name in pen_strokes.OMNIGLOT):
            for name, sha256 in pen_strokes.OMNIGLOT.items():
                check_sha256(folder / name, sha256)
            key = key_of(pen_strokes.OMNIGLOT.values())
            load = partial(prepared, key, partial(_omniglot, folder))
            return Source("Omniglot pen strokes", "substitute", key, load, pen_strokes.ORIGIN)
        looked.append(str(folder))
    raise Missing(
        f"Omniglot's strokes ({', '.join(pen_strokes.OMNIGLOT)}) are not in {' or '.join(looked)}; "
        "get the two files from github.com/brendenlake/omniglot, folder python",
        pen_strokes.ORIGIN,
    )


def _omniglot(folder: Path) -> Lines:
    return compose(pen_strokes.omniglot(folder), COMPOSED_LINES, COMPOSED_POINTS)


def embedded() -> Source:
    """Lines composed of the outlines of matplotlib's fonts, each font a writer."""
    key = key_of(pen_strokes.font_checksums())
    return Source(
        "font outlines", "embedded", key, lambda: compose(pen_strokes.fonts(), EMBEDDED_LINES, EMBEDDED_POINTS)
    )
