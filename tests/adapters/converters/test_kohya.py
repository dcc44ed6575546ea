"""LoRA files of image models. The oracle is sd-scripts' and LyCORIS' formulas in torch; where names
of a U-Net are meant, a module of the same layers stands for it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.functional import conv2d

from remerge.adapters.adapter import open_adapter
from remerge.errors import BadInput, Unsupported
from tests.adapters.lora.oracle import Base, ModuleNames, applied, families

from .place import Tensors, check_merge, plan, rand, write_adapter, write_base

RANK, ALPHA = 3, 2.0


# --- a text encoder in transformers' layout ------------------------------------------------------

LAYER = {
    "self_attn.q_proj": (16, 16),
    "self_attn.k_proj": (16, 16),
    "self_attn.v_proj": (16, 16),
    "self_attn.out_proj": (16, 16),
    "mlp.fc1": (24, 16),
    "mlp.fc2": (16, 24),
}


def _clip(path: Path, prefix: str = "text_model.") -> Path:
    from transformers import CLIPTextConfig

    sizes: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 24, "vocab_size": 30}
    config = CLIPTextConfig(
        **sizes, num_hidden_layers=2, num_attention_heads=2, max_position_embeddings=8
    )
    shapes: dict[str, tuple[int, ...]] = {
        f"{prefix}embeddings.token_embedding.weight": (30, 16),
        f"{prefix}embeddings.position_embedding.weight": (8, 16),
        f"{prefix}final_layer_norm.weight": (16,),
        f"{prefix}final_layer_norm.bias": (16,),
    }
    for layer in range(2):
        stem = f"{prefix}encoder.layers.{layer}"
        for module, (rows, cols) in LAYER.items():
            shapes |= {f"{stem}.{module}.weight": (rows, cols), f"{stem}.{module}.bias": (rows,)}
        for norm in ("layer_norm1", "layer_norm2"):
            shapes |= {f"{stem}.{norm}.weight": (16,), f"{stem}.{norm}.bias": (16,)}
    document = {
        **config.to_dict(),
        "architectures": ["CLIPTextModel"],
        "model_type": "clip_text_model",
    }
    return write_base(path, shapes, document)


def _modules() -> dict[str, tuple[int, int]]:
    return {f"encoder.layers.{n}.{m}": s for n in range(2) for m, s in LAYER.items()}


def _text(style: str, *, alpha: float | None, component: str = "lora_te1") -> tuple[Tensors, Any]:
    """Tensors for every layer in a style, and the change of each module."""
    tensors: Tensors = {}
    changes: Tensors = {}
    for seed, (module, (rows, cols)) in enumerate(_modules().items()):
        rank = RANK + seed % 2
        down, up = rand(rank, cols, seed=seed), rand(rows, rank, seed=seed)
        flat = f"{component}_text_model_{module.replace('.', '_')}"
        dotted = f"text_encoder.text_model.{module}"
        names = {
            "kohya": (f"{flat}.lora_down.weight", f"{flat}.lora_up.weight", f"{flat}.alpha"),
            "peft": (f"{dotted}.lora_A.weight", f"{dotted}.lora_B.weight", f"{dotted}.alpha"),
            "old": (
                f"{dotted}.lora_linear_layer.down.weight",
                f"{dotted}.lora_linear_layer.up.weight",
                f"{dotted}.alpha",
            ),
        }[style]
        tensors |= {names[0]: down, names[1]: up}
        own = alpha
        if alpha is not None:
            own = alpha + seed % 3
            tensors[names[2]] = torch.tensor(own)
        changes[module] = (own if own is not None else rank) / rank * (up.double() @ down.double())
    return tensors, changes


def _check_text(base: Path, adapter: Path, changes: Tensors, prefix: str = "text_model.") -> None:
    weights = load_file(base / "model.safetensors")
    expected = {
        f"{prefix}{m}.weight": weights[f"{prefix}{m}.weight"].double() + change
        for m, change in changes.items()
    }
    check_merge(base, adapter, expected)


@pytest.mark.parametrize("prefix", ["text_model.", ""])
@pytest.mark.parametrize("alpha", [ALPHA, None])
@pytest.mark.parametrize("style", ["kohya", "peft", "old"])
def test_a_text_encoder_in_every_style(
    tmp_path: Path, style: str, alpha: float | None, prefix: str
) -> None:
    base = _clip(tmp_path / "base", prefix)
    tensors, changes = _text(style, alpha=alpha)
    adapter = write_adapter(tmp_path / "adapter", "some_lora.safetensors", tensors)
    _check_text(base, adapter, changes, prefix)


def test_only_the_base_s_component_is_used_and_the_rest_named(tmp_path: Path) -> None:
    base = _clip(tmp_path / "base")
    tensors, changes = _text("kohya", alpha=ALPHA)
    tensors |= {
        "lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight": rand(RANK, 8, 1, 1),
        "lora_te2_text_model_encoder_layers_9_mlp_fc1.lora_up.weight": rand(9, RANK),
        "lora_te2_text_model_encoder_layers_9_mlp_fc1.lora_down.weight": rand(RANK, 5),
    }
    adapter = write_adapter(tmp_path / "adapter", "x.safetensors", tensors)
    opened = open_adapter(adapter)
    assert opened.trainer == "kohya or diffusers"
    from remerge.sources.checkpoint import open_checkpoint

    note = opened.for_base(open_checkpoint(base)).notes[0]
    assert "1 of lora_unet" in note
    assert "2 of lora_te2" in note
    _check_text(base, adapter, changes)


def test_the_alpha_that_diffusers_states(tmp_path: Path) -> None:
    base = _clip(tmp_path / "base")
    tensors, changes = _text("peft", alpha=None)
    stated = {
        "text_encoder.lora_alpha": 7,
        "text_encoder.alpha_pattern": {"fc1": 5.0},
        "unet.lora_alpha": 99,
    }
    for module in changes:
        rank = tensors[f"text_encoder.text_model.{module}.lora_A.weight"].shape[0]
        changes[module] = changes[module] * (5.0 if module.endswith("fc1") else 7.0) / rank
    path = tmp_path / "adapter"
    path.mkdir()
    values = {n: t.contiguous() for n, t in tensors.items()}
    metadata = {"format": "pt", "lora_adapter_metadata": json.dumps(stated)}
    save_file(values, path / "pytorch_lora_weights.safetensors", metadata=metadata)
    _check_text(base, path, changes)


# --- a U-Net, by its layers ----------------------------------------------------------------------


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.to_q = nn.Linear(6, 8)
        self.to_out = nn.ModuleList([nn.Linear(8, 6)])


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(4, 6, 3)
        self.proj_in = nn.Conv2d(6, 5, 1)
        self.attn1 = Attention()


class UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.down_blocks = nn.ModuleList([Block()])


def _merged(tmp_path: Path, tensors: Tensors) -> tuple[Tensors, Tensors]:
    module = UNet()
    base = Base({n: v.clone() for n, v in module.state_dict().items()}, {"_class_name": "UNet"})
    opened = open_adapter(write_adapter(tmp_path / "a", "x.safetensors", tensors)).for_base(base)
    return base.values, applied(base, families.changes(opened, base, ModuleNames(module)))


def _same(ours: torch.Tensor, wanted: torch.Tensor) -> None:
    torch.testing.assert_close(ours, wanted.float(), rtol=1e-6, atol=1e-6)


def test_convolutions_compose(tmp_path: Path) -> None:
    """sd-scripts networks/lora.py, merge_to: 3x3 by conv2d, 1x1 by a product."""
    wide, up = rand(RANK, 4, 3, 3), rand(6, RANK, 1, 1)
    point, point_up = rand(RANK, 6, 1, 1), rand(5, RANK, 1, 1)
    flat, flat_up = rand(RANK, 6, 1, 1), rand(8, RANK, 1, 1)
    stem = "lora_unet_down_blocks_0"
    weights, ours = _merged(
        tmp_path,
        {
            f"{stem}_conv1.lora_down.weight": wide,
            f"{stem}_conv1.lora_up.weight": up,
            f"{stem}_conv1.alpha": torch.tensor(ALPHA),
            f"{stem}_proj_in.lora_down.weight": point[:, :, 0, 0],
            f"{stem}_proj_in.lora_up.weight": point_up[:, :, 0, 0],
            f"{stem}_attn1_to_q.lora_down.weight": flat,
            f"{stem}_attn1_to_q.lora_up.weight": flat_up,
        },
    )
    scale = ALPHA / RANK
    change = conv2d(wide.permute(1, 0, 2, 3), up).permute(1, 0, 2, 3) * scale
    _same(ours["down_blocks.0.conv1.weight"], weights["down_blocks.0.conv1.weight"] + change)
    change = (point_up[:, :, 0, 0] @ point[:, :, 0, 0])[:, :, None, None]
    _same(ours["down_blocks.0.proj_in.weight"], weights["down_blocks.0.proj_in.weight"] + change)
    change = flat_up[:, :, 0, 0] @ flat[:, :, 0, 0]
    name = "down_blocks.0.attn1.to_q.weight"
    _same(ours[name], weights[name] + change)


def test_attention_processors_of_old_diffusers(tmp_path: Path) -> None:
    stem = "unet.down_blocks.0.attn1.processor"
    tensors = {
        f"{stem}.to_q_lora.down.weight": rand(RANK, 6),
        f"{stem}.to_q_lora.up.weight": rand(8, RANK),
        f"{stem}.to_out_lora.down.weight": rand(RANK, 8),
        f"{stem}.to_out_lora.up.weight": rand(6, RANK),
    }
    weights, ours = _merged(tmp_path, tensors)
    for name, layer in (("to_q", "to_q"), ("to_out.0", "to_out")):
        full = f"down_blocks.0.attn1.{name}.weight"
        up, down = (tensors[f"{stem}.{layer}_lora.{part}.weight"] for part in ("up", "down"))
        _same(ours[full], weights[full] + up @ down)


@pytest.mark.parametrize("layer", ["attn1_to_q", "conv1"])
def test_dora_by_rows(tmp_path: Path, layer: str) -> None:
    """LyCORIS' apply_weight_decompose with wd_on_output: one magnitude for each output."""
    name = f"down_blocks.0.{layer.replace('attn1_', 'attn1.')}.weight"
    shape = tuple(UNet().state_dict()[name].shape)
    ones = (1,) * (len(shape) - 2)
    down, up = rand(RANK, *shape[1:]), rand(shape[0], RANK, *ones)
    m = rand(shape[0], 1, *ones).abs()
    stem = f"lora_unet_down_blocks_0_{layer}"
    weights, ours = _merged(
        tmp_path,
        {
            f"{stem}.lora_down.weight": down,
            f"{stem}.lora_up.weight": up,
            f"{stem}.alpha": torch.tensor(ALPHA),
            f"{stem}.dora_scale": m,
        },
    )
    product = up.flatten(1) @ down.flatten(1)
    adapted = weights[name].double() + (ALPHA / RANK * product).reshape(shape)
    norm = adapted.flatten(1).norm(dim=1).reshape(m.shape)
    _same(ours[name], m * adapted / norm)


