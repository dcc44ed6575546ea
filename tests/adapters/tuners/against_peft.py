"""PEFT as the oracle of every family: the same adapter merged by PEFT and by remerge.

Bases are tiny models with random weights; an adapter gets random values in all that it trains, so
that every part of it matters.
"""

from __future__ import annotations

import json
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    RegNetConfig,
    RegNetForImageClassification,
    ResNetConfig,
    ResNetForImageClassification,
    WhisperConfig,
    WhisperForConditionalGeneration,
)

import remerge

Tensors = dict[str, torch.Tensor]


def llama(tied: bool = False) -> LlamaForCausalLM:
    """Linear layers 24x24, 12x24, 40x24 and 24x40, an embedding of 50 tokens, two layers."""
    sizes = {"vocab_size": 50, "hidden_size": 24, "intermediate_size": 40}
    heads = {"num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}
    return LlamaForCausalLM(LlamaConfig(**sizes, **heads, tie_word_embeddings=tied))


def gpt2() -> GPT2LMHeadModel:
    """Conv1D layers, which store (in, out): c_attn (24, 72), c_fc (24, 96), c_proj (96, 24)."""
    sizes = {"vocab_size": 50, "n_positions": 16, "n_embd": 24, "n_layer": 1, "n_head": 2}
    return GPT2LMHeadModel(GPT2Config(**sizes))


def resnet() -> ResNetForImageClassification:
    """Conv2d layers with kernels 7, 3 and 1."""
    return ResNetForImageClassification(
        ResNetConfig(embedding_size=8, hidden_sizes=[8, 12], depths=[1, 1], layer_type="basic")
    )


def whisper() -> WhisperForConditionalGeneration:
    """Conv1d layers with kernel 3: encoder.conv1 (16, 12, 3) and encoder.conv2 (16, 16, 3)."""
    sides = ("encoder", "decoder")
    sizes = {f"{side}_{what}": size for side in sides for what, size in _WHISPER.items()}
    tokens = {"vocab_size": 50, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    lengths = {"max_source_positions": 20, "max_target_positions": 20, "num_mel_bins": 12}
    return WhisperForConditionalGeneration(
        WhisperConfig(d_model=16, decoder_start_token_id=1, **sizes, **tokens, **lengths)
    )


_WHISPER = {"layers": 1, "attention_heads": 2, "ffn_dim": 24}


def regnet() -> RegNetForImageClassification:
    """Conv2d layers, some of them with 2 and 4 groups."""
    sizes = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "groups_width": 4}
    return RegNetForImageClassification(RegNetConfig(**sizes, layer_type="x"))


KINDS: Mapping[str, Callable[[], Any]] = {
    "llama": llama,
    "tied llama": lambda: llama(tied=True),
    "regnet": regnet,
    "gpt2": gpt2,
    "resnet": resnet,
    "whisper": whisper,
}


@dataclass(frozen=True)
class Saved:
    """Where a base and an adapter lie."""

    base_path: Path
    adapter_path: Path


@dataclass(frozen=True)
class Both(Saved):
    """One adapter merged twice."""

    ours: Tensors
    theirs: Tensors
    base: Tensors

    @property
    def changed(self) -> set[str]:
        """The tensors that differ from the base."""
        return {n for n, v in self.ours.items() if not torch.equal(v, self.base[n])}


@contextmanager
def quiet(seed: int | None = None) -> Iterator[None]:
    """Without PEFT's warnings and on one thread, from this seed on."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    if seed is not None:
        torch.manual_seed(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    torch.set_num_threads(threads)


@cache
def base_of(kind: str, dtype: torch.dtype = torch.float32) -> Path:
    """A directory with the base of this kind, made once; read only."""
    out = Path(tempfile.mkdtemp(prefix=f"base-{kind}-"))
    with quiet(seed=1):
        model = KINDS[kind]()
        for value in model.parameters():
            # Norms and biases start as ones and zeros, which hide mistakes.
            value.data.add_(torch.randn_like(value), alpha=0.05)
        model.to(dtype).save_pretrained(out)
    return out


def model_of(kind: str, base: Path, dtype: torch.dtype = torch.float32) -> Any:
    """The base as transformers loads it."""
    with quiet():
        return type(KINDS[kind]()).from_pretrained(base, dtype=dtype)


def train(model: Any, config: PeftConfig, out: Path, seed: int = 0, noise: float = 0.3) -> None:
    """Save an adapter whose trained parameters are all random."""
    with quiet(seed):
        peft = get_peft_model(model, config)
        with torch.no_grad():
            for value in peft.parameters():
                if value.requires_grad:
                    value.add_(torch.randn_like(value, dtype=torch.float32), alpha=noise)
        peft.save_pretrained(out)


def save_trained(config: PeftConfig, kind: str, out: Path) -> Saved:
    """A trained adapter on the base of a kind, not merged."""
    saved = Saved(base_of(kind), out / "adapter")
    train(model_of(kind, saved.base_path), config, saved.adapter_path)
    return saved


def peft_merged(kind: str, base: Path, adapter: Path, dtype: torch.dtype) -> Tensors:
    """What PEFT's ``merge_and_unload`` makes of a saved adapter, under the names on disk."""
    with tempfile.TemporaryDirectory() as out, quiet(seed=99):
        peft = PeftModel.from_pretrained(model_of(kind, base, dtype), str(adapter))
        peft.merge_and_unload().save_pretrained(out)
        return load_file(Path(out) / "model.safetensors")


def our_merged(base: Path, adapter: Path, out: Path, **options: Any) -> Tensors:
    """What remerge writes."""
    remerge.merge(base, adapter, out, progress=False, **options)
    return load_file(out / "model.safetensors")


def merge_both(
    config: PeftConfig,
    kind: str,
    out: Path,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    noise: float = 0.3,
    wide: bool = False,
) -> Both:
    """Train an adapter on the base of a kind and merge it both ways; ``out`` must be empty.

    ``wide``: PEFT works in float32 and its result is rounded once, where in 16 bits it would round
    several times over.
    """
    base, adapter = base_of(kind, dtype), out / "adapter"
    train(model_of(kind, base, dtype), config, adapter, seed, noise)
    return merge_saved(kind, base, adapter, out, dtype, wide)


def merge_saved(
    kind: str,
    base: Path,
    adapter: Path,
    out: Path,
    dtype: torch.dtype = torch.float32,
    wide: bool = False,
) -> Both:
    """Merge an adapter that lies on disk both ways."""
    theirs = peft_merged(kind, base, adapter, torch.float32 if wide else dtype)
    theirs = {n: v.to(dtype) if v.is_floating_point() else v for n, v in theirs.items()}
    ours = our_merged(base, adapter, out / "merged")
    return Both(base, adapter, ours, theirs, load_file(base / "model.safetensors"))


def assert_same(both: Both, equal: float = 0.99, units: float = 1, rounds_delta: int = 0) -> None:
    """Names, shapes and dtypes are equal, and something changed. Values: float32 within 1e-5 of
    the tensor's largest; 16 bits within ``units`` in the last place, and the share ``equal`` of
    the changed tensors' values bit for bit. ``rounds_delta``: how often PEFT rounds the change to
    16 bits before it adds it, which each time moves values by up to 2^-8 of their change."""
    assert sorted(both.ours) == sorted(both.theirs)
    assert both.changed, "the adapter changed nothing"
    values = same = 0
    for name, theirs in both.theirs.items():
        ours = both.ours[name]
        assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape), name
        if not theirs.dtype.is_floating_point:
            assert torch.equal(ours, theirs), name
            continue
        off = (ours.double() - theirs.double()).abs()
        if theirs.dtype == torch.float32:
            bound = torch.full_like(off, 1e-5 * max(1e-3, float(theirs.abs().max())))
        else:
            bound = units * _unit(theirs)
            if rounds_delta:
                bound += rounds_delta * 2.0**-8 * (theirs.double() - both.base[name].double()).abs()
        assert (off <= bound).all(), f"{name}: off by {float(off.max()):.3g}"
        if name in both.changed and theirs.itemsize == 2:
            values += off.numel()
            same += int((off == 0).sum())
    assert same >= equal * values, f"only {same} of {values} values are equal"


