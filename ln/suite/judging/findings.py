"""Where the paper and its own figures, tables and equations disagree: every number computed here.

The figures' numbers come from `configs/published/`, those of section 5 from its equations in float64
(`ln/suite/judging/analysis.py`). No run of ours is needed; a claim that the paper's own curve fails is not held against
one.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ln.norms import NORMS
from ln.suite.errors import Mistake
from ln.suite.judging import analysis
from ln.suite.judging.reading import best, common, curve, percent, reach, resampled_shares, share_to_best, smooth

QUESTIONS = 3_904  # counted in Figure 2: every error is a multiple of 1 / 3,904
# Table 3's rows in the order of TASKS, as printed; SICK's as Figure 3 draws them, times 100.
TABLE_3 = {"none": (84.2, 29.8, 77.3, 81.8, 92.6, 87.9), "layer": (85.4, 27.7, 79.5, 82.6, 93.4, 89.0)}
TASKS = {"sick_r": "SICK r", "sick_mse": "SICK MSE", "mr": "MR", "cr": "CR", "subj": "SUBJ", "mpqa": "MPQA"}


@dataclass(frozen=True)
class Disagreement:
    """One place where the paper says one thing and shows another."""

    name: str  # as `make findings ONLY=` takes it
    title: str
    where: str
    says: str  # the paper's sentence, in our words
    short: str  # one line: what is shown instead
    shown: tuple[str, ...]  # the same in full

    @property
    def command(self) -> str:
        return f"make findings ONLY={self.name}"


@functools.cache
def findings() -> tuple[Disagreement, ...]:
    """Every one, in the paper's order."""
    return tuple(find() for find in FINDINGS.values())


def finding(name: str) -> Disagreement:
    """One of them.

    Raises:
        Mistake: there is none of that name.
    """
    if name not in FINDINGS:
        raise Mistake(f"{name} is not a finding; choose one of {', '.join(FINDINGS)}")
    return FINDINGS[name]()


def figure_1() -> Disagreement:
    ours, theirs = (curve("order_embeddings", "valid_image_recall_sum", norm) for norm in ("layer", "none"))
    (own, _), (base, _) = best(ours, lower=False), best(theirs, lower=False)
    share = share_to_best(ours, theirs, lower=False)
    assert share is not None
    low, high = np.quantile(resampled_shares(ours, theirs, 9), (0.05, 0.95))
    parts, falls = {}, {}
    for k in (1, 5, 10):
        one, other = (curve("order_embeddings", f"valid_image_r{k}", norm) for norm in ("layer", "none"))
        parts[k] = (share_to_best(one, other, lower=False), best(one, lower=False)[0] / best(other, lower=False)[0])
        falls[k] = [f"from {best(c, lower=False)[1]:.1f} to {np.mean(c.y[-30:]):.1f}" for c in (one, other)]
    return Disagreement(
        "figure-1",
        "Order embeddings: 60 % of which time?",
        "section 6.1, Figure 1",
        "Layer norm converges to its best validation model in 60 % of the time that the baseline takes.",
        f"layer norm passes the baseline's best sum of recalls after {percent(share)} of its updates, but has its own "
        f"best after {percent(own / base)}; one run of each cannot tell 60 % from {percent(low)} or {percent(high)}",
        (
            "By the sum of recalls that selects the checkpoint, layer norm reaches the baseline's best (update "
            f"{base:,.0f}) at {percent(share)} of the updates. Its own best, which is what the sentence speaks of, "
            f"comes at update {own:,.0f}: {percent(own / base)}.",
            "By R@1, R@5 and R@10 alone the baseline's best is reached after "
            + ", ".join(percent(a) for a, _ in parts.values())
            + "; the own bests compare as "
            + ", ".join(percent(b) for _, b in parts.values())
            + ".",
            f"With the noise of single validations put on again, the first ratio lies in [{low:.2f}, {high:.2f}] (90 "
            "%).",
            f"Both get worse again after their best: R@1 {falls[1][0]} with layer norm, {falls[1][1]} without (mean "
            "of the last 30 validations).",
            f"The axis goes to 300 validations; layer norm is drawn to {ours.x[-1] / 300:.0f} and the baseline to "
            f"{theirs.x[-1] / 300:.0f}, so the two were not trained for the same time.",
        ),
    )


