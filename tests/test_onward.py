"""Every command ends with what to do next, which is something that can be done."""

import re

import pytest

from ln.suite.showing.onward import NEXT, onward
from tests.conftest import ROOT

MAKEFILE = (ROOT / "Makefile").read_text()
TARGETS = set(re.findall(r"^([a-z%-]+):.*##", MAKEFILE, re.MULTILINE))
SCRIPTS = sorted(set(re.findall(r"-m scripts\.(\w+)", MAKEFILE)))


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_command_says_what_to_do_next(script: str) -> None:
    source = (ROOT / "scripts" / f"{script}.py").read_text()
    assert "onward(" in source or "from scripts.sweep import" in source, f"make's scripts.{script} ends in silence"


@pytest.mark.parametrize("after", NEXT)
def test_what_comes_next_is_a_command_that_there_is(after: str) -> None:
    line = onward(after, "order_embeddings", "full", "mine", file="page.html", command="make reproduce-draw")
    assert line.startswith("next: ")
    assert len(line) < 120
    for target in re.findall(r"make ([a-z<>-]+)", line):
        pattern = re.sub(r"-(order-embeddings|<experiment>|mnist|draw)$", "-%", target)
        assert pattern in TARGETS, f"{line}: there is no make {target}"


def test_it_keeps_what_was_asked_for_and_no_more() -> None:
    assert onward("judged") == "next: `make report` writes results/index.html, the page of all runs"
    assert onward("planned", "seq_mnist") == "next: `make reproduce-seq-mnist` carries them out"
    said = onward("planned", "seq_mnist", "full", "mine")
    assert said == "next: `make reproduce-seq-mnist PROFILE=full RESULTS=mine` carries them out"
