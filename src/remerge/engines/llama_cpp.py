"""llama.cpp: its converter of checkpoints (from the sources that llama-cpp-python carries, the only
place where a fitting pair of `conversion` and `gguf` is published) and ggml's quantisers."""

from __future__ import annotations

from remerge.engines.engine import Engine, FromSource

LLAMA_CPP = Engine(
    name="llama.cpp",
    enables="GGUF files: remerge merge --to gguf:Q4_K_M",
    requirements=(
        "xllamacpp==2026.10.11549",
        "sentencepiece==0.2.1",
        "protobuf>=4.21,<7",
        "requests>=2.32",
        "tqdm>=4.66",
    ),
    modules=("conversion", "gguf", "xllamacpp"),
    sources=(
        FromSource(
            requirement="llama-cpp-python==0.3.36",
            folders=("vendor/llama.cpp", "vendor/llama.cpp/gguf-py"),
            sha256="832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e",
        ),
    ),
)
