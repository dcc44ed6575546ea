"""What ``remerge bench`` prints."""

from __future__ import annotations

import click

from remerge.cli.output import print_columns, print_notes, print_table, size
from remerge.serving.bench.measured import Benchmark, Gain, Latency, Point, Spread

_OTHER = {"adapter": "adapter", "idle": "base in the adapter's engine"}


def print_benchmark(found: Benchmark) -> None:
    """Figures of every arm, then gains; what was found out stands last."""
    settings = found.settings
    versions = ", ".join(f"{name} {version}" for name, version in found.versions.items())
    where = ", ".join(found.machine.gpus) or found.machine.processor
    click.echo(f"{found.engine}, {_threads(settings.threads)}, {where}" + _in(versions))
    click.echo(
        f"  {settings.rounds} rounds of {settings.max_tokens} tokens a request, prompts of "
        f"{settings.prompt_tokens[0]} to {settings.prompt_tokens[1]} ({settings.prompts_from})"
    )
    _print_points(found)
    _print_gains(found)
    rows = [
        (
            arm.name,
            f"{_size(arm.memory)} of memory, "
            + (f"{_size(arm.gpu_memory)} of the GPU's, " if arm.gpu_memory is not None else "")
            + f"{arm.start_seconds:.1f} s to start",
        )
        for arm in found.arms
    ]
    print_table(rows)
    print_notes(found.notes)
    click.echo(found.headline)


def _threads(count: int) -> str:
    return f"{count} thread{'s' if count > 1 else ''}"


def _in(versions: str) -> str:
    return f" ({versions})" if versions else ""


def _print_points(found: Benchmark) -> None:
    click.echo("medians of rounds [lowest, highest]; milliseconds of all requests")
    head = ("at once", "tokens/s", "tokens/CPU s", "first token: p50", "p95", "p99")
    rows = [(*head, "between: p50", "p95", "p99")]
    rows += [_row(point) for point in found.points]
    print_columns(rows)


def _row(point: Point) -> tuple[str, ...]:
    name = f"{point.concurrency}  {point.arm}"
    if point.failed:
        return (name, f"{point.failed} failed", *["-"] * 7)
    return (
        name,
        _spread(point.tokens_per_second),
        _spread(point.tokens_per_cpu_second),
        *_latency(point.first_token),
        *_latency(point.between_tokens),
    )


def _spread(found: Spread | None) -> str:
    return "-" if found is None else f"{found.median:.4g} [{found.low:.4g}, {found.high:.4g}]"


def _latency(found: Latency | None) -> tuple[str, str, str]:
    if found is None:
        return "-", "-", "-"
    p50, p95, p99 = (f"{1000 * value:.3g}" for value in (found.p50, found.p95, found.p99))
    return p50, p95, p99


def _print_gains(found: Benchmark) -> None:
    levels = (None, *found.settings.concurrency)
    for over, name in _OTHER.items():
        if not any(gain.over == over for gain in found.gains):
            continue
        click.echo(f"tokens of merged for one of {name}, with 95 % intervals")
        rows: list[tuple[str, ...]] = [("at once", "per CPU second", "per second")]
        for level in levels:
            cells = [
                _gain(
                    next(
                        (
                            gain
                            for gain in found.gains
                            if (gain.over, gain.measure, gain.concurrency) == (over, measure, level)
                        ),
                        None,
                    )
                )
                for measure in ("cpu", "wall")
            ]
            rows.append(("all" if level is None else f"{level}", *cells))
        print_columns(rows)


def _gain(gain: Gain | None) -> str:
    if gain is None:
        return "-"
    if gain.low is None or gain.high is None:
        return f"{gain.value:.2f}"
    return f"{gain.value:.2f} [{gain.low:.2f}, {gain.high:.2f}]"


def _size(nbytes: int | None) -> str:
    return "?" if nbytes is None else size(nbytes)
