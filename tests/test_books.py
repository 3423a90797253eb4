"""Books: sentences and words, triples that stay inside a book, the cache, its memory, and batches without state."""

import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from ln.suite.data import Missing, books, novels, sha256_of
from ln.suite.data.book_batches import SameLength, permuted
from ln.suite.data.books import Book, Books, middles_of, prepared, sentences_of, split_of, words_of
from ln.suite.data.stories import stories
from ln.suite.data.vocabulary import UNKNOWN
from ln.suite.errors import Mistake
from tests.test_novels import write_archive


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LN_CACHE", str(tmp_path / "cache"))


def made_books(count: int, sentences: int, seed: int = 0) -> list[Book]:
    """Books whose every word names its book and sentence: `b3s17`, some sentences too long for a triple."""
    draw = np.random.default_rng(seed)
    return [(f"book {b}", [[f"b{b}s{s}"] * int(draw.integers(1, 34)) for s in range(sentences)]) for b in range(count)]


def test_words_are_split_as_the_sentence_sets_are() -> None:
    said = words_of("“I don't think Ada's well-made lamp cost 3.50,” she said—can't you?")
    text = "\" i do n't think ada 's well-made lamp cost 3.50 , \" she said -- ca n't you ?"
    assert " ".join(said) == text
    assert words_of(text) == said


def test_sentences_end_at_marks_and_paragraphs_but_not_after_titles_or_initials() -> None:
    text = 'Mr. J. Smith\ncame. "Is it he?" she asked. (So it was.) Yes\n\nCHAPTER II\n\n\n'
    assert [" ".join(words) for words in sentences_of(text)] == [
        "mr . j . smith came .",
        '" is it he ? " she asked .',
        "( so it was . )",
        "yes",
        "chapter ii",
    ]


def test_middles_are_the_short_sentences_between_short_ones() -> None:
    draw = np.random.default_rng(0)
    for count in (0, 1, 2, 3, 40):
        lengths = draw.integers(1, 40, count)
        slow = [s for s in range(1, count - 1) if all(lengths[t] < 30 for t in (s - 1, s, s + 1))]
        assert middles_of(lengths).tolist() == slow


def test_triples_are_neighbours_in_order_and_never_cross_a_book() -> None:
    made = made_books(33, 25)
    found = prepared("made", lambda: iter(made))
    names = ["<eos>", "<unk>", *found.words]
    triples = {split: set() for split in books.SPLITS}
    for split, part in found.splits.items():
        for middle in part.triples:
            rows = [part.tokens[part.starts[s] : part.starts[s + 1]] for s in (middle - 1, middle, middle + 1)]
            assert all(0 < len(row) < 30 for row in rows)
            assert np.isin(middle, part.triples[part.by_length[len(rows[1])] : part.by_length[len(rows[1]) + 1]])
            if split == "train":
                triples[split].add(tuple(names[row[0]] for row in rows))
    expected = set()
    for b, (_, sentences) in enumerate(made):
        rows = list(sentences)
        if split_of(b) == "train":
            expected |= {
                tuple(f"b{b}s{t}" for t in (s - 1, s, s + 1))
                for s in range(1, len(rows) - 1)
                if max(map(len, rows[s - 1 : s + 2])) < 30
            }
    assert triples["train"] == expected
    counts = {split: sum(split_of(b) == split for b in range(33)) * 25 for split in books.SPLITS}
    assert {split: len(part) for split, part in found.splits.items()} == counts
    assert counts["valid"] == counts["test"] == 50


def test_only_training_books_make_the_vocabulary_most_frequent_first() -> None:
    common = [["the", "cat"], ["the", "dog"], ["the", "cat"]]
    made = [(f"book {b}", common if split_of(b) == "train" else [["the", "secret"]] * 3) for b in range(16)]
    found = prepared("vocabulary", lambda: iter(made))
    assert found.words == ["the", "cat", "dog"]
    assert found.splits["test"].sentence(0, 100).tolist() == [2, UNKNOWN]
    assert found.splits["train"].sentence(0, 3).tolist() == [2, UNKNOWN]  # a smaller vocabulary of the same files
    assert len(found.vocabulary(4)) == 4


def test_files_are_made_once_and_whole() -> None:
    made = made_books(16, 5)
    calls = []

    def once() -> Iterator[Book]:
        calls.append(1)
        return iter(made)

    first, second = prepared("once", once), prepared("once", once)
    assert len(calls) == 1
    assert first.words == second.words

    def failing() -> Iterator[Book]:
        yield from made
        raise OSError("disk")

    with pytest.raises(Mistake, match="disk"):
        prepared("broken", failing)
    assert prepared("broken", once).words == first.words  # nothing half-made was left to be taken for whole
    assert len(calls) == 2


