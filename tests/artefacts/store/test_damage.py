"""Files of a store that somebody edited, that a disk lost, or that cannot be written: what is whole
is still given, what is not is named, and nothing gets worse."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import remerge
from tests.artefacts.store.conftest import Workshop
from tests.artefacts.store.oracle import digests, log, missing, see, sound

ByHand = Callable[[Path, bytes], None]


def record_of(root: Path, artefact: str) -> Path:
    return root / "records" / artefact[:2] / f"{artefact}.json"


def state_of(root: Path, artefact: str) -> Path:
    return root / "states" / artefact[:2] / f"{artefact}.json"


def derived_blobs(root: Path) -> set[str]:
    return {path.name for path in (root / "blobs" / "derived").glob("??/*")}


@pytest.mark.parametrize(
    "content",
    [b"", b"\xff\xfe\x00\x80", b"../../../etc/passwd\n", b"first\n", b"0" * 63, b"f" * 64],
    ids=["empty", "binary", "a path", "a name", "too short", "of nothing"],
)
def test_a_name_that_points_to_nothing(filled: Workshop, content: bytes):
    store = remerge.Store(filled.store)
    target = store.show("second").id
    (filled.store / "refs" / "first").write_bytes(content)
    assert ["first" in one.what for one in store.verify().damage] == [True]
    for index in ("followed", "made again"):
        if index == "made again":
            store.reindex()
            assert not [row for row in store.ls() if "first" in row.names] or content[:1] == b"f"
        assert store.show("second").id == target
        with pytest.raises(remerge.RemergeError):
            store.show("first")
        with pytest.raises(remerge.RemergeError):
            store.materialize("first", filled.root / "out")
    assert not (filled.root / "out").exists()
    # As `verify` says.
    store.tag("second", "first", move=True)
    assert store.verify().damage == ()
    assert store.show("first").id == target


def test_a_damaged_name_can_be_taken_away(filled: Workshop):
    store = remerge.Store(filled.store)
    (filled.store / "refs" / "first").write_bytes(b"\x00\xff")
    store.rm("first")
    assert store.verify().damage == ()


def test_what_a_file_manager_leaves_among_the_names(filled: Workshop):
    store = remerge.Store(filled.store)
    (filled.store / "refs" / ".DS_Store").write_bytes(b"\x00\xff\x80")
    (filled.store / "refs" / "folder").mkdir()
    rows = store.ls()
    assert store.reindex() == len(rows)
    assert store.ls() == rows
    assert store.verify().damage == ()
    store.tag("first", "another")


def test_names_that_differ_in_capitals(filled: Workshop):
    store = remerge.Store(filled.store)
    before = see(filled.store)
    for name in ("First", "FIRST"):
        with pytest.raises(remerge.UsageError, match="capitals"):
            store.tag("first", name)
        with pytest.raises(remerge.UsageError, match="capitals"):
            store.add(filled.merged(2), name=name, move=True)
    assert see(filled.store) == before


def test_an_index_damaged_anywhere(filled: Workshop):
    """Every page of it, one by one: it is only what the files say once more."""
    store = remerge.Store(filled.store)
    expected = store.ls()
    path = filled.store / "index.sqlite"
    good = path.read_bytes()
    for page in range(0, len(good), 4096):
        for junk in (b"\xff", b"\x00", b"garb"):
            for question in (store.ls, lambda: store.show("first").names):
                content = bytearray(good)
                content[page : page + 4096] = (junk * 4096)[:4096]
                path.write_bytes(content)
                assert question() in (expected, ("first",))
    assert store.reindex() == len(expected)


def test_no_byte_goes_because_an_index_is_wrong(filled: Workshop):
    """A copy of another state of the store, say: only records and states decide."""
    store = remerge.Store(filled.store)
    store.pin("first")
    store.pin("second")
    before = derived_blobs(filled.store)
    with sqlite3.connect(filled.store / "index.sqlite") as database:
        database.execute("delete from files")
    assert store.gc(force=True).nbytes == 0
    assert derived_blobs(filled.store) == before


def test_an_index_is_made_again_while_it_is_read(filled: Workshop):
    path = filled.store / "index.sqlite"
    before = path.stat().st_ino
    assert remerge.Store(filled.store).reindex() == 5
    assert path.stat().st_ino == before


@pytest.mark.parametrize("what", ["garbage", "empty", "a folder"])
def test_an_index_that_is_none(filled: Workshop, what: str):
    store = remerge.Store(filled.store)
    expected = store.ls()
    path = filled.store / "index.sqlite"
    path.unlink()
    if what == "a folder":
        path.mkdir()
    else:
        path.write_bytes(b"garbage" * 2000 if what == "garbage" else b"")
    assert store.ls() == expected
    store.tag("first", "another")
    assert store.show("another").id == store.show("first").id


def test_a_torn_line_in_the_log(filled: Workshop):
    store = remerge.Store(filled.store)
    with (filled.store / "log.jsonl").open("ab") as stream:
        stream.write(b'{"time": "2026-11-2')
    assert len(store.ls()) == 5
    assert len(store.log()) == 3
    store.tag("first", "another")
    assert [entry["action"] for entry in log(filled.store)] == ["add", "add", "add", "tag"]
    assert "another" in next(row for row in store.ls() if "first" in row.names).names


@pytest.mark.parametrize("content", [b"", b"no json\n", b"\xff" * 5000, b"[1]\n" * 40])
def test_a_log_that_is_none(filled: Workshop, content: bytes):
    """Artefacts and names do not depend on it."""
    store = remerge.Store(filled.store)
    expected = store.ls()
    (filled.store / "log.jsonl").write_bytes(content)
    assert store.ls() == expected
    store.tag("first", "another")
    names = {row.id: row.names for row in store.ls()}
    assert names[store.show("first").id] == ("another", "first")


def test_a_record_edited_by_hand(filled: Workshop, by_hand: ByHand):
    store = remerge.Store(filled.store)
    artefact = store.show("first").id
    path = record_of(filled.store, artefact)
    good = path.read_bytes()
    document = json.loads(good)
    document["files"][0]["sha256"] = "0" * 64
    by_hand(path, json.dumps(document).encode())
    for call in (
        lambda: store.show("first"),
        lambda: store.materialize("first", filled.root / "out"),
        lambda: store.rebuild("first"),
    ):
        with pytest.raises(remerge.IntegrityError, match="changed"):
            call()
    assert [one.artefact for one in store.verify().damage] == [artefact]
    assert store.show("second").id != artefact
    # The same again brings it back.
    store.add(filled.merged(0))
    assert path.read_bytes() == good
    assert store.verify().damage == ()


@pytest.mark.parametrize("kind", ["record", "state"])
@pytest.mark.parametrize("how", ["garbage", "gone"])
@pytest.mark.parametrize("index", ["followed", "lost"])
def test_nothing_is_collected_while_an_artefact_cannot_be_read(
    filled: Workshop, by_hand: ByHand, kind: str, how: str, index: str
):
    """It may be pinned, and its bytes would be taken for nobody's."""
    store = remerge.Store(filled.store)
    for name in ("first", "second"):
        store.rebuild(name)
    artefact = store.pin("first")
    path = (record_of if kind == "record" else state_of)(filled.store, artefact)
    good = path.read_bytes()
    blobs = derived_blobs(filled.store)
    if how == "garbage":
        by_hand(path, b'{"x"')
    else:
        path.unlink()
    if index == "lost":
        (filled.store / "index.sqlite").unlink()
    with pytest.raises(remerge.RemergeError, match="verify"):
        store.gc(force=True)
    assert derived_blobs(filled.store) == blobs
    assert [one.artefact for one in store.verify().damage if one.artefact] in ([artefact], [])
    assert store.verify().damage
    path.write_bytes(good)
    store.reindex()
    assert store.verify().damage == ()
    store.gc()
    assert missing(sound(filled.store)) == []


