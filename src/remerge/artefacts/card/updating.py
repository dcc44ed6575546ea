"""A card written anew around what its user wrote.

Between two marks the text is remerge's. Which metadata are its own it knows from what it wrote
last, which is kept there too: a value that is not what it wrote is the user's, and stays.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from remerge.artefacts.card.front_matter import Split, edited, split

BEGIN = "<!-- remerge:begin -->"
END = "<!-- remerge:end -->"
_MARK = re.compile(r"^<!-- remerge:(begin|end) -->[ \t]*\r?$", re.MULTILINE)
_MEMORY = re.compile(r"^<!-- remerge:memory (\{.*\}) -->[ \t]*\r?$", re.MULTILINE)
_BOM = "\ufeff"


@dataclass(frozen=True)
class Card:
    """A card taken apart: text ``before`` and ``after`` the block (None where there is none), the
    metadata, and what was remembered in it."""

    bom: str
    front: Split
    before: str
    after: str | None
    memory: Mapping[str, Any]

    @property
    def is_ours(self) -> bool:
        """Whether remerge has written in it."""
        return self.after is not None


def read_card(text: str) -> Card:
    """Take a card apart; raises ValueError where its metadata cannot be read."""
    bom = _BOM if text.startswith(_BOM) else ""
    front = split(text.removeprefix(_BOM))
    span = _block(front.after)
    if span is None:
        return Card(bom, front, front.after, None, {})
    start, stop = span
    memory = _memory(front.after[start:stop])
    return Card(bom, front, front.after[:start], front.after[stop:], memory)


def composed(
    text: str | None,
    title: str,
    metadata: Mapping[str, Any],
    lines: Sequence[str],
    memory: Mapping[str, Any],
) -> str:
    """The card with this metadata, ``lines`` between the marks, and all else as it was in ``text``.

    ``memory`` is kept for `read_card`, with what was written. Raises ValueError where the metadata
    of ``text`` cannot be read.
    """
    card = read_card(text or "")
    written = _jsonable(metadata)
    kept = as_mapping(card.memory.get("wrote"))
    wanted = merged(card.front.metadata, kept, written)
    # What the user took out stays known as written, or it would come back.
    remembered = {**memory, "wrote": written}
    line_break = "\r\n" if (text or "").partition("\n")[0].endswith("\r") else "\n"
    block = [BEGIN, _comment(remembered), *lines, END]
    shown = line_break.join(block)
    head = edited(card.front, wanted, line_break)
    opening, closing = card.front.before, ""
    before = card.before
    if not opening and wanted:
        opening, closing = f"---{line_break}", f"{line_break}---{line_break}"
        before = (
            f"{line_break}{before}" if before and not before.startswith(("\n", "\r")) else before
        )
    if card.after is not None:
        return f"{card.bom}{opening}{head}{closing}{before}{shown}{card.after}"
    if not (text or "").strip():
        before = f"{line_break}# {title}{line_break}"
    gap = "" if not before or before.endswith("\n") else line_break
    return f"{card.bom}{opening}{head}{closing}{before}{gap}{line_break}{shown}{line_break}"


def merged(
    there: Mapping[str, Any], wrote: Mapping[str, Any], new: Mapping[str, Any]
) -> dict[str, Any]:
    """Metadata as it should be: ``there`` is what stands, ``wrote`` what remerge wrote last, and
    ``new`` what it would write now. What the user added, changed or took out stays so."""
    found: dict[str, Any] = {}
    for key, value in there.items():
        ours = key in wrote
        if key == "model-index" and ours:
            index = _index(value, wrote[key], new.get(key))
            if index is not None:
                found[key] = index
        elif ours and value == wrote[key]:
            if key in new:
                found[key] = new[key]
        elif ours and key in new and _lists(value, wrote[key], new[key]):
            found[key] = _items(value, wrote[key], new[key])
        else:
            found[key] = value
    found |= {k: v for k, v in new.items() if k not in there and k not in wrote}
    return found


def as_mapping(value: object) -> dict[str, Any]:
    """The value if it is a mapping, else an empty one."""
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}


def _lists(*values: object) -> bool:
    return all(isinstance(value, list) for value in values)


def _items(there: list[Any], wrote: list[Any], new: list[Any]) -> list[Any]:
    """A list in which what was ours becomes what is ours, and what the user added stays."""
    kept = [one for one in there if one not in wrote or one in new]
    return kept + [one for one in new if one not in wrote and one not in kept]


def _index(there: Any, wrote: Any, new: Any) -> Any:
    """Scores: results that remerge did not write stay beside the new ones."""
    old, now, standing = _results(wrote), _results(new) or [], _results(there)
    if standing is None or old is None:
        return there
    results = [one for one in standing if one not in old and one not in now] + now
    if not results:
        return None
    ours = there[0].get("name") == wrote[0].get("name")
    head = new[0] if ours and new else there[0]
    return [{**head, "results": results}]


def _results(index: Any) -> list[Any] | None:
    """The results of an index of one model, None where it is something else."""
    if not isinstance(index, list) or len(cast("list[Any]", index)) != 1:
        return None
    results = as_mapping(cast("list[Any]", index)[0]).get("results")
    return cast("list[Any]", results) if isinstance(results, list) else None


def _block(text: str) -> tuple[int, int] | None:
    """Where the first whole block lies. A mark without its partner is text: what follows an opening
    mark whose end was deleted must not be taken for ours."""
    begun: int | None = None
    for mark in _MARK.finditer(text):
        if mark[1] == "begin":
            begun = mark.start()
        elif begun is not None:
            return begun, mark.end() - (1 if mark[0].endswith("\r") else 0)
    return None


def _memory(block: str) -> dict[str, Any]:
    found = _MEMORY.search(block)
    if found is None:
        return {}
    try:
        return as_mapping(json.loads(found[1]))
    except (ValueError, RecursionError):
        return {}


def _comment(memory: Mapping[str, Any]) -> str:
    """As a comment of HTML, which two dashes would end."""
    text = json.dumps(memory, sort_keys=True)
    for sign in "-<>":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return f"<!-- remerge:memory {text} -->"


def _jsonable(metadata: Mapping[str, Any]) -> dict[str, Any]:
    return as_mapping(json.loads(json.dumps(metadata)))
