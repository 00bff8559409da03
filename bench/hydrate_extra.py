"""What a download is worth beside its rate: resuming, the journal's cost, and how fast a model loads from where it lies.

`python -m bench.hydrate_extra`; also the end of `bench.hydrate`. Rounds alternate as there; loads are of one safetensors file,
each by a fresh process (`bench.load_weights`), from the disk with none of it in the page cache, from memory as the memory tier
brings it in (measured by cachestat), and from an `rclone mount` of the same bucket that was mounted a moment before.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from agent.models.journal import read_journal
from agent.models.page_cache import drop, resident_bytes
from bench.hydrate_report import machine, told
from bench.hydrate_source import BUCKET, Shape, Source, describe, upload
from bench.measure import Sample, measure
from tests.bed.bed import PROJECT
from tests.bed.s3 import S3Server

RESULTS = PROJECT / ".cache" / "bench-hydrate"
DOCUMENT = RESULTS / "extra.md"
LARGE = Shape(name="1 x 2 GB", count=1, size_bytes=2_000_000_000)
SMALL = Shape(name="2,000 x 64 KB", count=2000, size_bytes=65_536)
TENSORS, TENSOR_BYTES = 20, 64_000_000
WEIGHTS = "model.safetensors"
ROUNDS = 5
HEADING = "## Resuming, the journal, and loading\n"
HEADER = ("", "rounds", "measured")


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of the table: what was measured, once a round."""

    name: str
    values: Sequence[float]
    shown: str = "{:.2f}"

    def cells(self) -> tuple[str, str, str]:
        """Return what stands in the table."""
        return self.name, str(len(self.values)), told(self.values, self.shown)


def main() -> int:
    """Measure everything, print it, and write it into docs/benchmarks.md."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.hydrate_extra", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--part", action="append", choices=PARTS, help="only this one (default: all)")
    options = parser.parse_args()
    measure_all(options.rounds, options.part or list(PARTS))
    document = PROJECT / "docs" / "benchmarks.md"
    document.write_text(document.read_text().partition(HEADING)[0] + DOCUMENT.read_text())
    return 0


def measure_all(rounds: int = ROUNDS, parts: Sequence[str] = ()) -> None:
    """Measure these parts (default: all), and keep each result until it is measured again."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=RESULTS) as scratch:
        for name in parts or PARTS:
            rows = PARTS[name](Path(scratch), rounds)
            lines = [machine(), *(row.cells() for row in rows)]
            (RESULTS / f"extra-{name}.json").write_text(json.dumps(lines))
            print("\n".join([name, *("  ".join(row.cells()) for row in rows)]), flush=True)
    DOCUMENT.write_text(_markdown())


def _markdown() -> str:
    text = HEADING
    for name in PARTS:
        kept = RESULTS / f"extra-{name}.json"
        if kept.exists():
            measured_on, *rows = json.loads(kept.read_text())
            table = [HEADER, ("---",) * len(HEADER), *rows]
            text += f"\n{measured_on}\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in table) + "\n"
    return text


def resume(scratch: Path, rounds: int) -> list[Row]:
    """A download killed at half of its bytes, and the second one that ends it; beside one that was never killed."""
    whole: list[float] = []
    second: list[float] = []
    again: list[float] = []
    with _source(scratch, LARGE) as source:
        for _ in range(rounds):
            to = _empty(scratch / "to")
            whole.append(measure(_hydrate(source, to), source.environment).seconds)
            to = _empty(to)
            here = _killed_at_half(source, to)
            started = time.monotonic()
            ended = subprocess.run(
                _hydrate(source, to), env=dict(source.environment), capture_output=True, text=True, check=True
            )
            second.append(time.monotonic() - started)
            result = json.loads(ended.stdout.splitlines()[-1])
            again.append((result["fetchedBytes"] - (LARGE.total_bytes - here)) / (1 << 20))
            shutil.rmtree(to)
    return [
        Row(name=f"{LARGE.name}, never killed: seconds", values=whole),
        Row(name="killed (SIGKILL) at half, seconds of the second command to its end", values=second),
        Row(name="÷ the whole download's, same round", values=[b / a for a, b in zip(whole, second, strict=True)]),
        Row(
            name="MiB fetched again of what was noted (at most 8 ranges of 8 MiB in flight come on top)",
            values=again,
            shown="{:.0f}",
        ),
    ]


