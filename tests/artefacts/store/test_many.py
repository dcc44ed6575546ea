"""Ten thousand artefacts: a list of them takes less than a second, and the index can be made again.

They are put in by the store's own changes, five hundred at a time: ten thousand merges would take
half an hour and tell no more.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

import remerge
from remerge.artefacts.names import name_of_merge
from remerge.artefacts.store.layout import open_store
from remerge.artefacts.store.records import Record, Source, State, StoredFile
from remerge.artefacts.store.transactions import Change, changing, commit
from tests.artefacts.store.conftest import Workshop

COUNT = 10_000
AT_ONCE = 500

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def digest(number: int, what: int) -> str:
    return f"{number:032x}{what:032x}"


def artefact(number: int) -> tuple[Record, State]:
    """A merge of two hundred adapters in fifty versions, in a dozen files of an 8 GB model."""
    adapter = f"task-{number % 200}"
    base = Source(name="org/base-8b", version="0e9e39f2", digest=digest(0, 1))
    source = Source(name=adapter, version=f"{number:08x}", digest=digest(number, 2))
    weights = tuple(
        StoredFile(
            name=f"model-{shard:05d}-of-00008.safetensors",
            size=10**9,
            sha256=digest(number if shard < 5 else 0, 100 + shard),
            derived=True,
        )
        for shard in range(8)
    )
    small = tuple(
        StoredFile(name=name, size=1000, sha256=digest(0, place))
        for place, name in enumerate(("config.json", "tokenizer.json", "remerge.json"), 200)
    )
    record = Record(
        kind="merged",
        merge_key=digest(number, 3),
        base=base,
        adapters=(source,),
        files=tuple(sorted((*weights, *small), key=lambda file: file.name)),
    )
    title = name_of_merge((base.name, base.version), [(source.name, source.version)], None)
    return record, State(title=title, added=f"2026-01-{1 + number % 28:02d}T00:00:00.000+00:00")


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with all of them, every one named."""
    root = tmp_path_factory.mktemp("large") / "store"
    store = open_store(root, create=True)
    for start in range(0, COUNT, AT_ONCE):
        made = [artefact(number) for number in range(start, start + AT_ONCE)]
        writes: dict[Path, bytes | None] = {}
        for record, state in made:
            writes[store.record(record.id)] = record.content()
            writes[store.state(record.id)] = state.content()
            writes[store.ref(state.title)] = f"{record.id}\n".encode()
        ids = tuple(record.id for record, _ in made)
        names = tuple(state.title for _, state in made)
        entry = {"action": "add", "name": names[0], "artefact": ids[0], "was": None}
        with pytest.MonkeyPatch.context() as patch, changing(store):
            # Thirty thousand small files need not reach the disk.
            patch.setattr(os, "fsync", lambda descriptor: None)
            commit(store, Change(entry, ids, names, writes=writes))
    return root


def listed(root: Path, *arguments: str) -> tuple[float, list[str]]:
    """How long `remerge store ls` takes, the process and all, and its lines."""
    started = time.monotonic()
    command = [sys.executable, "-m", "remerge", "store", "ls", *arguments, "--store", str(root)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return time.monotonic() - started, done.stdout.splitlines()


def test_they_are_listed_in_under_a_second(large: Path):
    # The best of a few: a busy machine is not what is measured.
    taken = [listed(large) for _ in range(5)]
    assert {len(lines) for _, lines in taken} == {COUNT}
    assert min(seconds for seconds, _ in taken) < 1.0


@pytest.mark.parametrize("arguments", [("--json",), ("*-task-7-*",)])
def test_in_other_ways_too(large: Path, arguments: tuple[str, ...]):
    assert min(listed(large, *arguments)[0] for _ in range(5)) < 1.0


def test_one_more_change_reads_one_more_line(large: Path):
    """The index goes on from where it stands."""
    store = remerge.Store(large)
    name = store.ls()[0].names[0]
    store.tag(name, "another")
    seconds, lines = listed(large, "another")
    assert len(lines) == 1
    store.rm("another")
    assert seconds < 2.0


def test_the_index_is_made_again(large: Path):
    store = remerge.Store(large)
    before = store.ls()
    started = time.monotonic()
    assert store.reindex() == COUNT
    assert time.monotonic() - started < 60
    assert store.ls() == before


def test_a_real_one_among_them(large: Path, shop: Workshop):
    """Adding, finding, writing out and taking a name away do not read all of it."""
    store = remerge.Store(large)
    store.ls()
    started = time.monotonic()
    added = store.add(shop.merged(0), name="real")
    store.tag("real", "production")
    assert store.show(added.id[:12]).id == added.id
    store.materialize("production", shop.root / "out")
    store.rm("production")
    assert time.monotonic() - started < 10
    assert len(store.ls()) == COUNT + 2
