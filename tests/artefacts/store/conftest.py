"""A workshop to fill stores from: bases that share shards, adapters, merges of both."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

import remerge
from tests.artefacts.store import small


@dataclass(frozen=True)
class Workshop:
    """Inputs and merges below one directory, and the place of a store beside them."""

    root: Path

    @property
    def base(self) -> Path:
        return self.root / "base"

    @property
    def other_base(self) -> Path:
        """One that differs from ``base`` in a single shard."""
        return self.root / "other-base"

    @property
    def store(self) -> Path:
        return self.root / "store"

    def adapter(self, seed: int = 0) -> Path:
        path = self.root / f"adapter{seed}"
        if not path.exists():
            small.write_adapter(path, seed)
        return path

    def merged(self, seed: int = 0, base: Path | None = None) -> Path:
        base = base or self.base
        out = self.root / f"merged-{base.name}-{seed}"
        if not out.exists():
            remerge.merge(base, self.adapter(seed), out)
        return out


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch):
    """Thousands of small files: what no test here can lose need not reach the disk."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture
def shop(tmp_path: Path) -> Workshop:
    """A workshop with two bases."""
    made = Workshop(tmp_path)
    small.write_base(made.base)
    small.write_base(made.other_base, 1)
    return made


@pytest.fixture
def filled(shop: Workshop) -> Workshop:
    """The same, with a store that has two merges of one base, their adapters, and the base."""
    store = remerge.Store(shop.store)
    store.add(shop.base, name="the-base")
    store.add(shop.merged(0), name="first")
    store.add(shop.merged(1), name="second")
    return shop


@pytest.fixture
def by_hand() -> Callable[[Path, bytes], None]:
    """Change a read-only file of a store as somebody with an editor would."""

    def change(path: Path, content: bytes) -> None:
        path.chmod(0o644)
        path.write_bytes(content)

    return change
