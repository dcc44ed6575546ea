"""What a right artefact may differ from the merge by, for each format.

Two things bound the mean KL divergence, and the smaller one holds:
- A fixed limit for the format: three times what llama.cpp's project publishes for Llama 3 8B, a
  model that quantises badly (tools/perplexity/README.md there); for formats that it has not, that
  of one with errors of the same size.
- What the format may do to the very model at hand: random errors of the format's size in all of
  the reference's matrices give a divergence of their own, and a right artefact's was between half
  and 1.7 times that in all of our measurements (docs/check.md). Five times is the limit.
The second finds a wrong file of a model that hardly minds being quantised; the first one of a model
that minds everything.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from remerge.errors import UsageError
from remerge.validation.score_comparison import Comparison, Share

# Times the divergence of random errors of the format's size.
_TIMES = 5.0
# What float32 arithmetic in another order may give at most, whatever the format.
_FLOOR = 1e-5
# A server keeps keys and values in float16, and may take other kernels than the one that scored.
_SERVER = 0.1


@dataclass(frozen=True)
class FormatLimit:
    """``noise``: the root mean square of the format's errors relative to the weights they are in
    (measured on normal weights by the format's own quantiser, of weights and, where the engine
    rounds them too, activations). ``kl``: the most that the mean divergence may ever be, in
    nats."""

    noise: float
    kl: float


FORMATS: dict[str, FormatLimit] = {
    "float32": FormatLimit(0.0, 1e-5),
    "float16": FormatLimit(0.0003, 1e-3),
    "bfloat16": FormatLimit(0.0024, 2e-3),
    "F32": FormatLimit(0.0, 1e-5),
    "F16": FormatLimit(0.0003, 1e-3),
    "BF16": FormatLimit(0.0024, 2e-3),
    "Q8_0": FormatLimit(0.0076, 0.004),
    "Q6_K": FormatLimit(0.019, 0.016),
    "Q5_K_M": FormatLimit(0.037, 0.032),
    "Q5_K_S": FormatLimit(0.037, 0.05),
    "Q5_1": FormatLimit(0.039, 0.054),
    "Q5_0": FormatLimit(0.043, 0.067),
    "Q4_K_M": FormatLimit(0.072, 0.094),
    "Q4_K_S": FormatLimit(0.072, 0.13),
    "IQ4_XS": FormatLimit(0.077, 0.13),
    "IQ4_NL": FormatLimit(0.077, 0.13),
    "Q4_1": FormatLimit(0.079, 0.215),
    "Q4_0": FormatLimit(0.087, 0.215),
    "Q3_K_L": FormatLimit(0.152, 0.262),
    "Q3_K_M": FormatLimit(0.152, 0.306),
    "IQ3_M": FormatLimit(0.167, 0.31),
    "IQ3_S": FormatLimit(0.167, 0.334),
    "Q3_K_S": FormatLimit(0.152, 0.685),
    "Q2_K": FormatLimit(0.296, 1.335),
    "int8": FormatLimit(0.02, 0.03),
    "fp8": FormatLimit(0.037, 0.05),
    "int4": FormatLimit(0.11, 0.215),
    "fp4": FormatLimit(0.15, 0.306),
}


def limit_of(name: str) -> FormatLimit:
    """Raises `UsageError` for a format without limits."""
    if name not in FORMATS:
        raise UsageError(
            f"There are no limits for the format {name!r}.",
            hint=f"Say with --format which hold: {', '.join(FORMATS)}.",
        )
    return FORMATS[name]


@dataclass(frozen=True)
class Gate:
    """One thing that must hold: what was measured, and the limit in words."""

    name: str
    measured: str
    limit: str
    passed: bool


def kl_limit(form: FormatLimit, noise: Comparison | None) -> float:
    """The most that the mean divergence may be, in nats."""
    own = 0.0 if noise is None else _TIMES * noise.kl_mean
    return min(form.kl, max(_FLOOR, own))


def gates(found: Comparison, form: FormatLimit, noise: Comparison | None) -> list[Gate]:
    """What scores must meet."""
    limit = kl_limit(form, noise)
    # The mean of n differences: their variance is about twice the divergence on text that the model
    # expects, and more on other text, as the random errors show. The mean may drift by the limit.
    # Prompts that begin alike are measured once; those of one task hold the same words, whose
    # differences then do not cancel out: all of them may lean one way, as far as the random errors
    # take each.
    apart = 2.5 * (0.0 if noise is None else noise.mean_difference)
    spread = max(math.sqrt(2 * limit), apart)
    drift = limit + max(4 * spread / math.sqrt(found.distinct), apart)
    ratio = abs(math.log(found.perplexity_ratio))
    other = 0.01 if noise is None else 0.02 + 2 * (1 - noise.top1)
    other = min(1.0, other + 2 / math.sqrt(found.distinct) * math.sqrt(other))
    bound = "at least " if found.likeliest is not None else ""
    return [
        Gate(
            "KL divergence", f"{bound}{found.kl_mean:.2e}", f"{limit:.2e}", found.kl_mean <= limit
        ),
        Gate(
            "perplexity ratio",
            f"{found.perplexity_ratio:.4f}",
            f"{math.exp(-drift):.4f} to {math.exp(drift):.4f}",
            ratio <= drift,
        ),
        Gate("top-1 agreement", f"{found.top1:.1%}", f"{1 - other:.1%}", 1 - found.top1 <= other),
    ]


def share_gate(share: Share) -> Gate | None:
    """Whether the adapter is there: nearer to the merged model than to the base. None where the
    prompts cannot tell, as its error reaches over the half."""
    if not math.isfinite(share.value):
        return None
    low, high = share.value - 3 * share.error, share.value + 3 * share.error
    if low <= 0.5 <= high:
        return None
    return Gate("adapter's share", f"{share.value:.3f} ± {share.error:.3f}", "0.5", low > 0.5)


def tokenisation_gate(texts: int, differing: int) -> Gate:
    """Every text must be cut as the checkpoint's tokenizer cuts it."""
    return Gate("tokenisation", f"{texts - differing} of {texts} texts", "all", differing == 0)


def server_gate(difference: float) -> Gate:
    """What the server says must be what was scored."""
    return Gate("server", f"{difference:.3f}", f"{_SERVER}", difference <= _SERVER)
