"""mergekit's methods: their parameters and defaults there, and what these are in ours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from remerge.errors import Unsupported, UsageError
from remerge.merging.asked import parameters_of
from remerge.merging.recipes.grammar import Fields


@dataclass(frozen=True)
class MergekitMethod:
    """A method there: its parameters, and the values of those that are not said."""

    each: tuple[str, ...] = ()
    shared: Mapping[str, object] = field(default_factory=dict[str, object])
    needs_weights: bool = False


def _arithmetic(normalize: bool, rescale: bool, *each: str) -> MergekitMethod:
    shared = {"normalize": normalize, "rescale": rescale, "lambda": 1.0}
    return MergekitMethod(("weight", *each), shared, needs_weights=True)


# Names and defaults of mergekit 0.1.5.
_METHODS: Mapping[str, MergekitMethod] = {
    "linear": MergekitMethod(("weight",), {"normalize": True}, needs_weights=True),
    "task_arithmetic": _arithmetic(False, False),
    "ties": _arithmetic(True, False, "density"),
    "dare_ties": _arithmetic(False, True, "density"),
    "dare_linear": _arithmetic(False, True, "density"),
    "breadcrumbs": _arithmetic(False, False, "density", "gamma"),
    "breadcrumbs_ties": _arithmetic(False, False, "density", "gamma"),
    "della": _arithmetic(True, True, "density", "epsilon"),
    "della_linear": _arithmetic(False, True, "density", "epsilon"),
    "sce": MergekitMethod(shared={"select_topk": 1.0}),
    "model_stock": MergekitMethod(shared={"filter_wise": False}),
    "slerp": MergekitMethod(shared={"t": None}),
    "nuslerp": MergekitMethod(
        ("weight",), {"nuslerp_row_wise": False, "nuslerp_flatten": True}, needs_weights=True
    ),
}
PARAMETERS = frozenset({"int8_mask", *(n for m in _METHODS.values() for n in (*m.each, *m.shared))})


@dataclass(frozen=True)
class Entry:
    """A model of the list: the base, with an adapter or (None) without, and its parameters."""

    base: str
    adapter: str | None
    parameters: Mapping[str, Any]


def find_method(fields: Fields) -> tuple[str, MergekitMethod]:
    """The method that a file names; raises `Unsupported`."""
    name = fields.text("merge_method") or ""
    method = _METHODS.get(name)
    if method is None:
        raise Unsupported(
            f"{fields.path}: remerge has no merge_method {name}.",
            hint=f"It has {', '.join(_METHODS)}.",
        )
    return name, method


@dataclass(frozen=True)
class Numbers:
    """Numbers of a file, turned into those of our methods."""

    fields: Fields
    name: str
    method: MergekitMethod
    common: Mapping[str, Any]
    entries: Sequence[Entry]
    with_base: bool

    @property
    def adapters(self) -> list[Entry]:
        return [one for one in self.entries if one.adapter is not None]

    def options(self) -> dict[str, Any]:
        """Method, weights and parameters."""
        if self.name == "linear":
            return self._linear()
        weights = [self._number("weight", one) for one in self.adapters]
        if self.name == "task_arithmetic":
            self._check_rescale({})
            total = sum(weights) if self._flag("normalize") else 1.0
            factor = _number(self.fields, "lambda", self.common.get("lambda", 1.0))
            factor /= total if abs(total) >= 1e-8 else 1.0
            return {"method": "sum", "weights": [weight * factor for weight in weights]}
        found: dict[str, Any] = {"method": self.name, "parameters": self._parameters()}
        return found | {"weights": weights} if self.method.needs_weights else found

    def _parameters(self) -> dict[str, Any]:
        """Those of a method that has the same name here."""
        if self.name == "nuslerp":
            self._check_nuslerp()
            return {"row_wise": not self._flag("nuslerp_flatten")}
        known = parameters_of(self.name)
        self._check_rescale(known)
        found = {key: self.common.get(key, value) for key, value in self.method.shared.items()}
        if found.get("t", 0) is None:
            raise UsageError(f"{self.fields.path}: merge_method slerp needs the parameter t.")
        found.pop("rescale", None)
        if "rescale" in known:
            found["rescale"] = "l1" if self._flag("rescale") else "none"
        for key in self.method.each[1:]:
            said = [one.parameters.get(key, self.common.get(key)) for one in self.adapters]
            if any(value is not None for value in said):
                found[key] = said
        return found

    def _linear(self) -> dict[str, Any]:
        """The mean of models, of which the base may be one."""
        plain = [one for one in self.entries if one.adapter is None]
        if self.with_base and not plain:
            # There too it is one of the models, though the list leaves it out.
            plain = [Entry("", None, {})]
        weights = [self._number("weight", one) for one in self.adapters]
        others = sum(self._number("weight", one) for one in plain)
        total = sum(weights) + others
        if not self._flag("normalize"):
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

    def _number(self, key: str, one: Entry) -> float:
        value = one.parameters.get(key, self.common.get(key))
        if value is None:
            if not self.method.needs_weights:
                return 1.0
            raise UsageError(
                f"{self.fields.path}: {one.adapter or 'base_model'} has no weight, which "
                f"merge_method {self.name} needs."
            )
        return _number(self.fields, key, value)

    def _flag(self, key: str) -> bool:
        """Whether a parameter of all models is true."""
        value = self.common.get(key, self.method.shared[key])
        if not isinstance(value, bool):
            raise UsageError(f"{self.fields.path}: {key} {value!r} is neither true nor false.")
        return value

    def _check_rescale(self, known: Mapping[str, bool]) -> None:
        if "rescale" in self.method.shared and "rescale" not in known and self._flag("rescale"):
            raise Unsupported(
                f"{self.fields.path}: rescale is not known of merge_method {self.name}.",
                hint="Leave it out, or use a dare or della method.",
            )

    def _check_nuslerp(self) -> None:
        if not self.with_base:
            raise Unsupported(
                f"{self.fields.path}: nuslerp without base_model turns whole weights.",
                hint="Name base_model; then it turns the adapters' changes.",
            )
        # What it calls row-wise takes columns; without that, and not flattened, it takes rows.
        if self._flag("nuslerp_row_wise") and not self._flag("nuslerp_flatten"):
            raise Unsupported(f"{self.fields.path}: nuslerp_row_wise turns columns; remerge rows.")

    def notes(self) -> tuple[str, ...]:
        """What was read and means nothing here."""
        said = {*self.common, *(key for one in self.entries for key in one.parameters)}
        idle = sorted(said - {*self.method.each, *self.method.shared})
        return (f"Without effect: {', '.join(idle)}.",) if idle else ()


def _number(fields: Fields, key: str, value: Any) -> float:
    try:
        if isinstance(value, bool):
            raise ValueError
        return float(value)
    except ValueError:
        raise UsageError(f"{fields.path}: {key} {value!r} is no number.") from None
