"""onnxruntime-genai: its runtime multiplies two matrices."""

# onnxruntime lies in an environment of its own.
# pyright: basic, reportMissingImports=false

from __future__ import annotations


def probe() -> str:
    """A model of one product, run; the builder itself is among the imports."""
    import numpy as np
    import onnxruntime
    from onnx import TensorProto, helper

    shape = [4, 4]
    inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in "ab"]
    output = helper.make_tensor_value_info("c", TensorProto.FLOAT, shape)
    node = helper.make_node("MatMul", ["a", "b"], ["c"])
    graph = helper.make_graph([node], "product", inputs, [output])
    # The oldest versions that hold it: newer ones than the runtime knows are refused.
    model = helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    a, b = np.random.default_rng(0).standard_normal((2, 4, 4), dtype=np.float32)
    (found,) = session.run(None, {"a": a, "b": b})
    if not np.allclose(found, a @ b, atol=1e-5):
        raise RuntimeError("ONNX Runtime multiplied two matrices wrongly")
    return f"ran a product in ONNX Runtime on {session.get_providers()[0]}"
