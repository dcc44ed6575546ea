"""OpenVINO: compiles a model of one product, and runs it."""

# OpenVINO lies in an environment of its own.
# pyright: basic, reportMissingImports=false

from __future__ import annotations


def probe() -> str:
    """A product of two matrices on the processor."""
    import numpy as np
    import openvino
    from openvino import opset13 as opset

    first, second = (opset.parameter([4, 4], np.float32) for _ in range(2))
    product = opset.matmul(first, second, False, False)
    core = openvino.Core()
    compiled = core.compile_model(openvino.Model([product], [first, second], "product"), "CPU")
    a, b = np.random.default_rng(0).standard_normal((2, 4, 4), dtype=np.float32)
    # Some processors multiply in bfloat16 unless told otherwise.
    if not np.allclose(compiled([a, b])[0], a @ b, atol=0.1):
        raise RuntimeError("OpenVINO multiplied two matrices wrongly")
    return f"ran a product on {core.get_property('CPU', 'FULL_DEVICE_NAME')}"
