"""What a combine method is: several adapters' deltas of one tensor in, steps on that tensor out.

A method is one file of this package and one line of the registry. Those on full deltas give a
`Combined` step with their rule (`remerge.merging.combined`); those on factors give low-rank steps
that never form a delta.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Generic, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict
from pydantic_core import PydanticCustomError

from remerge.adapters.deltas import Added, Change, Delta, LowRank, Replaced, ReplacedRows
from remerge.merging.scope import Scope

# A number for each adapter; one alone stands for all.
PerAdapter = tuple[float, ...]


def _in_share(values: PerAdapter) -> PerAdapter:
    for value in values:
        if not 0.0 <= value <= 1.0:
            raise PydanticCustomError("share", "{value} is no share from 0 to 1", {"value": value})
    return values


# A share of values, 0 to 1, for each adapter.
Shares = Annotated[PerAdapter, AfterValidator(_in_share)]


class Parameters(BaseModel):
    """A method's hyper-parameters: what they do is the fields' own docstring."""

    model_config = ConfigDict(frozen=True, extra="forbid")


P = TypeVar("P", bound=Parameters)


@dataclass(frozen=True)
class Term:
    """What one adapter, the ``adapter``-th, adds to one tensor.

    Its base is the tensor after ``start`` (values that the adapter itself brings, where its delta
    depends on them), its delta what ``steps`` add to that; in ``rows``, which it replaces, its
    delta is zero. An adapter that leaves the tensor alone has no steps: its delta is zero.
    """

    adapter: int
    weight: float
    start: tuple[Delta, ...] = ()
    steps: tuple[Delta, ...] = ()
    rows: frozenset[int] = frozenset()

    @classmethod
    def of(cls, adapter: int, weight: float, change: Change | None) -> Term:
        """An adapter's own change of a tensor, without the values that it brings whole."""
        if change is None:
            return cls(adapter, weight)
        steps = [step for step in change.steps if not isinstance(step, Replaced | ReplacedRows)]
        adds = all(isinstance(step, LowRank | Added) for step in steps)
        return cls(
            adapter,
            weight,
            () if adds else tuple(s for s in change.steps if isinstance(s, Replaced)),
            tuple(steps),
            frozenset(i for s in change.steps if isinstance(s, ReplacedRows) for i in s.indices),
        )

    @property
    def additive(self) -> bool:
        """Whether the delta is the same whatever the base holds."""
        return not self.start and all(isinstance(step, LowRank | Added) for step in self.steps)


@dataclass(frozen=True)
class Joint:
    """One tensor and what each adapter does to it, in the order of the adapters.

    ``view`` is its matrix view (rows, columns), ``dtype`` the output's. ``replacements`` are values
    that adapters bring whole: weights and methods do not apply to them. ``changes`` are what the
    terms were made from, None for an adapter that leaves the tensor alone. ``rslora``: the first
    adapter's scales are rank-stabilised.
    """

    tensor: str
    view: tuple[int, int]
    dtype: str
    terms: tuple[Term, ...]
    replacements: tuple[Delta, ...]
    changes: tuple[Change | None, ...]
    scope: Scope
    rslora: bool = False

    @property
    def additive(self) -> bool:
        """Whether no delta depends on the base, nor on rows that its adapter replaces."""
        return all(term.additive and not term.rows for term in self.terms)

    @property
    def weights(self) -> tuple[float, ...]:
        return tuple(term.weight for term in self.terms)

    @property
    def is_vector(self) -> bool:
        """Whether the tensor has one axis, and is seen as a column."""
        return any(change is not None and len(change.shape) == 1 for change in self.changes)

    @property
    def touching(self) -> tuple[bool, ...]:
        """Which adapters add anything to the tensor."""
        return tuple(bool(term.steps) for term in self.terms)


def replacements_of(change: Change) -> tuple[Delta, ...]:
    """The values that an adapter brings whole."""
    return tuple(step for step in change.steps if isinstance(step, Replaced | ReplacedRows))


@dataclass(frozen=True)
class Method(Generic[P]):
    """A way to combine adapters.

    ``combine`` gives all steps of the tensor, ``joint.replacements`` among them. ``least`` and
    ``most`` bound the number of adapters. ``ordered``: the order of the adapters matters, and what
    a later one replaces stands. ``weighted``: the adapters' weights apply; others than 1 are
    refused where they do not. ``notes`` are sentences that its user must read.
    """

    name: str
    parameters: type[P]
    combine: Callable[[Joint, P], tuple[Delta, ...]]
    least: int = 1
    most: int | None = None
    ordered: bool = False
    weighted: bool = True
    notes: tuple[str, ...] = ()

    def read(self, parameters: Mapping[str, Any]) -> P:
        """The hyper-parameters as a recipe holds them; raises `ValidationError`."""
        return self.parameters.model_validate(parameters)
