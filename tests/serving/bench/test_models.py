"""What is refused before anything is made, and what of a model is told."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import remerge
from remerge.engines.tokenisation import open_tokenizer
from remerge.errors import BadInput, Unsupported, UsageError
from remerge.serving.bench.benchmarking import at_once
from remerge.serving.bench.models import Sources, check_engine, find_sources, shape_of
from remerge.serving.bench.prompts import context_of, take_prompts
from remerge.serving.sizing.asked import Asked
from remerge.serving.sizing.reading import read_memory, size_of
from remerge.sources.references import resolve

EXAMPLES = Path(__file__).resolve().parents[3] / "examples"
BASE, SORT = EXAMPLES / "base", EXAMPLES / "adapters" / "sort"


def sources(adapter: Path = SORT, output: Path | None = None) -> Sources:
    return find_sources(resolve(BASE, "base"), resolve(adapter, "adapter"), output)


def changed(place: Path, **config: Any) -> Path:
    shutil.copytree(SORT, place)
    file = place / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | config))
    return place


@pytest.mark.parametrize("engine", ["vllm", "llama.cpp", "transformers"])
def test_an_adapter_that_engines_serve(engine: str):
    check_engine(engine, sources())


@pytest.mark.parametrize("engine", ["vllm", "llama.cpp"])
@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"use_dora": True}, "DoRA"),
        ({"modules_to_save": ["lm_head"]}, "whole modules"),
        ({"peft_type": "LOHA"}, "another family"),
    ],
)
def test_one_that_they_do_not(tmp_path: Path, engine: str, config: dict[str, Any], said: str):
    found = sources(changed(tmp_path / "adapter", **config))
    with pytest.raises(Unsupported, match=rf"{engine} does not serve.*{said}.*transformers"):
        check_engine(engine, found)
    check_engine("transformers", found)


def test_a_rank_pattern_is_vllms_alone(tmp_path: Path):
    found = sources(changed(tmp_path / "adapter", rank_pattern={"q_proj": 64}))
    assert found.opened.rank == 16
    check_engine("llama.cpp", found)
    with pytest.raises(Unsupported, match="vllm"):
        check_engine("vllm", found)


def test_gguf_is_for_llama_cpp(tmp_path: Path):
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    found = sources(output=tmp_path / "m.gguf")
    with pytest.raises(UsageError, match=r"--engine llama\.cpp"):
        check_engine("vllm", found)
    check_engine("llama.cpp", found)


@pytest.mark.parametrize("to", ["safetensors", "fp8"])
def test_what_was_merged_of_others_is_refused(tmp_path: Path, to: str):
    out = tmp_path / "m"
    remerge.export(BASE, out, adapters=[SORT], to=to)
    assert sources(output=out).notes == ()
    dates = EXAMPLES / "adapters" / "dates"
    with pytest.raises(BadInput, match=r"not merged of the adapter .*dates\. .* names sort,"):
        sources(dates, out)
    other = tmp_path / "base"
    shutil.copytree(BASE, other)
    weights = other / "model-00002-of-00002.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    for base in (other, tmp_path):
        with pytest.raises(BadInput, match="not merged onto the base"):
            find_sources(replace(resolve(BASE, "base"), path=base), resolve(SORT, "adapter"), out)


def test_what_is_not_known_of_a_merge_is_said(tmp_path: Path):
    both = tmp_path / "both"
    remerge.merge(BASE, [SORT, EXAMPLES / "adapters" / "dates"], both)
    (said,) = sources(output=both).notes
    assert said.startswith("It was made of sort, dates, and sort alone ran unmerged")
    (both / "remerge.json").unlink()
    (said,) = sources(output=both).notes
    assert said.startswith("both has no manifest")


def test_an_export_tells_of_its_checkpoint_alone(tmp_path: Path):
    remerge.merge(BASE, SORT, tmp_path / "merged")
    remerge.export(tmp_path / "merged", tmp_path / "out", to="fp8")
    (said,) = sources(SORT, tmp_path / "out").notes
    assert "exported from the checkpoint merged" in said
    remerge.export(BASE, tmp_path / "plain", to="fp8")
    with pytest.raises(BadInput, match="holds the base"):
        sources(SORT, tmp_path / "plain")


def test_the_model_is_told_by_shape_and_digest_and_not_by_path():
    told = shape_of(sources())
    assert told["num_hidden_layers"] == 4 and told["model_type"] == "llama"
    weights = SORT / "adapter_model.safetensors"
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    assert told["adapter"]["files"]["adapter_model.safetensors"] == digest
    assert str(EXAMPLES) not in json.dumps(told)


def test_prompts_are_those_of_the_file_and_fit(tmp_path: Path):
    file = tmp_path / "prompts.jsonl"
    long = "word " * 2000
    messages = [{"role": "user", "content": "Sort the digits: 312"}]
    lines = [{"prompt": "Two and two is"}, {"messages": messages}, {"text": long}]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    tokenizer = open_tokenizer(BASE)
    found = take_prompts(file, tokenizer, 512, 100)
    chat = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert list(found.tokens[1]) == tokenizer(chat, add_special_tokens=False)["input_ids"]
    # With what the server is started with, the longest is no more than the model has.
    assert context_of(found.lengths[1], 100) == 512
    assert found.source == "prompts.jsonl" and "Of 1 prompts" in found.notes[0]
    own = take_prompts(None, tokenizer, None, 100)
    assert len(own.tokens) == 48 and "generic" in own.notes[0]
    with pytest.raises(UsageError, match="leaves no room"):
        take_prompts(None, tokenizer, 512, 511)


def test_as_many_at_once_as_the_engine_takes():
    """transformers is sized for serving one, and measured in batches of any size."""
    memory = read_memory(gpu=False)
    for engine, most in (("transformers", 1), ("vllm", 8)):
        wish = Asked(context=64, sequences=at_once(engine, (1, 2, 8)))
        assert wish.sequences == most
        assert size_of(BASE, engine, wish, memory).settings.sequences == most
    with pytest.raises(UsageError, match=r"not 1000\. .*--concurrency \d+ or less"):
        at_once("llama.cpp", (1, 1000))
