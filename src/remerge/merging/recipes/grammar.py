"""What a grammar of recipe files is: keys and values in, inputs and options of a merge out."""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

from remerge.errors import UsageError
from remerge.merging.asked import parameters_of

# Names this near to a known one are misspelt, whatever else a file may hold.
_MISSPELT = 0.85


@dataclass(frozen=True)
class RecipeFile:
    """What a recipe file asks for.

    ``options`` are keywords of `remerge.merge`; ``base``, ``adapters`` and ``output`` its inputs
    and output, None or empty where the file does not say. ``gate`` is what the result has to pass
    (`remerge.compare`), None where it has to pass nothing. ``notes`` are sentences that the user
    must read.
    """

    base: str | None = None
    adapters: tuple[str, ...] = ()
    output: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])
    gate: Mapping[str, Any] | None = None
    notes: tuple[str, ...] = ()

    def overridden(
        self, base: str | None, adapters: Sequence[str], output: str | None, **options: Any
    ) -> RecipeFile:
        """The same with what was given besides, which counts more; parameters one by one.

        Another method than the file's takes those of its parameters that it has.
        """
        parameters = dict(self.options.get("parameters", {}))
        notes = self.notes
        written = self.options.get("method", "sum")
        method = options.get("method", written)
        if method != written:
            known = parameters_of(method)
            foreign = [name for name in parameters if name not in known]
            if foreign:
                notes = (*notes, f"--method {method} has no {', '.join(foreign)}: left out.")
            parameters = {name: v for name, v in parameters.items() if name in known}
        parameters |= options.pop("parameters", {})
        return replace(
            self,
            base=base or self.base,
            adapters=tuple(adapters) or self.adapters,
            output=output or self.output,
            options={**self.options, **options, "parameters": parameters},
            notes=notes,
        )


@dataclass(frozen=True)
class Grammar:
    """A way to write recipes.

    A file with one of the ``marks`` among its keys is of this grammar; ``keys`` are all that it
    reads.
    """

    name: str
    marks: frozenset[str]
    keys: frozenset[str]
    read: Callable[[Fields], RecipeFile]


@dataclass(frozen=True)
class Fields:
    """The keys and values of a part of a recipe: read by name, and refused by name."""

    values: Mapping[str, Any]
    path: Path
    where: str = ""

    def text(self, key: str) -> str | None:
        value = self.values.get(key)
        if value is None or (isinstance(value, str) and value.strip()):
            return value
        raise self.wrong(key, "is no text", "Put it in quotes.")

    def flag(self, key: str) -> bool:
        value = self.values.get(key, False)
        if not isinstance(value, bool):
            raise self.wrong(key, "is neither true nor false")
        return value

    def texts(self, key: str) -> tuple[str, ...]:
        """One text, or a list of them."""
        value = self.values.get(key, [])
        found = [value] if isinstance(value, str) else value
        if not isinstance(found, list) or not all(isinstance(part, str) for part in found):  # pyright: ignore[reportUnknownVariableType]
            raise self.wrong(key, "is no list of texts")
        return tuple(cast("list[str]", found))

    def parts(self, key: str) -> Fields:
        """The keys and values below a key; none where it is not there."""
        return self.part(key, self.values.get(key, {}))

    def part(self, key: str, value: object) -> Fields:
        """A value that must be keys and values, for messages said to stand at a key."""
        if not isinstance(value, dict):
            raise self.wrong(key, "is no list of keys and values")
        found = {str(k): v for k, v in cast("dict[Any, Any]", value).items() if v is not None}
        return Fields(found, self.path, f"{self.where}{key}: ")

    def items(self, key: str) -> list[object]:
        """The parts of a list."""
        value = self.values.get(key, [])
        if not isinstance(value, list):
            raise self.wrong(key, "is no list")
        return cast("list[object]", value)

    def place(self, text: str) -> str:
        """A path or a name on the Hub as it was meant: what is not in the working directory, but
        beside the recipe, is the one beside the recipe."""
        beside = self.path.parent / text
        return str(beside) if not _is_there(text) and _is_there(str(beside)) else text

    def is_there(self, text: str) -> bool:
        """Whether this is a directory, and no name on the Hub."""
        return _is_there(text)

    def wrong(self, key: str, what: str, hint: str | None = None) -> UsageError:
        value = self.values.get(key)
        shown = f" {value!r}" if isinstance(value, str | int | float | bool) else ""
        return UsageError(f"{self.path}: {self.where}{key}{shown} {what}.", hint=hint)

    def refuse_unknown(self, known: Iterable[str]) -> None:
        """Raise `UsageError` at a key that is not known, with the nearest that is."""
        names = sorted(known)
        for key in self.values:
            if key not in names:
                near = difflib.get_close_matches(key, names, 1)
                raise UsageError(
                    f"{self.path}: {self.where}{key} is not known.",
                    why=f"Did you mean {near[0]}?" if near else None,
                    hint=f"Known are {', '.join(names)}.",
                )

    def left_out(self, known: Iterable[str]) -> list[str]:
        """The keys that are not known, in a file that may have others; one that is misspelt is
        refused."""
        names = sorted(known)
        rest = [key for key in self.values if key not in names]
        for key in rest:
            near = difflib.get_close_matches(key, names, 1, cutoff=_MISSPELT)
            if near:
                raise self.wrong(key, "is not known", f"Did you mean {near[0]}?")
        return rest


def some(names: Sequence[str], most: int = 6) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _is_there(text: str) -> bool:
    """Whether there is such a path, or it names an adapter of a directory that is there."""
    return any(os.path.lexists(path) for path in (text, text.rpartition(":")[0]) if path)
