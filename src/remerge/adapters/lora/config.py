"""adapter_config.json of a LoRA adapter, checked: its values come from strangers."""

from __future__ import annotations

import math
from functools import cached_property
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from remerge.adapters.config import Number, PeftConfig, Rank
from remerge.adapters.edits import Reading
from remerge.adapters.patterns import Patterns


class BlockDiagonal(BaseModel):
    """``use_bdlora``: which factors are stored as diagonal blocks (PEFT lora/config.py)."""

    model_config = ConfigDict(strict=True, frozen=True)

    target_modules_bd_a: list[str] | None = None
    target_modules_bd_b: list[str] | None = None
    nblocks: Annotated[int, Field(gt=0)] = 1
    match_strict: bool = True


class LoraConfig(PeftConfig):
    """The fields that decide a merge; defaults are PEFT's (lora/config.py)."""

    r: Rank = 8
    lora_alpha: Number = 8
    use_rslora: bool = False
    rank_pattern: dict[str, Rank] | None = None
    alpha_pattern: dict[str, Number] | None = None
    target_parameters: list[str] | None = None
    lora_bias: bool = False
    use_dora: bool = False
    init_lora_weights: bool | str | None = True
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

    def check(self) -> None:
        """Raise `BadInput` for a pattern key that is no usable regular expression."""
        self._ranks.check()
        self._alphas.check()


Context = Reading[LoraConfig]
