"""Run by vLLM's interpreter: what its own allocator takes for one sequence, for cases from standard
input (JSON: layers as [heads, width, window], context, batch, block)."""

from __future__ import annotations

import json
import sys
from types import SimpleNamespace

import torch
from vllm.v1.core import kv_cache_utils as own
from vllm.v1.kv_cache_interface import FullAttentionSpec, SlidingWindowSpec
from vllm.v1.kv_cache_layout import KVCacheLayout


def _needed(case: dict, layout: KVCacheLayout) -> int:
    specs = {}
    for number, (heads, width, window) in enumerate(case["layers"]):
        common = {
            "block_size": case["block"],
            "num_kv_heads": heads,
            "head_size": width,
            "dtype": torch.bfloat16,
        }
        specs[f"layer.{number}"] = (
            FullAttentionSpec(**common)
            if window is None
            else SlidingWindowSpec(**common, sliding_window=window)
        )
    config = SimpleNamespace(
        model_config=SimpleNamespace(max_model_len=case["context"]),
        parallel_config=SimpleNamespace(
            decode_context_parallel_size=1, pipeline_parallel_size=1, tensor_parallel_size=1
        ),
        scheduler_config=SimpleNamespace(
            disable_hybrid_kv_cache_manager=False, max_num_batched_tokens=case["batch"]
        ),
        cache_config=SimpleNamespace(
            get_resolved_kv_cache_layout=lambda: layout, num_gpu_blocks_override=None
        ),
        attention_config=SimpleNamespace(hisparse_config=None),
        speculative_config=None,
        max_in_flight_tokens=case["batch"],
    )
    groups = own.get_kv_cache_groups(config, specs)
    return own._max_memory_usage_bytes_from_groups(config, groups)


print(json.dumps([_needed(case, KVCacheLayout.LBNHC) for case in json.load(sys.stdin)]))
