"""Bytes of the cache of keys and values, as each engine lays it out.

vLLM 0.32 (``v1/core/kv_cache_utils.py``, ``v1/kv_cache_interface.py``, ``platforms/``), llama.cpp
of 2026 (``llama-kv-cache*.cpp``, ``llama-hparams.cpp``) and transformers 5 (``cache_utils.py``).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from fractions import Fraction
from math import ceil

from remerge.serving.sizing.shape import Attention, Shape

# Model types of which vLLM keeps the latent row (`is_deepseek_mla` of its
# transformers_utils/model_arch_config_convertor.py); of others it keeps heads.
_VLLM_LATENT = (
    "axk1", "deepseek_v2", "deepseek_v3", "deepseek_v32", "deepseek_mtp", "dots3_note",
    "glm5_next", "glm5_next_text", "glm_moe_dsa", "glm4_moe_lite", "kimi_k2", "kimi_linear",
    "longcat_flash", "pangu_ultra_moe", "bailing_hybrid", "hy_v4",
)  # fmt: skip
# In llama.cpp a stream's cells come in this many, and so do those of a window.
_CELLS = 256
# States are kept in 32 bits by llama.cpp, and at most so by vLLM.
_STATE_BYTES = 4
# Of a recurrent layer vLLM keeps the state at hand and those that prompts may be found again by
# (`MambaSpec.max_memory_usage_bytes`, mode "align").
_STATE_BLOCKS = 3


@dataclass(frozen=True)
class Layout:
    """How an engine keeps the cache: ``element`` bytes of a number of keys or values, tokens in a
    ``block``, ``batch`` tokens computed in one step (``steps`` of them may be under way)."""

    engine: str
    element: Fraction
    block: int = 1
    batch: int = 512
    steps: int = 1


def cache_bytes(shape: Shape, layout: Layout, context: int, sequences: int) -> int:
    """For ``sequences`` of ``context`` tokens each, all at once."""
    if layout.engine == "vllm":
        return _vllm(shape, layout, context, sequences)
    if layout.engine == "llama.cpp":
        return _llama(shape, layout, context, sequences)
    return _transformers(shape, layout, context, sequences)


def step_bytes(shape: Shape, layout: Layout, context: int) -> int:
    """What is read of one sequence's cache for one more token, behind ``context`` tokens."""
    rows = sum(
        _token(shape, layout, a) * min(context, a.window or context) for a in shape.attentions
    )
    return ceil(rows) + _states(shape)


def _token(shape: Shape, layout: Layout, attention: Attention) -> Fraction:
    """Bytes of one token in one layer."""
    index = attention.index * layout.element
    if layout.engine == "vllm" and attention.latent and shape.architecture in _VLLM_LATENT:
        return attention.latent * layout.element + index
    if layout.engine == "vllm" and attention.latent:
        # Keys and values of one width, the wider one's.
        wide = max(attention.key, attention.value)
        return attention.heads * 2 * wide * layout.element + index
    return attention.elements * layout.element + index


def _states(shape: Shape) -> int:
    return sum((s.convolution + s.recurrent) * _STATE_BYTES for s in shape.states)


def _llama(shape: Shape, layout: Layout, context: int, sequences: int) -> int:
    cells = _padded(context, _CELLS)
    total = Fraction(0)
    for attention in shape.attentions:
        kept = cells
        if attention.window is not None:
            kept = _padded(min(cells, attention.window + layout.batch), _CELLS)
        total += _token(shape, layout, attention) * kept
    return sequences * (ceil(total) + _states(shape))


def _transformers(shape: Shape, layout: Layout, context: int, sequences: int) -> int:
    total = sum(
        (
            _token(shape, layout, a) * min(context, a.window or context)
            for a in shape.attentions
        ),
        Fraction(0),
    )  # fmt: skip
    return sequences * (ceil(total) + _states(shape))


def _vllm(shape: Shape, layout: Layout, context: int, sequences: int) -> int:
    block_bytes, blocks = _vllm_blocks(shape, layout, context)
    # One block holds nothing, and is never given out.
    return block_bytes * (sequences * blocks + 1)


def _vllm_blocks(shape: Shape, layout: Layout, context: int) -> tuple[int, int]:
    """Bytes of a block of the pool, and blocks that one sequence takes of it.

    Layers of one kind are a group, and a block of the pool serves any group: so groups of a mixed
    model are cut to one number of layers, and their pages padded to one size
    (`unify_kv_cache_spec_page_size`, `_get_kv_cache_groups_uniform_page_size`).
    """
    kinds = Counter((_token(shape, layout, a), a.window) for a in shape.attentions)
    states = Counter((state.convolution + state.recurrent) * _STATE_BYTES for state in shape.states)
    flight = layout.batch * layout.steps
    block = layout.block
    if not states and len({window for _, window in kinds}) <= 1:
        window = next((window for _, window in kinds), None)
        page = sum(ceil(token * block) * count for (token, _), count in kinds.items())
        return page, _of_window(window, context, flight, block)
    if not kinds:
        page = max(states)
        return page * sum(states.values()), _STATE_BLOCKS
    widest = max(token for token, _ in kinds)
    block = _grown_block(shape, layout)
    page = max(ceil(block * widest), max(states, default=0))
    buckets: list[tuple[int, int]] = []
    for (token, window), count in kinds.items():
        own = block * (page // ceil(token * block)) if page % ceil(token * block) == 0 else block
        buckets.append((count, _of_window(window, context, flight, own)))
    buckets += [(count, _STATE_BLOCKS) for count in states.values()]
    fewest, most = min(count for count, _ in buckets), max(count for count, _ in buckets)
    together = most if most < fewest * 1.5 else fewest
    return page * together, sum(-(-count // together) * blocks for count, blocks in buckets)


def least_batch(shape: Shape, layout: Layout) -> int:
    """Tokens that a batch must hold at least: vLLM keeps states at the ends of blocks, and refuses
    a batch that is shorter than one (`validate_mamba_block_size` of its config/vllm.py)."""
    if layout.engine != "vllm" or not shape.states or not shape.attentions:
        return 0
    return _grown_block(shape, layout)


def _grown_block(shape: Shape, layout: Layout) -> int:
    """Blocks of keys and values grow until the largest state fits into one's page."""
    narrowest = min(_token(shape, layout, attention) for attention in shape.attentions)
    largest = max(((s.convolution + s.recurrent) * _STATE_BYTES for s in shape.states), default=0)
    return layout.block * max(1, ceil(Fraction(largest) / (layout.block * narrowest)))


def _of_window(window: int | None, context: int, flight: int, block: int) -> int:
    """Blocks of one sequence."""
    if window is None:
        return -(-context // block)
    return -(-min(window - 1 + flight, context) // block) + 1


def _padded(count: int, unit: int) -> int:
    return -(-count // unit) * unit
