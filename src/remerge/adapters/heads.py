"""A task's head on a base that was not saved with one: the output becomes another model class.

PEFT trains SEQ_CLS, TOKEN_CLS and QUESTION_ANS adapters on classes with a head of their own, which
the adapter brings as a module to save; the base's head for generating text has no place there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from remerge.adapters.edits import Context
from remerge.adapters.saved import TASK_HEADS
from remerge.adapters.tying import Slot
from remerge.errors import Unsupported

# Top-level modules that only one kind of class builds (transformers' modeling files).
_HEADS = frozenset(
    {
        "lm_head",
        "embed_out",
        "cls",
        "mlm_head",
        "predictions",
        "pred_layer",
        "lm_predictions",
        "vocab_projector",
        "vocab_transform",
        "vocab_layer_norm",
        "generator_predictions",
        "generator_lm_head",
        "discriminator_predictions",
        "score",
        "classifier",
        "qa_outputs",
    }
)


@dataclass(frozen=True)
class HeadChange:
    """What a task's head means for config.json, and which base tensors its class leaves out."""

    config: Mapping[str, object]
    dropped: frozenset[str]
    notes: tuple[str, ...]


def head_change(context: Context, slots: Sequence[Slot]) -> HeadChange:
    """What the adapter's task changes; nothing for a base that already has the task's head.

    Raises `Unsupported` where the class of the output cannot be named.
    """
    heads = TASK_HEADS.get(context.config.task_type or "", ())
    brought = [s for s in slots if any(part in heads for part in s.parameter.split(".")[:-1])]
    config = dict(_labels(context, brought))
    created = [slot for slot in brought if slot.created is not None]
    if not created:
        return HeadChange(config, frozenset(), ())
    # Only names that were asked of a model know its class.
    architecture = getattr(context.names, "architecture", None)
    if not isinstance(architecture, str):
        raise Unsupported(
            f"The adapter brings {created[0].parameter} for the task {context.config.task_type}, "
            "which the base does not have.",
            why="Without its model class the output could not be loaded.",
            hint="Save the base with the task's class first.",
        )
    config["architectures"] = [architecture]
    built = {slot.parameter.partition(".")[0] for slot in brought}
    dropped = frozenset(
        tensor
        for tensor in context.base.tensors
        if (top := tensor.partition(".")[0]) in _HEADS and top not in built
    )
    notes = [f"The output is a {architecture}: the adapter brings its head."]
    if dropped:
        notes.append(f"Left out, because that class has no place for it: {', '.join(dropped)}.")
    return HeadChange(config, dropped, tuple(notes))


def _labels(context: Context, brought: Sequence[Slot]) -> Mapping[str, object]:
    """id2label and label2id for a head with another number of labels than config.json says."""
    rows = {slot.shape[0] for slot in brought if _is_last(slot, brought)}
    if context.config.task_type not in ("SEQ_CLS", "TOKEN_CLS") or len(rows) != 1:
        return {}
    count = rows.pop()
    config: Mapping[str, Any] = context.base.config
    known = config.get("id2label")
    # transformers assumes two labels where config.json is silent.
    told = config.get("num_labels", 2)
    if isinstance(known, dict):
        told = len(cast("dict[str, Any]", known))
    if told == count:
        return {}
    names = [f"LABEL_{label}" for label in range(count)]
    changed: dict[str, object] = {
        "id2label": {str(label): name for label, name in enumerate(names)},
        "label2id": {name: label for label, name in enumerate(names)},
    }
    if "num_labels" in config:
        changed["num_labels"] = count
    return changed


def _is_last(slot: Slot, brought: Sequence[Slot]) -> bool:
    """Whether this is the weight that gives one number per label: the head's only weight, or its
    ``out_proj``."""
    leaf = slot.parameter.split(".")[-2:]
    weights = [other for other in brought if other.parameter.endswith(".weight")]
    return leaf[-1] == "weight" and (len(weights) == 1 or leaf[0] == "out_proj")