def test_bytes_that_somebody_deleted(filled: Workshop):
    """What nothing brings back is named, by every command that needs it; the same added again
    brings it back."""
    store = remerge.Store(filled.store)
    gone = next(file for file in store.show("first").record.files if not file.derived)
    (filled.store / "blobs" / "canonical" / gone.sha256[:2] / gone.sha256).unlink()
    with pytest.raises(remerge.IntegrityError, match=gone.sha256):
        store.materialize("first", filled.root / "out")
    assert not (filled.root / "out").exists()
    damage = store.verify().damage
    assert damage
    assert all(gone.sha256 in one.what for one in damage)
    store.add(filled.merged(0))
    assert store.verify().damage == ()
    sound(filled.store)


def test_a_damaged_adapter_is_never_given_nor_used(filled: Workshop, by_hand: ByHand):
    store = remerge.Store(filled.store)
    adapter = next(row for row in store.ls() if row.kind == "adapter")
    file = next(f for f in store.show(adapter.id).record.files if f.name.endswith("tensors"))
    blob = filled.store / "blobs" / "canonical" / file.sha256[:2] / file.sha256
    content = bytearray(blob.read_bytes())
    content[-1] ^= 1
    by_hand(blob, bytes(content))
    with pytest.raises(remerge.IntegrityError):
        store.materialize(adapter.id, filled.root / "out")
    # Nobody else has it either.
    shutil.rmtree(filled.adapter(0))
    collected = {one.row.id for one in store.gc().decided if one.action == "collect"}
    users = {row.id for row in store.ls() if row.adapters == ("adapter0",)}
    assert not collected & users
    assert any(file.sha256 in one.what for one in store.verify().damage)
    store.add(filled.adapter(0))
    sound(filled.store)


