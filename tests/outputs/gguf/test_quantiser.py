"""Which package quantises, and what is said where none can."""

from __future__ import annotations

import pytest

from remerge.errors import Unsupported
from remerge.outputs.gguf import quantiser
from remerge.outputs.gguf.quantiser import open_quantiser


def test_none_that_can(monkeypatch: pytest.MonkeyPatch):
    # One that is not installed, and one that is and exports nothing of the kind.
    monkeypatch.setattr(quantiser, "_PACKAGES", {"no_such_module": "none", "numpy": "numpy"})
    with pytest.raises(Unsupported, match=r"of none, numpy none is installed") as refused:
        open_quantiser()
    assert "remerge engines install llama.cpp" in str(refused.value)


def test_one_that_quantises_files_is_one_of_them():
    assert list(quantiser._PACKAGES) == ["xllamacpp", "cyllama", "llama_cpp"]
