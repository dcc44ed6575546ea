"""Figures drawn by Vega-Lite (in vl-convert: no browser, no network).

Colours are variables of a style sheet, so that one drawing serves light, dark and paper; what
stands alone gets its colours by `coloured`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

from remerge.errors import UsageError

INK, QUIET, LINE = "var(--ink)", "var(--quiet)", "var(--line)"
# Those of the report in light.
_COLOURS = {
    "ink": "#1c2127",
    "quiet": "#57606a",
    "line": "#d5dae0",
    "base": "#7a828c",
    "adapter": "#1f6fb8",
    "merged": "#b35c00",
}
_VARIABLE = re.compile(r"var\(--([a-z]+)\)")

_CONFIG: dict[str, Any] = {
    "view": {"stroke": None},
    "font": "system-ui, sans-serif",
    "axis": {
        "labelColor": QUIET,
        "titleColor": QUIET,
        "titleFontWeight": "normal",
        "labelFontSize": 11,
        "titleFontSize": 11,
        "gridColor": LINE,
        "domainColor": LINE,
        "tickColor": LINE,
        "labelLimit": 320,
    },
    "legend": {"labelColor": INK, "labelFontSize": 11, "title": None},
    "aria": False,
}


def can_draw() -> bool:
    """Whether what draws is installed."""
    return find_spec("vl_convert") is not None


def svg(spec: Mapping[str, Any], padding: Mapping[str, float]) -> str:
    """The SVG of a Vega-Lite specification. Raises `UsageError` where what draws it is not
    installed."""
    try:
        import vl_convert
    except ImportError as error:
        raise UsageError(
            "Figures are drawn by vl-convert, which is not installed.",
            hint="Install it: pip install 'remerge[report]'.",
        ) from error

    return vl_convert.vegalite_to_svg(
        {"background": None, "config": _CONFIG, "padding": dict(padding), **spec},
        allowed_base_urls=[],
    )


def coloured(drawn: str) -> str:
    """A drawing that needs no style sheet."""
    return _VARIABLE.sub(lambda found: _COLOURS[found[1]], drawn)
