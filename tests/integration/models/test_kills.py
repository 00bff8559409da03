"""200 random SIGKILLs while versions are brought in, committed, evicted, scrubbed and mended: nothing false, nothing lost twice."""

from __future__ import annotations

import asyncio
import json
import os
import random
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from agent.core.refs import Digest
from agent.models.kept import staged_bytes
from agent.models.manifest import Manifest, manifest_to_json
from agent.models.paths import Tree
from agent.models.resolve import resolve
from agent.models.source import open_source
from agent.models.store import Store
from agent.models.verify import verify_version
from agent.models.version import load_version
from tests.integration.models.conftest import SourceBucket, noise
from tests.integration.models.killing import CONNECTIONS
from tests.integration.models.test_links import rot

KILLS = 200
MIB = 1 << 20
PARTS = ("lock", "pins", "refs", "staging", "store", "trash", "views")


class World:
    """The root between two kills, as anybody may look at it."""

    def __init__(self, root: Path, manifests: Sequence[Manifest], bucket: SourceBucket) -> None:
        self.root, self.bucket, self.manifests = root, bucket, {m.digest: m for m in manifests}
        self.rotten: list[int] = []  # inodes, once for each damaged byte
        self.asked = 0

    def committed(self) -> list[Digest]:
        return [Digest(p.name) for p in sorted((self.root / "store").glob("*"))]

    def done_bytes(self) -> dict[Digest, int]:
        """By version: bytes that need not come again."""
        done = {d: staged_bytes(self.root / "staging" / d, d) or 0 for d in self.manifests}
        return done | {d: self.manifests[d].size_bytes for d in self.committed()}

    def fetched_bytes(self) -> int:
        """Bytes asked for since the last call."""
        ranges = self.bucket.proxy.ranges[self.asked :]
        self.asked += len(ranges)
        spans = [r.removeprefix("bytes=").split("-") for r in ranges]
        return sum(int(last) - int(first) + 1 for first, last in spans)

    def check(self) -> None:
        """Every version that can be seen is whole, and nothing lies where nothing belongs."""
        assert {p.name for p in self.root.iterdir()} <= set(PARTS)
        for digest in self.committed():
            directory = self.root / "store" / digest
            version = load_version(directory)
            assert version.digest == digest
            why = verify_version(version, directory)
            tree = Tree(directory / "files")
            bad = [r.path for r in version.files if tree.stat(r.path).st_ino in self.rotten]
            assert not why or any(why.startswith(f"{path!r} is damaged") for path in bad), why

    def bad_parts(self) -> int:
        """How many parts are damaged at most."""
        here = {os.lstat(os.path.join(at, name)).st_ino for at, _, names in os.walk(self.root) for name in names}
        self.rotten = [inode for inode in self.rotten if inode in here]
        return len(self.rotten)

    def rot_one(self, rng: random.Random) -> None:
        """Damage one byte of a committed file, so that only the scrub can find it."""
        files = [p for d in self.committed() for p in sorted((self.root / "store" / d / "files").iterdir())]
        if files:
            file = rng.choice(files)
            rot(file, rng.randrange(file.stat().st_size))
            self.rotten.append(file.stat().st_ino)


async def listed(bucket: SourceBucket) -> tuple[list[Manifest], dict[str, object]]:
    async with open_source() as source:
        manifests = [await resolve(bucket.uri(f"{name}/"), source) for name in ("v1", "v2", "other")]
        return manifests, asdict(await source.bucket(bucket.name))


def test_killed_anywhere_nothing_is_false_and_little_comes_twice(bucket: SourceBucket, tmp_path: Path) -> None:
    for name, files in {"v1": "abc", "v2": "abd", "other": "e"}.items():
        for file in files:
            bucket.put(f"{name}/{file}", noise(3 * MIB + 77, ord(file)))
    manifests, reached = asyncio.run(listed(bucket))
    root = tmp_path / "root"
    root.mkdir()
    Store(root).open()
    world, rng = World(root, manifests, bucket), random.Random(4)
    commits, evictions, longest = 0, 0, 0.3
    told = [sys.executable, "-m", "tests.integration.models.killing", str(root)]
    with subprocess.Popen(
        told, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=dict(os.environ)
    ) as driver:
        assert driver.stdin
        assert driver.stdout
        print(json.dumps({"manifests": [manifest_to_json(m) for m in manifests], "bucket": reached}), file=driver.stdin)
        for _ in range(KILLS):
            if rng.random() < 0.25:
                world.rot_one(rng)
            before, names, bad = world.done_bytes(), set(world.committed()), world.bad_parts()
            unwanted = set(rng.sample(sorted(world.manifests), rng.choice((0, 0, 1, 2))))
            order = {
                "want": sorted(world.manifests.keys() - unwanted),
                "evict": sorted(unwanted),
                "seconds": rng.uniform(0.02, longest),
            }
            print(json.dumps(order), file=driver.stdin, flush=True)
            assert driver.stdout.readline() == "killed\n"
            world.check()
            after, fetched = world.done_bytes(), world.fetched_bytes()
            gained = sum(max(0, after[d] - before[d]) for d in after)
            # In flight is a range for each connection, and of a late one a second copy.
            assert fetched <= gained + (2 * CONNECTIONS + bad) * MIB
            # On a busy machine a round needs longer to come to the steps that matter.
            longest = max(0.2, longest * 0.9) if names != set(world.committed()) else min(1.5, longest * 1.05)
            commits += len(set(world.committed()) - names)
            evictions += len(names & unwanted - set(world.committed()))
        driver.stdin.close()
    print(f"{commits} commits, {evictions} evictions")
    assert commits >= 5
    assert evictions >= 3
    found = Store(root).open()
    assert found.broken == ()
    assert list((root / "trash").iterdir()) == []
    assert {p.name for p in (root / "staging").iterdir()} == {p.digest for p in found.partial}
