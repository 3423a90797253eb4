"""The CNN question corpus on small files: both variants, and broken ones in one sentence."""

from pathlib import Path

import pytest

from experiments.attentive_reader.task import substitute
from ln.suite.data import Missing, cnn_questions
from ln.suite.data.cnn_questions import read_question
from ln.suite.errors import Mistake

PASSAGE = "@entity1 met @entity0 in @entity2 . they spoke . was it late ? @entity0 left"
NAMES = "@entity0:Ann\n@entity1:Bob: the second\n@entity2:Oslo\n"
TEXT = f"http://news\n\n{PASSAGE}\n\n@placeholder left\n\n@entity0\n\n{NAMES}"


def write(path: Path, text: str = TEXT) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def corpus(folder: Path, variant: str) -> None:
    for split, names in {"training": "abc", "validation": "d", "test": "ef"}.items():
        for name in names:
            write(folder / "cnn" / variant / split / f"{name}.question")


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LN_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("LN_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "data"


def test_a_file_is_read_whole_and_as_four_chosen_sentences(tmp_path: Path) -> None:
    path = write(tmp_path / "a.question")
    whole = read_question(path, whole=True)
    assert [len(sentence) for sentence in whole.sentences] == [6, 3, 4, 2]
    assert whole.question == ["@placeholder", "left"]
    assert whole.answer == "@entity0"
    cut = read_question(path, whole=False)
    assert cut.sentences == [PASSAGE.split()]


@pytest.mark.parametrize(("variant", "status"), [("questions", "substitute"), ("top4", "original")])
def test_the_published_selection_is_the_original_and_the_whole_corpus_a_substitute(
    data: Path, variant: str, status: str
) -> None:
    corpus(data, variant)
    source = cnn_questions.original() if variant == "top4" else substitute()
    assert (source.name, source.status) == (f"CNN {variant}", status)
    cloze = source.load()
    assert [len(cloze.splits[split]) for split in ("train", "valid", "test")] == [3, 1, 2]
    assert cloze.entities == 3
    sentences = cloze.splits["test"].sentences(1)
    assert len(sentences) == (4 if variant == "questions" else 1)
    words = cloze.vocabulary.decode(word for sentence in sentences for word in sentence)
    assert words == PASSAGE.split()
    assert cloze.vocabulary.decode(cloze.splits["test"].question(1)) == ["@placeholder", "left"]
    assert cloze.vocabulary.words[cloze.splits["test"].answers[1]] == "@entity0"


def test_the_whole_corpus_is_no_original(data: Path) -> None:
    corpus(data, "questions")
    with pytest.raises(Missing, match=r"are not in .*cnn/top4"):
        cnn_questions.original()
    corpus(data, "top4")
    assert cnn_questions.original().sha256 != cnn_questions.whole().sha256


def test_a_changed_corpus_is_another_source_and_a_prepared_one_is_not_read_again(data: Path) -> None:
    corpus(data, "top4")
    first = cnn_questions.original()
    first.load()
    path = data / "cnn/top4/test/e.question"
    path.write_text("x" * len(TEXT))  # the same size: recognized as the same, and served from the cache
    assert cnn_questions.original().load().entities == 3
    write(path, TEXT + "@entity7:Eve\n")
    assert cnn_questions.original().sha256 != first.sha256


def lines(**changed: str) -> str:
    parts = TEXT.splitlines()
    for key, value in changed.items():
        parts[int(key[1:]) - 1] = value
    return "\n".join(parts)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "line 3: the passage is not there"),
        ("\n".join(TEXT.splitlines()[:4]), "line 5: the question is not there"),
        ("\n".join(TEXT.splitlines()[:6]), "line 7: the answer is not there"),
        (lines(_3="  "), "line 3: the passage is not there"),
        (lines(_4="more"), "line 4: an empty line is expected before the question"),
        (lines(_5="who left"), "line 5: the question has no @placeholder"),
        (lines(_7="Ann"), "line 7: the answer is 'Ann' and no @entity"),
        (lines(_7="@entity0 @entity1"), "line 7: the answer is '@entity0 @entity1' and no @entity"),
        (lines(_10="Bob"), "line 10: 'Bob' is not @entity<number>:<name>"),
    ],
)
def test_a_broken_file_is_named_with_its_line(tmp_path: Path, text: str, complaint: str) -> None:
    path = write(tmp_path / "broken.question", text)
    with pytest.raises(Mistake) as caught:
        read_question(path, whole=True)
    assert str(caught.value).startswith(f"{path}, {complaint}")
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_text_is_named(tmp_path: Path) -> None:
    path = tmp_path / "binary.question"
    path.write_bytes(b"http\n\n\xff\xfe\n")
    with pytest.raises(Mistake, match=r"binary\.question, line 3: a byte is not UTF-8"):
        read_question(path, whole=True)


def test_a_broken_file_stops_the_loading_and_leaves_no_cache(data: Path) -> None:
    corpus(data, "questions")
    path = write(data / "cnn/questions/training/b.question", "http\n")
    for _ in range(2):
        with pytest.raises(Mistake, match=r"b\.question, line 3"):
            cnn_questions.whole().load()
    assert path.exists()


def test_an_incomplete_corpus_is_a_mistake_and_none_is_missing(data: Path) -> None:
    with pytest.raises(Missing, match=r"cnn/top4.*get them from"):
        cnn_questions.original()
    write(data / "cnn/questions/training/a.question")
    with pytest.raises(Mistake, match="has no folder validation"):
        cnn_questions.whole()
    (data / "cnn/questions/validation").mkdir()
    with pytest.raises(Mistake, match=r"validation holds no \.question file"):
        cnn_questions.whole()
