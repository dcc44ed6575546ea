"""All engines by name."""

from __future__ import annotations

from remerge.engines.engine import Engine
from remerge.engines.llama_cpp import LLAMA_CPP
from remerge.engines.llm_compressor import LLM_COMPRESSOR
from remerge.engines.onnxruntime_genai import ONNXRUNTIME_GENAI
from remerge.engines.vllm import VLLM
from remerge.errors import UsageError

ENGINES = {engine.name: engine for engine in (LLAMA_CPP, LLM_COMPRESSOR, ONNXRUNTIME_GENAI, VLLM)}


def engine_of(name: str) -> Engine:
    """Raises `UsageError` for a name that is none."""
    if name not in ENGINES:
        raise UsageError(f"There is no engine {name!r}.", hint=f"Choose {', '.join(ENGINES)}.")
    return ENGINES[name]
