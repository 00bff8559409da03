"""Every fault that networks and servers have, each 50 times at a random place, against a real S3 server.

No corrupt byte is committed, nothing hangs, and each download ends whole or in the one error that tells its cause. Where a
failure shows, its round is named, and `PREWARM_FAULT_SEED` repeats it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import re
import socket
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from agent.core.errors import Permanent, PrewarmError, Transient
from agent.models.engine import Engine
from agent.models.manifest import Manifest
from agent.models.resolve import resolve
from agent.models.source import S3Source, open_source
from agent.models.store import Store
from agent.models.wire import SourceChanged
from tests.bed.faultproxy import Request, Rule
from tests.integration.models.conftest import SourceBucket, contents, noise

TIMES, AT_ONCE = 50, 5
SEED = int(os.environ.get("PREWARM_FAULT_SEED", random.SystemRandom().randrange(1 << 32)))
PART = 64 << 10
SMALL = {f"tokens/{n}.json": 3000 + n for n in range(6)}  # each is asked for while the one before it is written
SIZES = {"a.safetensors": 5 * PART + 4321, "b.safetensors": 2 * PART, "config.json": 77} | SMALL
RANGES = 6 + 2 + 1 + len(SMALL)
PATIENCE_SECONDS = 0.3
HANG_SECONDS = 30.0

PASSING = {"503": 5, "reset": 2, "truncate": 2, "stall": 2, "wrong-content-range": 2}  # how often in a row, at most
WHY = {  # what the one error says of a fault that stays
    "503": "503 SlowDown, 3 times in a row",
    "reset": r"the connection failed \(ConnectionResetError\), 3 times in a row",
    "truncate": "the body ended after .* bytes, 3 times in a row",
    "stall": "the connection failed .*, 3 times in a row",
    "wrong-content-range": "was answered .*, 3 times in a row",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A model of its own under `prefix`, for rounds that run one after another beside those of other models."""

    bucket: SourceBucket
    source: S3Source
    prefix: str
    engine: Engine
    files: dict[str, bytes]

    def put(self, path: str, seed: int) -> None:
        self.files[path] = self.bucket.put(f"{self.prefix}/{path}", noise(SIZES[path], seed))

    @property
    def asked(self) -> int:
        return sum(q.is_range and f"/{self.prefix}/" in q.path for q in list(self.bucket.proxy.requests))

    async def resolve(self) -> Manifest:
        return await resolve(self.bucket.uri(f"{self.prefix}/"), self.source)

    @contextlib.contextmanager
    def rule(self, fault: str, *, after: int = 0, match: str = "", **how: Any) -> Iterator[Rule]:
        """Have a fault in ranges of this model: those that hold `match`, once `after` others have passed."""
        left = after

        def matches(request: Request) -> bool:
            nonlocal left
            if not (request.is_range and f"/{self.prefix}/" in request.path and match in request.headers["range"]):
                return False
            left -= 1
            return left < 0

        rule, proxy = Rule(fault, match=matches, **how), self.bucket.proxy
        proxy.rules = [*proxy.rules, rule]
        try:
            yield rule
        finally:
            proxy.rules = [r for r in proxy.rules if r is not rule]

    async def bring(self, root: Path, manifest: Manifest) -> PrewarmError | None:
        """Download and commit into a store of its own. Returns the error; then the store must show nothing."""
        store = Store(root)
        assert store.try_lock()  # makes the root
        await asyncio.to_thread(store.open)
        error = None
        try:
            async with asyncio.timeout(HANG_SECONDS):
                proofs = await self.engine.download(manifest, self.source, store.stage(manifest.digest))
            await asyncio.to_thread(store.commit, manifest, proofs, datetime.now(UTC))
        except PrewarmError as told:
            error = told
        found = await asyncio.to_thread(store.open)
        store.unlock()
        assert [v.digest for v in found.versions] == ([] if error else [manifest.digest])
        return error

    async def assert_brings(self, root: Path, manifest: Manifest) -> None:
        error = await self.bring(root, manifest)
        assert error is None, error
        assert contents(root / "store" / manifest.digest / "files") == self.files


def new_engine(attempts: int) -> Engine:
    engine = Engine(connections=4, stall_seconds=PATIENCE_SECONDS, attempts=attempts)
    engine.part_bytes = PART
    return engine


