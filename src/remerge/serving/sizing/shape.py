"""What of a model decides its memory: the layers and what each keeps of a sequence."""

from __future__ import annotations

from dataclasses import dataclass, field

from remerge.errors import BadInput

# Ten times the deepest model there is; a file may claim any number.
_DEEPEST = 2000


@dataclass(frozen=True)
class Attention:
    """Keys and values of one layer: ``heads`` of them a token, of ``key`` and ``value`` elements.

    ``window`` is the number of last tokens that the layer looks at, None where it looks at all.
    ``latent`` is the width of multi-head latent attention, of which an engine that knows it keeps
    one row a token instead. ``index`` elements a token are kept besides, to choose tokens by.
    """

    heads: int
    key: int
    value: int
    window: int | None = None
    latent: int | None = None
    index: int = 0

    @property
    def elements(self) -> int:
        """Of keys and values of one token."""
        return self.heads * (self.key + self.value)


@dataclass(frozen=True)
class State:
    """What a recurrent layer keeps of a sequence, whatever its length: elements of the last inputs
    of its convolution, and of its recurrent state."""

    convolution: int
    recurrent: int


@dataclass(frozen=True)
class Layer:
    """A layer that keeps keys and values, a state, both, or nothing (its own: another layer's)."""

    attention: Attention | None = None
    state: State | None = None


@dataclass(frozen=True)
class Shape:
    """A decoder, as its configuration or its GGUF header tells.

    ``max_context`` is the most tokens of a sequence, None where nothing says so. ``feed_forward``
    is the inner width of a layer as one token uses it (of all its experts together), ``query`` the
    width of all query heads. ``dtype`` is the configuration's, by torch's name. ``notes`` are
    sentences on what had to be assumed.
    """

    architecture: str
    layers: tuple[Layer, ...]
    hidden: int
    query: int
    feed_forward: int
    vocabulary: int
    max_context: int | None
    dtype: str | None = None
    notes: tuple[str, ...] = field(default=())

    @property
    def attentions(self) -> tuple[Attention, ...]:
        return tuple(layer.attention for layer in self.layers if layer.attention is not None)

    @property
    def states(self) -> tuple[State, ...]:
        return tuple(layer.state for layer in self.layers if layer.state is not None)


def check_depth(name: str, layers: int) -> None:
    """Refuse a number of layers that no model has; raises `BadInput`."""
    if layers > _DEEPEST:
        raise BadInput(
            f"This {name} model claims {layers:,} layers.",
            why="Its configuration is damaged, or made to mislead.",
            hint="Download it again.",
        )
