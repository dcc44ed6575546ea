"""The corpus checks itself: PEFT reads each adapter, its merge moves the base, oracles agree."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.corpus.build import build
from tests.corpus.case import Case
from tests.corpus.cases import CASES
from tests.corpus.selfcheck import self_check


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", [pytest.param(case, id=case.name) for case in CASES])
def test_case_is_sound(case: Case, tmp_path: Path) -> None:
    report = self_check(build(case, tmp_path))
    assert report.ok, "\n".join([case.name, *report.problems])


@pytest.mark.slow
def test_same_bytes_again(tmp_path: Path) -> None:
    from tests.corpus.cases import select
    from tests.corpus.check import digests

    case = select("dora-llama")[0]
    first, second = (build(case, tmp_path / name) for name in ("one", "two"))
    assert digests(first.base) == digests(second.base)
    assert digests(first.adapter) == digests(second.adapter)
