"""Sizes in sentences: why they are what they are, and what would change them."""

from __future__ import annotations

from dataclasses import replace

from remerge.engines.servers.server import Settings
from remerge.serving.sizing.asked import Asked, Forecast, Memory, Parts
from remerge.serving.sizing.cache import cache_bytes
from remerge.serving.sizing.figures import element_bytes
from remerge.serving.sizing.fitting import Load, largest

_NARROWER = {"vllm": "fp8", "llama.cpp": "q8_0"}


def reasons_for(
    load: Load,
    settings: Settings,
    parts: Parts,
    forecast: Forecast,
    asked: Asked,
    memory: Memory,
) -> tuple[str, ...]:
    """The sentences that `remerge serve` prints, each with its numbers."""
    shape = load.shape
    said = [
        f"Memory: {bytes_of(memory.given)} ({memory.source}).",
        f"Weights take {bytes_of(parts.weights)}, the engine itself {bytes_of(parts.engine)}, "
        f"computing {bytes_of(parts.compute)}"
        + (f", adapters {bytes_of(parts.adapters)}" if parts.adapters else "")
        + f"; {bytes_of(max(0, memory.given - parts.total + parts.cache))} are left for keys and "
        "values.",
        _context(settings, shape.max_context, asked),
        _cache(load, settings, parts),
        _sequences(settings, asked),
    ]
    if settings.batch and load.figures.batch:
        said.append(
            f"Prompts are computed {settings.batch:,} tokens a step"
            + (
                "."
                if settings.batch == load.figures.batch
                else f" (of itself the engine takes {load.figures.batch:,})."
            )
        )
    said.append(
        f"Forecast, not measured: {_prompts(settings.sequences, forecast.prompt)} "
        f"its first token after {seconds_of(forecast.first_token)}, then a "
        f"token every {seconds_of(forecast.next_token)} ({forecast.rests_on})."
    )
    budget = asked.latency_budget
    if budget is not None and forecast.first_token * 1000 > budget:
        said.append(
            f"By this forecast the budget of {budget:g} ms is not kept"
            + (", not even by one sequence." if settings.sequences == 1 else ".")
        )
    return tuple(said + list(shape.notes))


def _prompts(count: int, tokens: int) -> str:
    if count == 1:
        return f"a prompt of {tokens:,} tokens has"
    return f"of {count} prompts of {tokens:,} tokens at once the last has"


def _context(settings: Settings, most: int | None, asked: Asked) -> str:
    if asked.context is not None:
        return f"Context: {settings.context:,} tokens, as asked."
    if most is None:
        return f"Context: {settings.context:,} tokens; for how many it was made is not said."
    if settings.context == most:
        return f"Context: {settings.context:,} tokens, the model's own."
    return f"Context: {settings.context:,} tokens, what fits of the model's {most:,}."


def _cache(load: Load, settings: Settings, parts: Parts) -> str:
    layout = replace(load.layout, batch=settings.batch or settings.context)
    one, two = (cache_bytes(load.shape, layout, settings.context, count) for count in (1, 2))
    windowed = sum(1 for a in load.shape.attentions if a.window)
    states = len(load.shape.states)
    kinds = [f"{len(load.shape.attentions)} layers with keys and values"]
    if windowed:
        kinds.append(f"{windowed} of them bounded by a window")
    if states:
        kinds.append(f"{states} with a state of fixed size")
    return (
        f"A sequence of {settings.context:,} tokens takes {bytes_of(two - one)} of cache "
        f"({', '.join(kinds)}); {settings.sequences} with what the engine keeps besides take "
        f"{bytes_of(parts.cache)}."
    )


def _sequences(settings: Settings, asked: Asked) -> str:
    many = f"Sequences at once: {settings.sequences}"
    if asked.sequences is not None:
        return f"{many}, as asked."
    if asked.context is None and settings.sequences < 4:
        return (
            f"{many}, each of them may fill its context. A smaller --context leaves room for more."
        )
    if asked.latency_budget is not None:
        return f"{many}, what fits and the latency budget of {asked.latency_budget:g} ms allows."
    return f"{many}, each of them may fill its context."


def hints_for(load: Load, asked: Asked, context: int, wanted: int, batch: int, engine: str) -> str:
    """What would fit."""
    found: list[str] = []
    shorter = largest(context, lambda n: load.fits(n, wanted, batch), 256)
    if shorter:
        found.append(f"--context {shorter} fits")
    fewer = largest(wanted, lambda n: load.fits(context, n, batch))
    if 0 < fewer < wanted:
        found.append(f"--max-num-seqs {fewer} fits")
    narrower = _NARROWER.get(engine)
    if narrower and asked.cache_dtype == "auto":
        layout = replace(load.layout, element=element_bytes(narrower))
        if replace(load, layout=layout).fits(context, wanted, batch):
            found.append(f"--cache-dtype {narrower} fits")
    needed = load.parts(context, wanted, batch).total
    found.append(f"--memory {-(-needed // 2**20)}MiB would do")
    form = "gguf:Q4_K_M" if engine == "llama.cpp" else "fp8"
    return "; ".join(found) + f". Or quantise: remerge export SOURCE -o OUT --to {form}."


def bytes_of(count: int) -> str:
    """Bytes as they are written on the command line."""
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if abs(count) >= size:
            return f"{count / size:.2f} {unit}"
    return f"{count} B"


def seconds_of(seconds: float) -> str:
    if seconds >= 1:
        return f"{seconds:,.1f} s"
    return f"{seconds * 1000:,.0f} ms" if seconds >= 0.01 else f"{seconds * 1000:.1f} ms"
