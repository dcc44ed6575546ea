"""onnxruntime-genai: its builder makes ONNX models with a key-value cache, its loop runs them."""

from __future__ import annotations

from remerge.engines.engine import Engine

ONNXRUNTIME_GENAI = Engine(
    name="onnxruntime-genai",
    enables="ONNX models, and checks in ONNX Runtime",
    requirements=(
        "onnxruntime-genai==0.18.0",
        "onnxruntime==1.32.0",
        "onnx==1.23.2",
        "torch==2.13.0",
        "transformers==5.23.0",
    ),
    modules=("onnxruntime", "onnxruntime_genai", "onnxruntime_genai.models.builder"),
    lies_over=False,
    probe="remerge.engines.probes.onnxruntime_genai",
    disk=1_500_000_000,
)
