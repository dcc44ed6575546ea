"""Parts of models by the names of their tensors."""

from __future__ import annotations

from remerge.validation.model_parts import in_runs, parts_by_layer, parts_by_module

NAMES = [
    "model.embed_tokens.weight",
    "lm_head.weight",
    *(
        f"model.layers.{layer}.{module}"
        for layer in range(11)
        for module in ("self_attn.q_proj.weight", "self_attn.q_proj.bias", "norm.weight")
    ),
]


def test_layers_come_in_their_order_and_what_is_in_none_by_itself():
    names = [part.name for part in parts_by_layer(NAMES)]
    assert names == [
        "lm_head",
        "model.embed_tokens",
        *(f"model.layers.{layer}" for layer in range(11)),
    ]


def test_a_module_holds_its_weight_and_its_bias():
    parts = {part.name: part.tensors for part in parts_by_module(NAMES[2:5], 24)}
    assert parts["model.layers.0.self_attn.q_proj"] == (
        "model.layers.0.self_attn.q_proj.weight",
        "model.layers.0.self_attn.q_proj.bias",
    )


def test_a_stack_of_experts_is_a_part_by_its_own_name():
    (part,) = parts_by_module(["model.layers.0.mlp.experts.gate_up_proj"], 24)
    assert part.name == "model.layers.0.mlp.experts.gate_up_proj"


def test_many_experts_are_taken_together():
    experts = [f"model.layers.0.mlp.experts.{n}.w1.weight" for n in range(128)]
    parts = parts_by_module([*experts, "model.layers.0.mlp.gate.weight"], 24)
    assert [part.name for part in parts] == [
        "model.layers.0.mlp.experts",
        "model.layers.0.mlp.gate",
    ]
    assert parts[0].tensors == tuple(experts)


def test_neighbours_are_taken_together_where_there_are_many():
    parts = parts_by_layer(NAMES)
    runs = in_runs(parts, 5)
    assert len(runs) == 5
    assert [t for run in runs for t in run.tensors] == [t for part in parts for t in part.tensors]
