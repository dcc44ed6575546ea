"""Some columns of a stored matrix, where the values of one row lie across all its rows."""

from __future__ import annotations

import torch

from remerge.sources.checkpoint import StoredTensor
from remerge.sources.codecs.codec import Read
from remerge.sources.dtypes import itemsize, torch_dtype

# A read costs about as much as copying this many bytes, so shorter rows are read whole.
_WORTH_A_READ = 2**14
_BAND_BYTES = 2**23


def read_columns(read: Read, stored: StoredTensor, first: int, count: int) -> torch.Tensor:
    """Columns ``[first, first + count)`` of a 2-D tensor, as stored: (rows, count).

    Holds the result and at most 8 MiB (or one row) more. Whole rows are read in the same spans
    whatever the columns, so that a reader that keeps its last spans need not read them again.
    """
    rows, width = stored.shape
    block = torch.empty((rows, count), dtype=torch_dtype(stored.dtype))
    row_bytes = width * itemsize(stored.dtype)
    if row_bytes > _WORTH_A_READ and count < width:
        for row in range(rows):
            block[row] = read(stored, row * width + first, count)
        return block
    step = max(_BAND_BYTES // row_bytes, 1)
    for row in range(0, rows, step):
        band = read(stored, row * width, min(step, rows - row) * width).view(-1, width)
        block[row : row + step] = band[:, first : first + count]
    return block