def figure_2() -> Disagreement:
    layer = curve("attentive_reader", "valid_error", "layer")
    at, lowest = best(layer, lower=True)
    others = {
        "LSTM": curve("attentive_reader", "valid_error", "none"),
        "BN-LSTM": curve("attentive_reader", "valid_error", "batch"),
        "BN-everywhere": curve("attentive_reader_bn_everywhere", "valid_error", "batch"),
    }
    gaps = {name: best(other, lower=True)[1] - lowest for name, other in others.items()}
    drawn = [y for c in (layer, *others.values()) for x, y in zip(c.x, c.y, strict=True) if x not in c.interpolated]
    off = max(abs(y / 100 * QUESTIONS - round(y / 100 * QUESTIONS)) for y in drawn)
    error = 100 * float(np.sqrt(lowest / 100 * (1 - lowest / 100) / QUESTIONS))
    last = float(np.mean(layer.y[-30:]))
    return Disagreement(
        "figure-2",
        "Attentive reader: a better result than both baselines, in one run each",
        "section 6.2, Figure 2",
        "Layer norm trains faster and converges to a better validation result than the baseline and the batch norm "
        "variants.",
        f"faster, clearly; better by {gaps['BN-LSTM']:.1f} to {gaps['LSTM']:.1f} points of error where one standard "
        f"error is {error:.1f}, in one run each, and layer norm then drifts from {lowest:.1f} to {last:.1f} %",
        (
            f"Layer norm's lowest error is {lowest:.2f} % at update {at:,.0f}; it lies below the best of "
            + ", ".join(f"{name} by {gap:.2f}" for name, gap in gaps.items())
            + f" points. One standard error of such an error rate is {error:.2f} points, and each curve is one run.",
            f"The mean of layer norm's last 30 validations is {last:.2f} %: it gets worse again where the baseline is "
            "still falling.",
            f"Every one of the {len(drawn)} errors drawn is a multiple of 1/{QUESTIONS:,}, 61 full batches of 64 "
            f"questions (largest remainder {off:.2f} of a question, as far as five digits tell): the last, partial "
            "batch of the validation set is not counted.",
        ),
    )


def table_3() -> Disagreement:
    curves = {norm: [curve("skip_thoughts", f"valid_{task}", norm) for task in TASKS] for norm in TABLE_3}
    scale = [100 if task.startswith("sick") else 1 for task in TASKS]
    drawn = {
        norm: np.array([s * np.array(c.y) for s, c in zip(scale, of, strict=True)]).T for norm, of in curves.items()
    }
    agree = {
        norm: (np.abs(drawn[norm] - np.array(row)) < 0.051).sum(axis=1) for norm, row in TABLE_3.items()
    }  # printed to 0.1: (20,) numbers that agree at each checkpoint
    ours, theirs = int(agree["layer"].argmax()) + 1, int(agree["none"].argmax()) + 1
    second = int(np.sort(agree["none"])[-2])
    printed = np.subtract(TABLE_3["layer"], TABLE_3["none"])
    equal = drawn["layer"][-1] - drawn["none"][-1]
    signs = np.array([-1 if task == "sick_mse" else 1 for task in TASKS])
    above = (signs * (drawn["layer"] - drawn["none"]) > 0).sum()

    def told(values: np.ndarray) -> str:
        return ", ".join(f"{name} {value:+.2f}" for name, value in zip(TASKS.values(), values, strict=True))

    return Disagreement(
        "table-3",
        "Skip-thoughts: the row “Ours” is another length of training",
        "section 6.3, Table 3 against Figure 3",
        "Table 3 compares the models with and without layer norm after 1M iterations.",
        f"the row without layer norm is Figure 3's checkpoint {theirs} ({50 * theirs}k updates), the row with it "
        f"checkpoint {ours} (1M); at equal length the gain on CR is {equal[3]:+.2f}, not {printed[3]:+.1f}",
        (
            f"“Ours” agrees with Figure 3's baseline in {agree['none'][theirs - 1]} of 6 numbers at checkpoint "
            f"{theirs}, {50 * theirs},000 updates, at most {second} at any other, and {agree['none'][-1]} at the "
            f"last; “Ours + LN” agrees in {agree['layer'][-1]} of 6 at the last.",
            f"As printed the differences are {told(printed)}; at 1M updates of both they are {told(equal)}.",
            f"The sentence itself stands: layer norm is better at {above} of {drawn['none'].size} checkpoints of the "
            "six panels.",
        ),
    )


