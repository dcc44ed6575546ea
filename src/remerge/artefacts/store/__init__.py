"""Artefacts kept: content-addressed blobs, immutable records, names that point to them."""
