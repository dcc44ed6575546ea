"""The YAML between two lines of dashes at the top of a card: read as data, and edited key by key so
that what a user wrote there stays as it was written.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import yaml

# As the Hub's server finds it (huggingface_hub.repocard).
_BLOCK = re.compile(r"^(\s*---(?:\r\n|\r|\n))([\S\s]*?)((?:\r\n|\r|\n)---[ \t]*(?:\r\n|\n|$))")
_KEY = re.compile(r"^(?![#\-\s])([^:\n]+):(?=\s|$)", re.MULTILINE)
_TEXT = "tag:yaml.org,2002:str"
# No key that is taken from another card has more than this; scores of benchmarks have.
_LONGEST = 2**14


@dataclass(frozen=True)
class Split:
    """A card in three: what precedes the YAML, the YAML, and what follows; ``before`` and ``after``
    hold the lines of dashes. Without metadata all is ``after``."""

    before: str
    yaml: str
    after: str
    metadata: Mapping[str, Any]


def split(text: str) -> Split:
    """Take a card apart; raises ValueError where its YAML cannot be read.

    What stands between two rules and is no mapping is text, as no reader of cards takes it.
    """
    found = _BLOCK.match(text)
    if found is None:
        return Split("", "", text, {})
    try:
        document: object = yaml.safe_load(found[2])
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(_reason(error)) from error
    if document is not None and not isinstance(document, dict):
        return Split("", "", text, {})
    metadata = cast("dict[str, Any]", document or {})
    return Split(found[1], found[2], found[3] + text[found.end() :], metadata)


def read_keys(text: str, keys: frozenset[str]) -> tuple[dict[str, Any], str | None]:
    """The values of some keys of anyone's card, and a sentence where they cannot be read.

    Only these keys are parsed: a card may be large, and hostile.
    """
    found = _BLOCK.match(text)
    if found is None:
        return {}, None
    block = found[2]
    starts = [(m.start(), m[1].strip(" \t'\"")) for m in _KEY.finditer(block)]
    ends = [*(start for start, _ in starts[1:]), len(block)][: len(starts)]
    values: dict[str, Any] = {}
    for (start, key), end in zip(starts, ends, strict=True):
        if key not in keys or end - start > _LONGEST:
            continue
        try:
            document: object = yaml.safe_load(block[start:end])
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            return {}, f"its metadata is not valid YAML ({_reason(error)})"
        if isinstance(document, dict):
            values.update(cast("dict[str, Any]", document))
    return {key: value for key, value in values.items() if key in keys}, None


def edited(card: Split, wanted: Mapping[str, Any], line_break: str) -> str:
    """The YAML with these keys and values: as it stands where nothing changes, else with only the
    lines of changed keys written anew, else (as for a mapping in braces) written anew."""
    if card.metadata == wanted:
        return card.yaml
    if card.yaml:
        text = _replaced(card, wanted, line_break)
        if text is not None:
            return text
    return dumped(wanted, line_break)


def dumped(metadata: Mapping[str, Any], line_break: str) -> str:
    """Metadata as YAML, without the last line's break."""
    plain = dict(metadata)
    text = yaml.safe_dump(plain, sort_keys=False, allow_unicode=True, width=1000)
    # PyYAML writes some line breaks of Unicode as they are, and reads them as others.
    if yaml.safe_load(text) != plain:
        text = yaml.safe_dump(plain, sort_keys=False, width=1000)
    return text.rstrip("\n").replace("\n", line_break)


def _replaced(card: Split, wanted: Mapping[str, Any], line_break: str) -> str | None:
    lines = card.yaml.splitlines(keepends=True)
    spans = _spans(card.yaml, lines)
    if spans is None:
        return None
    if lines and not lines[-1].endswith(("\n", "\r")):
        lines[-1] += line_break
    written: list[str] = []
    at = 0
    for key, start, stop in spans:
        written += lines[at:start]
        if key in wanted and wanted[key] == card.metadata[key]:
            written += lines[start:stop]
        elif key in wanted:
            written.append(dumped({key: wanted[key]}, line_break) + line_break)
        at = stop
    written += lines[at:]
    new = {key: value for key, value in wanted.items() if key not in card.metadata}
    if new:
        written.append(dumped(new, line_break))
    text = "".join(written).rstrip("\r\n")
    if any(line.startswith("---") for line in text.splitlines()):
        return None
    try:
        return text if yaml.safe_load(text) == wanted else None
    except (yaml.YAMLError, RecursionError):
        return None


def _spans(text: str, lines: list[str]) -> list[tuple[str, int, int]] | None:
    """Of every key its first line and the line after its last; comments that follow stay outside.
    None where a key does not begin a line."""
    loader: Any = yaml.SafeLoader(text)
    node: Any = loader.get_single_node()
    found: list[tuple[str, int, int]] = []
    if node is None:
        return found
    if not isinstance(node, yaml.MappingNode):
        return None
    keys: list[Any] = [key for key, _ in node.value]
    starts = [key.start_mark for key in keys]
    if any(mark.column for mark in starts) or node.flow_style:
        return None
    if any(not isinstance(key, yaml.ScalarNode) or key.tag != _TEXT for key in keys):
        return None
    ends: list[int] = [mark.line for mark in starts[1:]] + [len(lines)]
    for key, mark, end in zip(keys, starts, ends, strict=True):
        while end > mark.line + 1 and _is_between(lines[end - 1]):
            end -= 1
        found.append((key.value, mark.line, end))
    return found


def _is_between(line: str) -> bool:
    return not line.strip() or line.startswith("#")


def _reason(error: Exception) -> str:
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        return f"line {error.problem_mark.line + 1}: {error.problem}"
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    return str(error).partition("\n")[0]
