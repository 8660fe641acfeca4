"""Runnable experiments: a preset per environment and the shared protocol."""
