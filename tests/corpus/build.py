"""Build a case on disk: base, adapter as PEFT saves it, and the adapter as remerge gets it."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import peft
import torch
import transformers
from safetensors.torch import load_file, save_file

from tests.corpus import arch_other, arch_text  # noqa: F401  (they fill ARCHS)
from tests.corpus.architectures import ARCHS
from tests.corpus.case import Built, Case, Hand, read_checkpoint

DTYPES: dict[str, torch.dtype] = {
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float32": torch.float32,
}
ADAPTER_FILE = "adapter_model.safetensors"
BASE_NAME = "remerge-tests/tiny"

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()


def model_class(case: Case, *, adapter: bool = False) -> Any:
    name = (case.adapter_class if adapter else None) or ARCHS[case.arch].cls
    return getattr(transformers, name)


def load_base(case: Case, base: Path, dtype: torch.dtype) -> Any:
    """The base in the class and vocabulary that the adapter was trained on."""
    torch.manual_seed(case.seed)
    model = model_class(case, adapter=True).from_pretrained(base, dtype=dtype)
    if case.resize is not None:
        model.resize_token_embeddings(case.resize, mean_resizing=False)
    return model.eval()


def build(case: Case, root: Path) -> Built:
    """Everything a case needs, deterministically, below ``root``."""
    torch.set_num_threads(1)
    built = Built(case, root)
    build_base(case, built.base)
    saved = root / "adapter_as_saved"
    if case.hand is None:
        build_adapter(case, built.base, saved)
    else:
        write_by_hand(case, case.hand, built.base, saved)
    shutil.copytree(saved, built.adapter)
    if case.edit_adapter is not None:
        case.edit_adapter(built.adapter)
    return built


# --- the base -----------------------------------------------------------------------------------
def build_base(case: Case, base: Path) -> None:
    torch.manual_seed(case.seed)
    cls = model_class(case)
    config = cls.config_class(**{**ARCHS[case.arch].config, **case.config})
    model = cls(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.02)
    model.to(DTYPES[case.dtype])
    options: dict[str, Any] = {}
    if case.max_shard_size is not None:
        options["max_shard_size"] = case.max_shard_size
    model.save_pretrained(base, **options)
    if case.side_files:
        write_side_files(base)
    if case.edit_base is not None:
        case.edit_base(base)


TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")


def write_tokenizer(directory: Path, label: str) -> None:
    """Files with a tokenizer's names; nobody has to be able to parse more than JSON."""
    for name in TOKENIZER_FILES:
        (directory / name).write_text(json.dumps({"file": name, "of": label}) + "\n")
    (directory / "chat_template.jinja").write_text("{# " + label + " #}{{ messages }}\r\n")


def write_side_files(base: Path) -> None:
    write_tokenizer(base, "base")
    (base / "LICENSE").write_text("A licence.\n")
    (base / "notes.dat").write_bytes(bytes(range(256)))
    (base / "1_Pooling").mkdir()
    (base / "1_Pooling" / "config.json").write_text('{"word_embedding_dimension": 32}')
    (base / "modules.json").write_text("[]")
    if not (base / "generation_config.json").exists():
        (base / "generation_config.json").write_text('{"top_p":0.9}')


# --- the adapter --------------------------------------------------------------------------------
def build_adapter(case: Case, base: Path, adapter: Path) -> None:
    model = load_base(case, base, DTYPES[case.dtype])
    torch.manual_seed(case.seed + 1)
    if case.peft_config is not None:
        config = case.peft_config()
    else:
        config = peft.LoraConfig(**{"r": 4, "lora_alpha": 8, **case.lora})
    wrapped = peft.get_peft_model(model, config, adapter_name=case.adapter_name)
    randomise(wrapped)
    wrapped.save_pretrained(adapter)
    (adapter / "README.md").unlink(missing_ok=True)
    for file in adapter.rglob(ADAPTER_FILE):
        neutral_config(file.with_name("adapter_config.json"))
        tensors = load_file(file)
        if case.adapter_dtype is not None:
            tensors = {k: v.to(DTYPES[case.adapter_dtype]) for k, v in tensors.items()}
        save_file(tensors, file, metadata={"format": "pt"})
    if case.tokenizer_in_adapter:
        write_tokenizer(adapter, "adapter")


def neutral_config(file: Path) -> None:
    """No path of this machine and no order of a set: the same bytes wherever it is built."""
    config = json.loads(file.read_text())
    config["base_model_name_or_path"] = BASE_NAME
    for key in ("target_modules", "exclude_modules", "target_parameters"):  # sets: in no order
        if isinstance(config.get(key), list):
            config[key].sort()
    file.write_text(json.dumps(config, indent=2, sort_keys=True))


@torch.no_grad()
def randomise(model: torch.nn.Module) -> None:
    """Values as after a training: nothing zero, deltas a good part of the weights' size."""
    for name, parameter in model.named_parameters():
        noise = torch.randn_like(parameter)
        if "lora_embedding_A" in name:  # PEFT starts it at zero and its B at one
            parameter.add_(noise, alpha=0.005)
        elif "lora_A" in name:
            parameter.add_(noise, alpha=0.1)
        elif ("lora_B" in name or "lora_embedding_B" in name) and not name.endswith("bias"):
            parameter.add_(noise, alpha=0.02)
        elif "lora_magnitude_vector" in name:
            parameter.mul_(1 + 0.1 * noise)
        elif "lora_" in name:
            parameter.add_(noise, alpha=0.1)
        elif parameter.requires_grad and parameter.is_floating_point():
            parameter.add_(noise, alpha=0.03)


def write_by_hand(case: Case, hand: Hand, base: Path, adapter: Path) -> None:
    """An adapter whose keys this version of PEFT would not write."""
    generator = torch.Generator().manual_seed(case.seed)
    dtype = DTYPES[case.adapter_dtype or "float32"]
    tensors: dict[str, torch.Tensor] = {}
    for name, (out, inner) in hand_targets(hand, base).items():
        a = torch.randn(hand.r, inner, generator=generator) * 0.1
        b = torch.randn(out, hand.r, generator=generator) * 0.02
        key = "base_model.model." + hand.rename(name.removesuffix(".weight"))
        tensors[f"{key}.lora_A.weight"] = a.to(dtype)
        tensors[f"{key}.lora_B.weight"] = b.to(dtype)
    if not tensors:
        raise ValueError(f"{case.name}: no tensor of the base matches {hand.pattern}")
    adapter.mkdir(parents=True)
    save_file(tensors, adapter / ADAPTER_FILE, metadata={"format": "pt"})
    targets = sorted(set(hand.targets) or {key.split(".")[-3] for key in tensors})
    config = peft.LoraConfig(
        r=hand.r,
        lora_alpha=hand.alpha,  # type: ignore[arg-type]
        target_modules=targets,
        use_rslora=hand.use_rslora,
        task_type="CAUSAL_LM",
    )
    config.save_pretrained(adapter)
    neutral_config(adapter / "adapter_config.json")


def hand_targets(hand: Hand, base: Path) -> dict[str, tuple[int, int]]:
    """Checkpoint tensors that a hand-written adapter changes, with their shapes."""
    pattern = re.compile(hand.pattern)
    found: dict[str, tuple[int, int]] = {}
    for name, tensor in sorted(read_checkpoint(base).items()):
        if pattern.search(name) and name.endswith(".weight"):
            if tensor.dim() != 2:
                raise ValueError(f"{name} is not a matrix")
            found[name] = (tensor.shape[0], tensor.shape[1])
    return found
