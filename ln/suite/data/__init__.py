"""Where data comes from: original, else the recipe's declared substitute, else embedded.

A dataset's module offers finders. A finder looks for the files, checks them, and returns a `Source`, or raises
`Missing` when they are not there. Files that are there but wrong raise `Mistake`: nothing is trained on them, and
nothing else is taken silently in their place.
"""

import codecs
import fcntl
import functools
import hashlib
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ln.suite.errors import Mistake
from ln.suite.files import cannot_write


@dataclass(frozen=True)
class Origin:
    """Where a set of data is to be had."""

    name: str
    where: str
    terms: str
    size: str
    fetch: Callable[[], object] | None = None  # brings it into data/; None where a person must


class Missing(Exception):
    """The files are not there; the message names them, where they were looked for and where to get them."""

    def __init__(self, said: str, origin: Origin | None = None):
        super().__init__(said)
        self.origin = origin


class NotOffered(Mistake):
    """No data of the status that is asked for."""


class Absent(Mistake):
    """Data that was asked for is not there."""

    def __init__(self, said: str, origin: Origin | None):
        super().__init__(said)
        self.origin = origin


@dataclass(frozen=True)
class Source:
    """Data that was found and checked, not yet read."""

    name: str  # such as MNIST
    status: str  # original | substitute | embedded
    sha256: str  # of the files, or of the recipe that makes embedded data
    load: Callable[[], Any]
    origin: Origin | None = None  # None for what is made by a recipe

    @property
    def identity(self) -> dict[str, str]:
        return {"name": self.name, "status": self.status, "sha256": self.sha256}


def data_folders() -> list[Path]:
    """Where files are looked for: $LN_DATA, then data/."""
    folders = [Path(os.environ["LN_DATA"])] if os.environ.get("LN_DATA") else []
    return [*folders, Path("data")]


def cache_folder(key: str) -> Path:
    """A folder of our own for what is unpacked or prepared from data whose folder may be read-only.

    Raises:
        Mistake: it cannot be made.
    """
    root = os.environ.get("LN_CACHE") or os.path.join(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "ln-suite")
    folder = Path(os.path.expanduser(root)) / key
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Mistake(f"{cannot_write(folder, error)}; point LN_CACHE elsewhere") from error
    return folder


def made_once(path: Path, make: Callable[[Path], object]) -> Path:
    """`path` in the cache, a file or a folder, written by `make` on first use: of several runs that start at once one
    makes it, the others wait for it, and what is there is always whole.

    Raises:
        Mistake: it cannot, as in a folder that is full, read-only or cannot be locked.
    """
    if path.exists():
        return path
    try:
        with (path.parent / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not path.exists():
                with tempfile.TemporaryDirectory(dir=path.parent) as temporary:
                    unfinished = Path(temporary) / path.name
                    make(unfinished)
                    unfinished.rename(path)
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        raise Mistake(f"{path} cannot be made: {error.strerror or error}{where}") from error
    return path


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_sha256(path: Path, expected: str, text: bool = False) -> None:
    """Raise Mistake when a file is cut short or altered; other line ends or a byte order mark do not alter a `text`."""
    found = sha256_of(path)
    if found == expected or (text and expected in _sha256_of_variants(path)):
        return
    raise Mistake(
        f"{path} is cut short or altered: its sha256 begins {found[:12]} where {expected[:12]} is expected; "
        "delete it and get it again"
    )


def _sha256_of_variants(path: Path) -> set[str]:
    """The checksums of a text file with the line ends of Unix and of Windows, without a byte order mark."""
    plain = path.read_bytes().removeprefix(codecs.BOM_UTF8).replace(b"\r\n", b"\n")
    return {hashlib.sha256(content).hexdigest() for content in (plain, plain.replace(b"\n", b"\r\n"))}


def text_lines(path: Path, encoding: str = "utf-8") -> list[str]:
    """The lines of a text file without their ends: LF or CRLF, and no other character that Unicode counts as one.

    Raises:
        Mistake: bytes that are not of this encoding, with the line.
    """
    raw = path.read_bytes().removeprefix(codecs.BOM_UTF8)
    try:
        text = raw.decode(encoding)
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise Mistake(f"{path}, line {line}: a byte is not {encoding.upper()}; convert the file to it") from error
    lines = text.removesuffix("\n").split("\n")
    return [line.removesuffix("\r") for line in lines] if text else []


@functools.cache
def _say_once(sentence: str) -> None:
    print(sentence, flush=True)


_looking_only = ContextVar("looking only", default=False)


@contextmanager
def looking_only() -> Iterator[None]:
    """What is found in this block is neither downloaded nor announced."""
    token = _looking_only.set(True)
    try:
        yield
    finally:
        _looking_only.reset(token)


def fetched(origin: Origin, missing: str, advice: str) -> None:
    """Fetch what a finder has not found.

    missing, advice: what is not where, and what else to do, for the message.

    Raises:
        Missing: it cannot be downloaded, or must not be.
        Mistake: what came is not what was published.
    """
    assert origin.fetch is not None
    if _looking_only.get():
        raise Missing(missing, origin)
    try:
        origin.fetch()
    except Mistake:
        raise
    except Exception as error:  # whatever the network, the hub or the disk says
        raise Missing(f"{missing} and could not be downloaded ({last_line(error)}); {advice}", origin) from error


def last_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[-1] if lines else type(error).__name__


def resolve(request: str, finders: dict[str, Callable[[], Source]]) -> Source:
    """The data that `data=<request>` asks for, and one printed line, once in a process, that says which it is.

    `finders` maps a status to its finder, best first. `auto` takes the first that is there.

    Raises:
        Absent: the status asked for is not there.
        NotOffered: it is not offered.
        Mistake: a file is there but wrong.
    """
    if request not in ("auto", *finders):
        raise NotOffered(f"data={request} is not offered here; choose one of auto, {', '.join(finders)}")
    missing: list[str] = []
    origin = None
    for status, find in finders.items():
        if request not in ("auto", status):
            continue
        try:
            source = find()
        except Missing as reason:
            missing.append(str(reason))
            origin = origin or reason.origin
            continue
        note = f" ({'; '.join(missing)})" if missing else ""
        if not _looking_only.get():
            _say_once(f"data: {source.name} [{source.status}]{note}")
        return source
    raise Absent(f"data={request}: {'; '.join(missing)}", origin)
