"""Adapter tensors that do not fit the base, collected so that one message names them all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from remerge.errors import BadInput

_SHOWN = 4


@dataclass(frozen=True)
class Misfit:
    """One adapter tensor (or module, where no single tensor is to blame) and what is wrong.

    ``kind`` groups misfits by likely cause: ``empty``, ``missing`` (no such place in the model),
    ``unpaired``, ``shape``, ``rank``, ``vocabulary``, ``dtype`` (integers where floats belong, or
    the other way), ``unknown`` (a key that means nothing here) or ``layer`` (the configuration
    makes no sense for this kind of layer).
    """

    tensor: str
    problem: str
    kind: str


class DoesNotFit(BadInput):
    """The adapter does not fit the base; ``misfits`` lists every tensor concerned."""

    label = "does not fit"

    def __init__(
        self, misfits: tuple[Misfit, ...], *, what: str, why: str | None, hint: str | None
    ) -> None:
        self.misfits = misfits
        super().__init__(what, why=why, hint=hint)


@dataclass(frozen=True)
class Misfits:
    """Where the misfits of one adapter are collected."""

    found: list[Misfit] = field(default_factory=list[Misfit])

    def add(self, tensor: str, problem: str, kind: str) -> None:
        self.found.append(Misfit(tensor, problem, kind))

    def refuse_any(
        self, total: int, adapter: Mapping[str, Any], base: Mapping[str, Any], tensors: int
    ) -> None:
        """Raise `DoesNotFit` if anything was found among ``total`` places of the adapter."""
        if not self.found:
            return
        misfits = tuple(sorted(self.found, key=lambda misfit: misfit.tensor))
        shown = "; ".join(f"{m.tensor}: {m.problem}" for m in misfits[:_SHOWN])
        rest = len(misfits) - _SHOWN
        more = f"; and {rest} more" if rest > 0 else ""
        why, hint = _cause(misfits, total, adapter, base)
        raise DoesNotFit(
            misfits,
            what=f"The adapter ({tensors} tensors) does not fit the base: {shown}{more}.",
            why=why,
            hint=hint,
        )


def _cause(
    misfits: Sequence[Misfit], total: int, adapter: Mapping[str, Any], base: Mapping[str, Any]
) -> tuple[str, str]:
    kinds = {misfit.kind for misfit in misfits}
    trained_on = adapter.get("base_model_name_or_path") or "an unnamed model"
    architectures = base.get("architectures") or ["unknown architecture"]
    if "empty" in kinds:
        return (
            "DeepSpeed ZeRO-3 or FSDP shards were not gathered before the adapter was saved.",
            "Save it again with the parameters gathered (zero_to_fp32 or summon_full_params).",
        )
    if "dtype" in kinds:
        return (
            "The adapter was quantised after training, or the file was not written by PEFT.",
            "Save it again in 16 or 32 bits from the training run.",
        )
    if "vocabulary" in kinds:
        return (
            "Adapter and base have different vocabularies: tokens were added before training.",
            "Give the base with the resized vocabulary, or an adapter that saved its embeddings.",
        )
    if "rank" in kinds:
        return (
            "The ranks in adapter_config.json are not those of the tensors; rank_pattern keys that "
            "overlap are sorted when PEFT saves them, so another one may match first.",
            "Make each rank_pattern key match only the modules it is meant for.",
        )
    if "shape" in kinds:
        return (
            f"This is probably not the base the adapter was trained on ({trained_on}).",
            "Give that base with BASE.",
        )
    if "missing" in kinds and sum(misfit.kind == "missing" for misfit in misfits) >= total > 0:
        return (
            f"None of its places exist in a {architectures[0]}: the adapter was saved under "
            f"another prefix, or trained on another model ({trained_on}).",
            "Compare the names with `remerge inspect ADAPTER BASE`.",
        )
    if "unknown" in kinds:
        return (
            "The adapter holds tensors that its configuration does not explain; PEFT would drop "
            "them without a word.",
            "Check that adapter_config.json belongs to these weights.",
        )
    return (
        f"The file is incomplete, or belongs to another base than this one ({trained_on} was "
        "trained on).",
        "Compare the two with `remerge inspect ADAPTER BASE`.",
    )
