"""torch on one thread, for work that is spread over threads otherwise or is too small to be."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

import torch


@contextmanager
def one_thread() -> Generator[None]:
    """While it lasts, torch's operations run on the thread that calls them.

    The order of sums then depends on no machine's size, and no time goes into threads that wait for
    each other.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
