"""How llama.cpp cuts texts with a file's vocabulary, against the checkpoint's own tokenizer."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import remerge
from remerge.engines.calling import call
from remerge.engines.tokenisation import TEXTS, Difference, differences, tokens_of
from remerge.errors import BadInput

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"
ENGINE = Path(
    os.environ.get("REMERGE_TEST_LLAMA", ROOT / ".engines/remerge/engines/llama.cpp/bin/python")
)


def test_differences_name_the_first_token():
    assert differences([[1, 2, 3]], [[1, 2, 3]]) == []
    assert differences([[1, 2], [5, 6, 7]], [[1, 2], [5, 9, 7]]) == [
        Difference(1, 1, (6, 7), (9, 7))
    ]
    # One goes on where the other ends, and one has a token put before all.
    assert differences([[1, 2]], [[1, 2, 3]]) == [Difference(0, 2, (), (3,))]
    assert differences([[0, 1, 2]], [[1, 2]]) == [Difference(0, 0, (0, 1, 2), (1, 2))]


def test_a_directory_without_a_tokenizer(tmp_path: Path):
    with pytest.raises(BadInput, match="cannot read the tokenizer"):
        tokens_of(tmp_path, ["a"])


def tokenise(file: Path, texts: tuple[str, ...] = TEXTS) -> dict[str, object]:
    request = {"file": str(file), "texts": list(texts)}
    return call(ENGINE, "remerge.engines.tokenise_gguf", request, lambda d, t, n: None)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("gguf") / "out"
    remerge.export(
        EXAMPLES / "base",
        out,
        adapters=EXAMPLES / "adapters" / "sort",
        to="gguf:Q8_0",
        engine_python={"llama.cpp": str(ENGINE)},
    )
    return next(out.glob("*.gguf"))


@pytest.mark.engine
def test_as_the_checkpoint_does(file: Path):
    texts = (*TEXTS, "", " ", "<|user|>sort: b a<|end|>", "a\0b")
    found = tokenise(file, texts)
    assert found["tokens"] == tokens_of(EXAMPLES / "base", texts)
    assert (found["adds_bos"], found["adds_eos"], found["vocabulary"]) == (True, False, 512)


@pytest.mark.engine
def test_a_file_that_puts_no_bos_is_found_out(file: Path, tmp_path: Path):
    content, key = bytearray(file.read_bytes()), b"tokenizer.ggml.add_bos_token"
    # The key, four bytes that say "a boolean", and it.
    place = content.index(key) + len(key) + 4
    assert content[place] == 1
    content[place] = 0
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(content)
    found = tokenise(broken)
    assert found["adds_bos"] is False
    told = differences(tokens_of(EXAMPLES / "base", TEXTS), found["tokens"])  # type: ignore[arg-type]
    assert len(told) == len(TEXTS)
    assert all(difference.position == 0 for difference in told)


@pytest.mark.engine
@pytest.mark.parametrize("content", [b"", b"GGUF", b"no model"])
def test_what_is_no_gguf_file(tmp_path: Path, content: bytes):
    (tmp_path / "a.gguf").write_bytes(content)
    with pytest.raises(BadInput, match=r"llama\.cpp cannot load .*a\.gguf"):
        tokenise(tmp_path / "a.gguf")
