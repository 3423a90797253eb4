"""Handwriting generation (section 6.5, Figure 5): Graves' synthesis network with norms in its three LSTMs.

Shapes: T steps, B batch, L lines of a split, U characters of a text, A alphabet.
"""

from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn

from experiments.handwriting.network import Network, mixture_nll
from ln.norms import NormConfig
from ln.suite.config import Recipe, norm_of, zero_allowed
from ln.suite.data import Source, handwriting, resolve
from ln.suite.data.pen_strokes import PRIVATE
from ln.suite.errors import Mistake
from ln.suite.files import replacing
from ln.suite.runs.read import finished_run
from ln.suite.showing.figures import new_figure
from ln.suite.task import Shuffled, Task

EVALUATION_BATCH = 128
SAMPLES = 4
SAMPLE_BIAS = 0.5


@dataclass
class Settings:
    hidden: int = 400
    window: int = 10
    mixtures: int = 20
    length: int = 500  # steps of a sequence; longer lines are cut
    characters: int = zero_allowed(0)  # of a text that the window is shown; 0: all
    evaluate_lines: int = zero_allowed(0)  # so many of the validation and of the test lines; 0: all


@dataclass(frozen=True)
class Padded:
    """A split's lines: points (L, T + 1, 3) normalized, steps (L,), texts (L, U) classes, A for no character."""

    points: Tensor
    steps: Tensor
    texts: Tensor


def padded(points: list[np.ndarray], texts: list[str], length: int, network: Network) -> Padded:
    """Lines cut to `length` steps. Their texts stay as they are: which characters a cut line holds is not known."""
    cut = [line[: length + 1] for line in points]
    room = torch.zeros(len(cut), length + 1, 3)
    for row, line in zip(room, cut, strict=True):
        row[: len(line)] = network.normalized(torch.from_numpy(line))
    classes = [network.indices(text) for text in texts]
    nothing = len(network.letters)
    return Padded(
        room,
        torch.tensor([len(line) - 1 for line in cut]),
        nn.utils.rnn.pad_sequence(classes, batch_first=True, padding_value=nothing),
    )


class Handwriting(Task):
    Settings = Settings
    curve_splits = ("valid", "test")  # Figure 5 shows the test curve; nothing is selected on it

    def __init__(self, recipe: Recipe, source: Source, device: torch.device):
        super().__init__(recipe, source, device)
        settings: Settings = recipe.model
        self.lines: handwriting.Lines = source.load()
        self.network = network_of(settings, len(self.lines.alphabet), recipe.norm)
        self.network.fit(self.lines.alphabet, self.lines.points["train"], self.lines.texts["train"])
        self.model = self.network
        self.splits: dict[str, Padded] = {}
        for split, points in self.lines.points.items():
            count = len(points) if split == "train" else settings.evaluate_lines or len(points)
            # Spread evenly, since the lines of a writer lie together.
            chosen = np.linspace(0, len(points) - 1, count).round().astype(int)
            texts = [self.lines.texts[split][i][: settings.characters or None] for i in chosen]
            lines = padded([points[i] for i in chosen], texts, settings.length, self.network)
            self.splits[split] = Padded(*(part.to(device) for part in vars(lines).values()))
        self.examples = {split: len(lines.steps) for split, lines in self.splits.items()}
        self.order = Shuffled(self.examples["train"], recipe.train.batch_size, recipe.seed, device)
        self.steps_per_epoch = self.order.steps_per_epoch

    @staticmethod
    def find(request: str) -> Source:
        return resolve(
            request,
            {"original": handwriting.original, "substitute": handwriting.substitute, "embedded": handwriting.embedded},
        )

    @property
    def static_shapes(self) -> bool:  # type: ignore[override]
        return self.recipe.norm.traits.axis != "batch"

    def batch(self, step: int) -> tuple[Tensor, ...]:
        chosen, train = self.order.indices(step), self.splits["train"]
        return train.points[chosen].transpose(0, 1), train.steps[chosen], train.texts[chosen]

    def sequence_nll(self, points: Tensor, steps: Tensor, texts: Tensor) -> Tensor:
        """(B,) nats of each line's offsets and pen bits, given its text.

        points (T + 1, B, 3) normalized; steps (B,), how many of the T count; texts (B, U) classes.
        """
        outputs, _ = self.network(points[:-1], texts, steps)
        nll = mixture_nll(outputs, points[1:])
        past = torch.arange(len(nll), device=nll.device).unsqueeze(1) >= steps
        return nll.masked_fill(past, 0).sum(0)

    def loss(self, batch: tuple[Tensor, ...]) -> dict[str, Tensor]:
        return {"loss": self.sequence_nll(*batch).mean()}

    def evaluate(self, split: str) -> dict[str, float]:
        lines, total = self.splits[split], 0.0
        parts = zip(*(part.split(EVALUATION_BATCH) for part in (lines.points, lines.steps, lines.texts)), strict=True)
        for points, steps, texts in parts:
            total += float(self.sequence_nll(points.transpose(0, 1), steps, texts).double().sum())
        return {"nll": total / len(lines.steps), "nll_per_step": total / float(lines.steps.sum())}

    def draw(self, folder: Path) -> None:
        """samples.png: lines of the test set, and what the network writes for their texts. window.png: where its
        window is as it reads a line of the test set."""
        if self.recipe.seed != 0:
            return
        points, texts = self.lines.points["test"], self.lines.texts["test"]
        # Spread over the writers; characters without a code point of their own could not be shown as text.
        readable = [i for i, text in enumerate(texts) if max(text) < chr(PRIVATE)] or list(range(len(texts)))
        chosen = [readable[round(i)] for i in np.linspace(0, len(readable) - 1, SAMPLES)]
        length: int = self.recipe.model.length
        characters = max(3, round(length / float(self.network.pace)))
        real = [points[i][: length + 1] for i in chosen]
        short = [texts[i][:characters].strip() for i in chosen]
        norm = self.recipe.norm.traits.label
        written = [line for line, _ in self.network.write(short, SAMPLE_BIAS)]
        picture_samples(folder / "samples.png", short, real, written, f"{norm}, bias {SAMPLE_BIAS}")
        line, classes = torch.from_numpy(real[0]).to(self.device), self.network.indices(texts[chosen[0]]).unsqueeze(0)
        steps = torch.tensor([len(line) - 1], device=self.device)
        _, window = self.network(self.network.normalized(line).unsqueeze(1)[:-1], classes, steps)
        weights = torch.cat(window).cpu().numpy()[:, : 2 * characters]
        picture_window(folder / "window.png", texts[chosen[0]], real[0], weights, f"{norm}: the window on the text")


