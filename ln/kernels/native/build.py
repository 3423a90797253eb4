"""Compiles native.cpp on first use, for the instruction set of this machine, and loads it."""

from __future__ import annotations

import ctypes
import fcntl
import functools
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch

_SOURCES = (Path(__file__).with_name("native.cpp"), Path(__file__).with_name("gemm.h"))
_FLAGS = ("-O3", "-std=c++17", "-fno-math-errno", "-fPIC", "-fopenmp", "-Wall")
# By the name torch gives what the processor can do (and ATEN_CPU_CAPABILITY can lower).
_LEVELS = {"AVX512": ("-march=x86-64-v4", "-mprefer-vector-width=512"), "AVX2": ("-march=x86-64-v3",)}


class BuildError(RuntimeError):
    """Why there is no library, in one sentence."""


def cache_dir() -> Path:
    """The private folder of compiled libraries: $LN_CACHE, else a folder of ours in the user's cache."""
    base = os.environ.get("LN_CACHE")
    user = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(base) / "native" if base else Path(user) / "ln-suite" / "native"
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
    found = re.findall(r"(/\S*lib(?:gomp|iomp5|omp)\S*\.so\S*)", maps)
    return next((path for path in found if "torch" in path), found[0] if found else None)


def _run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        first = next((line for line in lines if "error" in line), lines[0] if lines else "no message")
        raise BuildError(f"{command[0]} failed: {first.strip()}")
    return done.stdout.strip()


def build(capability: str | None = None) -> Path:
    """Path of the compiled library, from the cache where it is there. BuildError where that cannot be.

    capability: AVX512, AVX2 or DEFAULT; None takes what torch sees in this processor.
    """
    compiler = shutil.which(os.environ.get("CXX", "g++"))
    if compiler is None:
        raise BuildError("no C++ compiler: g++ is not on the PATH")
    flags = [*_FLAGS, *_LEVELS.get(capability or torch.backends.cpu.get_cpu_capability(), ())]
    runtime = _openmp_runtime()
    version = _run([compiler, "-dumpfullversion", "-dumpmachine"])
    key = hashlib.sha256("\0".join([*(s.read_text() for s in _SOURCES), version, *flags, str(runtime)]).encode())
    folder = cache_dir()
    library = folder / f"native-{key.hexdigest()[:20]}.so"
    if library.exists():
        return library
    # Several processes may start at once: one compiles, the others wait for it, and none ever sees half a file.
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not library.exists():
            with tempfile.TemporaryDirectory(dir=folder) as scratch:
                unit, linked = f"{scratch}/native.o", f"{scratch}/native.so"
                _run([compiler, *flags, "-c", str(_SOURCES[0]), "-o", unit])
                _run([compiler, "-shared", unit, "-o", linked, *([runtime] if runtime else ["-fopenmp"]), "-lm"])
                os.replace(linked, library)
    return library


@functools.cache
def load(capability: str | None = None) -> ctypes.CDLL:
    """The library, compiled if need be. BuildError where it cannot be had."""
    path = build(capability)
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        raise BuildError(f"{path} cannot be loaded: {error}") from None
    library.ln_work_size.restype = ctypes.c_int64
    library.ln_gemm.restype = ctypes.c_int64
    return library
