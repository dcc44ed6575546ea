"""A name and its past: promotions, moves by hand, collections and rollbacks in every order, against
a list; killed anywhere; two at once."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

import remerge
from tests.artefacts.store import faults, small
from tests.artefacts.store.conftest import Workshop
from tests.artefacts.store.oracle import leftovers, log, see, sound
from tests.serving import children
from tests.serving.children import BY_HAND

NAMES = ("v0", "v1", "v2")


def filled(root: Path) -> Workshop:
    """A store with three merges of one base, v0 to v2; the base and the adapters are in it, too."""
    shop = Workshop(root)
    small.write_base(shop.base)
    store = remerge.Store(shop.store)
    store.add(shop.base, name="the-base")
    for number, name in enumerate(NAMES):
        store.add(shop.merged(number), name=name)
    return shop


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workshop:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    return filled(tmp_path)


def promote(shop: Workshop, target: str, **options: Any) -> Any:
    return remerge.promote(target, store=shop.store, **BY_HAND, **options)


def names(shop: Workshop) -> str | None:
    """What production names, by its other name."""
    seen = see(shop.store).names
    found = seen.get("production")
    return next((name for name in NAMES if seen[name] == found), None)


def damage(shop: Workshop, target: str) -> None:
    """Change a byte of an artefact's own weights, in the store."""
    store = remerge.Store(shop.store)
    files = see(shop.store).files(store.show(target).id)
    for name, sha256 in files.items():
        path = shop.store / "blobs/derived" / sha256[:2] / sha256
        if path.exists() and name.startswith("model-00001"):
            path.chmod(0o644)
            path.write_bytes(b"x" * path.stat().st_size)


def test_back_and_further_back(shop: Workshop) -> None:
    for name in (*NAMES, "v0"):
        promote(shop, name)
    moved = [(names(shop), remerge.rollback(store=shop.store))[0] for _ in range(3)]
    assert (moved, names(shop)) == (["v0", "v2", "v1"], "v0")
    with pytest.raises(remerge.UsageError, match="named nothing before"):
        remerge.rollback(store=shop.store)
    # What was rolled back can be gone to again, and a rollback leads back from there.
    assert remerge.rollback(store=shop.store, to="v2").moved and names(shop) == "v2"
    remerge.rollback(store=shop.store)
    assert names(shop) == "v0"
    actions = [entry["action"] for entry in log(shop.store) if entry["name"] == "production"]
    assert actions == ["promote"] * 4 + ["rollback"] * 5
    sound(shop.store)


def test_by_number(shop: Workshop) -> None:
    for name in NAMES:
        promote(shop, name)
    for to in (0, 3, -1):
        with pytest.raises(remerge.UsageError):
            remerge.rollback(store=shop.store, to=to)
    past = remerge.past(store=shop.store)
    assert [(one.back, one.names[-1]) for one in past] == [(0, "v2"), (1, "v1"), (2, "v0")]
    remerge.rollback(store=shop.store, to=2)
    assert names(shop) == "v0"
    with pytest.raises(remerge.UsageError, match="never named"):
        remerge.rollback(store=shop.store, to="the-base")
    with pytest.raises(remerge.BadInput, match="never had"):
        remerge.rollback("staging", store=shop.store)


def test_what_is_damaged_is_refused_and_an_older_one_named(shop: Workshop) -> None:
    for name in NAMES:
        promote(shop, name)
    damage(shop, "v1")
    oldest = see(shop.store).names["v0"]
    lines = log(shop.store)
    with pytest.raises(remerge.IntegrityError, match="was not moved back") as caught:
        remerge.rollback(store=shop.store)
    assert f"--to {oldest[:12]}" in str(caught.value) and "store rebuild v1" in str(caught.value)
    assert names(shop) == "v2" and log(shop.store) == lines
    remerge.rollback(store=shop.store, to=oldest[:12])
    assert names(shop) == "v0"


def test_what_was_collected_is_made_again(shop: Workshop) -> None:
    promote(shop, "v0")
    promote(shop, "v1")
    store = remerge.Store(shop.store)
    store.gc(["v0"])
    assert store.show("v0").status.startswith("collected")
    done = remerge.rollback(store=shop.store)
    assert done.rebuilt and store.show("production").status == "here"
    assert store.verify().damage == ()


