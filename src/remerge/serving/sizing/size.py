"""The sizes of a server: the longest context that fits, then as many sequences as fit beside it.

Pure: the same model, memory, rates and wishes give the same sizes. More memory never gives a
smaller context or fewer sequences; a longer context never gives more sequences.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import NoReturn

from remerge.engines.servers.server import Settings
from remerge.errors import BadInput, UsageError
from remerge.serving.sizing.adapters import AdapterFacts, adapters_bytes, computing_bytes
from remerge.serving.sizing.asked import Asked, Memory, Sized
from remerge.serving.sizing.cache import Layout, least_batch
from remerge.serving.sizing.figures import EngineFigures, element_bytes, figures_of
from remerge.serving.sizing.fitting import Load, largest
from remerge.serving.sizing.forecast import forecast_of, prefill_seconds
from remerge.serving.sizing.rates import Rates
from remerge.serving.sizing.reasons import bytes_of, hints_for, reasons_for
from remerge.serving.sizing.shape import Shape
from remerge.serving.sizing.weights import Weights

# Where a configuration does not say how long its sequences may be: what vLLM takes then.
_NO_LENGTH = 2048
# A context that is lowered to what fits is a whole number of these.
_UNIT = 256
# Of prompts that nothing is said about.
_PROMPT = 512
# So many sequences come before a longer step; what the engine takes of itself before more of them.
_FEW = 4
# Sequences that a budget allows where there is none.
_NO_BUDGET = 2**31
# Tokens in a step where each takes a copy of an adapter.
_ADAPTING_BATCH = 256
_DTYPES = {
    "float32": 4, "float": 4, "float16": 2, "half": 2, "bfloat16": 2
}  # fmt: skip


def size(
    shape: Shape,
    weights: Weights,
    memory: Memory,
    asked: Asked,
    engine: str,
    rates: Rates,
    *,
    adapters: Sequence[AdapterFacts] = (),
) -> Sized:
    """Sizes for ``engine``; ``adapters`` are what it serves unmerged.

    Raises `UsageError` for a wish that makes no sense or does not fit while less would, `BadInput`
    where not even one short sequence fits.
    """
    figures = figures_of(engine, gpu=memory.gpu_name is not None)
    _check(asked, figures, engine)
    element = _element(engine, asked.dtype, shape)
    layout = _layout(engine, figures, shape, asked, element)
    loaded = adapters_bytes(engine, adapters, weights, element)
    adapting = computing_bytes(engine, adapters, shape, element, gpu=memory.gpu_name is not None)
    load = Load(shape, weights, figures, layout, element, loaded, memory.given, adapting)
    longest = shape.max_context or _NO_LENGTH
    if asked.context is not None and asked.context > longest:
        raise UsageError(
            f"A context of {asked.context:,} tokens is more than the model's {longest:,}.",
            why="Beyond it engines refuse, or the model answers nonsense.",
            hint=f"Ask for --context {longest} or less.",
        )
    target = asked.context or longest
    narrow = element == 2 and memory.gpu_name is None and engine != "llama.cpp"
    budget = _within_budget(shape, weights, asked, rates, target, narrow=narrow)
    batch = _batch(shape, weights, asked, figures, rates, target, narrow=narrow)
    wanted = asked.sequences or 1
    if adapting[0]:
        # A long step would take more than the model: see `computing_bytes`.
        batch = min(batch, max(_ADAPTING_BATCH, figures.smallest_batch))
    # States are kept at the ends of blocks, of which a batch holds one at least.
    whole = least_batch(shape, layout)
    batch = max(batch, whole)
    smallest = max(whole, _smallest_batch(figures, batch, wanted))
    context = target
    if not load.fits(target, wanted, smallest):
        context = largest(target, lambda n: load.fits(n, wanted, smallest), _UNIT)
        if context == 0 or asked.context is not None:
            _refuse(load, asked, target, wanted, smallest, engine, memory)
    batch = max(smallest, min(batch, context))
    few = wanted
    sequences = wanted
    if asked.sequences is None:
        ceiling = min(figures.sequences, figures.most_sequences, budget)

        def beside(step: int) -> int:
            fit = largest(ceiling, lambda n: load.fits(context, n, step and max(step, n)))
            return max(1, fit)

        few = min(_FEW, beside(smallest))
        # Were a shorter step filled up with sequences, more memory, by a longer one, gave fewer.
        sequences = beside(batch)
    while batch > smallest and not load.fits(context, few, max(batch, few)):
        batch = max(smallest, batch // 2)
        sequences = few
    if asked.sequences is None:
        batch = batch and max(batch, sequences)
    parts = load.parts(context, sequences, batch)
    forecast = forecast_of(
        shape,
        weights,
        rates,
        layout,
        (min(asked.prompt or _PROMPT, context), context, sequences),
        narrow=narrow,
    )
    settings = Settings(
        context=context,
        sequences=sequences,
        cache_bytes=parts.cache,
        dtype=asked.dtype,
        cache_dtype=asked.cache_dtype,
        threads=None if memory.gpu_name else memory.threads,
        gpu_fraction=_fraction(memory),
        batch=batch or None,
    )
    reasons = reasons_for(load, settings, parts, forecast, asked, memory)
    return Sized(settings, reasons, parts, forecast)


def _check(asked: Asked, figures: EngineFigures, engine: str) -> None:
    for name, number in (("--context", asked.context), ("--max-num-seqs", asked.sequences)):
        if number is not None and number < 1:
            raise UsageError(
                f"{name} {number} is no number of anything.", hint="Ask for 1 or more."
            )
    if asked.latency_budget is not None and not asked.latency_budget > 0:
        raise UsageError(
            f"A latency budget of {asked.latency_budget:g} ms cannot be kept.",
            hint="It is the milliseconds until a request's first token.",
        )
    if asked.sequences is not None and asked.sequences > figures.most_sequences:
        raise UsageError(
            f"{engine} computes at most {figures.most_sequences} sequences at once here, not "
            f"{asked.sequences}.",
            hint=f"Ask for --max-num-seqs {figures.most_sequences} or less.",
        )
    if asked.cache_dtype not in ("auto", *figures.caches):
        raise UsageError(
            f"{asked.cache_dtype} is no type of keys and values that {engine} is sized for.",
            hint=f"It is one of auto, {', '.join(figures.caches)}.",
        )
    if asked.dtype != "auto" and asked.dtype not in _DTYPES:
        raise UsageError(
            f"{asked.dtype} is no dtype to compute in.",
            hint=f"It is one of auto, {', '.join(_DTYPES)}.",
        )


def _element(engine: str, dtype: str, shape: Shape) -> int | None:
    """Bytes of a float of the weights in memory; llama.cpp's are as they lie."""
    if engine == "llama.cpp":
        return None
    if dtype == "auto":
        return _DTYPES.get(shape.dtype or "")
    return _DTYPES[dtype]


