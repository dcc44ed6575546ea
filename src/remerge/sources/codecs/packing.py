"""Small integers packed into 32-bit words, lowest bits first, as GPTQ and AWQ pack them."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def unpack_rows(words: torch.Tensor, bits: int, order: Sequence[int] | None = None) -> torch.Tensor:
    """The codes of int32 words (n, columns), each column a stream of codes: int16 (m, columns).

    Codes of 3 bits straddle words: 32 of them lie in three words. ``order`` says which code of its
    word each field holds, where they do not lie in order.
    """
    together = 3 if bits == 3 else 1
    fields = together * 32 // bits
    blocks = words.view(-1, together, words.shape[1])
    codes = torch.empty((len(blocks), fields, words.shape[1]), dtype=torch.int16)
    for field in range(fields):
        word, shift = divmod(field * bits, 32)
        value = blocks[:, word] >> shift
        if shift + bits > 32:
            # The shift copies the sign bit, so what it fills in is cut off first.
            value &= (1 << (32 - shift)) - 1
            value |= blocks[:, word + 1] << (32 - shift)
        codes[:, order[field] if order else field] = value & ((1 << bits) - 1)
    return codes.view(-1, words.shape[1])


def unpack_columns(
    words: torch.Tensor, bits: int, order: Sequence[int] | None = None
) -> torch.Tensor:
    """The codes of int32 words (rows, n), each row a stream of codes: int16 (rows, m)."""
    return unpack_rows(words.T.contiguous(), bits, order).T
