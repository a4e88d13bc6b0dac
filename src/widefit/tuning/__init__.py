"""Choices that the data make before training: map, column scales, threshold, ridge."""
