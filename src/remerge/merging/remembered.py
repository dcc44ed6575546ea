"""Values that are asked for twice in a row, computed once."""

from __future__ import annotations

from collections import OrderedDict

import torch

from remerge.sources.codecs.codec import Values

# A scale and the codes under it come from the same values, and so do neighbouring blocks.
_KEPT = 2


def remembering(values: Values) -> Values:
    """The same values, the last few ranges kept; they must not be written to. For one thread."""
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