@contextlib.asynccontextmanager
async def models(bucket: SourceBucket, attempts: int = 6) -> AsyncIterator[list[Model]]:
    async with open_source() as source:
        made = [
            Model(bucket=bucket, source=source, prefix=f"m{n}", engine=new_engine(attempts), files={})
            for n in range(AT_ONCE)
        ]
        for model in made:
            for path in SIZES:
                model.put(path, 1)
        yield made


Round = Callable[[Model, Manifest, random.Random, Path], Awaitable[None]]


async def fifty(made: list[Model], directory: Path, one: Round) -> None:
    """Run a test's rounds, those of one model in turn."""
    numbers = iter(range(TIMES))

    async def rounds(model: Model) -> None:
        manifest = await model.resolve()
        for n in numbers:
            try:
                await one(model, manifest, random.Random(SEED + n), directory / str(n))
            except BaseException as error:
                error.add_note(f"PREWARM_FAULT_SEED={SEED}, round {n}")
                raise

    await asyncio.gather(*map(rounds, made))


def share(fault: str, rng: random.Random) -> float:
    return rng.random() if fault in ("reset", "truncate", "stall", "corrupt") else 0.5


@pytest.mark.parametrize("fault", PASSING)
async def test_a_fault_that_passes_is_endured(bucket: SourceBucket, tmp_path: Path, fault: str) -> None:
    async def one(model: Model, manifest: Manifest, rng: random.Random, root: Path) -> None:
        times = rng.randint(1, PASSING[fault])
        how: dict[str, Any] = {"times": times, "arg": 3 * PATIENCE_SECONDS, "at": share(fault, rng)}
        with model.rule(fault, after=rng.randrange(RANGES - 1), **how) as rule:
            await model.assert_brings(root, manifest)
        assert rule.times < times

    async with models(bucket) as made:
        await fifty(made, tmp_path, one)


async def test_a_fault_that_stays_ends_in_one_error_and_the_rest_is_resumed(
    bucket: SourceBucket, tmp_path: Path
) -> None:
    async def one(model: Model, manifest: Manifest, rng: random.Random, root: Path) -> None:
        fault = rng.choice(list(WHY))
        bad = f"={PART * rng.randrange(5)}-"
        with model.rule(fault, match=bad, times=999, arg=3 * PATIENCE_SECONDS, at=share(fault, rng)):
            error = await model.bring(root, manifest)
        assert isinstance(error, Transient)
        assert re.search(rf"key 'm\d/.*': .*{WHY[fault]}", str(error)), error
        await model.assert_brings(root, manifest)

    async with models(bucket, attempts=3) as made:
        await fifty(made, tmp_path, one)


async def test_a_flipped_byte_is_fetched_again(bucket: SourceBucket, tmp_path: Path) -> None:
    async def one(model: Model, manifest: Manifest, rng: random.Random, root: Path) -> None:
        with model.rule("corrupt", after=rng.randrange(RANGES), at=rng.random()) as rule:
            await model.assert_brings(root, manifest)
        assert rule.times == 0

    async with models(bucket) as made:
        await fifty(made, tmp_path, one)


async def test_a_byte_that_flips_each_time_is_never_committed(bucket: SourceBucket, tmp_path: Path) -> None:
    async def one(model: Model, manifest: Manifest, rng: random.Random, root: Path) -> None:
        with model.rule("corrupt", match=f"={PART * rng.randrange(5)}-", times=999, at=rng.random()):
            error = await model.bring(root, manifest)
        assert isinstance(error, Permanent)
        assert "arrived whole but its crc64nvme differs" in str(error)

    async with models(bucket) as made:
        await fifty(made, tmp_path, one)


async def test_another_objects_etag_is_told_and_the_next_try_brings_it(bucket: SourceBucket, tmp_path: Path) -> None:
    async def one(model: Model, manifest: Manifest, rng: random.Random, root: Path) -> None:
        asked = model.asked
        with model.rule("wrong-etag", after=rng.randrange(RANGES)):
            error = await model.bring(root, manifest)
        if error is None:  # a second copy of a late range was told, and the first one came all the same
            assert model.asked - asked > RANGES
        else:
            assert isinstance(error, SourceChanged)
        await model.assert_brings(root, manifest)

    async with models(bucket) as made:
        await fifty(made, tmp_path, one)


