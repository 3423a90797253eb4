"""The front page: a row for each headline claim, in every state of the results, and what the paper's curves say."""

from pathlib import Path
from typing import Any

import pytest

from ln.suite.judging.claims import load_claims
from ln.suite.showing import scoreboard
from ln.suite.showing.report import conclude, groups
from ln.suite.showing.scoreboard import Row, protocol, readme_block, rows_of, rows_on_disk, table
from ln.suite.showing.text import code, href, markdown
from tests.page_results import metrics_of, write_run


@pytest.mark.parametrize("group", groups())
def test_every_claims_file_names_its_headline(group: str) -> None:
    assert 1 <= len(load_claims(group).headlines) <= 2


def test_before_anything_ran_it_says_so(tmp_path: Path) -> None:
    block = readme_block(tmp_path)
    rows = [line for line in block.splitlines() if "`make reproduce-" in line]
    assert 9 <= len(rows) <= 15
    assert all("| not judged |" in row for row in rows)
    assert "Nothing was run at the paper's protocol yet" in block
    picture = scoreboard.picture(rows_on_disk(tmp_path), tmp_path / scoreboard.PICTURE)
    assert picture.stat().st_size > 5_000


def test_a_row_has_ratio_interval_scale_and_data(tmp_path: Path) -> None:
    for norm in ("layer", "none"):
        for seed in range(3):
            write_run(tmp_path, "draw", norm, seed, metrics_of("draw"))
    conclude("draw", "laptop", tmp_path)
    (row,) = rows_of("draw", scoreboard.best_verdicts("draw", tmp_path))
    assert row.ran
    assert row.seen.endswith("of the updates with no norm")
    assert row.scale == "laptop, embedded, 3 of 5 seeds"
    assert row.on_paper.startswith("0.65 of the updates with no norm")
    line = table([row]).splitlines()[-1]
    assert line.count("|") == 7
    assert row.seen in line


def test_cells_of_one_entry_are_counted_in_one_row() -> None:
    claims = tuple(load_claims("skip_thoughts").headlines["skip_thoughts_task_faster"])
    assert len(claims) == 6

    def verdict(word: str, ratio: float) -> dict[str, Any]:
        interval = {"low": ratio / 2, "estimate": ratio, "high": 2 * ratio}
        return {"verdict": word, "data": "embedded", "scale": "laptop", "profile": "laptop", "seeds": [0, 1, 2],
                "measured": "", "reason": "", "findings": [{"interval": interval}]}  # fmt: skip

    words = [*["seen"] * 4, "undecided", "opposite_seen"]
    row = Row("skip_thoughts", "t", "f", claims, tuple(verdict(w, 0.2 * (i + 1)) for i, w in enumerate(words)))
    assert row.seen == "4 of 6 seen, 1 of 6 undecided, 1 of 6 opposite seen; 0.20 to 1.20 of the updates"
    assert row.verdict == "opposite_seen"
    assert row.sentence == "Layer norm learns to the baseline's score in fewer updates."


def test_a_bound_is_said_and_drawn_as_one(tmp_path: Path) -> None:
    (claim,) = load_claims("draw").headlines["draw_faster"]
    finding = {"interval": {"low": 1.03, "estimate": 1.2, "high": 1.41}, "bound": "more than"}
    verdict = {"verdict": "opposite_seen", "data": "original", "scale": "laptop", "profile": "laptop",
               "seeds": [0, 1, 2], "measured": "", "reason": "", "findings": [finding]}  # fmt: skip
    row = Row("draw", "t", "f", (claim,), (verdict,))
    assert row.seen == "more than 1.20 [1.03, 1.41] of the updates with no norm"
    elsewhere = Row("draw", "t", "f", (claim,), (verdict | {"elsewhere": "at laptop: seen, 0.6"},))
    assert elsewhere.seen == row.seen + "; at laptop: seen, 0.6"
    scoreboard.picture([row], tmp_path / "board.png")
    assert "more than this, since no run gets there" in (tmp_path / "board.svg").read_text()


