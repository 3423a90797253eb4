"""Books as streams of sentences for skip-thought vectors: BookCorpus, else English novels, else generated stories.

The words' ids lie in memory-mapped files in the cache, made once from the source, so that memory does not grow with the
corpus: making them needs room for one book and for the list of words.

Shapes: N words of a split, S sentences, M triples, B batch, T steps (words, and the end of the sentence).
"""

import hashlib
import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from ln.suite.data import Missing, Origin, Source, cache_folder, data_folders, fetched, made_once, novels, sha256_of
from ln.suite.data.stories import stories
from ln.suite.data.vocabulary import UNKNOWN, Vocabulary
from ln.suite.errors import Mistake

BOOKCORPUS = "bookcorpus/bookcorpus"  # on the Hub; and, in a data folder, bookcorpus/*.parquet or *.txt
# BookCorpus does not mark where a book ends: 74,004,228 sentences of 11,038 books are cut into parts of a mean book.
SENTENCES_OF_A_PART = 6_704

SPLITS = ("train", "valid", "test")
CYCLE, VALID_AT, TEST_AT = 16, 7, 15  # of every 16 books the 8th is for validation and the 16th for testing
SHORTER_THAN = 30  # words of each sentence of a triple
KEPT_WORDS = 60_000  # the most frequent of the training books; ids fit 16 bits
COUNTED_WORDS = 2_000_000  # a word first met after so many others is unknown: what bounds the list of words
CHUNK = 1 << 20  # words or triples at a time

# Penn's contractions (do n't, she 's), as the sentence sets have them; hyphens inside words, other marks by themselves.
TOKEN = re.compile(
    r"\w+(?=n't\b)|n't\b|'(?:s|re|ve|ll|d|m)\b|\d+(?:[.,]\d+)+|[^\W_]+(?:-[^\W_]+)*|\.\.\.|--|[^\w\s]", re.IGNORECASE
)
Book = tuple[str, Iterable[list[str]]]  # a title and its sentences in order


def words_of(text: str) -> list[str]:
    """The words and marks of a sentence in small letters; words already set apart stay as they are."""
    return TOKEN.findall(text.translate(novels.STRAIGHT).lower())


def sentences_of(text: str) -> Iterator[list[str]]:
    """The sentences of running text, as words."""
    return (words for sentence in novels.sentences(text) if (words := TOKEN.findall(sentence.lower())))


@dataclass(frozen=True)
class Split:
    """One split's sentences and triples of neighbours, as memory-mapped arrays."""

    tokens: np.ndarray  # (N,) uint16 ids, the most frequent word first, as in Vocabulary
    starts: np.ndarray  # (S + 1,) int64: sentence s is tokens[starts[s] : starts[s + 1]]
    triples: np.ndarray  # (M,) int64 middle sentences of triples, short ones first, then in the books' order
    by_length: np.ndarray  # (SHORTER_THAN + 1,) int64: middles of n words are triples[by_length[n] : by_length[n + 1]]

    def sentence(self, number: int, vocabulary: int) -> np.ndarray:
        """(T,) int64 ids of a sentence, words beyond the `vocabulary` first ids as unknown."""
        ids = self.tokens[self.starts[number] : self.starts[number + 1]].astype(np.int64)
        return np.where(ids < vocabulary, ids, UNKNOWN)

    def __len__(self) -> int:
        return len(self.starts) - 1


@dataclass(frozen=True)
class Books:
    """Every split's sentences, and the training books' words by falling count."""

    splits: dict[str, Split]
    words: list[str]

    def vocabulary(self, size: int) -> Vocabulary:
        return Vocabulary(self.words[: size - 2])


def split_of(number: int) -> str:
    """The split of a source's book `number`, from 0."""
    return {VALID_AT: "valid", TEST_AT: "test"}.get(number % CYCLE, "train")


def prepared(key: str, books: Callable[[], Iterator[Book]]) -> Books:
    """The books' ids from the cache, where they are made on first use; a folder there is always whole.

    Raises:
        Mistake: a book without sentences, or what reading the source raises.
    """
    done = made_once(cache_folder(f"books-{key[:16]}") / "ids", lambda folder: _write(folder, books()))
    splits = {
        split: Split(*(np.load(done / f"{split}_{name}.npy", mmap_mode="r") for name in Split.__dataclass_fields__))
        for split in SPLITS
    }
    return Books(splits, (done / "words.txt").read_text(encoding="utf-8").split("\n"))


class _Writer:
    """Appends numbers to a file, for a .npy whose length is not known beforehand."""

    def __init__(self, path: Path, dtype: type) -> None:
        self.path, self.dtype, self.count = path, dtype, 0
        self.file = path.open("wb")

    def append(self, values: np.ndarray) -> None:
        values.astype(self.dtype).tofile(self.file)
        self.count += len(values)

    def finish(self) -> np.ndarray:
        self.file.close()
        return np.memmap(self.path, self.dtype, "r") if self.count else np.empty(0, self.dtype)


