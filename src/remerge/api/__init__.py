"""The public functions: what the command line calls, and nothing it does not."""

from remerge.api.benchmarking import bench
from remerge.api.making import combine, export, extract, merge, open_merged, plan
from remerge.api.promoting import past, promote, rollback
from remerge.api.recording import card
from remerge.api.validating import (
    check,
    compare,
    conflicts,
    formats,
    inspect,
    report,
    reproduce,
    verify,
)
from remerge.merging.recipes.registry import read_recipe

__all__ = [
    "bench",
    "card",
    "check",
    "combine",
    "compare",
    "conflicts",
    "export",
    "extract",
    "formats",
    "inspect",
    "merge",
    "open_merged",
    "past",
    "plan",
    "promote",
    "read_recipe",
    "report",
    "reproduce",
    "rollback",
    "verify",
]
