"""Merged against unmerged under load, in one engine: arms, rounds, and what they tell."""
