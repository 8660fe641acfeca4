"""Policies that were saved: attacked by a suite, tested on any tasks, filmed."""
