"""What the installed transformers says about a model type, read as text.

Importing transformers takes seconds; a few facts about a model type show in its source file. They
are used to prove that something cannot be the case, so a doubtful reading counts as "it may be".
"""

from __future__ import annotations

import ast
import importlib.util
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

# Components of a tied weight's name that say nothing about which module is tied.
_PLAIN = frozenset({"weight", "bias", "model", "transformer"})
_IDENTIFIER = re.compile(r"[A-Za-z_]\w*")


@dataclass(frozen=True)
class ModelSource:
    """``converted``: the loader may rename or rearrange weights. ``transposes``: some layers may
    store [in, out]. ``tied``: names of modules that may share a weight with another."""

    converted: bool
    transposes: bool
    tied: frozenset[str]


@cache
def model_source(model_type: str) -> ModelSource | None:
    """The facts about a model type, None where transformers has no source file of its name."""
    package = _transformers()
    if package is None or not model_type.isidentifier():
        return None
    path = package / "models" / model_type / f"modeling_{model_type}.py"
    rules = package / "conversion_mapping.py"
    if not path.is_file() or not rules.is_file():
        return None
    text = path.read_text(encoding="utf-8")
    tied = _tied_modules(text)
    if tied is None:
        return None
    classes = re.findall(r"^class (\w+)", text, flags=re.MULTILINE)
    quoted = set(re.findall(r"\"(\w+)\"", rules.read_text(encoding="utf-8")))
    return ModelSource(
        converted=not quoted.isdisjoint({model_type, *classes}),
        transposes="Conv1D" in text,
        tied=tied,
    )


def _transformers() -> Path | None:
    spec = importlib.util.find_spec("transformers")
    return None if spec is None or spec.origin is None else Path(spec.origin).parent


def _tied_modules(text: str) -> frozenset[str] | None:
    """The last telling component of every name in ``_tied_weights_keys``; None where these are
    not only written down but also computed."""
    assigned = [
        node.value
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "_tied_weights_keys"
    ]
    if len(assigned) != text.count("_tied_weights_keys"):
        return None
    modules: set[str] = set()
    for leaf in (leaf for value in assigned for leaf in ast.walk(value)):
        if isinstance(leaf, ast.JoinedStr | ast.Name):
            return None
        if isinstance(leaf, ast.Constant) and isinstance(leaf.value, str):
            telling = [part for part in _IDENTIFIER.findall(leaf.value) if part not in _PLAIN]
            modules |= set(telling[-1:])
    return frozenset(modules)
