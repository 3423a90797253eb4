"""A page of passages, each word shaded by the attention it got, with what was asked, answered and right.

Shapes: T words of a passage.
"""

import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from ln.suite.data.cloze import PLACEHOLDER
from ln.suite.showing.figures import new_figure, save

EACH = 3  # passages answered rightly, and as many wrongly
LINE = 84  # characters
SHADE, RIGHT, WRONG = "#E69F00", "#009E73", "#D55E00"  # Okabe & Ito's orange, green and vermilion
LINE_INCHES, CHARACTER_INCHES, POINTS = 0.17, 0.075, 8.0


@dataclass(frozen=True)
class Answered:
    """A passage and question as words, the attention (T,), the right answer and the network's."""

    passage: list[str]
    question: list[str]
    attention: np.ndarray
    answer: str
    given: str


def places(words: list[str], width: int) -> list[tuple[int, int]]:
    """Line and column of each word in lines of at most `width` characters, one space between words."""
    found, line, column = [], 0, 0
    for word in words:
        if column and column + len(word) > width:
            line, column = line + 1, 0
        found.append((line, column))
        column += len(word) + 1
    return found


def readable(word: str) -> str:
    """@entity3 as the shorter @3."""
    return "@___" if word == PLACEHOLDER else word.replace("@entity", "@")


def chosen(answered: list[Answered]) -> list[Answered]:
    """The first that were answered rightly, then the first that were wrongly though the passage holds the answer."""
    right = [one for one in answered if one.given == one.answer]
    wrong = [one for one in answered if one.given != one.answer and one.answer in one.passage]
    return [*right[:EACH], *wrong[:EACH]]


def draw(path: Path, answered: list[Answered], norm: str) -> None:
    """Write the page, as PNG only: as vectors it would be large. Without any passage to show there is none."""
    ones = chosen(answered)
    if not ones:
        return
    heights = [max(4, _lines(one)) for one in ones]
    share = sum(one.given == one.answer for one in answered) / len(answered)
    figure, _ = new_figure(1, 1, LINE * CHARACTER_INCHES + 0.3, (sum(heights) + 2) * LINE_INCHES)
    figure.clear()
    panels = figure.subplots(len(ones), 1, squeeze=False, gridspec_kw={"height_ratios": heights})
    for axes, one, height in zip(panels[:, 0], ones, heights, strict=True):
        _draw_one(axes, one, height)
    title = f"Attention on passages of the test split, {norm}: {100 * share:.0f} % of {len(answered)} right"
    figure.suptitle(title, fontsize=9)
    save(figure, path, vectors=False)


def _asked(one: Answered) -> list[str]:
    return textwrap.wrap("? " + " ".join(map(readable, one.question)), LINE, subsequent_indent="  ")


def _lines(one: Answered) -> int:
    """Of the passage, the question and the verdict, and one that is empty."""
    return places([readable(word) for word in one.passage], LINE)[-1][0] + 1 + len(_asked(one)) + 2


def _draw_one(axes: Axes, one: Answered, height: int) -> None:
    axes.set_xlim(0, LINE)
    axes.set_ylim(height, 0)
    axes.axis("off")
    words = [readable(word) for word in one.passage]
    font: dict[str, Any] = {"family": "monospace", "fontsize": POINTS, "va": "center"}
    line = 0
    # Shading by the share of the largest weight: weights themselves are small in a long passage.
    for word, (line, column), weight in zip(words, places(words, LINE), one.attention, strict=True):
        shade = float(weight / one.attention.max())
        axes.barh(line + 0.5, len(word), height=0.9, left=column, color=SHADE, alpha=shade, linewidth=0)
        bold = "bold" if word == readable(one.answer) else "normal"
        for offset, character in enumerate(word):
            axes.text(column + offset + 0.5, line + 0.5, character, ha="center", weight=bold, **font)
    for text in _asked(one):
        line += 1
        for column, character in enumerate(text):
            axes.text(column + 0.5, line + 0.5, character, ha="center", color="#444444", **font)
    right = one.given == one.answer
    verdict = f"{readable(one.given)}, right" if right else f"{readable(one.given)}, wrong: {readable(one.answer)}"
    axes.text(0, line + 1.5, f"answered {verdict}", color=RIGHT if right else WRONG, **font)
