"""Characters as pen strokes, by writer: drawn by people (Omniglot), or traced along the outlines of fonts.

A stroke is an (n, 2) array of x, y with y upwards; a character is its strokes in the order they were drawn.
"""

import zipfile
from pathlib import Path

import numpy as np

from ln.suite.data import Origin, sha256_of
from ln.suite.data.fetching import download
from ln.suite.errors import Mistake

Glyph = list[np.ndarray]
Writers = dict[str, dict[str, Glyph]]  # writer -> character -> strokes

OMNIGLOT = {
    "strokes_background_small1.zip": "8cb3960fb6cf4ccf5f064ad83169f828c36c36782a0f6e7faacb7ecfae4468a2",
    "strokes_background_small2.zip": "345bf2141efbea062833dbb2828abbc23d9e07825e46f2afdd4daecddfed6e78",
}
OMNIGLOT_FOLDER = Path("omniglot")
OMNIGLOT_HOME = "https://github.com/brendenlake/omniglot"


def _download() -> None:
    for name, sha256 in OMNIGLOT.items():
        download(f"{OMNIGLOT_HOME}/raw/master/python/{name}", "data" / OMNIGLOT_FOLDER / name, sha256)


ORIGIN = Origin("Omniglot", f"{OMNIGLOT_HOME}, folder python", "MIT", "7 MB", _download)
LATIN = "abcdefghijklmnopqrstuvwxyz"
GREEK = "αβγδεζηθικλμνξοπρστυφχψω"
PRIVATE = 0xE000  # Unicode's private characters stand for those of the other alphabets, in Omniglot's order
POINTS_AVERAGED = 8  # mouse positions to one pen point: about 18 to a character, where IAM-OnDB has about 25
PIXEL = 0.8  # the grid on which they were recorded

FONTS = {
    "train": ("DejaVuSans", "DejaVuSans-Oblique", "DejaVuSerif", "DejaVuSansMono", "STIXGeneral", "cmss10", "cmtt10"),
    "valid": ("DejaVuSerif-Italic", "STIXGeneralItalic"),
    "test": ("DejaVuSansMono-Oblique", "cmr10"),
}
OUTLINE_STEP = 12.0  # between the points of a traced outline, for letters of 100 units


def omniglot(folder: Path) -> dict[str, Writers]:
    """Each split's drawers, told apart by alphabet and number, since a number is another person in each alphabet.

    Of an alphabet's 20 drawers the first 14 are for training, three for validation and three for the test.

    Raises:
        Mistake: an archive's member is not a drawing.
    """
    splits: dict[str, Writers] = {"train": {}, "valid": {}, "test": {}}
    first_free = PRIVATE
    generator = np.random.default_rng(0)
    letters: dict[tuple[str, str], str] = {}
    for archive_name in OMNIGLOT:
        with zipfile.ZipFile(folder / archive_name) as archive:
            for name in sorted(archive.namelist()):
                if not name.endswith(".txt") or name.startswith("__MACOSX"):
                    continue
                _, alphabet, character, file = name.split("/")
                if (alphabet, character) not in letters:
                    known = {"Latin": LATIN, "Greek": GREEK}.get(alphabet)
                    letters[alphabet, character] = known[int(character[-2:]) - 1] if known else chr(first_free)
                    first_free += known is None
                drawer = int(file.removesuffix(".txt").rpartition("_")[2])
                split = "train" if drawer <= 14 else "valid" if drawer <= 17 else "test"
                strokes = drawing(archive.read(name).decode("ascii", "replace"), f"{folder / archive_name}, {name}")
                glyphs = splits[split].setdefault(f"{alphabet} {drawer}", {})
                glyphs[letters[alphabet, character]] = [thinned(stroke, generator) for stroke in strokes]
    return splits


def drawing(text: str, where: str) -> list[np.ndarray]:
    """The strokes of one of Omniglot's files: `START`, then `x,y,milliseconds` lines, `BREAK` after each stroke.

    Raises:
        Mistake: a line that is none of these, or no points at all; `where` names the file.
    """
    strokes: list[np.ndarray] = []
    points: list[tuple[float, float]] = []
    for number, line in enumerate(text.split("\n"), 1):
        line = line.strip()
        if line == "BREAK":
            if points:  # a few files break twice
                strokes.append(np.array(points))
            points = []
        elif line not in ("START", ""):
            try:
                x, y, _ = map(float, line.split(","))
            except ValueError as error:
                raise Mistake(f"{where}, line {number}: `{line[:40]}` is not x,y,milliseconds") from error
            points.append((x, y))
    if points or not strokes:
        raise Mistake(f"{where}: no BREAK at the end of the drawing; the file is cut short")
    return strokes


def thinned(stroke: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """The stroke's ends and the averages of POINTS_AVERAGED positions between them, each somewhere within its pixel.

    One offset in ten would be exactly 0 on the grid, and a density over values that recur has no bound.
    """
    if len(stroke) > 2:
        blocks = np.array_split(stroke, -(-len(stroke) // POINTS_AVERAGED))
        stroke = np.concatenate([stroke[:1], [block.mean(axis=0) for block in blocks], stroke[-1:]])
    return stroke + generator.uniform(-PIXEL / 2, PIXEL / 2, stroke.shape)


def _font(name: str) -> Path:
    from matplotlib import get_data_path

    return Path(get_data_path()) / "fonts" / "ttf" / f"{name}.ttf"


def font_checksums() -> list[str]:
    return [f"{split} {name} {sha256_of(_font(name))}" for split, names in FONTS.items() for name in names]


def fonts() -> dict[str, Writers]:
    """Each split's fonts as writers of a to z, which trace the outlines with an unsteady hand."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import TextPath

    generator = np.random.default_rng(0)
    splits: dict[str, Writers] = {}
    for split, names in FONTS.items():
        splits[split] = {}
        for name in names:
            properties = FontProperties(fname=str(_font(name)))
            splits[split][name] = {}
            for letter in LATIN:
                outlines = TextPath((0, 0), letter, size=100, prop=properties).to_polygons(closed_only=False)
                strokes = [_even(outline) for outline in map(np.asarray, outlines) if len(outline) > 1]
                # Straight outlines in even steps could be predicted without end; people's hands tremble.
                splits[split][name][letter] = [s + generator.normal(0.0, 1.0, s.shape) for s in strokes]
    return splits


def _even(outline: np.ndarray) -> np.ndarray:
    """Points along a polygon (n, 2), about OUTLINE_STEP apart."""
    along = np.concatenate([[0.0], np.cumsum(np.hypot(*np.diff(outline, axis=0).T))])
    at = np.linspace(0.0, along[-1], max(5, round(along[-1] / OUTLINE_STEP)))
    return np.stack([np.interp(at, along, outline[:, axis]) for axis in (0, 1)], axis=1)
