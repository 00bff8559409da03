"""Runs the models room again and again and kills it: `python -m … ROOT`, driven by JSON lines on stdin.

Each line gives what the plan says and after how many seconds the process that runs it gets SIGKILL; the answer is a line
when it is dead. One process imports everything once and forks for each round. The manifests are given, so that no round
begins with a listing; the bytes come from S3 by the engine as ever.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import sys
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from botocore.credentials import Credentials

from agent.config import Settings
from agent.core.assignment import ModelWant
from agent.core.clock import SystemClock
from agent.core.heartbeat import Heartbeat
from agent.core.inventory import ModelsView
from agent.core.latest import Latest
from agent.core.refs import Digest, ModelUri
from agent.models import eviction, scrub
from agent.models.bucket import Bucket
from agent.models.engine import Engine
from agent.models.manifest import Listed, Manifest, ObjectEntry, manifest_from_json
from agent.models.service import ModelService
from agent.models.source import S3Source
from agent.plan.decision import EvictStep, HydrateStep, NodePlan

CONNECTIONS = 2
PART_BYTES = 1 << 20
ROUND = "x-round"  # a header of each request for a range: the round it was asked in


class KnownSource(S3Source):
    """S3 whose objects were listed before."""

    def __init__(self, manifests: Mapping[str, Manifest], bucket: Bucket) -> None:
        frozen = Credentials(
            os.environ["AWS_ACCESS_KEY_ID"], os.environ["AWS_SECRET_ACCESS_KEY"]
        ).get_frozen_credentials()
        super().__init__(None, None, frozen)
        self._manifests, self._bucket = manifests, bucket
        self.round = 0

    def sign(self, bucket: Bucket, path: str, headers: Mapping[str, str], **how: Any) -> dict[str, str]:
        return super().sign(bucket, path, headers, **how) | {
            ROUND: str(self.round)
        }  # S3 passes over what is not signed

    async def list_objects(self, uri: ModelUri) -> list[Listed]:
        return [Listed(key=o.key, size=o.size, etag=o.etag) for o in self._manifests[str(uri)].objects]

    async def head(self, bucket: str, listed: Listed, path: str, version_id: str = "") -> ObjectEntry:
        return next(o for m in self._manifests.values() for o in m.objects if o.key == listed.key)

    async def bucket(self, name: str) -> Bucket:
        return self._bucket

    async def keep_fresh(self) -> None:
        return


def plan_of(order: Mapping[str, Any], manifests: Mapping[str, Manifest]) -> NodePlan:
    wants = [ModelWant(name="m", uri=m.uri, digest=m.digest) for m in manifests.values() if m.digest in order["want"]]
    steps = [HydrateStep(want=w, endpoints=(), due=None, urgent=False, reason="wanted") for w in wants]
    evictions = [EvictStep(digest=Digest(d), reason="not wanted") for d in order["evict"]]
    return NodePlan(hydrations=tuple(steps), evictions=tuple(evictions), models=tuple(wants))


async def run(root: Path, source: KnownSource, plan: NodePlan) -> None:
    eviction.WAIT_SECONDS, scrub.TURN_SECONDS, scrub.FIRST_SECONDS = 0.02, 0.01, 0.0

    @asynccontextmanager
    async def known() -> AsyncIterator[S3Source]:
        yield source

    engine = Engine(connections=CONNECTIONS)
    engine.part_bytes = PART_BYTES
    service = ModelService(
        settings=replace(Settings(), root=root, proof_interval_seconds=0.1, high_watermark=1.0, scrub=10**12),
        plan=Latest(plan),
        models=Latest(ModelsView()),
        clock=SystemClock(),
        heartbeat=Heartbeat(),
        engine=engine,
        source=known,
        rng=random.Random(),
    )
    await service.run()


def main() -> None:
    root, told = Path(sys.argv[1]), json.loads(sys.stdin.readline())
    manifests = {str(m.uri): m for m in map(manifest_from_json, told["manifests"])}
    source = KnownSource(manifests, Bucket(**told["bucket"]))
    for line in sys.stdin:
        order = json.loads(line)
        source.round += 1
        child = os.fork()
        if not child:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            asyncio.run(run(root, source, plan_of(order, manifests)))
            os._exit(3)
        time.sleep(order["seconds"])
        gone, _ = os.waitpid(child, os.WNOHANG)
        if not gone:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        print("ended by itself" if gone else "killed", flush=True)


if __name__ == "__main__":
    main()
