"""Figures and plot on disk: whole, over nothing, and read again."""

from __future__ import annotations

import json
import math
from pathlib import Path
from xml.etree import ElementTree

import pytest

from remerge.advice.measured import read_slower
from remerge.errors import BadInput, UsageError
from remerge.serving.bench.measured import Benchmark
from remerge.serving.bench.writing import check_place, write
from tests.serving.bench.made import benchmark
from tests.serving.bench.simulated import Machine, simulated


def test_what_is_written_is_read_again(tmp_path: Path):
    found = benchmark()
    written = write(found, check_place(tmp_path / "results", overwrite=False))
    assert [path.name for path in written] == ["bench.json", "bench.svg"]
    document = json.loads(written[0].read_text())
    assert Benchmark.model_validate(document) == found
    gain = found.gain("adapter", "cpu")
    assert gain is not None
    for path in (written[0], written[0].parent):
        slower = read_slower(path)
        assert (slower.low, slower.high) == (gain.low, gain.high)
        assert "llama.cpp on a processor" in slower.source and "8 rounds" in slower.source


def test_the_plot_stands_alone(tmp_path: Path):
    found = benchmark()
    _, plot = write(found, check_place(tmp_path / "b.json", overwrite=False))
    text = plot.read_text()
    root = ElementTree.fromstring(text)
    assert root.tag == "{http://www.w3.org/2000/svg}svg" and "var(--" not in text
    shown = " ".join(node.text or "" for node in root.iter("{http://www.w3.org/2000/svg}text"))
    for part in ("merged", "adapter", "tokens per CPU second", "requests at once"):
        assert part in shown
    # One point for each arm, concurrency and panel.
    assert text.count('aria-roledescription="point"') in (0, 16)


def test_a_plot_without_figures_can_be_drawn(tmp_path: Path):
    found = benchmark(simulated(Machine(1), fails_at=4)).model_copy(update={"points": ()})
    assert len(write(found, check_place(tmp_path / "b.json", overwrite=False))) == 2


def test_nothing_is_replaced_unasked(tmp_path: Path):
    for name in ("bench.json", "bench.svg"):
        place = tmp_path / name.replace(".", "-")
        place.mkdir()
        (place / name).write_text("mine")
        with pytest.raises(UsageError, match=rf"{name} exists.*--overwrite"):
            check_place(place, overwrite=False)
        assert write(benchmark(), check_place(place, overwrite=True))
        assert (place / name).read_text() != "mine"


def test_places_that_are_none(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="is a file"):
        check_place(tmp_path / "file", overwrite=True)
    with pytest.raises(UsageError, match="no directory"):
        check_place(tmp_path / "none" / "b.json", overwrite=False)


def test_without_what_draws_there_is_no_plot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from remerge.serving.bench import writing

    monkeypatch.setattr(writing, "can_draw", lambda: False)
    assert [p.name for p in write(benchmark(), check_place(tmp_path, overwrite=False))] == [
        "bench.json"
    ]


@pytest.mark.parametrize("edit", [{"high": math.inf}, {"value": -5.0}, {"low": math.nan}])
def test_advice_takes_no_interval_that_is_none(tmp_path: Path, edit: dict[str, float]):
    document = benchmark().model_dump(mode="json")
    for gain in document["gains"]:
        gain |= edit
    (tmp_path / "bench.json").write_text(json.dumps(document))
    with pytest.raises(BadInput, match="tells nothing"):
        read_slower(tmp_path)
