"""Choices that cost models make, and what a run will need: one file for each kind of work."""
