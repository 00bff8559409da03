"""`ask.sock`: "are my models here?", asked and answered with one line of JSON each.

A pod's init container stands in the way of its start, and importing gRPC alone costs it several times the CPU of this. Only a yes
is an answer; whoever hears anything else waits on `agent.sock`, where everything is told. The question:
`{"namespace", "endpoint", "pod_name", "pod_uid", "models": [[name, uri]]}`; the answer: `{"paths": {name: path}}`, empty for no.
"""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from agent.core.errors import Invalid, PrewarmError, cut
from agent.node.grants import Grants
from agent.node.waiting import WaitOrder, parse_order

_QUESTION_BYTES = 256 * 1024  # 50 models with URIs of 2 KiB, and room
_MAX_OPEN = 256
_SECONDS = 10.0


@asynccontextmanager
async def serving_questions(path: Path, grants: Grants) -> AsyncIterator[None]:
    """Answer on a socket that anyone may connect to; questions are untrusted: their size, number and time are bounded.

    Raises:
        Invalid: the socket cannot be made.
    """
    open_now = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal open_now
        open_now += 1
        try:
            if open_now <= _MAX_OPEN:
                async with asyncio.timeout(_SECONDS):
                    paths = await _answer(await reader.readuntil(b"\n"), grants)
                    writer.write(json.dumps({"paths": {n: str(p) for n, p in paths.items()}}).encode() + b"\n")
                    await writer.drain()
        except (TimeoutError, OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass  # who asks badly, or does not wait for the answer, gets none
        finally:
            open_now -= 1
            writer.close()

    # It begins to serve where its end is certain: cancelled while it does, it would leave the socket open.
    server = await asyncio.start_unix_server(serve, sock=_listening(path), limit=_QUESTION_BYTES, start_serving=False)
    async with server:
        await server.start_serving()
        yield


def _listening(path: Path) -> socket.socket:
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        path.unlink(missing_ok=True)  # left by an agent that was killed
        made.bind(str(path))
        path.chmod(0o666)
    except OSError as error:
        made.close()
        raise Invalid(f"cannot make {path}: {cut(error)} (setting run_dir)") from error
    return made


async def _answer(line: bytes, grants: Grants) -> Mapping[str, Path]:
    """Return where the models are; nothing unless all are here and this pod may have them."""
    with suppress(PrewarmError):
        order = _order(line)
        await grants.check_pod(order)
        now = grants.outlook(order)
        if await grants.granted(order, now):
            return grants.paths(order, now)
    return {}


def _order(line: bytes) -> WaitOrder:
    """Parse a question.

    Raises:
        Invalid: it is none.
    """
    try:
        told = json.loads(line)
        names = {n: told[n] for n in ("namespace", "endpoint", "pod_name", "pod_uid")}
        models = tuple((name, uri) for name, uri in told["models"])
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise Invalid("not a question") from error
    if not all(isinstance(v, str) for v in (*names.values(), *(v for m in models for v in m))):
        raise Invalid("not a question: a value that is no text")
    return parse_order(models=models, timeout=0.0, **names)
