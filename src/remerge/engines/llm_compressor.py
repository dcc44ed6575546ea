"""llm-compressor: quantised checkpoints in compressed-tensors' format, which vLLM reads."""

from __future__ import annotations

from remerge.engines.engine import Engine

LLM_COMPRESSOR = Engine(
    name="llm-compressor",
    enables="AWQ, GPTQ and other calibrated quantisation in compressed-tensors' format",
    requirements=(
        "llmcompressor==0.14.0.1",
        "compressed-tensors==0.19.0",
        "torch==2.13.0",
        "transformers==5.17.0",
    ),
    modules=("llmcompressor", "compressed_tensors"),
    lies_over=False,
    probe="remerge.engines.probes.llm_compressor",
    disk=1_600_000_000,
)
