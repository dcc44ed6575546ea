"""A transformers model with merged weights, straight from the merge: nothing is written."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from remerge.errors import BadInput, Unsupported
from remerge.sources.documents import as_list

if TYPE_CHECKING:
    from remerge.merging.merged import MergedCheckpoint

# What transformers raises of a configuration that fits no model: whatever its code runs into.
_UNFIT = (
    ArithmeticError,
    AttributeError,
    LookupError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
)


def load_model(merged: MergedCheckpoint, **kwargs: Any) -> Any:
    """Build the class that the configuration names and let transformers load the mapping.

    transformers materialises a state dict's values by slicing, one at a time, so tensors are
    merged as the model takes them. ``kwargs`` go to ``from_pretrained``. Raises `Unsupported` for
    a class that transformers itself does not have: code of a checkpoint is never imported, and
    `BadInput` for a configuration that it builds no model of.
    """
    import transformers

    document = dict(merged.config)
    model_type = document.pop("model_type", None)
    if model_type not in transformers.CONFIG_MAPPING:
        raise Unsupported(f"transformers has no model type {model_type!r}.")
    auto_config: Any = transformers.AutoConfig
    names = as_list(document.get("architectures")) or [""]
    model_class: Any = getattr(transformers, str(names[0]), transformers.AutoModel)
    kwargs.setdefault("dtype", "auto")
    state = {name: merged[name] for name in merged}
    try:
        config = auto_config.for_model(model_type, **document)
        return model_class.from_pretrained(None, config=config, state_dict=state, **kwargs)
    except _UNFIT as error:
        said = " ".join(str(error).split())[:300]
        raise BadInput(
            f"transformers cannot load the merge: {type(error).__name__}, {said.rstrip('.')}.",
            why=f"It builds no {model_class.__name__} of what config.json says.",
        ) from error
