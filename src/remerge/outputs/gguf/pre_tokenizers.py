"""Names by which llama.cpp knows how a byte-level BPE tokenizer cuts text before merging.

llama.cpp knows tokenizers by a digest of what they make of one text, so that a newly trained
vocabulary is unknown though its rule is not. Here the rule itself decides: the regular expression
in tokenizer.json, to the letter (those of llama-vocab.cpp, as it quotes them).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_NAMES = {
    _CONTRACTIONS + _WORDS + r"|\p{N}{1,3}" + _REST: "llama-bpe",
    _CONTRACTIONS + _WORDS + r"|\p{N}" + _REST: "qwen2",
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+": "gpt-2",
}
# What ByteLevel does where it cuts by itself.
_BY_ITSELF = "gpt-2"


# The rule by whose name llama.cpp takes a word that the vocabulary holds as it is, without merging.
_TAKES_WORDS = "llama-bpe"
# What no rule of llama.cpp's has.
_FOREIGN = ("continuing_subword_prefix", "end_of_word_suffix", "byte_fallback", "dropout")


def name_of(tokenizer: Mapping[str, Any], *, reaches_all: bool = False) -> str | None:
    """llama.cpp's name for the rule of a tokenizer.json, None where no known one is meant.

    ``reaches_all`` says that merging gives every word of the vocabulary: then it does not matter
    whether words are taken whole.
    """
    found = _rule_of(tokenizer)
    model: Mapping[str, Any] = tokenizer.get("model") or {}
    takes_words = bool(model.get("ignore_merges"))
    if any(model.get(key) for key in _FOREIGN):
        return None
    return found if reaches_all or takes_words == (found == _TAKES_WORDS) else None


def _rule_of(tokenizer: Mapping[str, Any]) -> str | None:
    model: Mapping[str, Any] = tokenizer.get("model") or {}
    rule: Mapping[str, Any] = tokenizer.get("pre_tokenizer") or {}
    normalizer: Mapping[str, Any] | None = tokenizer.get("normalizer")
    if model.get("type") != "BPE" or normalizer is not None:
        return None
    steps: list[Mapping[str, Any]] = rule.get("pretokenizers") or [rule]
    last = steps[-1]
    if last.get("type") != "ByteLevel" or last.get("add_prefix_space"):
        return None
    if len(steps) == 1 and last.get("use_regex", True):
        return _BY_ITSELF
    if len(steps) != 2 or last.get("use_regex", True) or steps[0].get("type") != "Split":
        return None
    split = steps[0]
    if split.get("behavior") != "Isolated" or split.get("invert"):
        return None
    pattern: Mapping[str, str] = split.get("pattern") or {}
    return _NAMES.get(pattern.get("Regex", ""))
