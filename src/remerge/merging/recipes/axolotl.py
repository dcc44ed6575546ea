"""axolotl's training files, as ``axolotl merge-lora`` reads them.

The adapter lies in ``lora_model_dir``, or where training put it: in ``output_dir``. The merge goes
to ``output_dir/merged``; inside the adapter's own directory remerge does not write.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from remerge.errors import Unsupported
from remerge.merging.recipes.grammar import Fields, Grammar, RecipeFile, some

_KEYS = frozenset(
    {
        "base_model",
        "revision_of_model",
        "lora_model_dir",
        "output_dir",
        "adapter",
        "load_in_4bit",
        "merge_method",
    }
)
# Stands in most files beside load_in_4bit, and is no misspelling of it.
_SILENT = frozenset({"load_in_8bit"})


def _read(fields: Fields) -> RecipeFile:
    kind = fields.text("adapter")
    if kind == "mixlora":
        raise Unsupported(
            f"{fields.path}: adapter mixlora weighs its parts anew for every token; no weight can "
            "say that."
        )
    output = fields.text("output_dir")
    adapter = fields.text("lora_model_dir") or output
    notes: list[str] = []
    options: dict[str, Any] = {}
    trained_in_nf4 = kind == "qlora" or fields.flag("load_in_4bit")
    if trained_in_nf4 and fields.text("merge_method") != "legacy":
        options["simulate"] = "nf4"
        notes.append(
            "Trained on a base in NF4, so the base is rounded through NF4 first, as axolotl does; "
            "--simulate none leaves that out."
        )
    ignored = fields.left_out(_KEYS | _SILENT)
    if ignored:
        notes.append(f"Not needed to merge: {some(ignored)}.")
    base = fields.text("base_model")
    revision = fields.text("revision_of_model")
    if base is not None:
        base = fields.place(base)
        if revision is not None and not fields.is_there(base):
            base = f"{base}@{revision}"
    return RecipeFile(
        base=base,
        adapters=() if adapter is None else (fields.place(adapter),),
        output=None if output in (None, adapter) else str(Path(output) / "merged"),
        options=options,
        notes=tuple(notes),
    )


AXOLOTL = Grammar("axolotl", frozenset({"base_model", "lora_model_dir"}), _KEYS, _read)
