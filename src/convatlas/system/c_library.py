"""Kernels in C: compiled when they are first needed, which takes a second, and cached with a verdict.

Without a compiler, and where kernels compute something else than torch or are not faster, torch's own are used.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import platform
import shutil
import subprocess
import tempfile
import threading
from abc import ABC, abstractmethod
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import ClassVar

import torch

from convatlas.errors import ConvatlasError
from convatlas.system.cache import cache_folder
from convatlas.system.files import atomic, write_text

FLAGS = (
    "-O2", "-ftree-vectorize", "-fvect-cost-model=dynamic", "-march=native", "-fopenmp", "-fno-math-errno",
    "-fno-trapping-math", "-shared", "-fPIC",
    *(["-mprefer-vector-width=512"] if platform.machine() == "x86_64" else []),
)  # fmt: skip

HEADER = Path(__file__).with_name("bfloat16.h")
"""What the C files include."""

Library = tempfile.TemporaryDirectory[str]
"""A directory with a compiled library, which lives until the process exits."""


class CLibrary(ABC):
    """The kernels of one C file."""

    source: ClassVar[Path]
    flags: ClassVar[tuple[str, ...]] = FLAGS

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loaded: tuple[ctypes.CDLL | None] | None = None
        self._compiled: tuple[Library | None] | None = None

    def forget(self, *, compiled: bool = False) -> None:
        """Forget what this process loaded; `compiled`: and what it compiled."""
        self._loaded = None
        if compiled:
            self._compiled = None

    @abstractmethod
    def declare(self, library: ctypes.CDLL) -> None:
        """Set the types of the arguments of the kernels."""

    @abstractmethod
    def is_correct(self, library: ctypes.CDLL) -> bool:
        """Return whether the kernels compute the same as torch."""

    @abstractmethod
    def is_faster(self, library: ctypes.CDLL) -> bool:
        """Return whether the kernels are faster than torch, timed in turns.

        They may be slower where torch has another OpenMP runtime (Intel's or LLVM's), whose threads compete for the
        cores.
        """

    def load(self) -> ctypes.CDLL | None:
        """Return the compiled kernels; None if they cannot be compiled, differ from torch's results or are not faster.

        The verdict is cached as JSON beside the library.
        """
        if self._loaded is None:
            self._loaded = (self._load(),)
        return self._loaded[0]

    def _load(self) -> ctypes.CDLL | None:
        verdict = self.cached_verdict()
        cached_library = verdict.with_suffix(".so")
        with suppress(OSError, ValueError, KeyError, TypeError):  # missing or damaged: compile again
            return self._open(cached_library) if json.loads(verdict.read_text())["use"] else None
        folder = self.compile()
        if folder is None:
            return None
        compiled = Path(folder.name) / "library.so"
        library = self._open(compiled)
        correct = self.is_correct(library)
        use = correct and self.is_faster(library)
        with suppress(ConvatlasError, OSError):
            verdict.parent.mkdir(parents=True, exist_ok=True)
            if use:
                with atomic(cached_library) as file:
                    file.write(compiled.read_bytes())
            reason = "faster than torch" if use else "not faster than torch" if correct else "results differ from torch"
            write_text(verdict, json.dumps({"use": use, "reason": reason}) + "\n")
        return library if use else None

    def _open(self, path: Path) -> ctypes.CDLL:
        library = ctypes.CDLL(str(path))
        self.declare(library)
        return library

    def cached_verdict(self) -> Path:
        """Return the path of the cached verdict for this processor, compiler and torch."""
        key = "\n".join([
            str(compiler()), *self.flags, _processor(), torch.__version__, torch.__file__, self.source.read_text(),
            HEADER.read_text(),
        ])  # fmt: skip
        return cache_folder() / "kernels" / f"{self.source.stem}-{hashlib.sha256(key.encode()).hexdigest()[:16]}.json"

    def compile_in_background(self) -> None:
        """Start to compile the kernels in a thread, if the cache does not have them."""
        if not self.cached_verdict().exists():
            threading.Thread(target=self.compile, daemon=True, name=f"compile {self.source.name}").start()

    def compile(self) -> Library | None:
        """Compile the kernels in this process once; None if that is not possible."""
        with self._lock:
            if self._compiled is None:
                self._compiled = (self._compile(),)
            return self._compiled[0]

    def _compile(self) -> Library | None:
        command = compiler()
        if command is None:
            return None
        with suppress(OSError, subprocess.SubprocessError):
            folder = tempfile.TemporaryDirectory()
            library = Path(folder.name) / "library.so"
            arguments = [command, *self.flags, "-o", str(library), str(self.source), "-lm"]
            subprocess.run(arguments, capture_output=True, timeout=60, check=True)
            return folder if library.exists() else None
        return None


def compiler() -> str | None:
    """Return the path of the C compiler, or None."""
    return shutil.which(os.environ.get("CC") or "cc")


@cache
def version_of(command: str) -> str:
    """Return the first line of a compiler's --version."""
    with suppress(OSError, subprocess.SubprocessError):
        output = subprocess.run([command, "--version"], capture_output=True, text=True, timeout=10, check=True).stdout
        return output.partition("\n")[0]
    return command


def _processor() -> str:
    """Return the instruction sets of the processor: -march=native uses all of them."""
    with suppress(OSError):
        return next(line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("flags"))
    return platform.processor()
