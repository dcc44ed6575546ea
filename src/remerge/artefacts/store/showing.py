"""What a store knows of one artefact."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from remerge.artefacts.store import blobs, index
from remerge.artefacts.store.layout import Store
from remerge.artefacts.store.records import Record, State, read_record, read_state
from remerge.artefacts.store.refs import resolve
from remerge.artefacts.store.transactions import settle
from remerge.artefacts.store.words import status_of
from remerge.artefacts.test_result import TESTS, Figures, read_statement


@dataclass(frozen=True)
class Shown:
    """An artefact: its id and names, what it is, what became of it, how it was judged."""

    id: str
    names: tuple[str, ...]
    record: Record
    state: State
    evaluations: tuple[Figures, ...]

    @property
    def status(self) -> str:
        """Where its bytes are, in a few words."""
        return status_of(
            collected=self.state.collected is not None,
            rebuildable=self.state.collected is None or self.state.collected.rebuildable,
            seconds=None if self.state.proof is None else self.state.proof.seconds,
        )

    def document(self) -> dict[str, Any]:
        """The same for ``--json``."""
        return {
            "id": self.id,
            "names": list(self.names),
            "status": self.status,
            **self.record.model_dump(mode="json", exclude={"format"}),
            **self.state.model_dump(mode="json"),
            "evaluations": [
                {"started": one.started, "verdict": one.verdict} for one in self.evaluations
            ],
        }


def show(store: Store, target: str) -> Shown:
    """The artefact that ``target`` means."""
    settle(store)
    artefact = resolve(store, target)
    record, state = read_record(store, artefact), read_state(store, artefact)
    names = tuple(index.names_of(store, artefact))
    return Shown(artefact, names, record, state, evaluations(store, state))


def evaluations(store: Store, state: State) -> tuple[Figures, ...]:
    """The comparisons that came with an artefact, oldest first."""
    found: list[Figures] = []
    for file in state.attached:
        path = blobs.find(store, file.sha256)
        if f"{TESTS}/" in file.name and path is not None:
            found.append(read_statement(path).predicate.figures)
    return tuple(sorted(found, key=lambda figures: figures.started))
