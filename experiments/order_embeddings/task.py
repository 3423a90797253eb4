"""Order embeddings (section 6.1, Figure 1, Table 2): images and captions in one space (Vendrov et al. 2016), layer
norm in the GRU that reads the captions.

Shapes: S sentences, V images, B batch, T words, D features, H embedding.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.profiler import record_function

from experiments.order_embeddings import pictures
from experiments.order_embeddings.network import OrderEmbedding, contrastive_loss, errors, ranks, recalls
from ln.suite.config import Recipe
from ln.suite.data import Source, flickr8k, precomp, resolve, scenes
from ln.suite.data.precomp import CAPTIONS, Captioned
from ln.suite.data.vocabulary import EOS, Vocabulary
from ln.suite.task import Shuffled, Task, stream_seed

FOLD = 1000  # images that captions are ranked against, as published
EVALUATION_BATCH = 250


@dataclass
class Settings:
    hidden: int = 1024
    word_size: int = 300
    margin: float = 0.05
    symmetric: bool = False  # the cosine in place of the order: Table 2's `Sym`


class Sentences:
    """Sentences as rows of words, <eos> at the end of each, stored end to end."""

    def __init__(self, rows: list[list[int]]):
        self.lengths = torch.tensor([len(row) + 1 for row in rows])
        self.ends = self.lengths.cumsum(0)
        self.ids = torch.tensor([word for row in rows for word in (*row, EOS)])

    def __len__(self) -> int:
        return len(self.lengths)

    def padded(self, chosen: Tensor) -> tuple[Tensor, Tensor]:
        """(T, B) words, filled up with <eos>, and (B,) lengths of the sentences `chosen` (B,)."""
        lengths, ends = self.lengths[chosen], self.ends[chosen]
        time = torch.arange(int(lengths.max())).unsqueeze(1)
        return self.ids[(ends - lengths + time).minimum(ends - 1)], lengths


class OrderEmbeddings(Task):
    Settings = Settings

    def __init__(self, recipe: Recipe, source: Source, device: torch.device):
        super().__init__(recipe, source, device)
        settings: Settings = recipe.model
        self.data: dict[str, Captioned] = source.load()
        # As published: the words of training and validation captions; a test caption's other words are <unk>.
        self.vocabulary = Vocabulary.of(self.data["train"].captions + self.data["valid"].captions)
        self.captions = {
            split: Sentences([self.vocabulary.encode(caption) for caption in part.captions])
            for split, part in self.data.items()
        }
        self.features = {split: torch.from_numpy(part.features).to(device) for split, part in self.data.items()}
        self.examples = {split: len(features) for split, features in self.features.items()}
        norm = recipe.norm
        if norm.traits.population:
            norm = replace(norm, max_steps=int(self.captions["train"].lengths.max()))
        D = self.features["train"].shape[1]
        self.embedding = OrderEmbedding(
            len(self.vocabulary), D, settings.word_size, settings.hidden, settings.symmetric, norm
        )
        self.model = self.embedding
        self.order = Shuffled(self.examples["train"], recipe.train.batch_size, recipe.seed)
        self.steps_per_epoch = self.order.steps_per_epoch
        self._epoch = -1

    @staticmethod
    def find(request: str) -> Source:
        return resolve(
            request, {"original": precomp.coco, "substitute": flickr8k.substitute, "embedded": scenes.embedded}
        )

    def batch(self, step: int) -> tuple[Tensor, ...]:
        """Words (T, B), lengths (B,) on the CPU, features (B, D): of each image one caption, drawn anew each epoch."""
        epoch = step // self.steps_per_epoch
        if epoch != self._epoch:
            generator = torch.Generator().manual_seed(stream_seed(self.recipe.seed, "captions", epoch))
            self._drawn = torch.randint(CAPTIONS, (self.examples["train"],), generator=generator)
            self._epoch = epoch
        chosen = self.order.indices(step)
        words, lengths = self.captions["train"].padded(CAPTIONS * chosen + self._drawn[chosen])
        return words.to(self.device), lengths, self.features["train"][chosen.to(self.device)]

    def loss(self, batch: tuple[Tensor, ...]) -> dict[str, Tensor]:
        words, lengths, features = batch
        s, v = self.embedding.sentences(words, lengths), self.embedding.images(features)
        with record_function("pairwise loss"):
            return {"loss": contrastive_loss(self.errors(s, v), self.recipe.model.margin)}

    def tensors(self, name: str, gradient: Tensor) -> Sequence[Tensor]:
        """The published GRU keeps the weights, biases and gains of both gates in one tensor, the candidate's in
        another."""
        H = self.embedding.gru.hidden_size
        return gradient.split([2 * H, H]) if name.startswith("gru.") else (gradient,)

    def errors(self, s: Tensor, v: Tensor) -> Tensor:
        return errors(s, v, self.embedding.symmetric)

    def placed(self, split: str, first: int, last: int) -> tuple[Tensor, Tensor]:
        """Where the model puts images `first` ... `last` - 1 of a split and their captions: (5 V, H), (V, H)."""
        v = self.embedding.images(self.features[split][first:last])
        return self.sentences(self.captions[split], torch.arange(CAPTIONS * first, CAPTIONS * last)), v

    def sentences(self, captions: Sentences, chosen: Tensor) -> Tensor:
        """(S, H) of the sentences `chosen` (S,), those of like lengths together."""
        s = self.features["train"].new_empty(len(chosen), self.embedding.gru.hidden_size)
        for some in captions.lengths[chosen].argsort(stable=True).split(EVALUATION_BATCH):
            words, lengths = captions.padded(chosen[some])
            s[some.to(self.device)] = self.embedding.sentences(words.to(self.device), lengths)
        return s

    def evaluate(self, split: str) -> dict[str, float]:
        """Retrieval among 1,000 images: the first of the validation split, the mean over all folds of the test
        split. `image_...`: the image is searched by its caption; `caption_...`: the other way round."""
        images = self.examples[split]
        folds = max(1, images // FOLD) if split == "test" else 1
        found: list[dict[str, float]] = []
        for fold in range(folds):
            s, v = self.placed(split, FOLD * fold, min(FOLD * (fold + 1), images))
            by_sentence, by_image = ranks(self.errors(s, v))
            image, caption = recalls(by_sentence), recalls(by_image)
            metrics = {f"image_{name}": value for name, value in image.items()}
            metrics |= {f"caption_{name}": value for name, value in caption.items()}
            found.append(metrics | {"image_recall_sum": image["r1"] + image["r5"] + image["r10"]})
        return {name: float(np.mean([metrics[name] for metrics in found])) for name in found[0]}

    def evaluate_once(self) -> dict[str, float]:
        """Of scenes, whose captions' order is known: in how many percent of the pairs in which one caption is more
        general the model sees it so, its error less than that of the pair turned round; 50 is chance."""
        if self.data["test"].pictures is None or self.embedding.symmetric:
            return {}
        s, _ = self.placed("test", 0, self.examples["test"])
        forth, back = pictures.violations(s, *self.known_order)
        unknown = (forth + back).isnan().any()
        return {"order_accuracy": math.nan if unknown else 100 * float((forth < back).double().mean())}

    @cached_property
    def known_order(self) -> tuple[Tensor, Tensor]:
        """(P,), (P,) which of the test captions of scenes are more general than which."""
        return pictures.ordered_pairs(self.data["test"].captions)

    def draw(self, folder: Path) -> None:
        """retrievals.png: captions of the test split and the images nearest to each. order.png, of scenes: the order
        the model has learned."""
        if self.recipe.seed != 0:
            return
        last = min(FOLD, self.examples["test"])
        s, v = self.placed("test", 0, last)
        error, data = self.errors(s, v).cpu(), self.data["test"]
        name = self.recipe.norm.name
        pictures.retrievals(folder / "retrievals.png", data, error, ranks(error)[0], name, self.source.name)
        if data.pictures is not None and not self.embedding.symmetric:
            pictures.learned_order(folder / "order.png", s.cpu(), v.cpu(), self.known_order, name)
