"""Throughput measurements; `benchmarks/README.md` says how to read them."""
