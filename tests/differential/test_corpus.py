"""Base and adapter pairs of the corpus, merged by remerge and compared with PEFT's results."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.corpus.build import build
from tests.corpus.case import Case
from tests.corpus.cases import CASES
from tests.corpus.check import check


def _parameters() -> list[object]:
    return [
        pytest.param(case, id=case.name, marks=() if case.fast else pytest.mark.slow)
        for case in CASES
    ]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", _parameters())
def test_case(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    report = check(build(case, tmp_path))
    assert report.ok, "\n".join([case.name, case.notes, *report.problems])
