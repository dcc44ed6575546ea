"""What the user asked for, normalised: the part of a merge that is neither base nor adapter."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from remerge.errors import UsageError
from remerge.sources.dtypes import NAMED

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}


class Recipe(BaseModel):
    """Everything that decides the output's bytes besides the inputs' bytes.

    Paths and resources (threads, memory, device) are no part of it: they change no byte.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    method: Literal["sum"] = "sum"
    dtype: Literal["keep", "BF16", "F16", "F32"] = "keep"
    format: Literal["safetensors"] = "safetensors"
    max_shard_size: int | None = Field(default=None, gt=0)
    tokenizer: Literal["auto", "base", "adapter"] = "auto"
    copy_code: bool = False


def make_recipe(
    dtype: str, max_shard_size: int | str | None, tokenizer: str, copy_code: bool
) -> Recipe:
    """A recipe from what people write; raises `UsageError`."""
    if tokenizer not in ("auto", "base", "adapter"):
        raise UsageError(f"Unknown tokenizer source {tokenizer!r}.", hint="Choose base or adapter.")
    limit = None if max_shard_size is None else parse_size(max_shard_size, "--max-shard-size")
    return Recipe(
        dtype=parse_dtype(dtype),
        max_shard_size=limit,
        tokenizer=tokenizer,
        copy_code=copy_code,
    )


def parse_dtype(text: str) -> Literal["keep", "BF16", "F16", "F32"]:
    """``--dtype`` as people write it; raises `UsageError`."""
    if text == "keep":
        return "keep"
    found = NAMED.get(text.lower().removeprefix("torch."))
    if found in ("BF16", "F16", "F32"):
        return found
    raise UsageError(f"Unknown dtype {text!r}.", hint=f"Choose keep, {', '.join(NAMED)}.")


def parse_size(text: str | int, option: str) -> int:
    """Bytes from ``5GB``, ``512MiB``, ``1G`` or a plain number; raises `UsageError`."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(i?)B?", str(text).strip(), re.IGNORECASE)
    if match is None:
        raise UsageError(
            f"{option} {text!r} is not a size.", hint="Write it like 1GiB, 512MiB or 5GB."
        )
    number, unit, binary = match.groups()
    power = _UNITS[unit.upper()]
    if binary:
        power = 2 ** (10 * list(_UNITS).index(unit.upper()))
    size = int(float(number) * power)
    if size <= 0:
        raise UsageError(f"{option} {text!r} is no size to work with.")
    return size
