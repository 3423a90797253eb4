"""The sentence sets: their formats, whole and broken, and what stands in for those that are missing."""

import hashlib
from pathlib import Path

import pytest

from ln.suite.data import Missing, sentence_sets
from ln.suite.data.sentence_sets import LABELLED, SICK, read_labelled, read_pairs, required
from ln.suite.errors import Mistake

HEADER = "pair_ID\tsentence_A\tsentence_B\trelatedness_score\tentailment_judgment\n"
PAIR = "1\tA boy isn't here\tNobody is here\t3.5\tNEUTRAL"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LN_DATA", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def written(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small sets in the published formats, their counts and checksums made the expected ones."""
    (folder / "sick").mkdir()
    (folder / "sentences").mkdir()
    for split, (name, _, _) in list(SICK.items()):
        content = (HEADER + f"{PAIR}\n{PAIR}\n").replace("\n", "\r\n" if split == "test" else "\n").encode("latin-1")
        (folder / "sick" / name).write_bytes(content)
        monkeypatch.setitem(SICK, split, (name, hashlib.sha256(content).hexdigest(), 2))
    for key, (name, _, _) in list(LABELLED.items()):
        content = "0 a caf\xe9\x85 closed \n1 don't miss it\n0 \n".encode("latin-1")
        (folder / "sentences" / name).write_bytes(content)
        monkeypatch.setitem(LABELLED, key, (name, hashlib.sha256(content).hexdigest(), 3))


def test_sets_are_read_as_latin_1(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(folder, monkeypatch)
    found = required(sentence_sets.find())
    assert found.name == "SICK, MR, CR, SUBJ, MPQA"
    sets = found.load()
    assert sets.pairs["test"].first == [["a", "boy", "is", "n't", "here"]] * 2  # CRLF lines
    assert sets.pairs["test"].scores.tolist() == [3.5, 3.5]
    # 0x85 ends no line, and CR has a line without words.
    assert sets.labelled["CR"].sentences == [["a", "café", "closed"], ["do", "n't", "miss", "it"], []]
    assert sets.labelled["CR"].labels.tolist() == [0, 1, 0]


def test_missing_sets_are_declared_and_generated_ones_stand_in(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(folder, monkeypatch)
    (folder / "sentences" / "custrev.all").unlink()
    found = sentence_sets.find()
    assert found.name == "SICK, MR, SUBJ, MPQA; reduced evaluation, generated sentences for CR"
    assert len(found.load().labelled["CR"].labels) == sentence_sets.GENERATED_SENTENCES
    with pytest.raises(Missing, match=r"CR \(custrev.all\) is not in .*sentences"):
        required(found)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("sick/SICK_train.txt", "number\tA\tB\n", r"SICK_train.txt, line 1, is not SICK's header"),
        ("sick/SICK_train.txt", HEADER + PAIR + "\n2\ta\tb\n", r"SICK_train.txt, line 3, has 3 fields"),
        ("sick/SICK_trial.txt", HEADER + PAIR.replace("3.5", "x"), r"line 2, has the relatedness 'x', which is no"),
        ("sick/SICK_trial.txt", HEADER + PAIR.replace("3.5", "7"), r"line 2, has the relatedness 7, which is not in"),
        ("sick/SICK_trial.txt", HEADER + PAIR.replace("Nobody is here", " "), r"line 2, has an empty sentence"),
        ("sentences/subj.all", "0 good\npositive bad\n", r"subj.all, line 2, begins with 'positive' where a label"),
        ("sentences/subj.all", "0 good\n", r"subj.all holds 1 sentences where 3 were published"),
        ("sentences/subj.all", "0 a\n0 b\n1 c\n", r"subj.all is cut short or altered"),
    ],
)
def test_a_wrong_file_is_one_sentence_with_its_line(
    folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, content: str, said: str
) -> None:
    written(folder, monkeypatch)
    (folder / name).write_text(content, encoding="latin-1")
    with pytest.raises(Mistake, match=said):
        sentence_sets.find()


def test_readers_count_what_they_read(tmp_path: Path) -> None:
    (tmp_path / "pairs").write_text(HEADER + PAIR + "\n")
    (tmp_path / "labelled").write_text("1 yes\n")
    assert len(read_pairs(tmp_path / "pairs", 1).scores) == 1
    with pytest.raises(Mistake, match="holds 1 pairs where 9 were published"):
        read_pairs(tmp_path / "pairs", 9)
    with pytest.raises(Mistake, match="holds 1 sentences where 9 were published"):
        read_labelled(tmp_path / "labelled", 9)


def test_the_quotes_of_the_labelled_sets_stay_as_published(tmp_path: Path) -> None:
    """A run's evaluation is of these words; to read them otherwise would be other data under the same checksum."""
    (tmp_path / "mpqa.all").write_text("0 an ``axis of evil''\n1 an \"axis\"\n")
    assert read_labelled(tmp_path / "mpqa.all", 2).sentences == [
        ["an", "`", "`", "axis", "of", "evil", "'", "'"],
        ["an", '"', "axis", '"'],
    ]


def test_generated_sets_are_the_same_every_time_and_hold_both_labels() -> None:
    one, two = (sentence_sets.generated().load() for _ in range(2))
    for name, part in one.labelled.items():
        assert part.sentences == two.labelled[name].sentences
        assert set(part.labels.tolist()) == {0, 1}
    assert all(part.scores.min() == 1 and part.scores.max() == 5 for part in one.pairs.values())
