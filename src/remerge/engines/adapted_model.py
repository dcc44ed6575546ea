"""Adapters on their base, by PEFT itself: what a merge has to do as well as."""

# PEFT has no types.
# pyright: basic

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from remerge.errors import BadInput, Unsupported

# What PEFT raises for an adapter that it does not know, or that does not fit its own version.
_REFUSALS = (
    AttributeError,
    KeyError,
    NotImplementedError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
)


def put_on(model: Any, adapters: Sequence[tuple[Path, float]], config: Mapping[str, Any]) -> Any:
    """The model with these adapters on it, each by its weight, not merged.

    ``config`` is the merge's: a vocabulary that an adapter made larger is made so here as well.
    Raises `Unsupported` where PEFT cannot, `BadInput` where it is missing.
    """
    try:
        from peft import PeftModel
    except ImportError as error:
        raise BadInput(
            f"Adapters are put on their base by PEFT, which is not here: {error}.",
            hint="Install it: pip install 'remerge[peft]'.",
        ) from error
    _resize(model, config)
    (first, _), *others = adapters
    try:
        wrapped = PeftModel.from_pretrained(model, str(first), adapter_name="a0")
        for number, (path, _) in enumerate(others, 1):
            wrapped.load_adapter(str(path), adapter_name=f"a{number}")
        if others:
            tuner: Any = wrapped.base_model
            tuner.set_adapter([f"a{n}" for n in range(len(adapters))])
        for number, (_, weight) in enumerate(adapters):
            if others or weight != 1:
                _check_adds(wrapped, f"a{number}")
            if weight != 1:
                _weigh(wrapped, f"a{number}", weight)
    except _REFUSALS as error:
        said = (" ".join(str(error).split()) or type(error).__name__)[:300]
        raise Unsupported(f"PEFT does not put this adapter on its base: {said}") from error
    return wrapped.get_base_model().eval()


def _resize(model: Any, config: Mapping[str, Any]) -> None:
    text = config.get("text_config") or {}
    size = config.get("vocab_size", text.get("vocab_size"))
    if isinstance(size, int) and size != model.get_input_embeddings().weight.shape[0]:
        model.resize_token_embeddings(size, mean_resizing=False)


def _check_adds(wrapped: Any, name: str) -> None:
    """Raise `Unsupported` for an adapter that does not just add something to a layer's output: side
    by side PEFT runs it on what the others before it gave, and a weight inside it is not one of its
    change."""
    from peft.tuners.lora import LoraLayer

    asked = wrapped.peft_config[name]
    if asked.peft_type.value != "LORA":
        raise Unsupported("only LoRA adapters can be added up in PEFT.")
    if asked.bias != "none":
        raise Unsupported("biases of adapters do not add up in PEFT.")
    for layer in wrapped.modules():
        if isinstance(layer, LoraLayer) and name in layer.lora_variant:
            raise Unsupported("of LoRA adapters only plain ones add up in PEFT, not DoRA.")


def _weigh(wrapped: Any, name: str, weight: float) -> None:
    """Scale a plain LoRA adapter's change; raises `Unsupported` for what has no scaling."""
    from peft.tuners.lora import LoraLayer

    layers = [m for m in wrapped.modules() if isinstance(m, LoraLayer) and name in m.scaling]
    if not layers:
        raise Unsupported("only LoRA adapters can be weighted in PEFT.")
    if wrapped.peft_config[name].modules_to_save:
        raise Unsupported("what an adapter brings whole has no weight in PEFT.")
    for layer in layers:
        layer.scaling[name] *= weight
