"""Shapes and weights that tests size."""

from __future__ import annotations

from hypothesis import strategies as st

from remerge.serving.sizing.rates import Rates
from remerge.serving.sizing.shape import Attention, Layer, Shape, State
from remerge.serving.sizing.weights import Weights

RATES = Rates(bandwidth=1e10, operations=1e11, narrow=2.0, source="made up")

attentions = st.builds(
    Attention,
    heads=st.integers(1, 64),
    key=st.integers(1, 32).map(lambda n: 8 * n),
    value=st.integers(1, 32).map(lambda n: 8 * n),
    window=st.none() | st.integers(1, 9000),
    latent=st.none() | st.integers(1, 72).map(lambda n: 8 * n),
    index=st.sampled_from([0, 128]),
)
states = st.builds(State, convolution=st.integers(0, 10**5), recurrent=st.integers(0, 10**6))
layers = st.builds(Layer, attention=attentions, state=st.none())
layers |= st.builds(Layer, attention=st.none() | attentions, state=states)


@st.composite
def shapes(draw: st.DrawFn) -> Shape:
    """Layers of at most three kinds, as models have them."""
    kinds = draw(st.lists(layers, min_size=1, max_size=3))
    count = draw(st.integers(1, 80))
    return Shape(
        architecture=draw(st.sampled_from(["llama", "deepseek_v3", "unheard_of"])),
        layers=tuple(kinds[number % len(kinds)] for number in range(count)),
        hidden=draw(st.integers(1, 64)) * 128,
        query=draw(st.integers(1, 64)) * 128,
        feed_forward=draw(st.integers(1, 256)) * 128,
        vocabulary=draw(st.integers(1, 300_000)),
        max_context=draw(st.none() | st.integers(1, 10**6)),
        dtype=draw(st.sampled_from([None, "float32", "bfloat16"])),
    )


@st.composite
def weights(draw: st.DrawFn) -> Weights:
    parameters = draw(st.integers(10**5, 10**11))
    stored = 2 * parameters
    file = draw(st.integers(stored // 40 + 1, stored))
    return Weights(file, parameters, 0, parameters, file // 3, 0, stored)
