"""Downloads side by side: prewarm with every byte proved, its peers, and what this machine can do at all.

Server and clients share the machine. Rounds alternate, each in another order; what counts is the ratio within a round.
`disk limit` writes as many bytes in order, `source limit` drops what it receives, `both at once` is a bare C program that
receives and writes (bench/floor.c): the floor; `bare loop in Python` does the same in Python and sums each part. prewarm is the real command; its second row starts its clocks when it knew
the manifest, as the C program does.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from bench import contenders, hydrate_extra
from bench.contenders import Contender
from bench.hydrate_report import Section, machine, write_document
from bench.hydrate_source import Shape, Source, describe, upload
from bench.measure import CommandFailed, Sample, journal_below, measure
from tests.bed.bed import PROJECT
from tests.bed.certificates import Authority
from tests.bed.s3 import S3Server

SHAPES = {
    "one": Shape(name="1 x 4 GB", count=1, size_bytes=4_000_000_000),
    "four": Shape(name="4 x 1 GB", count=4, size_bytes=1_000_000_000),
    "small": Shape(name="10,000 x 64 KB", count=10_000, size_bytes=65_536),
}
SECTIONS = {"one": ("one", False), "four": ("four", False), "small": ("small", False), "tls": ("one", True)}
FEW = 100  # so many files are a shape of large ones
RESULTS = PROJECT / ".cache" / "bench-hydrate"


def main() -> int:
    """Measure, print, and write docs/benchmarks.md from all sections measured so far."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.hydrate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--section", action="append", choices=SECTIONS, help="only this one (default: all)")
    parser.add_argument("--only", action="append", metavar="NAME", help="only these contenders")
    parser.add_argument("--rounds", type=int, help="rounds for all (default: 7 for limits and near peers, else 3)")
    parser.add_argument(
        "--quick", action="store_true", help="a short look: 2 rounds, a quarter of the bytes; writes nothing"
    )
    parser.add_argument("--scale", type=float, default=1.0, help="share of the bytes, stated in the tables")
    parser.add_argument("--minutes", type=float, help="begin no further round of a section past its share of these")
    parser.add_argument("--lock", type=Path, help="hold this file's lock exclusively during each round")
    options = parser.parse_args()
    if options.quick:
        options.scale, options.rounds = 0.25, options.rounds or 2
    RESULTS.mkdir(parents=True, exist_ok=True)
    sections = options.section or list(SECTIONS)
    with tempfile.TemporaryDirectory(dir=RESULTS) as scratch:
        for number, name in enumerate(sections, start=1):
            options.until = time.monotonic() + 60 * (options.minutes or 1e6) / len(sections)
            print(f"section {number} of {len(sections)}: {name}", file=sys.stderr, flush=True)
            print(run(name, Path(scratch), options).text(), flush=True)
    if not options.quick and not options.section:
        hydrate_extra.measure_all()
        write()
    return 0


def write() -> None:
    """Write docs/benchmarks.md from what was measured so far."""
    write_document(
        PROJECT / "docs" / "benchmarks.md", [RESULTS / f"{name}.json" for name in SECTIONS], hydrate_extra.DOCUMENT
    )