def test_damaged_derived_bytes_are_made_again(filled: Workshop, by_hand: ByHand):
    store = remerge.Store(filled.store)
    file = next(file for file in store.show("first").record.files if file.derived)
    for blob in (filled.store / "blobs" / "derived").glob("??/*"):
        by_hand(blob, b"other bytes")
    out = filled.root / "out"
    assert store.materialize("first", out).rebuilt
    assert digests(out)[file.name] == file.sha256
    assert len(store.verify().damage) == 4
    store.rebuild("first")
    store.rebuild("second")
    assert store.verify().damage == ()


def test_a_link_to_somebodys_file_is_never_what_nothing_brings_back(
    shop: Workshop, by_hand: ByHand
):
    """A merge's untouched shard, linked, becomes a base's when the base is added."""
    store = remerge.Store(shop.store)
    store.add(shop.merged(0), link="hard")
    store.add(shop.base, name="the-base")
    assert not see(shop.store).canonical & see(shop.store).derived, "bytes lie twice"
    out = shop.root / "out"
    store.materialize("the-base", out, link="hard")
    for folder in (shop.merged(0), out):
        for file in folder.glob("*.safetensors"):
            by_hand(file, b"changed by its owner")
    seen = see(shop.store)
    assert {seen.files(seen.names["the-base"])[n] for n in digests(shop.base)} <= seen.canonical


def test_an_adapter_that_comes_along_takes_no_name_that_was_asked_for(shop: Workshop):
    other = remerge.Store(shop.root / "other")
    name = other.add(shop.adapter(0)).name
    store = remerge.Store(shop.store)
    added = store.add(shop.merged(0), name=name)
    assert store.show(name).id == added.id
    assert all(row.names for row in store.ls())
    sound(shop.store)


@pytest.mark.parametrize("way", ["tag", "add"])
def test_the_last_name_of_an_adapter_is_not_moved_away(filled: Workshop, way: str):
    store = remerge.Store(filled.store)
    before = see(filled.store)
    with pytest.raises(remerge.UsageError, match="last name of a base"):
        if way == "tag":
            store.tag("first", "the-base", move=True)
        else:
            store.add(filled.merged(2), name="the-base", move=True)
    assert see(filled.store) == before


