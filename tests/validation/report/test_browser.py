"""The page in headless Chromium, from disk: it reaches for nothing, says nothing on the console,
answers to pointer and keyboard, prints, and axe-core finds nothing against it.

Run by ``make browser-test``, which installs what this needs.
"""

from __future__ import annotations

import shutil
import unicodedata
from collections.abc import Generator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

import remerge
from remerge.artefacts.manifest import read_manifest
from tests.validation.report import made

pytestmark = pytest.mark.browser

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
KINDS = ("plain", "full", "large", "hostile")


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Reports: of a merge alone, of one with all there is, of a large model, of hostile texts."""
    found: dict[str, Path] = {}
    for kind in KINDS:
        place = tmp_path_factory.mktemp(kind)
        out = made.merged(place, *(("sort", "dates") if kind == "full" else ("sort",)))
        formats: list[Path] = []
        if kind == "full":
            made.compared(out, made.figures(started="2026-11-01T08:00:00+00:00", verdict="passed"))
            made.compared(out, made.figures())
            formats.append(made.write_table(place / "formats.json"))
        if kind == "large":
            made.compared(out, made.figures(weights=made.of_layers(128, 20)))
        if kind == "hostile":
            made.compared(out, made.hostile())
        found[kind] = remerge.report(out, formats=formats).path
    return found


def out_of(report: Path) -> Path:
    """The output that a report is on."""
    return report.with_name("merged")


@pytest.fixture(scope="module")
def chromium() -> Generator[Any]:
    if CHROMIUM is None:
        pytest.fail("There is no Chromium on PATH: make browser-test installs it.")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # Chromium will not start its sandbox as root.
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@dataclass
class Shown:
    """An open page, and what it did that it should not."""

    page: Any
    said: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)


@pytest.fixture
def show(chromium: Any, pages: dict[str, Path]) -> Generator[Any]:
    opened: list[tuple[Any, Shown]] = []

    def opening(kind: str, **options: Any) -> Shown:
        context = chromium.new_context(**{"viewport": {"width": 1280, "height": 900}, **options})
        found = Shown(context.new_page())
        found.page.on("console", lambda message: found.said.append(message.text))
        found.page.on("pageerror", lambda error: found.said.append(str(error)))
        found.page.on("request", lambda request: found.asked.append(request.url))
        found.page.goto(pages[kind].as_uri())
        opened.append((context, found))
        return found

    yield opening
    for context, found in opened:
        try:
            assert not found.said
            assert all(url.startswith("file:") for url in found.asked) and len(found.asked) == 1
        finally:
            context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("kind", KINDS)
def test_accessible(show: Any, kind: str, scheme: str) -> None:
    from axe_playwright_python.sync_playwright import Axe

    page = show(kind, color_scheme=scheme).page
    rules = {"runOnly": {"type": "tag", "values": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa"]}}
    if kind != "large":
        page.evaluate("document.querySelectorAll('details').forEach((d) => { d.open = true })")
    results = Axe().run(page, options=rules).response
    assert not [
        (found["id"], [node["html"][:200] for node in found["nodes"][:3]])
        for found in results["violations"]
    ]
    assert len(results["passes"]) > 10


def test_it_has_both_schemes(show: Any) -> None:
    def colours(scheme: str) -> list[str]:
        return show("full", color_scheme=scheme).page.evaluate(
            "['body', '[data-cell]'].map((s) => { const c = getComputedStyle("
            "document.querySelector(s)); return s === 'body' ? c.backgroundColor : c.fill })"
        )

    light, dark = colours("light"), colours("dark")
    assert light[0] == "rgb(255, 255, 255)"
    assert all(one != other for one, other in zip(light, dark, strict=True))


def test_the_pointer(show: Any) -> None:
    page = show("full").page
    number = page.evaluate(
        "[...document.querySelectorAll('#cells tr')].findIndex("
        "(row) => row.cells[0].textContent === 'model.layers.2.block3.part_3.weight')"
    )
    page.locator(f".map:visible [data-cell='{number}']").hover()
    told = page.locator("#told").inner_text()
    assert told.startswith("model.layers.2.block3.part_3.weight: ")
    assert "kept 0.00%" in told and "weights fail" in told
    tip = page.locator("#tip")
    assert tip.is_visible() and "kept\n0.00%" in tip.inner_text()
    page.locator("h1").hover()
    assert not tip.is_visible()


def test_the_keyboard(show: Any) -> None:
    page = show("full").page
    page.get_by_role("radio", name="Delta kept").focus()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "cells"
    assert page.locator("#told").get_attribute("aria-live") == "polite"

    def told() -> str:
        return page.locator("#told").inner_text().partition(":")[0]

    assert told() == "model.layers.0.block0.part_0.weight"
    for key, wanted in (
        ("ArrowRight", "model.layers.1.block0.part_0.weight"),
        ("ArrowDown", "model.layers.1.block1.part_1.weight"),
        ("End", "model.layers.3.block1.part_1.weight"),
        ("ArrowRight", "model.layers.3.block1.part_1.weight"),
        ("ArrowUp", "model.layers.3.block0.part_0.weight"),
        ("Home", "model.layers.0.block0.part_0.weight"),
        ("ArrowLeft", "model.layers.0.block0.part_0.weight"),
    ):
        page.keyboard.press(key)
        assert told() == wanted, key
    framed = page.locator(".map:visible .on")
    assert framed.count() == 1
    assert page.locator("#tip").is_visible()
    page.keyboard.press("Escape")
    assert not page.locator("#tip").is_visible()
    # Every cell can be reached: down to what is outside of layers, and back.
    for _ in range(40):
        page.keyboard.press("ArrowDown")
    assert told() == "lm_head.weight"
    for _ in range(40):
        page.keyboard.press("ArrowUp")
    assert told().endswith("block0.part_0.weight")


def test_all_that_takes_the_focus_is_reached_by_tab(show: Any) -> None:
    page = show("full").page
    reached: set[str] = set()
    for _ in range(120):
        page.keyboard.press("Tab")
        here = page.evaluate(
            "(() => { const e = document.activeElement; return e === document.body ? '' : "
            "e.tagName + '.' + e.className })()"
        )
        if not here:
            break
        reached.add(here)
    assert {"A.skip", "A.", "INPUT.", "DIV.cells", "SUMMARY."} <= reached


def test_measures_are_switched(show: Any) -> None:
    page = show("full").page
    shown = page.locator(".map:visible figcaption strong")
    assert shown.all_inner_texts() == ["Delta norm"]
    page.get_by_role("radio", name="Delta norm").focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert shown.all_inner_texts() == ["Delta kept"]
    page.get_by_role("radio", name="Conflict of adapters").check()
    assert shown.all_inner_texts() == ["Conflict of adapters"]


def test_without_script_all_is_there(show: Any) -> None:
    page = show("full", java_script_enabled=False).page
    assert page.locator(".map").count() == 4
    assert all(page.locator(".map").nth(i).is_visible() for i in range(4))
    assert page.locator(".switch").is_hidden()


def test_a_large_model_stays_usable(show: Any, pages: dict[str, Path]) -> None:
    assert pages["large"].stat().st_size < 4_000_000
    page = show("large").page
    assert page.locator(".map:visible [data-cell]").count() == 128 * 20 + 2
    # It fits without scrolling, and its cells can still be hit.
    assert page.evaluate("document.documentElement.scrollWidth") == 1280
    box = page.locator(".map:visible [data-cell='700']").bounding_box()
    assert box["width"] >= 5 and box["height"] >= 10
    page.locator(".map:visible .cells").focus()
    took = page.evaluate(
        """() => {
          const cells = document.activeElement, started = performance.now();
          for (let i = 0; i < 100; i++)
            cells.dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowRight", bubbles: true }));
          return (performance.now() - started) / 100;
        }"""
    )
    assert took < 50
    assert page.locator("#told").inner_text().startswith("model.layers.")


def test_narrow_screens_scroll_no_page_sideways(show: Any) -> None:
    page = show("full", viewport={"width": 360, "height": 700}).page
    assert page.evaluate("document.documentElement.scrollWidth") <= 360


def test_hostile_texts_run_nothing(show: Any) -> None:
    page = show("hostile").page
    assert page.title().startswith("merged: failed")
    assert page.locator("img").count() == 0
    for name in ("script", "image", "style", "bidi", "nul"):
        text = made.HOSTILE[name]
        if name == "bidi":
            text = text.replace("\u202e", "⟨U+202E⟩").replace("\u2066", "⟨U+2066⟩")
        if name == "nul":
            text = text.replace("\x00", "␀").replace("\x1b", "␛").replace("\x7f", "␡")
        assert page.locator("#answers td .text").filter(has_text=text).count() > 0, name
    page.locator("#answers details.whole summary").first.click()
    whole = page.locator("#answers details.whole[open] > .text").first
    assert whole.inner_text().strip() == made.HOSTILE["long"].strip()
    # Hovering puts names into the tip, as text.
    page.locator(".map:visible [data-cell='0']").hover()
    assert page.locator("#tip").is_visible() and page.locator("#tip script").count() == 0


def test_it_prints(show: Any, pages: dict[str, Path], tmp_path: Path) -> None:
    """All measures and all digests, in the colours of paper, also from a dark screen."""
    from pypdf import PdfReader

    page = show("full", color_scheme="dark").page
    page.pdf(path=tmp_path / "report.pdf", format="A4", print_background=True)
    sheets = PdfReader(tmp_path / "report.pdf").pages
    assert 3 <= len(sheets) <= 12
    # Fonts may print ligatures.
    printed = unicodedata.normalize("NFKC", " ".join(sheet.extract_text() for sheet in sheets))
    text = " ".join(printed.split())
    for words in (
        "Verdict",
        "Delta norm",
        "Delta kept",
        "Conflict of adapters",
        "History",
        "q_proj",
    ):
        assert words in text, words
    assert "Table of all" not in text
    assert f"Written by remerge {remerge.__version__}" in text
    # What was folded is printed too: the digests.
    (record,) = [r for r in read_manifest(out_of(pages["full"])).outputs if r.name == "config.json"]
    assert record.sha256 in text
    page.emulate_media(media="print")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