def network_of(settings: Settings, alphabet: int, norm: NormConfig) -> Network:
    return Network(alphabet, settings.hidden, settings.window, settings.mixtures, norm)


def finished(folder: Path, norm: str) -> Network:
    """The network of a complete run, from its run.json and best.pt, on the CPU and in evaluation mode.

    Raises:
        Mistake: no run, not a complete one, of another norm, or a best.pt that is missing, damaged or of another norm.
    """
    info, path = finished_run(folder, f"python -m ln.train experiment=handwriting norm={norm}")
    recipe = info["identity"]
    if recipe["norm"]["name"] != norm:
        raise Mistake(f"{folder} holds a run with norm={recipe['norm']['name']}, not norm={norm}")
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True)
        network = network_of(Settings(**recipe["model"]), len(weights["letters"]), norm_of(recipe["norm"]))
    except Exception as error:  # a damaged file fails in many ways
        raise Mistake(f"{path} cannot be read as the weights of this run ({str(error).splitlines()[0]})") from error
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        raise Mistake(f"{path} holds the weights of another norm or size than its run.json, norm={norm}") from error
    return network.eval()


def draw_line(axes: Axes, line: np.ndarray) -> None:
    """A line (N, 3) as pen strokes; a stroke of one point is a dot."""
    for stroke in handwriting.strokes_of(line):
        axes.plot(*stroke.T, color="black", linewidth=0.9, marker="." if len(stroke) == 1 else None, markersize=1.5)
    axes.set_aspect("equal", adjustable="datalim")
    axes.axis("off")


def picture_samples(
    path: Path, texts: list[str], real: list[np.ndarray], written: list[np.ndarray], title: str
) -> None:
    """A row for each text: a line of the test set on the left, the network's on the right."""
    figure, axes = new_figure(2, len(texts), width=4.0, height=0.95)
    for row, text, lines in zip(axes, texts, zip(real, written, strict=True), strict=True):
        row[1].set_title(text, fontsize=8)
        for cell, line in zip(row, lines, strict=True):
            draw_line(cell, line)
    figure.suptitle(f"Left: lines of the test set. Right: written for these texts, {title}", fontsize=9)
    _save(figure, path)


def picture_written(path: Path, text: str, line: np.ndarray, title: str) -> None:
    """One written line, as wide as its text."""
    figure, axes = new_figure(1, width=min(12.0, max(3.0, 0.35 * len(text))), height=1.4)
    draw_line(axes[0, 0], line)
    axes[0, 0].set_title(f"“{text}”, {title}", fontsize=8)
    _save(figure, path)


def picture_window(path: Path, text: str, line: np.ndarray, weights: np.ndarray, title: str) -> None:
    """The window's weights (T, U) over steps and characters, above the line (N, 3) that was read."""
    figure, axes = new_figure(1, 2, width=5.6, height=1.9)
    U = weights.shape[1]
    # Each step's weights as shares: how far the window is open changes, and would hide where it is.
    shares = weights / np.maximum(weights.sum(1, keepdims=True), 1e-12)
    axes[0, 0].imshow(shares.T, aspect="auto", origin="lower", cmap="viridis", interpolation="nearest")
    axes[0, 0].set_yticks(range(U), list(text[:U].replace(" ", "␣")), fontsize=max(4, min(8, 90 // U)))
    axes[0, 0].set_xlabel("pen step")
    axes[0, 0].grid(visible=False)
    draw_line(axes[1, 0], line)
    figure.suptitle(title, fontsize=9)
    _save(figure, path)


def _save(figure: Figure, path: Path) -> None:
    """PNG only: as vectors these pictures would be megabytes."""
    with replacing(path) as file:
        figure.savefig(file, format="png", dpi=130, metadata={"Software": None})
    plt.close(figure)
