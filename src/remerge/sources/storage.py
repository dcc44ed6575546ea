"""Bytes of local files: read and written past the page cache where the file system allows.

Direct I/O is what makes a merge faster than a copy: the page cache costs more processor time than
the merge's arithmetic. It needs offsets, lengths and addresses aligned to `BLOCK`; buffers come
from anonymous mappings, which are. Where it is refused (tmpfs, network mounts, macOS) the same
calls go through the page cache, with the same result.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import mmap
import os
import weakref
from pathlib import Path

from remerge.errors import BadInput, TryAgain

BLOCK = 4096
_O_DIRECT = getattr(os, "O_DIRECT", 0)


def round_up(n: int, multiple: int = BLOCK) -> int:
    """The next multiple of ``multiple`` at or above ``n``."""
    return -(-n // multiple) * multiple


def aligned_buffer(nbytes: int) -> memoryview:
    """Zeroed memory aligned to a page, a whole number of blocks long."""
    return memoryview(mmap.mmap(-1, max(round_up(nbytes), BLOCK)))


class InputFile:
    """A regular file read at any offset, by any number of threads."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE):
                raise TryAgain(f"Cannot open {path}: {error.strerror}.") from error
            raise BadInput(f"Cannot open {path}: {error.strerror}.") from error
        self._direct = _open_direct(path, os.O_RDONLY)
        self._refused = False
        status = os.fstat(self._fd)
        self.size = status.st_size
        self.identity = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
        self.close = weakref.finalize(self, _close, self._fd, self._direct)

    def read_into(self, buffer: memoryview, offset: int, length: int) -> None:
        """Fill ``buffer[:length]`` from ``offset``.

        ``buffer`` may be longer; aligned reads use the slack up to the next block. Raises
        `BadInput` when the file has become shorter, `TryAgain` when the device fails.
        """
        done = 0
        try:
            aligned = offset % BLOCK == 0 and round_up(length) <= len(buffer)
            aligned = aligned and _address(buffer) % BLOCK == 0
            if self._direct is not None and aligned and not self._refused:
                done = self._read_direct(self._direct, buffer, offset, length)
            while done < length:
                count = os.preadv(self._fd, [buffer[done:length]], offset + done)
                if count == 0:
                    raise BadInput(
                        f"{self.path} ended at byte {offset + done:,}, {length - done:,} bytes "
                        f"before its header says.",
                        why="It was cut short or replaced while it was read.",
                    )
                done += count
        except OSError as error:
            raise TryAgain(
                f"Reading {self.path} failed at byte {offset + done:,}: {error.strerror}.",
                why="The disk or the network mount under it reported an error.",
            ) from error

    def _read_direct(self, direct: int, buffer: memoryview, offset: int, length: int) -> int:
        done = 0
        while done < length:
            try:
                count = os.preadv(direct, [buffer[done : round_up(length)]], offset + done)
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
                self._refused = True
                break
            if count % BLOCK or count == 0:
                # The file's tail: what is left (nothing, or an unaligned rest) is read buffered.
                return min(done + count, length)
            done += count
        return min(done, length)

    def changed(self) -> bool:
        """Whether the file is no longer the one that was opened."""
        try:
            status = self.path.stat()
        except OSError:
            return True
        return self.identity != (
            status.st_dev,
            status.st_ino,
            status.st_size,
            status.st_mtime_ns,
        )


class OutputFile:
    """A new file of known size, written in aligned chunks in any order."""

    def __init__(self, path: Path, size: int) -> None:
        self.path = path
        self.size = size
        flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
        try:
            self._fd = os.open(path, flags, 0o666)
        except OSError as error:
            raise cannot_write(path, error) from error
        self._direct = _open_direct(path, os.O_RDWR)
        self._refused = False
        self.close = weakref.finalize(self, _close, self._fd, self._direct)

    def write(self, buffer: memoryview, offset: int, length: int) -> None:
        """Write ``buffer[:length]`` at ``offset``, a multiple of `BLOCK`.

        The buffer's slack up to the next block may be written too; `finish` cuts it off. Raises
        `TryAgain` when the disk is full or fails.
        """
        done = 0
        try:
            while done < length and self._direct is not None and not self._refused:
                try:
                    block = buffer[done : round_up(length)]
                    count = os.pwritev(self._direct, [block], offset + done)
                except OSError as error:
                    if error.errno != errno.EINVAL:
                        raise
                    self._refused = True
                    break
                done += count
                if count % BLOCK:
                    break
            while done < length:
                done += os.pwritev(self._fd, [buffer[done:length]], offset + done)
        except OSError as error:
            raise cannot_write(self.path, error) from error

    def finish(self) -> None:
        """Set the exact size and make the bytes durable."""
        try:
            os.ftruncate(self._fd, self.size)
            os.fsync(self._fd)
        except OSError as error:
            raise cannot_write(self.path, error) from error


def file_digest(path: Path) -> str:
    """SHA-256 of a file's content."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def cannot_write(path: Path, error: OSError, option: str = "-o") -> TryAgain | BadInput:
    """The failure of a write, with what to do about it; ``option`` names the place."""
    full = {errno.ENOSPC: "The disk is full.", errno.EDQUOT: "The disk quota is used up."}
    if error.errno in full:
        return TryAgain(
            f"Writing {path} failed: {error.strerror}.",
            why=full[error.errno],
            hint=f"Free some space, or choose another place with {option}, and run the command "
            "again.",
        )
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.ENOENT):
        return BadInput(
            f"Cannot write {path}: {error.strerror}.", hint=f"Choose another place with {option}."
        )
    return TryAgain(f"Writing {path} failed: {error.strerror}.")


def sync_file(path: Path) -> None:
    """Make a file that another program wrote durable."""
    try:
        with path.open("rb") as stream:
            os.fsync(stream.fileno())
    except OSError as error:
        raise cannot_write(path, error) from error


def sync_directory(path: Path) -> None:
    """Make renames inside a directory durable."""
    try:
        fd = os.open(path, os.O_RDONLY | getattr(os, "O_DIRECTORY", 0))
    except PermissionError:
        return
    try:
        os.fsync(fd)
    except OSError as error:
        # Some network file systems cannot, and then need not.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(fd)


def _address(buffer: memoryview) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(buffer))


def _close(*descriptors: int | None) -> None:
    for fd in descriptors:
        if fd is not None:
            os.close(fd)


def _open_direct(path: Path, flags: int) -> int | None:
    if not _O_DIRECT:
        return None
    try:
        return os.open(path, flags | _O_DIRECT | os.O_CLOEXEC)
    except OSError:
        return None
