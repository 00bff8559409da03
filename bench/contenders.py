"""Who downloads in `bench.hydrate`: prewarm, its peers, and the limits of the machine; each as a command on its own.

Every peer is given 16 streams and parts of 16 MiB where it takes such settings, and no check of bytes that it would make only
for some sources.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bench.hydrate_source import BUCKET, Source
from tests.bed import needs

THREADS, PART_MIB = 8, 8  # prewarm's own
STREAMS, PEER_PART_MIB = 16, 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Contender:
    """One row. `command` and `environment` are made for a source and an empty directory to download into."""

    name: str
    command: Callable[[Source, Path], Sequence[str]]
    environment: Callable[[Source], Mapping[str, str]] = field(default=lambda source: source.environment)
    rounds: int = 3
    plan: bool = False  # reads the list of presigned requests from stdin


def limits(floor: Path) -> list[Contender]:
    """The bare C program, in its three ways."""

    def way(mode: str) -> Callable[[Source, Path], Sequence[str]]:
        return lambda source, _to: [str(floor), mode, source.host, str(source.port), str(THREADS), str(PART_MIB)]

    named = (("disk limit", "disk"), ("source limit", "source"), ("both at once", "both"))
    return [Contender(name=name, command=way(mode), rounds=7, plan=True) for name, mode in named]


def loop() -> Contender:
    """The same loop in Python, with checksums: what the interpreter and the proof cost anyone."""
    return Contender(name="bare loop in Python", command=lambda source, to: _client("loop", source, to), rounds=7)


def prewarm() -> Contender:
    """The real command, proof on."""
    program = str(Path(sys.executable).with_name("prewarm"))
    return Contender(
        name="prewarm",
        command=lambda source, to: [program, "hydrate", f"s3://{BUCKET}/{source.prefix}/", "--to", str(to), "--json"],
        rounds=7,
    )


def peers() -> list[Contender]:
    """Every peer that is on this machine."""
    program = Path(sys.executable).with_name
    found = [
        _s5cmd(needs.find("s5cmd")),
        _rclone(program("rclone")),
        _aws(shutil.which("aws", path="/usr/bin") or shutil.which("aws")),
        Contender(name="awscrt", command=lambda source, to: _client("crt", source, to)),
        Contender(name="obstore", command=lambda source, to: _client("obstore", source, to)),
    ]
    return [each for each in found if each is not None]


def curl() -> Contender | None:
    """Parallel curl: a process for each of eight equal shares, to files, or one for all small files."""
    if shutil.which("curl") is None:
        return None
    return Contender(name="curl", command=lambda source, to: _client("curl", source, to))


def _client(kind: str, source: Source, to: Path) -> list[str]:
    return [sys.executable, "-m", "bench.peers", kind, str(source.description), str(to)]


def _s5cmd(program: Path | None) -> Contender | None:
    if program is None:
        return None
    options = ["--concurrency", str(STREAMS), "--part-size", str(PEER_PART_MIB)]

    def command(source: Source, to: Path) -> list[str]:
        return [
            str(program),
            "--endpoint-url",
            source.url,
            "cp",
            *options,
            f"s3://{BUCKET}/{source.prefix}/*",
            f"{to}/",
        ]

    return Contender(name="s5cmd", command=command, rounds=7)


def _rclone(program: Path) -> Contender | None:
    if not program.exists():
        return None
    options = [
        "--multi-thread-streams",
        str(STREAMS),
        "--multi-thread-chunk-size",
        f"{PEER_PART_MIB}M",
        "--ignore-checksum",
    ]

    def command(source: Source, to: Path) -> list[str]:
        secure = ["--ca-cert", source.authorities] if source.authorities else []
        words = ["--config", "/dev/null", *secure, "--transfers", str(STREAMS), *options]
        return [str(program), "copy", *words, f"b:{BUCKET}/{source.prefix}", str(to)]

    def environment(source: Source) -> Mapping[str, str]:
        said = {"TYPE": "s3", "PROVIDER": "Other", "ENV_AUTH": "true", "ENDPOINT": source.url, "REGION": "us-east-1"}
        return {**source.environment, **{f"RCLONE_CONFIG_B_{name}": value for name, value in said.items()}}

    return Contender(name="rclone", command=command, environment=environment, rounds=7)


def _aws(program: str | None) -> Contender | None:
    if program is None:
        return None

    def command(source: Source, to: Path) -> list[str]:
        words = ["--endpoint-url", source.url, "s3", "cp", "--recursive", "--only-show-errors"]
        return [program, *words, f"s3://{BUCKET}/{source.prefix}/", str(to)]

    def environment(source: Source) -> Mapping[str, str]:
        settings = source.description.with_name("aws-config")
        lines = [
            "[default]",
            "s3 =",
            f"  max_concurrent_requests = {STREAMS}",
            f"  multipart_chunksize = {PEER_PART_MIB}MB",
        ]
        settings.write_text("\n".join(lines) + "\n")
        return {**source.environment, "AWS_CONFIG_FILE": str(settings)}

    return Contender(name="AWS CLI", command=command, environment=environment)
