"""Computed truths: what an attack of a given size can do at most, where that can be worked out."""
