"""All cases of the corpus."""

from __future__ import annotations

import fnmatch

from tests.corpus import (
    cases_archs,
    cases_embeddings,
    cases_kinds,
    cases_moe,
    cases_names,
    cases_refused,
)
from tests.corpus.case import Case

CASES: list[Case] = [
    *cases_kinds.CASES,
    *cases_embeddings.CASES,
    *cases_archs.CASES,
    *cases_moe.CASES,
    *cases_names.CASES,
    *cases_refused.CASES,
]

_names = [case.name for case in CASES]
if len(set(_names)) != len(_names):
    raise ValueError(f"named twice: {sorted({n for n in _names if _names.count(n) > 1})}")


def select(pattern: str | None = None, *, fast: bool = False) -> list[Case]:
    """Cases whose name or category matches a glob; ``fast`` leaves the representative ones."""
    chosen = [case for case in CASES if case.fast or not fast]
    if pattern is None:
        return chosen
    return [
        case
        for case in chosen
        if any(fnmatch.fnmatch(text, pattern) for text in (case.name, case.category))
    ]
