"""What an engine is asked when it is scored, and what it gives: one protocol for all of them.

An engine is given items: prompts as token ids, and what is wanted of each. ``rows`` are the
log-probabilities of what comes next at every position (row i after tokens 0 to i), written to a
file of numpy an item, since a vocabulary is large: all of it, or of each row the likeliest tokens
(``ids``) where an engine tells no more. ``followed`` are the log-probabilities of the prompt's own
tokens, all but the first; an ``answer`` is what the engine goes on with, greedily.
"""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from remerge.errors import BadInput

Floats = npt.NDArray[np.float32]
Wide = npt.NDArray[np.float64]
Ids = npt.NDArray[np.int32]
Kind = Literal["rows", "followed", "answer"]

# How many values of rows are at hand at once.
_VALUES = 2**22


@dataclass(frozen=True)
class Item:
    """One prompt and what is wanted of it; ``tokens`` is how long an answer may get."""

    kind: Kind
    ids: tuple[int, ...]
    tokens: int = 0

    @property
    def digest(self) -> str:
        """The same for the same question, whoever asks."""
        text = json.dumps([self.kind, self.ids, self.tokens])
        return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True)
class Answered:
    """What an engine gave for an item: the log-probabilities that ``followed``, or the tokens of an
    ``answer``; both empty where rows were written."""

    followed: tuple[float, ...] = ()
    answer: tuple[int, ...] = ()

    def document(self) -> dict[str, Any]:
        return {"followed": list(self.followed), "answer": list(self.answer)}

    @staticmethod
    def of(document: Mapping[str, Any]) -> Answered:
        return Answered(tuple(document["followed"]), tuple(document["answer"]))


@dataclass(frozen=True)
class Side:
    """A model that is asked: its name, the items by number, and where their rows go. What is
    ``known`` need not be asked again, and stays among the items for batches to be the same."""

    name: str
    items: Mapping[int, Item]
    folder: Path
    known: frozenset[int] = frozenset()

    def as_request(self) -> dict[str, Any]:
        items = [[n, i.kind, list(i.ids), i.tokens] for n, i in self.items.items()]
        known = sorted(self.known)
        return {"side": self.name, "items": items, "folder": str(self.folder), "known": known}

    @staticmethod
    def of(document: Mapping[str, Any]) -> Side:
        items = {n: Item(kind, tuple(ids), tokens) for n, kind, ids, tokens in document["items"]}
        known = frozenset(document["known"])
        return Side(document["side"], items, Path(document["folder"]), known)

    @property
    def wanted(self) -> frozenset[int]:
        return frozenset(self.items) - self.known

    def of_kind(self, *kinds: Kind) -> dict[int, Item]:
        return {number: item for number, item in self.items.items() if item.kind in kinds}

    def rows_of(self, number: int) -> Path:
        """Where the rows of an item lie."""
        return rows_path(self.folder, self.items[number])


def rows_path(folder: Path, item: Item) -> Path:
    """Rows lie by what was asked, so that whoever asks again finds them."""
    return folder / f"{item.digest}.npz"


# Told by an engine as it goes: side, number of the item, what it gave.
Told = Callable[[str, int, Answered], None]


