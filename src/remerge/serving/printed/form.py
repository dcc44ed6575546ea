"""What is printed, and in which form."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from remerge.engines.servers.server import Address, Command, Served, Settings


@dataclass(frozen=True)
class Printing:
    """A server that could be started here: what is served by which engine and command, and why in
    these sizes. ``memory`` is the bytes that it may take, of the machine or of a GPU; ``sampling``
    is the model's generation_config.json, ``stops`` the texts of tokens at which it ends, and
    ``beside`` the lines of the Modelfile that was written with a GGUF file, but for its FROM and
    context."""

    engine: str
    served: Served
    settings: Settings
    address: Address
    command: Command
    memory: int
    reasons: tuple[str, ...] = ()
    health: str = "/health"
    sampling: Mapping[str, object] = field(default_factory=dict[str, object])
    stops: tuple[str, ...] = ()
    beside: tuple[str, ...] = ()

    @property
    def on_gpu(self) -> bool:
        return self.settings.gpu_fraction is not None


@dataclass(frozen=True)
class Form:
    """``write`` gives the text; it raises `UsageError` for what cannot be said in this form."""

    name: str
    what: str
    write: Callable[[Printing], str]


def commented(printing: Printing, *more: str) -> str:
    """Reasons, and more sentences, as lines of a comment."""
    lines: list[str] = []
    for sentence in (*printing.reasons, *more):
        plain = "".join(letter if letter.isprintable() else " " for letter in sentence)
        lines += textwrap.wrap(
            plain, 98, initial_indent="# ", subsequent_indent="#   ", break_long_words=False
        )
    return "".join(f"{line}\n" for line in lines)
