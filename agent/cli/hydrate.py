"""`prewarm hydrate s3://… --to DIR`: fetch a model into a directory with the agent's own engine, every byte verified.

Exit codes: 0 all files are there and verified, 1 failed, 2 usage, 130 interrupted (the next call resumes).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agent.core.errors import Invalid, PrewarmError
from agent.core.refs import ModelUri, parse_model_uri
from agent.core.units import format_duration, format_size, parse_size

if TYPE_CHECKING:
    from agent.models.engine import Progress
    from agent.models.fetch import Fetched

EXIT_OK, EXIT_FAILED, EXIT_USAGE, EXIT_INTERRUPTED = 0, 1, 2, 130
_LINE_SECONDS = 5.0  # between two lines where no terminal watches
Told = Callable[["Progress"], None]


def add_parser(subparsers: Any) -> None:
    """Add the command's flags."""
    parser = subparsers.add_parser(
        "hydrate", help="fetch a model from S3 into a directory, verified", description=__doc__
    )
    parser.add_argument("uri", help="s3://bucket/key-or-prefix/, with ?versionId=, ?include= and ?exclude=")
    parser.add_argument("--to", required=True, type=Path, metavar="DIR", help="where the files go; made if absent")
    parser.add_argument("--connections", type=int, default=8, help="S3 connections (default: %(default)s)")
    parser.add_argument("--bandwidth", default="0", metavar="SIZE", help="bytes per second at most (default: no cap)")
    parser.add_argument("--json", action="store_true", help="print the result as JSON, and no progress")
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
    started = time.monotonic()
    try:
        with _progress(uri, quiet=options.json) as told:
            fetched = asyncio.run(_until_interrupted(uri, options.to, options.connections, bandwidth, told))
    except PrewarmError as error:
        print(f"prewarm hydrate: {error}", file=sys.stderr)
        return EXIT_FAILED
    except (KeyboardInterrupt, asyncio.CancelledError):
        print("prewarm hydrate: interrupted; the same command resumes", file=sys.stderr)
        return EXIT_INTERRUPTED
    _tell(fetched, options, time.monotonic() - started)
    return EXIT_OK


async def _until_interrupted(uri: ModelUri, to: Path, connections: int, bandwidth: int, told: Told) -> Fetched:
    """Fetch; SIGTERM ends it as Ctrl-C does."""
    from agent.models.engine import Engine
    from agent.models.fetch import fetch

    this = asyncio.current_task()
    if this is not None:
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, this.cancel)
    return await fetch(uri, to, engine=Engine(connections=connections, bandwidth=bandwidth), told=told)


def _tell(fetched: Fetched, options: argparse.Namespace, seconds: float) -> None:
    if options.json:
        print(
            json.dumps(
                {
                    "uri": options.uri,
                    "directory": str(options.to),
                    "digest": fetched.digest,
                    "files": fetched.files,
                    "bytes": fetched.size_bytes,
                    "fetchedBytes": fetched.fetched_bytes,
                    "proof": fetched.proof,
                    "seconds": round(seconds, 3),
                }
            )
        )
        return
    how = f"fetched in {format_duration(seconds)}" if fetched.fetched_bytes else "already there"
    print(f"{fetched.files} files, {format_size(fetched.size_bytes)}, {how}, proved by {fetched.proof}: {options.to}")


@contextmanager
def _progress(uri: ModelUri, *, quiet: bool) -> Iterator[Told]:
    """Show progress: a bar on a terminal, else a line now and then, or nothing."""
    if quiet:
        yield lambda _progress: None
    elif sys.stderr.isatty():
        with _bar(uri) as told:
            yield told
    else:
        yield _lines()


@contextmanager
def _bar(uri: ModelUri) -> Iterator[Told]:
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import BarColumn, DownloadColumn, TimeRemainingColumn, TransferSpeedColumn
    from rich.progress import Progress as Bars

    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Bars("{task.description}", *columns, console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task(escape(str(uri)), total=None)
        yield lambda p: bars.update(task, completed=p.done_bytes, total=p.total_bytes)


def _lines() -> Told:
    last = [time.monotonic(), 0.0]

    def told(progress: Progress) -> None:
        now = time.monotonic()
        if now - last[0] >= _LINE_SECONDS:
            rate = (progress.fetched_bytes - last[1]) / (now - last[0])
            last[:] = [now, float(progress.fetched_bytes)]
            done, total = format_size(progress.done_bytes), format_size(progress.total_bytes)
            print(f"{done} of {total}, {format_size(rate)}/s", file=sys.stderr, flush=True)

    return told
