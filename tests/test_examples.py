"""The examples run as they are: the notebook's cells one after the other, and each model with every norm.

The notebook's outputs are Jupyter's: `jupyter nbconvert --to notebook --execute --inplace examples/tagger.ipynb`.
"""

import json
from pathlib import Path

import matplotlib
import pytest
import torch

from examples import sine, tagger, word_model
from examples.words import encoded, windows, words_in, words_of
from ln.norms import NORMS

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
TEXT = "the cat saw the dog, and the dog saw the cat. did it? it did; they ran. " * 60


def test_the_notebook_runs_and_its_outputs_are_committed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(EXAMPLES)
    matplotlib.use("Agg")
    cells = [c for c in json.loads((EXAMPLES / "tagger.ipynb").read_text())["cells"] if c["cell_type"] == "code"]
    threads, names = torch.get_num_threads(), {"__name__": "__main__"}
    try:
        for cell in cells:
            exec("".join(cell["source"]), names)
    finally:
        torch.set_num_threads(threads)
    said = capsys.readouterr().out
    assert float(said.partition("largest difference: ")[2].split()[0]) < 1e-6
    assert said.count("test nats a word") == 3
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    shown = [output for cell in cells for output in cell["outputs"]]
    assert not [output for output in shown if output["output_type"] == "error"]
    assert sum("image/png" in output.get("data", {}) for output in shown) == 2


@pytest.mark.parametrize("norm", NORMS)
def test_each_model_learns_with_each_norm(norm: str) -> None:
    """Below the loss of guessing by shares, on a text that repeats itself, and on waves."""
    words = words_in(TEXT)
    valid, test = word_model.learn(encoded(words, word_model.V), norm, steps=60)
    assert max(valid, test) < 1.9  # words and marks by their shares: 2.5 nats
    valid, _ = tagger.learn(tagger.tagged(words), norm, rate=0.01, steps=30)
    assert valid < 0.2  # the marks by their shares: 0.9 nats
    valid, _ = sine.learn(norm, steps=40)
    assert valid < 0.25  # the wave's own mean square: 0.5


def test_tags_are_the_marks_behind_the_words() -> None:
    rows = tagger.tagged(words_in("Yes, it did. Why? Well: so"))
    assert rows[:, 1].tolist() == [1, 0, 2, 2, 3, 2]  # a text's end ends its sentence
    assert len(words_of()) > 50_000


def test_windows_are_whole_and_cover_a_part_evenly() -> None:
    rows = torch.arange(10)
    assert windows(rows, 4, 3).T.tolist() == [[0, 1, 2, 3], [3, 4, 5, 6], [6, 7, 8, 9]]
    assert windows(rows, 4, 100, torch.Generator().manual_seed(0)).max() <= 9
