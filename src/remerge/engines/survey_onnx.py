"""Run in onnxruntime-genai's environment: whether its builder knows an architecture, from its
source alone, which takes no time."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from remerge.engines.calling import Teller, answer
from remerge.errors import Unsupported

_ASKED = re.compile(r'config\.architectures\[0\] == "(\w+)"')


def work(request: Mapping[str, Any], tell: Teller) -> dict[str, Any]:
    """Raise `Unsupported` for a model that the builder does not know."""
    known = architectures()
    found = (request["config"].get("architectures") or ["a model without an architecture"])[0]
    if found not in known:
        raise Unsupported(
            f"onnxruntime-genai's builder does not know {found}.",
            why=f"It knows {', '.join(sorted(known))}.",
            hint="Write a checkpoint or a GGUF file instead.",
        )
    return {}


def architectures() -> set[str]:
    """The names that the builder compares a model's with."""
    spec = importlib.util.find_spec("onnxruntime_genai")
    assert spec is not None and spec.origin is not None
    return set(_ASKED.findall((Path(spec.origin).parent / "models" / "builder.py").read_text()))


if __name__ == "__main__":
    answer(work)