def test_memory_does_not_grow_with_the_corpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(books, "CHUNK", 1 << 12)

    def many(count: int) -> Iterator[Book]:
        sentence = [f"w{i}" for i in range(12)]
        return ((f"book {b}", [sentence] * 400) for b in range(count))

    peaks = []
    for count in (16, 160):
        tracemalloc.start()
        found = prepared(f"memory {count}", lambda count=count: many(count))
        SameLength(found.splits["train"], 32, lambda epoch: epoch).middles(3)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.2 * peaks[0]


def test_a_book_without_sentences_is_named() -> None:
    with pytest.raises(Mistake, match="book 1 holds no sentence"):
        prepared("empty", lambda: iter([("book 0", [["a"]]), ("book 1", [])]))


def test_novels_are_prepared_from_the_archive_and_one_without_sentences_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LN_DATA", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    path = write_archive(tmp_path / novels.ARCHIVE, {"A.txt": b"One day. Two days.", "B.txt": b"\n"})
    monkeypatch.setattr(novels, "SHA256", sha256_of(path))
    source = books.substitute()
    assert source.status == "substitute"
    with pytest.raises(Mistake, match=r"100_english_novels.tar.xz: B.txt holds no sentence"):
        source.load()
    write_archive(path, {"A.txt": b"One day. Two days. Three days."})
    monkeypatch.setattr(novels, "SHA256", sha256_of(path))
    read = books.substitute().load()
    assert [read.words[i - 2] for i in read.splits["train"].sentence(1, 100)] == ["two", "days", "."]


def test_bookcorpus_is_read_line_by_line_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LN_DATA", str(tmp_path))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Missing, match="data=original fetches"):
        books.original()
    folder = tmp_path / "bookcorpus"
    folder.mkdir()
    (folder / "books_large_p1.txt").write_text("".join(f"line {n} `` here '' .\n" for n in range(25)))
    monkeypatch.setattr(books, "SENTENCES_OF_A_PART", 10)
    parts = list(books.corpus_parts([folder / "books_large_p1.txt"]))
    assert [len(list(sentences)) for _, sentences in parts] == [10, 10, 5]
    assert next(iter(parts[2][1])) == ["line", "20", '"', "here", '"', "."]
    assert books.original().status == "original"


def test_stories_persist_and_are_the_same_every_time() -> None:
    texts = stories()
    assert texts == stories()
    assert len(set(texts)) == len(texts)
    found = books.embedded().load()
    assert all(len(part.triples) > 20 for part in found.splits.values())


# --- batches


@pytest.mark.parametrize("size", [1, 2, 5, 64, 1000])
def test_permuted_is_a_permutation_of_its_own_for_every_key(size: int) -> None:
    orders = [permuted(np.arange(size), size, key) for key in (0, 1, 2**47)]
    for order in orders:
        assert sorted(order.tolist()) == list(range(size))
        assert permuted(np.arange(size)[::-1], size, 1).tolist() == orders[1][::-1].tolist()
    if size == 1000:
        assert all(abs(np.corrcoef(order, np.arange(size))[0, 1]) < 0.15 for order in orders)
        assert not np.array_equal(orders[0], orders[1])


def small() -> Books:
    return prepared("batches", lambda: iter(made_books(16, 60)))


def test_an_epoch_shows_every_triple_once_in_batches_of_one_length() -> None:
    part = small().splits["train"]
    order = SameLength(part, 8, lambda epoch: 1000 + epoch)
    lengths = np.diff(part.starts)
    epochs = []
    for epoch in range(2):
        batches = [order.middles(epoch * order.steps_per_epoch + step) for step in range(order.steps_per_epoch)]
        assert all(len(set(lengths[batch])) == 1 and 1 <= len(batch) <= 8 for batch in batches)
        epochs.append(np.concatenate(batches))
        assert sorted(epochs[-1]) == sorted(part.triples)
    assert not np.array_equal(*epochs)


def test_a_batch_depends_on_its_step_alone() -> None:
    part = small().splits["train"]
    order, late = (SameLength(part, 8, lambda epoch: epoch) for _ in range(2))
    for step in range(17):
        order.middles(step)
    assert np.array_equal(order.middles(17), late.middles(17))
