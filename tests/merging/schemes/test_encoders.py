"""What a scheme makes of a weight, in whatever pieces: the bits that compressed-tensors makes."""

from __future__ import annotations

import math

import pytest
import torch

from remerge.errors import BadInput
from remerge.merging.schemes.registry import SCHEMES
from remerge.sources.codecs.codec import Encodes, Joins
from remerge.sources.dtypes import dtype_name
from tests.merging.schemes.models import scheme_of
from tests.sources.codecs import checks
from tests.sources.codecs import test_compressed_tensors as library

SHAPES = {
    "fp8": [(7, 33), (1, 1), (300, 17)],
    "fp8-block": [(300, 256), (5, 128), (128, 384)],
    "w8a8": [(7, 33), (1, 1), (300, 17)],
    "nvfp4": [(7, 48), (1, 16), (300, 32)],
}


def spoilt(weight: torch.Tensor) -> dict[str, torch.Tensor]:
    """Weights that leave scales little to work with."""
    rows = torch.arange(len(weight))
    unit = weight / weight.abs().max()
    huge = unit * torch.where(rows % 2 == 0, 3e37, 1.0).unsqueeze(1)
    tiny = unit * torch.where(rows % 3 == 0, 1e-40, 1e-20).unsqueeze(1)
    zeros = weight * (rows % 2).unsqueeze(1)
    same = torch.full_like(weight, -0.1) * (1 + rows % 3).unsqueeze(1)
    return {
        "random": weight,
        "zero rows": zeros,
        "all zero": torch.zeros_like(weight),
        "equal rows": same,
        "huge": huge,
        "tiny": tiny,
    }


def parts(
    name: str, weight: torch.Tensor, dtype: torch.dtype, pieces: int = 2
) -> dict[str, torch.Tensor]:
    codec = SCHEMES[name].encoder("x.weight", (len(weight), weight.shape[1]), dtype_name(dtype))
    assert isinstance(codec, Encodes)
    values = checks.source(weight)
    measured = codec.measure(values)
    if isinstance(codec, Joins):
        measured = codec.joined([measured])
    found: dict[str, torch.Tensor] = {}
    for role, part in codec.parts.items():
        flat = codec.encode(role, values, measured, 0, math.prod(part.shape))

        def piece(first: int, count: int, role: str = role) -> torch.Tensor:
            return codec.encode(role, values, measured, first, count)

        checks.check_pieces(flat, piece, pieces)
        found[part.name.removeprefix("x.")] = flat.view(part.shape)
    return found


def by_the_library(name: str, weight: torch.Tensor, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    # The library adds a zero point of zero, if it has one, and so makes minus zero plus.
    return library.quantised(weight + 0.0, scheme_of(name), dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", SCHEMES)
def test_equals_the_library(name: str, dtype: torch.dtype):
    for shape in SHAPES[name]:
        weights = spoilt(library.random(*shape, seed=shape[0]))
        if dtype != torch.float32:
            # The library would store a scale of zero.
            del weights["tiny"]
        if dtype == torch.float16:
            del weights["huge"]
        for what, weight in weights.items():
            wanted = by_the_library(name, weight, dtype)
            found = parts(name, weight + 0.0, dtype, 8 if what == "random" else 1)
            assert found.keys() == wanted.keys()
            for key, tensor in wanted.items():
                assert checks.same(found[key], tensor.contiguous()), (what, shape, key)


def test_scales_that_float16_cannot_hold():
    weights = spoilt(library.random(6, 32))
    tiny = parts("fp8", weights["tiny"], torch.float16)
    assert (tiny["weight_scale"] == torch.finfo(torch.float16).eps).all()
    with pytest.raises(BadInput, match="does not fit float16"):
        parts("fp8", weights["huge"], torch.float16)


@pytest.mark.parametrize("name", ["fp8", "fp8-block", "nvfp4"])
@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_what_is_not_finite_is_written_as_the_library_writes_it(name: str, value: float):
    weight = library.random(*SHAPES[name][0])
    weight[2, 3] = value
    wanted = by_the_library(name, weight, torch.float32)
    for key, tensor in parts(name, weight, torch.float32).items():
        # Not a number has many spellings.
        theirs = wanted[key].float()
        assert ((tensor.float() == theirs) | (tensor.float().isnan() & theirs.isnan())).all(), key
