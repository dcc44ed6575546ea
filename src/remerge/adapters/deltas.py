"""What an adapter does to one base tensor, answered block by block.

The base tensor is seen as a matrix: a convolution ``(a, b, k, k)`` has ``a`` rows and ``b*k*k``
columns, a vector one column, a stack of expert matrices ``(E, a, b)`` has ``E*a`` rows. That is
always a reshape of the contiguous tensor, never a transposition. A delta changes a window of
that matrix, widened to float64, in place. Deltas of one tensor apply in order.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Protocol, runtime_checkable

import torch

# What `prepare` computed once for a tensor: small float64 (or index) tensors by name.
Prepared = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Window:
    """A rectangle of a tensor's matrix view."""

    rows: range
    cols: range


@dataclass(frozen=True)
class Factor:
    """A matrix that comes from the adapter: its shape now, its float64 values when needed.

    ``read_rows`` and ``read_columns`` read a block alone, so that a matrix as long as a vocabulary
    is never widened whole.
    """

    shape: tuple[int, int]
    read: Callable[[], torch.Tensor]
    read_rows: Callable[[range], torch.Tensor] | None = None
    read_columns: Callable[[range], torch.Tensor] | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of the widened values."""
        return 8 * self.shape[0] * self.shape[1]


class BaseMatrix(Protocol):
    """The base tensor as a preparation reads it: whole rows, widened to float64."""

    @property
    def shape(self) -> tuple[int, int]: ...

    @property
    def dtype(self) -> torch.dtype: ...

    def rows(self, rows: range) -> torch.Tensor:
        """A float64 copy of these rows, shape ``(len(rows), columns)``."""
        ...

    def other(self, tensor: str) -> BaseMatrix:
        """Another tensor of the same base, before any change."""
        ...


# Loads a factor through a bounded cache; deltas must not keep what it returns.
Load = Callable[[Factor], torch.Tensor]


class Delta(Protocol):
    """One step on one base tensor.

    ``stage`` orders the steps of a tensor as PEFT does things: load (0), derive the residual (1),
    round it (2), add what was trained (3), set trained rows (4).
    """

    stage: ClassVar[int]

    @property
    def factors(self) -> tuple[Factor, ...]:
        """What this step reads from the adapter."""
        ...

    def prepare(self, base: BaseMatrix, load: Load) -> dict[str, torch.Tensor]:
        """Numbers that need more than a window of the base, computed once; {} when none."""
        ...

    def apply(self, tile: torch.Tensor, window: Window, load: Load, prepared: Prepared) -> None:
        """Change ``tile``, the float64 values of ``window``, in place."""
        ...


@runtime_checkable
class WholeRows(Protocol):
    """A delta whose value at one place may need the base's whole row there, or rows around it."""

    @property
    def whole_rows(self) -> bool: ...

    def widen(self, rows: range) -> range:
        """The smallest range of rows around these that can be changed alone."""
        ...


@runtime_checkable
class Decomposes(Protocol):
    """A step whose preparation may take a whole matrix to LAPACK."""

    def bytes_needed(self, shape: tuple[int, int]) -> int:
        """Peak bytes of the preparation for a tensor with this matrix view, 0 for none."""
        ...


def step_name(step: Delta) -> str:
    """What a step is called in plans."""
    name: str = getattr(step, "name", type(step).__name__)
    return name


# Factors above this many bytes are read by the rows that a window needs.
_LARGE = 2**23


def rows_of(factor: Factor, rows: slice, load: Load) -> torch.Tensor:
    """Some rows of a factor in float64, from the cache or, of a large one, from the file."""
    if factor.nbytes > _LARGE and factor.read_rows is not None:
        return factor.read_rows(range(rows.start, rows.stop))
    return load(factor)[rows]


def overlap(whole: range, start: int, length: int) -> tuple[slice, slice] | None:
    """Where ``[start, start + length)`` meets ``whole``: the slice of ``whole`` and that of the
    block, or None when they do not meet."""
    first, last = max(whole.start, start), min(whole.stop, start + length)
    if first >= last:
        return None
    return slice(first - whole.start, last - whole.start), slice(first - start, last - start)


@dataclass(frozen=True)
class LowRank:
    """``W[row:, col:] += scale * left @ right`` with ``left (m, r)`` and ``right (r, n)``.

    LoRA's ``s * (B @ A)`` (arXiv:2106.09685); a transposed layer swaps and transposes the factors:
    where it is ``turned``, ``left`` comes from A and ``right`` from B.
    """

    left: Factor
    right: Factor
    scale: float
    row: int = 0
    col: int = 0
    turned: bool = False

    stage: ClassVar[int] = 3

    @property
    def factors(self) -> tuple[Factor, ...]:
        return (self.left, self.right)

    def prepare(self, base: BaseMatrix, load: Load) -> dict[str, torch.Tensor]:
        return {}

    def apply(self, tile: torch.Tensor, window: Window, load: Load, prepared: Prepared) -> None:
        rows = overlap(window.rows, self.row, self.left.shape[0])
        cols = overlap(window.cols, self.col, self.right.shape[1])
        if rows is None or cols is None:
            return
        left = rows_of(self.left, rows[1], load).to(tile.device)
        right = load(self.right)[:, cols[1]]
        tile[rows[0], cols[0]].addmm_(left, right, alpha=self.scale)


