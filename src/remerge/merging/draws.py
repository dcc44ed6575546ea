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

# One step of Philox4x64's counter gives so many 32-bit numbers; more bits a chance needs not.
_WORDS = 8

Words = npt.NDArray[np.uint32]


def uniform(seed: int, adapter: int, tensor: str, first: int, count: int) -> torch.Tensor:
    """Multiples of 2^-32 in [0, 1), float64, 1-D: those of the elements ``[first, first + count)``
    of a tensor for the ``adapter``-th adapter.

    The adapter counts by its place: one more behind it changes nothing, another order does.
    """
    words = _words(seed, adapter, tensor, first, count)
    return torch.as_tensor(words.astype(np.float64)).mul_(2.0**-32)


def keep(
    seed: int, adapter: int, tensor: str, first: int, count: int, density: float
) -> torch.Tensor:
    """1 where the numbers of `uniform` are below ``density`` (0 to 1), else 0, in float64."""
    words = _words(seed, adapter, tensor, first, count)
    kept = words < math.ceil(density * 2**32)
    return torch.as_tensor(kept.view(np.uint8)).to(torch.float64)


def _words(seed: int, adapter: int, tensor: str, first: int, count: int) -> Words:
    digest = hashlib.sha256(f"{seed}|{adapter}|{tensor}".encode("utf-8", "surrogatepass")).digest()
    start, skip = divmod(first, _WORDS)
    generator = np.random.Philox(
        key=np.frombuffer(digest, "<u8", 2), counter=np.array([start, 0, 0, 0], dtype=np.uint64)
    )
    raw = generator.random_raw(-(-(skip + count) // 2))
    words: Words = raw.astype("<u8", copy=False).view("<u4")
    return words[skip : skip + count]
