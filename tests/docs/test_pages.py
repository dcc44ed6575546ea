"""Every command of every page, run in order, prints what the page shows."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.docs.exempt import EXEMPT, exempt
from tests.docs.page import engines_of, steps_of, unrun_of
from tests.docs.session import PageIsWrong, run_page
from tests.engines.places import ENGINES, needs

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
# In these, all that a reader may type is run; others have forms (`merge BASE ADAPTER`) too.
WHOLE = [ROOT / "docs/concepts.md", *sorted((ROOT / "docs/tasks").glob("*.md"))]


# Several comparisons, each with three models: minutes.
SLOW = {"promote.md", "qlora.md", "several-adapters.md"}


def _parameter(page: Path) -> object:
    engines = engines_of(page)
    marks = needs(*engines) if engines else [pytest.mark.timeout(900)]
    if page.name in SLOW:
        marks.append(pytest.mark.slow)
    return pytest.param(page, id=str(page.relative_to(ROOT)), marks=marks)


@pytest.mark.parametrize("page", [_parameter(page) for page in PAGES if steps_of(page)])
def test_a_page_does_what_it_says(page: Path, tmp_path: Path) -> None:
    run_page(page, tmp_path, ENGINES if engines_of(page) else None)


@pytest.mark.parametrize("page", WHOLE, ids=lambda page: page.name)
def test_nothing_of_a_task_is_left_unrun(page: Path) -> None:
    for body in unrun_of(page):
        assert not re.search(r"^(remerge|python|pip|docker|kubectl|ollama|curl)\b", body, re.M), (
            body
        )


def test_what_is_not_run_is_on_some_page() -> None:
    commands = [step.text for page in PAGES for step in steps_of(page) if step.kind == "command"]
    used = {one.pattern for command in commands if (one := exempt(command))}
    assert used == {one.pattern for one in EXEMPT}


def test_tasks_are_short() -> None:
    assert {page.name: n for page in WHOLE if (n := len(page.read_text().splitlines())) > 150} == {}


WRONG = {
    "another digest": ("0e2ab01", "0e2ab02"),
    "another count": ("2 files", "3 files"),
    "another size": ("5.28 MB", "5.29 MB"),
    "a line too few": ("second line\n", ""),
    "a line too many": ("second line\n", "second line\nthird line\n"),
    "another figure": ("0.975 kept", "0.875 kept"),
}


def _page(place: Path, printed: str) -> Path:
    page = place / "page.md"
    echoes = f"cat <<'END'\n{SAID}END"
    page.write_text(f"# A page\n\n```console\n$ {echoes}\n{printed}```\n")
    return page


SAID = "key 0e2ab01\n2 files, 5.28 MB in 0.31 s\n0.975 kept\nsecond line\n"


def test_a_right_page_passes(tmp_path: Path) -> None:
    run_page(_page(tmp_path, SAID.replace("0.31 s", "0.92 s")), tmp_path)


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_page_does_not(wrong: str, tmp_path: Path) -> None:
    with pytest.raises(PageIsWrong):
        run_page(_page(tmp_path, SAID.replace(*WRONG[wrong])), tmp_path)


def test_a_failing_command_must_be_told_of(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("```console\n$ false\n```\n")
    with pytest.raises(PageIsWrong, match=r"page.md:2: false\s+ended with exit code 1"):
        run_page(page, tmp_path)
    page.write_text("```console\n$ false\n$ echo $?\n1\n```\n")
    run_page(page, tmp_path / "second")
