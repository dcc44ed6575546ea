"""Inputs of a manifest out of the user's store, for whoever derives something again."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from remerge.artefacts.manifest import InputRecord
from remerge.artefacts.rederiving import Elsewhere
from remerge.artefacts.store import blobs, index
from remerge.artefacts.store.describing import input_digest
from remerge.artefacts.store.inputs import lay_out
from remerge.artefacts.store.layout import open_store
from remerge.artefacts.store.records import read_record, read_state
from remerge.errors import RemergeError
from remerge.sources.references import Reference


@contextmanager
def lent_inputs(place: Path | None = None) -> Generator[Elsewhere]:
    """Finds bases and adapters in the user's store (or that at ``place``), if there is one; what it
    lends lies in the store's staging until the end. What was collected there is not made again for
    it."""
    with ExitStack() as lent:

        def find(record: InputRecord) -> Reference | None:
            digest = input_digest({file.name: file.sha256 for file in record.files})
            try:
                store = open_store(place)
                for artefact in index.inputs(store, digest):
                    if read_state(store, artefact).collected is None:
                        folder = lent.enter_context(blobs.staging(store)) / "input"
                        lay_out(store, read_record(store, artefact), folder)
                        return Reference(folder)
            except RemergeError:
                # What is missing is told by whoever asked.
                return None
            return None

        yield find
