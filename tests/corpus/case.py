"""What a case is: a base, an adapter, and what has to come out."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file

Expects = Literal["equal", "forward", "by_hand", "refused"]
Edit = Callable[[Path], None]
Tensors = dict[str, torch.Tensor]

#: Exit code of an input that cannot give a right result.
BAD_INPUT = 3


@dataclass(frozen=True)
class Hand:
    """An adapter written by hand: one LoRA pair for each checkpoint tensor that matches.

    The key of a pair is ``base_model.model.`` + ``rename(tensor name without .weight)``: the name
    that the module had in the transformers of the time.
    """

    pattern: str
    rename: Callable[[str], str] = lambda name: name
    r: int = 4
    alpha: float = 8
    targets: tuple[str, ...] = ()
    use_rslora: bool = False


@dataclass(frozen=True)
class Case:
    name: str
    arch: str
    #: Keyword arguments of ``peft.LoraConfig``.
    lora: Mapping[str, Any] = field(default_factory=dict[str, Any])
    category: str = "kinds"
    dtype: str = "bfloat16"
    #: Stored dtype of the adapter's tensors; None leaves what PEFT saved (float32).
    adapter_dtype: str | None = None
    #: equal: PEFT's merge, element by element. forward: PEFT's merge differs from the adapter's
    #: own forward pass, so logits decide. by_hand: W + s B A on the checkpoint's own tensors.
    expects: Expects = "equal"
    #: Overrides of the architecture's configuration.
    config: Mapping[str, Any] = field(default_factory=dict[str, Any])
    #: Class that the adapter was trained on, when it is not the base's own.
    adapter_class: str | None = None
    #: From the names of PEFT's result to those of the base: a regular expression and its
    #: replacement, where the adapter's class names things differently.
    renamed: tuple[str, str] | None = None
    #: Prefix of the base model that names may or may not carry (BertModel in BertFor...).
    loose_prefix: str = ""
    #: Class that has to load the output; by default the adapter's, else the base's.
    load_class: str | None = None
    resize: int | None = None
    max_shard_size: str | int | None = None
    side_files: bool = False
    tokenizer_in_adapter: bool = False
    adapter_name: str = "default"
    #: Appended to the adapter's path in the call of remerge ("/style" or ":style").
    adapter_suffix: str = ""
    edit_base: Edit | None = None
    #: Changes made to the adapter after PEFT saved it; the oracle reads the unchanged one.
    edit_adapter: Edit | None = None
    #: True: the oracle reads the edited adapter too.
    edit_is_the_adapter: bool = False
    hand: Hand | None = None
    #: Another PEFT config than LoRA: called to make it.
    peft_config: Callable[[], Any] | None = None
    #: Expected differences between the base's config.json and the output's, by dotted path.
    config_changes: Mapping[str, Any] = field(default_factory=dict[str, Any])
    #: Keys of config.json that are not compared.
    config_free: tuple[str, ...] = ()
    #: Base tensors that PEFT's model class does not build; they have to stay.
    kept: tuple[str, ...] = ()
    #: Base tensors that may stay or go.
    optional: tuple[str, ...] = ()
    #: Result rests on an SVD or QR in float32: last-bit noise of LAPACK is allowed.
    decomposition: bool = False
    #: PEFT rounds twice in a way that leaves no single right answer: one unit from PEFT is right.
    one_unit_is_right: bool = False
    #: The merge changes nothing on purpose.
    no_change: bool = False
    fast: bool = False
    notes: str = ""

    @property
    def seed(self) -> int:
        return zlib.crc32(self.name.encode())


@dataclass(frozen=True)
class Built:
    """Where a case lies on disk."""

    case: Case
    root: Path

    @property
    def base(self) -> Path:
        return self.root / "base"

    @property
    def adapter(self) -> Path:
        return self.root / "adapter"

    @property
    def adapter_call(self) -> str:
        """The adapter as it is given to remerge."""
        return f"{self.adapter}{self.case.adapter_suffix}"

    @property
    def oracle_adapter(self) -> Path:
        """The adapter that PEFT reads."""
        top = self.adapter if self.case.edit_is_the_adapter else self.root / "adapter_as_saved"
        return top if self.case.adapter_name == "default" else top / self.case.adapter_name


def read_checkpoint(directory: Path) -> Tensors:
    """All tensors of a safetensors directory by name."""
    tensors: Tensors = {}
    pickled = directory / "pytorch_model.bin"
    if pickled.exists():
        return torch.load(pickled, weights_only=True)
    index = directory / "model.safetensors.index.json"
    if index.exists():
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        files = [directory / name for name in names]
    else:
        files = sorted(directory.glob("*.safetensors"))
    for file in files:
        for name, tensor in load_file(file).items():
            if name in tensors:
                raise ValueError(f"{name} lies in two files of {directory}")
            tensors[name] = tensor
    return tensors
