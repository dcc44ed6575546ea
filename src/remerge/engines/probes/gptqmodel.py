"""gptqmodel: packs a matrix in its layout, and reads it back."""

# gptqmodel lies in an environment of its own.
# pyright: basic, reportMissingImports=false

from __future__ import annotations

import os

# On two processors it counts one worker, and then asks for two.
os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")


def probe() -> str:
    """Four bits in groups of 32: every value comes back within half a step."""
    import gptqmodel
    import torch
    from gptqmodel.nn_modules.qlinear.torch import TorchLinear

    # Where a quantisation begins; its counts of workers must agree.
    gptqmodel._build_device_thread_pool()
    torch.manual_seed(0)
    rows, columns, group = 32, 64, 32
    linear = torch.nn.Linear(columns, rows, bias=False).half()
    weight = linear.weight.data.float()
    scales = weight.reshape(rows, -1, group).abs().amax(-1) / 7
    packed = TorchLinear(
        bits=4, group_size=group, sym=True, desc_act=False, in_features=columns, out_features=rows
    )
    packed.pack_original(
        linear=linear,
        scales=scales,
        zeros=torch.full_like(scales, 8),
        g_idx=torch.arange(columns, dtype=torch.int32) // group,
    )
    steps = (packed.dequantize_weight().T.float() - weight) / scales.repeat_interleave(group, 1)
    # Scales are stored in float16.
    if steps.abs().max() > 0.51:
        raise RuntimeError("a matrix that it packed did not come back")
    return "packed a matrix in GPTQ's layout"
