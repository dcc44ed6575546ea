"""Figures and foreign texts as they are shown."""

from __future__ import annotations

import math

import pytest

from remerge.validation.report.facts import moment
from remerge.validation.report.words import brief, duration, figure, percent, shown, signed, size


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("plain, ünïcode, 漢字, 👩‍👩‍👧, عربي", None),
        ("two\nlines\tand a tab", None),
        ("a\x00b\x1b[0m\x7f", "a␀b␛[0m␡"),
        ("x\u202ey\u2069", "x⟨U+202E⟩y⟨U+2069⟩"),
        ("\x85", "⟨U+0085⟩"),
        ("\ud800 \uffff", "\ufffd \ufffd"),
    ],
)
def test_shown(text: str, wanted: str | None):
    assert shown(text) == (text if wanted is None else wanted)


def test_brief():
    assert brief("a\x00" * 10) == "a␀" * 10
    assert len(brief("x" * 10_000)) < 310


@pytest.mark.parametrize(
    ("found", "wanted"),
    [
        (figure(None), "–"),
        (figure(0.0), "0"),
        (figure(3.14159), "3.14"),
        (figure(1.4e-5), "1.40e-05"),
        (figure(12345.6), "12,346"),
        (figure(-2.5), "-2.5"),
        (figure(999.7), "1,000"),
        (figure(3.41264, 5), "3.4126"),
        (figure(math.nan), "not finite"),
        (percent(0.98765), "98.8%"),
        (percent(None), "–"),
        (percent(math.inf), "not finite"),
        (signed(-0.02), "−0.020"),
        (signed(0.02), "+0.020"),
        (size(1_500_000_000), "1.50 GB"),
        (size(None), "–"),
        (duration(0.25), "0.25 s"),
        (duration(3725), "1 h 2 min"),
        (duration(150), "2 min 30 s"),
        (moment("2026-11-20T10:11:12+01:00"), "2026-11-20 09:11 UTC"),
        (moment("<script>"), "<script>"),
    ],
)
def test_figures(found: str, wanted: str):
    assert found == wanted
