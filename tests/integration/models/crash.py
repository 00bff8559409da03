"""A child that hydrates into a store and kills itself at a named step: `python -m … ROOT URI STEP`. Prints what it committed."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from datetime import UTC, datetime
from pathlib import Path

from agent.core.refs import parse_model_uri
from agent.models.engine import Engine
from agent.models.resolve import resolve
from agent.models.source import open_source
from agent.models.store import Store


async def hydrate(root: Path, uri: str, fatal: str) -> None:
    def step(name: str) -> None:
        if name == fatal:
            os.kill(os.getpid(), signal.SIGKILL)

    store = Store(root, step=step)
    if not store.try_lock():
        sys.exit("the root is locked")
    store.open()
    async with open_source() as source:
        manifest = await resolve(parse_model_uri(uri), source)
        proofs = await Engine(connections=2).download(manifest, source, store.stage(manifest.digest))
        print(store.commit(manifest, proofs, datetime.now(UTC)).digest, flush=True)


if __name__ == "__main__":
    asyncio.run(hydrate(Path(sys.argv[1]), sys.argv[2], sys.argv[3]))
