"""LLaMA-Factory's files for ``llamafactory-cli export``; those for training are understood too.

It merges adapters one after the other, each into the rounded result of those before: `sequential`.
"""

from __future__ import annotations

from typing import Any

from remerge.errors import Unsupported
from remerge.merging.recipes.grammar import Fields, Grammar, RecipeFile, some

_MARKS = frozenset({"model_name_or_path", "adapter_name_or_path", "export_dir"})
_KEYS = _MARKS | {
    "model_revision",
    "adapter_folder",
    "export_size",
    "export_quantization_bit",
    "infer_dtype",
    "finetuning_type",
}
# What every export file says, and what means nothing here.
_SILENT = frozenset(
    {"template", "trust_remote_code", "export_device", "export_legacy_format", "stage"}
)


def _read(fields: Fields) -> RecipeFile:
    kind = fields.text("finetuning_type")
    if kind not in (None, "lora", "oft"):
        raise Unsupported(
            f"{fields.path}: finetuning_type {kind} trains the whole model: nothing is to merge."
        )
    if "export_quantization_bit" in fields.values:
        raise Unsupported(
            f"{fields.path}: export_quantization_bit asks for GPTQ, which remerge does not do.",
            hint="Leave it out, and quantise the merged checkpoint.",
        )
    adapters = tuple(_named(fields, text) for text in _listed(fields))
    options: dict[str, Any] = {}
    notes: list[str] = []
    if len(adapters) > 1:
        options["method"] = "sequential"
        notes.append(
            "LLaMA-Factory merges adapters one after the other: --method sequential. --method sum "
            "rounds once."
        )
    dtype = fields.text("infer_dtype")
    if dtype not in (None, "auto"):
        options["dtype"] = dtype
    if "export_size" in fields.values:
        options["max_shard_size"] = f"{fields.values['export_size']}GB"
    ignored = [key for key in fields.left_out(_KEYS | _SILENT) if key not in _SILENT]
    if ignored:
        notes.append(f"Not needed to merge: {some(ignored)}.")
    base = fields.text("model_name_or_path")
    return RecipeFile(
        base=None if base is None else _revised(fields, base),
        adapters=adapters,
        output=fields.text("export_dir"),
        options=options,
        notes=tuple(notes),
    )


def _listed(fields: Fields) -> list[str]:
    """Adapters in a list, or in one text with commas between."""
    return [
        part.strip()
        for text in fields.texts("adapter_name_or_path")
        for part in text.split(",")
        if part.strip()
    ]


def _named(fields: Fields, text: str) -> str:
    folder = fields.text("adapter_folder")
    return _revised(fields, text) + (f":{folder}" if folder else "")


def _revised(fields: Fields, text: str) -> str:
    """A directory, or a repository at the revision that the file asks for."""
    revision = fields.text("model_revision")
    place = fields.place(text)
    if revision in (None, "main") or fields.is_there(place):
        return place
    return f"{place}@{revision}"


LLAMA_FACTORY = Grammar("LLaMA-Factory", _MARKS, _KEYS, _read)
