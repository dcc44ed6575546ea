"""Killed before every step on the disk, a store is as it was or as it was to be, never between."""

from __future__ import annotations

import errno
import itertools
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

import remerge
from tests.artefacts.store import faults
from tests.artefacts.store.conftest import Workshop
from tests.artefacts.store.oracle import Seen, leftovers, see, sound

SLOW = pytest.mark.slow


@dataclass(frozen=True)
class Case:
    """A command on a store: what is prepared, what is called, what it says when it has nothing
    left to do, and whether it is one change."""

    prepare: Callable[[Workshop, remerge.Store], None]
    method: str
    arguments: Callable[[Workshop], tuple[Any, ...]]
    options: dict[str, Any]
    again: int = 0
    one_change: bool = True
    every: int = 3


def _nothing(shop: Workshop, store: remerge.Store) -> None:
    pass


def _proved(shop: Workshop, store: remerge.Store) -> None:
    store.rebuild("first")
    store.rebuild("second")


def _collected(shop: Workshop, store: remerge.Store) -> None:
    store.gc()


def _damaged(shop: Workshop, store: remerge.Store) -> None:
    blob = sorted((shop.store / "blobs" / "derived").glob("??/*"))[0]
    blob.chmod(0o644)
    blob.write_bytes(b"x" * blob.stat().st_size)


def _without_base(shop: Workshop, store: remerge.Store) -> None:
    """A merge whose base is nowhere."""
    store.add(shop.merged(0, shop.other_base), name="orphan")
    shutil.rmtree(shop.other_base)


CASES = {
    "add a merge and its adapter": Case(
        _nothing, "add", lambda shop: (shop.merged(2),), {"name": "third"}
    ),
    "add a base that shares shards": Case(
        lambda shop, store: store.add(shop.merged(0, shop.other_base)) and None,
        "add",
        lambda shop: (shop.other_base,),
        {},
    ),
    "add the same under another name": Case(
        _nothing, "add", lambda shop: (shop.merged(0),), {"name": "again"}
    ),
    "add, moving a name": Case(
        _nothing, "add", lambda shop: (shop.merged(2),), {"name": "first", "move": True}
    ),
    "tag": Case(_nothing, "tag", lambda shop: ("first", "production"), {}, every=1),
    "tag --move": Case(_nothing, "tag", lambda shop: ("first", "second"), {"move": True}, every=1),
    "rm": Case(_nothing, "rm", lambda shop: ("first",), {}, again=3),
    "pin": Case(_nothing, "pin", lambda shop: ("first",), {}),
    "unpin": Case(
        lambda shop, store: store.pin("first") and None,
        "pin",
        lambda shop: ("first",),
        {"pinned": False},
    ),
    "rebuild what is damaged": Case(
        _damaged, "rebuild", lambda shop: ("first",), {"threads": 1}, every=3
    ),
    "rebuild what was collected": Case(
        _collected, "rebuild", lambda shop: ("first",), {"threads": 1}, every=3
    ),
    "gc of what is proved": Case(_proved, "gc", lambda shop: (), {"threads": 1}, one_change=False),
    "gc": Case(_nothing, "gc", lambda shop: (), {"threads": 1}, one_change=False),
    "gc --force": Case(
        _without_base,
        "gc",
        lambda shop: (),
        {"force": True, "threads": 1},
        one_change=False,
    ),
}


def _slow_too() -> Iterator[Any]:
    for name, case in CASES.items():
        yield pytest.param(name, case.every, id=name)
        if case.every > 1:
            yield pytest.param(name, 1, id=f"{name}, every step", marks=SLOW)


@pytest.mark.parametrize(("name", "every"), _slow_too())
def test_killed_anywhere(filled: Workshop, name: str, every: int):
    case = CASES[name]
    root = filled.store
    case.prepare(filled, remerge.Store(root))
    arguments = case.arguments(filled)
    before, after = _before_and_after(filled, case)
    for point in itertools.count(1, every):
        copy = filled.root / "copy"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(root, copy, copy_function=shutil.copy2)
        code = faults.run(copy, case.method, *arguments, kill_at=point, **case.options)
        if code == 0:
            break
        assert code == -9, f"step {point}: exit {code}"
        _is_whole(copy, case, before, after, point)
        code = faults.run(copy, case.method, *arguments, **case.options)
        assert code in (0, case.again), f"after step {point}: exit {code}"
        # Deriving what is there already is one more proof in the log.
        assert _plain(sound(copy)) == _plain(after), f"after step {point} and the same again"
        # What takes files in sweeps what was being taken in.
        remerge.Store(copy).add(filled.adapter(0))
        assert leftovers(copy) == [], f"after step {point}"
    assert point > 8, "nothing was killed"


