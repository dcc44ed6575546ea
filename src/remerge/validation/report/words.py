"""Figures and foreign texts as the page shows them."""

from __future__ import annotations

import math

# They change the order in which what follows is read.
_BIDI = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
NONE = "–"
# No name in use is longer.
_BRIEF = 300


def shown(text: str) -> str:
    """A foreign text with what is invisible or changes its surroundings made visible: control
    characters as their pictures, marks of direction by their numbers."""
    return "".join(_visible(c) for c in text)


def brief(text: str) -> str:
    """A foreign name or short text, cut in the middle where it is none."""
    if len(text) > _BRIEF:
        text = f"{text[: _BRIEF // 2]} … {text[-_BRIEF // 2 :]}"
    return shown(text)


def _visible(c: str) -> str:
    code = ord(c)
    if c in "\n\t":
        return c
    if code < 0x20:
        return chr(0x2400 + code)
    if code == 0x7F:
        return "\u2421"
    if c in _BIDI or 0x80 <= code < 0xA0:
        return f"⟨U+{code:04X}⟩"
    if 0xD800 <= code < 0xE000 or code & 0xFFFE == 0xFFFE:
        return "\ufffd"
    return c


def figure(value: float | None, digits: int = 3) -> str:
    """So many digits, in powers of ten where it is very small or large."""
    if value is None:
        return NONE
    if not math.isfinite(value):
        return "not finite"
    if value and not 1e-3 <= abs(value) < 1e6:
        return f"{value:.{digits - 1}e}"
    text = f"{value:.{digits}g}"
    return f"{value:,.0f}" if abs(float(text)) >= 10 ** (digits - 1) else text


def signed(value: float | None) -> str:
    """A difference, with its sign."""
    if value is None:
        return NONE
    if not math.isfinite(value):
        return "not finite"
    return f"{'+' if value > 0 else ''}{value:.3f}".replace("-", "−")


def percent(value: float | None, digits: int = 1) -> str:
    """A share."""
    if value is None:
        return NONE
    return f"{value:.{digits}%}" if math.isfinite(value) else "not finite"


def size(nbytes: int | None) -> str:
    """Bytes: 1.50 GB."""
    if nbytes is None:
        return NONE
    amount = float(nbytes)
    for unit in ("B", "kB", "MB", "GB"):
        if amount < 1000:
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.2f} {unit}"
        amount /= 1000
    return f"{amount:.2f} TB"


def duration(seconds: float | None) -> str:
    """Seconds, or minutes of many."""
    if seconds is None:
        return NONE
    if seconds < 120:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"
