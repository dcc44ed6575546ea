"""What is written down of an output after it was made."""

from __future__ import annotations

from pathlib import Path

from remerge.api.options import Source
from remerge.artefacts.card.writing import WrittenCard, write_card


def card(output: Source, path: Source | None = None) -> WrittenCard:
    """Write or update the model card of ``output`` (docs/card.md): README.md in a directory, at
    ``path`` for an output that is one file.

    What the user wrote in it stays, metadata included. Raises `BadInput` where remerge did not make
    the output, or the metadata in the card are not valid YAML; nothing is written then.
    """
    return write_card(Path(output), None if path is None else Path(path))