def _killed_at_half(source: Source, to: Path) -> int:
    """Start a download, kill it once half of its bytes are noted; returns how many are."""
    process = subprocess.Popen(_hydrate(source, to), env=dict(source.environment), stdout=subprocess.DEVNULL)
    half = source.shape.total_bytes // 2
    while _noted_bytes(to) < half:
        if process.poll() is not None:
            raise RuntimeError("the download ended before it was half done: it was not watched closely enough")
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    return _noted_bytes(to)


def _noted_bytes(to: Path) -> int:
    journals = list(to.glob(".prewarm/sha256:*/journal"))
    found = read_journal(journals[0]) if journals else None
    return found.done_bytes if found else 0


def journal(scratch: Path, rounds: int) -> list[Row]:
    """Pairs of downloads that differ in the journal alone, each way first in every other pair."""
    rows = []
    for shape in (LARGE, SMALL):
        pairs: list[tuple[Sample, Sample]] = []
        with _source(scratch, shape) as source:
            for number in range(rounds):
                taken: dict[str, Sample] = {}
                for way in ("on", "off") if number % 2 else ("off", "on"):
                    to = _empty(scratch / "to")
                    told_to = [sys.executable, "-m", "bench.without_journal", way, *_hydrate(source, to)[1:]]
                    taken[way] = measure(told_to, {**source.environment, "PYTHONPATH": str(PROJECT)})
                    shutil.rmtree(to)
                pairs.append((taken["on"], taken["off"]))
        time_ratios = [on.durable_seconds / off.durable_seconds for on, off in pairs]
        cpu_ratios = [on.cpu_seconds / off.cpu_seconds for on, off in pairs]
        rows += [
            Row(name=f"{shape.name}: durable seconds with the journal ÷ without", values=time_ratios, shown="{:.3f}"),
            Row(name=f"{shape.name}: CPU with the journal ÷ without", values=cpu_ratios, shown="{:.3f}"),
        ]
    return rows


def load(scratch: Path, rounds: int) -> list[Row]:
    """One model by a safetensors reader, from the store, from memory, and from a FUSE mount of its bucket."""
    directory = _empty(scratch / "load")
    with S3Server(directory / "s3") as server:
        file = directory / WEIGHTS
        write_weights(file)
        server.put(BUCKET, f"m/{WEIGHTS}", file)
        file.unlink()
        source = describe(server, Shape(name="model", count=0, size_bytes=0), "m", directory)
        to = _empty(directory / "to")
        subprocess.run(_hydrate(source, to), env=dict(source.environment), stdout=subprocess.DEVNULL, check=True)
        stored = to / WEIGHTS
        gigabytes = stored.stat().st_size / 1e9
        seconds: dict[str, list[float]] = {"store": [], "memory": [], "mount": []}
        for _ in range(rounds):
            _forget(stored)
            seconds["store"].append(_load(stored))
            _bring_into_memory(stored)
            seconds["memory"].append(_load(stored))
            with mounted(source, directory) as at:
                seconds["mount"].append(_load(at / WEIGHTS))
    return [
        Row(name=f"{gigabytes:.2f} GB loaded from the store, nothing cached: seconds", values=seconds["store"]),
        Row(name="from memory (memory tier): seconds", values=seconds["memory"]),
        Row(name="from an S3 FUSE mount (rclone, 8 streams of 16 MiB): seconds", values=seconds["mount"]),
        Row(name="mount ÷ store, same round", values=_over(seconds["mount"], seconds["store"])),
        Row(name="store ÷ memory, same round", values=_over(seconds["store"], seconds["memory"])),
    ]