async def test_an_object_replaced_midway_is_told_and_the_new_one_comes_next(
    bucket: SourceBucket, tmp_path: Path
) -> None:
    async def one(model: Model, _manifest: Manifest, rng: random.Random, root: Path) -> None:
        manifest, before = await model.resolve(), dict(model.files)
        name, seed, lock, done = rng.choice(list(SIZES)), rng.randrange(1 << 30), threading.Lock(), threading.Event()

        def replace(request: Request) -> bool:
            with lock:
                if (
                    not done.is_set()
                    and request.is_range
                    and f"/{model.prefix}/" in request.path
                    and not rng.randrange(4)
                ):
                    model.put(name, seed)
                    done.set()
            return False

        rule = Rule("none", match=replace)
        model.bucket.proxy.rules = [*model.bucket.proxy.rules, rule]
        error = await model.bring(root, manifest)
        model.bucket.proxy.rules = [r for r in model.bucket.proxy.rules if r is not rule]
        if error is None:  # all of the old one had been asked for, or nothing was replaced
            assert contents(root / "store" / manifest.digest / "files") == before
        else:
            assert isinstance(error, SourceChanged)
        await model.assert_brings(root.with_name(f"{root.name}-next"), await model.resolve())

    async with models(bucket) as made:
        await fifty(made, tmp_path, one)


async def test_credentials_that_expire_are_renewed_once(bucket: SourceBucket, tmp_path: Path) -> None:
    async def one(model: Model, manifest: Manifest, rng: random.Random, root: Path) -> None:
        with model.rule("expired-token", after=rng.randrange(RANGES)) as rule:
            await model.assert_brings(root, manifest)
        assert rule.times == 0

    async with models(bucket) as made:
        await fifty(made, tmp_path, one)


async def test_credentials_that_stay_expired_end_in_one_error(bucket: SourceBucket, tmp_path: Path) -> None:
    async def one(model: Model, manifest: Manifest, rng: random.Random, root: Path) -> None:
        with model.rule("expired-token", after=rng.randrange(RANGES), times=999):
            error = await model.bring(root, manifest)
        assert isinstance(error, Permanent)
        assert "access denied while reading (400 ExpiredToken)" in str(error)

    async with models(bucket) as made:
        await fifty(made, tmp_path, one)


async def test_a_server_that_moves_is_found_by_its_name(
    bucket: SourceBucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Midway DNS names another address; the old one breaks its connections and accepts none, or says nothing any more."""
    real, name, live, dead = socket.getaddrinfo, "s3.moving.example", "127.0.0.1", "127.0.0.2"
    current = [live]

    def look_up(host: Any, *args: Any, **options: Any) -> Any:
        return real(current[0] if host == name else host, *args, **options)

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{name}:{bucket.proxy.port}")
    monkeypatch.setenv("no_proxy", name)

    async def one(model: Model, manifest: Manifest, rng: random.Random, root: Path) -> None:
        relay, left, silent = Relay(dead, bucket.proxy.port), rng.randrange(RANGES - 1), rng.random() < 0.3
        current[0] = dead

        def move(request: Request) -> bool:
            nonlocal left
            left -= request.is_range
            if left < 0 and current[0] == dead:
                current[0] = live
                relay.end(silent=silent)
            return False

        bucket.proxy.rules = [Rule("none", match=move)]
        try:
            await model.assert_brings(root, manifest)
        finally:
            relay.end(silent=False)
        assert current[0] == live

    async with models(bucket) as made:
        await fifty(made[:1], tmp_path, one)


class Relay:
    """A server's other address: passes bytes to 127.0.0.1 until its end, in which it breaks all connections or falls silent."""

    def __init__(self, address: str, port: int) -> None:
        self._port, self._silent = port, threading.Event()
        self._listener = socket.create_server((address, port))
        self._open: list[socket.socket] = []
        self._lock, self._ended = threading.Lock(), False
        threading.Thread(target=self._accept, daemon=True).start()

    def end(self, *, silent: bool) -> None:
        self._silent.set()
        if silent:
            return
        with self._lock:  # what is accepted from now on is closed by who accepts it
            self._ended = True
        for each in (self._listener, *self._open):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                with contextlib.ExitStack() as opened:
                    client = opened.enter_context(self._listener.accept()[0])
                    server = opened.enter_context(socket.create_connection(("127.0.0.1", self._port)))
                    with self._lock:
                        if self._ended:
                            return
                        self._open += [client, server]
                        opened.pop_all()  # they are closed with the others now
                for ends in ((client, server), (server, client)):
                    threading.Thread(target=self._pass, args=ends, daemon=True).start()

    def _pass(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if not self._silent.is_set():
                    target.sendall(data)
