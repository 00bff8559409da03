"""Synthetic safetensors models of a wanted size: valid, incompressible, the same bytes for the same seed.

Run as `python -m tests.bed.modelserver.weights DIR --gigabytes 2 --shards 4 --version v1`.
"""

from __future__ import annotations

import argparse
import json
import struct
from pathlib import Path

from tests.bed import noise

TENSOR_BYTES = 256 << 20  # tensors are split so that none is larger


def write_model(directory: Path, size_bytes: int, *, shards: int = 1, version: str = "v1", seed: int = 1) -> list[Path]:
    """Writes `model-0000i-of-0000n.safetensors`, their index and `config.json`; returns the weight files.

    `size_bytes` counts tensor data; headers come on top (under 100 KiB). Existing files of these names are replaced.
    Seed and version both change every block, so that no two versions share content.
    """
    directory.mkdir(parents=True, exist_ok=True)
    paths = []
    weight_map: dict[str, str] = {}
    for shard in range(shards):
        path = directory / f"model-{shard + 1:05}-of-{shards:05}.safetensors"
        tensors = _tensors(shard, size_bytes * (shard + 1) // shards - size_bytes * shard // shards)
        _write_shard(path, tensors, version, seed=f"{seed}/{version}/{shard}")
        weight_map |= dict.fromkeys(tensors, path.name)
        paths.append(path)
    index = {"metadata": {"total_size": size_bytes}, "weight_map": weight_map}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index, indent=1))
    config = {"architectures": ["SyntheticForCausalLM"], "torch_dtype": "uint8", "version": version}
    (directory / "config.json").write_text(json.dumps(config, indent=1))
    return paths


def _tensors(shard: int, size_bytes: int) -> dict[str, int]:
    """Names and sizes of a shard's tensors."""
    sizes = [TENSOR_BYTES] * (size_bytes // TENSOR_BYTES) + [size_bytes % TENSOR_BYTES]
    return {f"model.layers.{shard}.{i}.weight": size for i, size in enumerate(sizes) if size}


def _write_shard(path: Path, tensors: dict[str, int], version: str, *, seed: str) -> None:
    header: dict[str, object] = {"__metadata__": {"format": "pt", "version": version}}
    at = 0
    for name, size in tensors.items():
        header[name] = {"dtype": "U8", "shape": [size], "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for block in noise.blocks(seed, at):
            file.write(block)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--gigabytes", type=float, default=1.0)
    parser.add_argument("--shards", type=int, default=2)
    parser.add_argument("--version", default="v1")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    size_bytes = int(args.gigabytes * 1e9)
    write_model(args.directory, size_bytes, shards=args.shards, version=args.version, seed=args.seed)


if __name__ == "__main__":
    main()