@dataclass(frozen=True)
class Questions:
    """What is asked for a check: texts to cut into tokens, prompts to score, and how many tokens to
    answer to the first of them."""

    texts: tuple[str, ...]
    prompts: tuple[tuple[int, ...], ...]
    answers: int
    answer_tokens: int

    def side(self, name: str, folder: Path, *, answers: bool = True) -> Side:
        """These questions put to one model; answers come after all scores."""
        items = [Item("rows", prompt) for prompt in self.prompts]
        if answers and self.answer_tokens:
            first = self.prompts[: self.answers]
            items += [Item("answer", prompt, self.answer_tokens) for prompt in first]
        return Side(name, dict(enumerate(items)), folder)

    @property
    def rows(self) -> int:
        return sum(map(len, self.prompts))

    @property
    def distinct(self) -> int:
        """How many positions are not another's over again: prompts that begin alike are the same
        until they part."""
        steps: dict[tuple[int, int], int] = {}
        for prompt in self.prompts:
            place = 0
            for token in prompt:
                place = steps.setdefault((place, token), len(steps) + 1)
        return len(steps)

    @property
    def followed(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Rows whose next token the prompt itself holds, and these tokens."""
        rows: list[int] = []
        tokens: list[int] = []
        first = 0
        for prompt in self.prompts:
            rows += range(first, first + len(prompt) - 1)
            tokens += prompt[1:]
            first += len(prompt)
        return np.array(rows, np.int64), np.array(tokens, np.int64)


def normalised(logits: npt.ArrayLike) -> Wide:
    """Log-probabilities (rows, tokens) of logits, in float64."""
    wide = np.asarray(logits, np.float64)
    wide = wide - wide.max(axis=-1, keepdims=True)
    return wide - np.log(np.exp(wide).sum(axis=-1, keepdims=True))


def write_rows(path: Path, logits: npt.ArrayLike) -> None:
    """Rows as an engine gives them (rows, tokens), not yet normalised: their log-probabilities in
    float32, and in ``shift`` what was taken off each row's logits. Raises `BadInput` for NaN."""
    wide = np.asarray(logits, np.float64)
    block = normalised(wide)
    if np.isnan(block).any():
        raise BadInput("The engine computes log-probabilities that are not numbers.")
    shift = wide[:, 0] - block[:, 0]
    _save(path, values=block.astype(np.float32), shift=shift)


def write_likeliest(
    path: Path, rows: Sequence[Mapping[int, float]], ids: Sequence[int], vocabulary: int
) -> None:
    """Write of each row the log-probabilities by token, as many of the likeliest as all rows have,
    and those of the prompt's own tokens ``ids``, however unlikely.

    Where all of the vocabulary is told, the rows are as `write_rows` writes them.
    """
    kept = min(len(row) for row in rows)
    if kept == vocabulary:
        whole = np.array([[row[token] for token in range(vocabulary)] for row in rows])
        _save(path, values=normalised(whole).astype(np.float32))
        return
    named = np.empty((len(rows), kept), np.int32)
    values = np.empty((len(rows), kept), np.float32)
    for number, row in enumerate(rows):
        likeliest = sorted(row, key=lambda token: (-row[token], token))[:kept]
        named[number] = likeliest
        values[number] = [row[token] for token in likeliest]
    own = [row.get(token, np.nan) for row, token in zip(rows, [*ids[1:], -1], strict=True)]
    _save(path, values=values, ids=named, followed=np.array(own))


def _save(path: Path, **arrays: npt.NDArray[Any]) -> None:
    """A file that is whole or not there, whoever else writes the same one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    with temporary.open("wb") as stream:
        np.savez(stream, **arrays)  # pyright: ignore[reportArgumentType]
    temporary.rename(path)


def rows_are_whole(path: Path, item: Item) -> bool:
    """Whether the rows of an item are there, every byte as it was written (numpy's files hold
    checksums of their contents)."""
    try:
        with zipfile.ZipFile(path) as archive:
            whole = archive.testzip() is None
        return whole and _shape(path)[0] == len(item.ids)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return False


def _shape(path: Path) -> tuple[int, int]:
    """Rows and columns of a file of rows, by its header alone."""
    with zipfile.ZipFile(path) as archive, archive.open("values.npy") as stream:
        version = np.lib.format.read_magic(stream)
        read = np.lib.format.read_array_header_1_0
        if version != (1, 0):
            read = np.lib.format.read_array_header_2_0
        shape, _, _ = read(stream)
    rows, columns = shape
    return int(rows), int(columns)


def followed(logits: npt.ArrayLike, ids: Sequence[int]) -> tuple[float, ...]:
    """Log-probabilities of a prompt's tokens, all but the first, from its logits (rows, tokens)."""
    rows = normalised(np.asarray(logits)[: len(ids) - 1])
    return tuple(float(row[token]) for row, token in zip(rows, ids[1:], strict=True))


@dataclass(frozen=True)
class Scores:
    """An engine's rows: of the whole vocabulary, or with ``ids`` of each row's likeliest tokens,
    and ``followed`` (rows, NaN where nothing follows) of what really follows. ``shift`` (rows)
    added to a row gives the logits, where the engine told these."""

    values: Floats
    ids: Ids | None = None
    followed: Wide | None = None
    shift: Wide | None = None

    @staticmethod
    def read(paths: Sequence[Path], whole: Path) -> Scores:
        """The rows of several items, one after the other, put together in the file ``whole``."""
        shapes = [_shape(path) for path in paths]
        # Where an engine told of some rows more than of others, all have what each has.
        width = min(shape[1] for shape in shapes)
        shape = (sum(shape[0] for shape in shapes), width)
        values = np.lib.format.open_memmap(whole, mode="w+", dtype=np.float32, shape=shape)
        beside: dict[str, list[Any]] = {"ids": [], "followed": [], "shift": []}
        first = 0
        for path in paths:
            # One after the other: a system opens no thousand files at once.
            with np.load(path) as file:
                block = file["values"][:, :width]
                values[first : first + len(block)] = block
                first += len(block)
                for name, found in beside.items():
                    if name in file:
                        found.append(file[name][:, :width] if name == "ids" else file[name])
        values.flush()
        known = {name: np.concatenate(v) for name, v in beside.items() if len(v) == len(paths)}
        return Scores(np.load(whole, mmap_mode="r"), **known)

    @property
    def rows(self) -> int:
        return int(self.values.shape[0])

    @property
    def width(self) -> int:
        return int(self.values.shape[1])

    def blocks(self, width: int) -> Iterator[slice]:
        """Rows a few at a time, for a vocabulary of ``width``."""
        step = max(1, _VALUES // max(width, 1))
        for first in range(0, self.rows, step):
            yield slice(first, min(first + step, self.rows))

    def dense(self, rows: slice, width: int) -> Wide:
        """Log-probabilities of the first ``width`` tokens among themselves (rows, width)."""
        return normalised(self.values[rows, :width])
