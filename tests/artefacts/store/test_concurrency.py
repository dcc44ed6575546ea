"""Many processes at one store: no update is lost, nothing is half done, nobody waits for ever."""

from __future__ import annotations

import itertools
import time
from pathlib import Path
from typing import Any

import remerge
from tests.artefacts.store import faults
from tests.artefacts.store.conftest import Workshop
from tests.artefacts.store.oracle import digests, leftovers, log, sound


def together(root: Path, calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]]) -> list[int]:
    """Calls of `remerge.Store`, each in a process of its own, all at once; their exit codes."""
    go = faults.barrier(len(calls))
    children = [
        faults.start(root, method, arguments, options, go=go)
        for method, arguments, options in calls
    ]
    until = time.monotonic() + 120
    for child in children:
        child.join(max(0.0, until - time.monotonic()))
    codes = [child.exitcode for child in children]
    for child in children:
        if child.is_alive():
            child.kill()
    assert None not in codes, "a process hangs"
    return codes


def test_one_of_many_gets_a_name(filled: Workshop):
    targets = ["first", "second"] * 5
    codes = together(filled.store, [("tag", (target, "production"), {}) for target in targets])
    # All that wanted what the first one wanted find it done.
    assert sorted(codes) == [0] * 5 + [2] * 5
    seen = sound(filled.store)
    winners = {target for target, code in zip(targets, codes, strict=True) if code == 0}
    assert len(winners) == 1
    assert seen.names["production"] == seen.names[min(winners)]
    assert [entry["action"] for entry in log(filled.store)].count("tag") == 1


def test_no_tag_is_lost(filled: Workshop):
    names = [f"name-{number}" for number in range(16)]
    codes = together(filled.store, [("tag", ("first", name), {}) for name in names])
    assert codes == [0] * 16
    seen = sound(filled.store)
    assert {seen.names[name] for name in names} == {seen.names["first"]}
    tagged = [entry["name"] for entry in log(filled.store) if entry["action"] == "tag"]
    assert sorted(tagged) == sorted(names)
    listed = next(row for row in remerge.Store(filled.store).ls() if "first" in row.names)
    assert set(names) < set(listed.names)


def test_moves_in_a_row(filled: Workshop):
    """Every move says what the name was: the log is one chain."""
    remerge.Store(filled.store).tag("first", "production")
    targets = ["first", "second"] * 6
    codes = together(
        filled.store, [("tag", (target, "production"), {"move": True}) for target in targets]
    )
    assert codes == [0] * 12
    chain = [entry for entry in log(filled.store) if entry["name"] == "production"]
    for before, after in itertools.pairwise(chain):
        assert after["was"] == before["artefact"] != after["artefact"]
    assert sound(filled.store).names["production"] == chain[-1]["artefact"]


def test_all_begin_the_store(shop: Workshop):
    """The directory is made once, by whoever comes first."""
    for attempt in range(5):
        root = shop.root / f"store-{attempt}"
        paths = [shop.merged(0), shop.merged(1), shop.base, shop.adapter(0), shop.adapter(1)]
        codes = together(root, [("add", (path,), {}) for path in paths * 2])
        assert codes == [0] * 10
        seen = sound(root)
        assert len(seen.records) == 5
        assert leftovers(root) == []


def test_the_same_is_added_once(shop: Workshop):
    codes = together(shop.store, [("add", (shop.merged(0),), {"name": "one"})] * 8)
    assert codes == [0] * 8
    seen = sound(shop.store)
    assert len(seen.records) == 2
    assert set(seen.names.values()) == set(seen.records)
    assert {entry["artefact"] for entry in log(shop.store)} == {seen.names["one"]}
    assert leftovers(shop.store) == []


def test_a_collection_while_something_is_added_that_shares_blobs(filled: Workshop):
    """The two merges of the other base have a shard with the first ones' in common."""
    for _ in range(3):
        calls: list[Any] = [
            ("gc", (), {"threads": 1}),
            ("add", (filled.merged(0, filled.other_base),), {"name": "third"}),
            ("add", (filled.merged(0),), {"name": "first"}),
            ("gc", (), {"threads": 1}),
            ("add", (filled.merged(1, filled.other_base),), {"name": "fourth"}),
        ]
        codes = together(filled.store, calls)
        assert set(codes) <= {0, 75}, codes
        sound(filled.store)
        assert remerge.Store(filled.store).verify().damage == ()


def test_written_out_while_it_is_collected_and_rebuilt(filled: Workshop):
    """Whatever the others do meanwhile, it is given whole."""
    remerge.Store(filled.store).gc(threads=1)
    outs = [filled.root / f"out-{number}" for number in range(6)]
    calls: list[Any] = [("materialize", ("first", out), {"threads": 1}) for out in outs]
    calls += [("gc", (), {"threads": 1}), ("rebuild", ("first",), {"threads": 1})] * 3
    codes = together(filled.store, calls)
    assert codes[:6] == [0] * 6
    assert set(codes) <= {0, 75}, codes
    expected = digests(filled.merged(0))
    for out in outs:
        assert digests(out) == expected
    sound(filled.store)


def test_a_check_finds_no_damage_in_a_collection(filled: Workshop):
    store = remerge.Store(filled.store)
    for _ in range(3):
        calls: list[Any] = [("gc", (), {"threads": 1}), ("rebuild", ("second",), {"threads": 1})]
        go = faults.barrier(len(calls))
        children = [faults.start(filled.store, m, a, o, go=go) for m, a, o in calls]
        while any(child.is_alive() for child in children):
            assert store.verify().damage == ()
        for child in children:
            child.join()
        assert {child.exitcode for child in children} <= {0, 75}
        sound(filled.store)


def test_readers_see_old_or_new(filled: Workshop):
    """While a name moves to and fro, everyone who looks sees it at one of two."""
    store = remerge.Store(filled.store)
    ids = {store.show("first").id, store.show("second").id}
    store.tag("first", "production")
    children = [
        faults.start(filled.store, "tag", (target, "production"), {"move": True})
        for target in ("first", "second") * 6
    ]
    while any(child.is_alive() for child in children):
        assert store.show("production").id in ids
        assert [row for row in store.ls() if "production" in row.names]
        assert store.verify().damage == ()
    assert [child.exitcode for child in children] == [0] * 12
