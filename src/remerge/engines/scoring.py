"""What an engine is asked when it is scored, and what it gives: one protocol for all of them.

An engine is given prompts as token ids, and writes for every position of each the log-probabilities
of what comes next: ``rows`` of a matrix in the order of the prompts, row i of a prompt after its
tokens 0 to i. They lie in files of numpy, since a vocabulary is large: all of it, or of each
row the likeliest tokens (``ids`` beside them) where an engine tells no more.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Wide = npt.NDArray[np.float64]
Ids = npt.NDArray[np.int32]

# How many values of rows are at hand at once.
_VALUES = 2**22


@dataclass(frozen=True)
class Questions:
    """What an engine is asked: texts to cut into tokens, prompts to score, and how many tokens to
    answer to the first of them."""

    texts: tuple[str, ...]
    prompts: tuple[tuple[int, ...], ...]
    answers: int
    answer_tokens: int

    def as_request(self) -> dict[str, Any]:
        return {
            "texts": list(self.texts),
            "prompts": [list(prompt) for prompt in self.prompts],
            "answers": self.answers,
            "answer_tokens": self.answer_tokens,
        }

    @staticmethod
    def of(request: Mapping[str, Any]) -> Questions:
        return Questions(
            tuple(request["texts"]),
            tuple(tuple(prompt) for prompt in request["prompts"]),
            request["answers"],
            request["answer_tokens"],
        )

    @property
    def rows(self) -> int:
        return sum(map(len, self.prompts))

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


class ScoreFile:
    """Rows as an engine gives them, written to ``path`` (``.npy``, float32)."""

    def __init__(self, path: Path, rows: int) -> None:
        self._path, self._rows, self._next = path, rows, 0
        self._values: Any = None

    def put(self, logits: npt.ArrayLike) -> None:
        """The next rows (rows, tokens), not yet normalised. Raises ValueError for NaN."""
        block = normalised(logits)
        if np.isnan(block).any():
            raise ValueError("log-probabilities are not numbers")
        if self._values is None:
            shape = (self._rows, block.shape[1])
            self._values = np.lib.format.open_memmap(
                self._path, mode="w+", dtype=np.float32, shape=shape
            )
        self._values[self._next : self._next + len(block)] = block
        self._next += len(block)

    def close(self) -> None:
        if self._next != self._rows:
            raise ValueError(f"{self._next} rows of {self._rows}")
        self._values.flush()
        self._values = None


def put_likeliest(path: Path, rows: Sequence[Mapping[int, float]], vocabulary: int) -> None:
    """Write of each row the log-probabilities by token, as many of the likeliest as all rows have.

    Where that is the whole vocabulary, the rows are as `ScoreFile` writes them.
    """
    kept = min(len(row) for row in rows)
    if kept == vocabulary:
        file = ScoreFile(path, len(rows))
        for row in rows:
            file.put(np.array([[row[token] for token in range(vocabulary)]]))
        file.close()
        return
    ids = np.empty((len(rows), kept), np.int32)
    values = np.empty((len(rows), kept), np.float32)
    for number, row in enumerate(rows):
        likeliest = sorted(row, key=lambda token: (-row[token], token))[:kept]
        ids[number] = likeliest
        values[number] = [row[token] for token in likeliest]
    np.save(path, values)
    np.save(_ids_of(path), ids)


def _ids_of(path: Path) -> Path:
    return path.with_suffix(".ids.npy")


@dataclass(frozen=True)
class Scores:
    """An engine's rows, read from disk: of the whole vocabulary, or with ``ids`` of each row's
    likeliest tokens."""

    values: Floats
    ids: Ids | None = None

    @staticmethod
    def read(path: Path) -> Scores:
        ids = np.load(_ids_of(path)) if _ids_of(path).exists() else None
        return Scores(np.load(path, mmap_mode="r"), ids)

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
