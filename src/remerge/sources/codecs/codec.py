"""What a quantised format can do: read a tensor's values from codes, and write codes back."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import torch

from remerge.sources.checkpoint import StoredTensor

# Reads ``count`` elements from ``first`` on of a stored tensor as stored, 1-D. Cheap for small
# counts; the codec must not keep what it returns.
Read = Callable[[StoredTensor, int, int], torch.Tensor]

# Gives ``count`` elements from ``first`` on of the merged tensor in float64, 1-D, unrounded.
Values = Callable[[int, int], torch.Tensor]


class Codec(Protocol):
    """One quantised tensor of a checkpoint: where its codes lie and what they mean.

    A codec is a frozen dataclass made from headers alone (and, where the format describes itself in
    a tensor, from that small tensor). Whatever decides a value is read again when asked for.
    """

    @property
    def name(self) -> str:
        """The tensor's name in the checkpoint that is not quantised."""
        ...

    @property
    def dtype(self) -> str:
        """The safetensors dtype that the format's own library decodes to."""
        ...

    @property
    def shape(self) -> tuple[int, ...]:
        """The decoded shape, as the checkpoint that is not quantised would store it."""
        ...

    @property
    def format(self) -> str:
        """What to call it to the user: ``bitsandbytes nf4``, ``gptq 4 bit``."""
        ...

    @property
    def parts(self) -> Mapping[str, StoredTensor]:
        """All stored tensors that this one is made of, by role; ``codes`` is the largest."""
        ...

    def decode(self, read: Read, first: int, count: int) -> torch.Tensor:
        """Elements ``[first, first + count)`` of the flattened decoded tensor, 1-D, of ``dtype``.

        The bits are those that the format's own library gives on the CPU. Memory is bounded by a
        small multiple of ``count`` (at most 2^20 or so) and of one row or block of the tensor.
        """
        ...


@runtime_checkable
class Encodes(Protocol):
    """A codec that can also write the format: scales derived anew, everything else as it was."""

    @property
    def rewritten(self) -> frozenset[str]:
        """Roles whose bytes a changed tensor changes; the others keep the base's bytes."""
        ...

    def measure(self, values: Values) -> dict[str, torch.Tensor]:
        """Numbers that need the whole merged tensor (a global scale), small; {} when none."""
        ...

    def encode(
        self,
        role: str,
        values: Values,
        measured: Mapping[str, torch.Tensor],
        first: int,
        count: int,
    ) -> torch.Tensor:
        """Elements ``[first, first + count)`` of the flattened part ``role``, 1-D, in its stored
        dtype: what the format's own quantiser gives for the merged values rounded to float32.

        It may ask ``values`` for more than those elements need (the rest of a block), but holds
        no more than a few times ``count`` at once.
        """
        ...


@runtime_checkable
class Rounds(Encodes, Protocol):
    """An `Encodes` whose codes lie across its values, so that a few values need many codes."""

    def rounded(
        self, values: Values, measured: Mapping[str, torch.Tensor], first: int, count: int
    ) -> torch.Tensor:
        """What `decode` gives for elements ``[first, first + count)`` once all is encoded."""
        ...


@runtime_checkable
class Joins(Encodes, Protocol):
    """An `Encodes` whose measured numbers may be those of several tensors together."""

    def joined(self, found: Sequence[Mapping[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        """What `encode` is given, from what `measure` gave of this tensor and of the others."""
        ...


class Find(Protocol):
    """Finds all quantised tensors of a format in a checkpoint."""

    def __call__(
        self, config: Mapping[str, Any], tensors: Mapping[str, StoredTensor], read: Read
    ) -> list[Codec]:
        """``config`` is the whole config.json; ``read`` is for small self-describing tensors.

        Raises `BadInput` for parts that are missing or contradict each other, `Unsupported` for a
        variant of the format that is not read here, naming tensor and variant.
        """
        ...
