"""Lines of pen strokes, the readers of IAM-OnDB and Omniglot on small files, whole and broken, and `scripts.write`."""

import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir

from ln.suite.config import CONFIGS, recipe_of
from ln.suite.data import handwriting, iam_ondb, pen_strokes
from ln.suite.errors import Mistake
from ln.suite.runs.train import carry_out
from scripts import write

EPS32 = float(np.finfo(np.float32).eps)
STROKES: list[list[tuple[float, float]]] = [[(10, 5), (12, 9), (12, 9), (13, 4)], [(20, 7)]]


# --- strokes and lines


def test_points_and_strokes_are_inverse() -> None:
    strokes = [np.array([[0.0, 0], [1, 2], [3, 1]]), np.array([[5.0, 5]]), np.array([[6.0, 0], [6, 1]])]
    line = handwriting.points_of(strokes)
    assert line[:, 2].tolist() == [0, 0, 1, 1, 0, 1]
    for there, back in zip(strokes, handwriting.strokes_of(line), strict=True):
        np.testing.assert_allclose(back, there, rtol=4 * EPS32)


def test_a_stroke_of_length_zero_is_one_point_and_rests_are_dropped() -> None:
    dot, resting = np.array([[2.0, 2]] * 4), np.array([[0.0, 0], [0, 0], [1, 0], [1, 0], [0, 0]])
    line = handwriting.points_of([dot, resting])
    assert line.tolist() == [[0, 0, 1], [-2, -2, 0], [1, 0, 0], [-1, 0, 1]]
    with pytest.raises(ValueError, match="without points"):
        handwriting.points_of([np.zeros((0, 2))])


def test_composed_lines_are_the_same_every_time_and_hold_their_texts_strokes() -> None:
    glyphs = {
        "a": [np.array([[0.0, 0], [1, 1]])],
        "b": [np.array([[0.0, 0], [0, 2], [1, 0]]), np.array([[2.0, 2], [3, 3]])],
    }
    writers = {split: {"w": glyphs} for split in handwriting.SPLITS}
    one, two = (handwriting.compose(writers, {"train": 3, "valid": 1, "test": 2}, 30) for _ in range(2))
    assert one.alphabet == " ab"
    assert [len(one.points[split]) for split in handwriting.SPLITS] == [3, 1, 2]
    for line, text, again in zip(one.points["train"], one.texts["train"], two.points["train"], strict=True):
        assert np.array_equal(line, again)
        assert len(line) == 2 * text.count("a") + 5 * text.count("b") >= 30
        assert line[:, 2].sum() == text.count("a") + 2 * text.count("b")
        starts = [stroke[0, 0] for stroke in handwriting.strokes_of(line)]
        assert starts == sorted(starts)


def test_prepared_lines_come_back_from_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LN_CACHE", str(tmp_path))
    lines = handwriting.embedded().load()
    kept = handwriting.prepared("key", lambda: lines)
    again = handwriting.prepared("key", lambda: pytest.fail("prepared twice"))
    for found in (kept, again):
        assert found.alphabet == lines.alphabet
        assert found.texts == lines.texts
        for split in handwriting.SPLITS:
            assert all(map(np.array_equal, found.points[split], lines.points[split]))


# --- IAM-OnDB


def xml(strokes: list[list[tuple[float, float]]]) -> str:
    points = "".join(
        "<Stroke>" + "".join(f'<Point x="{x}" y="{y}" time="0"/>' for x, y in stroke) + "</Stroke>"
        for stroke in strokes
    )
    head = '<?xml version="1.0" encoding="ISO-8859-1"?>'
    return f"{head}\n<WhiteboardCaptureSession><StrokeSet>{points}</StrokeSet></WhiteboardCaptureSession>\n"


def write_form(folder: Path, form: str, texts: list[str]) -> Path:
    """A form whose lines all have the same strokes; returns the folder of these."""
    below = Path(form[:3]) / form[:7]
    for name in ("ascii", "lineStrokes"):
        (folder / name / below).mkdir(parents=True, exist_ok=True)
    lines = "\n".join(texts)
    (folder / "ascii" / below / f"{form}.txt").write_text(f"OCR:\n\nA MOVF\n\nCSR:\n\n{lines}\n", encoding="latin-1")
    for number in range(1, len(texts) + 1):
        (folder / "lineStrokes" / below / f"{form}-{number:02}.xml").write_text(xml(STROKES))
    return folder / "lineStrokes" / below


