"""mergekit's files, where every model is the base with a LoRA: ``model: base+lora``.

The same method, weights and parameters give the same numbers, but for the roundings: mergekit
rounds each adapter's merge to the base's dtype first, and combines these. What a file asks for and
remerge cannot do is refused by name: slices, modules, gradients and filters, whole models.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from remerge.errors import Unsupported, UsageError
from remerge.merging.asked import parameters_of
from remerge.merging.methods.registry import METHODS
from remerge.merging.recipes.grammar import Fields, Grammar, RecipeFile

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


@dataclass(frozen=True)
class _Method:
    """A method there: its parameters, and the values of those that are not said."""

    each: tuple[str, ...] = ()
    shared: Mapping[str, object] = field(default_factory=dict[str, object])
    needs_weights: bool = False


def _arithmetic(normalize: bool, rescale: bool, *each: str) -> _Method:
    shared = {"normalize": normalize, "rescale": rescale, "lambda": 1.0}
    return _Method(("weight", *each), shared, needs_weights=True)


# Names and defaults of mergekit 0.1.5.
_METHODS: Mapping[str, _Method] = {
    "linear": _Method(("weight",), {"normalize": True}, needs_weights=True),
    "task_arithmetic": _arithmetic(False, False),
    "ties": _arithmetic(True, False, "density"),
    "dare_ties": _arithmetic(False, True, "density"),
    "dare_linear": _arithmetic(False, True, "density"),
    "breadcrumbs": _arithmetic(False, False, "density", "gamma"),
    "breadcrumbs_ties": _arithmetic(False, False, "density", "gamma"),
    "della": _arithmetic(True, True, "density", "epsilon"),
    "della_linear": _arithmetic(False, True, "density", "epsilon"),
    "sce": _Method(shared={"select_topk": 1.0}),
    "model_stock": _Method(shared={"filter_wise": False}),
    "slerp": _Method(shared={"t": None}),
    "nuslerp": _Method(
        ("weight",), {"nuslerp_row_wise": False, "nuslerp_flatten": True}, needs_weights=True
    ),
}
_PARAMETERS = frozenset(
    {"int8_mask", *(n for m in _METHODS.values() for n in (*m.each, *m.shared))}
)


@dataclass(frozen=True)
class _Entry:
    """A model of the list: the base, with an adapter or (None) without, and its parameters."""

    base: str
    adapter: str | None
    parameters: Mapping[str, Any]


def _read(fields: Fields) -> RecipeFile:
    _refuse(fields)
    fields.refuse_unknown(_KEYS)
    name = fields.text("merge_method")
    method = _METHODS.get(name or "")
    if method is None or (name != "task_arithmetic" and name not in METHODS):
        raise Unsupported(
            f"{fields.path}: remerge has no merge_method {name}.",
            hint=f"It has {', '.join(name for name in _METHODS if name in METHODS)}.",
        )
    shared = fields.parts("parameters")
    shared.refuse_unknown(_PARAMETERS)
    common = {key: _scalar(shared, key) for key in shared.values}
    entries = [_entry(fields, n, one) for n, one in enumerate(fields.items("models"), 1)]
    base = _base(fields, entries)
    base_model = fields.text("base_model")
    if name == "slerp" and base_model is not None and "+" in base_model:
        start = _Entry(*_reference(fields, base_model), {})
        entries = [start, *(one for one in entries if one.adapter != start.adapter)]
    adapters = [one for one in entries if one.adapter is not None]
    if not adapters:
        raise UsageError(f"{fields.path}: no model has an adapter.", hint="Write base+adapter.")
    read = _Read(fields, name or "", method, common, entries, base_model is not None)
    options: dict[str, Any] = read.options()
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
        notes=read.notes(),
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


@dataclass(frozen=True)
class _Read:
    """Numbers of a file, turned into those of our methods."""

    fields: Fields
    name: str
    method: _Method
    common: Mapping[str, Any]
    entries: list[_Entry]
    with_base: bool

    @property
    def adapters(self) -> list[_Entry]:
        return [one for one in self.entries if one.adapter is not None]

    def options(self) -> dict[str, Any]:
        """Method, weights and parameters."""
        if self.name == "linear":
            return self._linear()
        weights = [self._number("weight", one) for one in self.adapters]
        shared = {key: self.common.get(key, value) for key, value in self.method.shared.items()}
        if self.name == "task_arithmetic":
            total = sum(weights) if shared["normalize"] else 1.0
            factor = float(shared["lambda"]) / (total if abs(total) >= 1e-8 else 1.0)
            self._refuse_rescale(shared, {})
            return {"method": "sum", "weights": [weight * factor for weight in weights]}
        known = parameters_of(self.name)
        found: dict[str, Any] = {"method": self.name}
        if self.method.needs_weights:
            found["weights"] = weights
        if self.name == "nuslerp":
            self._check_nuslerp(shared)
            shared = {"row_wise": not shared["nuslerp_flatten"]}
        if shared.get("t", 0) is None:
            raise UsageError(f"{self.fields.path}: merge_method slerp needs the parameter t.")
        self._refuse_rescale(shared, known)
        if "rescale" in known:
            shared["rescale"] = "l1" if shared["rescale"] else "none"
        else:
            shared.pop("rescale", None)
        for key in self.method.each[1:]:
            said = [one.parameters.get(key, self.common.get(key)) for one in self.adapters]
            if any(value is not None for value in said):
                shared[key] = said
        found["parameters"] = shared
        return found

    def _linear(self) -> dict[str, Any]:
        """The mean of models, of which the base may be one."""
        plain = [one for one in self.entries if one.adapter is None]
        if self.with_base and not plain:
            # There too it is one of the models, though the list leaves it out.
            plain = [_Entry("", None, {})]
        weights = [self._number("weight", one) for one in self.adapters]
        others = sum(self._number("weight", one) for one in plain)
        total = sum(weights) + others
        if not self.common.get("normalize", True):
            if abs(total - 1.0) > 1e-9:
                raise Unsupported(
                    f"{self.fields.path}: weights that add up to {total:g} without normalize "
                    "scale the base itself.",
                    hint="Use merge_method task_arithmetic, or weights that add up to 1.",
                )
            return {"method": "sum", "weights": weights}
        if others == 0.0:
            return {"method": "linear", "weights": weights}
        if total == 0.0:
            raise UsageError(f"{self.fields.path}: the weights add up to zero.")
        return {"method": "sum", "weights": [weight / total for weight in weights]}

    def _number(self, key: str, one: _Entry) -> float:
        value = one.parameters.get(key, self.common.get(key))
        if value is None:
            if not self.method.needs_weights:
                return 1.0
            raise UsageError(
                f"{self.fields.path}: {one.adapter or 'base_model'} has no weight, which "
                f"merge_method {self.name} needs."
            )
        try:
            return float(value)
        except ValueError:
            raise UsageError(f"{self.fields.path}: {key} {value!r} is no number.") from None

    def _refuse_rescale(self, shared: Mapping[str, Any], known: Mapping[str, bool]) -> None:
        if shared.get("rescale") and "rescale" not in known:
            raise Unsupported(
                f"{self.fields.path}: rescale is not known of merge_method {self.name}.",
                hint="Leave it out, or use a dare or della method.",
            )

    def _check_nuslerp(self, shared: Mapping[str, Any]) -> None:
        if not self.with_base:
            raise Unsupported(
                f"{self.fields.path}: nuslerp without base_model turns whole weights.",
                hint="Name base_model; then it turns the adapters' changes.",
            )
        # What it calls row-wise takes columns; without that, and not flattened, it takes rows.
        if not shared["nuslerp_flatten"] and shared["nuslerp_row_wise"]:
            raise Unsupported(f"{self.fields.path}: nuslerp_row_wise turns columns; remerge rows.")

    def notes(self) -> tuple[str, ...]:
        """What was read and means nothing here."""
        said = {*self.common, *(key for one in self.entries for key in one.parameters)}
        idle = sorted(said - {*self.method.each, *self.method.shared})
        return (f"Without effect: {', '.join(idle)}.",) if idle else ()


def _entry(fields: Fields, number: int, value: object) -> _Entry:
    entry = fields.part(f"models[{number}]", value)
    entry.refuse_unknown({"model", "parameters"})
    model = entry.text("model")
    if model is None:
        raise UsageError(f"{fields.path}: models[{number}] names no model.")
    parameters = entry.parts("parameters")
    parameters.refuse_unknown(_PARAMETERS)
    base, adapter = _reference(fields, model)
    return _Entry(base, adapter, {key: _scalar(parameters, key) for key in parameters.values})


def _reference(fields: Fields, text: str) -> tuple[str, str | None]:
    """``base@revision+lora@revision`` in its two parts."""
    base, plus, adapter = (part.strip() for part in text.partition("+"))
    if not base or (plus and not adapter) or "+" in adapter:
        raise UsageError(f"{fields.path}: {text!r} is not written as base+adapter.")
    return base.rstrip("/"), adapter.rstrip("/") or None


def _base(fields: Fields, entries: list[_Entry]) -> str:
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


def _tokenizer(fields: Fields, base: str, adapters: list[_Entry]) -> str | None:
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