def drawn(folder: Path, word: str = "seen", low: float = 0.8) -> str:
    """The picture, as SVG, of one row whose interval is [low, 1.1]."""
    finding = {"interval": {"low": low, "estimate": 0.9, "high": 1.1}}
    verdict = {"verdict": word, "data": "original", "scale": "laptop", "profile": "laptop", "seeds": [0, 1, 2],
               "measured": "", "reason": "", "findings": [finding]}  # fmt: skip
    row = Row("draw", "t", "f", tuple(load_claims("draw").headlines["draw_faster"]), (verdict,))
    return scoreboard.picture([row], folder / "board.png").with_suffix(".svg").read_text()


def test_what_is_undecided_is_drawn_hollow(tmp_path: Path) -> None:
    assert "<!-- undecided -->" in drawn(tmp_path, "undecided")
    assert "<!-- undecided -->" not in drawn(tmp_path, "seen")


def test_an_interval_that_leaves_the_axis_has_an_arrow_at_its_end(tmp_path: Path) -> None:
    first = scoreboard.SPEEDS[0]
    inside, beyond = (drawn(tmp_path, low=low).count("<use ") for low in (2 * first, first / 2))
    assert beyond > inside


def test_the_second_target_of_a_speed_stands_in_its_row() -> None:
    (claim,) = load_claims("mnist").headlines["mnist_faster_b128"]
    interval = {"low": 0.56, "estimate": 0.72, "high": 0.94}
    finding = {"interval": interval, "beside": {"low": 0.74, "estimate": 0.95, "high": 1.23}}
    verdict = {"verdict": "reproduced", "data": "original", "scale": "full", "profile": "full", "seeds": [0, 1, 2],
               "measured": "", "reason": "", "findings": [finding]}  # fmt: skip
    said = Row("mnist", "t", "f", (claim,), (verdict,)).seen
    assert said.startswith(
        "0.72 [0.56, 0.94] of the updates with batch norm to 0.0001, 0.95 [0.74, 1.23] to nine tenths"
    )


def test_reproduced_claims_about_equations_are_told_from_trained_ones() -> None:
    equations = {"group": "invariance", "claim": "invariance_layer", "verdict": "reproduced"}
    trained = {"group": "mnist", "claim": "mnist_faster_b128", "verdict": "reproduced"}
    said = scoreboard.reproduced(
        [equations, equations | {"claim": "fisher_batch"}, trained, trained | {"verdict": "seen"}]
    )
    assert said.startswith("Of the 3 reproduced, 2 are about equations and invariances")
    assert "1 is from training" in said
    assert scoreboard.reproduced([trained]) == ""


def test_what_ran_at_the_papers_protocol_is_named_and_what_did_so_in_part() -> None:
    verdicts = {
        "mnist": [{"data": "original", "scale": "full"}],
        "draw": [{"data": "original", "scale": "full, first 5 of 200 epochs"}],
        "handwriting": [{"data": "substitute", "scale": "full"}],
        "convnet": [],
    }
    said = protocol(verdicts)
    assert "was carried out whole for Permutation-invariant MNIST and in part for DRAW" in said
    assert "(first 5 of 200 epochs)" in said
    assert "Handwriting" not in said
    verdicts["mnist"] += [{"data": "original", "scale": f"full, first {n} of 130 epochs"} for n in (60, 7.5)]
    parts = "(whole, first 7.5 of 130 epochs and first 60 of 130 epochs)"
    assert f"was carried out in part for Permutation-invariant MNIST {parts} and DRAW" in protocol(verdicts)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a | b", r"a \| b"),
        ("2*3 and _x_ but test_error", r"2\*3 and \_x\_ but test_error"),
        ("<script>", "&lt;script&gt;"),
        ("Salimans & Kingma &lt;", "Salimans & Kingma &amp;lt;"),
        ("[a](http://b)", r"[a]\(http://b)"),
        ("0.5 [0.4, 0.6]", "0.5 [0.4, 0.6]"),
        ("`x` $y$ ~~z~~ \\", r"\`x\` \$y\$ \~\~z\~\~ \\"),
        ("# no heading\nno\tline", r"\# no heading no line"),
        ("1. no list", r"1\. no list"),
        ("-0.5", "-0.5"),
    ],
)
def test_text_is_no_markdown(text: str, shown: str) -> None:
    assert markdown(text) == shown
    assert markdown(markdown(text)) == shown


def test_code_and_links() -> None:
    assert code("make a|b") == r"`make a\|b`"
    assert code("a ` b") == "`` a ` b ``"
    assert href("a b/c_(d).png") == "a%20b/c_%28d%29.png"
