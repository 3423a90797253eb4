"""The cache of the compiled library in a world of odd file systems: a reason, or a new build, and never half a file."""

import errno
import fcntl
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ln.kernels.native import build

Built = Callable[[], Path]


@pytest.fixture
def compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The compiler's commands, which write what they are asked for at once."""
    commands: list[list[str]] = []

    def run(command: list[str]) -> str:
        commands.append(command)
        if "-o" in command:
            Path(command[command.index("-o") + 1]).write_bytes(b"a library" * 100)
        return "13.0"

    monkeypatch.setattr(build, "_run", run)
    monkeypatch.setenv("LN_CACHE", str(tmp_path / "a cache, 'ünïcode'"))
    monkeypatch.setenv("CXX", "g++")
    return commands


def test_a_library_is_compiled_once(compiled: list[list[str]]) -> None:
    first = build.build("AVX2")
    assert build.build("AVX2") == first
    assert len([command for command in compiled if "-shared" in command]) == 1


def damaged(kind: str, library: Path) -> None:
    content = library.read_bytes()
    if kind == "cut short":
        library.write_bytes(content[: len(content) // 2])
    elif kind == "one bit flipped":
        library.write_bytes(content[:10] + bytes([content[10] ^ 1]) + content[11:])
    elif kind == "empty":
        library.write_bytes(b"")
    elif kind == "no checksum":
        library.with_suffix(".sha256").unlink()
    elif kind == "checksum that is no text":
        library.with_suffix(".sha256").write_bytes(b"\xff\xfe")
    elif kind == "a link":
        library.rename(library.with_suffix(".elsewhere"))
        library.symlink_to(library.with_suffix(".elsewhere"))
    elif kind == "writable by others":
        library.chmod(0o777)


@pytest.mark.parametrize(
    "kind",
    [
        "cut short",
        "one bit flipped",
        "empty",
        "no checksum",
        "checksum that is no text",
        "a link",
        "writable by others",
    ],
)
def test_a_damaged_library_is_built_again(compiled: list[list[str]], kind: str) -> None:
    library = build.build("AVX2")
    whole = library.read_bytes()
    damaged(kind, library)
    assert build.build("AVX2") == library
    assert library.read_bytes() == whole
    assert not library.is_symlink()
    assert not library.stat().st_mode & 0o022


def test_a_library_of_another_user_is_not_loaded(compiled: list[list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    library = build.build("AVX2")
    user, folder = os.getuid() + 1, library.parent
    monkeypatch.setattr(os, "getuid", lambda: user)
    monkeypatch.setattr(build, "cache_dir", lambda: folder)
    assert not build._whole(library)


def fails(number: int) -> Callable[..., Any]:
    def fail(*arguments: Any, **named: Any) -> Any:
        raise OSError(number, os.strerror(number))

    return fail


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EIO])
def test_a_folder_that_cannot_be_locked_is_a_reason(
    compiled: list[list[str]], monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    monkeypatch.setattr(fcntl, "flock", fails(number))
    with pytest.raises(build.BuildError, match=os.strerror(number)):
        build.build("AVX2")


@pytest.mark.parametrize("number", [errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EACCES])
def test_a_folder_that_takes_no_file_is_a_reason(
    compiled: list[list[str]], monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    monkeypatch.setattr(os, "replace", fails(number))
    with pytest.raises(build.BuildError, match=f"{os.strerror(number)}.*point LN_CACHE elsewhere"):
        build.build("AVX2")


def test_a_lock_that_is_a_folder_is_a_reason(compiled: list[list[str]]) -> None:
    (build.cache_dir() / "lock").mkdir()
    with pytest.raises(build.BuildError, match=r"Is a directory .*lock"):
        build.build("AVX2")


def test_what_is_there_whole_needs_no_lock(compiled: list[list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    library = build.build("AVX2")
    monkeypatch.setattr(fcntl, "flock", fails(errno.EROFS))
    assert build.build("AVX2") == library


def test_the_compiler_may_have_options(compiled: list[list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    plain = build.build("AVX2")
    monkeypatch.setenv("CXX", "g++ -m64")
    assert build.build("AVX2") != plain
    assert compiled[-1][:2] == ["g++", "-m64"]
    monkeypatch.setenv("CXX", "nonesuch -m64")
    with pytest.raises(build.BuildError, match=r"no C\+\+ compiler: nonesuch is not on the PATH"):
        build.build("AVX2")
    monkeypatch.setenv("CXX", "g++ '")
    with pytest.raises(build.BuildError, match=r"CXX=g.. ' is no command"):
        build.build("AVX2")


def test_torchs_runtime_is_found_below_a_folder_with_blanks(monkeypatch: pytest.MonkeyPatch) -> None:
    maps = (
        "7f00-7f01 r-xp 00000000 fd:01 42   /home/a b/.venv/torch/lib/libgomp-a34b3233.so.1\n7f02-7f03 rw-p 0 00:00 0\n"
    )
    monkeypatch.setattr(Path, "read_text", lambda path, *a, **k: maps)
    assert build._openmp_runtime() == "/home/a b/.venv/torch/lib/libgomp-a34b3233.so.1"
