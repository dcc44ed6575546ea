"""A combination of adapters as one new adapter: what of it has factors, and what goes in whole.

The plan of a merge says what happens to the checkpoint's tensors; here that is told again in terms
of the model's parameters, as an adapter speaks of them. Nothing is read yet.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from remerge.adapters import families
from remerge.adapters.adapter import Adapter
from remerge.adapters.deltas import Delta, LowRank, Replaced, ReplacedRows
from remerge.adapters.placing import move_low_rank, spans_of
from remerge.adapters.regions import Region
from remerge.adapters.saved import TASK_HEADS
from remerge.errors import BadInput, Unsupported
from remerge.merging.combined import Combined
from remerge.merging.extraction_plan import (
    Opened,
    Parameter,
    is_leaf,
    open_model,
    parameter_of,
    some,
    state_of,
)
from remerge.merging.factored import Factored
from remerge.merging.opening import hint_of
from remerge.merging.plan import Plan
from remerge.merging.replacements import copies_of
from remerge.merging.tensor_plan import TensorPlan
from remerge.sources.documents import as_object
from remerge.sources.reading import decoded

# Where no adapter states a rank.
_USUAL_RANK = 16


@dataclass(frozen=True)
class Product:
    """A parameter whose change goes into factors of at most ``rank``: ``exact`` ones, or the
    nearest."""

    parameter: Parameter
    rank: int
    exact: bool


@dataclass(frozen=True)
class Whole:
    """A parameter that goes in whole. ``tensor`` is the output's that holds it alone, None where
    its pieces lie as they do in the base."""

    parameter: Parameter
    tensor: TensorPlan | None = None


@dataclass(frozen=True)
class AdapterPlan:
    """A new adapter before it is made.

    ``saved`` are the modules that are trained copies (modules_to_save); ``task`` is the adapter
    that says what model they were trained with. ``tied`` are second names of parameters that are
    stored once, each with the name of that parameter.
    """

    plan: Plan
    opened: Opened
    products: tuple[Product, ...]
    wholes: tuple[Whole, ...]
    saved: tuple[str, ...]
    tied: Mapping[str, str]
    task: Adapter

    @property
    def exact(self) -> bool:
        """Whether nothing is decomposed."""
        return all(product.exact for product in self.products)


def plan_adapter(plan: Plan) -> AdapterPlan:
    """Tell a planned merge in terms of the model's parameters.

    Raises `Unsupported` where an adapter cannot say a change, naming the tensor; `BadInput` where
    nothing changes.
    """
    task = _task(plan.adapters)
    plan = _without_copies(plan)
    opened = open_model(plan.base, hint_of(task.config), families.wanted(task))
    reading = _Reading(plan, opened)
    found = reading.found()
    wholes, saved = _with_modules(reading, found)
    products = tuple(
        Product(parameter, _rank(plan, reading, parameter), reading.exact(parameter))
        for parameter in found.factored
        if parameter.module not in saved
    )
    kept = tuple(product for product in products if product.rank)
    if not kept and not wholes:
        raise BadInput(
            "The adapters change nothing together: there is no adapter to write.",
            hint="Check the weights: at least one must not be zero.",
        )
    return AdapterPlan(plan, opened, kept, wholes, saved, reading.tied, task)


def _without_copies(plan: Plan) -> Plan:
    """The plan without values that an adapter brings whole but never trained: PEFT saves the
    embeddings beside factors for them."""
    is_copy = copies_of(plan.base, decoded(plan.base))

    def changed(tensor: TensorPlan) -> TensorPlan:
        change = tensor.change
        if change is None or not any(isinstance(step, Replaced) for step in change.steps):
            return tensor
        steps = tuple(
            s for s in change.steps if not (isinstance(s, Replaced) and is_copy(change, s))
        )
        whole = any(isinstance(step, Replaced) and step.whole for step in steps)
        return replace(tensor, change=replace(change, steps=steps, reads_base=not whole))

    return replace(plan, tensors={name: changed(each) for name, each in plan.tensors.items()})


@dataclass
class _Found:
    factored: list[Parameter]
    wholes: list[Whole]
    copies: set[str]


@dataclass
class _Reading:
    """The parameters of the base's model, and what the merge does to each."""

    plan: Plan
    opened: Opened

    def __post_init__(self) -> None:
        self.tied: dict[str, str] = {}
        self._stored = self.opened.tensors
        self._created = {name for name in self.plan.touched if name not in self._stored}

    def found(self) -> _Found:
        """Every parameter that changes; raises `Unsupported` for a tensor that belongs to none."""
        result = _Found([], [], set())
        covered: set[str] = set()
        for name, twin in state_of(self.opened):
            created = self._creation(name)
            if created is not None:
                result.wholes.append(Whole(self._whole(name, created.shape), created))
                result.copies.add(name.rpartition(".")[0])
                covered.add(created.name)
                continue
            tensors = {region.tensor for region in self.opened.names.regions(name)}
            if twin is not None:
                self.tied[name] = twin
            if tensors <= covered and twin is not None:
                continue
            if tensors & self.plan.touched.keys():
                covered |= tensors
                self._add(name, result)
        left = sorted(self.plan.touched.keys() - covered)
        if left:
            raise Unsupported(
                f"{some(left)} would change, but no parameter of "
                f"{type(self.opened.model).__name__} lies there.",
                why="An adapter can only speak of what the model has.",
                hint="Write a checkpoint: leave out --to adapter.",
            )
        return result

    def _add(self, name: str, result: _Found) -> None:
        regions = self.opened.names.regions(name)
        alone = self.plan.touched.get(regions[0].tensor)
        if alone is not None and alone.shape != tuple(self._stored[alone.name].shape):
            # Resized: a tensor that holds this parameter and no other.
            result.wholes.append(Whole(self._whole(name, alone.shape), alone))
            return
        parameter = parameter_of(self.opened, self.opened, name, regions, regions)
        meeting = [step for step, _ in self.steps(parameter)]
        if not meeting:
            return
        if parameter.form != "whole" and not any(map(_replaces, meeting)):
            result.factored.append(parameter)
            return
        result.wholes.append(Whole(parameter))
        if parameter.saved or (parameter.form != "whole" and self._is_copy(parameter)):
            result.copies.add(parameter.module)

    def _is_copy(self, parameter: Parameter) -> bool:
        """Whether a replaced parameter goes in as part of a trained copy of its module. One that
        shares its memory does only where the output has a tensor for each."""
        module = self.opened.model.get_submodule(parameter.module)
        twins = self.opened.names.tied(parameter.name)
        return is_leaf(module) and all(self._creation(twin) is not None for twin in twins)

    def _creation(self, name: str) -> TensorPlan | None:
        """The tensor that the output has for a parameter and the base has not."""
        if not self._created:
            return None
        try:
            stored = self.opened.names.checkpoint_name(name)
        except Unsupported:
            return None
        return self.plan.touched.get(stored) if stored in self._created else None

    def _whole(self, name: str, shape: Sequence[int]) -> Parameter:
        layer = self.opened.names.layer(name.rpartition(".")[0])
        kind = "" if layer is None else layer.kind
        return Parameter(name, "whole", kind, tuple(shape), tuple(shape), (), (), saved=True)

    def steps(self, parameter: Parameter) -> Iterator[tuple[Delta, Region]]:
        """The steps that may meet a parameter, each with the region where it does."""
        for region in parameter.base:
            plan = self.plan.touched.get(region.tensor)
            change = None if plan is None else plan.touched_by
            for step in () if change is None else change.steps:
                if _meets(step, region):
                    yield step, region

    def exact(self, parameter: Parameter) -> bool:
        return all(isinstance(step, LowRank | Factored) for step, _ in self.steps(parameter))


