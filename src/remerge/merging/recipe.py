"""What the user asked for, normalised: the part of a merge that is neither base nor adapter."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field

from remerge.adapters.lora.packing import ExpertPacking
from remerge.errors import UsageError
from remerge.merging.asked import find_adapter, read_method, read_prefer, read_weights
from remerge.merging.methods.registry import ALIASES, METHODS
from remerge.merging.schemes.registry import SCHEMES
from remerge.sources.dtypes import NAMED

# What --to may name without an engine.
PLAIN_FORMS = ("safetensors", *SCHEMES, "adapter")

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}


class AdapterForm(BaseModel):
    """How a combination is written as one new adapter: the dtype of its factors, and the most that
    a parameter's rank may be (None: what is exact, else the largest of the adapters)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    dtype: Literal["BF16", "F16", "F32"] = "F32"
    svd_rank: int | None = Field(default=None, ge=1)


class Recipe(BaseModel):
    """Everything that decides the output's bytes besides the inputs' bytes.

    Paths and resources (threads, memory, device) are no part of it: they change no byte.
    ``base_precision`` says what a quantised base was taken for: ``stored`` where it is not
    quantised, ``dequantized`` where its own values were used, ``original`` where its 16-bit
    original was. ``weights`` are those of the adapters in their order, ``parameters`` all of the
    method's, defaults included; ``prefer`` says from which adapter (counted from 1) tensors are
    taken that several replace. ``adapter`` is set where the output is one; ``form`` holds what was
    asked of an output that an engine writes (`remerge.engines.form`).
    ``quantize`` is the scheme of the checkpoint's linear layers but for modules to ``ignore``;
    ``quantize_experts``: of experts also where transformers cannot read them.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    method: str = "sum"
    weights: tuple[float, ...] = (1.0,)
    parameters: dict[str, Any] = {}
    prefer: tuple[tuple[str, int], ...] = ()
    dtype: Literal["keep", "BF16", "F16", "F32"] = "keep"
    keep_float32: tuple[str, ...] = ()
    format: str = "safetensors"
    adapter: AdapterForm | None = None
    form: dict[str, Any] = {}
    base_precision: Literal["stored", "dequantized", "original"] = "stored"
    simulate: Literal["nf4"] | None = None
    requantize: Literal["same"] | None = None
    quantize: str | None = None
    ignore: tuple[str, ...] = ()
    quantize_experts: bool = False
    expert_packing: ExpertPacking = "auto"
    max_shard_size: int | None = Field(default=None, gt=0)
    tokenizer: str = Field(default="auto", pattern=r"^(auto|base|adapter(:\d+)?)$")
    copy_code: bool = False


def make_recipe(
    adapters: Sequence[str] = ("adapter",),
    *,
    method: str = "sum",
    weights: Sequence[float] | float | None = None,
    parameters: Mapping[str, Any] | None = None,
    prefer: Sequence[str] = (),
    dtype: str = "keep",
    keep_float32: Sequence[str] = (),
    simulate: str | None = None,
    requantize: str | None = None,
    expert_packing: str = "auto",
    max_shard_size: int | str | None = None,
    tokenizer: str = "auto",
    copy_code: bool = False,
    to: str = "safetensors",
    form: Mapping[str, Any] | None = None,
    ignore: Sequence[str] = (),
    quantize_experts: bool = False,
) -> Recipe:
    """A recipe from what people write; ``adapters`` are their labels, ``form`` what an engine is to
    write, as it was read from ``to``. Raises `UsageError`."""
    quantize = to if to in SCHEMES else None
    to = "safetensors" if quantize is not None else to
    if form is None:
        _choose("--to", to, PLAIN_FORMS)
    if quantize is None and (ignore or quantize_experts):
        raise UsageError(
            "--ignore and --quantize-experts belong to a scheme.",
            hint=f"Write --to with one of {', '.join(SCHEMES)}.",
        )
    if to != "safetensors":
        _check_single(
            to,
            {
                "--requantize": requantize,
                "--simulate": simulate,
                "--keep-float32": keep_float32,
                "--max-shard-size": max_shard_size,
                "--copy-code": copy_code,
            },
        )
    parameters, svd_rank = _own_rank(method, parameters or {}, to)
    found, read = read_method(method, parameters, len(adapters))
    _choose("--simulate", simulate, (None, "nf4"))
    _choose("--requantize", requantize, (None, "same"))
    _choose("--expert-packing", expert_packing, get_args(ExpertPacking))
    if requantize is not None and (dtype != "keep" or keep_float32 or simulate is not None):
        raise UsageError(
            "--requantize writes the base's own format, whose dtypes are fixed.",
            hint="Leave out --dtype, --keep-float32 and --simulate, or leave out --requantize.",
        )
    if requantize is not None and found.ordered:
        raise UsageError(
            f"--requantize cannot follow --method {found.name}, which rounds between adapters.",
            hint="Use another method, or merge one by one.",
        )
    if quantize is not None and (requantize is not None or found.ordered):
        raise UsageError(
            f"--to {quantize} cannot go with "
            + (f"--method {found.name}." if found.ordered else "--requantize."),
            why="A merge that rounds between adapters has no unrounded values."
            if found.ordered
            else "One writes the base's own format, the other a new one.",
            hint="Use another method." if found.ordered else "Leave one of them out.",
        )
    if to == "adapter" and found.ordered:
        raise UsageError(
            f"--to adapter cannot follow --method {found.name}, which rounds between adapters.",
            why="No adapter can say a rounding of the base.",
            hint="Use --method sum, or write a checkpoint.",
        )
    limit = None if max_shard_size is None else parse_size(max_shard_size, "--max-shard-size")
    return Recipe.model_validate(
        {
            "method": found.name,
            "weights": read_weights(weights, len(adapters), found),
            "parameters": read,
            "prefer": read_prefer(prefer, adapters),
            "dtype": "keep" if to == "adapter" else parse_dtype(dtype),
            "keep_float32": tuple(sorted(set(keep_float32))),
            "simulate": simulate,
            "requantize": requantize,
            "quantize": quantize,
            "ignore": _patterns(ignore),
            "quantize_experts": quantize_experts,
            "expert_packing": expert_packing,
            "max_shard_size": limit,
            "tokenizer": _tokenizer(tokenizer, adapters),
            "copy_code": copy_code,
            "format": to,
            "adapter": _adapter_form(dtype, svd_rank) if to == "adapter" else None,
            "form": dict(form or {}),
        }
    )


def _check_single(to: str, given: Mapping[str, Any]) -> None:
    """Refuse what only a checkpoint has."""
    adapter = "an adapter holds no weights of the base"
    why = adapter if to == "adapter" else "that format says how weights are stored"
    for option, value in given.items():
        if value and (to == "adapter" or option != "--simulate"):
            raise UsageError(
                f"{option} means nothing with --to {to}: {why}.",
                hint=f"Leave out {option}, or --to {to}.",
            )


def _patterns(ignore: Sequence[str]) -> tuple[str, ...]:
    """Names of modules and ``re:`` expressions, as llm-compressor writes them."""
    for text in ignore:
        if text.startswith("re:") and not _is_pattern(text.removeprefix("re:")):
            raise UsageError(
                f"--ignore {text!r} is no regular expression.",
                hint="Give a module's name, or an expression such as 're:.*down_proj'.",
            )
    return tuple(sorted(set(ignore)))


def _is_pattern(text: str) -> bool:
    try:
        re.compile(text)
    except re.error:
        return False
    return True


def _own_rank(
    method: str, parameters: Mapping[str, Any], to: str
) -> tuple[Mapping[str, Any], int | None]:
    """The method's parameters, and the rank of a new adapter where the method has none itself."""
    found = METHODS.get(ALIASES.get(method, method))
    if to != "adapter" or found is None or "svd_rank" in found.parameters.model_fields:
        return parameters, None
    kept = {name: value for name, value in parameters.items() if name != "svd_rank"}
    rank = parameters.get("svd_rank")
    if rank is not None and (isinstance(rank, bool) or not isinstance(rank, int) or rank < 1):
        raise UsageError(f"--svd-rank {rank!r} is no rank.", hint="Give at least 1.")
    return kept, rank