@pytest.fixture
def iam(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small IAM-OnDB in the data folder."""
    folder = tmp_path / "data" / iam_ondb.FOLDER
    forms = {
        "trainset.txt": "a01-000u",
        "testset_t.txt": "a02-001",
        "testset_v.txt": "b01-010w",
        "testset_f.txt": "c03-002",
    }
    for name, form in forms.items():
        write_form(folder, form, ["A MOVE to", f"stop Mr. {form[:1]}"])
        (folder / name).write_text(f" {form}\n")
    monkeypatch.setenv("LN_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("LN_CACHE", str(tmp_path / "cache"))
    return folder


def test_iam_ondb_is_read_from_its_layout(iam: Path) -> None:
    source = handwriting.original()
    assert source.status == "original"
    lines = source.load()
    assert {split: len(points) for split, points in lines.points.items()} == {"train": 4, "valid": 2, "test": 2}
    assert lines.texts["valid"] == ["A MOVE to", "stop Mr. b"]
    # y upwards, the rest dropped, a dot as one point.
    assert lines.points["test"][0].tolist() == [[0, 0, 0], [2, -4, 0], [1, 5, 1], [7, -3, 1]]
    assert source.load().texts == lines.texts


def test_iam_ondb_identity_follows_every_file(iam: Path) -> None:
    before = handwriting.original().sha256
    assert handwriting.original().sha256 == before
    path = iam / "lineStrokes/b01/b01-010/b01-010w-02.xml"
    path.write_text(path.read_text().replace('x="13"', 'x="14"'))
    assert handwriting.original().sha256 != before


def test_iam_ondb_alphabet_has_57_classes_and_one_for_the_rest() -> None:
    assert len(iam_ondb.ALPHABET) == 57
    assert iam_ondb.in_alphabet("Labour's 3rd (peer).") == "Labour's #rd #peer#."


def test_iam_ondb_that_is_not_there_says_where_to_register(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LN_DATA", str(tmp_path))
    with pytest.raises(handwriting.Missing, match=r"register at https"):
        handwriting.original()


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda f: (f / "testset_v.txt").unlink(), r"testset_v.txt is not there"),
        (lambda f: (f / "testset_v.txt").write_text("\n"), r"testset_v.txt names no form"),
        (lambda f: (f / "testset_v.txt").write_text("a01-000u"), r"a01-000u stands in trainset.txt too"),
        (lambda f: (f / "ascii/a01/a01-000/a01-000u.txt").unlink(), r"a01-000u.txt is not there"),
        (lambda f: (f / "ascii/a01/a01-000/a01-000u.txt").write_text("OCR:\nA"), r"no text after a line `CSR:`"),
        (
            lambda f: (f / "lineStrokes/a01/a01-000/a01-000u-02.xml").unlink(),
            r"2 lines of text, but 1 files of strokes",
        ),
        (lambda f: (f / "testset_v.txt").write_text("b09-999"), r"b09-999.txt is not there"),
    ],
)
def test_broken_iam_ondb_is_one_sentence(iam: Path, damage, sentence: str) -> None:
    damage(iam)
    with pytest.raises(Mistake, match=sentence):
        handwriting.original().load()


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (xml(STROKES)[:150], r"x.xml, line 2: not well-formed XML"),
        (xml([]), r"no strokes"),
        (xml([*STROKES, []]), r"stroke 3 has no points"),
        (xml(STROKES).replace('y="4"', 'y="four"'), r"stroke 1 has a point without numbers"),
        (xml(STROKES).replace('x="20"', ""), r"stroke 2 has a point without numbers"),
        (xml(STROKES).replace('y="4"', 'y="nan"'), r"stroke 1 has a point that is not finite"),
        (xml([[(1, 2), (1, 2)], [(1, 2)]]), r"length zero"),
    ],
)
def test_broken_strokes_are_one_sentence(tmp_path: Path, content: str, sentence: str) -> None:
    path = tmp_path / "x.xml"
    path.write_text(content)
    with pytest.raises(Mistake, match=sentence):
        iam_ondb.read_strokes(path)


# --- Omniglot


def test_omniglot_drawing_is_read_with_its_odd_breaks() -> None:
    strokes = pen_strokes.drawing("START\n1,-2,0\n3,-4,7\nBREAK\nBREAK\n5,5,9\nBREAK\n\n", "f")
    assert [stroke.tolist() for stroke in strokes] == [[[1, -2], [3, -4]], [[5, 5]]]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [("START\n1,2,3\n4,5\nBREAK\n", "f, line 3: `4,5`"), ("START\n1,2,3\n", "no BREAK"), ("", "no BREAK")],
)
def test_broken_drawing_is_one_sentence(text: str, sentence: str) -> None:
    with pytest.raises(Mistake, match=sentence):
        pen_strokes.drawing(text, "f")


def test_thinned_strokes_keep_their_ends_and_lie_on_no_grid() -> None:
    stroke = np.stack([np.arange(41.0), np.zeros(41)], 1)
    thin = pen_strokes.thinned(stroke, np.random.default_rng(0))
    assert len(thin) == 8  # two ends, six averages
    assert np.abs(thin[[0, -1]] - stroke[[0, -1]]).max() <= pen_strokes.PIXEL / 2
    assert len(np.unique(thin[:, 1])) == len(thin)
    assert len(pen_strokes.thinned(stroke[:1], np.random.default_rng(0))) == 1


def small_omniglot(folder: Path) -> None:
    """Two archives of two alphabets, 20 drawers each, all drawing the same."""
    for archive, alphabet in zip(pen_strokes.OMNIGLOT, ("Latin", "Korean"), strict=True):
        with zipfile.ZipFile(folder / archive, "w") as file:
            for drawer in range(1, 21):
                for character in (1, 2):
                    name = f"{archive[:-4]}/{alphabet}/character{character:02}/0100_{drawer:02}.txt"
                    file.writestr(name, f"START\n0,0,0\n{drawer},{character},7\nBREAK\n")
            file.writestr(f"__MACOSX/{archive[:-4]}/._0100_01.txt", "not a drawing")


def test_omniglot_splits_by_drawer_and_names_its_characters(tmp_path: Path) -> None:
    small_omniglot(tmp_path)
    splits = pen_strokes.omniglot(tmp_path)
    assert {split: len(writers) for split, writers in splits.items()} == {"train": 28, "valid": 6, "test": 6}
    assert not splits["train"].keys() & splits["test"].keys()
    assert set(splits["test"]["Latin 20"]) == {"a", "b"}
    assert set(splits["test"]["Korean 20"]) == {chr(pen_strokes.PRIVATE), chr(pen_strokes.PRIVATE + 1)}
    assert splits["train"]["Latin 3"]["b"][0][1] == pytest.approx([3, 2], abs=pen_strokes.PIXEL / 2)


def test_omniglot_that_was_altered_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LN_DATA", str(tmp_path))
    with pytest.raises(handwriting.Missing, match="brendenlake/omniglot"):
        handwriting.substitute()
    (tmp_path / "omniglot").mkdir()
    small_omniglot(tmp_path / "omniglot")
    with pytest.raises(Mistake, match="cut short or altered"):
        handwriting.substitute()


# --- scripts.write


def test_write_draws_a_text_and_refuses_in_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        common = ["experiment=handwriting", "profile=smoke", "threads=1", "tracking=disabled", f"results={tmp_path}"]
        folders = {
            norm: carry_out(recipe_of(compose("config", overrides=[*common, f"norm={norm}"]))).folder
            for norm in ("layer", "none")
        }

    def invoke(*arguments: str) -> None:
        places = ["--profile", "smoke", "--results", str(tmp_path), "--out", str(tmp_path / "w.png")]
        monkeypatch.setattr("sys.argv", ["write", *arguments, *places])
        write.main()

    def refused(*arguments: str) -> str:
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            invoke(*arguments)
        assert stop.value.code == 1
        said = capsys.readouterr().err
        assert said.startswith("error: ")
        assert said.count("\n") == 1
        return said

    invoke("ad hoc", "--norm", "layer", "--bias", "0.5")
    assert (tmp_path / "w.png").stat().st_size > 1000
    assert "outside the alphabet: !" in refused("ad!")
    assert "holds no run" in refused("ad", "--norm", "weight")
    weights = folders["layer"] / "best.pt"
    weights.write_bytes((folders["none"] / "best.pt").read_bytes())
    assert "weights of another norm" in refused("ad")
    torch.save({"a": 1}, weights)
    assert "cannot be read" in refused("ad")
    weights.unlink()
    assert "is not there" in refused("ad")