def test_a_store_of_a_newer_remerge(filled: Workshop):
    (filled.store / "store.json").write_text('{"format": "remerge-store/2"}')
    before = see(filled.store)
    for call in (remerge.Store(filled.store).ls, remerge.Store(filled.store).gc):
        with pytest.raises(remerge.BadInput, match="newer"):
            call()
    assert see(filled.store) == before


# A store on which nothing can be written.

_DROPPED = (
    "import ctypes, os, sys\n"
    "if os.geteuid() == 0:\n"
    "    ctypes.CDLL(None).prctl(24, 1, 0, 0, 0)  # CAP_DAC_OVERRIDE: root minds permissions\n"
    "os.execv(sys.executable, [sys.executable, '-m', 'remerge', *sys.argv[1:]])\n"
)


def read_only(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A command that minds permissions, whoever runs the tests."""
    command = [sys.executable, "-c", _DROPPED, "store", *arguments, "--store", str(root)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


@pytest.fixture
def sealed(filled: Workshop):
    """The filled store, of which nobody may write anything."""
    remerge.Store(filled.store).rebuild("second")
    remerge.Store(filled.store).gc(["second"])
    folders = [filled.store, *(p for p in filled.store.rglob("*") if p.is_dir())]
    for path in filled.store.rglob("*"):
        if path.is_file():
            path.chmod(0o444)
    for folder in folders:
        folder.chmod(0o555)
    yield filled
    for folder in folders:
        folder.chmod(0o755)


@pytest.mark.parametrize("index", ["there", "stale"])
def test_a_store_that_cannot_be_written_is_read(sealed: Workshop, index: str):
    if index == "stale":
        (sealed.store / "index.sqlite").chmod(0o644)
        (sealed.store / "index.sqlite").write_bytes(b"garbage" * 999)
        (sealed.store / "index.sqlite").chmod(0o444)
    before = digests(sealed.store)
    listed = read_only(sealed.store, "ls", "--json")
    assert listed.returncode == 0, listed.stderr
    assert len(json.loads(listed.stdout)["artefacts"]) == 5
    for arguments in (("show", "first"), ("log",), ("verify",)):
        done = read_only(sealed.store, *arguments)
        assert done.returncode == 0, done.stderr
    for name, seed in (("first", 0), ("second", 1)):
        out = sealed.root / f"out-{name}"
        done = read_only(sealed.store, "materialize", name, "-o", str(out))
        assert done.returncode == 0, done.stderr
        assert digests(out) == digests(sealed.merged(seed))
    assert digests(sealed.store) == before


@pytest.mark.parametrize(
    "arguments",
    [("tag", "first", "x"), ("rm", "first"), ("pin", "first"), ("gc",), ("rebuild", "first")],
    ids=lambda arguments: arguments[0],
)
def test_a_store_that_cannot_be_written_says_so(sealed: Workshop, arguments: tuple[str, ...]):
    before = digests(sealed.store)
    done = read_only(sealed.store, *arguments)
    assert done.returncode == 3, done.stderr
    assert "Permission denied" in done.stderr
    assert "Traceback" not in done.stderr
    assert digests(sealed.store) == before


def test_the_user_directories_are_not_needed(filled: Workshop):
    """What the machine remembers of inputs is lost: a store that has them all needs none of it."""
    shutil.rmtree(os.environ["XDG_DATA_HOME"])
    for path in (filled.base, filled.adapter(0), filled.adapter(1)):
        shutil.rmtree(path)
    store = remerge.Store(filled.store)
    collection = store.gc()
    assert {one.action for one in collection.decided} == {"collect"}
    store.materialize("first", filled.root / "out", threads=3)
    assert digests(filled.root / "out") == digests(filled.merged(0))
