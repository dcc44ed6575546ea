"""remerge takes a LoRA fine-tune to production: merged exactly, in constant memory, traceable.

import remerge

plan = remerge.plan("base", "adapter")           # everything known from the headers
remerge.merge("base", "adapter", "merged")       # a directory any engine loads
remerge.verify("merged")                         # derived again, compared byte for byte
merged = remerge.open_merged("base", "adapter")  # the result, read before it exists
merged["model.layers.0.self_attn.q_proj.weight"][:16]
model = merged.load_model()
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from remerge.errors import (
    BadInput,
    IntegrityError,
    Locked,
    NotReproduced,
    RemergeError,
    TryAgain,
    Unsupported,
    UsageError,
)
from remerge.version import __version__

if TYPE_CHECKING:
    from remerge.advice.advising import advise
    from remerge.api import (
        bench,
        card,
        check,
        combine,
        compare,
        conflicts,
        export,
        extract,
        formats,
        inspect,
        merge,
        open_merged,
        past,
        plan,
        promote,
        read_recipe,
        report,
        reproduce,
        rollback,
        verify,
    )
    from remerge.artefacts.store.store import Store

__all__ = [
    "BadInput",
    "IntegrityError",
    "Locked",
    "NotReproduced",
    "RemergeError",
    "Store",
    "TryAgain",
    "Unsupported",
    "UsageError",
    "__version__",
    "advise",
    "bench",
    "card",
    "check",
    "combine",
    "compare",
    "conflicts",
    "export",
    "extract",
    "formats",
    "inspect",
    "merge",
    "open_merged",
    "past",
    "plan",
    "promote",
    "read_recipe",
    "report",
    "reproduce",
    "rollback",
    "verify",
]


def __getattr__(name: str) -> Any:
    """Import the working parts (torch) at their first use, so that ``remerge --help`` is quick."""
    if name == "Store":
        # Of its own: listing artefacts needs no torch.
        from remerge.artefacts.store.store import Store

        return Store
    if name == "advise":
        # Nor does advice on facts alone.
        from remerge.advice.advising import advise

        return advise
    if name in __all__:
        from remerge import api

        return getattr(api, name)
    raise AttributeError(f"module 'remerge' has no attribute {name!r}")
