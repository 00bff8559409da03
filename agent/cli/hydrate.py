"""`prewarm hydrate s3://… --to DIR`: fetch a model into a directory with the agent's own engine, every byte verified."""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agent.cli.progress import Step, Told, reporting, say_json
from agent.core.errors import Invalid, PrewarmError, Transient
from agent.core.refs import ModelUri, parse_model_uri
from agent.core.units import format_duration, format_size, parse_size

if TYPE_CHECKING:
    from agent.models.engine import Engine, Progress
    from agent.models.fetch import Fetched

EXIT_OK, EXIT_FAILED, EXIT_USAGE, EXIT_AGAIN, EXIT_INTERRUPTED = 0, 1, 2, 75, 130  # 75: EX_TEMPFAIL of sysexits.h
_EPILOG = """\
Files appear at their places once the whole version is there and verified; until then they are in DIR/.prewarm. Interrupted
or killed, the same command goes on where it was. A directory that is up to date is not downloaded again. Credentials,
region and endpoint are found as every AWS SDK finds them (AWS_PROFILE, AWS_REGION, AWS_ENDPOINT_URL, ...).

examples:
  prewarm hydrate s3://models/llama-3-8b/ --to /data/llama
  prewarm hydrate 's3://models/llama-3-8b/?include=*.safetensors&include=*.json' --to /data/llama
  prewarm hydrate 's3://models/llama.gguf?versionId=3HL4kqtJ' --to /data --bandwidth 200MB
  prewarm hydrate s3://models/llama-3-8b/ --to /data/llama --json | jq -r 'select(.event=="result").digest'

exit codes: 0 every file is there and verified; 1 it cannot be had (denied, absent, corrupt, no space); 2 bad usage;
75 S3 is away or the directory is busy: try again later; 130 interrupted.
"""


def add_parser(subparsers: Any) -> None:
    """Add the command's flags."""
    parser = subparsers.add_parser(
        "hydrate",
        help="fetch a model from S3 into a directory, verified",
        description=__doc__,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("uri", help="s3://bucket/key-or-prefix/, with ?versionId=, ?include= and ?exclude=")
    parser.add_argument("--to", required=True, type=Path, metavar="DIR", help="where the files go; made if absent")
    parser.add_argument("--connections", type=int, default=8, help="S3 connections (default: %(default)s)")
    parser.add_argument("--bandwidth", default="0", metavar="SIZE", help="bytes per second at most (default: no cap)")
    told = parser.add_mutually_exclusive_group()
    told.add_argument("--json", action="store_true", help="a JSON object a line: progress, then result or error")
    told.add_argument("-q", "--quiet", action="store_true", help="no progress, only the result")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Run the command."""
    try:
        uri = parse_model_uri(options.uri)
        bandwidth = parse_size(options.bandwidth)
        if not 1 <= options.connections <= 256:
            raise Invalid("--connections must be between 1 and 256")
    except Invalid as error:
        print(f"prewarm hydrate: {error}", file=sys.stderr)
        return EXIT_USAGE
    from agent.models.engine import Engine

    started, engine = time.monotonic(), Engine(connections=options.connections, bandwidth=bandwidth)
    try:
        with reporting(str(uri), as_json=options.json, quiet=options.quiet) as told:
            fetched = asyncio.run(_until_interrupted(uri, options.to, engine, told))
    except PrewarmError as error:
        _tell_error(str(error), options)
        return EXIT_AGAIN if isinstance(error, Transient) else EXIT_FAILED
    except (KeyboardInterrupt, asyncio.CancelledError):
        here = engine.progress
        told_here = (
            f" with {format_size(here.done_bytes)} of {format_size(here.total_bytes)} here" if here.total_bytes else ""
        )
        _tell_error(f"interrupted{told_here}; the same command goes on from there", options)
        return EXIT_INTERRUPTED
    _tell(fetched, options, time.monotonic() - started)
    return EXIT_OK


async def _until_interrupted(uri: ModelUri, to: Path, engine: Engine, told: Told) -> Fetched:
    """Fetch; SIGTERM ends it as Ctrl-C does."""
    from agent.models.fetch import fetch

    this = asyncio.current_task()
    if this is not None:
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, this.cancel)
    return await fetch(uri, to, engine=engine, told=lambda progress: told(_step(progress)))


def _step(progress: Progress) -> Step:
    return Step(
        done_bytes=progress.done_bytes,
        total_bytes=progress.total_bytes,
        moved_bytes=progress.fetched_bytes,
        files_done=progress.files_done,
        files_total=progress.files_total,
        files=tuple((f.path, f.done_bytes, f.size_bytes) for f in progress.files),
    )


def _tell_error(error: str, options: argparse.Namespace) -> None:
    if options.json:
        say_json("error", error=error)
    print(f"prewarm hydrate: {error}", file=sys.stderr)


def _tell(fetched: Fetched, options: argparse.Namespace, seconds: float) -> None:
    rate = fetched.fetched_bytes / seconds if seconds > 0 else 0.0
    if options.json:
        say_json(
            "result",
            uri=options.uri,
            directory=str(options.to),
            digest=fetched.digest,
            files=fetched.files,
            bytes=fetched.size_bytes,
            fetchedBytes=fetched.fetched_bytes,
            proof=fetched.proof,
            seconds=round(seconds, 3),
            bytesPerSecond=round(rate),
        )
        return
    how = (
        f"fetched in {format_duration(seconds)} at {format_size(rate)}/s" if fetched.fetched_bytes else "already there"
    )
    unproved = "source unproved: it states no checksum of some files, their sizes and ETags agree"
    proof = unproved if fetched.is_unproved else f"proved by {fetched.proof}"
    print(f"{fetched.files} files, {format_size(fetched.size_bytes)}, {how}, {proof}: {options.to}")
