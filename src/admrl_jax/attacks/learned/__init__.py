"""Attacks that are trained against a policy."""
