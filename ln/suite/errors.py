"""What the user can mend, and how a command says so."""

import argparse
import os
import sys
from typing import NoReturn


class Mistake(ValueError):
    """Something the user can mend, said in one sentence; shown without a traceback."""


def fail(sentence: object) -> NoReturn:
    """Say one sentence on stderr and stop with a non-zero status."""
    print(f"error: {sentence}", file=sys.stderr, flush=True)
    sys.exit(1)


def one_sentence(error: Exception) -> str:
    """A Mistake says all there is to say; of anything else the traceback is in the run's error.log."""
    if isinstance(error, Mistake):
        return str(error)
    where = getattr(error, "log", None)
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}" + (
        f" (see {where})" if where else ""
    )


def results_folder(text: str) -> str:
    """The `type` of an argument that names a results folder, there or yet to be made."""
    try:
        os.stat(text)
    except (FileNotFoundError, NotADirectoryError):
        pass  # whoever reads or makes it has the better sentence
    except (OSError, ValueError) as error:
        said = text if len(text) < 80 else f"{text[:80]}..."
        raise argparse.ArgumentTypeError(f"{said}: {getattr(error, 'strerror', None) or error}") from error
    return text
