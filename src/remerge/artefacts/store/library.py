"""A store as `remerge.artefacts.tracing` asks it: which artefacts have these bytes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from remerge.artefacts.store import blobs, index
from remerge.artefacts.store.describing import input_digest
from remerge.artefacts.store.layout import Store
from remerge.artefacts.store.records import read_record, read_state
from remerge.artefacts.test_result import TESTS
from remerge.artefacts.traced import Kept
from remerge.errors import RemergeError
from remerge.outputs.directory import PROVENANCE

# A tokenizer may be that of a thousand artefacts: more of them say nothing.
_MOST = 32


@dataclass(frozen=True)
class StoreLibrary:
    """A `remerge.artefacts.traced.Library`; what is damaged is passed over."""

    store: Store

    def with_file(self, sha256: str) -> Sequence[Kept]:
        return self._all(index.holding(self.store, sha256))

    def with_merge_key(self, key: str) -> Sequence[Kept]:
        found = self._all(index.beginning(self.store, key))
        return [one for one in found if one.artefact != key]

    def with_files(self, files: dict[str, str]) -> Sequence[Kept]:
        return self._all(index.inputs(self.store, input_digest(files)))

    def get(self, artefact: str) -> Kept:
        """An artefact by its id; raises what reading its record raises."""
        record, state = read_record(self.store, artefact), read_state(self.store, artefact)
        files = {file.name: file.sha256 for file in record.files}
        manifest = None if record.manifest is None else self._read(files[record.manifest])
        attached = {file.name: file.sha256 for file in state.attached}
        provenance = next(
            (sha for name, sha in attached.items() if name.endswith(PROVENANCE)), None
        )
        tests = [sha for name, sha in attached.items() if f"{TESTS}/" in name]
        return Kept(
            artefact=artefact,
            kind=record.kind,
            title=state.title,
            names=tuple(index.names_of(self.store, artefact)),
            files=files,
            manifest=manifest,
            collected=state.collected is not None,
            provenance=None if provenance is None else self._read(provenance),
            statements=tuple(c for sha in tests if (c := self._read(sha)) is not None),
        )

    def _all(self, artefacts: Iterable[str]) -> list[Kept]:
        found: list[Kept] = []
        for artefact in artefacts:
            try:
                found.append(self.get(artefact))
            except RemergeError:
                continue
            if len(found) == _MOST:
                break
        return found

    def _read(self, sha256: str) -> bytes | None:
        path = blobs.find(self.store, sha256)
        return None if path is None else path.read_bytes()