def figure_4() -> Disagreement:
    layer, none, weight = (curve("draw", "test_bound", norm) for norm in ("layer", "none", "weight"))
    share = share_to_best(layer, none, lower=True)
    assert share is not None
    levels = [95.0, 92.0, 90.0, 89.0, 88.0, 87.0, 86.0, 85.5, 85.0, 84.5, 84.3]
    ratios = []
    for level in levels:
        mine, other = (reach(c.x, smooth(c.y, 5), level, lower=True) for c in (layer, none))
        assert mine is not None
        assert other is not None
        ratios.append(other / mine)
    shared, one, two = common(none, weight)
    noise = [
        float(np.std(np.diff([y for x, y in zip(c.x, c.y, strict=True) if x >= 60])) / np.sqrt(2))
        for c in (none, layer)
    ]
    return Disagreement(
        "figure-4",
        "DRAW: “almost twice as fast” is 1.3 to 1.6 times",
        "section 6.4, Figure 4",
        "Layer norm converges almost twice as fast as the baseline.",
        f"the epochs needed for equal bounds differ by a factor of {min(ratios):.1f} to {max(ratios):.1f}; the "
        f"baseline's best is reached after {share:.2f} of its epochs, not half",
        (
            f"Layer norm reaches the baseline's best of the 100 epochs drawn after {share:.2f} of them.",
            f"Between {levels[0]:g} and {levels[-1]:g} nats the baseline needs {min(ratios):.2f} to {max(ratios):.2f} "
            f"times the epochs (curves averaged over 5 epochs); below 86 nats {min(ratios[7:]):.2f} to "
            f"{max(ratios[7:]):.2f}.",
            "Weight norm, drawn but not mentioned, lies on the baseline: better at "
            f"{percent(float(np.mean(two < one)))} of the epochs from {shared[0]:.0f} on, by "
            f"{np.median(one - two):.2f} nats in the median; single epochs scatter by {noise[0]:.2f}.",
            f"The final 82.36 against 82.09 nats differ by 0.27, about one such scatter ({noise[0]:.2f} without, "
            f"{noise[1]:.2f} with layer norm).",
        ),
    )


