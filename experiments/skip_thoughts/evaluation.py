"""How sentence vectors are judged: relatedness on SICK, and linear classifiers under nested cross-validation.

The protocol is that of the skip-thoughts code (Kiros et al. 2015). Shapes: N pairs or sentences, H numbers of a vector.
"""

from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from scipy.stats import pearsonr, spearmanr
from sklearn.linear_model import LogisticRegressionCV
from sklearn.model_selection import KFold
from torch import Tensor

from ln.suite.config import zero_allowed

SEED = 1234  # of the folds and of the relatedness model, in every run
CLASSES = 5  # of relatedness, 1 to 5
COSTS = 2.0 ** np.arange(9)  # the published choices of C
RELATEDNESS_BATCH = 64
SOLVER_STEPS = 1000


@dataclass
class Protocol:
    """How much of the published evaluation is done: all of it by default."""

    folds: int = 10
    inner_folds: int = 10  # within each fold's training part, to choose C
    costs: int = 9  # so many values of C, evenly spread over 2^0 ... 2^8 on the log scale
    sentences: int = zero_allowed(0)  # so many pairs or sentences of each set, evenly spread; 0: all
    epochs: int = 50  # of the relatedness model between two looks at the development pairs
    rounds: int = 1000  # such looks, at most; the published code has no limit
    rate: float = 0.001  # of the relatedness model's Adam

    def __post_init__(self) -> None:
        for name, least in (("folds", 2), ("inner_folds", 2), ("epochs", 1), ("rounds", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}={getattr(self, name)} must be at least {least}")
        if not 1 <= self.costs <= len(COSTS):
            raise ValueError(f"costs={self.costs} must lie in 1 ... {len(COSTS)}")
        if self.sentences < 0:
            raise ValueError(f"sentences={self.sentences} must not be negative (0 means all)")
        if self.rate <= 0:
            raise ValueError(f"rate={self.rate:g} must be positive")

    def choose(self, count: int) -> np.ndarray:
        """Which of `count` pairs or sentences are used, evenly spread, since a set may lie sorted by label."""
        return np.linspace(0, count - 1, min(self.sentences or count, count)).round().astype(int)


# --- SICK


def soft_labels(scores: np.ndarray) -> np.ndarray:
    """(N, 5) for scores (N,) in 1 ... 5: two neighbouring classes whose mean is the score (Tai et al. 2015)."""
    below = np.minimum(np.floor(scores), CLASSES - 1)
    labels = np.zeros((len(scores), CLASSES))
    rows, columns = np.arange(len(scores)), below.astype(int) - 1
    labels[rows, columns] = below + 1 - scores
    labels[rows, columns + 1] = scores - below
    return labels


def pair_features(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """(N, 2H) |a - b| and a * b."""
    return np.concatenate([np.abs(first - second), first * second], 1)


def relatedness(
    train: tuple[np.ndarray, np.ndarray],
    develop: tuple[np.ndarray, np.ndarray],
    judged: tuple[np.ndarray, np.ndarray],
    protocol: Protocol,
) -> dict[str, float]:
    """Pearson r, Spearman rho and mean squared error on `judged`, each argument features (N, 2H) and scores (N,).

    A linear softmax over five classes is trained by Adam in at most `protocol.rounds` of `protocol.epochs`, until one
    makes Pearson r on the development pairs no better; the best round's model is kept. NaN of features that are not
    finite.
    """
    if not all(np.isfinite(features).all() for features, _ in (train, develop, judged)):
        return dict.fromkeys(("r", "rho", "mse"), np.nan)
    generator = torch.Generator().manual_seed(SEED)
    x = torch.from_numpy(train[0]).float()
    y = torch.from_numpy(soft_labels(train[1])).float()
    weight = torch.zeros(CLASSES, x.shape[1], requires_grad=True)
    bias = torch.zeros(CLASSES, requires_grad=True)
    optimizer = torch.optim.Adam([weight, bias], lr=protocol.rate, fused=True)
    best, kept = -np.inf, np.zeros(len(judged[1]))
    for _ in range(protocol.rounds):
        with torch.enable_grad():
            for _ in range(protocol.epochs):
                order = torch.randperm(len(x), generator=generator)
                for rows in order.split(RELATEDNESS_BATCH):
                    optimizer.zero_grad()
                    F.cross_entropy(F.linear(x[rows], weight, bias), y[rows]).backward()
                    optimizer.step()
        r = correlation(pearsonr, predicted(develop[0], weight, bias), develop[1])
        if r <= best:
            break
        best, kept = r, predicted(judged[0], weight, bias)
    return {
        "r": correlation(pearsonr, kept, judged[1]),
        "rho": correlation(spearmanr, kept, judged[1]),
        "mse": float(np.mean((kept - judged[1]) ** 2)),
    }


def predicted(features: np.ndarray, weight: Tensor, bias: Tensor) -> np.ndarray:
    """(N,) the mean class under the model's probabilities."""
    with torch.no_grad():
        shares = F.linear(torch.from_numpy(features).float(), weight, bias).softmax(1)
        return (shares @ torch.arange(1.0, CLASSES + 1)).numpy().astype(np.float64)


def correlation(kind: object, a: np.ndarray, b: np.ndarray) -> float:
    """scipy's correlation; 0 where one side is constant, which has none."""
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return 0.0
    return float(kind(a, b).statistic)  # type: ignore[operator]


# --- labelled sets


def cross_validated(features: np.ndarray, labels: np.ndarray, protocol: Protocol) -> tuple[float, float]:
    """Mean and standard deviation over the folds of the accuracy of logistic regression, in percent.

    features (N, H), labels (N,). In each fold C is chosen by cross-validation within the training part alone, and the
    classifier is fitted again to all of that part. NaN of features that are not finite.
    """
    if not np.isfinite(features).all():
        return np.nan, np.nan
    accuracies = []
    costs = COSTS[np.linspace(0, len(COSTS) - 1, protocol.costs).round().astype(int)]
    for fitted, held_out in KFold(protocol.folds, shuffle=True, random_state=SEED).split(features):
        inner = KFold(protocol.inner_folds, shuffle=True, random_state=SEED + 1)
        model = LogisticRegressionCV(
            Cs=costs, cv=inner, scoring="accuracy", max_iter=SOLVER_STEPS, l1_ratios=(0,), use_legacy_attributes=False
        )
        model.fit(features[fitted], labels[fitted])
        accuracies.append(100 * float(np.mean(model.predict(features[held_out]) == labels[held_out])))
    return cast(float, np.mean(accuracies).item()), cast(float, np.std(accuracies).item())
