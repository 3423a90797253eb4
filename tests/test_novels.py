"""The novels' archive and the sentences of its prose."""

import io
import tarfile
from pathlib import Path

import pytest

from ln.suite.data import Missing, novels
from ln.suite.errors import Mistake


def write_archive(path: Path, texts: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:xz") as file:
        for name, content in texts.items():
            member = tarfile.TarInfo(f"corpus/{name}")
            member.size = len(content)
            file.addfile(member, io.BytesIO(content))
    return path


def test_novels_are_read_from_the_archive_and_bad_ones_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LN_DATA", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Missing, match=r"novels are not in .*100_english_novels.tar.xz"):
        novels.archive()
    path = write_archive(tmp_path / novels.ARCHIVE, {"A.txt": "\ufeffCafé.".encode(), "B.txt": b"Fine.\nThen caf\xe9."})
    with pytest.raises(Mistake, match="cut short or altered"):
        novels.archive()
    read = novels.texts(path)
    assert next(read) == ("A.txt", "Café.")
    with pytest.raises(Mistake, match=r"corpus/B.txt, line 2, is not UTF-8"):
        next(read)


def test_sentences_end_at_marks_but_not_after_titles_and_initials() -> None:
    text = "Mr. Pip met J. R. Wells.  “Who is it?” he asked.\r\nIt was\r\nlate!\r\n\r\nNext day"
    assert list(novels.sentences(text)) == [
        "Mr. Pip met J. R. Wells.",
        '"Who is it?" he asked.',
        "It was late!",
        "Next day",
    ]
