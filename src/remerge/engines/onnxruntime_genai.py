"""onnxruntime-genai: its builder writes decoders as ONNX graphs, ONNX Runtime runs them."""

from __future__ import annotations

from remerge.engines.engine import Engine

ONNXRUNTIME_GENAI = Engine(
    name="onnxruntime-genai",
    enables="ONNX models: remerge merge --to onnx",
    requirements=(
        "onnxruntime-genai==0.18.0",
        "onnxruntime==1.32.0",
        "onnx-ir==1.1.0",
        "onnx==1.23.2",
    ),
    modules=("onnx_ir", "onnxruntime", "onnxruntime_genai"),
)
