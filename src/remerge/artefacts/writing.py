"""The files of a checkpoint while they are derived, from any thread: written, and counted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from threading import Lock

from remerge.merging.plan import OutputFile
from remerge.sources.storage import OutputFile as File

# Told, from any thread: bytes done, bytes in all, the tensor at hand.
Report = Callable[[int, int, str], None]


class Files:
    """The output's files below a directory: opened with their first chunk, durable when they are
    finished."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files: dict[str, File] = {}
        self._lock = Lock()

    def put(self, file: OutputFile, offset: int, chunk: memoryview, length: int) -> None:
        with self._lock:
            if file.name not in self._files:
                self._files[file.name] = File(self._folder / file.name, file.size)
            target = self._files[file.name]
        target.write(chunk, offset, length)

    def finish(self, file: OutputFile) -> None:
        with self._lock:
            target = self._files.pop(file.name)
        target.finish()
        target.close()

    def close(self) -> None:
        """Close what a failure left open."""
        for target in self._files.values():
            target.close()


def counted(total: int, report: Report) -> Callable[[int, str], None]:
    """Adds bytes and the tensor that they are of to those done so far, and reports the sum."""
    done = 0
    lock = Lock()

    def add(nbytes: int, tensor: str) -> None:
        nonlocal done
        with lock:
            done += nbytes
            report(done, total, tensor)

    return add
