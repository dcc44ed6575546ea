"""The ``config_groups`` of compressed-tensors: which modules are quantised how.

The names and defaults are those of compressed_tensors quantization/quant_args.py and
quant_scheme.py; which group speaks of a module, of `match_targets` in utils/match.py.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from remerge.errors import BadInput, Unsupported
from remerge.sources.codecs.numbers import pair, whole_number
from remerge.sources.documents import as_list, as_object
from remerge.sources.expressions import compiled

_STRATEGIES = ("tensor", "channel", "group", "tensor_group", "block")
_AGAIN = "Download the base again, or merge into its unquantised original."
_ORIGINAL = "Merge into the unquantised original of this base."


@dataclass(frozen=True)
class Scheme:
    """How the weights of a group's modules are stored.

    ``kind`` is ``int`` or ``float``; ``group`` the columns of a group, ``block`` the rows and
    columns of a block, where the strategy has such; ``format`` what the group states, if it does.
    """

    bits: int
    kind: str
    symmetric: bool
    strategy: str
    group: int | None
    block: tuple[int, int] | None
    format: str | None

    @property
    def words(self) -> str:
        """The scheme for the user: ``int 4 bit, groups of 128``."""
        size = {
            "group": f"groups of {self.group}",
            "tensor_group": f"groups of {self.group}",
            "block": f"blocks of {self.block[0]} x {self.block[1]}" if self.block else "blocks",
        }
        return f"{self.kind} {self.bits} bit, {size.get(self.strategy, f'by {self.strategy}')}"


@dataclass(frozen=True)
class Schemes:
    """The schemes by target: names of modules, regular expressions in the order in which they
    are tried, and classes. ``all`` holds each scheme once."""

    names: Mapping[str, Scheme]
    patterns: tuple[tuple[re.Pattern[str], Scheme], ...]
    classes: Mapping[str, Scheme]
    all: frozenset[Scheme]

    def of(self, module: str) -> Scheme:
        """The scheme of a module by its name: a target that is the name, then the first regular
        expression that matches it, then a class. Raises `BadInput` where no group speaks of it.
        """
        if module in self.names:
            return self.names[module]
        for pattern, scheme in self.patterns:
            if pattern.match(module):
                return scheme
        # Names do not tell classes; of several only embeddings and linear layers can be told apart.
        found = frozenset(self.classes.values())
        if len(found) > 1:
            wanted = "Embedding" if re.search(r"embed|wte", module) else "Linear"
            found = frozenset(s for name, s in self.classes.items() if name == wanted)
        # A checkpoint may name its modules in another way than the model that was quantised.
        found = found or self.all
        if len(found) != 1:
            raise BadInput(
                f"No config group of config.json speaks of the quantised module {module!r}.",
                why="Its groups name other modules and classes, and it could be of any of them.",
                hint=_AGAIN,
            )
        return next(iter(found))


def read_schemes(stated: Mapping[str, Any]) -> Schemes:
    """The schemes of a ``quantization_config``.

    Raises `BadInput` for what compressed-tensors would not take, `Unsupported` for a strategy or
    a kind of numbers that is not read here.
    """
    targets: dict[str, Scheme] = {}
    groups = as_object(stated.get("config_groups")) or {}
    for label, value in groups.items():
        group = as_object(value)
        if group is None:
            raise Unsupported(
                f"config.json: config group {label!r} names a preset, without its scheme.",
                why="Saved checkpoints spell their schemes out.",
                hint=_ORIGINAL,
            )
        weights = as_object(group.get("weights"))
        if weights is None:
            continue
        scheme = _scheme(label, weights, group.get("format"))
        for target in as_list(group.get("targets")) or []:
            targets[_target(label, target)] = scheme
    patterns = sorted(target for target in targets if target.startswith("re:"))
    return Schemes(
        targets,
        tuple((re.compile(target.removeprefix("re:")), targets[target]) for target in patterns),
        {target: scheme for target, scheme in targets.items() if target[:1].isupper()},
        frozenset(targets.values()),
    )


def _scheme(label: str, weights: dict[str, Any], format: object) -> Scheme:
    bits = whole_number(weights.get("num_bits", 8), f"num_bits of config group {label!r}")
    kind = str(weights.get("type", "int")).lower()
    group = weights.get("group_size")
    strategy = weights.get("strategy")
    if strategy is None:
        strategy = "tensor" if group is None else "channel" if group == -1 else "group"
    strategy = str(strategy).lower()
    if strategy not in _STRATEGIES:
        raise Unsupported(
            f"config.json: config group {label!r} quantises weights by {strategy!r}, which is not "
            "read here.",
            why="Strategies that are: " + ", ".join(_STRATEGIES) + ".",
            hint=_ORIGINAL,
        )
    symmetric = weights.get("symmetric", True)
    if (kind, bits) not in {("float", 4), ("float", 8), *(("int", b) for b in range(1, 9))}:
        raise Unsupported(
            f"config.json: config group {label!r} quantises weights to {kind} of {bits} bits, "
            "which is not read here.",
            why="Integers of up to 8 bits are, and floats of 4 and of 8.",
            hint=_ORIGINAL,
        )
    if not isinstance(symmetric, bool) or (kind == "float" and not symmetric):
        raise Unsupported(
            f"config.json: config group {label!r} states symmetric as {symmetric!r} for {kind} "
            "codes, which is not read here.",
            hint=_ORIGINAL,
        )
    grouped = strategy in ("group", "tensor_group")
    return Scheme(
        bits,
        kind,
        symmetric,
        strategy,
        whole_number(group, f"group_size of config group {label!r}") if grouped else None,
        _block(weights.get("block_structure"), label) if strategy == "block" else None,
        format if isinstance(format, str) else None,
    )


def _block(value: object, label: str) -> tuple[int, int]:
    if isinstance(value, str) and re.fullmatch(r"\d{1,9}x\d{1,9}", value):
        value = [int(side) for side in value.split("x")]
    return pair(value, f"block_structure of config group {label!r}")


def _target(label: str, target: object) -> str:
    if not isinstance(target, str):
        raise BadInput(f"config.json: config group {label!r} has target {target!r}.", hint=_AGAIN)
    if not target.startswith("re:"):
        return target
    text = target.removeprefix("re:")
    what = f"config.json: target {target[:60]!r} of config group {label!r}"
    compiled(text, text, what, "Write the targets as module names.")
    return target
