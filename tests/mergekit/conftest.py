"""mergekit answers from an environment of its own, so these tests run when asked for: by
``-m mergekit`` or a test's own id."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mergekit.tool import Mergekit

HERE = Path(__file__).parent


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    ours = [item for item in items if HERE in item.path.parents]
    for item in ours:
        item.add_marker("mergekit")
    if any(arg.startswith("-m") or "::" in arg for arg in config.invocation_params.args):
        return
    config.hook.pytest_deselected(items=ours)
    items[:] = [item for item in items if HERE not in item.path.parents]


@pytest.fixture(scope="session")
def mergekit(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mergekit]:
    tool = Mergekit(tmp_path_factory.mktemp("mergekit"))
    yield tool
    tool.close()
