"""What a changed tensor reads as once it is written in its quantised format, before it is."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator

import torch

from remerge.merging.merged import MergedCheckpoint
from remerge.merging.retention import Block
from remerge.merging.tensor_plan import Encoding
from remerge.sources.checkpoint import StoredTensor
from remerge.sources.codecs.codec import Encodes, Rounds, Values

# A scale and the codes under it come from the same values, and so do neighbouring blocks.
_KEPT = 2


def round_trips(
    merged: MergedCheckpoint, encoding: Encoding, blocks: Iterable[Block]
) -> Iterator[tuple[Block, torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Each block with its values in the base, exactly merged (float64), and as the new codes
    decode."""
    codec = encoding.codec
    assert isinstance(codec, Encodes)
    values = _remembering(merged.exact(encoding.change, codec))
    measured = merged.measured(codec.name, codec, values)
    roles = {part.name: role for role, part in codec.parts.items()}

    def read(part: StoredTensor, start: int, length: int) -> torch.Tensor:
        if roles[part.name] in codec.rewritten:
            return codec.encode(roles[part.name], values, measured, start, length)
        return merged.reader.span(part, start, length)

    for block in blocks:
        base = merged.reader.values(codec, block.first, block.count)
        exact = values(block.first, block.count)
        if isinstance(codec, Rounds):
            output = codec.rounded(values, measured, block.first, block.count)
        else:
            output = codec.decode(read, block.first, block.count)
        yield block, base, exact, output


def _remembering(values: Values) -> Values:
    """The same values, the last few ranges kept; they must not be written to."""
    kept: OrderedDict[tuple[int, int], torch.Tensor] = OrderedDict()

    def remembered(first: int, count: int) -> torch.Tensor:
        found = kept.pop((first, count), None)
        if found is None:
            found = values(first, count)
        kept[first, count] = found
        if len(kept) > _KEPT:
            kept.popitem(last=False)
        return found

    return remembered
