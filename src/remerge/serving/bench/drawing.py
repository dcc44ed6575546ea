"""The plot of a benchmark: throughput and latencies against requests at once, for every arm."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from remerge.serving.bench.measured import Benchmark, Point
from remerge.validation.drawing import can_draw, coloured, svg

__all__ = ["can_draw", "draw"]

_COLOURS = {"merged": "var(--merged)", "adapter": "var(--adapter)", "idle": "var(--base)"}
_SHAPES = {"merged": "diamond", "adapter": "square", "idle": "circle"}
_PADDING = {"left": 5, "right": 12, "top": 5, "bottom": 5}


def draw(found: Benchmark) -> str:
    """An SVG that stands alone: a panel for each measure, a line for each arm with the median of
    rounds, and from the lowest round to the highest. Raises `UsageError` where what draws it is
    not installed."""
    rows = [row for point in found.points for row in _rows(point)]
    panels = list(dict.fromkeys(row["panel"] for row in rows))
    spec: dict[str, Any] = {
        "title": {
            "text": found.headline,
            "subtitle": "medians of rounds, from the lowest round to the highest",
            "fontSize": 12,
            "fontWeight": "normal",
            "color": "var(--ink)",
            "subtitleColor": "var(--quiet)",
            "anchor": "start",
        },
        "background": "white",
        "hconcat": [_panel(panel, [r for r in rows if r["panel"] == panel]) for panel in panels],
        "spacing": 24,
    }
    if not rows:
        spec["hconcat"] = [{"data": {"values": []}, "mark": "point"}]
    return coloured(svg(spec, _PADDING))


def _rows(point: Point) -> Iterator[dict[str, Any]]:
    latencies = (
        ("ms to the first token (p50)", point.first_token),
        ("ms between tokens (p50)", point.between_tokens),
    )
    measures = [
        ("tokens per second", point.tokens_per_second, 1.0),
        ("tokens per CPU second", point.tokens_per_cpu_second, 1.0),
        *((name, None if one is None else one.rounds, 1000.0) for name, one in latencies),
    ]
    for panel, spread, unit in measures:
        if spread is not None:
            yield {
                "panel": panel,
                "arm": point.arm,
                "concurrency": point.concurrency,
                "median": spread.median * unit,
                "low": spread.low * unit,
                "high": spread.high * unit,
            }


def _panel(title: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    arms = list(dict.fromkeys(row["arm"] for row in rows))
    arms.sort(key=list(_COLOURS).index)
    x: dict[str, Any] = {
        "field": "concurrency",
        "type": "ordinal",
        "axis": {"title": "requests at once", "labelAngle": 0, "grid": False},
    }

    def y(field: str) -> dict[str, Any]:
        axis = {"title": title, "tickCount": 5}
        return {"field": field, "type": "quantitative", "scale": {"zero": True}, "axis": axis}

    colour = {
        "field": "arm",
        "type": "nominal",
        "scale": {"domain": arms, "range": [_COLOURS[arm] for arm in arms]},
        "legend": {"orient": "top"},
    }
    shape = {
        "field": "arm",
        "type": "nominal",
        "scale": {"domain": arms, "range": [_SHAPES[arm] for arm in arms]},
    }
    offset = {"field": "arm", "type": "nominal", "scale": {"domain": arms}}
    point = {"type": "point", "filled": True, "size": 40, "opacity": 1}
    return {
        "width": 190,
        "height": 180,
        "data": {"values": rows},
        "encoding": {"x": x, "xOffset": offset, "color": colour},
        "layer": [
            {
                "mark": {"type": "rule", "strokeWidth": 1.5},
                "encoding": {"y": y("low"), "y2": {"field": "high"}},
            },
            {"mark": point, "encoding": {"y": y("median"), "shape": shape}},
        ],
    }
