"""Choices as tokens, against lm-eval's rule, by tokenizers with boundaries in odd places."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from remerge.engines.tokenisation import open_tokenizer
from remerge.errors import BadInput
from remerge.validation.choices import choice_ids, chosen
from remerge.validation.rendering import Prompt

BASE = Path(__file__).resolve().parents[2] / "examples" / "base"
EXAMPLE = open_tokenizer(BASE)


def bpe(*merges: tuple[str, str], specials: str = "", normalizer: Any = None) -> Any:
    """Of letters, blind to spaces; ``specials`` as in "<s> $A </s>"."""
    letters = [chr(code) for code in range(32, 127)]
    words = ["<s>", "</s>", *letters, *(first + second for first, second in merges)]
    vocabulary = {word: number for number, word in enumerate(words)}
    tokenizer = Tokenizer(models.BPE(vocabulary, list(merges)))
    tokenizer.decoder = decoders.Fuse()
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    if specials:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=specials, special_tokens=[("<s>", 0), ("</s>", 1)]
        )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>"
    )


def metaspace() -> Any:
    """As SentencePiece has it: a space before the text, spaces as part of words."""
    words = ["<s>", "<unk>", "▁", "▁a", "▁b", "a", "b", ":"]
    vocabulary = {word: number for number, word in enumerate(words)}
    tokenizer = Tokenizer(models.BPE(vocabulary, [("▁", "a"), ("▁", "b")], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 0)]
    )
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>")


def by_lm_eval(context: str, continuation: str, tokenizer: Any, special: bool) -> Any:
    """`_encode_pair` of lm_eval/api/model.py, 0.4.13."""
    n_spaces = len(context) - len(context.rstrip())
    if n_spaces > 0:
        continuation = context[-n_spaces:] + continuation
        context = context[:-n_spaces]
    whole = tokenizer(context + continuation, add_special_tokens=special)["input_ids"]
    alone = tokenizer(context, add_special_tokens=special)["input_ids"]
    return tuple(alone), tuple(whole[len(alone) :])


TEXTS = st.text(alphabet="ab :?\n0é今👍", min_size=1, max_size=8).filter(lambda text: text.strip())


@settings(max_examples=200, deadline=None)
@given(TEXTS, st.lists(TEXTS, min_size=2, max_size=4, unique=True), st.booleans())
def test_as_lm_eval_does(text: str, choices: list[str], special: bool):
    try:
        found = choice_ids(Prompt(text, special), choices, EXAMPLE, "q")
    except BadInput:
        # A chat always begins with tokens; a text without any may merge with the choice whole.
        assert not special
        return
    merges = False
    for choice, ids in zip(choices, found.continuations, strict=True):
        parted = not special or text[-1].isspace() or choice[0].isspace()
        joined = choice if parted else f" {choice}"
        context, continuation = by_lm_eval(text, joined, EXAMPLE, special)
        whole = tuple(EXAMPLE(text + joined, add_special_tokens=special)["input_ids"])
        # Nothing of the text is lost or weighed twice, wherever the boundary lies.
        assert found.context + ids == whole
        merges |= whole[: len(context)] != context
        if not merges and len(found.context) == len(context):
            assert (found.context, ids) == (context, continuation)
    if not merges:
        assert found.context == context  # pyright: ignore[reportPossiblyUnbound]


def test_a_plain_question_is_parted_by_a_space():
    found = choice_ids(Prompt("Is 5 odd?"), ["yes", " no", "\nyes"], EXAMPLE, "q")
    assert EXAMPLE.decode(found.context) == "<|begin|>Is 5 odd?"
    assert [EXAMPLE.decode(ids) for ids in found.continuations] == [" yes", " no", "\nyes"]
    ended = choice_ids(Prompt("Is 5 odd? "), ["yes", "no"], EXAMPLE, "q")
    assert ended.context == found.context
    assert ended.continuations == found.continuations[:2]
    assert ended.prompts[0] == (*found.context, *found.continuations[0])


def test_a_chat_is_not():
    text = "<|begin|><|user|>Is 5 odd?<|end|><|assistant|>"
    found = choice_ids(Prompt(text, special=False), ["yes", "no"], EXAMPLE, "q")
    assert EXAMPLE.decode(found.context) == text
    assert [EXAMPLE.decode(ids) for ids in found.continuations] == ["yes", "no"]


def test_a_choice_that_merges_with_the_question():
    """Cut by the context's length, "bc" would leave no token for "c": certain, whatever it says."""
    tokenizer = bpe(("b", "c"))
    assert by_lm_eval("ab", "c", tokenizer, False)[1] == ()
    found = choice_ids(Prompt("ab", special=False), ["c", "d", "cd"], tokenizer, "q")
    assert tokenizer.convert_ids_to_tokens(found.context) == ["a"]
    told = [tokenizer.convert_ids_to_tokens(ids) for ids in found.continuations]
    assert told == [["bc"], ["b", "d"], ["bc", "d"]]
    # Spaces as well: "a " and "b" are cut into "a", " b".
    tokenizer = bpe((" ", "b"), specials="<s> $A")
    found = choice_ids(Prompt("a "), ["b", "c"], tokenizer, "q")
    assert tokenizer.convert_ids_to_tokens(found.context) == ["<s>", "a"]
    told = [tokenizer.convert_ids_to_tokens(ids) for ids in found.continuations]
    assert told == [[" b"], [" ", "c"]]


