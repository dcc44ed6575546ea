"""The figures of a report as SVG, drawn by Vega-Lite (in vl-convert: no browser, no network).

Colours are variables of the style sheet, so that one drawing serves light, dark and paper.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from remerge.artefacts.test_result import Bisection, TaskResult
from remerge.validation.drawing import INK, QUIET, svg
from remerge.validation.report.grid import Grid
from remerge.validation.report.measures import Measure
from remerge.validation.report.words import shown

if TYPE_CHECKING:
    from remerge.validation.formats import FormatRow

# A hundredth of a pixel is enough.
_LONG = re.compile(r"(\.\d\d)\d+")
_SVG = "http://www.w3.org/2000/svg"
_SIDES = ("base", "adapter", "merged")
_SIDE_COLOURS = [f"var(--{side})" for side in _SIDES]
# Of a cell, in pixels, and of the whole width that a grid may take without scrolling.
_CELL, _NARROW, _WIDTH, _ROW, _LOW_ROW = 26, 7, 900, 18, 13
_MANY_ROWS = 40
_LABEL = 40


def heatmap(grid: Grid, measure: Measure) -> str:
    """The grid in the colours of a measure. Every cell has its number in ``data-cell``; cells with
    tensors that fail are crossed."""
    columns = ["–" if layer is None else str(layer) for layer in grid.columns]
    rows = _distinct([_label(row) for row in grid.rows])
    cells = [
        {
            "number": str(number),
            "row": rows[cell.row],
            "column": columns[cell.column],
            "colour": colour,
            "fails": bool(cell.failing),
        }
        for number, (cell, colour) in enumerate(zip(grid.cells, measure.colours, strict=True))
    ]
    width = max(_NARROW, min(_CELL, _WIDTH // len(grid.columns)))
    height = _ROW if len(grid.rows) <= _MANY_ROWS else _LOW_ROW
    x: dict[str, Any] = {
        "field": "column",
        "type": "ordinal",
        "scale": {"domain": columns, "paddingInner": 0.06},
        "axis": {
            "title": "layer",
            "labelAngle": 0,
            "labelOverlap": True,
            "orient": "top",
            "domain": False,
            "ticks": False,
        },
    }
    y: dict[str, Any] = {
        "field": "row",
        "type": "ordinal",
        "scale": {"domain": rows, "paddingInner": 0.06},
        "axis": {
            "title": None,
            "labelFontSize": min(11, height - 2),
            "domain": False,
            "ticks": False,
        },
    }
    spec: dict[str, Any] = {
        "data": {"values": cells},
        "width": {"step": width},
        "height": {"step": height},
        "layer": [
            {
                "mark": {"type": "rect", "aria": True},
                "encoding": {
                    "color": {"field": "colour", "type": "nominal", "scale": None},
                    "description": {"field": "number"},
                },
            },
            _crosses(min(width, height), "var(--paper)", 4.5),
            _crosses(min(width, height), "var(--mark)", 2),
        ],
    }
    spec["encoding"] = {"x": x, "y": y}
    return _drawn(spec, rows)


def _crosses(cell: int, colour: str, width: float) -> dict[str, Any]:
    """A cross in every cell that fails; a wider one below parts it from the cell's colour."""
    mark = {"type": "point", "shape": "M-1,-1L1,1M1,-1L-1,1", "size": 0.5 * cell**2}
    mark |= {"stroke": colour, "strokeWidth": width, "strokeCap": "round", "opacity": 1}
    return {"transform": [{"filter": "datum.fails"}], "mark": mark}


def scores(tasks: Sequence[TaskResult]) -> str:
    """Scores of base, adapter and merged with their intervals, and beside them what was gained or
    lost."""
    rows: list[dict[str, Any]] = []
    for task in tasks:
        for side, found in zip(_SIDES, (task.base, task.adapter, task.merged), strict=True):
            if found is not None:
                rows.append({"task": _label(task.name), "side": side, **found.model_dump()})
    deltas = [{"task": _label(task.name), **task.delta.model_dump()} for task in tasks]
    colour = {
        "field": "side",
        "type": "nominal",
        "scale": {"domain": [*_SIDES], "range": _SIDE_COLOURS},
        "legend": {"orient": "top"},
    }
    shape = {
        "field": "side",
        "type": "nominal",
        "scale": {"domain": [*_SIDES], "range": ["circle", "square", "diamond"]},
    }
    y: dict[str, Any] = {
        "field": "task",
        "type": "nominal",
        "sort": None,
        "axis": {"title": None, "grid": False},
    }
    height = 44 * len(tasks)
    title, gained = "score, with 95 % interval", "merged less adapter"
    left: dict[str, Any] = {
        "data": {"values": rows},
        "width": 420,
        "height": height,
        "encoding": {
            "y": y,
            "yOffset": {"field": "side", "type": "nominal", "scale": {"domain": [*_SIDES]}},
        },
        "layer": [
            {
                "mark": {"type": "rule", "strokeWidth": 1.5},
                "encoding": {
                    "x": _x("low", title),
                    "x2": {"field": "high"},
                    "color": colour,
                },
            },
            {
                "mark": {"type": "point", "filled": True, "size": 46, "opacity": 1},
                "encoding": {"x": _x("value", title), "color": colour, "shape": shape},
            },
        ],
    }
    right: dict[str, Any] = {
        "data": {"values": deltas},
        "width": 260,
        "height": height,
        "encoding": {"y": {**y, "axis": None}},
        "layer": [
            {
                "mark": {"type": "rule", "color": QUIET, "strokeDash": [3, 3]},
                "encoding": {
                    "x": {"datum": 0, "type": "quantitative"},
                    "y": {"value": 0},
                    "y2": {"value": "height"},
                },
            },
            {
                "mark": {"type": "rule", "strokeWidth": 1.5, "color": INK},
                "encoding": {
                    "x": _x("low", gained, zero=True),
                    "x2": {"field": "high"},
                },
            },
            {
                "mark": {"type": "point", "filled": True, "size": 46, "color": INK, "opacity": 1},
                "encoding": {"x": _x("value", gained, zero=True)},
            },
        ],
    }
    return _drawn({"hconcat": [left, right], "spacing": 28}, [row["task"] for row in rows])


