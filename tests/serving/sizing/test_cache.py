"""Bytes of keys and values against the caches that transformers' own models fill."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
import transformers

import tests.corpus.arch_other
import tests.corpus.arch_text  # noqa: F401
from remerge.errors import BadInput
from remerge.serving.sizing.cache import Layout, cache_bytes
from remerge.serving.sizing.config_shape import shape_of
from remerge.serving.sizing.reading import with_defaults
from tests.corpus.architectures import ARCHS, Arch

_TOKENS = 40
# transformers keeps the latent row of these in some versions and all heads in others; what takes
# pictures by cross-attention keeps nothing where there is none.
_COUNTED_HIGHER = ("deepseek_v2", "deepseek_v3", "mllama")
_ARCHS = [
    arch for arch in ARCHS.values() if arch.inputs == "ids" and "CausalLM" in arch.cls
] + [arch for arch in ARCHS.values() if "ConditionalGeneration" in arch.cls]  # fmt: skip


def _nbytes(found: object, seen: set[int]) -> int:
    """Of all tensors of a cache; counters of tokens apart."""
    if id(found) in seen:
        return 0
    seen.add(id(found))
    if isinstance(found, torch.Tensor):
        return found.nbytes if found.dim() > 1 else 0
    if isinstance(found, list | tuple):
        return sum(_nbytes(item, seen) for item in found)
    if isinstance(found, dict):
        return sum(_nbytes(item, seen) for item in found.values())
    inside = type(found).__module__.startswith("transformers")
    return sum(_nbytes(item, seen) for item in vars(found).values()) if inside else 0


@pytest.mark.parametrize("arch", _ARCHS, ids=lambda arch: arch.name)
def test_against_transformers_own_cache(arch: Arch) -> None:
    if arch.inputs != "ids":
        pytest.skip("takes more than tokens")
    cls = getattr(transformers, arch.cls)
    config = cls.config_class(**{k: v for k, v in arch.config.items() if k != "model_type"})
    torch.manual_seed(0)
    model = cls(config).float().eval()
    with torch.no_grad():
        out = model(torch.randint(3, 90, (1, _TOKENS)), use_cache=True)
    cache = getattr(out, "past_key_values", None) or getattr(out, "cache_params", None)
    if cache is None:
        pytest.skip("gives no cache back")
    stated = {**arch.config, "model_type": config.model_type}
    shape = shape_of(stated, with_defaults(stated))
    ours = cache_bytes(shape, Layout("transformers", Fraction(4)), _TOKENS, 1)
    theirs = _nbytes(cache, set())
    if arch.name in _COUNTED_HIGHER:
        assert theirs <= ours <= 4 * theirs
    elif any(attention.window for attention in shape.attentions):
        # It lets go of a window's oldest token before the next is there.
        windowed = sum(a.elements * 4 for a in shape.attentions if a.window)
        assert theirs <= ours <= theirs + windowed
    else:
        assert ours == theirs


def _tokens(config: dict[str, object], engine: str, context: int, **more: int) -> int:
    shape = shape_of(config, with_defaults(config))
    return cache_bytes(shape, Layout(engine, Fraction(2), **more), context, 1)


def test_defaults_that_a_configuration_leaves_out() -> None:
    """Gemma 3 4B's config.json names neither heads nor their width: 4 of 256, by its class."""
    config: dict[str, object] = {
        "model_type": "gemma3",
        "text_config": {
            "model_type": "gemma3_text",
            "hidden_size": 2560,
            "intermediate_size": 10240,
            "num_hidden_layers": 34,
            "sliding_window": 1024,
            "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        },
    }
    shape = shape_of(config, with_defaults(config))
    assert {(a.heads, a.key) for a in shape.attentions} == {(4, 256)}
    assert sum(a.window is None for a in shape.attentions) == 5
    token = 2 * 4 * 256 * 2
    assert cache_bytes(shape, Layout("transformers", Fraction(2)), 8192, 1) == token * (
        5 * 8192 + 29 * 1024
    )
    # 1024 and a batch of 512, in 256s.
    assert cache_bytes(shape, Layout("llama.cpp", Fraction(2), batch=512), 8192, 1) == token * (
        5 * 8192 + 29 * 1536
    )


def test_latent_attention() -> None:
    config: dict[str, object] = {
        "model_type": "deepseek_v3",
        "num_hidden_layers": 61,
        "kv_lora_rank": 512,
        "qk_rope_head_dim": 64,
        "qk_nope_head_dim": 128,
        "v_head_dim": 128,
        "num_attention_heads": 128,
        "num_key_value_heads": 128,
        "hidden_size": 7168,
        "vocab_size": 129280,
    }
    # 61 layers of 576 numbers; a block of 16, and the one that stays empty.
    assert _tokens(config, "vllm", 16, block=16) == 2 * 16 * 61 * 576 * 2
    assert _tokens(config, "transformers", 1) == 61 * 128 * (192 + 128) * 2


def test_layers_that_share_keys_and_values() -> None:
    config: dict[str, object] = {
        "model_type": "gemma3n_text",
        "num_hidden_layers": 30,
        "num_kv_shared_layers": 10,
        "layer_types": (["sliding_attention"] * 4 + ["full_attention"]) * 6,
        "sliding_window": 512,
        "hidden_size": 2048,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "head_dim": 256,
        "vocab_size": 262400,
    }
    assert len(shape_of(config, with_defaults(config)).attentions) == 20


def test_an_unknown_type_is_counted_and_said() -> None:
    config = {
        "model_type": "never_heard_of",
        "num_hidden_layers": 3,
        "hidden_size": 64,
        "num_attention_heads": 4,
        "vocab_size": 100,
    }
    shape = shape_of(config, with_defaults(config))
    assert [a.elements for a in shape.attentions] == [128] * 3
    assert shape.notes


@pytest.mark.parametrize(
    "changes",
    [
        {"num_hidden_layers": 10**9},
        {"num_hidden_layers": None},
        {"hidden_size": "wide"},
        {"vocab_size": -1},
        {"is_encoder_decoder": True},
    ],
)
def test_configurations_that_cannot_be_sized_are_refused(changes: dict[str, object]) -> None:
    config: dict[str, object] = {
        "model_type": "never_heard_of",
        "num_hidden_layers": 3,
        "hidden_size": 64,
        "num_attention_heads": 4,
        "vocab_size": 100,
    }
    with pytest.raises(BadInput):
        shape_of(config | changes)
