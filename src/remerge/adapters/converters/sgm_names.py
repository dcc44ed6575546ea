"""The names that Stability AI's own code gives the modules of a U-Net that diffusers has renamed.

LoRA files of Stable Diffusion XL mostly use them: kohya's sd-scripts trains that U-Net
(``lora_unet_input_blocks_4_1_...``). The table is sd-scripts' library/sdxl_model_util.py,
make_unet_conversion_map, and diffusers' loaders/single_file_utils.py, convert_ldm_unet_checkpoint.
"""

from __future__ import annotations

import re
from collections.abc import Collection

_FIXED = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_LAYER = re.compile(
    r"(?P<side>down_blocks\.(?P<down>\d+)|mid_block|up_blocks\.(?P<up>\d+))\."
    r"(?P<kind>resnets|attentions|downsamplers|upsamplers)\.(?P<layer>\d+)\.(?P<inner>.+)"
)


def sgm_names(paths: Collection[str]) -> dict[str, str]:
    """The paths of a diffusers U-Net's modules by their original names; empty for other models."""
    found = [match for path in paths if (match := _LAYER.fullmatch(path))]
    layers = {int(m["layer"]) for m in found if m["down"] == "0" and m["kind"] == "resnets"}
    if not layers:
        return {}
    attending = {m["side"] for m in found if m["kind"] == "attentions"}
    each = max(layers) + 2
    names = {_original(match, each, match["side"] in attending): match[0] for match in found}
    return names | {name: path for path, name in _FIXED.items() if path in paths}


def _original(match: re.Match[str], each: int, attends: bool) -> str:
    """The blocks are numbered through: on either way ``each`` of them for one of diffusers'."""
    kind, layer, inner = match["kind"], int(match["layer"]), match["inner"]
    if kind == "resnets":
        inner = _RESNET.get(inner, inner)
    if match["down"] is not None:
        # The first block is the convolution on the input.
        first = int(match["down"]) * each + 1
        if kind == "downsamplers":
            return f"input_blocks.{first + each - 1}.0.{'op' if inner == 'conv' else inner}"
        return f"input_blocks.{first + layer}.{int(kind == 'attentions')}.{inner}"
    if match["up"] is not None:
        first = int(match["up"]) * each
        if kind == "upsamplers":
            return f"output_blocks.{first + each - 1}.{1 + attends}.{inner}"
        return f"output_blocks.{first + layer}.{int(kind == 'attentions')}.{inner}"
    return f"middle_block.{2 * layer + int(kind == 'attentions')}.{inner}"
