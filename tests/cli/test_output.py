"""What is printed while a command goes on."""

from __future__ import annotations

import pytest

from remerge.cli import output


def test_the_time_left(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Told at most every five seconds, by the speed of the things that are counted now."""
    now = 0.0
    monkeypatch.setattr(output.time, "monotonic", lambda: now)
    report = output.counter("compared", quiet=False)
    steps = [(100, 900, "elements", 6), (0, 40, "prompts", 30), (10, 40, "prompts", 35)]
    for done, total, things, at in [*steps, (11, 40, "prompts", 36), (20, 40, "prompts", 45)]:
        now = float(at)
        report(done, total, things)
    assert capsys.readouterr().err.splitlines() == [
        "compared: 100 of 900 elements",
        "compared: 0 of 40 prompts",
        "compared: 10 of 40 prompts, 15 s left",
        "compared: 20 of 40 prompts, 15 s left",
    ]
    quiet = output.counter("compared", quiet=True)
    now = 100.0
    quiet(1, 2, "prompts")
    assert capsys.readouterr().err == ""
