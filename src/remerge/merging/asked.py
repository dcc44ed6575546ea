"""What is asked of several adapters, as people write it: weights, method, parameters."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from typing import Any, cast

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from remerge.errors import UsageError
from remerge.merging.methods.method import Method, PerAdapter
from remerge.merging.methods.registry import ALIASES, METHODS


def read_method(
    name: str, parameters: Mapping[str, Any], adapters: int
) -> tuple[Method[Any], dict[str, Any]]:
    """The method of this name and its parameters in full: defaults filled in, a number for each
    adapter where one stands for all."""
    method = find_method(name)
    _check_count(method, adapters)
    given = {key: value for key, value in parameters.items() if value is not None}
    known = _fields(method)
    for key in given:
        if key not in known:
            takes = ", ".join(_flag(name) for name in known) or "none"
            raise UsageError(
                f"--method {method.name} has no {_flag(key)}.", hint=f"It takes {takes}."
            )
    for key, field in known.items():
        if field.annotation == PerAdapter:
            asked = given.get(key, field.default)
            given[key] = per_adapter(asked, adapters, _flag(key), field.default[0])
        elif field.annotation is float:
            _check_number(given.get(key), _flag(key))
    try:
        read = method.read(given)
    except ValidationError as error:
        first: Any = error.errors()[0]
        key = str(first["loc"][0]) if first["loc"] else ""
        what = first["msg"].replace("Input should be", "must be")
        raise UsageError(f"{_flag(key)}: {what}.") from error
    return method, read.model_dump(mode="json", by_alias=True)


def find_method(name: str) -> Method[Any]:
    """The method of this name, its own or another tool's; raises `UsageError`."""
    method = METHODS.get(ALIASES.get(name, name))
    if method is None:
        near = difflib.get_close_matches(name, [*METHODS, *ALIASES], 1)
        raise UsageError(
            f"There is no method {name!r}.",
            why=f"Did you mean {near[0]}?" if near else None,
            hint=f"Choose {', '.join(METHODS)}.",
        )
    return method


def parameters_of(name: str) -> Mapping[str, bool]:
    """The parameters of a method, and whether each is a number for each adapter."""
    fields = _fields(find_method(name))
    return {key: field.annotation == PerAdapter for key, field in fields.items()}


def _fields(method: Method[Any]) -> Mapping[str, FieldInfo]:
    return {field.alias or key: field for key, field in method.parameters.model_fields.items()}


# The parameters that any method has, as `parameters_of` gives them.
ALL_PARAMETERS: Mapping[str, bool] = {
    key: each for name in METHODS for key, each in parameters_of(name).items()
}


def per_adapter(asked: Any, adapters: int, option: str, default: float) -> tuple[float, ...]:
    """A number for each adapter, from one for all or one for each; None stands for the default."""
    several = isinstance(asked, list | tuple)
    values = cast("Sequence[Any]", asked) if several else [asked]
    try:
        if any(isinstance(value, bool) for value in values):
            raise TypeError
        numbers = tuple(default if value is None else float(value) for value in values)
    except (TypeError, ValueError):
        raise UsageError(f"{option} {_shown(asked)} is no number.") from None
    except OverflowError:
        raise UsageError(f"{option} is too large a number.") from None
    if not all(math.isfinite(number) for number in numbers):
        raise UsageError(f"{option} {_shown(asked)} is not finite.")
    if len(numbers) == 1:
        return numbers * adapters
    if len(numbers) != adapters:
        raise UsageError(
            f"{option} gives {len(numbers)} numbers for {adapters} "
            f"adapter{'' if adapters == 1 else 's'}.",
            hint="Give one for all, or one for each in the order of the adapters.",
        )
    return numbers


def _check_number(value: object, option: str) -> None:
    """Refuse what pydantic would take for a float and no method can use."""
    if isinstance(value, bool):
        raise UsageError(f"{option} {value} is no number.")
    if isinstance(value, float) and not math.isfinite(value):
        raise UsageError(f"{option} {value} is not finite.")


def _shown(asked: object) -> str:
    """A number, or numbers, as people write them."""
    if isinstance(asked, list | tuple):
        return ",".join(str(value) for value in cast("Sequence[object]", asked))
    return repr(asked)


def read_weights(
    asked: Sequence[float] | float | None, adapters: int, method: Method[Any]
) -> tuple[float, ...]:
    """The weight of each adapter; 1 where nothing is said, and where the method has none."""
    found = per_adapter(asked, adapters, "--weights", 1.0)
    if not method.weighted and any(weight != 1.0 for weight in found):
        raise UsageError(
            f"--method {method.name} has no --weights.",
            why="It finds out by itself how much of each adapter to take.",
            hint="Leave them out, or choose another method.",
        )
    return found


def read_prefer(asked: Sequence[str], adapters: Sequence[str]) -> tuple[tuple[str, int], ...]:
    """``[PATTERN=]ADAPTER`` as pairs of a pattern of tensor names and an adapter's number."""
    found: list[tuple[str, int]] = []
    for text in asked:
        pattern, separator, adapter = text.rpartition("=")
        found.append((pattern if separator else "*", find_adapter(adapter, adapters, "--prefer")))
    return tuple(found)


def find_adapter(asked: str, adapters: Sequence[str], option: str) -> int:
    """The number, from 1, of the adapter that was named or numbered."""
    if asked.isdecimal() and 1 <= int(asked) <= len(adapters):
        return int(asked)
    named = [number for number, label in enumerate(adapters, 1) if label == asked]
    if len(named) != 1:
        raise UsageError(
            f"{option}: there {'are several adapters' if named else 'is no adapter'} {asked!r}.",
            hint=f"Give a number from 1 to {len(adapters)}, or one of {', '.join(adapters)}.",
        )
    return named[0]


def _check_count(method: Method[Any], adapters: int) -> None:
    if not adapters:
        # A checkpoint as it is, for another format.
        return
    if adapters < method.least or (method.most is not None and adapters > method.most):
        wanted = (
            f"exactly {method.least}"
            if method.most == method.least
            else f"at least {method.least}"
            if method.most is None
            else f"{method.least} to {method.most}"
        )
        raise UsageError(
            f"--method {method.name} combines {wanted} adapters, not {adapters}.",
            hint="Name the base first, then the adapters: remerge merge BASE A B -o OUT.",
        )


def _flag(parameter: str) -> str:
    return "--" + parameter.replace("_", "-")