def _meets(step: Delta, region: Region) -> bool:
    """Whether a step may change something of the region."""
    back = inverse(region)
    if isinstance(step, LowRank):
        return step.scale != 0.0 and move_low_rank(step, back) is not None
    if isinstance(step, Replaced):
        height, width = step.values.shape
        return spans_of(back, step.row, height, step.col, width) is not None
    if isinstance(step, ReplacedRows):
        held = set(map(int, region.rows))
        return any(index in held for index in step.indices)
    return True


def _replaces(step: Delta) -> bool:
    """Whether a step sets values, so that nothing low-rank is left of the change."""
    if isinstance(step, Combined):
        return bool(step.joint.replacements)
    return isinstance(step, Replaced | ReplacedRows)


def inverse(region: Region) -> Region:
    """The same agreement from the parameter's side: its values in terms of the tensor's."""
    return Region(
        region.parameter,
        region.parameter_rows,
        region.parameter_cols,
        region.tensor,
        region.rows,
        region.cols,
        region.transposed,
    )


def _with_modules(reading: _Reading, found: _Found) -> tuple[tuple[Whole, ...], tuple[str, ...]]:
    """The whole parameters with the rest of each module that is a trained copy."""
    wholes = {whole.parameter.name: whole for whole in found.wholes}
    opened = reading.opened
    for name, _ in state_of(opened):
        regions = opened.names.regions(name)
        if name.rpartition(".")[0] in found.copies and name not in wholes and regions:
            wholes[name] = Whole(parameter_of(opened, opened, name, regions, regions))
    return tuple(wholes.values()), tuple(sorted(found.copies))


def _rank(plan: Plan, reading: _Reading, parameter: Parameter) -> int:
    """The most that a parameter's factors may take; 0 where nothing is left of its change."""
    asked = plan.recipe.adapter.svd_rank if plan.recipe.adapter is not None else None
    height, width = parameter.view[0] // parameter.matrices, parameter.view[1]
    most = min(height, width)
    if not reading.exact(parameter):
        return min(asked or _largest(plan.adapters), most)
    ranks = [0] * parameter.matrices
    for step, region in reading.steps(parameter):
        for number in _matrices(step, region, height):
            ranks[number] += _rank_of(step)
    return min(max(ranks), asked) if asked is not None else max(ranks)


def _rank_of(step: Delta) -> int:
    if isinstance(step, Factored):
        return step.rank
    assert isinstance(step, LowRank)
    return step.left.shape[1]


def _matrices(step: Delta, region: Region, height: int) -> range:
    """Which of a parameter's matrices a step of factors meets."""
    if isinstance(step, LowRank):
        moved = move_low_rank(step, inverse(region))
        assert moved is not None
        first, last = moved.row, moved.row + moved.left.shape[0] - 1
    else:
        rows = region.parameter_rows
        first, last = int(min(rows)), int(max(rows))
    return range(first // height, last // height + 1)


def _largest(adapters: Sequence[Adapter]) -> int:
    """The largest rank that an adapter's configuration states."""
    ranks: list[object] = []
    for adapter in adapters:
        pattern = as_object(adapter.config.get("rank_pattern")) or {}
        ranks += [adapter.config.get("r"), *pattern.values()]
    return max((rank for rank in ranks if isinstance(rank, int)), default=_USUAL_RANK)


def _task(adapters: Sequence[Adapter]) -> Adapter:
    """The adapter that was trained with a head of its own, else the first."""
    heads = [adapter for adapter in adapters if adapter.config.get("task_type") in TASK_HEADS]
    return heads[0] if heads else adapters[0]
