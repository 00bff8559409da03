"""Loads every tensor of a safetensors file into memory, as a model server does, and prints the seconds: `python -m … FILE`."""

from __future__ import annotations

import sys
import time

from safetensors import safe_open

if __name__ == "__main__":
    started = time.monotonic()
    with safe_open(sys.argv[1], framework="np") as weights:
        tensors = [weights.get_tensor(name) for name in weights.keys()]  # noqa: SIM118 (it is no mapping)
    print(time.monotonic() - started, sum(t.nbytes for t in tensors))