def figure_5() -> Disagreement:
    test = {norm: curve("handwriting", "test_nll", norm) for norm in ("layer", "none")}
    train = {norm: curve("handwriting", "train_loss", norm) for norm in ("layer", "none")}
    share = share_to_best(test["layer"], test["none"], lower=True)
    assert share is not None
    ends = {norm: float(np.mean(c.y[-100:])) for norm, c in test.items()}
    end = train["layer"].x[-1]
    gap = np.mean(test["layer"].until(end).y[-21:]) - np.mean(train["layer"].y[-21:])
    return Disagreement(
        "figure-5",
        "Handwriting: “comparable” is 61 nats better",
        "section 6.5, Figure 5",
        "Layer norm converges to a log likelihood comparable to the baseline's, but much faster.",
        f"layer norm ends {ends['none'] - ends['layer']:.0f} nats better on the test curve and passes the baseline's "
        f"best after {percent(share)} of its updates; its training curve stops at {end:,.0f} of 190,600 updates",
        (
            f"Mean of the last 100 points of the test curves: {ends['layer']:.1f} with layer norm, {ends['none']:.1f} "
            f"without, {ends['none'] - ends['layer']:.1f} nats apart.",
            f"Layer norm reaches the baseline's best after {share:.3f} of its updates, {1 / share:.0f} times sooner.",
            f"Its training curve is drawn to update {end:,.0f} only, the others to about {test['none'].x[-1]:,.0f}; "
            f"at its end training is {gap:.0f} nats better than test (means of 21 points).",
        ),
    )


def figure_6_bands() -> Disagreement:
    chains = {}
    for norm, first, last in (("none", 41, 64), ("layer", 22, 49)):
        nll = curve("mnist_b128", "train_nll", norm)
        pairs = [value for i in range(first, last + 1) for value in (nll.high[i], nll.low[i])]
        chains[norm] = (int(np.sum(np.diff(pairs) < 0)), len(pairs) - 1)
    errors = [
        round(edge * 10_000, 3)
        for batch in (128, 4)
        for norm in ("none", "batch", "layer")
        for band in (
            curve(f"mnist_b{batch}", "test_error", norm).low,
            curve(f"mnist_b{batch}", "test_error", norm).high,
        )
        for edge in band
    ]
    whole = sum(abs(edge - round(edge)) < 0.01 for edge in errors)
    falling = sum(a for a, _ in chains.values()), sum(b for _, b in chains.values())
    return Disagreement(
        "figure-6-bands",
        "MNIST: the bands are not over seeds",
        "section 6.6, Figure 6",
        "Curves with shaded bands, of which nothing is said.",
        "each point is the mean of two consecutive evaluations of one run and the band is these two: no spread over "
        "seeds is shown anywhere in the paper",
        (
            f"All {whole} of {len(errors)} ends of the test-error bands are whole numbers of the 10,000 test images, "
            "and each line runs in the middle: two evaluations a point, not a standard deviation of more.",
            "Where the training likelihood falls steadily, the ends chain as high, low, next high, next low: "
            f"{falling[0]} of {falling[1]} steps go down (no norm {chains['none'][0]} of {chains['none'][1]}, layer "
            f"norm {chains['layer'][0]} of {chains['layer'][1]}). Two independent runs would not.",
            "So the 65 points are best read as 130 evaluations of one run for each curve; the paper does not say.",
        ),
    )


def figure_6_baseline() -> Disagreement:
    nll = {norm: curve("mnist_b128", "train_nll", norm) for norm in ("none", "batch", "layer")}
    error = {norm: curve("mnist_b128", "test_error", norm) for norm in nll}
    first = 22
    sooner = sum(b < a for a, b in zip(nll["layer"].y[:first], nll["batch"].y[:first], strict=True))
    below = sum(b < a for a, b in zip(error["layer"].y, error["batch"].y, strict=True))
    images = 10_000 * (error["batch"].y[-1] - error["layer"].y[-1])
    falls = {norm: reach(range(65), of.y, 1e-4, lower=True) for norm, of in nll.items()}
    loses = {}
    for norm in nll:
        one, other = (np.mean(curve(f"mnist_b{batch}", "test_error", norm).y[-20:]) for batch in (128, 4))
        loses[norm] = 100 * (other - one)
    return Disagreement(
        "figure-6-baseline",
        "MNIST: the baseline behind the legend ends lowest",
        "section 6.6, Figure 6",
        "Layer norm is robust to the batch size and trains faster than batch norm on all layers.",
        f"at batch 128 the network without a norm ends lowest ({nll['none'].y[-1]:.1e} against "
        f"{nll['layer'].y[-1]:.1e} nats), hidden by the legend, and batch norm is ahead of layer norm at {sooner} of "
        f"the first {first} points",
        (
            f"Train NLL at the end, batch 128: no norm {nll['none'].y[-1]:.1e}, layer norm {nll['layer'].y[-1]:.1e}, "
            f"batch norm {nll['batch'].y[-1]:.1e}. The baseline falls below 1e-4 at point {falls['none']:.0f} behind "
            f"the legend, layer norm at {falls['layer']:.0f}.",
            f"Before layer norm's own fall batch norm has the lower likelihood at {sooner} of the first {first} "
            "points: over so many epochs the figure contradicts “trains faster than batch norm”. Over all 65 it bears "
            f"it out: batch norm gets to 1e-4 at point {falls['batch']:.0f} only.",
            f"Batch norm's test error is below layer norm's at {below} of 65 points and ends {images:.0f} images of "
            "10,000 above it.",
            f"From batch 128 to batch 4 the test error (mean of the last 20 points) rises by {loses['layer']:.2f} "
            f"points with layer norm, {loses['batch']:.2f} with batch norm and {loses['none']:.2f} with none.",
        ),
    )


