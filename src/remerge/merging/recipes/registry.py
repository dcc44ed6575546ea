"""The grammars of recipe files. A new one is one file of this package and one entry here."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from remerge.errors import UsageError
from remerge.merging.recipes.axolotl import AXOLOTL
from remerge.merging.recipes.document import read_document
from remerge.merging.recipes.grammar import Fields, Grammar, RecipeFile
from remerge.merging.recipes.llama_factory import LLAMA_FACTORY
from remerge.merging.recipes.mergekit import MERGEKIT
from remerge.merging.recipes.own import OWN

# mergekit stands before axolotl, with which it shares base_model.
GRAMMARS: Sequence[Grammar] = (OWN, MERGEKIT, LLAMA_FACTORY, AXOLOTL)


def read_recipe(path: str | Path) -> RecipeFile:
    """What a recipe file asks for, in whichever grammar it is written.

    To merge it: ``merge(asked.base, asked.adapters, asked.output, **asked.options)``. Raises
    `UsageError`, and `Unsupported` for what remerge cannot do.
    """
    fields = Fields(read_document(Path(path)), Path(path))
    rest = set(fields.values)
    found: list[Grammar] = []
    for grammar in GRAMMARS:
        if grammar.marks & rest:
            found.append(grammar)
            rest -= grammar.keys
    if len(found) > 1:
        names = " and ".join(grammar.name for grammar in found)
        raise UsageError(
            f"{path} mixes the keys of {names}.", hint="Write it in the words of one of them."
        )
    return (found[0] if found else OWN).read(fields)
