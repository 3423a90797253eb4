"""The order embedding: its encoders, its errors, its loss and the ranks it gives.

Shapes: S sentences, V images, B batch, T words, D features, H embedding. The error E (S, V) of sentence s and image v
is low where they belong together.
"""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ln import GRU, NormConfig
from ln.suite.data.precomp import CAPTIONS

WEIGHT_RANGE = 0.1
# Elements of an (S', V', H) block of differences: what stays in a CPU's cache, what is little on a GPU.
BLOCK = {"cpu": 2**19, "cuda": 2**26}
LARGE = 2**27  # elements from which threads are worth starting


def blocks(sentences: int, images: int, width: int, device: torch.device) -> tuple[int, int]:
    """How many sentences and images one block of differences compares."""
    pairs = max(1, BLOCK.get(device.type, BLOCK["cpu"]) // width)
    across = min(images, max(64, pairs // sentences))
    return max(1, pairs // across), across


@torch.no_grad()
def fill(errors: Tensor, s: Tensor, v: Tensor) -> None:
    """Write the order violations of s (S, H) and v (V, H) to errors (S, V), block by block."""
    down, across = blocks(len(s), len(v), s.shape[1], s.device)
    buffer = s.new_empty(min(down, len(s)), min(across, len(v)), s.shape[1])
    for i in range(0, len(s), down):
        some = s[i : i + down].unsqueeze(1)
        for j in range(0, len(v), across):
            images = v[j : j + across]
            block = buffer[: len(some), : len(images)]
            torch.sub(some, images, out=block).relu_()
            errors[i : i + down, j : j + across] = torch.linalg.vector_norm(block, dim=-1).square_()


class OrderViolation(torch.autograd.Function):
    """E_ij = sum_k max(0, s_ik - v_jk)^2: how far sentence i is from being below image j in every coordinate.

    s (S, H), v (V, H) -> (S, V). Block by block in both directions, since the differences (S, V, H) would be large.
    """

    @staticmethod
    def forward(ctx: Any, s: Tensor, v: Tensor) -> Tensor:
        ctx.save_for_backward(s, v)
        errors = s.new_empty(len(s), len(v))
        fill(errors, s, v)
        return errors

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        s, v = ctx.saved_tensors
        d_s, d_v = torch.zeros_like(s), torch.zeros_like(v)
        down, across = blocks(len(s), len(v), s.shape[1], s.device)
        twice = 2 * grads[0]
        for i in range(0, len(s), down):
            for j in range(0, len(v), across):
                block = (s[i : i + down].unsqueeze(1) - v[j : j + across]).relu_()
                weight = twice[i : i + down, j : j + across]
                d_s[i : i + down] += (weight.unsqueeze(1) @ block).squeeze(1)
                d_v[j : j + across] -= (weight.t().unsqueeze(1) @ block.transpose(0, 1)).squeeze(1)
        return d_s, d_v


def errors(s: Tensor, v: Tensor, symmetric: bool) -> Tensor:
    """(S, V) errors of sentences (S, H) and images (V, H): order violations, or for `symmetric` minus the cosine."""
    if symmetric:
        return -(s @ v.t())
    evaluation = not torch.is_grad_enabled() and len(s) * len(v) * s.shape[1] >= LARGE
    if evaluation and s.device.type == "cpu" and torch.get_num_threads() > 1:
        return threaded(s, v)
    return OrderViolation.apply(s, v)


def threaded(s: Tensor, v: Tensor) -> Tensor:
    """The order violations (S, V) of a large evaluation, a part of the sentences to each thread: sharing out every
    small block among the threads would have them wait for each other."""
    errors, threads = s.new_empty(len(s), len(v)), torch.get_num_threads()
    part = -(-len(s) // threads)
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(fill, errors.split(part), s.split(part), [v] * threads))
    finally:
        torch.set_num_threads(threads)
    return errors


def contrastive_loss(error: Tensor, margin: float) -> Tensor:
    """The sum of hinges max(0, margin - E_wrong + E_right) over a batch's error (B, B), whose diagonal is right: every
    other image for each sentence and every other sentence for each image.

    A sum and not a mean, as published: the clipping of gradients is set for sums.
    """
    right = error.diagonal()
    images = (margin - error + right.unsqueeze(1)).clamp(min=0)
    sentences = (margin - error + right.unsqueeze(0)).clamp(min=0)
    return (images + sentences).fill_diagonal_(0).sum()


def ranks(error: Tensor) -> tuple[Tensor, Tensor]:
    """Where the right one stands, from 1: (S,) the image for each sentence, (V,) the best of its sentences for each
    image. error (S, V), S = 5 V, image i has sentences 5 i ... 5 i + 4.

    A tie counts against the query: a wrong one that is as near as the right one stands before it, so that a model which
    gives every pair the same error ranks last and not first. NaN where an error is NaN: nothing is less than it, so a
    model of NaN would rank first.
    """
    if error.isnan().any():
        S, V = error.shape
        return error.new_full((S,), torch.nan), error.new_full((V,), torch.nan)
    images = torch.arange(error.shape[1], device=error.device)
    right = error.gather(1, images.repeat_interleave(CAPTIONS).unsqueeze(1))
    of_sentences = (error <= right).sum(1)
    best = right.view(-1, CAPTIONS).amin(1)
    nearer = error <= best  # (S, V)
    own = (right.view(-1, CAPTIONS) <= best.unsqueeze(1)).sum(1)
    return of_sentences, nearer.sum(0) - own + 1


def recalls(rank: Tensor) -> dict[str, float]:
    """R@1, R@5 and R@10 in percent and the mean rank; NaN of ranks that are."""
    unknown = torch.where(rank.isnan(), torch.nan, 0.0).double()
    found = {f"r{k}": 100 * float(((rank <= k) + unknown).mean()) for k in (1, 5, 10)}
    return found | {"mean_rank": float(rank.double().mean())}


class OrderEmbedding(nn.Module):
    """Sentences and images as vectors of length 1: the last state of a GRU over words, and a linear map of fixed
    features. The order needs coordinates that are not negative, so their signs are dropped after the scaling."""

    def __init__(self, words: int, features: int, word_size: int, hidden: int, symmetric: bool, norm: NormConfig):
        super().__init__()
        self.symmetric = symmetric
        self.words = nn.Embedding(words, word_size)
        self.gru = GRU(word_size, hidden, norm=norm)
        self.image = nn.Linear(features, hidden)
        self.reset()

    @torch.no_grad()
    def reset(self) -> None:
        """As in the published code, under every norm: orthogonal recurrent weights gate by gate, all biases 0."""
        H = self.gru.hidden_size
        nn.init.uniform_(self.words.weight, -WEIGHT_RANGE, WEIGHT_RANGE)
        weight_ih = torch.empty(3 * H, self.gru.input_size).uniform_(-WEIGHT_RANGE, WEIGHT_RANGE)
        self.gru.set_weight("weight_ih_l0", weight_ih)
        self.gru.set_weight("weight_hh_l0", torch.cat([nn.init.orthogonal_(torch.empty(H, H)) for _ in range(3)]))
        for name in ("bias_ih_l0", "bias_hh_l0"):
            nn.init.zeros_(self.gru.get_parameter(name))
        nn.init.xavier_uniform_(self.image.weight)
        nn.init.zeros_(self.image.bias)

    def sentences(self, words: Tensor, lengths: Tensor) -> Tensor:
        """(B, H) from word ids (T, B) and lengths (B), <eos> counted."""
        _, h = self.gru(self.words(words), lengths=lengths)
        return self._placed(h[0])

    def images(self, features: Tensor) -> Tensor:
        """(B, H) from features (B, D)."""
        return self._placed(self.image(features))

    def _placed(self, x: Tensor) -> Tensor:
        unit = F.normalize(x, dim=1)
        return unit if self.symmetric else unit.abs()