def _adapter_form(dtype: str, svd_rank: int | None) -> dict[str, Any]:
    parsed = parse_dtype(dtype)
    return {"dtype": "F32" if parsed == "keep" else parsed, "svd_rank": svd_rank}


def _tokenizer(asked: str, adapters: Sequence[str]) -> str:
    """auto, base, adapter, or one adapter of several by number or name."""
    if asked in ("auto", "base", "adapter"):
        return asked
    return f"adapter:{find_adapter(asked, adapters, '--tokenizer')}"


def _choose(option: str, value: str | None, choices: Sequence[str | None]) -> None:
    if value not in choices:
        named = ", ".join(choice for choice in choices if choice is not None)
        raise UsageError(f"{option} {value!r} is not known.", hint=f"Choose {named}.")


def parse_dtype(text: str) -> Literal["keep", "BF16", "F16", "F32"]:
    """``--dtype`` as people write it; raises `UsageError`."""
    if text == "keep":
        return "keep"
    found = NAMED.get(text.lower().removeprefix("torch."))
    if found in ("BF16", "F16", "F32"):
        return found
    raise UsageError(f"Unknown dtype {text!r}.", hint=f"Choose keep, {', '.join(NAMED)}.")


def parse_size(text: str | int, option: str) -> int:
    """Bytes from ``5GB``, ``512MiB``, ``1G`` or a plain number; raises `UsageError`."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(i?)B?", str(text).strip(), re.IGNORECASE)
    if match is None:
        raise UsageError(
            f"{option} {text!r} is not a size.", hint="Write it like 1GiB, 512MiB or 5GB."
        )
    number, unit, binary = match.groups()
    power = _UNITS[unit.upper()]
    if binary:
        power = 2 ** (10 * list(_UNITS).index(unit.upper()))
    if len(number) > 30:
        raise UsageError(f"{option} is no size to work with.")
    size = int(float(number) * power)
    if size <= 0:
        raise UsageError(f"{option} {text!r} is no size to work with.")
    return size