def _write(folder: Path, books: Iterator[Book]) -> None:
    """One pass over the books with ids in the order of first use, then by count from file to file."""
    folder.mkdir()
    kinds = {"ids": np.int32, "ends": np.int64, "middles": np.int64, "lengths": np.uint8}
    raw = {split: {name: _Writer(folder / f"{split}.{name}", kind) for name, kind in kinds.items()} for split in SPLITS}
    first_use: dict[str, int] = {}
    counts = np.zeros(1 << 16, np.int64)
    for number, (title, sentences) in enumerate(books):
        ids: list[int] = []
        ends: list[int] = []
        for words in sentences:
            for word in words:
                known = first_use.get(word, -1)
                if known < 0 and len(first_use) < COUNTED_WORDS:
                    known = first_use[word] = len(first_use)
                ids.append(known)
            ends.append(len(ids))
        if not ends:
            raise Mistake(f"{title} holds no sentence; take it out or give its text")
        split, found = split_of(number), np.array(ids)
        if split == "train":
            if len(first_use) > len(counts):
                counts = np.concatenate([counts, np.zeros(len(first_use), np.int64)])
            counts += np.bincount(found[found >= 0], minlength=len(counts))
        files = raw[split]
        lengths = np.diff(ends, prepend=0)
        middles = middles_of(lengths)
        files["middles"].append(middles + files["ends"].count)
        files["lengths"].append(lengths[middles])
        files["ends"].append(np.array(ends) + files["ids"].count)
        files["ids"].append(found)
    listed = sorted((word for word in first_use if counts[first_use[word]]), key=lambda w: (-counts[first_use[w]], w))
    listed = listed[:KEPT_WORDS]
    (folder / "words.txt").write_text("\n".join(listed), encoding="utf-8")
    final = np.full(len(first_use) + 1, UNKNOWN, np.uint16)  # the last is for -1
    final[[first_use[word] for word in listed]] = np.arange(2, len(listed) + 2)
    for split, files in raw.items():
        arrays = {name: writer.finish() for name, writer in files.items()}
        _sorted_out(folder, split, arrays, final)
        for writer in files.values():
            writer.path.unlink()


def middles_of(lengths: np.ndarray) -> np.ndarray:
    """(M,) the middles of a book's triples: sentences that and whose both neighbours have fewer than 30 words.

    lengths (S,): words of each sentence of one book, in order.
    """
    short = lengths < SHORTER_THAN
    return np.flatnonzero(short[:-2] & short[1:-1] & short[2:]) + 1


def _sorted_out(folder: Path, split: str, raw: dict[str, np.ndarray], final: np.ndarray) -> None:
    """A split's raw files as the arrays of `Split`, a chunk at a time."""

    def new(name: str, size: int, dtype: type) -> np.ndarray:
        path = folder / f"{split}_{name}.npy"
        if size == 0:
            np.save(path, np.empty(0, dtype))
            return np.empty(0, dtype)
        return np.lib.format.open_memmap(path, "w+", dtype, (size,))

    tokens = new("tokens", len(raw["ids"]), np.uint16)
    for begin in range(0, len(tokens), CHUNK):
        tokens[begin : begin + CHUNK] = final[raw["ids"][begin : begin + CHUNK]]
    starts = new("starts", len(raw["ends"]) + 1, np.int64)
    for begin in range(0, len(raw["ends"]), CHUNK):
        part = raw["ends"][begin : begin + CHUNK]
        starts[begin + 1 : begin + 1 + len(part)] = part
    lengths, middles = raw["lengths"], raw["middles"]
    per_length = np.bincount(lengths, minlength=SHORTER_THAN) if len(lengths) else np.zeros(SHORTER_THAN, np.int64)
    by_length = np.concatenate([[0], np.cumsum(per_length)])
    triples, filled = new("triples", len(middles), np.int64), by_length[:-1].copy()
    for begin in range(0, len(middles), CHUNK):
        part, of = middles[begin : begin + CHUNK], lengths[begin : begin + CHUNK]
        order, here = np.argsort(of, kind="stable"), np.bincount(of, minlength=SHORTER_THAN)
        for length in np.flatnonzero(here):
            rows = order[here[:length].sum() : here[: length + 1].sum()]
            triples[filled[length] : filled[length] + len(rows)] = part[rows]
            filled[length] += len(rows)
    np.save(folder / f"{split}_by_length.npy", by_length)