def test_what_was_collected_is_back_where_another_kept_its_bytes(shop: Workshop) -> None:
    """Two merges of the same weights, and of other files beside them."""
    twin = shop.root / "twin"
    shutil.copytree(shop.base, twin)
    (twin / "chat_template.jinja").write_text("{{ messages }}")
    store = remerge.Store(shop.store)
    store.add(twin, name="twin-base")
    store.add(shop.merged(0, twin), name="twin")
    promote(shop, "v0")
    promote(shop, "v1")
    store.gc(["v0"])
    whole = len(see(shop.store).files(store.show("v0").id))
    done = remerge.rollback(store=shop.store)
    assert done.rebuilt and store.show("production").status == "here"
    assert done.files >= whole
    store.gc(["twin"], force=True)
    assert store.verify().damage == () and store.show("production").status == "here"
    sound(shop.store)


def test_what_cannot_be_made_again_is_not_forced_away(tmp_path: Path) -> None:
    """Unless no name that was promoted has named it."""
    shop = filled(tmp_path)
    other = tmp_path / "orphan"
    small.write_base(other, 1)
    store = remerge.Store(shop.store)
    store.add(shop.merged(0, other), name="orphan")
    promote(shop, "orphan")
    promote(shop, "v0")
    shutil.rmtree(other)
    (one,) = store.gc(["orphan"], force=True).decided
    assert one.action == "keep" and "production named it" in one.why
    remerge.rollback(store=shop.store)
    store.rm("production")
    (one,) = store.gc(["orphan"], force=True).decided
    assert one.action == "collect"


def test_two_at_once(shop: Workshop) -> None:
    """One is first; the other says that it knew nothing of it, or comes after it."""
    promote(shop, "v0")
    go = faults.barrier(2)
    started = [children.start(children.promoted, shop.store, name, go) for name in NAMES[1:]]
    codes = sorted(children.exit_code(child) for child in started)
    assert codes in ([0, 0], [0, 6])
    lines = [entry for entry in log(shop.store) if entry["action"] == "promote"]
    assert len(lines) == 1 + codes.count(0)
    chain = [(entry["was"], entry["artefact"]) for entry in lines]
    assert all(after[0] == before[1] for before, after in itertools.pairwise(chain))
    assert sound(shop.store).names["production"] == chain[-1][1]


@pytest.mark.parametrize(
    ("what", "every"),
    [
        ("promote", 6),
        ("promote what was collected", 6),
        ("rollback", 1),
        pytest.param("promote", 1, marks=pytest.mark.slow),
        pytest.param("promote what was collected", 1, marks=pytest.mark.slow),
    ],
)
def test_killed_anywhere(shop: Workshop, what: str, every: int) -> None:
    """The name is the old one or the new one, and the log knows which."""
    promote(shop, "v0")
    if what == "rollback":
        promote(shop, "v1")
    if "collected" in what:
        remerge.Store(shop.store).gc(["v1"])
    before, lines = sound(shop.store), log(shop.store)
    killed = 0
    for point in itertools.count(1, every):
        root = shop.root / "copy"
        shutil.rmtree(root, ignore_errors=True)
        shutil.copytree(shop.store, root, copy_function=shutil.copy2)
        code = children.exit_code(children.start(children.killed, root, what, point))
        assert code in (0, -signal.SIGKILL)
        remerge.Store(root).ls()
        after, added = sound(root), log(root)[len(lines) :]
        assert len(added) <= 1
        if not added:
            assert after == before, f"step {point}"
        else:
            assert after.names["production"] == added[0]["artefact"] != before.names["production"]
            assert {**after.names, "production": ""} == {**before.names, "production": ""}
        if code == 0:
            assert added
            break
        killed += 1
        remerge.Store(root).add(shop.adapter(0))
        # The next change writes the journal anew.
        assert set(leftovers(root)) <= {"journal.json~"}, f"step {point}"
    assert killed > 4


@pytest.mark.parametrize("step", ["verify", "compare", "check"])
def test_killed_after_a_step(shop: Workshop, step: str) -> None:
    promote(shop, "v0")
    before, lines = sound(shop.store), log(shop.store)
    child = children.start(children.killed_after, shop.store, step)
    assert children.exit_code(child) == -signal.SIGKILL
    assert (sound(shop.store), log(shop.store)) == (before, lines)
    promote(shop, "v1")
    assert leftovers(shop.store) == []


