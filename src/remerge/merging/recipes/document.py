"""YAML as data and nothing else: no tags, no aliases, no key twice, bounded size."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import yaml

from remerge.errors import UsageError

# A recipe is a page of text; a training configuration is a few.
_LARGEST = 2**20


class _Strict(yaml.SafeLoader):
    """The safe loader, without what lets a short text grow, or hides a line of it."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        parser: Any = self
        if parser.check_event(yaml.AliasEvent):
            raise yaml.constructor.ConstructorError(
                None, None, "an alias (*name); write the value out", parser.peek_event().start_mark
            )
        return super().compose_node(parent, index)  # pyright: ignore[reportUnknownMemberType]

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key_node, _ in node.value:
            key = key_node.value
            if not isinstance(key_node, yaml.ScalarNode) or not isinstance(key, str) or key == "<<":
                raise yaml.constructor.ConstructorError(
                    None, None, "a key that is no plain text", key_node.start_mark
                )
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"{key} is there twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


_HINT = "Write, e.g., base: ./base and adapters: [./a, ./b]; see docs/several.md."


def read_document(path: Path, what: str = "recipe", hint: str = _HINT) -> dict[str, Any]:
    """The mapping that a YAML (or JSON) file holds; raises `UsageError`.

    ``what`` it should be, and a ``hint`` at how it is written.
    """
    try:
        with path.open("rb") as stream:
            content = stream.read(_LARGEST + 1)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise UsageError(f"The {what} {path} cannot be read: {reason}.") from None
    if len(content) > _LARGEST:
        raise UsageError(f"{path} has more than {_LARGEST:,} bytes: it is no {what}.")
    try:
        found = yaml.load(content, _Strict)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f", line {mark.line + 1}" if mark is not None else ""
        raise UsageError(f"{path}{where} cannot be read: {error.problem}.") from None
    except (yaml.YAMLError, ValueError) as error:
        what = str(error).splitlines()[0]
        raise UsageError(f"{path} cannot be read: {what}.") from None
    except RecursionError:
        raise UsageError(f"{path} is nested too deeply to be a {what}.") from None
    if not isinstance(found, dict):
        raise UsageError(
            f"{path} is no {what}: it does not hold keys and values.",
            hint=hint,
        )
    document = {str(key): value for key, value in cast("dict[Any, Any]", found).items()}
    return {key: value for key, value in document.items() if value is not None}
