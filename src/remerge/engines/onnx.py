"""``--to onnx``: a directory for ONNX Runtime, built by onnxruntime-genai and compared with the
merge."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict

from remerge.engines.form import Form
from remerge.engines.onnxruntime_genai import ONNXRUNTIME_GENAI
from remerge.errors import UsageError

# How far logits may be from the merge's, relative to their size. What another model computes is
# about 1 away; rounding to 4 bits in blocks of 32 moves small models by up to 0.2.
ALLOWED: Mapping[str, float] = {"fp32": 1e-3, "fp16": 2e-2, "int8": 0.1, "int4": 0.5}


class OnnxOptions(BaseModel):
    """What weights are stored as, and computed in."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    precision: str


def _read(variant: str, given: Mapping[str, Any]) -> Mapping[str, Any]:
    precision = variant.lower() or "fp32"
    if precision not in ALLOWED:
        raise UsageError(
            f"--to onnx:{variant} is no precision that is known here.",
            hint=f"Choose onnx, or onnx:TYPE with one of {', '.join(ALLOWED)}.",
        )
    return OnnxOptions(precision=precision).model_dump(mode="json")


ONNX = Form(
    name="onnx",
    engine=ONNXRUNTIME_GENAI,
    module="remerge.engines.build_onnx",
    survey="remerge.engines.survey_onnx",
    read=_read,
    # Rounded once, from the merge.
    dtype=lambda options: "float32",
    title=lambda options: options["precision"],
    reads="checkpoint",
)