def key_of(*parts: str) -> str:
    """What tells prepared files apart: the source, and all that decides how it is cut into sentences and words."""
    patterns = (TOKEN.pattern, novels.SENTENCE_END.pattern, repr(sorted(novels.STRAIGHT.items())))
    numbers = (CYCLE, VALID_AT, TEST_AT, SHORTER_THAN, KEPT_WORDS, COUNTED_WORDS, SENTENCES_OF_A_PART)
    return hashlib.sha256("\n".join([*parts, *patterns, *map(str, numbers)]).encode()).hexdigest()


# --- sources


CORPUS_FILE = Path("data/bookcorpus/bookcorpus.parquet")


def _download() -> None:
    temporary = CORPUS_FILE.with_name(f"bookcorpus.{os.getpid()}.new")
    try:
        import datasets

        corpus = datasets.load_dataset(BOOKCORPUS, split="train", revision="refs/convert/parquet")
        CORPUS_FILE.parent.mkdir(parents=True, exist_ok=True)
        corpus.to_parquet(str(temporary))
        temporary.replace(CORPUS_FILE)
    finally:
        temporary.unlink(missing_ok=True)


ORIGIN = Origin(
    "BookCorpus",
    f"{BOOKCORPUS} on the Hugging Face Hub",
    "no longer distributed by its authors; the books are their writers'",
    "about 5 GB",
    _download,
)


def original(download: bool = False) -> Source:
    """BookCorpus from the data folders, through `datasets`; downloaded there only where `download` says so, since it is
    gigabytes.

    Raises:
        Missing: it is nowhere, and is not or cannot be downloaded.
    """
    looked = []
    for folder in (folder / "bookcorpus" for folder in data_folders()):
        if files := _corpus_files(folder):
            return _bookcorpus(files)
        looked.append(str(folder))
    where = f"BookCorpus (*.parquet or *.txt, a tokenized sentence a line) is not in {' or '.join(looked)}"
    if not download:
        raise Missing(f"{where}; data=original fetches {BOOKCORPUS} from the Hugging Face Hub", ORIGIN)
    fetched(ORIGIN, where, "put the files there")
    return _bookcorpus([CORPUS_FILE])


def _corpus_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.parquet")) or sorted(folder.glob("*.txt"))


def _bookcorpus(files: list[Path]) -> Source:
    key = key_of("BookCorpus", "words as in the sentence sets", *(sha256_of(path) for path in files))
    return Source("BookCorpus", "original", key, partial(prepared, key, partial(corpus_parts, files)), ORIGIN)


def corpus_parts(files: list[Path]) -> Iterator[Book]:
    """BookCorpus' lines, sentences in the books' order, in parts the size of a mean book.

    They come tokenized, but not as the sentence sets are (`mr.`, `o'clock`, `and/or`): both go through `words_of`.

    Raises:
        Mistake: a file that cannot be read as such lines.
    """
    part: list[list[str]] = []
    count = 0
    for path in files:
        for line in _corpus_lines(path):
            # Its quotes as the other sources and the sentence sets have them.
            if words := words_of(line.replace("``", '"').replace("''", '"')):
                part.append(words)
            if len(part) == SENTENCES_OF_A_PART:
                yield f"{files[0].parent} part {count}", part
                part, count = [], count + 1
    if part or not count:
        yield f"{files[0].parent} part {count}", part


def _corpus_lines(path: Path) -> Iterator[str]:
    """The sentences of one file: a line each, or a row each in the column `text`."""
    count = 0
    try:
        if path.suffix == ".txt":
            with path.open(encoding="utf-8-sig", newline="\n") as file:
                for line in file:
                    count += 1
                    yield line
            return
        from pyarrow.parquet import ParquetFile

        with ParquetFile(path) as table:
            for batch in table.iter_batches(columns=["text"]):
                for line in batch["text"].to_pylist():
                    count += 1
                    yield line or ""
    except (OSError, ValueError, KeyError) as error:  # pyarrow's own are of these
        reason = str(error).strip().splitlines()[:1] or [type(error).__name__]
        raise Mistake(f"{path}: no sentences in a column `text` after number {count} ({reason[0]})") from error


def substitute() -> Source:
    """97 English novels published before 1930, from the data folders.

    Raises:
        Missing, Mistake: as `novels.archive`.
    """
    path, sha256 = novels.archive()
    key = key_of("novels", sha256)

    def read() -> Iterator[Book]:
        return ((f"{path}: {name}", sentences_of(text)) for name, text in novels.texts(path))

    return Source("English novels", "substitute", key, partial(prepared, key, read), novels.ORIGIN)


def embedded() -> Source:
    """Generated stories whose characters and places persist through a book."""

    def books() -> Iterator[Book]:
        for number, story in enumerate(stories()):
            yield f"story {number}", sentences_of(story)

    key = key_of("stories", *stories())
    return Source("generated stories", "embedded", key, partial(prepared, key, books))
