"""A store used in every order that Hypothesis thinks of, against a plain dictionary of what must be
in it. Real merges, real processes that die, damage done by hand."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, assume, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

import remerge
from tests.artefacts.store import faults, small
from tests.artefacts.store.oracle import digests, missing, see

NAMES = ("one", "two", "three", "prod-1", "prod-2")
# base, adapters, options: bases 0 and 1 share two shards, the same merge comes in two dtypes.
MERGES = (
    (0, (0,), {}),
    (0, (1,), {}),
    (1, (0,), {}),
    (0, (0,), {"dtype": "float32"}),
    (0, (0, 1), {"weights": [0.5, 0.5]}),
)
KILLED = ("tag", "rm", "pin", "gc", "rebuild", "add")


@dataclass
class Kept:
    """What the model knows of an artefact: the files that were added, by digest; of a derived one
    which of these may be collected, and from what it is made."""

    kind: str
    files: dict[str, str]
    derived: frozenset[str] = frozenset()
    base: int | None = None
    pinned: bool = False
    deleted: bool = False
    collected: bool = False


@dataclass
class Model:
    """What must be in the store."""

    kept: dict[str, Kept] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    # Derived blobs whose bytes somebody changed.
    damaged: set[str] = field(default_factory=set)
    changes: int = 0


class Inputs:
    """Bases, adapters and merges, made once and read only."""

    def __init__(self) -> None:
        self.root = Path(tempfile.mkdtemp(prefix="store-machine-"))
        self.user = self.root / "user"
        for number in (0, 1):
            small.write_base(self.base(number), number)
        for seed in (0, 1):
            small.write_adapter(self.adapter(seed), seed)

    def base(self, number: int) -> Path:
        return self.root / f"base{number}"

    def adapter(self, seed: int) -> Path:
        return self.root / f"adapter{seed}"

    def merge(self, number: int) -> Path:
        """The merge, made on first use."""
        out = self.root / f"merge{number}"
        if not out.exists():
            base, adapters, options = MERGES[number]
            remerge.merge(self.base(base), [self.adapter(a) for a in adapters], out, **options)
        return out


_inputs: list[Inputs] = []


def inputs() -> Inputs:
    """Those of this process."""
    if not _inputs:
        _inputs.append(Inputs())
    return _inputs[0]


class StoreMachine(RuleBasedStateMachine):
    """Every rule is a command; every invariant is one of the promises."""

    def __init__(self) -> None:
        super().__init__()
        self.place = Path(tempfile.mkdtemp(prefix="store-machine-"))
        self.environment = {k: os.environ.get(k) for k in ("XDG_DATA_HOME", "XDG_CACHE_HOME")}
        self.inputs = inputs()
        os.environ["XDG_DATA_HOME"] = str(self.inputs.user / "data")
        os.environ["XDG_CACHE_HOME"] = str(self.inputs.user / "cache")
        for number in range(len(MERGES)):
            self.inputs.merge(number)
        self.root = self.place / "store"
        self.store = remerge.Store(self.root)
        self.model = Model()
        self.away: set[int] = set()
        # Every digest that was ever taken in and that nothing brings back.
        self.canonical: set[str] = set()

    def teardown(self) -> None:
        for number in tuple(self.away):
            self._put_back(number)
        for name, value in self.environment.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        shutil.rmtree(self.place)

    @initialize(number=st.integers(0, len(MERGES) - 1))
    def begin(self, number: int) -> None:
        """No store is empty: the first thing added makes it."""
        self._add(self.inputs.merge(number), None)

    # What people do.

    @rule(
        what=st.sampled_from(["adapter0", "adapter1", "base0", "base1"]),
        name=st.none() | st.sampled_from(NAMES),
        move=st.booleans(),
    )
    def add_input(self, what: str, name: str | None, move: bool) -> None:
        path = self.inputs.root / what
        if path.is_dir():
            self._add(path, name, move=move)

    @rule(
        number=st.integers(0, len(MERGES) - 1),
        name=st.none() | st.sampled_from(NAMES),
        move=st.booleans(),
        link=st.sampled_from(["copy", "hard"]),
    )
    def add_merge(self, number: int, name: str | None, move: bool, link: str) -> None:
        # A link shares the file: every machine gives away a copy of its own.
        path = self.place / "given"
        shutil.rmtree(path, ignore_errors=True)
        shutil.copytree(self.inputs.merge(number), path)
        self._add(path, name, move=move, link=link, base=MERGES[number][0])

    @rule(number=st.integers(0, len(MERGES) - 1), data=st.data())
    def add_what_was_changed(self, number: int, data: st.DataObject) -> None:
        """A file that its manifest does not know is refused, and nothing is taken."""
        path = self.place / "changed"
        shutil.rmtree(path, ignore_errors=True)
        shutil.copytree(self.inputs.merge(number), path)
        weights = sorted(p for p in path.iterdir() if p.suffix == ".safetensors")
        victim = data.draw(st.sampled_from(weights))
        content = bytearray(victim.read_bytes())
        content[-1] ^= 1
        victim.write_bytes(content)
        with pytest.raises(remerge.IntegrityError):
            self.store.add(path, name="changed")

    @rule(data=st.data(), name=st.sampled_from(NAMES), move=st.booleans())
    def tag(self, data: st.DataObject, name: str, move: bool) -> None:
        artefact = self._some(data)
        now = self.model.names.get(name)
        if now not in (None, artefact) and (not move or self._is_last(name)):
            with pytest.raises(remerge.UsageError):
                self.store.tag(artefact, name, move=move)
            return
        self.store.tag(artefact, name, move=move)
        self.model.changes += now != artefact
        self.model.names[name] = artefact

    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        assume(self.model.names)
        name = data.draw(st.sampled_from(sorted(self.model.names)))
        if self._is_last(name):
            with pytest.raises(remerge.UsageError, match="last name"):
                self.store.rm(name)
            return
        self.store.rm(name)
        del self.model.names[name]
        self.model.changes += 1

    @rule(data=st.data(), pinned=st.booleans())
    def pin(self, data: st.DataObject, pinned: bool) -> None:
        artefact = self._some(data)
        self.store.pin(artefact, pinned=pinned)
        self.model.changes += self.model.kept[artefact].pinned != pinned
        self.model.kept[artefact].pinned = pinned

    @rule(
        last=st.none() | st.integers(0, 2),
        within=st.sampled_from([None, None, "0h", "1d"]),
        tags=st.sampled_from([(), (), ("prod-*",), ("*",)]),
        force=st.booleans(),
        dry_run=st.booleans(),
    )
    def gc(
        self,
        last: int | None,
        within: str | None,
        tags: tuple[str, ...],
        force: bool,
        dry_run: bool,
    ) -> None:
        before = see(self.root)
        collection = self.store.gc(
            keep_last=last,
            keep_within=within,
            keep_tag=tags,
            force=force,
            dry_run=dry_run,
            threads=1,
        )
        after = see(self.root)
        if dry_run:
            assert after == before
            return
        self.model.changes = after.changes
        self.model.damaged &= after_there(self.root)
        for one in collection.decided:
            kept = self.model.kept[one.row.id]
            names = [n for n, artefact in self.model.names.items() if artefact == one.row.id]
            if one.action == "keep":
                continue
            assert not kept.pinned, "what is pinned was collected"
            assert within != "1d", "what is new was collected"
            assert not any(n.startswith("prod-") or tags == ("*",) for n in names if tags)
            kept.collected = True
            if not one.rebuildable:
                assert force, "what cannot be made again was deleted"
                assert not self._rebuildable(one.row.id), "what can be made again was forced"
                kept.deleted = True
        self._repaired()

    @rule(data=st.data(), threads=st.integers(1, 3), link=st.sampled_from(["copy", "hard"]))
    def materialize(self, data: st.DataObject, threads: int, link: str) -> None:
        artefact = self._some(data)
        kept = self.model.kept[artefact]
        out = self.place / "out"
        try:
            self.store.materialize(artefact, out, threads=threads, link=link)
        except remerge.RemergeError:
            assert not out.exists(), "something half done"
            assert not self._is_here(artefact), "its bytes are here, and were not given"
            assert not self._rebuildable(artefact), "it can be made again, and was not"
            return
        found = digests(out)
        assert {name: found.get(name) for name in kept.files} == kept.files, "wrong bytes"
        shutil.rmtree(out)

    @rule(data=st.data(), threads=st.integers(1, 3))
    def rebuild(self, data: st.DataObject, threads: int) -> None:
        artefact = self._some(data)
        kept = self.model.kept[artefact]
        if kept.base is None:
            with pytest.raises(remerge.UsageError):
                self.store.rebuild(artefact, threads=threads)
            return
        try:
            self.store.rebuild(artefact, threads=threads)
        except remerge.RemergeError:
            assert not self._rebuildable(artefact)
            return
        kept.collected = kept.deleted = False
        self.model.changes += 1
        self._repaired()
        assert not kept.derived & self.model.damaged

    # What happens to them.

    @rule(data=st.data())
    def damage(self, data: st.DataObject) -> None:
        """Bytes of a derived blob change; those of the others are not ours to lose."""
        there = sorted((self.root / "blobs" / "derived").glob("??/*"))
        assume(there)
        blob = data.draw(st.sampled_from(there))
        content = bytearray(blob.read_bytes())
        content[len(content) // 2] ^= 0x10
        # Anew, as a bad sector would: not the file of the user that a link shares.
        blob.unlink()
        blob.write_bytes(content)
        if hashlib.sha256(content).hexdigest() == blob.name:
            self.model.damaged.discard(blob.name)
        else:
            self.model.damaged.add(blob.name)

    @rule(number=st.integers(0, 1))
    def base_goes_and_comes(self, number: int) -> None:
        if number in self.away:
            self._put_back(number)
        else:
            self.inputs.base(number).rename(self._hidden(number))
            self.away.add(number)

    @rule()
    def index_is_lost(self) -> None:
        (self.root / "index.sqlite").unlink(missing_ok=True)

    @rule()
    def index_is_garbage(self) -> None:
        (self.root / "index.sqlite").write_bytes(b"garbage" * 1000)

    @rule()
    def reindex(self) -> None:
        followed = self.store.ls()
        assert self.store.reindex() == len(followed)
        assert self.store.ls() == followed

    @rule(data=st.data(), method=st.sampled_from(KILLED), at=st.integers(1, 60))
    def killed(self, data: st.DataObject, method: str, at: int) -> None:
        """A process that dies somewhere: what it did is all or nothing, and the model learns which
        by asking for the one fact that tells."""
        artefact = self._some(data)
        name = data.draw(st.sampled_from(NAMES))
        before = see(self.root)
        arguments: dict[str, tuple[Any, ...]] = {
            "tag": (artefact, name),
            "rm": (name,),
            "pin": (artefact,),
            "gc": (),
            "rebuild": (artefact,),
            "add": (self.inputs.merge(data.draw(st.integers(0, len(MERGES) - 1))),),
        }
        options: dict[str, Any] = {"move": True} if method == "tag" else {}
        code = faults.run(self.root, method, *arguments[method], kill_at=at, **options)
        assert code in (-9, 0, 2, 3, 4, 5), f"{method}: exit {code}"
        self.store.ls()
        after = see(self.root)
        self.model.changes = after.changes
        if code in (2, 3, 4, 5):
            assert after.names == before.names
        self._learn(method, before.names, after.names, artefact, name)
        for one, state in after.states.items():
            if one in self.model.kept:
                kept = self.model.kept[one]
                kept.pinned = state["pinned"]
                if state["collected"] is not None and not kept.collected:
                    assert method == "gc"
                    assert not kept.pinned
                kept.collected = state["collected"] is not None
                kept.deleted = kept.collected and not state["collected"]["rebuildable"]
            else:
                assert method == "add"
                self._learn_artefact(one)
        self._repaired()

    # What must hold.

    @invariant()
    def nothing_canonical_is_lost(self) -> None:
        if not self.model.kept:
            return
        seen = see(self.root)
        assert self.canonical <= seen.canonical, "bytes lost that nothing brings back"
        for path in (self.root / "blobs" / "canonical").glob("??/*"):
            assert path.name in seen.canonical, "bytes changed that nothing brings back"

    @invariant()
    def what_it_says_is_so(self) -> None:
        if not self.model.kept:
            return
        seen = see(self.root)
        assert seen.names == self.model.names
        assert set(seen.records) == set(self.model.kept)
        assert {digest for _, digest in self._lost(seen)} <= self.model.damaged
        assert seen.changes == self.model.changes, "the log has another number of changes"
        rows = {row.id: row for row in self.store.ls()}
        assert set(rows) == set(self.model.kept)
        for artefact, kept in self.model.kept.items():
            row = rows[artefact]
            names = sorted(n for n, one in self.model.names.items() if one == artefact)
            assert (list(row.names), row.kind, row.pinned, row.collected, row.rebuildable) == (
                names,
                kept.kind,
                kept.pinned,
                kept.collected,
                not kept.deleted,
            )

    @invariant()
    def verify_finds_the_damage_that_was_done(self) -> None:
        if not self.model.kept:
            return
        needed = {
            digest
            for kept in self.model.kept.values()
            if not kept.collected
            for digest in kept.derived
        }
        damage = self.store.verify().damage
        found = {d for d in self.model.damaged for one in damage if d in one.what}
        assert found == self.model.damaged & needed
        assert len(damage) == len(found), damage

    def _add(
        self,
        path: Path,
        name: str | None,
        *,
        move: bool = False,
        link: Any = "copy",
        base: int | None = None,
    ) -> None:
        before = see(self.root) if self.root.exists() else None
        taken = None if name is None else self.model.names.get(name)
        try:
            added = self.store.add(path, name=name, move=move, link=link)
        except remerge.UsageError as error:
            # Without a name it is called after its base and adapters, as another recipe's may be.
            asked = name or error.what.split()[0]
            assert asked in self.model.names
            assert see(self.root) == before
            assert not move or self._is_last(asked)
            return
        assert name in (None, added.name)
        assert taken in (None, added.id) or move, "a name was moved without being asked"
        after = see(self.root)
        gone = set() if before is None else set(before.names) - set(after.names)
        assert not gone
        for one in after.records:
            if one not in self.model.kept:
                self._learn_artefact(one)
        if name is not None:
            assert after.names[name] == added.id
        moved = {n for n, a in self.model.names.items() if after.names[n] != a}
        assert moved <= {added.name}
        assert move or not moved
        self.model.names = dict(after.names)
        self.model.changes = after.changes
        kept = self.model.kept[added.id]
        kept.collected = kept.deleted = False
        # Its bytes came again.
        self._repaired()
        assert not set(kept.files.values()) & self.model.damaged
        assert {n: digests(path)[n] for n in kept.files} == kept.files

    def _learn(
        self, method: str, before: dict[str, str], after: dict[str, str], artefact: str, name: str
    ) -> None:
        """The names after a kill: as they were, or as they were to be."""
        if after != before:
            if method == "tag":
                assert after == before | {name: artefact}
            elif method == "rm":
                assert after == {n: a for n, a in before.items() if n != name}
                assert not self._is_last(name)
            else:
                assert method == "add"
                assert before.items() <= after.items()
        self.model.names = dict(after)

    def _learn_artefact(self, artefact: str) -> None:
        """An artefact that came in, as its record says; that the record is right is told by the
        files which come out."""
        record = see(self.root).records[artefact]
        derived = frozenset(f["sha256"] for f in record["files"] if f["derived"])
        base = None
        if record["base"] is not None:
            base = int(record["base"]["name"].removeprefix("base"))
        files = {file["name"]: file["sha256"] for file in record["files"]}
        self.model.kept[artefact] = Kept(record["kind"], files, derived, base)
        self.canonical |= {f["sha256"] for f in record["files"] if not f["derived"]}

    def _repaired(self) -> None:
        """Of damaged blobs those that are whole again, or gone, are damaged no more."""
        whole = see(self.root)
        there = after_there(self.root)
        self.model.damaged -= whole.derived | whole.canonical
        self.model.damaged &= there

    def _lost(self, seen: Any) -> list[tuple[str, str]]:
        return [(a, seen.files(a).get(name, "")) for a, name in missing(seen)]

    def _is_here(self, artefact: str) -> bool:
        kept = self.model.kept[artefact]
        return not kept.collected and not kept.derived & self.model.damaged

    def _rebuildable(self, artefact: str) -> bool:
        """Whether base and adapters are to be had: the base from its place or from the store."""
        base = self.model.kept[artefact].base
        if base is None:
            return False
        in_store = any(
            kept.kind == "base" and kept.files == self._files_of_base(base)
            for kept in self.model.kept.values()
        )
        return base not in self.away or in_store

    def _files_of_base(self, number: int) -> dict[str, str]:
        there = self.inputs.base(number)
        return digests(self._hidden(number) if number in self.away else there)

    def _is_last(self, name: str) -> bool:
        artefact = self.model.names.get(name)
        if artefact is None or self.model.kept[artefact].kind not in ("adapter", "base"):
            return False
        return list(self.model.names.values()).count(artefact) == 1

    def _some(self, data: st.DataObject) -> str:
        assume(self.model.kept)
        return data.draw(st.sampled_from(sorted(self.model.kept)), label="artefact")

    def _hidden(self, number: int) -> Path:
        return self.inputs.root / f"away{number}"

    def _put_back(self, number: int) -> None:
        self._hidden(number).rename(self.inputs.base(number))
        self.away.discard(number)


def after_there(root: Path) -> set[str]:
    """The names of derived blobs that are there, whatever their bytes."""
    return {path.name for path in (root / "blobs" / "derived").glob("??/*")}


# A shorter example is not worth the minutes that a search for it takes here.
_PHASES = (Phase.explicit, Phase.generate)
_CHECKS = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]


def _machine(examples: int, steps: int, name: str) -> Any:
    case = type(name, (StoreMachine,), {}).TestCase  # type: ignore[attr-defined]
    case.settings = settings(
        phases=_PHASES,
        max_examples=examples,
        stateful_step_count=steps,
        deadline=None,
        suppress_health_check=_CHECKS,
        print_blob=True,
    )
    return case


TestStore = _machine(15, 25, "StoreMachine")
TestStoreLong = pytest.mark.proof(pytest.mark.timeout(3000)(_machine(300, 50, "StoreMachineLong")))
