"""Who can score an artefact: one entry an engine, whose module answers what
`remerge.engines.scoring` asks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Scorer:
    """``engine`` names the environment that ``module`` runs in, None remerge's own; ``reads`` says
    which kinds of artefact. ``word``: an engine that serves models *served* the artefact, a
    reference reader *scored* it."""

    name: str
    module: str
    engine: str | None
    reads: tuple[str, ...]
    word: Literal["served", "scored"]


SCORERS = {
    scorer.name: scorer
    for scorer in (
        Scorer(
            "transformers",
            "remerge.engines.score_transformers",
            None,
            ("checkpoint", "gguf"),
            "scored",
        ),
        Scorer("llama.cpp", "remerge.engines.score_llama_cpp", "llama.cpp", ("gguf",), "served"),
        Scorer("vllm", "remerge.engines.score_vllm", "vllm", ("checkpoint",), "served"),
        Scorer(
            "onnxruntime",
            "remerge.engines.score_onnxruntime",
            "onnxruntime-genai",
            ("onnx",),
            "served",
        ),
    )
}
