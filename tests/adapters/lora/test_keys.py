"""Names of adapter tensors: the module they mean, and what part of it they are."""

from __future__ import annotations

import pytest

from remerge.adapters.keys import sort_keys
from remerge.adapters.lora.keys import layer_key

P = "base_model.model."


@pytest.mark.parametrize(
    ("key", "module", "depth", "inner", "part"),
    [
        (f"{P}a.b.lora_A.weight", "a.b", 0, False, "A"),
        (f"{P}a.b.lora_A.default.weight", "a.b", 0, False, "A"),
        ("a.b.lora_B.weight", "a.b", 0, False, "B"),
        (f"{P}a.lora_B.bias", "a", 0, False, "B.bias"),
        (f"{P}a.lora_B.mine.bias", "a", 0, False, "B.bias"),
        (f"{P}a.lora_embedding_A", "a", 0, False, "embedding_A"),
        (f"{P}a.lora_embedding_B.default", "a", 0, False, "embedding_B"),
        (f"{P}a.lora_magnitude_vector", "a", 0, False, "magnitude_vector"),
        (f"{P}a.lora_magnitude_vector.weight", "a", 0, False, "magnitude_vector"),
        (f"{P}a.lora_magnitude_vector.default.weight", "a", 0, False, "magnitude_vector"),
        (f"{P}a.base_layer.base_layer.lora_A.weight", "a", 2, False, "A"),
        (f"{P}a.base_layer.out_proj.lora_A.weight", "a.out_proj", 0, True, "A"),
        (f"{P}_orig_mod.a._checkpoint_wrapped_module.b.lora_A.weight", "a.b", 0, False, "A"),
    ],
)
def test_layers(key: str, module: str, depth: int, inner: bool, part: str) -> None:
    (parts,) = sort_keys([key], layer_key).layers
    assert (parts.module, parts.depth, parts.inner) == (module, depth, inner)
    assert parts.tensors == {part: key}


@pytest.mark.parametrize(
    ("key", "parameter"),
    [
        (f"{P}norm.weight", "norm.weight"),
        (f"{P}q.base_layer.bias", "q.bias"),
        (f"{P}e.token_adapter.base_layer.weight", "e.weight"),
        (f"{P}score.modules_to_save.default.weight", "score.weight"),
        (f"{P}score.modules_to_save.dense.weight", "score.dense.weight"),
        (f"{P}a.lora_A.too.many.names.weight", "a.lora_A.too.many.names.weight"),
        (f"{P}a.lora_E", "a.lora_E"),
    ],
)
def test_whole_parameters(key: str, parameter: str) -> None:
    assert sort_keys([key], layer_key).parameters == {parameter: key}


def test_copies_beside_the_parameter_itself_are_idle() -> None:
    names = [f"{P}s.weight", f"{P}s.modules_to_save.weight", f"{P}s.original_module.weight"]
    keys = sort_keys(names, layer_key)
    assert keys.parameters == {"s.weight": names[0]}
    assert sorted(keys.idle) == sorted(names[1:])


def test_every_name_lands_in_one_place() -> None:
    names = [
        f"{P}a.lora_A.weight",
        f"{P}a.lora_A.default.weight",
        "a.lora_A.weight",
        f"{P}e.token_adapter.trainable_tokens_delta",
        f"{P}e.token_adapter.trainable_tokens_original.default",
        f"{P}n.num_batches_tracked",
    ]
    keys = sort_keys(names, layer_key)
    assert len(keys.twice) == 2
    assert keys.tokens == {"e": names[3]}
    assert sorted(keys.idle) == sorted(names[4:])
    placed = [name for parts in keys.layers for name in parts.tensors.values()]
    assert sorted([*placed, *keys.twice, *keys.tokens.values(), *keys.idle]) == sorted(names)
