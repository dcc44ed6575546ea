"""What changed between two checkpoints but has no low-rank factors: norms, biases, new tokens.

It goes into the adapter whole, or is left out, or refuses the extraction; the user is told.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from remerge.errors import BadInput
from remerge.merging.comparing import Comparison
from remerge.merging.extraction_plan import ExtractionPlan, Parameter, some


@dataclass(frozen=True)
class Whole:
    """Parameters that go into the adapter as they are: all of each module to save, and single
    ones. ``left_out`` changed too, but are not in the adapter."""

    modules: tuple[str, ...]
    parameters: tuple[Parameter, ...]
    left_out: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def loose(self) -> tuple[str, ...]:
        return tuple(p.name for p in self.parameters if p.module not in self.modules)


def kept_whole(
    comparison: Comparison, changed: Sequence[Parameter], *, save: bool, strict: bool
) -> Whole:
    """What becomes of the parameters without factors that changed, and of everything else that
    no factors can say: an untied head, tensors that the model does not use.

    Raises `BadInput` for any of it with ``strict``.
    """
    plan = comparison.plan
    untied = [_untied(plan, name) for name in comparison.untied()]
    outside = tuple(comparison.moved_outside())
    names = [parameter.name for parameter in (*changed, *untied)]
    if strict and (names or outside):
        raise BadInput(
            f"{len(names) + len(outside)} tensors changed that low-rank factors cannot say: "
            f"{some([*names, *outside])}.",
            hint="Without --strict they go into the adapter whole (modules_to_save).",
        )
    notes: list[str] = []
    if outside:
        notes.append(
            f"Left out, because no part of the model uses them as an adapter could change them: "
            f"{some(outside)}."
        )
    if not save:
        if names:
            notes.append(
                f"Left out, as asked: {some(names)}. They changed, but have no low-rank factors."
            )
        return Whole((), (), (*names, *outside), tuple(notes))
    modules = {p.module for p in (*changed, *untied) if p.saved}
    inside = [p for p in plan.parameters if p.module in modules]
    kept = {p.name: p for p in (*inside, *changed, *untied)}
    whole = Whole(tuple(sorted(modules)), tuple(kept.values()), outside, ())
    notes += _whole_notes(whole, [p for p in changed if p.resized])
    return replace(whole, notes=tuple(notes))


def _whole_notes(whole: Whole, resized: Sequence[Parameter]) -> Iterable[str]:
    if whole.modules:
        yield (
            "Saved whole, because low-rank factors cannot say their change (modules_to_save): "
            f"{some(whole.modules)}."
        )
    if whole.loose:
        yield f"Saved whole, beside the factors: {some(whole.loose)}."
    if resized:
        grown = ", ".join(f"{p.name} {p.shape[0]} -> {p.merged_shape[0]}" for p in resized)
        yield (
            f"The vocabulary has another size ({grown}). remerge merge resizes the base by itself; "
            "in PEFT call resize_token_embeddings first. The merged model's tokenizer, if it has "
            "one, is copied beside the adapter."
        )


def _untied(plan: ExtractionPlan, name: str) -> Parameter:
    shape = plan.merged.names.shape(name) or ()
    layer = plan.base.names.layer(name.rpartition(".")[0])
    return Parameter(
        name,
        "whole",
        "" if layer is None else layer.kind,
        plan.base.names.shape(name) or (),
        shape,
        plan.base.names.regions(name),
        plan.merged.names.regions(name),
        saved=True,
    )
