"""Random numbers that depend on what they are for, and on nothing else.

A counter-based generator (Philox4x64, Salmon et al. 2011) is keyed by seed, adapter and tensor and
addressed by the element: no order of work, thread or device changes a number.
"""

from __future__ import annotations

import hashlib
import math

import numpy as np
import numpy.typing as npt
import torch

# One step of Philox4x64's counter gives so many 64-bit numbers.
_WORDS = 4

Words = npt.NDArray[np.uint64]


def uniform(seed: int, adapter: int, tensor: str, first: int, count: int) -> torch.Tensor:
    """Numbers in [0, 1), float64, 1-D: those of the elements ``[first, first + count)`` of a
    tensor for the ``adapter``-th adapter.

    The adapter counts by its place: one more behind it changes nothing, another order does.
    """
    words = _words(seed, adapter, tensor, first, count)
    # The 53 high bits, as float64 holds them.
    words >>= np.uint64(11)
    return torch.as_tensor(words.astype(np.float64)).mul_(2.0**-53)


def drop(
    seed: int, adapter: int, tensor: str, first: int, count: int, density: float
) -> torch.Tensor:
    """Where the numbers of `uniform` are not below ``density`` (0 to 1, 1 excluded), as booleans:
    without making floats of them."""
    least = math.ceil(density * 2**53) << 11
    return torch.as_tensor(_words(seed, adapter, tensor, first, count) >= np.uint64(least))


def _words(seed: int, adapter: int, tensor: str, first: int, count: int) -> Words:
    digest = hashlib.sha256(f"{seed}|{adapter}|{tensor}".encode("utf-8", "surrogatepass")).digest()
    start, skip = divmod(first, _WORDS)
    generator = np.random.Philox(
        key=np.frombuffer(digest, "<u8", 2), counter=np.array([start, 0, 0, 0], dtype=np.uint64)
    )
    words: Words = generator.random_raw(skip + count)
    return words[skip:]
