"""English novels published before 1930: running prose that stands in for corpora which are not to be had."""

import io
import re
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

from ln.suite.data import Missing, Origin, check_sha256, data_folders, sha256_of
from ln.suite.data.fetching import download
from ln.suite.errors import Mistake
from ln.suite.files import replacing

ARCHIVE = "novels/100_english_novels.tar.xz"
REMADE = "novels/100_english_novels_remade.tar.xz"
HOME = "https://github.com/computationalstylistics/100_english_novels"
MEMBER = re.compile(r"[^/]+/(corpus/\w+_(\d{4})\.txt)")
BEFORE = 1930  # in the public domain in the United States
SHA256 = "c165632371b6f16fccffe72a5e17f1f44e7686d1dca2ccbdfaf0b6d54d45adb6"

PARAGRAPH = re.compile(r"\n\s*\n")
TITLES = ("Mr", "Mrs", "Ms", "Dr", "St", "Rev", "Col", "Capt", "Gen", "Lt", "Messrs", "Mme", "Mlle", "Hon", "Esq")
NO_ENDS = (*TITLES, "etc", "vol", "No", "[A-Z]")  # the last: an initial
SENTENCE_END = re.compile("".join(rf"(?<!\b{word})" for word in NO_ENDS) + r"[.!?]+[\"')\]]*\s+(?=[\"'(\[]*[A-Z])")
STRAIGHT = str.maketrans({"“": '"', "”": '"', "‘": "'", "’": "'", "—": " -- ", "–": "-", "…": "...", "\r": ""})


def fetch() -> None:
    """Pack the novels before 1930 of the public collection into an archive of our own.

    Raises:
        OSError: no network.
        Mistake: the collection holds no such novel, or the archive cannot be written.
    """
    with tempfile.TemporaryDirectory() as folder:
        pack(download(f"{HOME}/archive/HEAD.tar.gz", Path(folder) / "collection.tar.gz", None), Path("data") / REMADE)


def pack(collection: Path, target: Path) -> None:
    """The novels of the collection's archive in the order of their names, with no time or owner that would differ."""
    with tarfile.open(collection) as source:
        chosen = {
            match[1]: member
            for member in source
            if member.isfile() and (match := MEMBER.fullmatch(member.name)) and int(match[2]) < BEFORE
        }
        if not chosen:
            raise Mistake(f"{HOME} holds no corpus/<author>_<title>_<year>.txt before {BEFORE}")
        with replacing(target) as file, tarfile.open(fileobj=file, mode="w:xz") as packed:
            for name in sorted(chosen):
                content = source.extractfile(chosen[name])
                assert content is not None
                text = content.read()
                member = tarfile.TarInfo(name)
                member.size = len(text)
                packed.addfile(member, io.BytesIO(text))
    print(f"{target}: {len(chosen)} novels")


ORIGIN = Origin("English novels", HOME, "in the public domain in the United States", "21 MB", fetch)


def archive() -> tuple[Path, str]:
    """The archive in the data folders, that of the published runs or one made anew, and its sha256.

    Raises:
        Missing: it is nowhere.
        Mistake: it is cut short or altered.
    """
    looked = []
    for path in (folder / ARCHIVE for folder in data_folders()):
        if path.exists():
            check_sha256(path, SHA256)
            return path, SHA256
        looked.append(str(path))
    for path in (folder / REMADE for folder in data_folders()):
        if path.exists():
            return path, sha256_of(path)
    raise Missing(
        f"the English novels are not in {' or '.join(looked)}; put the archive of 100_english_novels there", ORIGIN
    )


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
