"""adapter_config.json of a LoRA adapter, checked: its values come from strangers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cached_property
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from remerge.adapters.lora.patterns import Patterns
from remerge.errors import BadInput

Rank = Annotated[int, Field(gt=0, le=2**20)]
Alpha = Annotated[float, Field(allow_inf_nan=False)]
Token = Annotated[int, Field(ge=0)]


class BlockDiagonal(BaseModel):
    """``use_bdlora``: which factors are stored as diagonal blocks (PEFT lora/config.py)."""

    model_config = ConfigDict(strict=True, frozen=True)

    target_modules_bd_a: list[str] | None = None
    target_modules_bd_b: list[str] | None = None
    nblocks: Annotated[int, Field(gt=0)] = 1
    match_strict: bool = True


class LoraConfig(BaseModel):
    """The fields that decide a merge; defaults are PEFT's (lora/config.py)."""

    model_config = ConfigDict(strict=True, frozen=True, extra="allow")

    r: Rank = 8
    lora_alpha: Alpha = 8
    use_rslora: bool = False
    rank_pattern: dict[str, Rank] | None = None
    alpha_pattern: dict[str, Alpha] | None = None
    target_parameters: list[str] | None = None
    modules_to_save: list[str] | None = None
    bias: Literal["none", "all", "lora_only"] = "none"
    lora_bias: bool = False
    use_dora: bool = False
    init_lora_weights: bool | str | None = True
    trainable_token_indices: list[Token] | dict[str, list[Token]] | None = None
    ensure_weight_tying: bool = False
    task_type: str | None = None
    use_bdlora: BlockDiagonal | None = None
    kasa_config: dict[str, Any] | None = None
    velora_config: dict[str, Any] | None = None
    monteclora_config: dict[str, Any] | None = None

    @cached_property
    def _ranks(self) -> Patterns[int]:
        return Patterns("rank_pattern", self.rank_pattern or {})

    @cached_property
    def _alphas(self) -> Patterns[float]:
        return Patterns("alpha_pattern", self.alpha_pattern or {})

    @property
    def init(self) -> str:
        """``init_lora_weights`` in lower case; '' for true and false."""
        return self.init_lora_weights.lower() if isinstance(self.init_lora_weights, str) else ""

    def rank(self, module: str) -> int:
        """The rank of a module (or parameter) by its path."""
        return self._ranks.value(module, self.r)

    def scale(self, module: str) -> float:
        """alpha/r, with rank-stabilised LoRA alpha/sqrt(r) (arXiv:2312.03732), per module."""
        alpha, rank = self._alphas.value(module, self.lora_alpha), self.rank(module)
        return alpha / math.sqrt(rank) if self.use_rslora else alpha / rank

    def check_patterns(self) -> None:
        """Raise `BadInput` for a pattern key that is no usable regular expression."""
        self._ranks.check()
        self._alphas.check()


def read_config(config: Mapping[str, Any]) -> LoraConfig:
    """Check a LoRA adapter's configuration.

    Raises `BadInput` naming the field, the value found and what was expected.
    """
    try:
        checked = LoraConfig.model_validate(dict(config))
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise BadInput(
            f"adapter_config.json: {field} is {str(first['input'])[:80]!r}: {first['msg']}.",
            hint="Restore the adapter_config.json that the training run wrote.",
        ) from error
    checked.check_patterns()
    return checked
