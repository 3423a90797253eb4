"""Associative retrieval with fast weights (Ba, Hinton, Mnih, Leibo & Ionescu 2016, section 4.1), where layer norm is
what keeps the inner loop stable: an extension, by the authors' next paper.

A recurrent net of H units reads the embedded characters of `c9k8j3f1??c`, and its last hidden state names the digit 9.
Shapes: B batch, T characters, H hidden.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from experiments.classification import Classification
from ln import LSTM, RNN, FastWeights, NormConfig
from ln.suite.config import Recipe
from ln.suite.data import Source, resolve, retrieval
from ln.suite.errors import Mistake
from ln.suite.showing.figures import new_figure, save
from ln.suite.task import wrong

EVALUATION_BATCH = 2000


@dataclass
class Settings:
    unit: str = "fast"  # fast (fast weights) | lstm | irnn (Le et al. 2015: ReLU, recurrent weights from the identity)
    hidden: int = 50
    embedding: int = 100
    readout: int = 100  # ReLU units between the last hidden state and the softmax
    decay: float = 0.9  # lambda
    rate: float = 0.5  # eta
    inner_steps: int = 1  # S


class Retriever(nn.Module):
    """(B, T) characters -> (B, 10) logits, and the hidden states (T, B, H) that they come from."""

    def __init__(self, settings: Settings, norm: NormConfig) -> None:
        super().__init__()
        width, hidden = settings.embedding, settings.hidden
        self.embed = nn.Embedding(len(retrieval.ALPHABET), width)
        self.recurrent: nn.Module
        if settings.unit == "fast":
            decay, rate, inner_steps = settings.decay, settings.rate, settings.inner_steps
            try:
                self.recurrent = FastWeights(width, hidden, decay=decay, rate=rate, inner_steps=inner_steps, norm=norm)
            except ValueError as error:
                raise Mistake(str(error)) from error
        elif settings.unit == "lstm":
            self.recurrent = LSTM(width, hidden, norm=norm)
        elif settings.unit == "irnn":
            self.recurrent = RNN(width, hidden, nonlinearity="relu", norm=norm)
            self.recurrent.set_weight("weight_hh_l0", torch.eye(hidden))
        else:
            raise Mistake(f"model.unit={settings.unit} is unknown; choose one of fast, lstm, irnn")
        self.readout = nn.Sequential(
            nn.Linear(hidden, settings.readout), nn.ReLU(), nn.Linear(settings.readout, len(retrieval.DIGITS))
        )

    def forward(self, characters: Tensor) -> tuple[Tensor, Tensor]:
        states, _ = self.recurrent(self.embed(characters.t()))
        return self.readout(states[-1]), states


class AssociativeRetrieval(Classification):
    Settings = Settings
    curve_splits: ClassVar[tuple[str, ...]] = ("valid",)
    model: Retriever

    def __init__(self, recipe: Recipe, source: Source, device: torch.device):
        data: retrieval.Retrieval = source.load()
        super().__init__(recipe, source, device, data.strings, data.digits)
        self.model = Retriever(recipe.model, recipe.norm)

    @staticmethod
    def find(request: str) -> Source:
        return resolve(request, {"original": retrieval.original, "embedded": retrieval.embedded})

    def logits(self, inputs: Tensor) -> Tensor:
        return self.model(inputs)[0]

    def evaluate(self, split: str) -> dict[str, float]:
        """NLL, error in percent, and the mean norm of the hidden state after the first and after the last character,
        whose ratio is what the inner loop makes of it."""
        nll, errors, norms = 0.0, 0.0, torch.zeros(2, dtype=torch.float64)
        strings, digits = self.inputs[split], self.labels[split]
        for x, y in zip(strings.split(EVALUATION_BATCH), digits.split(EVALUATION_BATCH), strict=True):
            logits, states = self.model(x)
            nll += float(F.cross_entropy(logits, y, reduction="sum"))
            errors += wrong(logits, y)
            norms += states[[0, -1]].norm(dim=2).double().sum(1).cpu()
        first, last = (norms / len(digits)).tolist()
        return {"nll": nll / len(digits), "error": 100 * errors / len(digits), "norm_first": first, "norm_last": last}

    def draw(self, folder: Path) -> None:
        """stability.png: the size of the hidden state after each character, with the norm and, of the same weights,
        without."""
        if self.recipe.seed != 0 or self.recipe.model.unit != "fast" or not self.recipe.norm.traits.normalizes:
            return
        norm, no_norm = self.recipe.norm.traits, NormConfig("none")
        bare = Retriever(self.recipe.model, no_norm).to(self.device)
        weights = self.model.state_dict()
        bare.load_state_dict({name: weights[name] for name in bare.state_dict()})
        strings = self.inputs["test"][:EVALUATION_BATCH]
        figure, axes = new_figure(1, width=4.5, height=3.0)
        shown = (bare, "the same weights, no norm", no_norm.traits), (self.model, norm.label, norm)
        for model, label, traits in shown:
            sizes = model(strings)[1].double().norm(dim=2).mean(1).cpu()
            axes[0, 0].plot(range(1, len(sizes) + 1), sizes, marker="o", markersize=3, label=label, color=traits.colour)
        axes[0, 0].set(yscale="log", xlabel="characters read", ylabel="norm of the hidden state")
        axes[0, 0].legend(frameon=False)
        save(figure, folder / "stability.png", vectors=False)
