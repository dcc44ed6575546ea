"""Facts -> one page of HTML: figures, style and script inside, nothing fetched, foreign texts
escaped by the template engine and shown by `words.shown`."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path
from typing import Any

from remerge.artefacts.test_result import Differing
from remerge.errors import UsageError
from remerge.validation.report import figures, words
from remerge.validation.report.facts import Facts, moment
from remerge.validation.report.measures import measures_of
from remerge.version import __version__

# By it a page is known as ours.
GENERATOR = "remerge report"
_TEMPLATES = Path(__file__).parent / "templates"
_CASES = 200
_CUT = 400


def render(facts: Facts) -> str:
    """The whole page. Raises `UsageError` where what draws it is not installed."""
    try:
        import jinja2
        from markupsafe import Markup
    except ImportError as error:
        raise UsageError(
            "The report is written with Jinja, which is not installed.",
            hint="Install it: pip install 'remerge[report]'.",
        ) from error

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {  # pyright: ignore[reportAttributeAccessIssue]
        "shown": words.shown,
        "brief": words.brief,
        "figure": words.figure,
        "signed": words.signed,
        "percent": words.percent,
        "size": words.size,
        "duration": words.duration,
        "moment": moment,
    }
    script = (_TEMPLATES / "page.js").read_text("utf-8")
    hashed = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()

    def drawn(svg: str) -> Any:
        # The only markup that is not escaped: what Vega-Lite drew, parsed and written again.
        return Markup(svg)

    newest = None if facts.newest is None else facts.newest.figures
    measures = () if facts.grid is None else measures_of(facts.grid)
    cases = () if newest is None else sorted(newest.differing, key=_order)
    bisection = None if newest is None else newest.bisection
    page = environment.get_template("page.html").render(
        facts=facts,
        manifest=facts.manifest,
        newest=newest,
        generator=GENERATOR,
        version=__version__,
        style=Markup((_TEMPLATES / "page.css").read_text("utf-8")),
        script=Markup(script),
        script_hash=hashed,
        verdict=verdict(facts),
        measures=[
            (measure, drawn(figures.heatmap(facts.grid, measure)))
            for measure in measures
            if facts.grid is not None
        ],
        scores=drawn(figures.scores(newest.tasks)) if newest and newest.tasks else None,
        suspects=drawn(figures.suspects(bisection))
        if bisection is not None and bisection.suspects
        else None,
        tables=[
            (name, table, drawn(figures.formats(table.rows)) if _is_drawable(table) else None)
            for name, table in facts.formats
        ],
        cases=cases[:_CASES],
        more_cases=len(cases) - _CASES,
        cut=_CUT,
    )
    # Lone surrogates are no text; everything else is.
    return page.encode("utf-8", "replace").decode()


def verdict(facts: Facts) -> tuple[str, str]:
    """What the newest comparison says in a word or two, and the class of its colour."""
    newest = facts.newest
    if newest is None:
        return "not compared", "none"
    if newest.figures.verdict == "failed":
        return "failed", "failed"
    return ("passed", "passed") if newest.passed else ("passed, but with other bytes", "failed")


def _order(case: Differing) -> tuple[bool, bool]:
    """What was lost first, then what was won."""
    lost = case.adapter_right and not case.merged_right
    return not lost, case.adapter_right == case.merged_right


def _is_drawable(table: Any) -> bool:
    return any(row.nbytes and row.comparison is not None for row in table.rows)
