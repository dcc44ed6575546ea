"""llama.cpp's names for how tokenizers cut text: by the rule, to the letter."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remerge.outputs.gguf.pre_tokenizers import name_of

EXAMPLE = Path(__file__).resolve().parents[3] / "examples" / "base" / "tokenizer.json"
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3.replace("{1,3}", "")
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
RULES = {"llama-bpe": LLAMA3, "qwen2": QWEN2, "gpt-2": GPT2}


def byte_level(*, use_regex: bool) -> dict[str, Any]:
    return {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": use_regex,
    }


def split_by(pattern: str) -> dict[str, Any]:
    """A tokenizer.json as far as the rule goes."""
    split = {
        "type": "Split",
        "pattern": {"Regex": pattern},
        "behavior": "Isolated",
        "invert": False,
    }
    return {
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [split, byte_level(use_regex=False)],
        },
        "model": {"type": "BPE", "vocab": {}, "merges": [], "ignore_merges": pattern == LLAMA3},
    }


def by_itself() -> dict[str, Any]:
    return {**split_by(GPT2), "pre_tokenizer": byte_level(use_regex=True)}


def steps(tokenizer: dict[str, Any]) -> list[dict[str, Any]]:
    return tokenizer["pre_tokenizer"]["pretokenizers"]


def test_known_rules():
    for name, pattern in RULES.items():
        assert name_of(split_by(pattern)) == name
    assert name_of(by_itself()) == "gpt-2"


def test_the_examples_rule():
    assert name_of(json.loads(EXAMPLE.read_bytes())) == "llama-bpe"


def test_byte_level_cuts_by_itself_unless_it_says_not():
    tokenizer = by_itself()
    del tokenizer["pre_tokenizer"]["use_regex"]
    assert name_of(tokenizer) == "gpt-2"
    tokenizer["pre_tokenizer"]["use_regex"] = False
    assert name_of(tokenizer) is None
    # The same in a sequence of one.
    tokenizer["pre_tokenizer"] = {
        "type": "Sequence",
        "pretokenizers": [byte_level(use_regex=True)],
    }
    assert name_of(tokenizer) == "gpt-2"


@given(st.sampled_from(sorted(RULES)), st.integers(0, 200), st.characters(codec="ascii"))
def test_one_character_makes_another_rule(name: str, place: int, character: str):
    pattern = RULES[name]
    place %= len(pattern)
    changed = pattern[:place] + character + pattern[place + 1 :]
    found = name_of(split_by(changed))
    assert found == (name if changed == pattern else None)
    assert name_of(split_by(pattern[:place] + pattern[place + 1 :])) is None


@pytest.mark.parametrize("normalizer", [{"type": "NFC"}, {"type": "Sequence", "normalizers": []}])
def test_a_normalizer_changes_the_text(normalizer: dict[str, Any]):
    for tokenizer in (split_by(LLAMA3), by_itself()):
        assert name_of({**tokenizer, "normalizer": normalizer}) is None


def test_a_space_before_the_text_changes_it():
    tokenizer = by_itself()
    tokenizer["pre_tokenizer"]["add_prefix_space"] = True
    assert name_of(tokenizer) is None
    tokenizer = split_by(LLAMA3)
    steps(tokenizer)[1]["add_prefix_space"] = True
    assert name_of(tokenizer) is None


@pytest.mark.parametrize("kind", ["Unigram", "WordPiece", "WordLevel"])
def test_other_models(kind: str):
    assert name_of({**split_by(LLAMA3), "model": {"type": kind}}) is None


def test_sentencepiece():
    pre: dict[str, Any] = {
        "type": "Metaspace",
        "replacement": "▁",
        "prepend_scheme": "first",
        "split": False,
    }
    model = {"type": "BPE", "byte_fallback": True, "vocab": {}, "merges": []}
    for rule in (pre, None):
        assert name_of({"normalizer": None, "pre_tokenizer": rule, "model": model}) is None


@pytest.mark.parametrize(
    "changed",
    [
        {"behavior": "Removed"},
        {"behavior": "MergedWithPrevious"},
        {"invert": True},
        {"type": "Digits"},
        {"pattern": {"String": LLAMA3}},
        {"pattern": {}},
    ],
)
def test_other_ways_of_splitting(changed: dict[str, Any]):
    tokenizer = split_by(LLAMA3)
    steps(tokenizer)[0].update(changed)
    assert name_of(tokenizer) is None


def test_other_steps():
    digits = {"type": "Digits", "individual_digits": True}
    for place in (0, 1, 2):
        tokenizer = split_by(LLAMA3)
        steps(tokenizer).insert(place, digits)
        assert name_of(tokenizer) is None
    tokenizer = split_by(LLAMA3)
    steps(tokenizer)[1]["use_regex"] = True
    assert name_of(tokenizer) is None
    tokenizer = split_by(LLAMA3)
    steps(tokenizer).reverse()
    assert name_of(tokenizer) is None


def paths(found: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place in a document."""
    items: Any = found.items() if isinstance(found, dict) else ()
    items = enumerate(found) if isinstance(found, list) else items
    for key, inner in items:
        yield (*path, key)
        yield from paths(inner, (*path, key))


