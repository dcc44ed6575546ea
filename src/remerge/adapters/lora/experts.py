"""LoRA on bare parameters, stacks of experts above all (PEFT lora/layer.py, ParamWrapper).

For a stack ``(E, out, in)`` A is ``(r * E, in)`` with the experts' rows one after the other, B is
``(out, r * E)`` with the experts' columns interleaved: ``einsum("o r e, e r i -> e o i")``; classes
that store ``(E, in, out)`` get the transpose. Unsloth and older versions differ (packing.py). A
matrix follows the rule of fully connected layers.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from remerge.adapters.deltas import Factor, LowRank
from remerge.adapters.edits import Edit
from remerge.adapters.factors import made, matrix
from remerge.adapters.keys import Parts
from remerge.adapters.lora.config import Context
from remerge.adapters.lora.packing import inputs_first, is_expert_major, packing_notes
from remerge.adapters.lora.products import factor_pair
from remerge.adapters.lora.residual import refuse_residual
from remerge.adapters.regions import Layer
from remerge.errors import Unsupported

_MAX_WRAPPERS = 8


@dataclass(frozen=True)
class _Stack:
    """A trained parameter: its experts (1 for a matrix) and their layer's orientation.

    ``transposed``: matrices are stored (in, out); ``expert_major``: columns of B lie by expert.
    """

    parameter: str
    experts: int
    outputs: int
    inputs: int
    transposed: bool
    expert_major: bool = False


def parameter_edits(context: Context, wrappers: Sequence[Parts], layer: Layer) -> list[Edit]:
    """Edits of the parameters of one module, which wraps them one inside the other.

    PEFT nests in the order of the module's parameters, the first innermost. That order is not
    asked for: the shapes of the factors say which parameter each pair belongs to.
    """
    module = wrappers[0].module
    _refuse_variants(context, module, layer)
    turned = inputs_first(context.adapter.config, layer.transposed)
    stacks = _stacks(context, module, turned)
    if not stacks:
        for parts in wrappers:
            context.misfits.add(
                parts.any_tensor,
                f"{module} is a {layer.kind}, and target_parameters names none of its parameters",
                "layer",
            )
        return []
    pairs = _pairs(context, wrappers)
    if pairs is None:
        return []
    # Where the shapes tell the orientation they count for more than the version of PEFT.
    matched = _match(context, pairs, stacks) or _match(
        context, pairs, _stacks(context, module, not turned)
    )
    if matched is None:
        _explain(context, wrappers, stacks)
        return []
    return [
        edit
        for pair, stack in zip(pairs, matched, strict=True)
        for edit in _edits(context, pair, stack)
    ]


def targets(context: Context, module: str) -> list[str]:
    """Names of the module's parameters that the configuration targets (PEFT tuners_utils.py,
    _inject_parameters)."""
    found: dict[str, None] = {}
    for target in context.config.target_parameters or []:
        name = target.rpartition(".")[2]
        parameter = f"{module}.{name}"
        if parameter == target or parameter.endswith(f".{target}"):
            found[name] = None
    return list(found)


def stack_notes(context: Context, layers: Sequence[Parts]) -> list[str]:
    """What had to be assumed of the stacks that the adapter trains."""
    packed: list[str] = []
    square: list[str] = []
    for module in dict.fromkeys(parts.module for parts in layers):
        stacks = [s for s in _stacks(context, module, False) if s.experts > 1]
        # With rank 1 either packing is the same.
        packed += [s.parameter for s in stacks if context.config.rank(s.parameter) > 1]
        if all(stack.inputs == stack.outputs for stack in stacks):
            square += [stack.parameter for stack in stacks]
    model_type = context.base.config.get("model_type")
    return packing_notes(context.adapter.config, model_type, packed, square)


def _stacks(context: Context, module: str, turned: bool) -> list[_Stack]:
    """The module's trained parameters; ``turned``: stacks are (E, in, out)."""
    found = (_stack(context, module, name, turned) for name in targets(context, module))
    return [stack for stack in found if stack is not None]


def _stack(context: Context, module: str, name: str, turned: bool) -> _Stack | None:
    parameter = f"{module}.{name}"
    shape = context.shape(parameter)
    if shape is None or len(shape) not in (2, 3):
        return None
    if len(shape) == 2:
        return _Stack(parameter, 1, shape[0], shape[1], False)
    experts, first, second = shape
    outputs, inputs = (second, first) if turned else (first, second)
    model_type = context.base.config.get("model_type")
    by_expert = is_expert_major(context.adapter.config, model_type, parameter)
    return _Stack(parameter, experts, outputs, inputs, turned, by_expert)