def _unit(values: torch.Tensor) -> torch.Tensor:
    """One unit in the last place; at a power of two the larger of the two, around zero that of
    the tensor's values rounded by float32 sums."""
    wide = values.double().abs().clamp(min=float(values.abs().max()) * 2**-20)
    return 2.0 ** torch.floor(torch.log2(wide)) * torch.finfo(values.dtype).eps * 1.001


def assert_independent(both: Both, out: Path) -> None:
    """The same bytes with little memory and one thread, and when rows are read alone."""
    again = our_merged(
        both.base_path, both.adapter_path, out / "again", max_memory="512MiB", threads=1
    )
    with remerge.open_merged(both.base_path, both.adapter_path) as merged:
        for name, whole in both.ours.items():
            assert torch.equal(whole, again[name]), name
            if whole.dim() and name in both.changed:
                for row in (0, whole.shape[0] // 2, whole.shape[0] - 1):
                    assert torch.equal(merged[name][row], whole[row]), (name, row)


def assert_refused(saved: Saved, out: Path, *words: str) -> None:
    """The adapter does not merge, the message has these words in it, and nothing is written."""
    with pytest.raises(remerge.BadInput) as caught:
        our_merged(saved.base_path, saved.adapter_path, out / "refused")
    for word in words:
        assert word in str(caught.value)
    assert not (out / "refused").exists()


def assert_name_may_stay(both: Both, out: Path, *ends: str) -> None:
    """The same result with the adapter's name left in keys, after these ends of them."""
    edit(both.adapter_path, with_name("default", *ends))
    for name, value in our_merged(both.base_path, both.adapter_path, out / "named").items():
        assert torch.equal(value, both.ours[name]), name


def edit(adapter: Path, tensors: Callable[[Tensors], Tensors] | None = None, **config: Any) -> None:
    """Change a saved adapter's tensors, or fields of its configuration."""
    file, told = adapter / "adapter_model.safetensors", adapter / "adapter_config.json"
    if tensors is not None:
        # Copied, as the file is rewritten under them.
        held = {name: value.clone() for name, value in load_file(file).items()}
        save_file({n: v.contiguous() for n, v in tensors(held).items()}, file)
    told.write_text(json.dumps(json.loads(told.read_text()) | config))


def with_name(adapter: str, *ends: str) -> Callable[[Tensors], Tensors]:
    """For `edit`: the adapter's name left in keys, after these ends of them."""

    def named(tensors: Tensors) -> Tensors:
        found: Tensors = {}
        for name, value in tensors.items():
            for end in ends:
                if f".{end}" in name:
                    name = name.replace(f".{end}", f".{end}.{adapter}", 1)
                    break
            found[name] = value
        return found

    return named
