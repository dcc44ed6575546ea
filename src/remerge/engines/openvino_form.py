"""``--to openvino``: a directory for OpenVINO, exported by optimum-intel and compared with the
merge."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict

from remerge.engines.form import Form
from remerge.engines.openvino import OPENVINO
from remerge.errors import UsageError

# How far logits may be from the merge's, relative to their size.
ALLOWED: Mapping[str, float] = {"fp32": 1e-3, "fp16": 2e-2, "int8": 0.1, "int4": 0.5}


class OpenvinoOptions(BaseModel):
    """What weights are stored as."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    precision: str


def _read(variant: str, given: Mapping[str, Any]) -> Mapping[str, Any]:
    precision = variant.lower() or "fp16"
    if precision not in ALLOWED:
        raise UsageError(
            f"--to openvino:{variant} is no precision that is known here.",
            hint=f"Choose openvino, or openvino:TYPE with one of {', '.join(ALLOWED)}.",
        )
    return OpenvinoOptions(precision=precision).model_dump(mode="json")


OPENVINO_FORM = Form(
    name="openvino",
    engine=OPENVINO,
    module="remerge.engines.export_openvino",
    read=_read,
    # Rounded once, from the merge.
    dtype=lambda options: "float32",
    title=lambda options: options["precision"],
    reads="checkpoint",
)
