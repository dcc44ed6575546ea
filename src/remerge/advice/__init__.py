"""Merge or keep: rules over facts, costs on both sides, and the command to run next."""
