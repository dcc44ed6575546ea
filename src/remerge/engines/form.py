"""What an engine writes: an output as ``--to`` names it, and the options that belong to it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from remerge.engines.engine import Engine


@dataclass(frozen=True)
class Form:
    """An output that an engine writes, named ``NAME`` or ``NAME:VARIANT`` after ``--to``.

    ``module`` does the work in the engine's environment (`remerge.engines.calling`). ``read`` takes
    the variant and the options that were given (of those in ``takes``) and gives what decides the
    bytes, as JSON data; it raises `UsageError`. Options in ``files`` are paths of files: their
    digests decide, and the engine is told where they lie. ``dtype`` says, from what was read, in
    which dtype the engine reads the merge.

    With ``reads`` the ``merge`` the engine's process opens the merge and computes tensors as it
    needs them; an engine that must have the model in memory reads a ``checkpoint``, which is
    written for it and deleted, after ``survey`` (a module that hears of configuration and options)
    had a chance to refuse. Output with a ``suffix`` is one file, named by ``file_name``.
    ``bytes_per_weight`` serves to look for free space. ``rederivable``: the same inputs give the
    same bytes again.
    """

    name: str
    engine: Engine
    module: str
    read: Callable[[str, Mapping[str, Any]], Mapping[str, Any]]
    takes: frozenset[str] = frozenset()
    files: frozenset[str] = frozenset()
    dtype: Callable[[Mapping[str, Any]], str] = lambda options: "keep"
    title: Callable[[Mapping[str, Any]], str] = lambda options: ""
    bytes_per_weight: Callable[[Mapping[str, Any]], float] = lambda options: 2.0
    reads: Literal["merge", "checkpoint"] = "merge"
    survey: str | None = None
    suffix: str | None = None
    rederivable: bool = True

    def file_name(self, stem: str, options: Mapping[str, Any]) -> str:
        """The one file's name in an output directory called ``stem``."""
        return f"{stem}-{self.title(options)}{self.suffix}"
