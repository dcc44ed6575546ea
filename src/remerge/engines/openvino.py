"""OpenVINO: optimum-intel exports models to its format, nncf compresses their weights."""

from __future__ import annotations

from remerge.engines.engine import Engine

OPENVINO = Engine(
    name="openvino",
    enables="OpenVINO models, at 16, 8 and 4 bits",
    requirements=("openvino==2026.4.1", "optimum-intel==2.2.0", "nncf==3.4.0", "torch==2.13.0"),
    modules=("openvino", "nncf", "optimum.intel"),
    lies_over=False,
    without=("torchvision",),
    probe="remerge.engines.probes.openvino",
    disk=1_800_000_000,
)
