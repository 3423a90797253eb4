"""English novels published before 1930: running prose that stands in for corpora which are not to be had."""

import re
import tarfile
from collections.abc import Iterator
from pathlib import Path

from ln.suite.data import Missing, check_sha256, data_folders
from ln.suite.errors import Mistake

ARCHIVE = "novels/100_english_novels.tar.xz"
SHA256 = "c165632371b6f16fccffe72a5e17f1f44e7686d1dca2ccbdfaf0b6d54d45adb6"

PARAGRAPH = re.compile(r"\n\s*\n")
TITLES = ("Mr", "Mrs", "Ms", "Dr", "St", "Rev", "Col", "Capt", "Gen", "Lt", "Messrs", "Mme", "Mlle", "Hon", "Esq")
NO_ENDS = (*TITLES, "etc", "vol", "No", "[A-Z]")  # the last: an initial
SENTENCE_END = re.compile("".join(rf"(?<!\b{word})" for word in NO_ENDS) + r"[.!?]+[\"')\]]*\s+(?=[\"'(\[]*[A-Z])")
STRAIGHT = str.maketrans({"“": '"', "”": '"', "‘": "'", "’": "'", "—": " -- ", "–": "-", "…": "...", "\r": ""})


def archive() -> Path:
    """The archive in the data folders.

    Raises:
        Missing: it is nowhere.
        Mistake: it is cut short or altered.
    """
    looked = []
    for path in (folder / ARCHIVE for folder in data_folders()):
        if path.exists():
            check_sha256(path, SHA256)
            return path
        looked.append(str(path))
    raise Missing(f"the English novels are not in {' or '.join(looked)}; put the archive of 100_english_novels there")


def texts(path: Path) -> Iterator[tuple[str, str]]:
    """File name and text of the archive's novels in its order, one in memory at a time.

    Raises:
        Mistake: a novel that is not UTF-8, with its line.
    """
    with tarfile.open(path, "r|xz") as file:
        for member in file:
            content = file.extractfile(member)
            if content is None:
                continue  # a folder
            raw = content.read()
            try:
                yield Path(member.name).name, raw.decode("utf-8-sig")
            except UnicodeDecodeError as error:
                line = raw[: error.start].count(b"\n") + 1
                raise Mistake(f"{path}: {member.name}, line {line}, is not UTF-8; convert it or take it out") from error


def sentences(text: str) -> Iterator[str]:
    """The sentences of prose in blank-line paragraphs, with straight quotes; a paragraph's end ends a sentence."""
    for paragraph in PARAGRAPH.split(text.translate(STRAIGHT)):
        begin = 0
        for end in (*(match.end() for match in SENTENCE_END.finditer(paragraph)), len(paragraph)):
            if sentence := " ".join(paragraph[begin:end].split()):
                yield sentence
            begin = end
