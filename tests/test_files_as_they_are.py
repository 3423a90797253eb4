"""Text files as they are in the world: line ends, byte order marks, encodings, and characters that end no line."""

import codecs
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from ln.suite.data import (
    Source,
    books,
    check_sha256,
    cnn_questions,
    iam_ondb,
    precomp,
    resolve,
    sentence_sets,
    sha256_of,
    text_lines,
)
from ln.suite.errors import Mistake

NO_ENDS = ("\x85", "\u2028", "\u2029", "\x0b", "\x0c", "\x1c", "\r")
ENDS: dict[str, Callable[[str], bytes]] = {
    "LF": str.encode,
    "CRLF": lambda text: text.replace("\n", "\r\n").encode(),
    "a byte order mark": lambda text: codecs.BOM_UTF8 + text.encode(),
    "both": lambda text: codecs.BOM_UTF8 + text.replace("\n", "\r\n").encode(),
    "no end of the last line": lambda text: text.removesuffix("\n").encode(),
}
every_end = pytest.mark.parametrize("written", ENDS.values(), ids=ENDS)


@every_end
def test_lines_are_what_stands_between_line_feeds(tmp_path: Path, written: Callable[[str], bytes]) -> None:
    lines = [f"a{character}b" for character in NO_ENDS] + ["", "last"]
    (tmp_path / "x").write_bytes(written("\n".join(lines) + "\n"))
    assert text_lines(tmp_path / "x") == lines


def test_bytes_of_another_encoding_are_a_sentence_with_the_line(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes("one\ncafé\n".encode("latin-1"))
    with pytest.raises(Mistake, match="x, line 2: a byte is not UTF-8; convert the file to it"):
        text_lines(tmp_path / "x")
    assert text_lines(tmp_path / "x", "latin-1") == ["one", "café"]
    (tmp_path / "x").write_bytes(b"")
    assert text_lines(tmp_path / "x") == []


@every_end
def test_a_published_text_is_itself_with_other_line_ends(tmp_path: Path, written: Callable[[str], bytes]) -> None:
    path = tmp_path / "x"
    for published in ("one\ntwo\n", "one\r\ntwo\r\n"):
        path.write_bytes(published.encode())
        sha256 = sha256_of(path)
        path.write_bytes(written("one\ntwo\n"))
        if path.read_bytes().endswith(b"\n"):
            check_sha256(path, sha256, text=True)
    path.write_bytes(written("one\ntwa\n"))
    with pytest.raises(Mistake, match="cut short or altered"):
        check_sha256(path, sha256, text=True)


@every_end
def test_a_question_is_read(tmp_path: Path, written: Callable[[str], bytes]) -> None:
    text = "a place\n\nhe met\u2028 @entity1\x85 there .\n\nwho met @placeholder ?\n\n@entity1\n\n@entity1:A\x0cB\n"
    (tmp_path / "q.question").write_bytes(written(text))
    question = cnn_questions.read_question(tmp_path / "q.question", whole=False)
    assert question.answer == "@entity1"
    assert question.sentences == [["he", "met", "@entity1", "there", "."]]


@every_end
def test_captions_and_names_are_read(tmp_path: Path, written: Callable[[str], bytes]) -> None:
    (tmp_path / "caps.txt").write_bytes(written("a dog\x85 runs\na café\n"))
    assert precomp.read_captions(tmp_path / "caps.txt") == [["a", "dog", "runs"], ["a", "café"]]


@every_end
def test_split_lists_of_handwriting_are_read(tmp_path: Path, written: Callable[[str], bytes]) -> None:
    for name in iam_ondb.LISTS:
        (tmp_path / name).write_bytes(written(f" {name[:-4]}-a\n{name[:-4]}-b\n"))
    assert iam_ondb.listed_forms(tmp_path)["valid"] == ["testset_v-a", "testset_v-b"]
    (tmp_path / "trainset.txt").write_bytes("a\nbé\n".encode("latin-1"))
    with pytest.raises(Mistake, match=r"trainset.txt, line 2: a byte is not UTF-8"):
        iam_ondb.listed_forms(tmp_path)


def test_a_text_of_handwriting_may_hold_any_character(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("OCR:\n\nCSR:\n\none\x85 line\r\nanother\n".encode("latin-1"))
    assert iam_ondb.read_text(tmp_path / "a.txt") == ["one line", "another"]


@every_end
def test_labelled_sentences_are_read(tmp_path: Path, written: Callable[[str], bytes]) -> None:
    (tmp_path / "x.all").write_bytes(written("1 good .\n0 bad .\n"))
    found = sentence_sets.read_labelled(tmp_path / "x.all", 2)
    assert found.sentences == [["good", "."], ["bad", "."]]


CORPUS = [
    "mr. smith of the u.s. did n't come at five o'clock and/or six .",
    "-lrb- it \x85 was \u2028 `` late '' -rrb-",
]


def test_a_corpus_is_read_and_its_words_are_those_of_the_sentence_sets(tmp_path: Path) -> None:
    text, table = tmp_path / "a [1], *?.txt", tmp_path / "a [1], *?.parquet"
    text.write_bytes(codecs.BOM_UTF8 + ("\r\n".join(CORPUS) + "\r\n").encode())
    pyarrow.parquet.write_table(pyarrow.table({"text": [*CORPUS, None]}), table)
    for path in (text, table):
        [(_, sentences)] = books.corpus_parts([path])
        quotes = CORPUS[1].replace("``", '"').replace("''", '"')
        assert list(sentences) == [books.words_of(CORPUS[0]), books.words_of(quotes)]
    pyarrow.parquet.write_table(pyarrow.table({"line": CORPUS}), table)
    text.write_bytes(b"one\ncaf\xe9\n")
    for path in (text, table):
        with pytest.raises(Mistake, match="no sentences in a column `text`"):
            list(books.corpus_parts([path]))
    table.write_bytes(table.read_bytes()[:50])
    with pytest.raises(Mistake, match="no sentences in a column `text`"):
        list(books.corpus_parts([table]))


def test_what_is_trained_on_is_said_once(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    source = Source(f"digits of {tmp_path}", "embedded", "0", lambda: None)
    for _ in range(3):
        assert resolve("auto", {"embedded": lambda: source}) is source
    assert capsys.readouterr().out == f"data: digits of {tmp_path} [embedded]\n"
