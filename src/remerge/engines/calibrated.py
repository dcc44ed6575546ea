"""``--to gptq``, ``awq`` and ``gptqmodel``: checkpoints of few bits, calibrated on samples.

The first two are llm-compressor's, in compressed-tensors' packed format; the third is GPTQ's own
layout. GPTQ rounds column by column and moves what is lost to the columns that are left; AWQ scales
channels before it rounds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from remerge.engines.form import Form
from remerge.engines.gptqmodel import GPTQMODEL
from remerge.engines.llm_compressor import LLM_COMPRESSOR
from remerge.errors import UsageError

# How far logits may be from the merge's, relative to their size: what another model computes is
# about 1 away.
ALLOWED = 0.5
# By what follows the colon: bits, and whether zero is always one of the values.
_SCHEMES: Mapping[str, tuple[int, bool]] = {
    "W4A16": (4, True),
    "W4A16_ASYM": (4, False),
    "W8A16": (8, True),
}
CALIBRATION = frozenset({"calibration", "calibration_samples", "calibration_length"})


class CalibrationOptions(BaseModel):
    """Which samples an engine sees: the digest of the user's file (None: remerge's own), how many
    of them, and how many tokens of each."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    calibration: str | None = None
    samples: int = Field(default=128, ge=1)
    length: int = Field(default=512, ge=8)


class CompressionOptions(CalibrationOptions):
    """GPTQ or AWQ, bits of a weight, and how many columns share a scale."""

    method: str
    bits: int
    symmetric: bool
    group_size: int = Field(default=128, ge=16)


def calibration_words(given: Mapping[str, Any]) -> dict[str, Any]:
    """Options of calibration by the names of their fields."""
    named = {"calibration_samples": "samples", "calibration_length": "length"}
    return {named.get(name, name): value for name, value in given.items()}


def flag_error(error: ValidationError, to: str) -> UsageError:
    """A number that is out of bounds, in the words of the command line."""
    first: Any = error.errors()[0]
    field = str(first["loc"][0])
    flag = {"samples": "calibration-samples", "length": "calibration-length"}.get(field, field)
    return UsageError(f"--{flag.replace('_', '-')} with --to {to}: {first['msg'].lower()}.")


def _reader(method: str, usual: str) -> Callable[[str, Mapping[str, Any]], Mapping[str, Any]]:
    def read(variant: str, given: Mapping[str, Any]) -> Mapping[str, Any]:
        scheme = variant.upper() or usual
        if scheme not in _SCHEMES:
            raise UsageError(
                f"--to {method}:{variant} is no scheme that is known here.",
                hint=f"Choose {method}, or {method}:SCHEME with one of {', '.join(_SCHEMES)}.",
            )
        bits, symmetric = _SCHEMES[scheme]
        words: dict[str, Any] = {"method": method, "bits": bits, "symmetric": symmetric}
        try:
            options = CompressionOptions.model_validate({**words, **calibration_words(given)})
        except ValidationError as error:
            raise flag_error(error, method) from error
        return options.model_dump(mode="json")

    return read


def _form(method: str, usual: str) -> Form:
    return Form(
        name=method,
        engine=LLM_COMPRESSOR,
        module="remerge.engines.compress",
        survey="remerge.engines.survey_compression",
        read=_reader(method, usual),
        takes=CALIBRATION | {"group_size"},
        files=frozenset({"calibration"}),
        title=lambda options: f"{method}-w{options['bits']}",
        reads="checkpoint",
        rederivable=False,
    )


class NativeOptions(CalibrationOptions):
    """Bits of a weight, and how many columns share a scale."""

    bits: int = 4
    group_size: int = Field(default=128, ge=16)


def _read_native(variant: str, given: Mapping[str, Any]) -> Mapping[str, Any]:
    if variant.lower() not in ("", "int4", "int8"):
        raise UsageError(
            f"--to gptqmodel:{variant} is no width that is known here.",
            hint="Choose gptqmodel, gptqmodel:int4 or gptqmodel:int8.",
        )
    words = {"bits": 8 if variant.lower() == "int8" else 4, **calibration_words(given)}
    try:
        return NativeOptions.model_validate(words).model_dump(mode="json")
    except ValidationError as error:
        raise flag_error(error, "gptqmodel") from error


GPTQMODEL_FORM = Form(
    name="gptqmodel",
    engine=GPTQMODEL,
    module="remerge.engines.quantise_natively",
    survey="remerge.engines.survey_compression",
    read=_read_native,
    takes=CALIBRATION | {"group_size"},
    files=frozenset({"calibration"}),
    title=lambda options: f"gptq-int{options['bits']}",
    reads="checkpoint",
    rederivable=False,
)
GPTQ = _form("gptq", "W4A16")
AWQ = _form("awq", "W4A16_ASYM")
