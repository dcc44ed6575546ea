"""What a decision rests on: facts as people state them, checked, and those read from inputs."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from remerge.errors import UsageError

Stage = Literal["iterating", "ab-testing", "stable"]
STAGES: tuple[Stage, ...] = ("iterating", "ab-testing", "stable")
# What a person can state, by the keys of a file of facts.
STATED = (
    "variants",
    "stage",
    "requests_per_second",
    "latency_budget_ms",
    "further_fine_tuning",
    "quantize",
    "disk",
    "gpu_memory",
)
_MOST_VARIANTS = 10**9


@dataclass(frozen=True)
class Facts:
    """None is unknown, which speaks for nothing.

    ``variants``: adapters of one base that are served at the same time; ``requests_per_second`` of
    all of them; ``latency_budget_ms``: milliseconds until a request's first token. ``quantize`` is
    a form as ``--to`` takes it, or ``none``. ``disk`` and ``gpu_memory`` are bytes to be had.

    The rest is read from base and adapter: bytes of one merged model (``copy_bytes``), of the base
    as it would be served with adapters (``served_base_bytes``) and of one adapter beside it
    (``adapter_bytes``), and ``obstacles`` by their names in rules.yaml; ``unmergeable`` says why no
    weight can hold the adapter.
    """

    variants: int | None = None
    stage: Stage | None = None
    requests_per_second: float | None = None
    latency_budget_ms: float | None = None
    further_fine_tuning: bool | None = None
    quantize: str | None = None
    disk: int | None = None
    gpu_memory: int | None = None
    copy_bytes: int | None = None
    served_base_bytes: int | None = None
    adapter_bytes: int | None = None
    obstacles: tuple[str, ...] = ()
    unmergeable: str | None = None

    @property
    def copies_bytes(self) -> int | None:
        """All variants merged, one where their number is not known."""
        return None if self.copy_bytes is None else self.copy_bytes * (self.variants or 1)

    @property
    def base_and_adapter_bytes(self) -> int | None:
        """The least that serving unmerged needs: others wait in the machine's memory."""
        if self.served_base_bytes is None or self.adapter_bytes is None:
            return None
        return self.served_base_bytes + self.adapter_bytes


def read_facts(given: Mapping[str, Any], where: str = "", beside: Sequence[str] = ()) -> Facts:
    """Check what was stated, by the keys of `STATED`; None is unknown.

    ``where`` begins a message about a key (``facts.yaml: ``); ``beside`` are other keys that may be
    meant. Raises `UsageError` for an unknown
    key, naming the nearest, and for values that make no sense.
    """
    for key in given:
        if key not in STATED:
            known = (*STATED, *beside)
            near = difflib.get_close_matches(str(key), known, n=1)
            hint = f"Did you mean {near[0]}?" if near else f"Known are {', '.join(known)}."
            raise UsageError(f"{where}{str(key)[:80]!r} is no fact that is asked for.", hint=hint)
    stated = {key: value for key, value in given.items() if value is not None}
    found: dict[str, Any] = {}
    for key, value in stated.items():
        found[key] = _READERS[key](value, f"{where}{key}")
    return Facts(**found)


def _count(value: Any, name: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise UsageError(f"{name} is {_shown(value)}, which is no whole number.")
    if not 1 <= value <= _MOST_VARIANTS:
        raise UsageError(f"{name} is {value}: there is at least one.", hint="Count the adapters.")
    return value


def _rate(value: Any, name: str) -> float:
    number = _number(value, name)
    if number < 0:
        raise UsageError(f"{name} is {value}: no fewer than 0.")
    return number


def _budget(value: Any, name: str) -> float:
    number = _number(value, name)
    if number <= 0:
        raise UsageError(f"{name} is {value}: no answer comes in no time.", hint="Give more.")
    return number


def _number(value: Any, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UsageError(f"{name} is {_shown(value)}, which is no number.")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise UsageError(f"{name} is {_shown(value)}, which is no finite number.")
    return number


def _stage(value: Any, name: str) -> Stage:
    text = str(value).strip().lower().replace("_", "-")
    for stage in STAGES:
        if text == stage:
            return stage
    near = difflib.get_close_matches(text, STAGES, n=1)
    hint = f"Did you mean {near[0]}?" if near else f"Choose {', '.join(STAGES)}."
    raise UsageError(f"{name} is {_shown(value)}, which is no stage.", hint=hint)


def _truth(value: Any, name: str) -> bool:
    if not isinstance(value, bool):
        raise UsageError(f"{name} is {_shown(value)}.", hint="Write yes or no.")
    return value


def _size(value: Any, name: str) -> int:
    if isinstance(value, bool):
        raise UsageError(f"{name} is {value}, which is no size.", hint="Write it like 500GB.")
    # It brings torch, which most questions do not need.
    from remerge.merging.recipe import parse_size

    return parse_size(value, name)


def _form(value: Any, name: str) -> str:
    """A quantised form, in the words of ``--to``; a type of llama.cpp may stand alone."""
    if isinstance(value, bool) or not isinstance(value, str) or not value.strip():
        # YAML reads a bare no as false.
        if value is False:
            return "none"
        raise UsageError(f"{name} is {_shown(value)}, which is no format.")
    text = value.strip()
    if text.lower() in ("none", "no"):
        return "none"
    return _known_form(text, name)


def _known_form(text: str, name: str) -> str:
    # As above.
    from remerge.artefacts.digests import file_digest
    from remerge.engines.forms import read_form
    from remerge.sources.ggml_types import FILE_TYPES, TYPES

    text = f"gguf:{text.upper()}" if text.upper() in FILE_TYPES else text
    try:
        asked = read_form(text, {}, file_digest)
    except UsageError as error:
        raise UsageError(
            f"{name} is {_shown(text)}, which --to does not know.", why=error.what, hint=error.hint
        ) from None
    kind = FILE_TYPES.get(text.upper().removeprefix("GGUF:"))
    plain = kind is not None and TYPES[kind.default].block == 1
    if plain or (asked is None and text in ("safetensors", "adapter")):
        raise UsageError(f"{name} is {text}, which quantises nothing.", hint="Leave it out.")
    return text


def _shown(value: Any) -> str:
    return repr(value)[:80]


_READERS = {
    "variants": _count,
    "stage": _stage,
    "requests_per_second": _rate,
    "latency_budget_ms": _budget,
    "further_fine_tuning": _truth,
    "quantize": _form,
    "disk": _size,
    "gpu_memory": _size,
}
