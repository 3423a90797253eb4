"""Words as numbers."""

import torch

from ln.suite.data.vocabulary import EOS, UNKNOWN, Vocabulary, padded

SENTENCES = [["the", "cat"], ["the", "dog"], ["a", "cat", "the"]]


def test_the_most_frequent_words_come_first_and_ties_are_settled() -> None:
    assert Vocabulary.of(SENTENCES).words == ["<eos>", "<unk>", "the", "cat", "a", "dog"]
    assert Vocabulary.of(reversed(SENTENCES)).words == Vocabulary.of(SENTENCES).words


def test_a_word_that_does_not_fit_is_unknown() -> None:
    vocabulary = Vocabulary.of(SENTENCES, 4)
    assert len(vocabulary) == 4
    assert vocabulary.encode(["the", "dog", "cat"]) == [2, UNKNOWN, 3]
    assert vocabulary.decode([2, UNKNOWN, EOS]) == ["the", "<unk>", "<eos>"]


def test_rows_are_filled_up_on_the_right() -> None:
    ids, lengths = padded([[5], [], [2, 3]])
    assert ids.tolist() == [[5, EOS], [EOS, EOS], [2, 3]]
    assert lengths.tolist() == [1, 0, 2]
    assert ids.dtype == lengths.dtype == torch.int64
