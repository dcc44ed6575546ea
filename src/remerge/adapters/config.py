"""adapter_config.json: the fields that all families of adapters share, checked.

Its values come from strangers; a family's own fields are those of its subclass.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from remerge.errors import BadInput

Rank = Annotated[int, Field(gt=0, le=2**20)]
Number = Annotated[float, Field(allow_inf_nan=False)]
Token = Annotated[int, Field(ge=0)]


class PeftConfig(BaseModel):
    """What any adapter may bring beside its own kind of change; defaults are PEFT's (config.py)."""

    model_config = ConfigDict(strict=True, frozen=True, extra="allow")

    modules_to_save: list[str] | None = None
    bias: Annotated[str, Field(pattern=r"^(none|all|\w+_only)$")] = "none"
    trainable_token_indices: list[Token] | dict[str, list[Token]] | None = None
    ensure_weight_tying: bool = False
    task_type: str | None = None

    def check(self) -> None:
        """Raise `BadInput` for values that no type can tell to be wrong."""


Config = TypeVar("Config", bound=PeftConfig)
Config_co = TypeVar("Config_co", bound=PeftConfig, covariant=True)


def read_config(kind: type[Config], config: Mapping[str, Any]) -> Config:
    """Check an adapter's configuration as that of its family.

    Raises `BadInput` naming the field, the value found and what was expected.
    """
    try:
        checked = kind.model_validate(dict(config))
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise BadInput(
            f"adapter_config.json: {field} is {str(first['input'])[:80]!r}: {first['msg']}.",
            hint="Restore the adapter_config.json that the training run wrote.",
        ) from error
    checked.check()
    return checked