class Past(RuleBasedStateMachine):
    """``production`` against two lists: what it named before, and what it ever named."""

    def __init__(self) -> None:
        super().__init__()
        self.place = Path(tempfile.mkdtemp(prefix="past-"))
        self.before: list[str] = []
        self.ever: list[str] = []
        self.now: str | None = None
        self.damaged: set[str] = set()

    def teardown(self) -> None:
        shutil.rmtree(self.place)

    @initialize()
    def begin(self) -> None:
        shutil.copytree(_template(), self.place / "store")
        self.shop = Workshop(self.place)
        self.store = remerge.Store(self.shop.store)

    @rule(name=st.sampled_from(NAMES))
    def promoted(self, name: str) -> None:
        with self._refusal(name in self.damaged and name != self.now) as ok:
            promote(self.shop, name)
        if ok:
            self._to(name)

    @rule(name=st.sampled_from(NAMES))
    def moved_by_hand(self, name: str) -> None:
        self.store.tag(name, "production", move=True)
        self._to(name)

    @rule()
    def taken_away(self) -> None:
        if self.now is not None:
            self.store.rm("production")
            self.before.append(self.now)
            self.now = None

    @rule(back=st.integers(1, 3))
    def rolled_back(self, back: int) -> None:
        impossible = self.now is None or back > len(self.before)
        wanted = None if impossible else self.before[-back]
        bad = wanted in self.damaged and wanted != self.now
        with self._refusal(impossible or bad) as ok:
            remerge.rollback(store=self.shop.store, to=back)
        if ok and wanted != self.now:
            self.now = wanted
            del self.before[-back:]

    @rule(name=st.sampled_from(NAMES))
    def rolled_to(self, name: str) -> None:
        impossible = self.now is None or (name != self.now and name not in self.ever)
        bad = name in self.damaged and name != self.now
        with self._refusal(impossible or bad) as ok:
            remerge.rollback(store=self.shop.store, to=name)
        if not ok or name == self.now:
            return
        if name in self.before:
            while self.before.pop() != name:
                pass
        else:
            assert self.now is not None
            self.before.append(self.now)
        self.now = name
        self.ever.append(name)

    @rule(name=st.sampled_from(NAMES))
    def collected(self, name: str) -> None:
        self.store.gc([name])
        # What lies there unused goes with it, damaged or not.
        self.damaged.discard(name)

    @rule(name=st.sampled_from(NAMES))
    def broken(self, name: str) -> None:
        if self.store.show(name).state.collected is None:
            damage(self.shop, name)
            self.damaged.add(name)

    @rule(name=st.sampled_from(NAMES))
    def rebuilt(self, name: str) -> None:
        self.store.rebuild(name)
        self.damaged.discard(name)

    @invariant()
    def names_what_it_should(self) -> None:
        if not hasattr(self, "shop"):
            return
        assert names(self.shop) == self.now
        if self.ever:
            past = remerge.past(store=self.shop.store)
            seen = see(self.shop.store).names
            known = {seen[name]: name for name in NAMES}
            leads = {one.back: known[one.stay.artefact] for one in past if one.back}
            assert [leads[back] for back in sorted(leads)] == self.before[::-1]

    def _to(self, name: str) -> None:
        if name != self.now:
            if self.now is not None:
                self.before.append(self.now)
            elif self.before[-1:] == [name]:
                self.before.pop()
            self.now = name
            self.ever.append(name)

    @contextmanager
    def _refusal(self, expected: bool) -> Iterator[list[bool]]:
        """Something that must be refused, or must not be; not empty once it was done."""
        done: list[bool] = []
        lines = len(log(self.shop.store))
        try:
            yield done
            done.append(True)
        except remerge.RemergeError:
            assert expected
            assert len(log(self.shop.store)) == lines
            return
        assert not expected


_templates: list[Path] = []


def _template() -> Path:
    if not _templates:
        root = Path(tempfile.mkdtemp(prefix="past-template-"))
        _templates.append(filled(root).store)
    return _templates[0]


TestPast = Past.TestCase
TestPast.settings = settings(
    max_examples=12,
    stateful_step_count=12,
    deadline=None,
    phases=(Phase.explicit, Phase.generate, Phase.shrink),
    suppress_health_check=list(HealthCheck),
)
