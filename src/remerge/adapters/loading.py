"""What transformers' loader does with every key of a checkpoint, without its values.

The rules are asked from the installed library: this follows the loop of
`transformers.core_model_loading.convert_and_load_state_dict_in_model`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cached_property
from itertools import product
from typing import Any, cast

from transformers import PreTrainedModel, core_model_loading
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    PrefixChange,
    WeightConverter,
    WeightRenaming,
    WeightTransform,
    apply_renamings,
    dot_natural_key,
)

from remerge.adapters.layouts import Layout, whole
from remerge.adapters.tracing import TracedTensor
from remerge.errors import BadInput, RemergeError, Unsupported

Shape = tuple[int, ...]
# Its own annotations are too loose to be checked.
rename_source_key: Callable[..., tuple[str, str | None]] = cast(
    Any, core_model_loading
).rename_source_key
# Which of transformers' rules reversed, and then what done to the prefix of the base model
# (``model.``), may lead from a parameter to its name on disk.
Style = tuple[str, str]
STYLES: tuple[Style, ...] = tuple(product(("likely", "used"), ("kept", "dropped", "added")))


@dataclass(frozen=True)
class _Feed:
    """The keys that make a parameter, each with the pattern of the converter that takes it; no
    converter means one key under another name."""

    converter: WeightConverter | None
    keys: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])


class Loading:
    """Checkpoint keys and model parameters, one in terms of the other."""

    def __init__(
        self, model: PreTrainedModel, parameters: Mapping[str, Shape], stored: Mapping[str, Shape]
    ) -> None:
        self._model = model
        self._prefix = str(model.base_model_prefix)
        self._parameters = dict(parameters)
        self._stored = stored
        transforms: list[WeightTransform] = get_model_conversion_mapping(model)
        self._renamings = [rule for rule in transforms if isinstance(rule, WeightRenaming)]
        self._converters = [rule for rule in transforms if isinstance(rule, WeightConverter)]
        self._by_pattern = {
            pattern: rule for rule in self._converters for pattern in rule.source_patterns
        }
        self._feeds: dict[str, _Feed] = {}
        self._converted: dict[str, Layout] = {}
        self._tried: set[str] = set()
        self._collect()
        legacy = len(transforms) - len(get_model_conversion_mapping(model, add_legacy=False))
        # A change of prefix says nothing about checkpoints until it met a key.
        self._rules = {
            "likely": [
                rule
                for rule in transforms[: len(transforms) - legacy]
                if rule.was_used() or not isinstance(rule, PrefixChange)
            ],
            "used": [rule for rule in transforms if rule.was_used()],
        }

    def renamed(self, key: str) -> tuple[str, str | None]:
        """The parameter that a key feeds, and the pattern of the converter on the way if any; the
        name need not be in the model."""
        name, pattern = rename_source_key(
            key, self._renamings, self._converters, self._prefix, self._parameters
        )
        if name not in self._parameters and key in self._parameters:
            name, pattern = rename_source_key(key, [], [], self._prefix, self._parameters)
        return name, pattern

    def layout(self, parameter: str) -> Layout | None:
        """Where the parameter's elements come from, None where no key feeds it."""
        feed = self._feeds.get(parameter)
        if feed is not None and feed.converter is None:
            key = feed.keys[0][1]
            return whole(key, self._stored[key])
        if parameter not in self._converted:
            self._convert(parameter)
        return self._converted.get(parameter)

    def spelling(self, key: str) -> str | None:
        """The stored key that means what ``key`` does, if exactly one does and a converter takes
        it apart or together (so that no parameter of the model bears its name)."""
        found = self._unfused.get(self._plain(key), [])
        return found[0] if len(found) == 1 else None

    def key_for(self, parameter: str) -> str:
        """The key under which this checkpoint holds a parameter, or would if it did."""
        feed = self._feeds.get(parameter)
        if feed is not None and feed.converter is None:
            return feed.keys[0][1]
        for style in sorted(STYLES, key=lambda style: style != self._style):
            key = self._reversed(parameter, style)
            if key is not None and self.renamed(key) == (parameter, None):
                return key
        raise Unsupported(
            f"No single tensor of the checkpoint holds {parameter!r}, or would hold it.",
            why="transformers assembles this parameter from several tensors.",
        )

    def _collect(self) -> None:
        for key in sorted(self._stored, key=dot_natural_key):
            name, pattern = self.renamed(key)
            if name not in self._parameters:
                continue
            converter = None if pattern is None else self._by_pattern[pattern]
            feed = self._feeds.setdefault(name, _Feed(converter))
            # transformers takes the first of several keys that are renamed to one parameter.
            if feed.converter is not None or not feed.keys:
                feed.keys.append((pattern or key, key))

    def _convert(self, parameter: str) -> None:
        """Convert what feeds the parameter; those of several targets are listed under the first
        only, so any of them may."""
        for name in [parameter, *self._feeds]:
            feed = self._feeds.get(name)
            if feed is None or feed.converter is None or name in self._tried:
                continue
            if name == parameter or _has_many_targets(feed.converter):
                self._tried.add(name)
                self._converted |= self._run(name, feed)
            if parameter in self._converted:
                return

    def _run(self, name: str, feed: _Feed) -> dict[str, Layout]:
        converter: Any = deepcopy(feed.converter)
        for pattern, key in feed.keys:
            converter.add_tensor(name, key, pattern, TracedTensor(whole(key, self._stored[key])))
        steps = ", ".join(type(step).__name__ for step in converter.operations)
        try:
            made: dict[str, Any] = converter.convert(
                name, model=self._model, config=self._model.config
            )
        except RemergeError as error:
            raise Unsupported(
                f"Cannot follow how {feed.keys[0][1]!r} becomes {name!r} ({steps}).", why=str(error)
            ) from error
        except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
            raise BadInput(
                f"The checkpoint's tensors for {name!r} do not fit the model ({steps}).",
                why=str(error),
                hint="Compare config.json with the checkpoint: the number or shape of the tensors"
                f" that begin with {feed.keys[0][1]!r} is not what the model expects.",
            ) from error
        return {
            target: cast(TracedTensor, tensor[0] if isinstance(tensor, list) else tensor).origin
            for target, tensor in made.items()
        }

    def _plain(self, key: str) -> str:
        return apply_renamings(key, self._renamings).removeprefix(f"{self._prefix}.")

    @cached_property
    def _unfused(self) -> dict[str, list[str]]:
        """Keys that a converter takes, by their names after the renamings."""
        found: dict[str, list[str]] = {}
        for feed in self._feeds.values():
            for _, key in feed.keys if feed.converter else ():
                found.setdefault(self._plain(key), []).append(key)
        return found

    @cached_property
    def _reverse_rules(self) -> dict[str, tuple[list[WeightRenaming], list[WeightConverter]]]:
        reverse = {
            name: [rule.reverse_transform() for rule in reversed(rules)]
            for name, rules in self._rules.items()
        }
        return {
            name: (
                [rule for rule in rules if isinstance(rule, WeightRenaming)],
                [rule for rule in rules if isinstance(rule, WeightConverter)],
            )
            for name, rules in reverse.items()
        }

    @cached_property
    def _style(self) -> Style:
        """How this checkpoint spells its names: what explains most of them."""
        explained: Counter[Style] = Counter()
        for name, feed in self._feeds.items():
            for style in STYLES if feed.converter is None else ():
                explained[style] += self._reversed(name, style) == feed.keys[0][1]
        return max(STYLES, key=lambda style: explained[style])

    def _reversed(self, parameter: str, style: Style) -> str | None:
        rules, treatment = style
        prefix = f"{self._prefix}."
        if treatment == "dropped":
            if not parameter.startswith(prefix):
                return None
            parameter = parameter.removeprefix(prefix)
        elif treatment == "added":
            parameter = prefix + parameter
        renamings, converters = self._reverse_rules[rules]
        return rename_source_key(parameter, renamings, converters, reverse=True)[0]


def _has_many_targets(converter: WeightConverter) -> bool:
    return len(converter.target_patterns) > 1 or "*" in converter.target_patterns[0]
