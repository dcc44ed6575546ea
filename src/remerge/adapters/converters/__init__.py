"""Adapters of other trainers, presented as the PEFT adapters that they are equal to."""
