"""Names that clusters and containers accept, made of any name."""

from __future__ import annotations

import hashlib
import re

_LONGEST = 50


def cluster_name(name: str) -> str:
    """A DNS label (RFC 1035, as a Service wants it: a letter first) of 50 characters at most, so
    that endings fit. Names that differ only in what a label cannot hold get labels that differ."""
    plain = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    if not plain or not plain[0].isalpha():
        plain = f"model-{plain}".strip("-")
    if plain == name and len(plain) <= _LONGEST:
        return plain
    mark = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:6]
    return f"{plain[: _LONGEST - 7].rstrip('-')}-{mark}"
