"""The paper's own curves under every claim's own rule: the numbers that are quoted of them."""

from dataclasses import replace

import pytest

from ln.suite.config import names
from ln.suite.judging.checks import target_for
from ln.suite.judging.claims import Check, load_claims
from ln.suite.judging.on_paper import OnPaper, on_paper
from ln.suite.judging.published import Key, published_curves
from ln.suite.judging.verdicts import NOT_REPRODUCED, UNDECIDED, Verdict, judge_runs
from ln.suite.runs.read import Measured


def checks_of(group: str, claim: str) -> list[Check]:
    return [check for c in load_claims(group).claims if c.id == claim for check in c.checks]


def shown(check: Check) -> OnPaper:
    found = on_paper(check)
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("group", "claim", "by_target", "to_best"),
    [
        ("order_embeddings", "order_faster", "0.72", "0.57"),
        ("draw", "draw_faster", "0.65", "0.74"),
        ("handwriting", "handwriting_faster", "0.09", "0.09"),
        ("handwriting", "handwriting_train_faster", "0.11", "0.21"),
        ("attentive_reader", "attentive_reader_faster", "0.09", "0.07"),
        ("attentive_reader", "attentive_reader_faster_than_batch_bn_lstm", "0.29", "0.24"),
        ("attentive_reader", "attentive_reader_faster_than_batch_bn_everywhere", "0.62", "0.40"),
        ("mnist", "mnist_faster_b128", "0.47", "0.38"),
        ("mnist", "mnist_faster_b4", "0.07", "0.07"),
    ],
)
def test_how_many_of_the_baselines_updates_the_papers_curves_take(
    group: str, claim: str, by_target: str, to_best: str
) -> None:
    (check,) = checks_of(group, claim)
    found = shown(check)
    assert found.text.startswith(f"{by_target} of ")
    assert found.text.endswith(f", {to_best} to the baseline's best")
    assert not found.fails


def test_by_the_baselines_best_figure_6_is_never_faster_than_the_baseline() -> None:
    (check,) = checks_of("mnist", "mnist_faster_than_baseline_b128")
    shares = "0.55 of the updates with no norm to 0.0001, 0.87 to nine tenths of the baseline's improvement"
    assert shown(check).text == f"{shares}, never to the baseline's best"


def test_fixed_targets_are_nine_tenths_of_the_way_to_the_published_baselines_best() -> None:
    exempt = {"mnist_faster_b128", "mnist_faster_than_baseline_b128"}  # where Figure 6's curves have parted
    seen = 0
    for group in names("claims"):
        for claim in load_claims(group).claims:
            for check in claim.checks:
                of = check.baseline_experiment or check.curve_of or check.experiment
                drawn = published_curves().get(Key(of, check.metric, check.baseline))
                if check.target is None or drawn is None or claim.id in exempt:
                    continue
                whole = replace(check, target=None)
                usual = target_for(whole, [run(0, list(drawn.y), metric=check.metric)])
                assert usual is not None
                span = abs(usual - drawn.y[0])
                assert abs(check.target - usual) < 0.03 * span, (claim.id, check.quantity, check.target, usual)
                seen += 1
    assert seen == 17


def test_recalls_by_the_baselines_best() -> None:
    texts = [shown(check).text for check in checks_of("order_embeddings", "order_speedup")]
    assert [text.rsplit(", ", 1)[1] for text in texts] == [
        f"{share} to the baseline's best" for share in ("0.65", "0.52", "0.57")
    ]


@pytest.mark.parametrize(
    ("group", "claim", "text"),
    [
        ("attentive_reader", "attentive_reader_minimum_ln_lstm", "47.77"),
        ("attentive_reader", "attentive_reader_better", "better by 2.56 at its best"),
        ("skip_thoughts", "skip_thoughts_none_sick_r", "0.842"),  # at 800,000 updates, as in Table 3
        ("skip_thoughts", "skip_thoughts_none_end_sick_r", "0.836"),  # at a million
        ("skip_thoughts", "skip_thoughts_layer_sick_r", "0.854"),
        ("skip_thoughts", "skip_thoughts_above_cr", "at 0.95 of the checkpoints"),
        ("mnist", "mnist_better_b4", "better by 0.00635 at its last point"),
        ("draw", "draw_better", "better by 0.322 at its last point"),
    ],
)
def test_levels_on_the_papers_curves(group: str, claim: str, text: str) -> None:
    (check,) = checks_of(group, claim)
    assert shown(check).text == text
    assert not shown(check).fails


def test_what_the_paper_does_not_draw_has_no_number() -> None:
    assert on_paper(checks_of("order_embeddings", "order_better_caption_r_1")[0]) is None
    assert on_paper(checks_of("draw", "draw_bound_none")[0]) is None  # after 200 epochs, of which it draws 100


def run(seed: int, values: list[float], status: str = "complete", metric: str = "train_nll") -> Measured:
    records = [{"step": 430 * i, "epoch": float(i), metric: v} for i, v in enumerate(values, 1)]
    info = {"status": status, "identity": {"seed": seed}, "data": {"status": "original", "name": "MNIST"}}
    return Measured(info, records)


def test_a_rule_that_the_papers_own_curve_fails_is_not_held_against_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    quick = [0.2, 0.1, 0.05, 0.02, 0.011, 0.010, 0.010, 0.010, 0.010, 0.010]
    slow = [0.2, 0.15, 0.1, 0.07, 0.05, 0.04, 0.03, 0.025, 0.02, 0.011]
    runs = [{s: run(s, [v * (1 + 0.01 * s) for v in values], "partial") for s in range(3)} for values in (slow, quick)]

    def judged() -> Verdict:
        verdicts = judge_runs(
            load_claims("mnist"), {"mnist_b128": dict(zip(("layer", "batch"), runs, strict=True))}, "full"
        )
        return next(verdict for verdict in verdicts if verdict.claim == "mnist_faster_b128")

    assert judged().verdict == NOT_REPRODUCED
    turned = {
        key._replace(norm={"layer": "batch", "batch": "layer"}.get(key.norm, key.norm)): curve
        for key, curve in published_curves().items()
    }
    monkeypatch.setattr("ln.suite.judging.on_paper.published_curves", lambda: turned)
    assert judged().verdict == UNDECIDED
    assert "the paper's own figure fails this rule too" in judged().reason
    assert "which is not held against a run" in judged().on_paper


def test_runs_of_the_first_part_are_seen_beside_the_first_part() -> None:
    (check,) = checks_of("mnist", "mnist_faster_b128")
    sides = [{s: run(s, [0.1] * 10, "partial") for s in range(3)}] * 2
    found = on_paper(replace(check, target=None), sides)
    assert found is not None
    # Within ten epochs Figure 6's layer norm never gets to batch norm's best.
    assert found.text == (
        "0.75 of the updates with batch norm to nine tenths of the baseline's improvement, never to the baseline's best"
    )
