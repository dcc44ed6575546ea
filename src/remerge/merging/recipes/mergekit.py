"""mergekit's files, where every model is the base with a LoRA: ``model: base+lora``.

The same method, weights and parameters give the same numbers, but for the roundings: mergekit
rounds each adapter's merge to the base's dtype first, and combines these. What a file asks for and
remerge cannot do is refused by name: slices, modules, gradients and filters, whole models.
"""

from __future__ import annotations

from typing import Any, cast

from remerge.errors import Unsupported, UsageError
from remerge.merging.recipes.grammar import Fields, Grammar, RecipeFile
from remerge.merging.recipes.mergekit_methods import PARAMETERS, Entry, Numbers, find_method

_KEYS = frozenset(
    {
        "models",
        "slices",
        "modules",
        "merge_method",
        "base_model",
        "parameters",
        "dtype",
        "out_dtype",
        "tokenizer_source",
        "tokenizer",
        "chat_template",
    }
)


def _read(fields: Fields) -> RecipeFile:
    _refuse(fields)
    fields.refuse_unknown(_KEYS)
    name, method = find_method(fields)
    shared = fields.parts("parameters")
    shared.refuse_unknown(PARAMETERS)
    common = {key: _scalar(shared, key) for key in shared.values}
    entries = [_entry(fields, n, one) for n, one in enumerate(fields.items("models"), 1)]
    base = _base(fields, entries)
    base_model = fields.text("base_model")
    if name == "slerp" and base_model is not None and "+" in base_model:
        start = Entry(*_reference(fields, base_model), {})
        entries = [start, *(one for one in entries if one.adapter != start.adapter)]
    adapters = [one for one in entries if one.adapter is not None]
    if not adapters:
        raise UsageError(f"{fields.path}: no model has an adapter.", hint="Write base+adapter.")
    numbers = Numbers(fields, name, method, common, entries, base_model is not None)
    options: dict[str, Any] = numbers.options()
    dtype = fields.text("out_dtype") or fields.text("dtype")
    if dtype is not None:
        options["dtype"] = dtype
    tokenizer = _tokenizer(fields, base, adapters)
    if tokenizer is not None:
        options["tokenizer"] = tokenizer
    return RecipeFile(
        base=fields.place(base),
        adapters=tuple(fields.place(one.adapter) for one in adapters if one.adapter is not None),
        options=options,
        notes=numbers.notes(),
    )


def _refuse(fields: Fields) -> None:
    """What asks for another kind of merge."""
    for key in ("slices", "modules"):
        if key in fields.values:
            raise Unsupported(
                f"{fields.path}: {key} takes layers from several models; remerge merges adapters "
                "into one base.",
                hint="List whole models below models: base+adapter.",
            )
    if "chat_template" in fields.values:
        raise Unsupported(
            f"{fields.path}: chat_template cannot be set; side files are carried as they are.",
            hint="Leave it out.",
        )


def _entry(fields: Fields, number: int, value: object) -> Entry:
    entry = fields.part(f"models[{number}]", value)
    entry.refuse_unknown({"model", "parameters"})
    model = entry.text("model")
    if model is None:
        raise UsageError(f"{fields.path}: models[{number}] names no model.")
    parameters = entry.parts("parameters")
    parameters.refuse_unknown(PARAMETERS)
    base, adapter = _reference(fields, model)
    return Entry(base, adapter, {key: _scalar(parameters, key) for key in parameters.values})


def _reference(fields: Fields, text: str) -> tuple[str, str | None]:
    """``base@revision+lora@revision`` in its two parts."""
    base, plus, adapter = (part.strip() for part in text.partition("+"))
    if not base or (plus and not adapter) or "+" in adapter:
        raise UsageError(f"{fields.path}: {text!r} is not written as base+adapter.")
    return base.rstrip("/"), adapter.rstrip("/") or None


def _base(fields: Fields, entries: list[Entry]) -> str:
    """The one base of all models."""
    bases = [one.base for one in entries]
    stated = fields.text("base_model")
    if stated is not None:
        base, adapter = _reference(fields, stated)
        if adapter is not None and fields.text("merge_method") != "slerp":
            raise Unsupported(
                f"{fields.path}: base_model {stated} has an adapter itself.",
                hint="Merge that one first: remerge merge BASE ADAPTER -o OUT.",
            )
        bases.insert(0, base)
    if not bases:
        raise UsageError(f"{fields.path}: models is empty.")
    for one in entries:
        if one.base != bases[0]:
            whole = one.adapter is None
            raise Unsupported(
                f"{fields.path}: {one.base} is another model than {bases[0]}; remerge merges "
                "adapters into one base.",
                hint=f"Find its adapter first: remerge extract {bases[0]} {one.base} --rank 16 "
                "-o ADAPTER."
                if whole
                else None,
            )
    return bases[0]


def _scalar(fields: Fields, key: str) -> Any:
    """A value that is the same for all layers."""
    value: Any = fields.values[key]
    if isinstance(value, dict):
        value = [value]
    if isinstance(value, list):
        first: Any = cast("list[Any]", value)[0] if value else None
        if isinstance(first, dict) and cast("dict[str, Any]", first).get("filter") in (None, "*"):
            return _scalar(Fields({key: first.get("value")}, fields.path, fields.where), key)  # pyright: ignore[reportUnknownArgumentType, reportUnknownMemberType]
        alike = all(other == first for other in cast("list[Any]", value))
        if not value or isinstance(first, dict | list) or not alike:
            raise Unsupported(
                f"{fields.path}: {fields.where}{key} differs from layer to layer (a gradient or a "
                "filter); remerge has one number for each adapter.",
                hint="Give one number.",
            )
        value = first
    if not isinstance(value, int | float | str):
        raise fields.wrong(key, "is no number")
    return value


def _tokenizer(fields: Fields, base: str, adapters: list[Entry]) -> str | None:
    """Whose tokenizer to take: base, or an adapter by its number; None where nothing is said."""
    source = fields.text("tokenizer_source")
    if "tokenizer" in fields.values:
        tokenizer = fields.parts("tokenizer")
        for key in ("tokens", "pad_to_multiple_of"):
            if key in tokenizer.values:
                raise Unsupported(f"{fields.path}: tokenizer: {key} builds a new vocabulary.")
        tokenizer.refuse_unknown({"source"})
        source = tokenizer.text("source") or "union"
    if source is None or source == "base":
        return source
    if source == "union":
        raise Unsupported(
            f"{fields.path}: a union of tokenizers builds a new vocabulary.",
            hint="Take one: tokenizer_source: base, or one of the models.",
        )
    named = _reference(fields, source)
    if named == (base, None):
        return "base"
    for number, one in enumerate(adapters, 1):
        if named == (one.base, one.adapter):
            return str(number)
    raise UsageError(f"{fields.path}: tokenizer_source {source} is none of the models.")


MERGEKIT = Grammar("mergekit", frozenset({"models", "slices", "modules"}), _KEYS, _read)
