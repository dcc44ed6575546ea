"""Fields of a configuration under the names that model types give them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Fields:
    """``raw`` is what the file says; ``filled`` the same with the defaults of the model type's own
    class, by which a field is found that the file leaves out."""

    raw: Mapping[str, Any]
    filled: object = None

    def get(self, *names: str) -> Any:
        """The first of the names that has a value, else None."""
        for name in names:
            if self.raw.get(name) is not None:
                return self.raw[name]
        for name in names:
            # A class may compute a field, and fail at it.
            try:
                found = getattr(self.filled, name, None)
            except (AttributeError, KeyError, TypeError, ValueError):
                continue
            if found is not None:
                return found
        return None

    def number(self, *names: str) -> int | None:
        """The first that is a positive whole number; of a list the largest."""
        found = self.get(*names)
        if isinstance(found, list | tuple):
            numbers = [int(n) for n in found if isinstance(n, int | float)]  # pyright: ignore[reportUnknownVariableType]
            found = max(numbers, default=None)
        if isinstance(found, float) and found.is_integer():
            found = int(found)
        return found if type(found) is int and found > 0 else None

    def texts(self, *names: str) -> list[str] | None:
        """The first that is a list of strings."""
        for name in names:
            found = self.get(name)
            if isinstance(found, list | tuple) and all(isinstance(x, str) for x in found):  # pyright: ignore[reportUnknownVariableType]
                return list(found)  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
        return None

    def at(self, layer: int, *names: str) -> int | None:
        """A number that may differ from layer to layer: the layer's item where it is a list."""
        found = self.get(*names)
        if isinstance(found, list | tuple):
            item: Any = found[layer] if layer < len(found) else None  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
            return item if type(item) is int and item >= 0 else None  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
        return self.number(*names)
