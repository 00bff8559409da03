"""200 random SIGKILLs while versions are brought in, committed, evicted, scrubbed and mended: nothing false, nothing lost twice."""

from __future__ import annotations

import asyncio
import json
import os
import random
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.parse import unquote

from agent.core.refs import Digest
from agent.models.journal import read_journal
from agent.models.kept import kept_records
from agent.models.manifest import Manifest, manifest_to_json
from agent.models.paths import Tree
from agent.models.resolve import resolve
from agent.models.source import open_source
from agent.models.store import Store
from agent.models.verify import verify_version
from agent.models.version import load_version
from tests.integration.models.conftest import SourceBucket, noise
from tests.integration.models.killing import CONNECTIONS, PART_BYTES, ROUND
from tests.integration.models.test_links import rot

KILLS = 200
MIB = 1 << 20
PARTS = ("lock", "pins", "refs", "staging", "store", "trash", "views")


Parts = frozenset[tuple[str, int]]  # by object key and offset


class World:
    """The root between two kills, as anybody may look at it."""

    def __init__(self, root: Path, manifests: Sequence[Manifest], bucket: SourceBucket) -> None:
        self.root, self.bucket, self.manifests = root, bucket, {m.digest: m for m in manifests}
        self.rotten: dict[int, tuple[str, int]] = {}  # file name and part, by the inode that was damaged

    def committed(self) -> list[Digest]:
        return [Digest(p.name) for p in sorted((self.root / "store").glob("*"))]

    def here(self) -> Parts:
        """The parts that need not come again: committed, kept, or noted in a journal."""
        found: set[tuple[str, int]] = set()
        committed = self.committed()
        for digest, manifest in self.manifests.items():
            staged = self.root / "staging" / digest
            kept = {o.path for o in manifest.objects} if digest in committed else kept_records(staged).keys()
            found |= {(o.key, at) for o in manifest.objects if o.path in kept for at in range(0, o.size, PART_BYTES)}
            journaled = read_journal(staged / "journal")
            if journaled is not None and journaled.digest == digest:
                found |= {(manifest.objects[file].key, at) for file, at in journaled.sums}
        return frozenset(found)

    def asked(self) -> dict[int, list[tuple[str, int]]]:
        """The ranges that were asked for, by round; twice where a second copy was."""
        found: dict[int, list[tuple[str, int]]] = {}
        for request in self.bucket.proxy.requests:
            if request.is_range:
                key = unquote(request.path.partition("?")[0]).removeprefix(f"/{self.bucket.name}/")
                at = int(request.headers["range"].removeprefix("bytes=").partition("-")[0])
                found.setdefault(int(request.headers[ROUND]), []).append((key, at))
        return found

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

    def bad_parts(self) -> Parts:
        """The parts that are damaged on disk, in every version: the file names are the contents' names."""
        here = {os.lstat(os.path.join(at, name)).st_ino for at, _, names in os.walk(self.root) for name in names}
        self.rotten = {inode: part for inode, part in self.rotten.items() if inode in here}
        objects = [o for m in self.manifests.values() for o in m.objects]
        return frozenset((o.key, at) for name, at in self.rotten.values() for o in objects if o.path == name)

    def rot_one(self, rng: random.Random) -> None:
        """Damage one byte of a committed file, so that only the scrub can find it."""
        files = [p for d in self.committed() for p in sorted((self.root / "store" / d / "files").iterdir())]
        sound = [p for p in files if p.stat().st_ino not in self.rotten]
        if sound:
            file = rng.choice(sound)
            at = rng.randrange(file.stat().st_size)
            rot(file, at)
            self.rotten[file.stat().st_ino] = file.name, at // PART_BYTES * PART_BYTES


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """What was on disk before and after one kill, and what of it was damaged."""

    before: Parts
    after: Parts
    bad: Parts


def check_rounds(rounds: Sequence[Round], asked: Mapping[int, Sequence[tuple[str, int]]]) -> str:
    """Nothing that was here is asked for again, and what a kill costs is what was in flight, a range for each connection."""
    lost = again = 0
    ever: set[tuple[str, int]] = set()
    for number, r in enumerate(rounds, start=1):
        ranges = frozenset(asked.get(number, ()))
        assert not (ranges & r.before) - r.bad, f"round {number} fetched what was here"
        in_flight = ranges - r.after - r.bad
        assert len(in_flight) <= CONNECTIONS, f"round {number} lost {sorted(in_flight)}"
        again += len((ranges & ever) - r.bad)
        lost += len(in_flight)
        ever = (ever | in_flight) - r.after
    assert again <= lost
    return f"{lost} parts in flight at {len(rounds)} kills, {again} of them fetched again"


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
    rounds: list[Round] = []
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
            before, names, bad = world.here(), set(world.committed()), world.bad_parts()
            unwanted = set(rng.sample(sorted(world.manifests), rng.choice((0, 0, 1, 2))))
            order = {
                "want": sorted(world.manifests.keys() - unwanted),
                "evict": sorted(unwanted),
                "seconds": rng.uniform(0.02, longest),
            }
            print(json.dumps(order), file=driver.stdin, flush=True)
            assert driver.stdout.readline() == "killed\n"
            world.check()
            rounds.append(Round(before=before, after=world.here(), bad=bad))
            # On a busy machine a round needs longer to come to the steps that matter.
            longest = max(0.2, longest * 0.9) if names != set(world.committed()) else min(1.5, longest * 1.05)
            commits += len(set(world.committed()) - names)
            evictions += len(names & unwanted - set(world.committed()))
        driver.stdin.close()
    print(f"{commits} commits, {evictions} evictions; {check_rounds(rounds, world.asked())}")
    assert commits >= 5
    assert evictions >= 3
    found = Store(root).open()
    assert found.broken == ()
    assert list((root / "trash").iterdir()) == []
    assert {p.name for p in (root / "staging").iterdir()} == {p.digest for p in found.partial}
