"""Cloze questions: names and sentences of novels, numbering that leaks nothing, whole books held out, the cache."""

from pathlib import Path

import numpy as np
import pytest

import ln.suite.data.novels
from ln.suite.data import cloze, sha256_of
from ln.suite.data.cloze import ENTITY, PLACEHOLDER, Question
from ln.suite.errors import Mistake
from tests.test_novels import write_archive

NAMES = ["Anna", "Bertram", "Clara", "Dorian", "Edwin"]


def book(seed: int, sentences: int = 120) -> str:
    """Prose in which five people meet; each name recurs inside sentences."""
    generator = np.random.default_rng(seed)
    lines = []
    for _ in range(sentences):
        a, b = generator.choice(NAMES, 2, replace=False)
        verb = generator.choice(["met", "saw", "followed", "told"])
        lines.append(f"In the {generator.choice(['morning', 'evening'])} old {a} {verb} {b} Wood near the river.")
    return "\ufeff" + "\r\n\r\n".join(" ".join(lines[i : i + 4]) for i in range(0, sentences, 4))


@pytest.fixture
def novels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LN_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("LN_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    path = write_archive(
        tmp_path / "data" / ln.suite.data.novels.ARCHIVE, {f"book{i}.txt": book(i).encode() for i in range(5)}
    )
    monkeypatch.setattr(ln.suite.data.novels, "SHA256", sha256_of(path))
    return path


# --- sentences and names


def test_a_possessive_is_a_word_of_its_own() -> None:
    assert cloze.sentences_of("It was Emma’s don't-care air.") == [
        ["It", "was", "Emma", "'s", "don't-care", "air", "."]
    ]


def test_names_are_words_whose_capital_recurs_inside_sentences() -> None:
    sentences = cloze.sentences_of(
        "Then Rose came. But Rose left. So Mr. Brook saw Rose go, and Rose wept. " * 2
        + "Then a Stone fell. Then a Stone broke. Then a Stone lay. Then a Stone, a stone."
    )
    # "Then" is always at a beginning, "Mr" a title, "Brook" too rare, "Stone" has no capital as well.
    assert cloze.names_of(sentences) == {"Rose"}


def test_a_run_of_names_is_its_last_one() -> None:
    words = ["Yesterday", "Theodore", "Racksole", ",", "and", "Racksole", "'s", "man"]
    found = cloze.with_entities(words, {"Theodore", "Racksole"})
    assert found == ["yesterday", "Racksole", ",", "and", "Racksole", "'s", "man"]


# --- anonymization


def test_anonymization_never_leaks_the_answer() -> None:
    """No name is left as a word, the answer's marker is not in the question, and each marker stands for one name."""
    names = cloze.names_of(cloze.sentences_of(book(0)))
    assert names == {*NAMES, "Wood"}
    questions = cloze.questions_of(book(0), np.random.default_rng(0))
    assert len(questions) > 50
    for question in questions:
        passage = [word for sentence in question.sentences for word in sentence]
        assert not {name.lower() for name in names}.intersection(map(str.lower, passage + question.question))
        assert PLACEHOLDER in question.question
        assert PLACEHOLDER not in passage
        assert question.answer not in question.question
        assert question.answer in passage


def test_the_answers_numbers_are_uniform_whatever_the_name() -> None:
    """So that neither the order of names nor their frequency shows in a marker."""
    generator = np.random.default_rng(1)
    passage = [["Anna", "saw", "Bertram"], ["Anna", "left"]]
    counts = np.zeros(cloze.MARKERS)
    draws = 2000
    for _ in range(draws):
        question = cloze.anonymized(passage, ["then", "Anna", "slept"], "Anna", generator)
        assert question.sentences[0][0] == question.sentences[1][0] == question.answer
        assert question.sentences[0][2] not in (question.answer, "Bertram")
        assert question.question == ["then", PLACEHOLDER, "slept"]
        counts[int(question.answer.removeprefix("@entity"))] += 1
    expected = draws / cloze.MARKERS
    # Five standard deviations of a binomial count.
    assert np.abs(counts - expected).max() < 5 * np.sqrt(expected)


def test_an_answer_that_occurs_twice_in_the_question_is_removed_twice() -> None:
    question = cloze.anonymized([["Anna"]], ["Anna", "and", "Anna"], "Anna", np.random.default_rng(0))
    assert question.question == [PLACEHOLDER, "and", PLACEHOLDER]


