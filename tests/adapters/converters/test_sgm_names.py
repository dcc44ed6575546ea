"""The original names of a U-Net's modules. The pairs are those of sd-scripts'
library/sdxl_model_util.py and diffusers' convert_ldm_unet_checkpoint, written out."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.torch import load_file

from remerge.adapters.converters.sgm_names import sgm_names

from .place import Tensors, check_merge, rand, write_adapter, write_base

RANK = 2

SDXL = {
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "label_emb.0.0": "add_embedding.linear_1",
    "label_emb.0.2": "add_embedding.linear_2",
    "input_blocks.0.0": "conv_in",
    "input_blocks.1.0.in_layers.0": "down_blocks.0.resnets.0.norm1",
    "input_blocks.2.0.in_layers.2": "down_blocks.0.resnets.1.conv1",
    "input_blocks.3.0.op": "down_blocks.0.downsamplers.0.conv",
    "input_blocks.4.0.skip_connection": "down_blocks.1.resnets.0.conv_shortcut",
    "input_blocks.4.1.proj_in": "down_blocks.1.attentions.0.proj_in",
    "input_blocks.5.1.transformer_blocks.1.attn2.to_out.0": (
        "down_blocks.1.attentions.1.transformer_blocks.1.attn2.to_out.0"
    ),
    "input_blocks.6.0.op": "down_blocks.1.downsamplers.0.conv",
    "input_blocks.8.1.transformer_blocks.9.ff.net.0.proj": (
        "down_blocks.2.attentions.1.transformer_blocks.9.ff.net.0.proj"
    ),
    "middle_block.0.out_layers.0": "mid_block.resnets.0.norm2",
    "middle_block.1.transformer_blocks.0.attn1.to_q": (
        "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    ),
    "middle_block.2.out_layers.3": "mid_block.resnets.1.conv2",
    "output_blocks.2.0.emb_layers.1": "up_blocks.0.resnets.2.time_emb_proj",
    "output_blocks.2.1.norm": "up_blocks.0.attentions.2.norm",
    "output_blocks.2.2.conv": "up_blocks.0.upsamplers.0.conv",
    "output_blocks.3.1.proj_out": "up_blocks.1.attentions.0.proj_out",
    "output_blocks.8.0.in_layers.2": "up_blocks.2.resnets.2.conv1",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
}
# Its first way up has no attention, so the upsampler comes second.
SD15 = {
    "input_blocks.2.0.in_layers.2": "down_blocks.0.resnets.1.conv1",
    "input_blocks.9.0.op": "down_blocks.2.downsamplers.0.conv",
    "input_blocks.11.0.in_layers.2": "down_blocks.3.resnets.1.conv1",
    "output_blocks.2.1.conv": "up_blocks.0.upsamplers.0.conv",
    "output_blocks.5.1.proj_in": "up_blocks.1.attentions.2.proj_in",
    "output_blocks.5.2.conv": "up_blocks.1.upsamplers.0.conv",
}


@pytest.mark.parametrize("table", [SDXL, SD15])
def test_every_module_has_its_original_name(table: dict[str, str]) -> None:
    assert sgm_names(table.values()) == table


def test_other_models_have_none() -> None:
    assert sgm_names(["conv_in", "model.layers.0.mlp.up_proj", "blocks.0.attn"]) == {}


@pytest.mark.parametrize(
    "style",
    [
        ("lora_unet_input_blocks_5_1_proj_in", "lora_down", "lora_up"),
        ("diffusion_model.input_blocks.5.1.proj_in", "lora_A", "lora_B"),
        ("lora_unet_down_blocks_1_attentions_1_proj_in", "lora_down", "lora_up"),
    ],
)
def test_a_file_with_such_names_is_merged(tmp_path: Path, style: tuple[str, str, str]) -> None:
    shapes: dict[str, tuple[int, ...]] = {f"{path}.weight": (6, 5) for path in SDXL.values()}
    target = "down_blocks.1.attentions.1.proj_in.weight"
    base = write_base(tmp_path / "base", shapes | {target: (6, 5)}, {"_class_name": "UNet"})
    (base / "model.safetensors").rename(base / "diffusion_pytorch_model.safetensors")
    stem, down, up = style
    tensors: Tensors = {
        f"{stem}.{down}.weight": rand(RANK, 5),
        f"{stem}.{up}.weight": rand(6, RANK),
    }
    adapter = write_adapter(tmp_path / "adapter", "sdxl.safetensors", tensors)
    weights = load_file(base / "diffusion_pytorch_model.safetensors")
    change = tensors[f"{stem}.{up}.weight"].double() @ tensors[f"{stem}.{down}.weight"].double()
    check_merge(base, adapter, {target: weights[target].double() + change})
