"""llm-compressor: calibrated quantisation (GPTQ, AWQ) into compressed-tensors checkpoints, which
vLLM, SGLang and transformers read."""

from __future__ import annotations

from remerge.engines.engine import Engine

LLM_COMPRESSOR = Engine(
    name="llm-compressor",
    enables="calibrated checkpoints: remerge merge --to gptq, --to awq",
    requirements=("llmcompressor==0.14.0.1", "transformers==5.17.0"),
    modules=("llmcompressor",),
    disk=1_500_000_000,
)