def formats(rows: Sequence[FormatRow]) -> str:
    """Size, divergence and right answers of every format that could be made."""
    made = [
        {
            "form": _label(row.form),
            "size": row.nbytes / 1e6,
            "kl": None if row.comparison is None else max(row.comparison.kl_mean, 1e-12),
            "top1": None if row.comparison is None else row.comparison.top1,
            "score": row.score,
        }
        for row in rows
        if row.nbytes
    ]
    y: dict[str, Any] = {"field": "form", "type": "nominal", "sort": None}

    def panel(field: str, title: str, mark: dict[str, Any], **scale: Any) -> dict[str, Any]:
        axis = {"axis": {"title": None, "grid": False}} if field == "size" else {"axis": None}
        x = _x(field, title, **scale)
        return {
            "width": 170,
            "height": {"step": 20},
            "transform": [{"filter": f"isValid(datum.{field})"}],
            "mark": mark,
            "encoding": {"x": x, "y": {**y, **axis, "scale": {"domain": _order(made)}}},
        }

    bar = {"type": "bar", "color": "var(--merged)", "height": 9}
    point = {"type": "point", "filled": True, "size": 46, "color": "var(--merged)", "opacity": 1}
    panels = [
        panel("size", "MB", bar, zero=True),
        panel("kl", "KL divergence, nats (log)", point, type="log"),
        panel("top1", "same likeliest token", point),
    ]
    if any(row["score"] is not None for row in made):
        panels.append(panel("score", "right answers", point))
    return _drawn({"data": {"values": made}, "hconcat": panels, "spacing": 16}, _order(made))


def suspects(found: Bisection) -> str:
    """How much of the divergence goes with each suspect."""
    names = [_label(one.name) for one in found.suspects]
    shares = [one.share for one in found.suspects]
    rows = [{"name": name, "share": share} for name, share in zip(names, shares, strict=True)]
    return _drawn(
        {
            "data": {"values": rows},
            "width": 420,
            "height": {"step": 20},
            "mark": {"type": "bar", "color": "var(--merged)", "height": 9},
            "encoding": {
                "x": _x("share", "share of the divergence that goes", zero=True),
                "y": {"field": "name", "type": "nominal", "sort": None, "axis": {"title": None}},
            },
        },
        names,
    )


def _order(rows: Sequence[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(row["form"] for row in rows))


def _x(field: str, title: str, **scale: Any) -> dict[str, Any]:
    axis: dict[str, Any] = {"title": title, "tickCount": 5, "labelOverlap": True}
    if scale.get("type") == "log":
        axis |= {"format": "~e", "tickCount": 4}
    else:
        scale = {"zero": False, **scale}
    return {"field": field, "type": "quantitative", "scale": scale, "axis": axis}


def _label(text: str) -> str:
    """A foreign name, short enough to stand beside an axis. Vega's renderer aborts the process
    where a character is none of XML's: none gets past `shown`."""
    text = " ".join(shown(text).split())
    return text if len(text) <= _LABEL else f"{text[: _LABEL // 2]}…{text[-_LABEL // 2 + 1 :]}"


def _distinct(labels: Sequence[str]) -> list[str]:
    """Labels with a number where one is there twice: what has one label is drawn as one."""
    return [
        f"{label} ({labels[: at + 1].count(label)})" if labels.count(label) > 1 else label
        for at, label in enumerate(labels)
    ]


def _drawn(spec: dict[str, Any], labels: Sequence[str]) -> str:
    """The SVG of a Vega-Lite specification, to stand in HTML; ``labels`` are those at its left."""
    # The reader's font may be a fifth wider than the one that is measured here.
    room = 5 + 1.4 * max(map(len, labels), default=0)
    padding = {"left": room, "right": 12, "top": 5, "bottom": 5}
    return _cleaned(svg(spec, padding))


def _cleaned(drawn: str) -> str:
    """Without Vega's roles, as the page tells the same in words; numbers of cells are kept."""
    root = ElementTree.fromstring(drawn)
    for element in root.iter():
        number = element.attrib.pop("aria-label", None)
        if number is not None and element.get("aria-roledescription") == "rect mark":
            element.set("data-cell", number)
            element.set("d", _LONG.sub(r"\1", element.get("d", "")))
        for name in ("role", "aria-roledescription", "aria-hidden", "font-family"):
            element.attrib.pop(name, None)
        element.tag = element.tag.removeprefix(f"{{{_SVG}}}")
    root.set("aria-hidden", "true")
    root.set("focusable", "false")
    root.set("class", "drawn")
    return ElementTree.tostring(root, encoding="unicode", short_empty_elements=False)
