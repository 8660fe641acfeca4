"""Defences: what training faces, and what is added to its loss."""
