"""The store as one object: what the command line and `remerge.Store` call.

Modules are imported where they are used: listing ten thousand artefacts must not wait for torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from remerge.artefacts.store import index, layout, transactions

if TYPE_CHECKING:
    from remerge.artefacts.differences import Differences
    from remerge.artefacts.store.adding import Added
    from remerge.artefacts.store.checking import Checked
    from remerge.artefacts.store.collecting import Collection
    from remerge.artefacts.store.materializing import Materialized
    from remerge.artefacts.store.rebuilding import Means, Rebuilt
    from remerge.artefacts.store.showing import Shown
    from remerge.artefacts.traced import Trace

Report = Callable[[int, int, str], None]


def _silent(done: int, total: int, what: str) -> None:
    pass


class Store:
    """Artefacts kept by their bytes' digests, and names that point to them.

    ``place`` is its directory; by default what ``REMERGE_STORE`` says, else one among the user's
    data. The first `add` makes it. Everywhere a ``target`` is a name, an id, a merge key, or the
    first six digits or more of one.
    """

    def __init__(self, place: str | Path | None = None) -> None:
        self._place = place

    @property
    def root(self) -> Path:
        """The store's directory, whether or not it is there yet."""
        return layout.place_of_store(self._place)

    def add(
        self,
        path: str | Path,
        *,
        name: str | None = None,
        move: bool = False,
        link: Literal["copy", "hard"] = "copy",
    ) -> Added:
        """Keep an output of remerge, an adapter or a base; of a merge also its adapters.

        Every file is held to its manifest on the way. Without ``name`` it gets one of its base and
        adapters. Raises `IntegrityError` for a file that is another, `UsageError` for a name that
        names another artefact, unless ``move``.
        """
        from remerge.artefacts.names import check_name
        from remerge.artefacts.store import adding, describing

        # What cannot be added makes no store.
        if name is not None:
            check_name(name)
        found = describing.describe(Path(path))
        opened = layout.open_store(self._place, create=True)
        return adding.add(opened, found, name=name, move=move, link=link)

    def ls(self) -> list[index.Row]:
        """All artefacts, oldest first."""
        opened = self._opened()
        transactions.settle(opened)
        return index.rows(opened)

    def show(self, target: str) -> Shown:
        """What is known of one artefact."""
        from remerge.artefacts.store import showing

        return showing.show(self._opened(), target)

    def log(self, target: str | None = None) -> list[dict[str, Any]]:
        """Every change there was, oldest first; of one artefact or name alone."""
        from remerge.artefacts.store import refs

        opened = self._opened()
        transactions.settle(opened)
        entries = transactions.read_log(opened)
        if target is None:
            return entries
        named = [entry for entry in entries if target in entry["names"]]
        artefact = None if named else refs.resolve(opened, target)
        return named or [entry for entry in entries if artefact in entry["artefacts"]]

    def tag(self, target: str, name: str, *, move: bool = False) -> tuple[str, str | None]:
        """Point ``name`` to an artefact; its id, and what the name meant before."""
        from remerge.artefacts.store import tagging

        return tagging.tag(self._opened(), target, name, move=move)

    def rm(self, name: str) -> str:
        """Take a name away; the id of the artefact that had it."""
        from remerge.artefacts.store import tagging

        return tagging.remove(self._opened(), name)

    def pin(self, target: str, *, pinned: bool = True) -> str:
        """Keep an artefact's bytes whatever `gc` is asked, or let go of them; its id."""
        from remerge.artefacts.store import tagging

        return tagging.pin(self._opened(), target, pinned=pinned)

    def materialize(
        self,
        target: str,
        output: str | Path,
        *,
        link: Literal["copy", "hard"] = "copy",
        overwrite: bool = False,
        threads: int | None = None,
        device: str = "cpu",
        engine_python: Mapping[str, str] | None = None,
        report: Report = _silent,
    ) -> Materialized:
        """Write an artefact's files to the directory ``output``, each held to its digest.

        What was collected is derived again. ``output`` is complete in the end or as it was.
        """
        from remerge.artefacts.store import materializing

        means = self._means(device, threads, engine_python, report)
        return materializing.materialize(
            self._opened(), target, Path(output), means, link=link, overwrite=overwrite
        )

    def rebuild(
        self,
        target: str,
        *,
        threads: int | None = None,
        device: str = "cpu",
        engine_python: Mapping[str, str] | None = None,
        report: Report = _silent,
    ) -> Rebuilt:
        """Derive an artefact again: proves that it can be, and puts back what is missing.

        Raises `NotReproduced` where a byte differs; the store then is as it was.
        """
        from remerge.artefacts.store import rebuilding

        means = self._means(device, threads, engine_python, report)
        return rebuilding.rebuild(self._opened(), target, means)

    def gc(
        self,
        targets: Sequence[str] = (),
        *,
        keep_last: int | None = None,
        keep_within: str | None = None,
        keep_tag: Sequence[str] = (),
        dry_run: bool = False,
        force: bool = False,
        threads: int | None = None,
        device: str = "cpu",
        engine_python: Mapping[str, str] | None = None,
        report: Report = _silent,
    ) -> Collection:
        """Delete the bytes of merges that base and adapters bring back, once that is proved.

        Adapters and bases are never touched, nor what is pinned or kept by ``keep_last``,
        ``keep_within`` (``"30d"``) or ``keep_tag`` (patterns of names). ``force`` also deletes what
        cannot be made again.
        """
        from remerge.artefacts.store import collecting, retention

        kept = retention.read_retention(keep_last, keep_within, keep_tag)
        means = self._means(device, threads, engine_python, report)
        return collecting.collect(
            self._opened(), kept, means, targets=targets, dry_run=dry_run, force=force
        )

    def trace(self, what: str | Path, report: Report = _silent) -> Trace:
        """From a file, a directory, a manifest, a digest or a name back to what made it.

        A path that is there comes first. Needs no store, and makes none. Raises `BadInput` where
        nothing is known, saying what was tried.
        """
        from remerge.artefacts.store import tracing

        return tracing.trace(what, self._if_there(), report)

    def diff(self, a: str | Path, b: str | Path, report: Report = _silent) -> Differences:
        """What differs between two artefacts: what they were made from, how, and which tensors.

        Each is a path that is there, else a ``target``.
        """
        from remerge.artefacts.store import comparing

        return comparing.compare(a, b, self._if_there(), report)

    def verify(self, targets: Sequence[str] = (), report: Report = _silent) -> Checked:
        """Read every byte of some artefacts, or of all, and hold it to its digest."""
        from remerge.artefacts.store import checking

        return checking.verify(self._opened(), targets, report)

    def reindex(self) -> int:
        """Make the index again from the files that it is about; how many artefacts it has."""
        opened = self._opened()
        transactions.settle(opened)
        index.rebuild(opened)
        return len(index.rows(opened))

    def _means(
        self, device: str, threads: int | None, pythons: Mapping[str, str] | None, report: Report
    ) -> Means:
        import torch

        from remerge.artefacts.store.rebuilding import Means

        return Means(torch.device(device), threads, pythons or {}, report)

    def _opened(self) -> layout.Store:
        return layout.open_store(self._place)

    def _if_there(self) -> layout.Store | None:
        """The store; None where there is none and none was named."""
        if self._place is None and not (self.root / "store.json").is_file():
            return None
        return self._opened()