def run(name: str, scratch: Path, options: argparse.Namespace) -> Section:
    """Measure one section: one shape over HTTP or TLS."""
    kind, secure = SECTIONS[name]
    shape = scaled(SHAPES[kind], options.scale)
    directory = scratch / name
    directory.mkdir()
    rounds = options.rounds
    samples: dict[str, list[Sample | None]] = {}
    with S3Server(directory / "s3") as server, reading(server, shape, directory, secure=secure) as source:
        present = [c for c in chosen(directory, secure=secure) if not options.only or c.name in options.only]
        for number in range(max(rounds or c.rounds for c in present)):
            if number and time.monotonic() > options.until:
                break
            taking = [c for c in present if number < (rounds or c.rounds)]
            random.Random(number).shuffle(taking)
            for contender in taking:
                with locked(options.lock):
                    sample = one(contender, source, directory / "to")
                samples.setdefault(contender.name, [None] * number).append(sample)
            seconds = ", ".join(f"{c.name} {s.durable_seconds:.1f}" for c in taking if (s := samples[c.name][-1]))
            print(f"{name}, round {number + 1}, seconds: {seconds}", file=sys.stderr, flush=True)
            rows = {c.name: samples[c.name] for c in present if c.name in samples}
            title = f"{shape.name}{' over TLS' if secure else ''}"
            section = Section(title=title, total_bytes=shape.total_bytes, machine=machine(), rows=rows)
            if not options.quick:  # after each round: a run that is cut short still counts
                (RESULTS / f"{name}.json").write_text(json.dumps(section.to_json()))
                write()
    shutil.rmtree(directory)
    return section


def scaled(shape: Shape, share: float) -> Shape:
    """The same with fewer bytes: smaller objects where they are large, else fewer."""
    if share == 1:
        return shape
    name = f"{shape.name}, scaled by {share:g}"
    if shape.count > FEW:
        return Shape(name=name, count=max(1, int(shape.count * share)), size_bytes=shape.size_bytes)
    return Shape(name=name, count=shape.count, size_bytes=int(shape.size_bytes * share))


def chosen(directory: Path, *, secure: bool) -> Sequence[Contender]:
    """The rows of a section; the C program speaks no TLS."""
    curl = contenders.curl()
    compared = [contenders.prewarm(), *contenders.peers(), *([curl] if curl else [])]
    return compared if secure else [*contenders.limits(compile_floor(directory)), contenders.loop(), *compared]


def compile_floor(directory: Path) -> Path:
    """Build the bare C program."""
    program = directory / "floor"
    source = PROJECT / "bench" / "floor.c"
    subprocess.run(["gcc", "-O2", "-pthread", "-o", str(program), str(source)], check=True)
    return program


@contextmanager
def reading(server: S3Server, shape: Shape, directory: Path, *, secure: bool) -> Iterator[Source]:
    """The uploaded objects, read from the server itself or from one beside it that speaks TLS."""
    upload(server, shape, "m")
    if not secure:
        yield describe(server, shape, "m", directory)
        return
    authority = Authority(directory / "authority")
    with S3Server(server.directory, authority.issue("s3", "IP:127.0.0.1", "DNS:localhost")) as tls:
        yield describe(tls, shape, "m", directory, authority.certificate)


@contextmanager
def locked(lock: Path | None) -> Iterator[None]:
    """Hold the lock while one command is measured."""
    if lock is None:
        yield
        return
    with lock.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def one(contender: Contender, source: Source, to: Path) -> Sample | None:
    """One run into an empty directory; None where it failed, which is told."""
    to.mkdir()
    begun = journal_below(to) if contender.name == "prewarm" else None
    try:
        return measure(
            contender.command(source, to),
            {**contender.environment(source), "PYTHONPATH": str(PROJECT)},
            stdin=source.plan(to) if contender.plan else "",
            begun=begun,
        )
    except CommandFailed as failed:
        print(f"{contender.name} failed: {failed}", file=sys.stderr, flush=True)
        return None
    finally:
        put_away(to, source.shape.count)


def put_away(to: Path, files: int) -> None:
    """Free what a run took. Of many files the inodes stay until the end of the section.

    For minutes ext4 will not reuse the inode of a deleted file, and looks at each in turn whenever it makes one
    (`recently_deleted` in fs/ext4/ialloc.c): after 10,000 deletions every new file costs a millisecond of CPU, whoever makes it.
    """
    if files <= FEW:
        shutil.rmtree(to)
        return
    for at, _, names in os.walk(to):
        for each in names:
            os.truncate(os.path.join(at, each), 0)
    to.rename(to.with_name(f"old-{time.monotonic_ns()}"))


if __name__ == "__main__":
    sys.exit(main())
