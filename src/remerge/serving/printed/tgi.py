"""Hugging Face's Text Generation Inference, by the flags of its launcher
(docs/source/reference/launcher.md of its repository, 3.3)."""

from __future__ import annotations

from remerge.errors import UsageError
from remerge.serving.printed.contained import Container, mounts_of
from remerge.serving.printed.form import Printing

_TAG = "ghcr.io/huggingface/text-generation-inference:3.3.5"
_CACHES = {"fp8": "fp8_e4m3fn", "fp8_e4m3": "fp8_e4m3fn", "fp8_e5m2": "fp8_e5m2"}
_DTYPES = {"float16": "float16", "half": "float16", "bfloat16": "bfloat16"}


def tgi(printing: Printing) -> Container:
    """The same sizes in TGI's words; raises `UsageError` for what it does not serve."""
    served, settings = printing.served, printing.settings
    if served.model.suffix == ".gguf":
        raise UsageError(
            "TGI serves no GGUF file.",
            hint="Give the checkpoint that it was made from, or print it for llama.cpp: "
            "--engine llama.cpp --print compose.",
        )
    if settings.context < 2:
        raise UsageError(
            "TGI wants room for a prompt and an answer.", hint="Ask for --context 2 or more."
        )
    mounts = mounts_of(printing)
    # A prompt leaves room for one token at least, and is computed in one batch.
    longest = settings.context - 1
    words = ["--model-id", mounts[0].target, "--hostname", "0.0.0.0", "--port", "80"]
    words += ["--max-input-tokens", str(longest), "--max-total-tokens", str(settings.context)]
    words += ["--max-batch-prefill-tokens", str(max(longest, settings.batch or 0))]
    words += ["--max-batch-total-tokens", str(settings.context * settings.sequences)]
    words += ["--max-batch-size", str(settings.sequences)]
    words += ["--max-concurrent-requests", str(max(128, settings.sequences))]
    if settings.gpu_fraction is not None:
        words += ["--cuda-memory-fraction", f"{settings.gpu_fraction:g}"]
    if settings.dtype != "auto":
        words += ["--dtype", _known(settings.dtype, _DTYPES, "dtype")]
    if settings.cache_dtype != "auto":
        words += ["--kv-cache-dtype", _known(settings.cache_dtype, _CACHES, "cache dtype")]
    if served.adapters:
        named = zip(served.adapters, mounts[1:], strict=True)
        words += ["--lora-adapters", ",".join(f"{a.name}={m.target}" for a, m in named)]
    return Container(
        image=_TAG if printing.on_gpu else f"{_TAG}-intel-cpu",
        image_note="TGI's own; it is in maintenance, and its makers point to vLLM",
        program=("text-generation-launcher",),
        words=tuple(words),
        variables={"HF_HUB_OFFLINE": "1"},
        port=80,
        mounts=mounts,
        fetches=("curl", "-fsS"),
    )


def _known(word: str, known: dict[str, str], what: str) -> str:
    if word not in known:
        raise UsageError(f"TGI has no {what} {word}.", hint=f"It has {', '.join(known)}.")
    return known[word]
