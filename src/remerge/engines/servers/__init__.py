"""Engines as servers: one file an engine, the command that starts it, and a process that runs."""
