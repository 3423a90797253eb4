"""Reader of IAM-OnDB in its original layout, below one folder:

lineStrokes/a01/a01-000/a01-000u-01.xml    the strokes of a form's lines
ascii/a01/a01-000/a01-000u.txt             the form's text, one line of it per line after "CSR:"
trainset.txt, testset_v.txt, testset_t.txt, testset_f.txt     the forms of each split
"""

import hashlib
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ln.suite.data import Origin, text_lines
from ln.suite.errors import Mistake

FOLDER = "IAM-OnDB"
REGISTER = "https://fki.tic.heia-fr.ch/databases/iam-on-line-handwriting-database"
ORIGIN = Origin("IAM-OnDB", f"{REGISTER}, after a registration", "non-commercial research", "size not known to us")
# The second validation list joins the training lines, as in Graves' experiment; unlike there, the test list does not.
LISTS = {"trainset.txt": "train", "testset_t.txt": "train", "testset_v.txt": "valid", "testset_f.txt": "test"}
LEFT_OUT = {"z01-000z"}  # public readers of the set leave this form out: its text does not match its lines
OTHER = "#"
# 57 classes as in the paper. Which they are is not stated; all other characters share one, as in Graves' experiment.
ALPHABET = "".join(sorted(f" abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.,'{OTHER}"))


def listed_forms(folder: Path) -> dict[str, list[str]]:
    """The forms of each split.

    Raises:
        Mistake: a list is not there or is empty, or a form stands in two.
    """
    forms: dict[str, list[str]] = {}
    seen: dict[str, str] = {}
    for name, split in LISTS.items():
        path = folder / name
        if not path.exists():
            raise Mistake(f"{path} is not there; IAM-OnDB's split lists {', '.join(LISTS)} belong into {folder}")
        names = [form for line in text_lines(path) for form in line.split() if form not in LEFT_OUT]
        if not names:
            raise Mistake(f"{path} names no form")
        for form in names:
            if form in seen:
                raise Mistake(f"{path}: form {form} stands in {seen[form]} too, so that its lines would leak")
            seen[form] = name
        forms.setdefault(split, []).extend(names)
    return forms


def _files(folder: Path, form: str) -> tuple[Path, list[Path]]:
    """The text of a form, and the strokes of its lines in their order."""
    below = Path(form[:3]) / form[:7]
    text = folder / "ascii" / below / f"{form}.txt"
    lines = sorted((folder / "lineStrokes" / below).glob(f"{form}-[0-9]*.xml"))
    if not text.exists():
        raise Mistake(f"{text} is not there, the text of a form that a split list names")
    if not lines:
        raise Mistake(f"{folder / 'lineStrokes' / below}: no lines of form {form}, which a split list names")
    return text, lines


def checksums(folder: Path, forms: dict[str, list[str]]) -> Iterator[str]:
    """`split form sha256` of all files of a form, for every form."""
    for split, names in forms.items():
        for form in names:
            text, lines = _files(folder, form)
            digest = hashlib.sha256()
            for path in (text, *lines):
                digest.update(path.read_bytes())
            yield f"{split} {form} {digest.hexdigest()}"


def read_form(folder: Path, form: str) -> list[tuple[list[np.ndarray], str]]:
    """Strokes and text of each line of a form.

    Raises:
        Mistake: a file is not there or is damaged, or the form has not as many lines of text as of strokes.
    """
    text, paths = _files(folder, form)
    texts = read_text(text)
    if len(texts) != len(paths):
        raise Mistake(f"{text}: {len(texts)} lines of text, but {len(paths)} files of strokes in {paths[0].parent}")
    return [(read_strokes(path), line) for path, line in zip(paths, texts, strict=True)]


def read_text(path: Path) -> list[str]:
    """The corrected transcription: the lines after `CSR:` that are not blank."""
    raw = path.read_text(encoding="latin-1").replace("%%%%%%%%%%%", "\n")  # some files divide lines by this
    _, found, after = raw.partition("CSR:")
    lines = [" ".join(line.split()) for line in after.split("\n") if line.strip()]
    if not found or not lines:
        raise Mistake(f"{path}: no text after a line `CSR:`; the file is damaged")
    return lines


def read_strokes(path: Path) -> list[np.ndarray]:
    """The strokes (n, 2) of one line, y upwards.

    Raises:
        Mistake: no XML, no strokes, a stroke without points, coordinates that are no numbers, a line of one point only.
    """
    try:
        root = ElementTree.parse(path).getroot()
    except ElementTree.ParseError as error:
        raise Mistake(f"{path}, line {error.position[0]}: not well-formed XML; the file is damaged") from error
    strokes = []
    for number, stroke in enumerate(root.iterfind("./StrokeSet/Stroke"), 1):
        try:
            points = [(float(point.attrib["x"]), -float(point.attrib["y"])) for point in stroke.iterfind("Point")]
        except (KeyError, ValueError) as error:
            raise Mistake(f"{path}: stroke {number} has a point without numbers x and y") from error
        if not points:
            raise Mistake(f"{path}: stroke {number} has no points")
        if not np.isfinite(points).all():
            raise Mistake(f"{path}: stroke {number} has a point that is not finite")
        strokes.append(np.array(points))
    if not strokes:
        raise Mistake(f"{path}: no strokes below StrokeSet")
    if (np.concatenate(strokes) == strokes[0][0]).all():
        raise Mistake(f"{path}: all strokes have length zero in one place, so there is no line to learn")
    return strokes


def in_alphabet(text: str) -> str:
    """The text with the characters that have no class of their own replaced by the class of all others."""
    return "".join(letter if letter in ALPHABET else OTHER for letter in text)
