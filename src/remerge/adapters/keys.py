"""Names of adapter tensors: which layer they belong to and what part of it they are.

A key is ``base_model.model.`` + module path + part (PEFT utils/save_and_load.py). PEFT removes the
adapter's name on saving, other trainers leave it in (``lora_A.default.weight``); wrapper modules
(``base_layer``, torch.compile, FSDP) may also show.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

PREFIX = "base_model.model."

_TOKENS = re.compile(
    r"(?P<module>.+)\.token_adapter\.trainable_tokens_(?P<part>delta|original)\b.*"
)
_WRAPPED = re.compile(r"(?P<module>.+)\.(?P<role>modules_to_save|original_module)\.(?P<rest>.+)")
# Wrappers of FSDP, activation checkpointing and torch.compile, which PEFT would not recognise.
_RUNTIME_WRAPPERS = ("_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_orig_mod")

# Batch norm counts its training steps; nothing reads that afterwards.
_COUNTER = ".num_batches_tracked"

# A path's layer and part in one family of adapters, None where it is no tensor of a layer. The
# layer is '' for a tensor that all layers share.
LayerKey = Callable[[str], tuple[str, str] | None]


@dataclass(frozen=True)
class Parts:
    """The tensors of one adapted layer by part (LoRA's ``A``, ``B``, ``B.bias``, ...).

    ``module`` is the path in the model; ``depth`` counts the parameter wrappers between these
    factors and the module (PEFT nests one for each trained parameter, the first innermost);
    ``inner`` says that the module was reached through another wrapped module.
    """

    module: str
    depth: int
    inner: bool
    tensors: Mapping[str, str]

    @property
    def any_tensor(self) -> str:
        return next(iter(self.tensors.values()))


@dataclass(frozen=True)
class Keys:
    """All tensors of an adapter, sorted by what they are; values are the adapter's own names.

    ``parameters``: whole parameters by their name in the model, ``wrapped`` those of them that
    were stored inside a wrapped base layer. ``tokens``: rows of trained tokens by module.
    ``idle``: tensors that a merge has no use for. ``twice``: tensors for a place already taken.
    """

    layers: tuple[Parts, ...]
    parameters: Mapping[str, str]
    wrapped: frozenset[str]
    tokens: Mapping[str, str]
    idle: tuple[str, ...]
    twice: tuple[str, ...]


@dataclass
class _Sorting:
    layers: dict[tuple[str, int, bool], dict[str, str]] = field(
        default_factory=dict[tuple[str, int, bool], dict[str, str]]
    )
    parameters: dict[str, str] = field(default_factory=dict[str, str])
    wrapped: set[str] = field(default_factory=set[str])
    tokens: dict[str, str] = field(default_factory=dict[str, str])
    copies: dict[str, str] = field(default_factory=dict[str, str])
    idle: list[str] = field(default_factory=list[str])
    twice: list[str] = field(default_factory=list[str])

    def put(self, place: dict[str, str], name: str, key: str) -> None:
        if name in place:
            self.twice.append(key)
        else:
            place[name] = key


def sort_keys(names: Iterable[str], layer_key: LayerKey) -> Keys:
    """Sort an adapter's tensor names; every name lands in exactly one place of the result."""
    sorting = _Sorting()
    for key in sorted(names):
        _sort(sorting, key, layer_key)
    for parameter, key in sorting.copies.items():
        # Beside the parameter itself this is a copy that PEFT ignores on load; alone it is it.
        if parameter in sorting.parameters:
            sorting.idle.append(key)
        else:
            sorting.parameters[parameter] = key
    layers = tuple(
        Parts(module, depth, inner, parts)
        for (module, depth, inner), parts in sorted(sorting.layers.items())
    )
    return Keys(
        layers,
        sorting.parameters,
        frozenset(sorting.wrapped),
        sorting.tokens,
        tuple(sorting.idle),
        tuple(sorting.twice),
    )


def _sort(sorting: _Sorting, key: str, layer_key: LayerKey) -> None:
    path = _without_runtime_wrappers(key).removeprefix(PREFIX)
    if (found := layer_key(path)) is not None:
        module, depth, inner = _unwrapped(found[0])
        sorting.put(sorting.layers.setdefault((module, depth, inner), {}), found[1], key)
        return
    if (tokens := _TOKENS.fullmatch(path)) is not None:
        if tokens["part"] == "original":
            # A copy of the base's rows, which PEFT keeps to undo a merge.
            sorting.idle.append(key)
        else:
            sorting.put(sorting.tokens, _unwrapped(tokens["module"])[0], key)
        return
    if (wrapped := _WRAPPED.fullmatch(path)) is not None:
        if wrapped["role"] == "original_module":
            # The module before training, which `bias: all` saves along.
            sorting.idle.append(key)
        else:
            rest = wrapped["rest"].removeprefix("default.")
            sorting.put(sorting.copies, f"{wrapped['module']}.{rest}", key)
        return
    if path.endswith(_COUNTER):
        sorting.idle.append(key)
        return
    parameter, depth, inner = _unwrapped(path)
    if depth or inner:
        sorting.wrapped.add(parameter)
    sorting.put(sorting.parameters, parameter, key)


def _unwrapped(path: str) -> tuple[str, int, bool]:
    """The path without wrapper modules, how many ended it, and whether others lay further in."""
    pieces = [
        piece
        for position, piece in enumerate(path.split("."))
        if position == 0 or piece != "token_adapter"
    ]
    depth = 0
    while len(pieces) > 1 and pieces[-1] == "base_layer":
        pieces.pop()
        depth += 1
    kept = [piece for piece in pieces if piece != "base_layer"]
    return ".".join(kept), depth, len(kept) < len(pieces)


def _without_runtime_wrappers(path: str) -> str:
    return ".".join(piece for piece in path.split(".") if piece not in _RUNTIME_WRAPPERS)
