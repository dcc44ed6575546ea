"""What every codec must hold to, whatever its format: flat ranges, and parts written in pieces."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from remerge.sources.checkpoint import open_checkpoint
from remerge.sources.codecs.codec import Codec, Encodes, Values
from remerge.sources.codecs.formats import find_codecs
from remerge.sources.dtypes import torch_dtype
from remerge.sources.reading import Reader

torch.set_num_threads(1)


def stored(
    place: Path, tensors: Mapping[str, torch.Tensor], config: Mapping[str, Any]
) -> tuple[dict[str, Codec], Reader]:
    """The codecs of a checkpoint of these tensors, and what reads it."""
    place.mkdir(parents=True, exist_ok=True)
    save_file(
        {name: tensor.clone().contiguous() for name, tensor in tensors.items()},
        place / "model.safetensors",
    )
    (place / "config.json").write_text(json.dumps(config))
    base = open_checkpoint(place)
    reader = Reader(base)
    return find_codecs(base.config, base.tensors, reader.stored), reader


def whole(codec: Codec, reader: Reader) -> torch.Tensor:
    """A codec's tensor, decoded in one piece."""
    return codec.decode(reader.span, 0, prod(codec.shape)).view(codec.shape)


def same(found: torch.Tensor, wanted: torch.Tensor) -> bool:
    """Equal in shape, dtype and every bit."""
    if found.shape != wanted.shape or found.dtype != wanted.dtype:
        return False
    return torch.equal(
        found.contiguous().flatten().view(torch.uint8),
        wanted.contiguous().flatten().view(torch.uint8),
    )


def check_pieces(whole: torch.Tensor, piece: Values, examples: int) -> None:
    """Each range of a flat tensor, asked for alone, is the slice of the whole."""

    @settings(max_examples=examples, deadline=None, database=None)
    @given(st.data())
    def pieces(data: st.DataObject) -> None:
        first = data.draw(st.integers(0, len(whole) - 1))
        count = data.draw(st.integers(1, len(whole) - first))
        assert same(piece(first, count), whole[first : first + count])

    pieces()


def check_ranges(codec: Codec, reader: Reader, examples: int = 25) -> None:
    """Each range decodes to the slice of the whole."""
    decoded = whole(codec, reader).flatten()
    check_pieces(decoded, partial(codec.decode, reader.span), examples)


def source(merged: torch.Tensor) -> Values:
    """A merged tensor as encoders ask for it."""
    flat = merged.flatten().to(torch.float64)

    def values(first: int, count: int) -> torch.Tensor:
        assert 0 <= first <= first + count <= len(flat)
        return flat[first : first + count].clone()

    return values


def encoded(codec: Codec, merged: torch.Tensor, examples: int = 15) -> dict[str, torch.Tensor]:
    """The parts that a merged tensor is written as, by role, the same in whatever pieces."""
    assert isinstance(codec, Encodes)
    values = source(merged)
    measured = codec.measure(values)
    found: dict[str, torch.Tensor] = {}
    for role in sorted(codec.rewritten):
        part = codec.parts[role]
        flat = codec.encode(role, values, measured, 0, prod(part.shape))
        assert flat.dtype == torch_dtype(part.dtype)

        check_pieces(flat, partial(codec.encode, role, values, measured), examples)
        found[role] = flat.view(part.shape)
    return found
