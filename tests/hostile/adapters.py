"""Adapters that cannot give a right result, or try to do something else (catalogue 55-66)."""

from __future__ import annotations

import pickle

import numpy as np

from .checkpoints import Payload
from .place import (
    A0,
    B0,
    HIDDEN,
    RANK,
    TARGET,
    Place,
    case,
    edit_header,
    edit_json,
    edit_tensors,
    lora_key,
    write_json,
    write_safetensors,
    zeros,
)

CONFIG = r"adapter_config\.json"

# --- the configuration ---------------------------------------------------------------------------


@case(CONFIG)
def adapter_config_is_missing(place: Place):
    place.lora_config.unlink()


@case(CONFIG + ".*not valid JSON")
def adapter_config_is_not_json(place: Place):
    place.lora_config.write_text("r: 8")


@case(CONFIG + ".*list")
def adapter_config_is_a_list(place: Place):
    write_json(place.lora_config, [])


@case("peft_type.*MAGIC|MAGIC.*peft_type|MAGIC")
def peft_type_is_unknown(place: Place):
    edit_json(place.lora_config, peft_type="MAGIC")


@case("peft_type")
def peft_type_is_missing(place: Place):
    edit_json(place.lora_config, peft_type=...)


@case(r"\br\b|rank")
def rank_is_zero(place: Place):
    edit_json(place.lora_config, r=0)


@case(r"\br\b|rank")
def rank_is_negative(place: Place):
    edit_json(place.lora_config, r=-4)


@case(r"\br\b|rank")
def rank_is_text(place: Place):
    edit_json(place.lora_config, r="4")


@case(r"\br\b|rank")
def rank_is_true(place: Place):
    edit_json(place.lora_config, r=True)


@case(r"\br\b|rank")
def rank_is_not_that_of_the_tensors(place: Place):
    edit_json(place.lora_config, r=2 * RANK)


@case("lora_alpha|NaN")
def alpha_is_nan(place: Place):
    edit_json(place.lora_config, lora_alpha=float("nan"))


@case("lora_alpha|Infinity|inf")
def alpha_is_infinite(place: Place):
    edit_json(place.lora_config, lora_alpha=float("inf"))


@case("lora_alpha")
def alpha_is_null(place: Place):
    edit_json(place.lora_config, lora_alpha=None)


@case("lora_alpha")
def alpha_is_text(place: Place):
    edit_json(place.lora_config, lora_alpha="16")


@case("rank_pattern")
def rank_pattern_is_no_expression(place: Place):
    edit_json(place.lora_config, rank_pattern={"q_proj[": 8})


# Matching it against a module's name takes two to the power of its length.
ENDLESS = r"([a-z_.0-9]+)+!"


@case("rank_pattern|^$", exits=(0, 3))
def rank_pattern_never_ends(place: Place):
    edit_json(place.lora_config, rank_pattern={ENDLESS: 8})


@case("alpha_pattern|^$", exits=(0, 3))
def alpha_pattern_never_ends(place: Place):
    edit_json(place.lora_config, alpha_pattern={ENDLESS: 8})


@case("target_modules|^$", exits=(0, 3))
def target_modules_never_ends(place: Place):
    edit_json(place.lora_config, target_modules=ENDLESS)


@case("rank_pattern")
def rank_pattern_is_a_list(place: Place):
    edit_json(place.lora_config, rank_pattern=["q_proj"])


@case("alpha_pattern")
def alpha_pattern_holds_text(place: Place):
    edit_json(place.lora_config, alpha_pattern={"q_proj": "16"})


@case("DoRA|use_dora|magnitude")
def dora_without_magnitudes(place: Place):
    edit_json(place.lora_config, use_dora=True)


@case("", exits=0)
def config_names_modules_to_import(place: Place):
    library = {"base_model_class": "system", "parent_library": "os"}
    edit_json(place.lora_config, auto_mapping=library, megatron_core="antigravity")


ALONE = ("merge", "{adapter}", "-o", "{out}")


@case("which base|BASE", *ALONE)
def config_names_no_base(place: Place):
    pass


@case("base_model_name_or_path|which base|BASE", *ALONE)
def config_names_a_base_that_is_no_text(place: Place):
    edit_json(place.lora_config, base_model_name_or_path={"path": "/"})


@case(r"/etc.*config\.json", *ALONE)
def config_names_a_system_folder_as_base(place: Place):
    edit_json(place.lora_config, base_model_name_or_path="/etc")


@case("neither", *ALONE)
def config_names_a_base_that_climbs(place: Place):
    edit_json(place.lora_config, base_model_name_or_path="org/../../../secret")


@case("revision|branch", *ALONE)
def config_names_a_revision_that_climbs(place: Place):
    edit_json(place.lora_config, base_model_name_or_path="org/name", revision="../../../secret")


# --- the tensors ---------------------------------------------------------------------------------


@case("adapter_model")
def adapter_weights_are_missing(place: Place):
    place.lora.unlink()


@case("adapter_model.*git-lfs pointer")
def adapter_weights_are_an_lfs_pointer(place: Place):
    place.lora.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")


@case("holds no tensor")
def adapter_has_no_tensors(place: Place):
    write_safetensors(place.lora, {})


def _value(place: Place, value: float) -> None:
    tensor = zeros(RANK, HIDDEN)
    tensor[1, 2] = value
    edit_tensors(place.lora, **{A0: tensor})


