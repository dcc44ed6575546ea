"""What sizing promises: never more than there is, and more for more."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from remerge.errors import RemergeError, UsageError
from remerge.serving.sizing.adapters import AdapterFacts
from remerge.serving.sizing.asked import Asked, Memory, Sized
from remerge.serving.sizing.cache import Layout, cache_bytes
from remerge.serving.sizing.rates import rates_of
from remerge.serving.sizing.shape import Attention, Layer, Shape
from remerge.serving.sizing.size import size
from remerge.serving.sizing.weights import Weights
from tests.serving.sizing.models import RATES, shapes, weights

_ENGINES = st.sampled_from(["vllm", "llama.cpp", "transformers"])
_ASKED = st.builds(
    Asked,
    context=st.none() | st.integers(1, 50_000),
    latency_budget=st.none() | st.floats(1, 1e6),
    sequences=st.none() | st.integers(1, 4) | st.integers(1, 256),
    cache_dtype=st.just("auto"),
    prompt=st.none() | st.integers(1, 4000),
)
_BYTES = st.integers(10**9, 10**13)

# A model of 8B in the shape of Llama 3: 32 layers, 8 heads of 128, 131,072 tokens.
LLAMA = Shape(
    "llama",
    (Layer(Attention(8, 128, 128)),) * 32,
    hidden=4096,
    query=4096,
    feed_forward=14336,
    vocabulary=128_256,
    max_context=131_072,
    dtype="bfloat16",
)
LLAMA_WEIGHTS = Weights(
    largest_file=4_976_698_672,
    floats=8_030_261_248,
    other=0,
    parameters=8_030_261_248,
    widest=1_050_673_152,
    stored_floats=16_060_522_496,
)


def _memory(given_bytes: int, *, gpu: bool = False) -> Memory:
    if gpu:
        return Memory(given_bytes, "as given", "NVIDIA A10", 2 * given_bytes)
    return Memory(given_bytes, "as given", threads=2)


def _sized(shape: Shape, has: Weights, memory: Memory, asked: Asked, engine: str) -> Sized | None:
    """None where it is refused."""
    try:
        return size(shape, has, memory, asked, engine, RATES)
    except RemergeError as error:
        assert error.hint
        return None


@settings(max_examples=150, deadline=None)
@given(shapes(), weights(), _BYTES, _ASKED, _ENGINES, st.booleans())
def test_never_more_than_there_is(shape, has, count, asked, engine, gpu) -> None:
    found = _sized(shape, has, _memory(count, gpu=gpu), asked, engine)
    if found is None:
        return
    assert found.parts.total <= count == found.parts.given
    assert 1 <= found.settings.context <= (shape.max_context or 2048)
    assert found.settings.sequences >= 1
    assert found.parts.cache == found.settings.cache_bytes
    if asked.context is not None:
        assert found.settings.context == asked.context
    if asked.sequences is not None:
        assert found.settings.sequences == asked.sequences
    if engine != "transformers":
        # vLLM refuses a batch that has no room for a token of every sequence.
        assert found.settings.batch >= found.settings.sequences


@settings(max_examples=120, deadline=None)
@given(shapes(), weights(), _BYTES, _BYTES, _ASKED, _ENGINES, st.booleans())
def test_more_memory_never_gives_less(shape, has, one, other, asked, engine, gpu) -> None:
    less, more = sorted((one, other))
    small = _sized(shape, has, _memory(less, gpu=gpu), asked, engine)
    large = _sized(shape, has, _memory(more, gpu=gpu), asked, engine)
    if small is None:
        return
    assert large is not None
    assert large.settings.context >= small.settings.context
    if asked.context is not None or large.settings.context == small.settings.context:
        assert large.settings.sequences >= small.settings.sequences


def test_a_longer_step_never_takes_the_place_of_sequences() -> None:
    """Where memory is tight steps are shorter; a little more of it makes them longer."""
    wide = replace(LLAMA, hidden=8192, query=8192, feed_forward=32768)
    found = [
        size(wide, LLAMA_WEIGHTS, _memory(n * 2**24, gpu=True), Asked(context=2048), "vllm", RATES)
        for n in range(1140, 1400)
    ]
    for less, more in pairwise(found):
        assert less.settings.sequences <= more.settings.sequences
    assert {sized.settings.batch for sized in found} >= {512, 1024, 2048}


@settings(max_examples=120, deadline=None)
@given(shapes(), weights(), _BYTES, _ASKED, _ENGINES, st.integers(1, 50_000))
def test_a_longer_context_never_gives_more_sequences(
    shape, has, count, asked, engine, context
) -> None:
    asked = replace(asked, context=asked.context or 512, sequences=None)
    long = replace(asked, context=max(context, asked.context))
    one = _sized(shape, has, _memory(count), asked, engine)
    other = _sized(shape, has, _memory(count), long, engine)
    if other is None:
        return
    assert one is not None
    assert other.settings.sequences <= one.settings.sequences


@settings(max_examples=80, deadline=None)
@given(shapes(), st.integers(1, 3000), st.integers(1, 8), st.integers(1, 4096))
def test_caches_grow_with_what_they_hold(shape, context, sequences, batch) -> None:
    for engine, block in (("vllm", 16), ("llama.cpp", 1), ("transformers", 1)):
        layout = Layout(engine, 2, block, batch)
        here = cache_bytes(shape, layout, context, sequences)
        assert here <= cache_bytes(shape, layout, context + 1, sequences)
        assert here < cache_bytes(shape, layout, context, sequences + 1) or here == 0


def test_a_known_model() -> None:
    """128 KiB a token in 16 bits: 32 layers x 2 x 8 heads x 128 x 2 bytes."""
    found = _sized(LLAMA, LLAMA_WEIGHTS, _memory(40 * 2**30), Asked(context=8192), "vllm")
    assert found is not None
    block = 128 * 131_072
    assert found.settings.cache_bytes == (found.settings.sequences * 64 + 1) * block
    assert found.settings.context == 8192


def test_the_models_own_context_is_the_most() -> None:
    with pytest.raises(UsageError, match=r"131,072"):
        size(LLAMA, LLAMA_WEIGHTS, _memory(10**12), Asked(context=131_073), "vllm", RATES)


def test_what_is_lacking_is_said_with_what_would_fit() -> None:
    with pytest.raises(UsageError) as caught:
        size(LLAMA, LLAMA_WEIGHTS, _memory(34 * 2**30), Asked(context=131_072), "vllm", RATES)
    assert "lacking" in caught.value.what
    assert "Weights take" in (caught.value.why or "")
    hint = caught.value.hint or ""
    fits = int(hint.split("--context ")[1].split()[0])
    found = _sized(LLAMA, LLAMA_WEIGHTS, _memory(34 * 2**30), Asked(context=fits), "vllm")
    assert found is not None
    needed = int(hint.split("--memory ")[1].split("MiB")[0]) * 2**20
    whole = _sized(LLAMA, LLAMA_WEIGHTS, _memory(needed), Asked(context=131_072), "vllm")
    assert whole is not None


def test_the_latency_budget_bounds_sequences_and_steps() -> None:
    free = _sized(LLAMA, LLAMA_WEIGHTS, _memory(2**36), Asked(context=2048), "vllm")
    tight = replace(Asked(context=2048), latency_budget=400_000.0)
    bound = _sized(LLAMA, LLAMA_WEIGHTS, _memory(2**36), tight, "vllm")
    assert free is not None
    assert bound is not None
    # 512 tokens x 2 operations x 8.03e9 parameters, twice as slow in 16 bits, at 1e11 a second.
    assert bound.settings.sequences == 2 < free.settings.sequences
    assert bound.forecast.first_token <= 400
    endless = _sized(
        LLAMA, LLAMA_WEIGHTS, _memory(2**36), replace(tight, latency_budget=float("inf")), "vllm"
    )
    assert endless is not None
    assert endless.settings == free.settings
    hopeless = replace(tight, latency_budget=1.0)
    found = _sized(LLAMA, LLAMA_WEIGHTS, _memory(2**36), hopeless, "vllm")
    assert found is not None
    assert found.settings.sequences == 1
    assert found.settings.batch == 128
    assert any("not kept" in reason for reason in found.reasons)


@pytest.mark.parametrize(
    ("engine", "dtype", "share"),
    [("vllm", "fp8", 1 / 2), ("llama.cpp", "q8_0", 34 / 64), ("llama.cpp", "q4_0", 18 / 64)],
)
def test_narrow_caches(engine: str, dtype: str, share: float) -> None:
    asked = Asked(context=4096, sequences=2)
    wide = _sized(LLAMA, LLAMA_WEIGHTS, _memory(2**36), asked, engine)
    narrow = _sized(LLAMA, LLAMA_WEIGHTS, _memory(2**36), replace(asked, cache_dtype=dtype), engine)
    assert wide is not None
    assert narrow is not None
    assert narrow.settings.cache_bytes == wide.settings.cache_bytes * share


@pytest.mark.parametrize(
    "asked",
    [
        Asked(context=0),
        Asked(sequences=0),
        Asked(latency_budget=0.0),
        Asked(cache_dtype="q8_0"),
        Asked(dtype="int3"),
        Asked(sequences=5000),
    ],
)
def test_wishes_that_make_no_sense(asked: Asked) -> None:
    with pytest.raises(UsageError):
        size(LLAMA, LLAMA_WEIGHTS, _memory(2**36), asked, "vllm", RATES)


def test_rates_of_gpus() -> None:
    for name, bandwidth in (
        ("NVIDIA A10", 3e11),
        ("NVIDIA H100 80GB HBM3", 1.675e12),
        ("NVIDIA H100 PCIe", 1e12),
        ("NVIDIA L40S", 4.32e11),
        ("Tesla T4", 1.6e11),
    ):
        assert rates_of(Memory(1, "", name, 1)).bandwidth == bandwidth, name
    assert "not known" in rates_of(Memory(1, "", "NVIDIA B9000", 1)).source


def test_a_gpu_is_taken_by_its_share() -> None:
    memory = Memory(20 * 2**30, "as given", "NVIDIA A10", 24 * 2**30)
    found = _sized(LLAMA, LLAMA_WEIGHTS, memory, Asked(context=4096), "vllm")
    assert found is not None
    assert found.settings.gpu_fraction == 0.83
    assert found.settings.threads is None


def test_adapters_on_processors_take_memory_for_every_token() -> None:
    """vLLM's slots are on every matrix, and each token of a step has copies of the widest one."""
    has = replace(LLAMA_WEIGHTS, edges=1_000_000)
    adapter = AdapterFacts(rank=12, elements=10**6, stored=2 * 10**6)
    one = size(LLAMA, has, _memory(2**36), Asked(context=2048, sequences=1), "vllm", RATES)
    two = size(
        LLAMA, has, _memory(2**36), Asked(context=2048, sequences=1), "vllm", RATES,
        adapters=[adapter, adapter],
    )  # fmt: skip
    # Two slots of rank 16 and 16 bits, and both adapters, as read and as cast.
    assert two.parts.adapters == 2 * 16 * 10**6 * 2 + 2 * (2 * 10**6 + 2 * 10**6)
    assert two.settings.batch == 256 < (one.settings.batch or 0)
    at_once = one.parts.compute * 256 / (one.settings.batch or 1)
    assert two.parts.compute >= at_once + 256 * 16 * 6 * 14336 * 0.9
    beside = size(
        LLAMA, has, _memory(2**36), Asked(context=2048), "llama.cpp", RATES, adapters=[adapter]
    )
    assert beside.parts.adapters == adapter.stored
