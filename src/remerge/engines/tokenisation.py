"""How a checkpoint's own tokenizer cuts texts, and whether an engine cuts them in the same way."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from remerge.errors import BadInput

# What tokenizers are known to differ in: case and contractions, digits, scripts with and without
# spaces, marks that combine, emoji of several code points, code, and runs of white space.
TEXTS = (
    "The quick test of a tokenizer isn't one sentence: it's MANY, and they'll differ.",
    "In 2024 we paid 1,234,567.89 for 3x 42% of 0.001; call +49 30 901820 or 007.",
    "Größe, Straße, naïve façade, cœur, señor, łódź, žluťoučký kůň, ångström.",
    "Совсем другой алфавит, и Ἑλληνικά, και עברית, و العربية، हिन्दी में भी।",
    "今天天气很好，我们去公园。東京タワーは333メートルです。한국어 문장도 있습니다.",
    "e\u0301 is two code points and \u00e9 is one; \ufb01 is a ligature, \u2167 a numeral.",
    "Faces \U0001f600\U0001f44d\U0001f3fd and a family \U0001f468\u200d\U0001f469\u200d\U0001f467, "
    "a flag \U0001f1eb\U0001f1f7, a heart \u2764\ufe0f.",
    "def f(x: int) -> str:\n    if x >= 10:\n\t\treturn f\"{x:>8}\"  # why?\n\n\n    return ''\n",
    '{"name": "value", "list": [1, 2.5e-3, null], "path": "C:\\\\temp\\\\new"}',
    "Two  spaces, three   spaces,     five; a tab\tand a\n\nparagraph,\r\nand another.",
    "https://example.org/a_b-c/d?e=f&g=%20#h user.name+tag@example.org @you #this",
)


@dataclass(frozen=True)
class Difference:
    """The first place where two ways of cutting a text part: the text's number, the position, and
    the ids from there on, a few of each."""

    text: int
    position: int
    expected: tuple[int, ...]
    found: tuple[int, ...]

    def __str__(self) -> str:
        return (
            f"text {self.text + 1}, token {self.position + 1}: "
            f"{list(self.expected)} by the checkpoint's tokenizer, {list(self.found)} by the engine"
        )


def differences(
    expected: Sequence[Sequence[int]], found: Sequence[Sequence[int]], shown: int = 4
) -> list[Difference]:
    """Where each text that is not cut in the same way first differs; none where all are equal."""
    told: list[Difference] = []
    for number, (first, second) in enumerate(zip(expected, found, strict=True)):
        if list(first) == list(second):
            continue
        pairs = zip(first, second, strict=False)
        common = min(len(first), len(second))
        place = next((i for i, (a, b) in enumerate(pairs) if a != b), common)
        end = place + shown
        told.append(Difference(number, place, tuple(first[place:end]), tuple(second[place:end])))
    return told


def split(place: Path) -> tuple[Path, dict[str, str]]:
    """A checkpoint's directory, or a GGUF file's with its name, as transformers wants them."""
    return (place.parent, {"gguf_file": place.name}) if place.is_file() else (place, {})


def of_composed(cuts: Sequence[Difference], texts: Sequence[str]) -> list[Difference]:
    """The differences in texts that are in Unicode's composed form (NFC), as nearly all text is.

    Tokenizers that compose text first (Qwen's) differ in any other from engines that take it as it
    comes, as llama.cpp does.
    """
    return [cut for cut in cuts if unicodedata.is_normalized("NFC", texts[cut.text])]


def open_tokenizer(place: Path) -> Any:
    """The tokenizer of a checkpoint, or of a GGUF file, by transformers, without any code of it.

    Raises `BadInput` for a place that has none which transformers can read.
    """
    import transformers

    tokenizer: Any = transformers.AutoTokenizer
    directory, form = split(place)
    try:
        return tokenizer.from_pretrained(
            str(directory), local_files_only=True, trust_remote_code=False, **form
        )
    except Exception as error:  # whatever a tokenizer's many formats raise
        said = " ".join(str(error).split())[:300] or type(error).__name__
        raise BadInput(
            f"transformers cannot read the tokenizer of {place}: {said.rstrip('.')}.",
            hint="What is missing may be a package beside remerge, or a tokenizer.json.",
        ) from error


def tokens_of(place: Path, texts: Sequence[str]) -> list[list[int]]:
    """The ids of every text by the checkpoint's tokenizer, with the special tokens that it puts
    before and after. Raises `BadInput`."""
    tokenizer = open_tokenizer(place)
    return [list(tokenizer(text)["input_ids"]) for text in texts]