def _layout(
    engine: str, figures: EngineFigures, shape: Shape, asked: Asked, element: int | None
) -> Layout:
    if asked.cache_dtype != "auto":
        each = element_bytes(asked.cache_dtype)
    elif engine == "llama.cpp":
        each = element_bytes("f16")
    else:
        # Of an unknown dtype the widest there is.
        each = Fraction(element or 4)
    latent = any(attention.latent for attention in shape.attentions)
    block = figures.latent_block if latent else figures.block
    return Layout(engine, each, block, figures.batch, figures.steps)


def _within_budget(
    shape: Shape, weights: Weights, asked: Asked, rates: Rates, context: int, *, narrow: bool
) -> int:
    """Prompts that may come at once and the last of them still have its first token in time."""
    if asked.latency_budget is None:
        return _NO_BUDGET
    prompt = min(asked.prompt or _PROMPT, context)
    each = prefill_seconds(shape, weights, rates, prompt, narrow=narrow)
    return max(1, int(min(asked.latency_budget / 1000 / each, _NO_BUDGET)))


def _batch(
    shape: Shape,
    weights: Weights,
    asked: Asked,
    figures: EngineFigures,
    rates: Rates,
    context: int,
    *,
    narrow: bool,
) -> int:
    """Tokens of prompts in one step: the engine's own number, less where a step would take more
    than half of the budget, since a request that comes waits for the step under way."""
    batch = figures.batch
    if asked.latency_budget is not None:
        half = asked.latency_budget / 2000
        while batch > figures.smallest_batch:
            if prefill_seconds(shape, weights, rates, batch, narrow=narrow) <= half:
                break
            batch //= 2
    return min(batch, max(context, figures.smallest_batch))


def _smallest_batch(figures: EngineFigures, batch: int, sequences: int) -> int:
    # A batch holds a token of every sequence.
    return min(max(figures.smallest_batch, sequences), max(batch, sequences)) if batch else 0


def _fraction(memory: Memory) -> float | None:
    if memory.gpu_total is None or memory.gpu_total <= 0:
        return None
    return int(100 * min(1.0, memory.given / memory.gpu_total)) / 100


def _refuse(
    load: Load,
    asked: Asked,
    target: int,
    wanted: int,
    batch: int,
    engine: str,
    memory: Memory,
) -> NoReturn:
    """Nothing fits, or not what was asked: which part takes what, and what would fit."""
    tried = target if asked.context is not None else min(target, _UNIT)
    parts = load.parts(tried, wanted, batch)
    many = f"{wanted} sequences" if wanted > 1 else "one sequence"
    error = UsageError if load.fits(min(target, _UNIT), 1, batch) else BadInput
    raise error(
        f"{bytes_of(memory.given)} ({memory.source}) do not hold {many} of {tried:,} tokens in "
        f"{engine}: {bytes_of(parts.total - memory.given)} are lacking.",
        why=(
            f"Weights take {bytes_of(parts.weights)}, keys and values {bytes_of(parts.cache)}, "
            f"computing {bytes_of(parts.compute)}, the engine {bytes_of(parts.engine)}, adapters "
            f"{bytes_of(parts.adapters)}; loading takes {bytes_of(parts.loading)} beside weights."
        ),
        hint=hints_for(load, asked, tried, wanted, batch, engine),
    )
