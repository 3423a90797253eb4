"""Files that are written whole or not at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from ln.suite.errors import Mistake


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file to write, which takes `path`'s place when the block ends: a reader finds the old contents or the new.

    Raises:
        Mistake: it cannot be written, as on a full disk or in a read-only folder; what was there is untouched.
    """
    # A name of this process's own, since two commands may derive the same file at the same time.
    new = path.with_name(f"{path.name}.{os.getpid()}.new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with new.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)
    except BaseException as error:
        with suppress(OSError):
            new.unlink(missing_ok=True)
        cause = _os_error(error)
        if cause is not None and (cause.filename is None or Path(cause.filename) in (new, *path.parents)):
            raise cannot_write(path, cause) from error
        raise


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text, whole or not at all.

    Raises:
        Mistake: it cannot be written.
    """
    with replacing(path) as file:
        file.write(text.encode())


def cannot_write(path: Path, error: OSError) -> Mistake:
    return Mistake(f"{path} cannot be written: {error.strerror or error}")


def _os_error(error: BaseException | None) -> OSError | None:
    """What the system said: some writers, such as torch's, hide it behind an error of their own."""
    while isinstance(error, Exception) and not isinstance(error, OSError):
        error = error.__cause__ or error.__context__
    return error if isinstance(error, OSError) else None