def equation_13() -> Disagreement:
    layers = {units: analysis.layer_curvature(units) for units in (4, 32, 128)}
    few, many = layers[4], layers[128]
    return Disagreement(
        "equation-13",
        "Equation 13 leaves out that layer norm couples the units",
        "section 5.2.2, equations 13-14, against Table 1",
        "Equations 13 and 14 are the Fisher matrix of a generalized linear model with any of the three norms.",
        "with layer norm a unit's weights move every unit's output: the curvature along them is off by "
        f"{percent(few.least)} to {percent(few.largest)} among 4 units and {percent(many.least)} to "
        f"{percent(many.largest)} among 128, and a vector added to all units' weights, which by Table 1 changes "
        f"nothing, gets {many.common_by_13:.1f} times the curvature of other vectors instead of none",
        (
            "Equation 14 has the derivatives of a unit's own summed input, mean and deviation by its own weights. With "
            "layer norm they are the mean and deviation of the other units too. Logistic units with random weights, "
            "float64, derivatives of all outputs by differentiation: error of a unit's w-w block, least and largest, "
            + "; ".join(f"{h} units {percent(c.least)} and {percent(c.largest)}" for h, c in layers.items())
            + ".",
            "One vector added to the weights of all units leaves a layer-normalized output as it is (Table 1, weight "
            "matrix re-centering), so that there is no curvature along it. In parts of equation 13's curvature along "
            f"vectors of the units' own: by differentiation {many.common:.2f}, by equation 13 "
            + ", ".join(f"{c.common_by_13:.2f} ({h} units)" for h, c in layers.items())
            + ".",
            "A unit with batch or weight norm depends on its own weights alone, and the equations are exact. Measured "
            "on softmax layers for each norm: `make reproduce-invariance`.",
        ),
    )


def factor_half() -> Disagreement:
    curvature, distance = analysis.doubled_weights()
    return Disagreement(
        "factor-half",
        "Doubling the weights changes the curvature by 1/4",
        "section 5.2.2",
        "When a weight vector doubles, the curvature along it changes by a factor of 1/2.",
        f"by equation 13 the curvature changes by {curvature:.3g}; it is the distance of a step that changes by "
        f"{distance:.3g}",
        (
            "The w-w block of equation 13 has g²/σ², and σ doubles with the weights. In a weight-normalized logistic "
            f"unit the Fisher matrix by automatic differentiation changes by {curvature:.6f}, the distance √(δᵀFδ) by "
            f"{distance:.6f}.",
            "The blocks of w with bias and gain, and the gradient, do change by 1/2. Measured on networks too: `make "
            "reproduce-invariance`.",
        ),
    )


