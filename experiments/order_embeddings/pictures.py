"""Pictures of an order embedding: what it finds for a caption, and the order it has learned.

Shapes: S sentences, V images, H embedding.
"""

from pathlib import Path
from textwrap import wrap

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from torch import Tensor

from ln.norms import NORMS
from ln.suite.data.precomp import CAPTIONS, Captioned
from ln.suite.data.scenes import contained, parsed
from ln.suite.showing.figures import new_figure, save

QUERIES, SHOWN = 8, 5
RIGHT = "#009E73"  # Okabe & Ito's green
CHAINS = 12
TEXT_WIDTH = 28  # characters of a line beside pictures


def ordered_pairs(captions: list[list[str]]) -> tuple[Tensor, Tensor]:
    """Which captions of scenes are more general than which: indices (P,), (P,). The same meaning twice is no pair."""
    texts = [" ".join(caption) for caption in captions]
    first = {text: i for i, text in reversed(list(enumerate(texts)))}  # each text once
    things = {i: parsed(captions[i]) for i in first.values()}
    found = [
        (i, j)
        for i, ours in things.items()
        for j, theirs in things.items()
        if i != j and contained(ours, theirs) and not contained(theirs, ours)
    ]
    general, specific = zip(*found, strict=True)
    return torch.tensor(general), torch.tensor(specific)


def violations(s: Tensor, general: Tensor, specific: Tensor) -> tuple[Tensor, Tensor]:
    """(P,) how far each pair of sentences (S, H) violates the true order, and the order turned round."""
    difference = s[general] - s[specific]
    return difference.clamp(min=0).square().sum(1), difference.clamp(max=0).square().sum(1)


def retrievals(path: Path, data: Captioned, error: Tensor, rank: Tensor, norm: str, source: str) -> None:
    """Captions spread over the split with the images nearest to them, the right one marked; for features without
    pictures, the images' names and first captions. error (S, V), rank (S,) of each caption's own image."""
    # Evenly spread, another of its image's captions each time.
    places = np.linspace(0, len(error) - CAPTIONS, QUERIES).round().astype(int) // CAPTIONS
    queries = [CAPTIONS * int(image) + k % CAPTIONS for k, image in enumerate(places)]
    nearest = error.argsort(dim=1, stable=True)[:, :SHOWN]
    scenes = data.pictures is not None
    figure, axes = new_figure(1, width=7.2 if scenes else 10, height=8.4)
    axis = axes[0, 0]
    axis.set(xlim=(0, 1 if not scenes else 7.2), ylim=(QUERIES, 0))
    axis.axis("off")
    for row, query in enumerate(queries):
        own = f"own image: rank {int(rank[query])} of {error.shape[1]}"
        (_scene_row if scenes else _name_row)(axis, row, data, query, nearest[query].tolist(), own)
    figure.suptitle(f"{source}, test: the images nearest to a caption ({NORMS[norm].label})", fontsize=10)
    save(figure, path, vectors=False)


def _scene_row(axis: Axes, row: int, data: Captioned, query: int, nearest: list[int], own: str) -> None:
    assert data.pictures is not None
    axis.text(0, row + 0.06, _wrapped(data.captions[query], TEXT_WIDTH), va="top", fontsize=8)
    axis.text(0, row + 0.94, own, va="bottom", fontsize=7, color=RIGHT)
    for place, image in enumerate(nearest):
        left = 2.1 + 1.02 * place
        right = image == query // CAPTIONS
        axis.imshow(data.pictures[image], extent=(left, left + 0.94, row + 0.97, row + 0.03), interpolation="nearest")
        frame = Rectangle((left, row + 0.03), 0.94, 0.94, fill=False)
        frame.set(edgecolor=RIGHT if right else "#cccccc", linewidth=3 if right else 0.8)
        axis.add_patch(frame)
        axis.text(left + 0.05, row + 0.08, f"{place + 1}{' ✓' * right}", va="top", fontsize=7, color="#333333")
    axis.set(xlim=(0, 7.2), ylim=(QUERIES, 0), aspect="equal")


def _name_row(axis: Axes, row: int, data: Captioned, query: int, nearest: list[int], own: str) -> None:
    axis.text(0, row + 0.05, f"“{' '.join(data.captions[query])}”", va="top", fontsize=8)
    image = query // CAPTIONS
    axis.text(0.02, row + 0.20, f"{own}, {data.names[image]}", va="top", fontsize=7, color=RIGHT)
    for place, image in enumerate(nearest):
        right, y = image == query // CAPTIONS, row + 0.33 + 0.12 * place
        words = " ".join(data.captions[CAPTIONS * image])
        for x, text in ((0.02, f"{place + 1}{' ✓' * right}"), (0.05, data.names[image]), (0.26, words)):
            axis.text(
                x,
                y,
                text,
                va="top",
                fontsize=7,
                color=RIGHT if right else "#333333",
                weight="bold" if right else "normal",
            )


def _wrapped(words: list[str], width: int) -> str:
    return "\n".join(wrap(" ".join(words), width))


def learned_order(path: Path, s: Tensor, v: Tensor, pairs: tuple[Tensor, Tensor], norm: str) -> None:
    """The order between captions of scenes and the scenes, in two dimensions. Left: each chain from a general caption
    to its scene, by the first principal component and by the length of the embedding in the 1-norm, which the order
    makes grow with what is said. Right: how far both directions of each known pair violate the order."""
    figure, axes = new_figure(2, width=4.6, height=3.8)
    plane, spread = axes[0]
    everything = torch.cat([s, v])
    centred = everything - everything.mean(0)
    across = (centred @ torch.linalg.svd(centred, full_matrices=False).Vh[0]).numpy()
    up = everything.sum(1).numpy()
    shades = [0.25, 0.4, 0.55, 0.7, 0.85]
    for scene in np.linspace(0, len(v) - 1, CHAINS).round().astype(int):
        chain = [*range(CAPTIONS * scene, CAPTIONS * (scene + 1)), len(s) + scene]
        plane.plot(across[chain], up[chain], color="#bbbbbb", linewidth=0.8, zorder=1)
        for place, point in enumerate(chain[:-1]):
            plane.scatter(
                across[point], up[point], color=NORMS[norm].colour, alpha=shades[place], s=14 + 8 * place, zorder=2
            )
        plane.scatter(across[chain[-1]], up[chain[-1]], color="#D55E00", marker="s", s=26, zorder=3)
    for place, label in ((0, "most general caption"), (CAPTIONS - 1, "full caption")):
        plane.scatter([], [], color=NORMS[norm].colour, alpha=shades[place], s=14 + 8 * place, label=label)
    plane.scatter([], [], color="#D55E00", marker="s", s=26, label="scene")
    plane.legend(fontsize=7, loc="best")
    plane.set_xlabel("first principal component")
    plane.set_ylabel("sum of coordinates (length 1 in the 2-norm)")
    plane.set_title("from general captions to scenes")

    forth, back = (x.numpy() for x in violations(s, *pairs))
    spread.scatter(back, forth, s=3, alpha=0.15, color=NORMS[norm].colour, rasterized=True)
    end = max(forth.max(), back.max()) * 1.02
    spread.plot([0, end], [0, end], color="#999999", linewidth=0.8)
    spread.set(xlim=(0, end), ylim=(0, end), xlabel="violation of the order turned round")
    spread.set_ylabel("violation of the true order")
    spread.set_title(f"{len(forth):,} known pairs, {100 * (forth < back).mean():.0f} % below the line (chance 50 %)")
    figure.suptitle(f"generated scenes, test: the learned order ({NORMS[norm].label})", fontsize=10)
    save(figure, path)