def _over(slower: Sequence[float], faster: Sequence[float]) -> list[float]:
    return [a / b for a, b in zip(slower, faster, strict=True)]


def write_weights(file: Path) -> None:
    """Write a safetensors file (https://github.com/huggingface/safetensors#format) of half-precision noise."""
    spans = {f"layer.{n}": [n * TENSOR_BYTES, (n + 1) * TENSOR_BYTES] for n in range(TENSORS)}
    head = json.dumps(
        {name: {"dtype": "F16", "shape": [TENSOR_BYTES // 2], "data_offsets": span} for name, span in spans.items()}
    ).encode()
    with file.open("wb") as out:
        out.write(len(head).to_bytes(8, "little") + head)
        for _ in range(TENSORS):
            out.write(os.urandom(TENSOR_BYTES))


def _load(file: Path) -> float:
    ended = subprocess.run(
        [sys.executable, "-m", "bench.load_weights", str(file)], cwd=PROJECT, capture_output=True, text=True, check=True
    )
    seconds, size_bytes = ended.stdout.split()
    if int(size_bytes) != TENSORS * TENSOR_BYTES:
        raise RuntimeError(f"{size_bytes} bytes were loaded")
    return float(seconds)


def _forget(file: Path) -> None:
    """Have none of a file in the page cache."""
    os.sync()
    with file.open("rb") as opened:
        drop(opened.fileno())
        if left := resident_bytes(opened.fileno()):
            raise RuntimeError(f"{left} bytes stayed in the page cache")


def _bring_into_memory(file: Path) -> None:
    """Have all of a file in the page cache, by the process that the memory tier reads with."""
    reader = PROJECT / "agent" / "models" / "reader.py"
    command = [sys.executable, "-I", "-S", str(reader), str(os.getpid()), os.devnull]  # in no cgroup of its own
    subprocess.run(command, input=os.fsencode(file), check=True)
    with file.open("rb") as opened:
        if resident_bytes(opened.fileno()) < 0.99 * file.stat().st_size:
            raise RuntimeError("not all of it is in the page cache")


@contextmanager
def mounted(source: Source, directory: Path) -> Iterator[Path]:
    """Mount the model's prefix read-only, with what rclone offers for large reads; fresh, so that nothing is cached."""
    at = _empty(directory / "mount")
    said = {"TYPE": "s3", "PROVIDER": "Other", "ENV_AUTH": "true", "ENDPOINT": source.url, "REGION": "us-east-1"}
    environment = {**source.environment, **{f"RCLONE_CONFIG_B_{name}": value for name, value in said.items()}}
    options = ["--read-only", "--vfs-read-chunk-streams", "8", "--vfs-read-chunk-size", "16M", "--buffer-size", "64M"]
    program = str(Path(sys.executable).with_name("rclone"))
    command = [program, "mount", "--config", "/dev/null", *options, f"b:{BUCKET}/{source.prefix}", str(at)]
    process = subprocess.Popen(command, env=environment)
    try:
        deadline = time.monotonic() + 20
        while not (at / WEIGHTS).exists():
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError("the bucket could not be mounted: are fuse3 and /dev/fuse here?")
            time.sleep(0.05)
        yield at
    finally:
        process.terminate()  # it unmounts
        process.wait()


def _hydrate(source: Source, to: Path) -> list[str]:
    program = str(Path(sys.executable).with_name("prewarm"))
    return [program, "hydrate", f"s3://{BUCKET}/{source.prefix}/", "--to", str(to), "--json"]


@contextmanager
def _source(scratch: Path, shape: Shape) -> Iterator[Source]:
    directory = _empty(scratch / "source")
    with S3Server(directory / "s3") as server:
        upload(server, shape, "m")
        yield describe(server, shape, "m", directory)


def _empty(directory: Path) -> Path:
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir()
    return directory


PARTS = {"resume": resume, "journal": journal, "load": load}

if __name__ == "__main__":
    sys.exit(main())
