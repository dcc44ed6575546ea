"""Inner products of deltas: their memory does not grow with the blocks."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from remerge.merging.methods.angles import products

_PROGRAM = """
import resource
import torch
from remerge.merging.methods.angles import products
torch.set_num_threads(1)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
products(torch.zeros(8, 8, 4096, dtype=torch.float64) + 1 for _ in range(300))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="ru_maxrss in KiB")
def test_memory_does_not_grow_with_the_blocks() -> None:
    words = [sys.executable, "-c", _PROGRAM]
    done = subprocess.run(words, check=True, capture_output=True, text=True)
    assert int(done.stdout) < 150_000


def test_products_of_the_whole_and_of_rows() -> None:
    deltas = torch.randn(3, 7, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    blocks = [deltas[:, :4], deltas[:, 4:]]
    flat = deltas.flatten(1)
    torch.testing.assert_close(products(blocks), (flat @ flat.T).unsqueeze(0))
    torch.testing.assert_close(products(blocks, 7), torch.einsum("irc,jrc->rij", deltas, deltas))
