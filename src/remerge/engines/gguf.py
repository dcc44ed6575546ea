"""``--to gguf:TYPE``: one file for llama.cpp, quantised from the merge without a step between."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict

from remerge.engines.form import Form
from remerge.engines.llama_cpp import LLAMA_CPP
from remerge.errors import UsageError
from remerge.sources.dtypes import NAMED
from remerge.sources.ggml_types import FILE_TYPES, TYPES


class GgufOptions(BaseModel):
    """llama.cpp's name of the mixture of types, types for tensors whose names match (regular
    expression, type), the first of which decides, the dtype that is quantised, and the SHA-256 of
    an importance matrix."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    file_type: str
    tensor_types: tuple[tuple[str, str], ...] = ()
    via: str = "float32"
    imatrix: str | None = None
    allow_token_differences: bool = False


def _read(variant: str, given: Mapping[str, Any]) -> Mapping[str, Any]:
    """``Q4_K_M``, ``PATTERN=TYPE`` and a dtype as people write them."""
    asked = variant.upper()
    if asked not in FILE_TYPES:
        said = f"gguf:{variant}" if variant else "gguf"
        raise UsageError(
            f"--to {said} names no file type of llama.cpp that is known here.",
            hint=f"Choose gguf:TYPE with one of {', '.join(FILE_TYPES)}.",
        )
    found: list[tuple[str, str]] = []
    for text in given.get("tensor_type", ()):
        pattern, _, kind = text.rpartition("=")
        if not pattern or kind.upper() not in TYPES or not _is_pattern(pattern):
            raise UsageError(
                f"--tensor-type {text!r} is no PATTERN=TYPE.",
                hint=f"Write a regular expression and one of {', '.join(TYPES)}: attn_v=Q8_0.",
            )
        found.append((pattern, kind.upper()))
    if found and TYPES[FILE_TYPES[asked].default].block == 1:
        raise UsageError(
            f"--tensor-type means nothing with gguf:{asked}, which quantises nothing.",
            hint="Choose a quantised TYPE, such as gguf:Q8_0.",
        )
    return GgufOptions(
        file_type=asked,
        tensor_types=tuple(found),
        via=_via(given.get("via")),
        imatrix=given.get("imatrix"),
        allow_token_differences=bool(given.get("allow_token_differences")),
    ).model_dump(mode="json")


def _via(text: str | None) -> str:
    """The dtype between: the merge rounded once to float32, or to what a checkpoint of another
    dtype would hold."""
    if text is None:
        return "float32"
    if NAMED.get(text.lower()) not in ("BF16", "F16", "F32"):
        raise UsageError(f"--via {text!r} is no dtype.", hint="Choose bfloat16 or float16.")
    return text.lower()


def _is_pattern(text: str) -> bool:
    try:
        re.compile(text)
    except re.error:
        return False
    return True


GGUF = Form(
    name="gguf",
    engine=LLAMA_CPP,
    module="remerge.engines.convert_gguf",
    read=_read,
    takes=frozenset({"tensor_type", "via", "imatrix", "allow_token_differences"}),
    files=frozenset({"imatrix"}),
    dtype=lambda options: options["via"],
    title=lambda options: options["file_type"],
    bytes_per_weight=lambda options: (
        TYPES[FILE_TYPES[options["file_type"]].default].row_bytes(256) / 256
    ),
    suffix=".gguf",
)
