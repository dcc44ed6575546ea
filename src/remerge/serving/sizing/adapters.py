"""What adapters that are served unmerged take in memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from remerge.engines.servers.vllm import rank_slot
from remerge.serving.sizing.shape import Shape
from remerge.serving.sizing.weights import Weights


@dataclass(frozen=True)
class AdapterFacts:
    """Its rank, its numbers, and its bytes on disk."""

    rank: int
    elements: int
    stored: int


def computing_bytes(
    engine: str, adapters: Sequence[AdapterFacts], shape: Shape, element: int | None, *, gpu: bool
) -> tuple[int, int]:
    """What each token of a batch, and each sequence's logits, take to compute adapters.

    On processors vLLM gives every token a copy of the adapter's matrix, and one in 32 bits
    (`bgmv_expand` and `bgmv_shrink` of lora/ops/torch_ops/lora_ops.py).
    """
    if engine != "vllm" or gpu or not adapters:
        return 0, 0
    copies = _slot(adapters) * ((element or 4) + 4)
    widest = max(shape.hidden, shape.feed_forward, shape.query)
    return copies * widest, copies * max(shape.vocabulary, shape.hidden)


def _slot(adapters: Sequence[AdapterFacts]) -> int:
    return max(rank_slot(adapter.rank) for adapter in adapters)


def adapters_bytes(
    engine: str, adapters: Sequence[AdapterFacts], weights: Weights, element: int | None
) -> int:
    """Of all of them, loaded.

    vLLM keeps a slot for each, of the widest one's rank, on every matrix that an adapter could
    change, and the adapters themselves beside; llama.cpp keeps the files as they are, and
    transformers at most 32 bits a number.
    """
    if not adapters:
        return 0
    if engine == "llama.cpp":
        return sum(adapter.stored for adapter in adapters)
    if engine == "transformers":
        return sum(4 * adapter.elements for adapter in adapters)
    width = element or 4
    slots = len(adapters) * _slot(adapters) * weights.edges * width
    # A copy of each, as read and as cast.
    return slots + sum(adapter.stored + width * adapter.elements for adapter in adapters)
