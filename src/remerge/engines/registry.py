"""All engines by name."""

from __future__ import annotations

from remerge.engines.engine import Engine
from remerge.engines.gptqmodel import GPTQMODEL
from remerge.engines.llama_cpp import LLAMA_CPP
from remerge.engines.llm_compressor import LLM_COMPRESSOR
from remerge.engines.lm_eval import LM_EVAL
from remerge.engines.onnxruntime_genai import ONNXRUNTIME_GENAI
from remerge.engines.openvino import OPENVINO
from remerge.engines.vllm import VLLM
from remerge.errors import UsageError

_ALL = (LLAMA_CPP, VLLM, LLM_COMPRESSOR, GPTQMODEL, ONNXRUNTIME_GENAI, OPENVINO, LM_EVAL)
ENGINES = {engine.name: engine for engine in _ALL}


def engine_of(name: str) -> Engine:
    """Raises `UsageError` for a name that is none."""
    if name not in ENGINES:
        raise UsageError(f"There is no engine {name!r}.", hint=f"Choose {', '.join(ENGINES)}.")
    return ENGINES[name]
