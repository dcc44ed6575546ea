"""Reading a base checkpoint's values: plain tensors from their bytes, quantised ones decoded."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from threading import Lock
from typing import Any

import torch

from remerge.sources.checkpoint import Checkpoint, StoredTensor
from remerge.sources.codecs.codec import Codec
from remerge.sources.codecs.formats import find_codecs
from remerge.sources.codecs.stated import KEYS
from remerge.sources.documents import as_object
from remerge.sources.dtypes import torch_dtype
from remerge.sources.pickled import PickledFile
from remerge.sources.storage import InputFile

# A tensor of the base as it reads: stored plainly, or in a quantised format.
Source = StoredTensor | Codec

# Codecs whose values lie across their codes ask for the same long span again and again.
_LONG = 2**20
_SPANS = 4


@dataclass
class Reader:
    """The open files of a checkpoint; for any number of threads."""

    base: Checkpoint
    _files: dict[str, InputFile] = field(default_factory=dict[str, InputFile])
    _spans: OrderedDict[tuple[str, int, int], torch.Tensor] = field(
        default_factory=OrderedDict[tuple[str, int, int], torch.Tensor]
    )
    _lock: Any = field(default_factory=Lock)

    def file(self, shard: str) -> InputFile | PickledFile:
        """The open file of a base shard, as its header describes it."""
        return self.base.shard(shard).pickled or self.raw_file(shard)

    def raw_file(self, shard: str) -> InputFile:
        """The open file of a base shard, as it lies on disk."""
        with self._lock:
            if shard not in self._files:
                self._files[shard] = InputFile(self.base.shard(shard).path)
            return self._files[shard]

    def stored(self, tensor: StoredTensor, first: int, count: int) -> torch.Tensor:
        """``count`` elements of a stored tensor from ``first`` on, 1-D, as stored."""
        dtype = torch_dtype(tensor.dtype)
        buffer = bytearray(count * dtype.itemsize)
        if not buffer:
            return torch.empty(0, dtype=dtype)
        offset = tensor.start + first * dtype.itemsize
        self.file(tensor.shard).read_into(memoryview(buffer), offset, len(buffer))
        return torch.frombuffer(buffer, dtype=dtype)

    def values(self, source: Source, first: int, count: int) -> torch.Tensor:
        """``count`` elements of a tensor from ``first`` on, 1-D, decoded where it is quantised."""
        if isinstance(source, StoredTensor):
            return self.stored(source, first, count)
        return source.decode(self.span, first, count)

    def span(self, tensor: StoredTensor, first: int, count: int) -> torch.Tensor:
        """As `stored`; the last few long spans are kept, and must not be written to."""
        if count * torch_dtype(tensor.dtype).itemsize < _LONG:
            return self.stored(tensor, first, count)
        key = (tensor.name, first, count)
        with self._lock:
            found = self._spans.get(key)
            if found is not None:
                self._spans.move_to_end(key)
                return found
        read = self.stored(tensor, first, count)
        with self._lock:
            self._spans[key] = read
            while len(self._spans) > _SPANS:
                self._spans.popitem(last=False)
        return read

    def close(self) -> None:
        for file in self._files.values():
            file.close()
        self._files.clear()
        self._spans.clear()


@dataclass(frozen=True)
class DecodedBase:
    """A base as the model sees it: the configuration without its quantisation, every tensor by the
    name it has unquantised, in the order of the shards (a quantised one at the place of its codes).

    ``codecs`` are the quantised ones among them.
    """

    config: Mapping[str, Any]
    tensors: Mapping[str, Source]
    codecs: Mapping[str, Codec]


def decoded(base: Checkpoint) -> DecodedBase:
    """The base as it reads; the base itself where nothing is quantised.

    Raises `BadInput` where parts of a quantised tensor contradict each other, `Unsupported` for
    formats that are not known.
    """
    reader = Reader(base)
    try:
        codecs = find_codecs(base.config, base.tensors, reader.stored)
    finally:
        reader.close()
    if not codecs:
        return DecodedBase(unquantised(base.config), base.tensors, {})
    parts = {part.name for codec in codecs.values() for part in codec.parts.values()}
    at = {codec.parts["codes"].name: codec for codec in codecs.values()}
    tensors: dict[str, Source] = {}
    for name, stored in base.tensors.items():
        if name in at:
            tensors[at[name].name] = at[name]
        elif name not in parts:
            tensors[name] = stored
    return DecodedBase(unquantised(base.config), tensors, codecs)


def unquantised(config: Mapping[str, Any]) -> dict[str, Any]:
    """config.json without any ``quantization_config``, under its older name neither."""
    kept = {key: value for key, value in config.items() if key not in KEYS}
    text = as_object(kept.get("text_config"))
    if text is not None:
        kept["text_config"] = {key: value for key, value in text.items() if key not in KEYS}
    return kept
