"""Downloads that are whole or not there at all."""

import hashlib
import os
import shutil
import urllib.request
from contextlib import suppress
from pathlib import Path

from ln.suite.errors import Mistake

TIMEOUT_SECONDS = 20.0


def download(url: str, target: Path, checksum: str | None, kind: str = "sha256") -> Path:
    """`target`, fetched unless it is there, under its own name only once it is whole; `kind` is hashlib's name.

    Raises:
        OSError: no network, or no such file there.
        Mistake: what came is another file than the one that was published.
    """
    if target.exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f"{target.name}.{os.getpid()}.partial")
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_SECONDS) as response, partial.open("wb") as file:
            shutil.copyfileobj(response, file)
        with partial.open("rb") as file:
            found = hashlib.file_digest(file, kind).hexdigest()
        if checksum is not None and found != checksum:
            raise Mistake(
                f"{url} is cut short or another file than was published: its {kind} begins {found[:12]} where "
                f"{checksum[:12]} is expected; get it elsewhere and put it at {target}"
            )
        partial.replace(target)
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
    return target