def test_what_a_tokenizer_puts_at_the_end_is_left_out():
    tokenizer = bpe(specials="<s> $A </s>")
    found = choice_ids(Prompt("ab"), ["c", "d"], tokenizer, "q")
    assert tokenizer.convert_ids_to_tokens(found.context) == ["<s>", "a", "b"]
    assert [tokenizer.convert_ids_to_tokens(one) for one in found.continuations] == [
        [" ", "c"],
        [" ", "d"],
    ]
    # Nothing before, something behind.
    found = choice_ids(Prompt("ab"), ["c", "d"], bpe(specials="$A </s>"), "q")
    assert tokenizer.convert_ids_to_tokens(found.context) == ["a", "b"]


def test_a_tokenizer_as_sentencepiece_s():
    tokenizer = metaspace()
    found = choice_ids(Prompt("a:"), ["a", "b"], tokenizer, "q")
    assert tokenizer.convert_ids_to_tokens(found.context) == ["<s>", "▁a", ":"]
    told = [tokenizer.convert_ids_to_tokens(ids) for ids in found.continuations]
    assert told == [["▁a"], ["▁b"]]


def test_what_cannot_be_weighed():
    # The only token of the question merges away, and none is before it.
    with pytest.raises(BadInput, match="q, line 1: a choice adds no token"):
        choice_ids(Prompt("b", special=False), ["c", "d"], bpe(("b", "c")), "q, line 1")
    # A tokenizer that drops what the choice is.
    tokenizer = bpe(specials="<s> $A", normalizer=normalizers.Replace("?", ""))
    with pytest.raises(BadInput, match="adds no token"):
        choice_ids(Prompt("a", special=False), ["?", "b"], tokenizer, "q")


def test_the_likeliest():
    choices = ["a", "bbbb", "é"]
    assert chosen([-1.0, -2.0, -3.0], choices) == 0
    assert chosen([-2.0, -1.0, -1.0], choices) == 1
    # -1/1, -2/4, -3/2
    assert chosen([-1.0, -2.0, -3.0], choices, by_bytes=True) == 1
    assert chosen([-1.0, -4.0, -2.0], choices, by_bytes=True) == 0
    assert chosen([-math.inf] * 3, choices) == 0
    with pytest.raises(BadInput, match="not a number"):
        chosen([-1.0, math.nan, -1.0], choices)
    with pytest.raises(ValueError):
        chosen([-1.0], choices)