@dataclass(frozen=True)
class Added:
    """``W[row:] += scale * values`` for dense values ``(m, n)``: the bias of a LoRA layer."""

    values: Factor
    scale: float
    row: int = 0

    stage: ClassVar[int] = 3

    @property
    def factors(self) -> tuple[Factor, ...]:
        return (self.values,)

    def prepare(self, base: BaseMatrix, load: Load) -> dict[str, torch.Tensor]:
        return {}

    def apply(self, tile: torch.Tensor, window: Window, load: Load, prepared: Prepared) -> None:
        rows = overlap(window.rows, self.row, self.values.shape[0])
        if rows is not None:
            values = load(self.values)[rows[1], window.cols.start : window.cols.stop]
            tile[rows[0]].add_(values, alpha=self.scale)


@dataclass(frozen=True)
class Replaced:
    """``W[row:, col:] = values``: modules_to_save, saved embeddings, trained biases.

    ``whole`` says that nothing of the base is left, so that the base need not be read (it may lack
    the tensor, or have another shape).
    """

    values: Factor
    row: int = 0
    col: int = 0
    whole: bool = True

    stage: ClassVar[int] = 0

    @property
    def factors(self) -> tuple[Factor, ...]:
        return (self.values,)

    def prepare(self, base: BaseMatrix, load: Load) -> dict[str, torch.Tensor]:
        return {}

    def apply(self, tile: torch.Tensor, window: Window, load: Load, prepared: Prepared) -> None:
        rows = overlap(window.rows, self.row, self.values.shape[0])
        cols = overlap(window.cols, self.col, self.values.shape[1])
        if rows is None or cols is None:
            return
        values = rows_of(self.values, rows[1], load)
        tile[rows[0], cols[0]] = values[:, cols[1]].to(tile.device)


@dataclass(frozen=True)
class ReplacedRows:
    """``W[indices] = values`` with ``values (len(indices), columns)``: trainable tokens."""

    values: Factor
    indices: tuple[int, ...]

    stage: ClassVar[int] = 4

    @property
    def factors(self) -> tuple[Factor, ...]:
        return (self.values,)

    def prepare(self, base: BaseMatrix, load: Load) -> dict[str, torch.Tensor]:
        return {}

    def apply(self, tile: torch.Tensor, window: Window, load: Load, prepared: Prepared) -> None:
        for position, index in enumerate(self.indices):
            if index in window.rows:
                values = load(self.values)[position, window.cols.start : window.cols.stop]
                tile[index - window.rows.start] = values


@dataclass(frozen=True)
class Rounded:
    """``W = round(W)`` to a dtype: where PEFT stores an intermediate result in the base's dtype."""

    dtype: torch.dtype

    stage: ClassVar[int] = 2

    @property
    def factors(self) -> tuple[Factor, ...]:
        return ()

    def prepare(self, base: BaseMatrix, load: Load) -> dict[str, torch.Tensor]:
        return {}

    def apply(self, tile: torch.Tensor, window: Window, load: Load, prepared: Prepared) -> None:
        tile.copy_(tile.to(torch.float32).to(self.dtype))


@dataclass(frozen=True, eq=False)
class Change:
    """All that happens to one tensor of the output. Each is equal to itself alone: steps may hold
    arrays, which have no hash.

    ``shape`` and ``dtype`` (a safetensors dtype name, e.g. ``BF16``) are the output's before
    ``--dtype``; ``view`` is the matrix the steps work on. ``reads_base`` is False when the first
    step replaces everything (a new or resized tensor). ``source`` names the base tensor whose
    values the steps start from where it is not ``tensor`` itself: a head that is untied from its
    embedding starts as the embedding, possibly without a single step.
    """

    tensor: str
    shape: tuple[int, ...]
    dtype: str
    view: tuple[int, int]
    steps: tuple[Delta, ...]
    reads_base: bool = True
    source: str | None = None

    @property
    def whole_rows(self) -> bool:
        """Whether values can only be computed by whole rows."""
        return any(isinstance(step, WholeRows) and step.whole_rows for step in self.steps)

    def widen(self, rows: range) -> range:
        """The smallest range of rows around these that can be changed alone."""
        while True:
            wider = rows
            for step in self.steps:
                if isinstance(step, WholeRows) and step.whole_rows:
                    wider = step.widen(wider)
            if wider == rows:
                return rows
            rows = wider


@dataclass(frozen=True)
class Changes:
    """What an adapter asks for, in terms of the checkpoint.

    ``tensors`` by checkpoint name; ``config`` holds dotted keys of config.json with their new
    values; ``notes`` are sentences the user must read; ``counts`` says how many adapter tensors of
    which kind were consumed, for the summary; ``rslora``: its scales are rank-stabilised.
    """

    tensors: Mapping[str, Change]
    config: Mapping[str, object]
    notes: tuple[str, ...]
    counts: Mapping[str, int]
    dropped: frozenset[str] = frozenset()
    rslora: bool = False
