"""How numbers and words read."""

import re
from collections.abc import Sequence
from urllib.parse import quote

# What begins or ends something in Markdown, in HTML within it, or in GitHub's formulas; an underscore does only at a
# word's end, a bracket only before a parenthesis, and a list or heading only with a blank behind its sign.
SPECIAL = re.compile(r"[\\`*|$]|~~|(?<!\w)_|_(?!\w)|(?<=\])(?=\()|^(?=[#+-]+\s)")
NUMBERED = re.compile(r"^(\d+)(?=[.)]\s)")


def duration(seconds: float) -> str:
    """12 s, 3 min, 1 h 20 min."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


class Ready(str):
    """Text that is Markdown already."""


def markdown(text: object) -> Ready:
    """Text as it reads, within a line or a table of Markdown: nothing in it is taken for a sign."""
    if isinstance(text, Ready):
        return text
    line = re.sub(r"\s+", " ", str(text))
    line = re.sub(r"&(?=#?\w+;)", "&amp;", line).replace("<", "&lt;").replace(">", "&gt;")
    line = SPECIAL.sub(lambda found: "\\" + "\\".join(found[0]) if found[0] else "\\", line)
    return Ready(NUMBERED.sub(r"\1\\", line))  # only a sign can be escaped, not a digit


def code(text: object) -> Ready:
    """Text between backticks, where there are no escapes: more of them than the text has, and no end of a table's
    cell."""
    line = " ".join(str(text).split())
    ticks = "`" * (max(map(len, re.findall("`+", line)), default=0) + 1)
    space = " " if "`" in line else ""
    return Ready(f"{ticks}{space}{line.replace('|', chr(92) + '|')}{space}{ticks}")


def href(path: object) -> Ready:
    """Where a link leads."""
    return Ready(quote(str(path), safe="/#.:"))


def joined(names: Sequence[str]) -> str:
    """A, B and C."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
