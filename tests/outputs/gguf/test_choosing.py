"""Types of tensors, against tables written down from llama-quant.cpp by hand.

tests/engines/test_gguf.py compares whole files with what llama.cpp itself writes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remerge.outputs.gguf.choosing import Model, choose, in_order
from remerge.sources.ggml_types import FILE_TYPES, TYPES, fitting

Shapes = dict[str, tuple[int, ...]]
PLAIN = Model("llama", layers=32, heads=4, kv_heads=2, experts=0)
SHARED = replace(PLAIN, kv_heads=1)
MIXTRAL = replace(PLAIN, experts=8)
_MATRICES = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
# Of 32 layers: both eighths at the ends, and every third between.
MORE = {0, 1, 2, 3, 6, 9, 12, 15, 18, 21, 24, 27, 28, 29, 30, 31}


def llama(layers: int = 32, columns: int = 256, *, tied: bool = False) -> Shapes:
    shapes: Shapes = {"token_embd.weight": (64, columns), "output_norm.weight": (columns,)}
    if not tied:
        shapes["output.weight"] = (64, columns)
    for layer in range(layers):
        for name in _MATRICES:
            shapes[f"blk.{layer}.{name}.weight"] = (8, columns)
        shapes[f"blk.{layer}.attn_norm.weight"] = (columns,)
    return shapes


def mixture(layers: int = 32, experts: int = 8) -> Shapes:
    """Experts in the place of the feed-forward layers, and a shared one beside them."""
    shapes = {name: shape for name, shape in llama(layers).items() if ".ffn_" not in name}
    for layer in range(layers):
        for name in ("ffn_gate", "ffn_up", "ffn_down"):
            shapes[f"blk.{layer}.{name}_exps.weight"] = (experts, 8, 256)
            shapes[f"blk.{layer}.{name}_shexp.weight"] = (8, 256)
        shapes[f"blk.{layer}.ffn_gate_inp.weight"] = (experts, 256)
    return shapes


def layers_of(types: dict[str, str], name: str) -> list[str]:
    """The types of one matrix, layer by layer."""
    found = (types.get(f"blk.{layer}.{name}.weight") for layer in range(100))
    return [kind for kind in found if kind is not None]


def by_layer(layers: int, chosen: Iterable[int], kind: str, other: str) -> list[str]:
    marked = set(chosen)
    return [kind if layer in marked else other for layer in range(layers)]


@pytest.mark.parametrize(
    ("file", "embedding", "output"),
    [
        ("Q4_K_M", "Q4_K", "Q6_K"),
        ("Q3_K_L", "Q3_K", "Q6_K"),
        ("Q2_K", "Q2_K", "Q6_K"),
        ("IQ4_XS", "IQ4_XS", "Q6_K"),
        ("Q4_0", "Q4_0", "Q6_K"),
        ("Q8_0", "Q8_0", "Q8_0"),
        ("Q6_K", "Q6_K", "Q6_K"),
        ("BF16", "BF16", "BF16"),
    ],
)
def test_an_embedding_that_is_the_output_too(file: str, embedding: str, output: str):
    untied = choose(llama(1), PLAIN, file)
    assert untied["token_embd.weight"] == embedding
    assert untied["output.weight"] == output
    assert choose(llama(1, tied=True), PLAIN, file)["token_embd.weight"] == output
    per_layer = {**llama(1, tied=True), "per_layer_token_embd.weight": (64, 256)}
    assert choose(per_layer, PLAIN, file)["per_layer_token_embd.weight"] == output


@pytest.mark.parametrize(
    ("file", "columns", "output"),
    # By the default type's block first (Q8_0 where it does not fit), then by Q6_K's own.
    [("Q4_K_M", 96, "Q8_0"), ("Q4_0", 96, "Q8_0"), ("Q4_0", 100, "F16"), ("Q4_K_M", 100, "F16")],
)
def test_the_output_with_odd_columns(file: str, columns: int, output: str):
    assert choose(llama(1, columns), PLAIN, file)["output.weight"] == output


def test_falcons_output():
    falcon = replace(PLAIN, architecture="falcon")
    assert choose(llama(1), falcon, "Q4_K_M")["output.weight"] == "Q8_0"


def test_more_bits_where_it_tells():
    types = choose(llama(), PLAIN, "Q4_K_M")
    expected = by_layer(32, MORE, "Q6_K", "Q4_K")
    assert layers_of(types, "attn_v") == expected
    assert layers_of(types, "ffn_down") == expected
    for name in set(_MATRICES) - {"attn_v", "ffn_down"}:
        assert set(layers_of(types, name)) == {"Q4_K"}, name
    types = choose(llama(), PLAIN, "Q5_K_M")
    assert layers_of(types, "ffn_down") == by_layer(32, MORE, "Q6_K", "Q5_K")


def test_few_layers_have_no_eighth():
    types = choose(llama(4), replace(PLAIN, layers=4), "Q4_K_M")
    # The second third, and what is past seven eighths of 4, rounded down.
    assert layers_of(types, "ffn_down") == ["Q4_K", "Q4_K", "Q6_K", "Q6_K"]


@pytest.mark.parametrize(
    ("file", "name", "count", "kind", "other"),
    [
        ("Q4_K_S", "attn_v", 4, "Q5_K", "Q4_K"),
        ("Q4_K_S", "ffn_down", 4, "Q5_K", "Q4_K"),
        ("Q3_K_M", "attn_v", 2, "Q5_K", "Q4_K"),
        ("Q3_K_M", "ffn_down", 2, "Q5_K", "Q4_K"),
        ("Q3_K_M", "attn_output", 32, "Q4_K", ""),
        ("Q3_K_L", "attn_v", 32, "Q5_K", ""),
        ("Q3_K_L", "ffn_down", 32, "Q5_K", ""),
        ("Q3_K_L", "attn_output", 32, "Q5_K", ""),
        ("Q3_K_S", "attn_v", 32, "Q3_K", ""),
        ("Q2_K", "attn_v", 32, "Q3_K", ""),
        ("Q2_K", "ffn_down", 32, "Q3_K", ""),
        ("Q2_K", "attn_output", 32, "Q3_K", ""),
        ("Q2_K", "attn_k", 32, "Q2_K", ""),
        ("IQ3_M", "attn_v", 32, "Q4_K", ""),
        ("IQ3_M", "ffn_down", 4, "Q4_K", "IQ3_S"),
        ("IQ3_M", "attn_output", 32, "Q4_K", ""),
        ("IQ3_S", "attn_v", 32, "IQ3_S", ""),
        ("IQ4_XS", "attn_v", 32, "IQ4_XS", ""),
        ("IQ4_XS", "ffn_down", 4, "Q5_K", "IQ4_XS"),
        ("IQ4_NL", "ffn_down", 4, "Q5_K", "IQ4_NL"),
        ("Q5_K_S", "attn_v", 32, "Q5_K", ""),
        ("Q4_0", "ffn_down", 32, "Q4_0", ""),
    ],
)
def test_rules_of_files(file: str, name: str, count: int, kind: str, other: str):
    types = choose(llama(), PLAIN, file)
    assert layers_of(types, name) == by_layer(32, range(count), kind, other)


@pytest.mark.parametrize(
    ("file", "kind"),
    [("Q2_K", "Q4_K"), ("IQ3_S", "Q4_K"), ("IQ4_XS", "Q5_K"), ("IQ4_NL", "Q5_K")],
)
def test_value_heads_shared_by_four(file: str, kind: str):
    assert set(layers_of(choose(llama(), SHARED, file), "attn_v")) == {kind}
    three = replace(PLAIN, heads=3, kv_heads=1)
    assert kind not in layers_of(choose(llama(), three, file), "attn_v")
    none = replace(PLAIN, kv_heads=0)
    assert kind not in layers_of(choose(llama(), none, file), "attn_v")


def test_values_of_80_layers():
    large = replace(PLAIN, layers=80, heads=64, kv_heads=8)
    assert set(layers_of(choose(llama(80), large, "Q3_K_M"), "attn_v")) == {"Q5_K"}
    # llama.cpp knows the 70B by the architecture llama alone, and the 65B by its heads.
    for other in (replace(large, architecture="qwen2"), replace(large, kv_heads=64)):
        assert layers_of(choose(llama(80), other, "Q3_K_M"), "attn_v")[2:] == ["Q4_K"] * 78


def test_fused_projections_are_values():
    shapes: Shapes = {f"blk.{layer}.attn_qkv.weight": (8, 256) for layer in range(32)}
    types = choose(shapes, PLAIN, "Q4_K_M")
    assert layers_of(types, "attn_qkv") == by_layer(32, MORE, "Q6_K", "Q4_K")


def test_weights_of_an_imatrix_change_rules():
    for file, kind in (("Q4_0", "Q4_1"), ("Q5_0", "Q5_1")):
        types = choose(llama(), PLAIN, file, imatrix=True)
        assert layers_of(types, "ffn_down") == by_layer(32, range(4), kind, file)
    types = choose(llama(), PLAIN, "IQ4_XS", imatrix=True)
    assert set(layers_of(types, "ffn_down")) == {"IQ4_XS"}


def test_overrides():
    overrides = [(r"blk\.1\.attn_v", "Q8_0"), ("attn_v", "F16"), ("^v", "Q2_K"), ("norm", "Q8_0")]
    types = choose(llama(4), replace(PLAIN, layers=4), "Q4_K_S", overrides)
    assert layers_of(types, "attn_v") == ["F16", "Q8_0", "F16", "F16"]
    # Nothing but matrices that are quantised anyway.
    assert set(layers_of(types, "attn_norm")) == {"F32"}
    assert set(layers_of(types, "attn_k")) == {"Q4_K"}
    reverse = choose(llama(4), replace(PLAIN, layers=4), "Q4_K_S", overrides[1::-1])
    assert set(layers_of(reverse, "attn_v")) == {"F16"}


def test_an_override_does_not_count_as_passed():
    types = choose(llama(8), PLAIN, "Q3_K_M", [(r"blk\.0\.", "Q2_K")])
    assert layers_of(types, "attn_v") == ["Q2_K", "Q5_K", "Q5_K", *["Q4_K"] * 5]


def test_overrides_reach_embedding_and_output():
    overrides = [("^output", "Q4_0"), ("token_embd", "Q8_0")]
    types = choose(llama(1), PLAIN, "Q4_K_M", overrides)
    assert (types["output.weight"], types["token_embd.weight"]) == ("Q4_0", "Q8_0")


def test_overrides_give_way_to_odd_columns():
    types = choose(llama(1, 96), PLAIN, "Q4_0", [("attn_v", "Q6_K"), ("attn_k", "BF16")])
    assert types["blk.0.attn_v.weight"] == "Q8_0"
    assert types["blk.0.attn_k.weight"] == "BF16"


@pytest.mark.parametrize("file", ["F16", "BF16", "F32"])
def test_overrides_need_a_quantised_file(file: str):
    assert choose(llama(1), PLAIN, file, [("attn_v", "Q8_0")]) == choose(llama(1), PLAIN, file)


@pytest.mark.parametrize(
    ("kind", "at_32", "at_1"),
    [
        ("Q2_K", "Q4_0", "F16"),
        ("Q3_K", "Q4_0", "F16"),
        ("Q4_K", "Q5_0", "F16"),
        ("Q5_K", "Q5_1", "F16"),
        ("Q6_K", "Q8_0", "F16"),
        ("IQ3_S", "IQ4_NL", "F16"),
        ("IQ4_XS", "IQ4_NL", "F16"),
        ("IQ4_NL", "IQ4_NL", "F16"),
        ("Q4_0", "Q4_0", "F16"),
        ("Q8_0", "Q8_0", "F16"),
        ("F16", "F16", "F16"),
        ("BF16", "BF16", "BF16"),
        ("F32", "F32", "F32"),
    ],
)
def test_what_takes_the_place_where_rows_are_odd(kind: str, at_32: str, at_1: str):
    assert [fitting(kind, n) for n in (256, 512, 288, 96, 100)] == [kind, kind, at_32, at_32, at_1]


def test_odd_columns_in_a_file():
    types = choose(llama(32, 96), PLAIN, "Q4_K_M")
    assert layers_of(types, "attn_v") == by_layer(32, MORE, "Q8_0", "Q5_0")
    assert set(layers_of(types, "attn_q")) == {"Q5_0"}
    assert types["token_embd.weight"] == "Q5_0"
    assert set(choose(llama(1, 100), PLAIN, "Q4_K_M").values()) == {"F16", "F32"}


@pytest.mark.parametrize("file", ["F16", "BF16", "F32", "Q8_0", "Q4_K_M"])
def test_what_is_never_quantised(file: str):
    shapes: Shapes = {
        "output_norm.weight": (256,),
        "position_embd.weight": (32, 256),
        "token_types.weight": (2, 256),
        "blk.0.attn_q_norm.weight": (4, 256),
        "blk.0.attn_q.bias": (256,),
        "blk.0.attn_sinks.bias": (4, 256),
        "blk.0.ffn_gate_inp.weight": (8, 256),
        "blk.0.ssm_conv1d.weight": (4, 256),
        "blk.0.ssm_a": (16, 256),
        "blk.0.time_mix_w1.weight": (16, 256),
        "blk.0.laurel_l.weight": (16, 256),
        "blk.0.attn_rel_b.weight": (16, 256),
        "rope_freqs.weight": (128,),
    }
    assert set(choose(shapes, PLAIN, file).values()) == {"F32"}


@pytest.mark.parametrize(
    ("shape", "matrix"),
    [
        ((256,), False),
        ((1,), False),
        ((), False),
        ((1, 256), False),
        ((1, 1, 256), False),
        ((1, 1), False),
        ((2, 256), True),
        ((256, 1), True),
        ((1, 2, 256), True),
        ((8, 1, 256), True),
        ((8, 2, 256), True),
    ],
)
def test_leading_ones_are_no_dimensions(shape: tuple[int, ...], matrix: bool):
    expected = "F16" if matrix else "F32"
    assert choose({"blk.0.attn_q.weight": shape}, PLAIN, "F16") == {"blk.0.attn_q.weight": expected}


def test_order():
    names = [
        "output.weight",
        "output_norm.weight",
        "token_embd.weight",
        "blk.0.attn_k.weight",
        "blk.0.ffn_up.weight",
        "blk.2.attn_k.weight",
        "blk.9.attn_k.weight",
        "blk.10.attn_k.weight",
        "blk.10.attn_v.weight",
    ]
    shapes: Shapes = dict.fromkeys(sorted(names, key=lambda name: name[::-1]), (8, 256))
    assert list(shapes) != names
    assert in_order(shapes) == names
    assert list(choose(shapes, PLAIN, "Q4_K_M")) == names


def test_layers_pass_by_number():
    """blk.10 is the eleventh, not the third."""
    shapes = dict(sorted(llama().items()))
    assert layers_of(choose(shapes, PLAIN, "Q4_K_S"), "attn_v")[:11] == ["Q5_K"] * 4 + ["Q4_K"] * 7


def test_mixtures_of_experts():
    types = choose(mixture(), MIXTRAL, "Q4_K_M")
    assert set(layers_of(types, "ffn_gate_inp")) == {"F32"}
    for name in ("attn_v", "attn_k"):
        assert set(layers_of(types, name)) == {"Q8_0"}
    assert set(layers_of(types, "attn_output")) == {"Q5_K"}
    assert set(layers_of(types, "attn_q")) == {"Q4_K"}
    assert set(layers_of(types, "ffn_up_exps")) == {"Q4_K"}


@pytest.mark.parametrize("experts", [2, 8, 64])
def test_experts_layers_are_read_off_their_names(experts: int):
    """Two to a layer: counting would run ahead."""
    types = choose(mixture(experts=experts), replace(PLAIN, experts=experts), "Q4_K_M")
    expected = by_layer(32, MORE, "Q6_K", "Q4_K")
    assert layers_of(types, "ffn_down_exps") == expected
    assert layers_of(types, "ffn_down_shexp") == expected


def test_eight_experts_alone_are_special():
    for experts in (4, 16):
        types = choose(mixture(experts=experts), replace(PLAIN, experts=experts), "Q4_K_M")
        assert layers_of(types, "attn_v") == by_layer(32, MORE, "Q6_K", "Q4_K")
        assert set(layers_of(types, "attn_output")) == {"Q4_K"}
        assert set(layers_of(types, "attn_k")) == {"Q4_K"}
    for file, kind in (("Q5_K_M", "Q5_K"), ("Q6_K", "Q6_K"), ("Q3_K_L", "Q3_K")):
        assert set(layers_of(choose(mixture(), MIXTRAL, file), "attn_output")) == {kind}
    types = choose(mixture(), MIXTRAL, "IQ3_M")
    assert layers_of(types, "ffn_down_exps") == by_layer(32, MORE, "Q4_K", "IQ3_S")


def test_glm5_next():
    model = replace(PLAIN, architecture="glm5-next")
    shapes: Shapes = {"blk.0.attn_q_a.weight": (8, 256), "blk.0.attn_k_b.weight": (4, 8, 256)}
    types = choose(shapes, model, "Q4_K_M")
    assert types == {"blk.0.attn_k_b.weight": "F32", "blk.0.attn_q_a.weight": "Q8_0"}


_NAMES = [f"{name}.weight" for name in (*_MATRICES, "attn_qkv", "attn_norm", "ffn_gate_inp")]


@st.composite
def models(draw: st.DrawFn) -> tuple[Shapes, Model]:
    """Tensors of any widths, in any order."""
    layers = draw(st.integers(1, 12))
    columns = st.sampled_from([1, 3, 32, 96, 100, 256, 288, 512])
    names = [f"blk.{layer}.{name}" for layer in range(layers) for name in _NAMES]
    names += ["token_embd.weight", "output.weight", "output_norm.weight"]
    kept: list[str] = draw(st.lists(st.sampled_from(names), unique=True, min_size=1))
    leading = st.lists(st.integers(1, 3), max_size=2)
    shapes: Shapes = {name: (*draw(leading), draw(columns)) for name in kept}
    architecture = draw(st.sampled_from(["llama", "falcon", "qwen2"]))
    heads, experts = draw(st.integers(1, 8)), draw(st.sampled_from([0, 1, 4, 8]))
    return shapes, Model(architecture, layers, heads, draw(st.integers(0, heads)), experts)


@given(models(), st.sampled_from(sorted(FILE_TYPES)), st.booleans())
def test_rows_are_whole_blocks(drawn: tuple[Shapes, Model], file: str, imatrix: bool):
    shapes, model = drawn
    types = choose(shapes, model, file, imatrix=imatrix)
    assert types.keys() == shapes.keys()
    assert list(types) == in_order(shapes)
    for name, kind in types.items():
        assert shapes[name][-1] % TYPES[kind].block == 0, name
        if "norm" in name or "gate_inp" in name or len(shapes[name]) == 1:
            assert kind == "F32"
    again: Any = dict(reversed(list(shapes.items())))
    assert choose(again, model, file, imatrix=imatrix) == types