def test_lycoris_is_peft_s_loha_and_lokr(tmp_path: Path) -> None:
    """LyCORIS modules/loha.py and modules/lokr.py, get_weight."""
    stem, name = "lora_unet_down_blocks_0_attn1_to_q", "down_blocks.0.attn1.to_q.weight"
    a1, b1, a2, b2 = rand(8, RANK), rand(RANK, 6), rand(8, RANK, seed=1), rand(RANK, 6, seed=1)
    factors = {"w1_a": a1, "w1_b": b1, "w2_a": a2, "w2_b": b2}
    loha = {f"{stem}.hada_{n}": t for n, t in factors.items()}
    weights, ours = _merged(tmp_path / "1", {**loha, f"{stem}.alpha": torch.tensor(ALPHA)})
    _same(ours[name], weights[name] + ALPHA / RANK * (a1 @ b1) * (a2 @ b2))

    w1, wa, wb = rand(2, 3), rand(4, RANK), rand(RANK, 2)
    lokr = {f"{stem}.lokr_w1": w1, f"{stem}.lokr_w2_a": wa, f"{stem}.lokr_w2_b": wb}
    weights, ours = _merged(tmp_path / "2", {**lokr, f"{stem}.alpha": torch.tensor(ALPHA)})
    _same(ours[name], weights[name] + torch.kron(w1, wa @ wb) * ALPHA / RANK)

    # With both factors whole LyCORIS knows no rank, and its scale is 1.
    w2 = rand(4, 2)
    weights, ours = _merged(tmp_path / "3", {f"{stem}.lokr_w1": w1, f"{stem}.lokr_w2": w2})
    _same(ours[name], weights[name] + torch.kron(w1, w2))


