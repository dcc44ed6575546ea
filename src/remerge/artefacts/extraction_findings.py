"""What an extraction says of what it found: figures of each tensor, notes, why there is nothing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from remerge.artefacts.extraction_manifest import TensorRecord
from remerge.errors import BadInput
from remerge.merging.comparing import Outcome
from remerge.merging.extraction import explained, relative_error
from remerge.merging.extraction_plan import ExtractionPlan, Parameter, some
from remerge.merging.extraction_whole import Whole

# Below this share, what the adapter gives is another model than the merged one.
_LITTLE = 0.9


def tensor_record(outcome: Outcome) -> TensorRecord:
    """The figures of one parameter's factors."""
    share = explained(outcome.explained_squares, outcome.squared_norm)
    return TensorRecord(
        name=outcome.parameter.name,
        shape=outcome.parameter.shape,
        rank=outcome.fits[0].rank,
        explained_energy=share,
        relative_error=relative_error(share),
        norm=outcome.squared_norm**0.5,
    )


def overall(records: Sequence[TensorRecord]) -> float:
    """The share of the whole change's squared norm that the factors explain."""
    total = sum(record.norm**2 for record in records)
    kept = sum(record.explained_energy * record.norm**2 for record in records)
    return kept / total if total else 1.0


def extraction_notes(
    plan: ExtractionPlan, factored: Sequence[Parameter], records: Sequence[TensorRecord]
) -> Iterable[str]:
    """What the user must know of the factors found."""
    if overall(records) < _LITTLE:
        yield (
            f"The factors explain {overall(records):.1%} of the change. Give a larger --rank; if "
            "that helps little, the model was trained in full, or BASE is not what it came from."
        )
    names = {parameter.name for parameter in factored}
    for name, twin in plan.tied.items():
        if twin in names:
            yield (
                f"{twin} and {name} are tied: their change acts in both once the adapter is "
                f"merged, and in {twin} alone while it is served unmerged."
            )
    if plan.absent:
        yield f"Only one of the two holds {some(plan.absent)}; the model does not use them."
    one, other = (
        {tensor.dtype for tensor in side.tensors.values()} for side in (plan.base, plan.merged)
    )
    if one != other:
        yield (
            f"The base is stored as {', '.join(sorted(one))}, the merged model as "
            f"{', '.join(sorted(other))}: rounding between them is part of what was found."
        )


def nothing_found(whole: Whole) -> BadInput:
    """Why there is no adapter to write."""
    if whole.left_out:
        return BadInput(
            f"Nothing changed but {some(whole.left_out)}, which have no low-rank factors.",
            hint="Leave out --no-modules-to-save to bring them whole.",
        )
    return BadInput(
        "The merged model equals the base: there is nothing to extract.",
        why="No parameter differs between the two.",
        hint="Check the order: remerge extract BASE MERGED -o ADAPTER.",
    )
