"""Names of tensors in the LoRA files of image models: kohya's, LyCORIS' and diffusers' styles.

kohya (sd-scripts networks/lora.py) writes a module's path with ``_`` for ``.`` after a prefix for
its component: ``lora_te1_text_model_..._q_proj.lora_down.weight``. diffusers keeps the dots:
``text_encoder.text_model...q_proj.lora_A.weight``, in older versions ``.lora.down.weight``,
``.lora_linear_layer.down.weight`` or ``.processor.to_q_lora.down.weight``
(diffusers/loaders/lora_conversion_utils.py, utils/state_dict_utils.py).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_FLAT = re.compile(
    r"(?P<component>lora_(?:unet|te\d?|transformer))_"
    r"(?P<module>[^.]+)\.(?P<part>.+)"
)
_DOTTED = re.compile(
    r"(?P<component>unet|transformer(?:_2)?|text_encoder(?:_\d)?|prior|diffusion_model)\."
    r"(?P<rest>.+)"
)
_PROCESSOR = re.compile(
    r"(?P<module>.+)\.processor\.(?P<layer>to_q|to_k|to_v|to_out)_lora\.(?P<part>.+)"
)
_PARTS: dict[str, str] = {
    "alpha": "alpha",
    "dora_scale": "magnitude",
    "lora_magnitude_vector": "magnitude",
    "lora_magnitude_vector.weight": "magnitude",
    **dict.fromkeys(
        ("lora_down.weight", "lora.down.weight", "lora_linear_layer.down.weight", "lora_A.weight"),
        "A",
    ),
    **dict.fromkeys(
        ("lora_up.weight", "lora.up.weight", "lora_linear_layer.up.weight", "lora_B.weight"),
        "B",
    ),
    **{
        name: name
        for name in (
            *(f"hada_{n}" for n in ("w1_a", "w1_b", "w2_a", "w2_b", "t1", "t2")),
            *(f"lokr_{n}" for n in ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b", "t2")),
        )
    },
}
# Longest first: an ending may be the end of another.
_ENDINGS = sorted(_PARTS, key=len, reverse=True)


@dataclass(frozen=True)
class DiffusionKey:
    """What a name says: the component, the module in it and the part of its change.

    ``flat`` says that the module's dots were written as ``_``. ``part`` is ``A``, ``B``, ``alpha``,
    ``magnitude``, one of LyCORIS' names, or what the file says where that is not known.
    """

    component: str
    module: str
    part: str
    flat: bool

    @property
    def known(self) -> bool:
        return self.part in _PARTS.values()


def read_key(name: str) -> DiffusionKey | None:
    """Take a tensor's name apart; None for one of neither style."""
    flat = _FLAT.fullmatch(name)
    if flat is not None:
        part = _PARTS.get(flat["part"], flat["part"])
        return DiffusionKey(flat["component"], flat["module"], part, True)
    dotted = _DOTTED.fullmatch(name)
    if dotted is None:
        return None
    rest = dotted["rest"]
    processor = _PROCESSOR.fullmatch(rest)
    if processor is not None:
        layer = "to_out.0" if processor["layer"] == "to_out" else processor["layer"]
        rest = f"{processor['module']}.{layer}.lora.{processor['part']}"
    for ending in _ENDINGS:
        if rest.endswith(f".{ending}"):
            module = rest.removesuffix(f".{ending}")
            return DiffusionKey(dotted["component"], module, _PARTS[ending], False)
    module, _, part = rest.rpartition(".")
    return DiffusionKey(dotted["component"], module, part, False)
