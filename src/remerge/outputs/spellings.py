"""config.json in the words of transformers 4 and 5 at once.

5 keeps everything about rotary positions in ``rope_parameters`` and writes that alone; 4 reads
``rope_theta`` and ``rope_scaling``, and where they are missing takes 10000 without a word. The same
holds, with less harm, for ``dtype`` and ``torch_dtype``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from remerge.sources.documents import as_object

# What 5 keeps in rope_parameters, and 4 beside them.
_BESIDE = ("rope_theta", "partial_rotary_factor")
# 5's parameters for each kind of layer, and 4's name for the base of the local ones.
_GLOBAL, _LOCAL, _LOCAL_BASE = "full_attention", "sliding_attention", "rope_local_base_freq"

# Scalings that both spell alike; of others, 5 reads 4's spelling by rules of each model.
_ALIKE = ("default", "linear", "dynamic", "yarn", "llama3")


def both_spellings(config: Mapping[str, Any]) -> dict[str, Any]:
    """A copy that says in both spellings what it says in one; nothing that it says is changed."""
    document: dict[str, Any] = json.loads(json.dumps(config))
    _complete(document)
    return document


def _complete(document: dict[str, Any]) -> None:
    for one, other in (("dtype", "torch_dtype"), ("torch_dtype", "dtype")):
        if isinstance(document.get(one), str):
            document.setdefault(other, document[one])
    parameters = as_object(document.get("rope_parameters"))
    if parameters is not None:
        _for_four(document, parameters)
    elif "rope_theta" in document:
        _for_five(document)
    for value in document.values():
        nested = as_object(value)
        # Only models have one; a quantisation's own "dtype" is another thing.
        if nested is not None and "model_type" in nested:
            _complete(nested)


def _for_four(document: dict[str, Any], parameters: Mapping[str, Any]) -> None:
    layered, local = as_object(parameters.get(_GLOBAL)), as_object(parameters.get(_LOCAL))
    if layered is not None:
        if local is not None and "rope_theta" in local:
            document.setdefault(_LOCAL_BASE, local["rope_theta"])
        parameters = layered
    for key in _BESIDE:
        if key in parameters:
            document.setdefault(key, parameters[key])
    scaling = {key: value for key, value in parameters.items() if key not in _BESIDE}
    # A null is 4's way to say that there is none: it says less than rope_parameters.
    if scaling.get("rope_type", "default") != "default" and not document.get("rope_scaling"):
        document["rope_scaling"] = scaling


def _for_five(document: dict[str, Any]) -> None:
    scaling = as_object(document.get("rope_scaling")) or {}
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind not in _ALIKE or _LOCAL_BASE in document:
        return
    beside = {key: document[key] for key in _BESIDE if key in document}
    document["rope_parameters"] = {**scaling, **beside, "rope_type": kind}
