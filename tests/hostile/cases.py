"""Every hostile case: importing the modules that hold them registers them."""

from __future__ import annotations

from . import adapters, checkpoints, commands, headers
from .place import CASES

__all__ = ["CASES", "adapters", "checkpoints", "commands", "headers"]
