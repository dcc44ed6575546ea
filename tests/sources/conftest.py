"""The Hub of the tests, as fixtures."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.hub_server import HubServer


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Iterator[HubServer]:
    """A Hub on the loopback, an empty cache, no token; what huggingface_hub read at import."""
    from huggingface_hub import constants

    with HubServer() as server:
        for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        yield server


@pytest.fixture
def offline(monkeypatch) -> Callable[[], None]:
    from huggingface_hub import constants

    return lambda: monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
