"""Compiles native.cpp on first use, for the instruction set of this machine, and loads it."""

from __future__ import annotations

import ctypes
import fcntl
import functools
import hashlib
import os
import re
import shlex
import shutil
import stat
import subprocess
import tempfile
from pathlib import Path

import torch

_SOURCES = tuple(Path(__file__).with_name(name) for name in ("native.cpp", "cells.h", "gemm.h"))
_FLAGS = ("-O3", "-std=c++17", "-fno-math-errno", "-fPIC", "-fopenmp", "-Wall")
# By the name torch gives what the processor can do (and ATEN_CPU_CAPABILITY can lower).
_LEVELS = {"AVX512": ("-march=x86-64-v4", "-mprefer-vector-width=512"), "AVX2": ("-march=x86-64-v3",)}


_TYPES = {"int64_t": ctypes.c_int64, "double": ctypes.c_double}


def fields_of(struct: str) -> list[tuple[str, type]]:
    """The fields of a struct of native.cpp for ctypes, read from its declaration: names and types, in order."""
    text = _SOURCES[0].read_text()
    body = re.sub(r"//.*", "", text.partition(f"struct {struct} {{")[2].partition("};")[0])
    fields: list[tuple[str, type]] = []
    for declaration in filter(None, map(str.strip, body.split(";"))):
        kind, names = declaration.removeprefix("const ").split(maxsplit=1)
        for name in names.replace("\n", " ").split(","):
            fields.append((name.strip(" *"), ctypes.c_void_p if "*" in name else _TYPES[kind]))
    return fields


class BuildError(RuntimeError):
    """Why there is no library, in one sentence."""


def cache_dir() -> Path:
    """The private folder of compiled libraries: $LN_CACHE, else a folder of ours in the user's cache."""
    base = os.environ.get("LN_CACHE")
    user = os.environ.get("XDG_CACHE_HOME") or os.path.join("~", ".cache")
    folder = Path(os.path.expanduser(base or os.path.join(user, "ln-suite"))) / "native"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.stat()
    except OSError as error:
        raise BuildError(
            f"the cache folder {folder} cannot be made ({error.strerror}); point LN_CACHE elsewhere"
        ) from None
    # Whatever lies there is loaded into the process, so no one else may be able to put it there.
    if status.st_uid != os.getuid() or status.st_mode & 0o022:
        raise BuildError(
            f"the cache folder {folder} can be written by others; make it private or point LN_CACHE elsewhere"
        )
    return folder


def _openmp_runtime() -> str | None:
    """The OpenMP library that torch has loaded: linking to that one gives a single pool of threads."""
    try:
        maps = Path("/proc/self/maps").read_text()
    except OSError:
        return None
    # Address, rights, offset, device, inode, and a path that may hold blanks.
    paths = [fields[5] for line in maps.splitlines() if len(fields := line.split(maxsplit=5)) == 6]
    found = [path for path in paths if re.fullmatch(r"/.*/lib(?:gomp|iomp5|omp)[^/]*\.so[^/]*", path)]
    return next((path for path in found if "torch" in path), found[0] if found else None)


def _run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        first = next((line for line in lines if "error" in line), lines[0] if lines else "no message")
        raise BuildError(f"{command[0]} failed: {first.strip()}")
    return done.stdout.strip()


def _compiler() -> list[str]:
    """The compiler's command: $CXX, which may hold options, else g++."""
    given = os.environ.get("CXX") or "g++"
    try:
        command = shlex.split(given)
    except ValueError as error:
        raise BuildError(f"CXX={given} is no command: {error}") from None
    if not command or shutil.which(command[0]) is None:
        raise BuildError(f"no C++ compiler: {command[0] if command else given} is not on the PATH")
    return command


def _whole(library: Path) -> bool:
    """Whether the library is there as this user's build left it; a half file would end the process with a bus error."""
    try:
        status = library.lstat()
        ours = stat.S_ISREG(status.st_mode) and status.st_uid == os.getuid() and not status.st_mode & 0o022
        return ours and _sum_of(library).read_text() == hashlib.sha256(library.read_bytes()).hexdigest()
    except (OSError, UnicodeDecodeError):
        return False


def _sum_of(library: Path) -> Path:
    return library.with_suffix(".sha256")


def build(capability: str | None = None) -> Path:
    """Path of the compiled library, from the cache where it is there whole. BuildError where that cannot be.

    capability: AVX512, AVX2 or DEFAULT; None takes what torch sees in this processor.
    """
    try:
        return _build(capability or torch.backends.cpu.get_cpu_capability())
    except OSError as error:  # a folder that is read-only, full or cannot be locked; a compiler that cannot be started
        where = f" ({error.filename})" if error.filename else ""
        raise BuildError(
            f"the library cannot be compiled into the cache: {error.strerror or error}{where}; point LN_CACHE elsewhere"
        ) from error


def _build(capability: str) -> Path:
    compiler = _compiler()
    flags = [*_FLAGS, *_LEVELS.get(capability, ())]
    runtime = _openmp_runtime()
    version = _run([*compiler, "-dumpfullversion", "-dumpmachine"])
    parts = [*(s.read_text() for s in _SOURCES), version, *compiler[1:], *flags, str(runtime)]
    folder = cache_dir()
    library = folder / f"native-{hashlib.sha256(chr(0).join(parts).encode()).hexdigest()[:20]}.so"
    if _whole(library):
        return library
    # Several processes may start at once: one compiles, the others wait for it, and none ever sees half a file.
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not _whole(library):
            with tempfile.TemporaryDirectory(dir=folder) as scratch:
                unit, linked, checksum = (Path(scratch, f"native.{kind}") for kind in ("o", "so", "sha256"))
                _run([*compiler, *flags, "-c", str(_SOURCES[0]), "-o", str(unit)])
                openmp = runtime or "-fopenmp"
                _run([*compiler, "-shared", str(unit), "-o", str(linked), openmp, "-lm"])
                linked.chmod(0o700)  # whatever the umask
                checksum.write_text(hashlib.sha256(linked.read_bytes()).hexdigest())
                os.replace(linked, library)
                os.replace(checksum, _sum_of(library))
    return library


@functools.cache
def load(capability: str | None = None) -> ctypes.CDLL:
    """The library, compiled if need be. BuildError where it cannot be had."""
    path = build(capability)
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        raise BuildError(f"{path} cannot be loaded: {error}") from None
    library.ln_args_size.restype = ctypes.c_int64
    library.ln_work_size.restype = ctypes.c_int64
    library.ln_gemm.restype = ctypes.c_int64
    return library
