"""What a model answered before: kept by what the model is and what it was asked, so that a second
comparison asks nothing, and one that was killed goes on where it was.

Under the user's cache directory, a folder a model: ``answers.jsonl``, a line an answer, and a file
of rows an item. Losing it loses time alone.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from remerge.engines.scoring import Answered, Item, rows_are_whole, rows_path
from remerge.sources.user_directories import cache_directory

_ANSWERS = "answers.jsonl"
_TOLD = "told.json"
# What all folders together may take.
_MOST = 4 * 2**30


@dataclass
class Remembered:
    """One model's answers. ``place`` is the folder; rows lie in it."""

    place: Path
    _answers: dict[str, Answered] = field(default_factory=dict[str, Answered])

    def known(self, items: Mapping[int, Item]) -> dict[int, Answered]:
        """Of these items, those that were answered, rows and all."""
        found: dict[int, Answered] = {}
        for number, item in items.items():
            answered = self._answers.get(item.digest)
            if item.kind == "rows":
                answered = Answered() if rows_are_whole(rows_path(self.place, item), item) else None
            if answered is not None:
                found[number] = answered
        return found

    def put(self, item: Item, answered: Answered) -> None:
        """Keep an answer; a line at a time, so that two processes may."""
        if item.digest in self._answers or item.kind == "rows":
            return
        self._answers[item.digest] = answered
        # On a line of its own, also after half of one.
        line = "\n" + json.dumps({"item": item.digest, **answered.document()}) + "\n"
        with suppress(OSError), (self.place / _ANSWERS).open("ab", buffering=0) as stream:
            stream.write(line.encode())

    @property
    def told(self) -> dict[str, Any]:
        """What the engine said besides answers, when it was last asked."""
        try:
            return json.loads((self.place / _TOLD).read_bytes())
        except (OSError, ValueError):
            return {}

    def keep_told(self, document: Mapping[str, Any]) -> None:
        with suppress(OSError):
            temporary = self.place / f".{_TOLD}.{os.getpid()}"
            temporary.write_text(json.dumps(dict(document)))
            temporary.rename(self.place / _TOLD)


@dataclass
class Memory:
    """All models' answers under ``root``."""

    root: Path

    def of(self, identity: Mapping[str, Any]) -> Remembered:
        """What is known of the model that ``identity`` describes, to the last byte that matters."""
        text = json.dumps(dict(identity), sort_keys=True)
        place = self.root / hashlib.sha256(text.encode()).hexdigest()[:32]
        place.mkdir(parents=True, exist_ok=True)
        with suppress(OSError):
            os.utime(place)
        found = Remembered(place)
        with suppress(OSError):
            for line in (place / _ANSWERS).read_bytes().splitlines():
                # The last line of a run that was killed may be half of one.
                with suppress(ValueError, KeyError, TypeError):
                    document = json.loads(line)
                    found._answers[document["item"]] = Answered.of(document)  # pyright: ignore[reportPrivateUsage]
        return found

    def trim(self, keep: Iterable[Path]) -> None:
        """Delete the folders that were not asked for the longest, beyond 4 GiB in all."""
        kept = set(keep)
        with suppress(OSError):
            folders = sorted(self.root.iterdir(), key=lambda path: -path.stat().st_mtime)
            total = 0
            for folder in folders:
                total += sum(file.stat().st_size for file in folder.iterdir())
                recent = time.time() - folder.stat().st_mtime < 3600
                if total > _MOST and folder not in kept and not recent:
                    shutil.rmtree(folder, ignore_errors=True)


def open_memory(otherwise: Path, *, kept: bool = True) -> Memory:
    """The user's memory; the folder ``otherwise`` where nothing is to be kept, or there is no
    home."""
    cache = cache_directory() if kept else None
    if cache is not None:
        root = cache / "comparisons"
        with suppress(OSError):
            root.mkdir(parents=True, exist_ok=True)
            if os.access(root, os.W_OK):
                return Memory(root)
    return Memory(otherwise)