def _pairs(context: Context, wrappers: Sequence[Parts]) -> list[tuple[str, str]] | None:
    """The factors of every wrapper; None where any is incomplete."""
    pairs: list[tuple[str, str]] = []
    for parts in wrappers:
        pair = factor_pair(context, parts)
        if not context.only(parts, frozenset({"A", "B"})) or pair is None:
            return None
        pairs.append(pair)
    return pairs


def _match(
    context: Context, pairs: Sequence[tuple[str, str]], stacks: Sequence[_Stack]
) -> Sequence[_Stack] | None:
    """Which parameter each pair belongs to; None where there is no way to fit them all.

    Raises `Unsupported` where there is more than one.
    """
    if len(pairs) != len(stacks) or len(stacks) > _MAX_WRAPPERS:
        return None
    fitting = [
        order
        for order in itertools.permutations(stacks)
        if all(_fits(context, pair, stack) for pair, stack in zip(pairs, order, strict=True))
    ]
    if len(fitting) > 1:
        names = ", ".join(stack.parameter for stack in stacks)
        raise Unsupported(
            f"The factors of {names} have equal shapes.",
            why="The file does not say which parameter each pair of factors belongs to.",
        )
    return fitting[0] if fitting else None


def _fits(context: Context, pair: tuple[str, str], stack: _Stack) -> bool:
    inner = context.config.rank(stack.parameter) * stack.experts
    wanted = (inner, stack.inputs), (stack.outputs, inner)
    return (context.stored(pair[0]), context.stored(pair[1])) == wanted


def _explain(context: Context, wrappers: Sequence[Parts], stacks: Sequence[_Stack]) -> None:
    known = "; ".join(
        f"{s.parameter.rpartition('.')[2]} is {context.shape(s.parameter)} and wants lora_A "
        f"{(context.config.rank(s.parameter) * s.experts, s.inputs)}, lora_B "
        f"{(s.outputs, context.config.rank(s.parameter) * s.experts)}"
        for s in stacks
    )
    for parts in wrappers:
        a, b = (context.stored(parts.tensors[part]) for part in ("A", "B"))
        context.misfits.add(
            parts.any_tensor,
            f"lora_A {a} and lora_B {b} fit none of the {len(stacks)} trained parameters ({known})",
            "shape",
        )


def _edits(context: Context, pair: tuple[str, str], stack: _Stack) -> Iterator[Edit]:
    scale = context.config.scale(stack.parameter)
    if stack.experts == 1:
        left, right = matrix(context.adapter, pair[1]), matrix(context.adapter, pair[0])
        if stack.transposed:
            raise Unsupported(
                f"{stack.parameter} holds a single expert in (in, out) order.",
                why="PEFT adds its change untransposed, which cannot be what was trained.",
            )
        yield Edit(stack.parameter, (LowRank(left, right, scale),))
        return
    height = stack.inputs if stack.transposed else stack.outputs
    steps = tuple(
        LowRank(
            *_expert(context, pair, stack, expert),
            scale,
            row=expert * height,
            turned=stack.transposed,
        )
        for expert in range(stack.experts)
    )
    yield Edit(stack.parameter, steps)


def _expert(
    context: Context, pair: tuple[str, str], stack: _Stack, expert: int
) -> tuple[Factor, Factor]:
    """Left and right factor of one expert's matrix as it is stored."""
    a, b = pair
    count = stack.experts
    rank = context.stored(a)[0] // count

    def rows_of_a() -> torch.Tensor:
        return context.adapter.read_rows(a, range(expert * rank, (expert + 1) * rank))

    def columns_of_b() -> torch.Tensor:
        columns = context.recent(b)
        if stack.expert_major:
            return columns[:, expert * rank : (expert + 1) * rank]
        return columns.reshape(stack.outputs, rank, count)[:, :, expert]

    if stack.transposed:
        return (
            made((stack.inputs, rank), lambda: rows_of_a().T),
            made((rank, stack.outputs), lambda: columns_of_b().T),
        )
    return made((stack.outputs, rank), columns_of_b), made((rank, stack.inputs), rows_of_a)


def _refuse_variants(context: Context, module: str, layer: Layer) -> None:
    config = context.config
    refuse_residual(config, module, layer.kind)
    if config.use_dora or config.lora_bias or config.use_bdlora:
        raise Unsupported(
            f"The adapter trains parameters of {module} with DoRA, lora_bias or BD-LoRA.",
            why="PEFT has no such layer.",
        )
