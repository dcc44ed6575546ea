"""Fixtures of more than one suite."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import tiny


@pytest.fixture(autouse=True)
def _own_user_directories(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
):
    """What remerge remembers between commands must not leak between tests, or from the user."""
    place = tmp_path_factory.mktemp("user")
    monkeypatch.setenv("XDG_CACHE_HOME", str(place / "cache"))
    monkeypatch.setenv("XDG_DATA_HOME", str(place / "data"))


@pytest.fixture(scope="session")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with ``base`` (bfloat16, two shards) and ``adapter``; read only."""
    place = tmp_path_factory.mktemp("inputs")
    tiny.write_base(place / "base")
    tiny.write_adapter(place / "adapter")
    return place