# --- the set


def test_books_are_held_out_whole_and_the_build_is_always_the_same(novels: Path) -> None:
    splits = cloze.split_of_books([f"book{i}.txt" for i in range(5)])
    assert sorted(splits.values()) == ["test", "train", "train", "train", "valid"]
    first, again = cloze.from_novels(novels), cloze.from_novels(novels)
    assert first.vocabulary.words == again.vocabulary.words
    for split in cloze.SPLITS:
        for part, values in vars(first.splits[split]).items():
            np.testing.assert_array_equal(values, getattr(again.splits[split], part))
    lengths = [len(first.splits["train"].sentences(i)) for i in range(len(first.splits["train"]))]
    assert set(lengths) == {cloze.SENTENCES}


def test_the_prepared_set_is_what_was_built(novels: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = cloze.substitute()
    assert source.status == "substitute"
    built = source.load()
    monkeypatch.setattr(ln.suite.data.novels, "texts", lambda archive: pytest.fail("the books were read again"))
    kept = cloze.substitute().load()
    assert kept.vocabulary.words == built.vocabulary.words
    assert kept.entities == built.entities
    np.testing.assert_array_equal(kept.splits["test"].words, cloze.substitute().load().splits["test"].words)
    assert len(kept.splits["test"]) == len(built.splits["test"]) > 0


def test_whole_books_must_be_held_out(tmp_path: Path) -> None:
    path = write_archive(tmp_path / "two.tar.xz", {"a.txt": book(0).encode(), "b.txt": book(1).encode()})
    with pytest.raises(Mistake, match="holds 2 books"):
        cloze.from_novels(path)


def test_the_vocabulary_is_the_training_splits_with_all_markers_first() -> None:
    train = [Question([["a", "@entity5", "b", "b"]], [PLACEHOLDER, "b", "."], "@entity5")]
    other = [Question([["a", "@entity12", "new"]], [PLACEHOLDER, "."], "@entity12")]
    made = cloze.numbered({"train": train, "valid": other, "test": other})
    assert made.vocabulary.words == ["<eos>", "<unk>", PLACEHOLDER, "@entity5", "@entity12", "b", ".", "a"]
    assert made.entities == 2
    assert made.vocabulary.decode(made.splits["valid"].sentences(0)[0]) == ["a", "@entity12", "<unk>"]
    assert made.splits["valid"].answers.tolist() == [4]


def test_the_sentences_that_share_most_are_taken_in_order() -> None:
    weights = np.array([0, 0, 0, 1, 1, 5.0, 1, 3])  # two markers, 3 and 4
    sentences = [np.array(ids) for ids in ([3, 6], [5, 7], [4, 5], [6, 4], [3])]
    question = np.array([2, 5, 6])
    taken = cloze.most_similar(sentences, question, weights, 2, 3)
    assert taken.tolist() == [3, 6, 4, 5, 6, 4]  # nobody is named in the second, nothing is shared in the last
    with_marker = cloze.most_similar(sentences, np.array([2, 4, 5]), weights, 2, 2)
    assert with_marker.tolist() == [3, 6, 3]  # whom the question names is no answer


def test_the_floor_is_the_most_frequent_marker_the_later_of_equals() -> None:
    words = np.array([3, 9, 4, 3, 4, 5])
    assert cloze.most_frequent_entity(words, 3) == 4
    assert cloze.most_frequent_entity(words, 3, {4}) == 3
    assert cloze.most_frequent_entity(np.array([9, 1]), 3) == -1


# --- generated passages


def test_generated_answers_can_be_derived_from_the_passage() -> None:
    """Exactly one sentence says what is asked, and it begins with the answer."""
    for question in cloze.generated(300, np.random.default_rng(0)):
        says = [s for s in question.sentences if s[1:-1] == question.question[1:]]
        assert [s[0] for s in says] == [question.answer]
        people = {word for s in question.sentences for word in s if ENTITY.fullmatch(word)}
        assert len(people) >= 3
        assert question.answer not in question.question


def test_embedded_needs_no_files() -> None:
    source = cloze.embedded()
    assert source.status == "embedded"
    assert {name: len(split) for name, split in source.load().splits.items()} == cloze.EMBEDDED_QUESTIONS
