"""YAML in the order of its keys, long strings on one line."""

from __future__ import annotations

from typing import Any

import yaml


def as_yaml(*documents: Any) -> str:
    return yaml.safe_dump_all(
        documents, sort_keys=False, allow_unicode=True, default_flow_style=False, width=4096
    )
