"""YAML in the order of its keys, long strings on one line."""

from __future__ import annotations

from typing import Any

import yaml


class _Plain(yaml.SafeDumper):
    """What stands twice is written twice: people edit the one and not the other."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def as_yaml(*documents: Any) -> str:
    return yaml.dump_all(
        documents,
        Dumper=_Plain,
        sort_keys=False,
        allow_unicode=True,
        default_flow_style=False,
        width=4096,
    )
