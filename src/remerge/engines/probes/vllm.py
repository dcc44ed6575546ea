"""vLLM: which platform it finds, and whether that platform's kernels load."""

# vLLM lies in an environment of its own.
# pyright: basic, reportMissingImports=false

from __future__ import annotations

import os

# Not the place to tell anybody of a check.
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")


def probe() -> str:
    """One product of its int4 kernel's kin shows that they run; says what this machine lacks."""
    import torch
    from vllm.platforms import current_platform

    current_platform.import_kernels()
    device = current_platform.device_type
    weight, rows = torch.ones(64, device=device), torch.randn(3, 64, device=device)
    found = torch.empty_like(rows)
    torch.ops._C.rms_norm(found, rows, weight, 1e-6)
    exact = rows * torch.rsqrt(rows.square().mean(-1, keepdim=True) + 1e-6)
    if not torch.allclose(found, exact, atol=1e-5):
        raise RuntimeError("a kernel of vLLM's gives wrong numbers")
    said = f"ran a kernel on {device}"
    if device == "cpu" and not hasattr(torch.ops._C, "cpu_gemm_wna16"):
        said += "; its kernels for int4 are missing (they need AVX-512)"
    return said
