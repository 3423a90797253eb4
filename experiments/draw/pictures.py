"""Pictures of a trained DRAW model: samples, reconstructions, and the canvas growing under the attention windows.

Shapes: T glimpses, N digits shown, A side of the image.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

if TYPE_CHECKING:
    from experiments.draw.network import Draw, Glimpse

DIGITS = 10  # in a row
SAMPLE_ROWS = 8
STILL_COLUMNS = 8
GAP = 4  # pixels of white between digits
READ_COLOUR, WRITE_COLOUR = (0, 114, 178), (213, 94, 0)  # Okabe & Ito's blue and vermilion
FRAMES, GREYS = 32, 14  # what keeps a picture of 64 glimpses small
MILLISECONDS, HOLD_MILLISECONDS = 150, 1500
SCREEN = 56  # a digit's least side in a picture, in pixels


def draw(model: "Draw", images: Tensor, noise: Callable[[int], Tensor], folder: Path) -> None:
    """Write samples.png, reconstructions.png, glimpses.gif, glimpses.png; images (N, A, A), noise(n) -> (T, n, Z)."""
    shown = images[torch.arange(DIGITS) * len(images) // DIGITS]
    *_, last = model.unroll(None, noise(DIGITS * SAMPLE_ROWS))
    samples = _digits(last.canvas.sigmoid(), last.canvas.shape[1])
    _grid([samples[row * DIGITS : (row + 1) * DIGITS] for row in range(SAMPLE_ROWS)]).save(folder / "samples.png")

    reading = list(model.unroll(shown, noise(DIGITS)))
    painting = list(model.unroll(None, noise(DIGITS)))
    rows = [shown, reading[-1].canvas.sigmoid()]
    _grid([_digits(row, model.side) for row in rows]).save(folder / "reconstructions.png")

    every = -(-len(reading) // FRAMES)  # the last glimpse is always shown
    pairs = list(zip(reading, painting, strict=True))[::-every][::-1]
    frames = [_frame(model, shown, *pair) for pair in pairs]
    times = [MILLISECONDS] * (len(frames) - 1) + [HOLD_MILLISECONDS]
    few = [frame.quantize(palette=_palette(), dither=Image.Dither.NONE) for frame in frames]
    few[0].save(folder / "glimpses.gif", save_all=True, append_images=few[1:], duration=times, loop=0)
    _still(model, shown, reading).save(folder / "glimpses.png")


def window(aim: Tensor, side: int, second: int) -> np.ndarray:
    """(N, 4) left, top, right, bottom: the means of a window's outermost filters, in pixels from the image's corner,
    from what the windows were aimed with (N, 10); `second` is 0 for the read window and 1 for the write window."""
    centre = (aim[:, 2 * second : 2 * second + 2] + 1) * (side + 1) / 2 - 0.5  # y, x
    reach = aim[:, 4 + second, None].exp() * (side - 1) / 2
    corners = torch.cat([(centre - reach).flip(1), (centre + reach).flip(1)], 1)
    return corners.double().cpu().numpy()


def _palette() -> Image.Image:
    """The few colours of all frames."""
    greys = [(255 * i // (GREYS - 1),) * 3 for i in range(GREYS)]
    palette = Image.new("P", (1, 1))
    palette.putpalette([part for colour in (READ_COLOUR, WRITE_COLOUR, *greys) for part in colour])
    return palette


def _digits(images: Tensor, side: int) -> list[Image.Image]:
    """Images (N, A, A) in [0, 1], dark ink on white, enlarged without smoothing."""
    factor = max(1, SCREEN // side)
    ink = (255 * (1 - images)).round().byte().cpu().numpy().repeat(factor, 1).repeat(factor, 2)
    return [Image.fromarray(digit).convert("RGB") for digit in ink]


def _grid(rows: Sequence[Sequence[Image.Image]]) -> Image.Image:
    width, height = rows[0][0].size
    size = (len(rows[0]) * (width + GAP) + GAP, len(rows) * (height + GAP) + GAP)
    grid = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(grid)
    for y, row in enumerate(rows):
        for x, digit in enumerate(row):
            left, top = GAP + x * (width + GAP), GAP + y * (height + GAP)
            pen.rectangle((left - 1, top - 1, left + width, top + height), outline=(205, 205, 205))
            grid.paste(digit, (left, top))
    return grid


def _windowed(images: Tensor, boxes: np.ndarray, colour: tuple[int, int, int], side: int) -> list[Image.Image]:
    digits = _digits(images, side)
    for digit, box in zip(digits, boxes * (digits[0].width / side), strict=True):
        left, top, right, bottom = (round(float(edge)) for edge in box)
        corners = (left, top, max(right, left + 1), max(bottom, top + 1))
        ImageDraw.Draw(digit).rectangle(corners, outline=colour, width=2)
    return digits


def _frame(model: "Draw", shown: Tensor, reading: "Glimpse", painting: "Glimpse") -> Image.Image:
    """Three rows: the digits being read, the canvas they are copied to, and a canvas painted from the prior."""
    side = model.side
    return _grid(
        [
            _windowed(shown, window(reading.aim[0], side, 0), READ_COLOUR, side),
            _windowed(reading.canvas.sigmoid(), window(reading.aim[1], side, 1), WRITE_COLOUR, side),
            _windowed(painting.canvas.sigmoid(), window(painting.aim[1], side, 1), WRITE_COLOUR, side),
        ]
    )


def _still(model: "Draw", shown: Tensor, reading: Sequence["Glimpse"]) -> Image.Image:
    """Time runs to the right: for four digits, the window that reads, and below the canvas and where it is written."""
    side = model.side
    columns = min(STILL_COLUMNS, len(reading))
    times = [round(i * (len(reading) - 1) / max(columns - 1, 1)) for i in range(columns)]
    rows = []
    for digit in (0, 3, 5, 8):  # in the order of the sorted test file: different ones
        one = slice(digit, digit + 1)
        reads, writes = [], []
        for glimpse in (reading[t] for t in times):
            reads += _windowed(shown[one], window(glimpse.aim[0][one], side, 0), READ_COLOUR, side)
            writes += _windowed(glimpse.canvas[one].sigmoid(), window(glimpse.aim[1][one], side, 1), WRITE_COLOUR, side)
        rows += [reads, writes]
    return _grid(rows)
