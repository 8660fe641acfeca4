"""Fault injection: scripts for what is too long for the test suite; their results are in `results/`."""
