"""Models whose layers are Conv1D: quantisers turn those weights round, and so must a reader.

A Conv1D stores (in, out). bitsandbytes quantises its transpose (`Bnb4bitQuantize` and
`Bnb8bitQuantize` in transformers/integrations/bitsandbytes.py), and GPTQ packs it as it would the
transpose, so that the codes read as a Linear's (out, in).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from remerge.sources.checkpoint import StoredTensor
from remerge.sources.codecs.codec import Codec, Encodes, Read, Values
from remerge.sources.documents import as_object
from remerge.sources.dtypes import torch_dtype

# The users of transformers.pytorch_utils.Conv1D in transformers/models, and their layers.
_MODELS = frozenset({"gpt2", "openai-gpt", "imagegpt", "decision_transformer", "clvp"})
_LAYERS = frozenset({"c_attn", "q_attn", "c_proj", "c_fc"})

_BAND = 2**20


@dataclass(frozen=True)
class Transposed:
    """A matrix whose codes hold its transpose."""

    inner: Codec

    @property
    def name(self) -> str:
        return self.inner.name

    @property
    def dtype(self) -> str:
        return self.inner.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return self.inner.shape[::-1]

    @property
    def format(self) -> str:
        return self.inner.format

    @property
    def parts(self) -> Mapping[str, StoredTensor]:
        return self.inner.parts

    def decode(self, read: Read, first: int, count: int) -> torch.Tensor:
        rows, width = self.inner.shape
        start, stop = first // rows, -(-(first + count) // rows)
        block = torch.empty((stop - start, rows), dtype=torch_dtype(self.dtype))
        step = max(_BAND // width, 1)
        for row in range(0, rows, step):
            band = min(step, rows - row)
            decoded = self.inner.decode(read, row * width, band * width).view(band, width)
            block[:, row : row + band] = decoded[:, start:stop].T
        return block.view(-1)[first - start * rows :][:count]


@dataclass(frozen=True)
class TransposedWriter(Transposed):
    """One whose format can be written."""

    encoder: Encodes

    @property
    def rewritten(self) -> frozenset[str]:
        return self.encoder.rewritten

    def measure(self, values: Values) -> dict[str, torch.Tensor]:
        return self.encoder.measure(self._turned(values))

    def encode(
        self,
        role: str,
        values: Values,
        measured: Mapping[str, torch.Tensor],
        first: int,
        count: int,
    ) -> torch.Tensor:
        return self.encoder.encode(role, self._turned(values), measured, first, count)

    def _turned(self, values: Values) -> Values:
        """The merged tensor's values in the order of the codes. Each range of them is gathered
        from the whole tensor, which is small in every model that has a Conv1D."""
        rows, width = self.inner.shape

        def turned(first: int, count: int) -> torch.Tensor:
            start, stop = first // width, -(-(first + count) // width)
            block = torch.empty((stop - start, width), dtype=torch.float64)
            step = max(_BAND // rows, 1)
            for at in range(0, width, step):
                band = min(step, width - at)
                merged = values(at * rows, band * rows).view(band, rows)
                block[:, at : at + band] = merged[:, start:stop].T
            return block.view(-1)[first - start * width :][:count]

        return turned


def as_stored(config: Mapping[str, Any], codec: Codec) -> Codec:
    """The codec in the orientation of the checkpoint that is not quantised."""
    if len(codec.shape) != 2 or not _is_conv1d(config, codec.name):
        return codec
    if isinstance(codec, Encodes):
        return TransposedWriter(codec, codec)
    return Transposed(codec)


def _is_conv1d(config: Mapping[str, Any], name: str) -> bool:
    places = (config, as_object(config.get("text_config")) or {})
    types = {str(place.get("model_type")) for place in places}
    return bool(types & _MODELS) and name.split(".")[-2:-1] in [[layer] for layer in _LAYERS]
