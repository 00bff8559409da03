"""Benchmarks and the demo: each prints what it compares, in the same run."""

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # as `prewarm` does (agent.cli)
