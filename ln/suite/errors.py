"""What the user can mend, and how a command says so."""

import sys
from typing import NoReturn


class Mistake(ValueError):
    """Something the user can mend, said in one sentence; shown without a traceback."""


def fail(sentence: object) -> NoReturn:
    """Say one sentence on stderr and stop with a non-zero status."""
    print(f"error: {sentence}", file=sys.stderr, flush=True)
    sys.exit(1)
