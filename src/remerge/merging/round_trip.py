"""What a changed tensor reads as once it is written in its quantised format, before it is."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch

from remerge.merging.merged import MergedCheckpoint
from remerge.merging.remembered import remembering
from remerge.merging.retention import Block
from remerge.merging.tensor_plan import Encoding
from remerge.sources.checkpoint import StoredTensor
from remerge.sources.codecs.codec import Encodes, Rounds


def round_trips(
    merged: MergedCheckpoint, encoding: Encoding, blocks: Iterable[Block]
) -> Iterator[tuple[Block, torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Each block with its values in the base, exactly merged (float64), and as the new codes
    decode."""
    codec, change, origin = encoding.codec, encoding.change, encoding.origin
    assert isinstance(codec, Encodes)
    assert change is not None
    assert origin is not None
    values = remembering(merged.to_encode(encoding))
    exactly = remembering(merged.exact(change, origin)) if encoding.anew else values
    measured = merged.measured(encoding)
    roles = {part.name: role for role, part in codec.parts.items()}

    def read(part: StoredTensor, start: int, length: int) -> torch.Tensor:
        if roles[part.name] in codec.rewritten:
            return codec.encode(roles[part.name], values, measured, start, length)
        return merged.reader.span(part, start, length)

    for block in blocks:
        base = merged.reader.values(origin, block.first, block.count)
        exact = exactly(block.first, block.count)
        if isinstance(codec, Rounds):
            output = codec.rounded(values, measured, block.first, block.count)
        else:
            output = codec.decode(read, block.first, block.count)
        yield block, base, exact, output
