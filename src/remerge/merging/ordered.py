"""Jobs on parameters, a few at a time within a budget of memory, their results in order.

Every job runs on one torch thread, so that neither the number of threads nor the memory changes a
bit of what comes out.
"""

from __future__ import annotations

import ctypes
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from threading import Condition
from typing import TypeVar

import torch

from remerge.sources.one_thread import one_thread

T = TypeVar("T")
R = TypeVar("R")


@dataclass
class Room:
    """Bytes that the jobs at work may take together; a job waits for its share."""

    free: int
    changed: Condition = field(default_factory=Condition)

    @contextmanager
    def taken(self, nbytes: int) -> Generator[None]:
        with self.changed:
            self.changed.wait_for(lambda: self.free >= nbytes)
            self.free -= nbytes
        try:
            yield
        finally:
            with self.changed:
                self.free += nbytes
                self.changed.notify_all()


def in_order(items: Iterable[T], job: Callable[[T], R], threads: int) -> Iterator[R]:
    """What ``job`` gives for each item, one after the other."""

    def alone(item: T) -> R:
        torch.set_num_threads(1)
        return job(item)

    pool = ThreadPoolExecutor(threads, thread_name_prefix="job")
    left = iter(items)
    waiting: deque[Future[R]] = deque()
    with one_thread():
        try:
            while True:
                # Results hold factors: no more of them than threads may wait to be taken.
                while len(waiting) < threads + 1 and (item := next(left, None)) is not None:
                    waiting.append(pool.submit(alone, item))
                if not waiting:
                    return
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
            pool.shutdown()


def give_back() -> None:
    """Return freed memory to the system, which glibc puts off; elsewhere nothing happens."""
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)
