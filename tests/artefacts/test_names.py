"""What artefacts are called: whatever others call their parts, a name is legal."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remerge.artefacts.names import check_name, name_of_input, name_of_merge
from remerge.errors import UsageError


def test_the_names_of_the_usual() -> None:
    base = ("meta-llama/Llama-3.1-8B", "0e9e39f2")
    assert (
        name_of_merge(base, [("acme/support", "1a2b3c4d")], None)
        == "merged-Llama-3.1-8B-0e9e39f2-adapter-support-1a2b3c4d"
    )
    assert name_of_merge(base, [], "gguf:Q4_K_M") == "merged-Llama-3.1-8B-0e9e39f2-gguf-Q4_K_M"
    assert name_of_input("adapter", "./x/support", "1a2b3c4d") == "adapter-support-1a2b3c4d"


@given(st.text(max_size=300), st.lists(st.text(max_size=80), max_size=5), st.text(max_size=20))
def test_every_derived_name_is_one(base: str, adapters: list[str], form: str) -> None:
    pairs = [(name, "0a1b2c3d") for name in adapters]
    check_name(name_of_merge((base, "0a1b2c3d"), pairs, form or None))
    check_name(name_of_input("adapter", base, "0a1b2c3d"))


@pytest.mark.parametrize("name", ["a.b-c_D9", "prod", "v1.2", "x"])
def test_names(name: str) -> None:
    assert check_name(name) == name


@pytest.mark.parametrize("name", ["", ".", "a/b", "a b", "-a", "a-", "é", "a\n", "a..b", "abc123"])
def test_no_names(name: str) -> None:
    with pytest.raises(UsageError):
        check_name(name)