def equation_32() -> Disagreement:
    exact, by_13, by_32 = analysis.gain_information()
    return Disagreement(
        "equation-32",
        "Equation 32 does not follow from equation 13",
        "appendix, equation 32 against equation 13",
        "Under batch norm the metric along the gains is the expected covariance of the outputs alone, so it depends "
        "only on the size of the prediction error.",
        f"the normalized input â² is missing: for a logistic unit the Fisher information of the gain is {exact:.4f}, "
        f"equation 13 gives {by_13:.4f}, equation 32 {by_32:.4f}",
        (
            "Equation 13's entry for two gains has (a_i - μ_i)(a_j - μ_j)/(σ_i σ_j) inside the expectation; equation "
            "32 leaves it out for batch norm, and equations 33 and 34 keep it for the other two norms.",
            f"One batch-normalized logistic unit, {analysis.CASES:,} cases, float64: Fisher information of the gain "
            f"from the scores themselves {exact:.6f}, by equation 13 {by_13:.6f}, by equation 32 {by_32:.6f}.",
            "The two agree only where the outputs' covariance does not depend on the input, as for a Gaussian unit.",
            "That the metric depends on the size of the prediction error only is loose for layer norm too: equation "
            "33 has the normalized inputs.",
        ),
    )


def shifted_features() -> Disagreement:
    features, common_shift = analysis.shifted_cases()
    return Disagreement(
        "conclusion-shift",
        "Layer norm is not invariant to shifting a case's features",
        "conclusion, against Table 1",
        "Layer norm is invariant to per training-case feature shifting and scaling.",
        f"shifting a case's inputs changes a layer-normalized output by {percent(features)}; only a shift common to "
        f"all summed inputs leaves it as it is ({common_shift:.0e})",
        (
            "Adding one number to all 64 features of a case changes the output of a layer-normalized layer by "
            f"{percent(features)} of its norm; adding it to all summed inputs by {common_shift:.1e}.",
            "Table 1 has no such column; its “dataset re-centering”, the nearest, says no for layer norm.",
        ),
    )


def rescaled_data() -> Disagreement:
    changes = analysis.doubled_data()
    return Disagreement(
        "table-1",
        "Weight norm is not invariant to re-scaling the data",
        "section 5.1, against Table 1",
        "All the normalization methods are invariant to re-scaling the dataset.",
        "Table 1 says no for weight norm and is right: doubling the data changes its output by "
        f"{percent(changes['weight'])}",
        (
            "Change of a layer's summed inputs after the norm, in parts of their norm, when all data are doubled: "
            + ", ".join(f"{NORMS[norm].label} {change:.2g}" for norm, change in changes.items())
            + ".",
        ),
    )


def slips() -> Disagreement:
    return Disagreement(
        "slips",
        "Slips of notation",
        "section 3, appendix",
        "The definitions that a reader implements.",
        "the appendix calls the gains additive and starts them at zero; they are read as multiplicative and start at "
        "1 here, as in the authors' code",
        (
            "The appendix' paragraphs on the LSTM and on DRAW call α and β the additive and multiplicative "
            "parameters, started at zeros and ones; its equation 15 makes α the gain and β the bias.",
            "Section 3 takes the mean and deviation “for layer normalization and batch normalization” from “Eq. 2 and "
            "3”, which have them in the reverse order.",
            "Equation 35's first vector has w_j / ||w_i|| where it must have w_j / ||w_j||.",
        ),
    )


FINDINGS: dict[str, Callable[[], Disagreement]] = {
    "table-1": rescaled_data,
    "equation-13": equation_13,
    "factor-half": factor_half,
    "figure-1": figure_1,
    "figure-2": figure_2,
    "table-3": table_3,
    "figure-4": figure_4,
    "figure-5": figure_5,
    "figure-6-bands": figure_6_bands,
    "figure-6-baseline": figure_6_baseline,
    "conclusion-shift": shifted_features,
    "equation-32": equation_32,
    "slips": slips,
}