# --- what is refused -----------------------------------------------------------------------------

_Q = "lora_unet_down_blocks_0_attn1_to_q"
_PAIR = {f"{_Q}.lora_down.weight": rand(RANK, 6), f"{_Q}.lora_up.weight": rand(8, RANK)}


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        ({f"{_Q}s.lora_up.weight": rand(8, RANK)}, r"to_qs\.lora_up.*no module"),
        ({f"{_Q}.lora_up.weight": rand(9, RANK)}, "9 outputs"),
        ({f"{_Q}.lora_up.weight": rand(8, RANK + 1)}, "no factors of one rank"),
        ({f"{_Q}.lora_down.weight": rand(6)}, "no factors of one rank"),
        ({f"{_Q}.lora_down.weight": rand(0, 6)}, "no factors of one rank"),
        ({f"{_Q}.alpha": rand(2)}, "one number"),
        ({f"{_Q}.alpha": torch.tensor(float("nan"))}, "finite number"),
        ({f"{_Q}.lora_mid.weight": rand(RANK, RANK, 3, 3)}, "lora_mid.*not known"),
        ({f"{_Q}.dora_scale": rand(1, 6)}, "columns"),
        ({f"{_Q}.hada_w1_a": rand(8, RANK)}, "mixes kinds"),
        ({"unet.down_blocks.0.attn1.to_q.lora_A.weight": rand(RANK, 6)}, "could be any of"),
        ({"lora_unet_down_blocks_0_attn1_to_out_0.lora_up.weight": rand(6, RANK)}, "no pair"),
        ({"model.something.weight": rand(2)}, "no component"),
    ],
)
def test_what_has_no_one_place(tmp_path: Path, tensors: Tensors, said: str) -> None:
    with pytest.raises(BadInput, match=said):
        _merged(tmp_path, {**_PAIR, **tensors})