@case(r"q_proj.*(NaN|nan|finite)")
def a_value_is_nan(place: Place):
    _value(place, np.nan)


@case(r"q_proj.*(inf|Inf|finite)")
def a_value_is_infinite(place: Place):
    _value(place, -np.inf)


@case(rf"q_proj.*{HIDDEN}")
def a_is_too_wide(place: Place):
    edit_tensors(place.lora, **{A0: zeros(RANK, HIDDEN + 1)})


@case(rf"q_proj.*{HIDDEN}")
def b_is_too_high(place: Place):
    edit_tensors(place.lora, **{B0: zeros(HIDDEN + 1, RANK)})


@case("q_proj.*(rank|shape|3)")
def a_and_b_have_other_ranks(place: Place):
    edit_tensors(place.lora, **{B0: zeros(HIDDEN, 3)})


@case("q_proj")
def factors_are_transposed(place: Place):
    edit_tensors(place.lora, **{A0: zeros(HIDDEN, RANK), B0: zeros(RANK, HIDDEN)})


@case("q_proj.*lora_[AB]")
def b_is_missing(place: Place):
    edit_tensors(place.lora, **{B0: None})


@case("q_proj.*lora_[AB]")
def a_is_missing(place: Place):
    edit_tensors(place.lora, **{A0: None})


@case("base_model.model.secret")
def a_tensor_is_of_no_known_kind(place: Place):
    edit_tensors(place.lora, **{"base_model.model.secret": zeros(3)})


@case("q_proj.*lora_magnitude_vector")
def magnitudes_without_dora(place: Place):
    key = A0.replace("lora_A.weight", "lora_magnitude_vector")
    edit_tensors(place.lora, **{key: zeros(HIDDEN)})


@case("layers.7|layers\\.7")
def a_layer_is_not_in_the_base(place: Place):
    more = {lora_key(7, "q_proj", "A"): zeros(RANK, HIDDEN)}
    edit_tensors(place.lora, **more, **{lora_key(7, "q_proj", "B"): zeros(HIDDEN, RANK)})


@case("transformer.h|base")
def no_key_matches(place: Place):
    def rename(header):
        for name in list(header):
            header[name.replace("model.layers", "transformer.h")] = header.pop(name)

    edit_header(place.lora, rename)


@case(rf"q_proj.*{HIDDEN}")
def the_base_is_of_another_size(place: Place):
    sides = {"A": zeros(RANK, 24), "B": zeros(24, RANK)}
    modules = [(n, m) for n in (0, 1) for m in ("q_proj", "v_proj")]
    edit_tensors(place.lora, **{lora_key(n, m, s): t for n, m in modules for s, t in sides.items()})


@case("q_proj")
def a_tensor_is_empty(place: Place):
    edit_tensors(place.lora, **{A0: zeros(0)})


@case("q_proj")
def the_rank_is_empty(place: Place):
    edit_tensors(place.lora, **{A0: zeros(0, HIDDEN), B0: zeros(HIDDEN, 0)})


@case("q_proj.*(C64|dtype|complex)")
def a_tensor_is_complex(place: Place):
    edit_tensors(place.lora, **{A0: zeros(RANK, HIDDEN, dtype="c8")})


@case("q_proj")
def two_spellings_of_one_key(place: Place):
    key = A0.replace("lora_A.weight", "lora_A.default.weight")
    edit_tensors(place.lora, **{key: zeros(RANK, HIDDEN)})


@case("norm")
def a_saved_module_has_another_shape(place: Place):
    edit_json(place.lora_config, modules_to_save=["norm"])
    key = "base_model.model.model.norm.modules_to_save.weight"
    edit_tensors(place.lora, **{key: zeros(HIDDEN + 1)})


FLOAT16 = ("merge", "{base}", "{adapter}", "-o", "{out}", "--dtype", "float16")


@case(rf"{TARGET}.*(float16|F16|overflow|finite)", *FLOAT16)
def the_result_overflows_the_dtype(place: Place):
    a, b = zeros(RANK, HIDDEN), zeros(HIDDEN, RANK)
    a[0, 0], b[0, 0] = 300.0, 300.0
    edit_tensors(place.lora, **{A0: a, B0: b})


@case(r"model\.norm\.weight.*(float16|F16|overflow|finite)", *FLOAT16)
def an_untouched_tensor_overflows_the_dtype(place: Place):
    edit_tensors(place.shard, **{"model.norm.weight": np.full(HIDDEN, 1e5, "f4")})


@case("adapter_model.*(pickle|not|unsafe|refuse|load)")
def adapter_is_a_pickle_with_a_payload(place: Place):
    place.lora.unlink()
    (place.adapter / "adapter_model.bin").write_bytes(pickle.dumps(Payload(place)))


@case("adapter_model.*(pickle|not|unsafe|refuse|load)")
def adapter_is_a_torch_archive_with_a_payload(place: Place):
    import torch

    place.lora.unlink()
    torch.save({A0: Payload(place)}, place.adapter / "adapter_model.bin")


def _merged(place: Place) -> None:
    assert (place.out / "config.json").exists()


@case("", exits=0, check=_merged)
def a_pickle_beside_the_safetensors_is_not_read(place: Place):
    (place.adapter / "adapter_model.bin").write_bytes(pickle.dumps(Payload(place)))