def _before_and_after(shop: Workshop, case: Case) -> tuple[Seen, Seen]:
    before = sound(shop.store) if case.prepare is not _damaged else see(shop.store)
    whole = shop.root / "whole"
    shutil.copytree(shop.store, whole)
    assert faults.run(whole, case.method, *case.arguments(shop), **case.options) == 0
    after = sound(whole)
    assert after != before
    shutil.rmtree(whole)
    return before, after


def _is_whole(root: Path, case: Case, before: Seen, after: Seen, point: int) -> None:
    """What the next commands say of a store whose last change was killed."""
    store = remerge.Store(root)
    rows = store.ls()
    seen = sound(root) if case.prepare is not _damaged else see(root)
    if case.one_change:
        assert seen in (before, after), f"step {point}: neither old nor new"
    assert before.canonical <= seen.canonical, f"step {point}: bytes lost that nothing brings back"
    assert {name: row.id for row in rows for name in row.names} == seen.names, f"step {point}"
    assert {row.id for row in rows} == set(seen.records), f"step {point}"
    collected = {i for i, state in seen.states.items() if state["collected"] is not None}
    assert {row.id for row in rows if row.collected} == collected, f"step {point}"
    damage = store.verify().damage
    if seen != before or case.prepare is not _damaged:
        assert damage == (), f"step {point}: {damage}"


@pytest.mark.parametrize("name", ["add a merge and its adapter", "tag --move"])
@pytest.mark.parametrize("every", [5, pytest.param(1, marks=pytest.mark.proof)])
def test_killed_while_recovering(filled: Workshop, name: str, every: int):
    case = CASES[name]
    arguments = case.arguments(filled)
    _, after = _before_and_after(filled, case)
    recoveries = 0
    for point in itertools.count(1, every):
        dead = filled.root / "dead"
        shutil.rmtree(dead, ignore_errors=True)
        shutil.copytree(filled.store, dead)
        code = faults.run(dead, case.method, *arguments, kill_at=point, **case.options)
        if code == 0:
            break
        if not (dead / "journal.json").exists():
            continue
        for second in itertools.count(1, every):
            copy = filled.root / "copy"
            shutil.rmtree(copy, ignore_errors=True)
            shutil.copytree(dead, copy)
            code = faults.run(copy, "ls", kill_at=second)
            if code == 0:
                break
            assert code == -9
            recoveries += 1
            remerge.Store(copy).ls()
            assert sound(copy) == after, f"killed at {point}, then at {second}"
    assert recoveries > 3


@pytest.mark.parametrize("every", [3, pytest.param(1, marks=SLOW)])
def test_a_new_store_killed_while_it_is_made(shop: Workshop, every: int):
    made = 0
    for point in itertools.count(1, every):
        shutil.rmtree(shop.store, ignore_errors=True)
        code = faults.run(shop.store, "add", shop.merged(0), kill_at=point, name="first")
        if code == 0:
            break
        assert code == -9, f"step {point}: exit {code}"
        if (shop.store / "store.json").exists():
            made += 1
            remerge.Store(shop.store).ls()
            assert sound(shop.store).names.get("first") in (None, *see(shop.store).records)
        else:
            with pytest.raises(remerge.BadInput, match="no store"):
                remerge.Store(shop.store).ls()
        added = remerge.Store(shop.store).add(shop.merged(0), name="first")
        assert sound(shop.store).names["first"] == added.id
        assert remerge.Store(shop.store).verify().damage == ()
        assert leftovers(shop.store) == [], f"after step {point}"
    assert made > 8


@pytest.mark.parametrize("name", list(CASES))
@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO], ids=["disk full", "I/O error"])
@pytest.mark.parametrize("every", [4, pytest.param(1, marks=SLOW)])
def test_the_disk_fails_anywhere(filled: Workshop, name: str, error: int, every: int):
    """A full disk stays full for the command that met it; an I/O error comes once. The command
    says so (75) or did not need it; the store is old or new, and the same again does it."""
    case = CASES[name]
    case.prepare(filled, remerge.Store(filled.store))
    arguments = case.arguments(filled)
    before, after = _before_and_after(filled, case)
    failures = 0
    for point in itertools.count(1, every * case.every):
        copy = filled.root / "copy"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(filled.store, copy)
        code = faults.run(
            copy,
            case.method,
            *arguments,
            fail_at=point,
            error=error,
            lasting=error == errno.ENOSPC,
            **case.options,
        )
        assert code in (0, 75), f"step {point}: exit {code}"
        failures += code != 0
        _is_whole(copy, case, before, after, point)
        if code == 0 and see(copy) == after and failures:
            break
        code = faults.run(copy, case.method, *arguments, **case.options)
        assert code in (0, case.again), f"after step {point}: exit {code}"
        assert _plain(sound(copy)) == _plain(after), f"after step {point} and the same again"
    assert failures


def _plain(seen: Seen) -> Seen:
    """Without how many changes it took."""
    return replace(seen, changes=0)