def test_a_flattened_name_with_two_meanings(tmp_path: Path) -> None:
    base = Base({"a.b_c.weight": rand(8, 6), "a_b.c.weight": rand(8, 6)})
    tensors = {"lora_unet_a_b_c.lora_down.weight": rand(2, 6)}
    opened = open_adapter(write_adapter(tmp_path / "a", "x.safetensors", tensors))
    with pytest.raises(BadInput, match=r"a\.b_c or a_b\.c"):
        opened.for_base(base)


def test_another_base(tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "a", "x.safetensors", _PAIR)
    with pytest.raises(BadInput, match="have no place in the base"):
        plan(_clip(tmp_path / "base"), adapter)


def test_columns_scaled_by_dora_are_refused_on_square_layers_too(tmp_path: Path) -> None:
    base = Base({"a.weight": rand(6, 6)})
    tensors = {
        "lora_unet_a.lora_down.weight": rand(2, 6),
        "lora_unet_a.lora_up.weight": rand(6, 2),
        "lora_unet_a.dora_scale": rand(1, 6),
    }
    opened = open_adapter(write_adapter(tmp_path / "a", "x.safetensors", tensors))
    with pytest.raises(Unsupported, match="columns"):
        opened.for_base(base)


@pytest.mark.parametrize("metadata", ["[", "[1]", '{"unet.lora_alpha": "x"}'])
def test_metadata_of_strangers(tmp_path: Path, metadata: str) -> None:
    (tmp_path / "a").mkdir()
    values = {
        "unet.a.lora_A.weight": rand(2, 6),
        "unet.a.lora_B.weight": rand(6, 2),
    }
    file = tmp_path / "a" / "pytorch_lora_weights.safetensors"
    save_file(values, file, metadata={"lora_adapter_metadata": metadata})
    with pytest.raises(BadInput, match=r"metadata|lora_alpha"):
        open_adapter(tmp_path / "a").for_base(Base({"a.weight": rand(6, 6)}))


def test_other_directories_are_not_taken_for_lora_files(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadInput, match=r"no adapter_config\.json"):
        open_adapter(tmp_path / "empty")
    with pytest.raises(BadInput, match=r"no adapter_config\.json"):
        open_adapter(write_adapter(tmp_path / "x", "m.safetensors", {"model.w": rand(2)}))


def test_a_layer_s_rank_is_not_that_of_a_path_it_ends(tmp_path: Path) -> None:
    base = Base({"b.c.weight": rand(6, 6), "a.b.c.weight": rand(6, 6), "d.weight": rand(6, 6)})
    tensors: Tensors = {}
    for module, rank in (("b_c", 2), ("a_b_c", 3), ("d", 3)):
        tensors[f"lora_unet_{module}.lora_down.weight"] = rand(rank, 6)
        tensors[f"lora_unet_{module}.lora_up.weight"] = rand(6, rank)
    opened = open_adapter(write_adapter(tmp_path / "a", "x.safetensors", tensors)).for_base(base)
    module = nn.Module()
    module.a, module.b, module.d = nn.Module(), nn.Module(), nn.Linear(6, 6, bias=False)
    module.a.b, module.b.c = nn.Module(), nn.Linear(6, 6, bias=False)
    module.a.b.c = nn.Linear(6, 6, bias=False)
    ours = applied(base, families.changes(opened, base, ModuleNames(module)))
    for name, flat in (("b.c", "b_c"), ("a.b.c", "a_b_c")):
        up, down = (tensors[f"lora_unet_{flat}.lora_{part}.weight"] for part in ("up", "down"))
        _same(ours[f"{name}.weight"], base.values[f"{name}.weight"] + up @ down)
