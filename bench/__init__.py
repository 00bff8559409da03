"""Benchmarks and the demo: each prints what it compares, in the same run."""