def without(tokenizer: dict[str, Any], path: tuple[Any, ...]) -> dict[str, Any]:
    changed: Any = copy.deepcopy(tokenizer)
    place = changed
    for key in path[:-1]:
        place = place[key]
    del place[path[-1]]
    return changed


PATHS = [path for path in paths(split_by(LLAMA3)) if path[-1] != "ignore_merges"]


@pytest.mark.parametrize("path", PATHS, ids=lambda p: ".".join(map(str, p)))
def test_what_is_missing_is_not_guessed(path: tuple[Any, ...]):
    """Only what says no more than its default may be left out."""
    defaults = {"normalizer", "invert", "add_prefix_space", "trim_offsets", "vocab", "merges"}
    expected = "llama-bpe" if path[-1] in defaults else None
    # A sequence of ByteLevel alone is known by none but its own rule, which is off here.
    if path == ("pre_tokenizer", "type"):
        expected = "llama-bpe"
    assert name_of(without(split_by(LLAMA3), path)) == expected


@pytest.mark.parametrize(
    "tokenizer",
    [
        {},
        {"model": None},
        {"model": {}},
        {"model": {"type": "BPE"}},
        {"model": {"type": "BPE"}, "pre_tokenizer": None},
        {"model": {"type": "BPE"}, "pre_tokenizer": {}},
        {"model": {"type": "BPE"}, "pre_tokenizer": {"type": "Sequence", "pretokenizers": []}},
        {"model": {"type": "BPE"}, "pre_tokenizer": {"type": "Sequence", "pretokenizers": [{}]}},
        {"model": {"type": "BPE"}, "pre_tokenizer": {"pretokenizers": [{}, {}]}},
    ],
)
def test_next_to_nothing(tokenizer: dict[str, Any]):
    assert name_of(tokenizer) is None


@pytest.mark.parametrize(
    ("pattern", "changed"),
    [
        (QWEN2, {"end_of_word_suffix": "</w>"}),
        (QWEN2, {"continuing_subword_prefix": "##"}),
        (QWEN2, {"ignore_merges": True}),
        (LLAMA3, {"ignore_merges": False}),
    ],
)
def test_a_merging_that_llama_cpp_does_not_do(pattern: str, changed: dict[str, Any]):
    """llama.cpp takes whole words from the vocabulary under llama-bpe (llama-vocab.cpp sets
    ignore_merges there), and never under qwen2 or gpt-2; it knows no marks of word ends."""
    tokenizer = split_by(pattern)
    tokenizer["model"].update(changed)
    assert name_of(tokenizer) is None
