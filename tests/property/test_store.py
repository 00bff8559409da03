"""The store against a plain dictionary: whatever the order of operations and reopenings, what is committed is what was put."""

from __future__ import annotations

import shutil
import tempfile
from datetime import UTC, datetime
from pathlib import Path

from awscrt.checksums import crc64nvme
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from agent.core.refs import Digest, EndpointKey, parse_model_uri
from agent.models.manifest import Manifest, ObjectEntry
from agent.models.store import Store
from agent.models.transfer import FileProof
from agent.models.version import Version
from agent.models.views import Views

ENDPOINT = EndpointKey(namespace="n", name="e")
NAMES = st.sampled_from(["a", "b", "c"])
NOW = datetime(2030, 1, 1, tzinfo=UTC)


def manifest_of(name: str) -> Manifest:
    content = name.encode()
    objects = tuple(
        ObjectEntry(key=f"{name}/{path}", path=path, size=len(content), etag=f'"{name}"') for path in ("dir/one", "two")
    )
    return Manifest(uri=parse_model_uri(f"s3://bucket/{name}/"), objects=objects)


class StoreMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp())
        self.store, self.views = Store(self.root), Views(self.root)
        self.store.open()
        self.committed: dict[Digest, tuple[str, Version]] = {}
        self.shown: set[Digest] = set()

    def stage(self, name: str) -> Manifest:
        manifest = manifest_of(name)
        files = self.store.stage(manifest.digest) / "files"
        for entry in manifest.objects:
            (files / entry.path).parent.mkdir(parents=True, exist_ok=True)
            (files / entry.path).unlink(missing_ok=True)
            (files / entry.path).write_bytes(name.encode())
        return manifest

    @rule(name=NAMES)
    def begin(self, name: str) -> None:
        if manifest_of(name).digest not in self.committed:
            self.stage(name)

    @rule(name=NAMES)
    def commit(self, name: str) -> None:
        manifest = self.stage(name)
        proofs = [FileProof(path=o.path, crc64=crc64nvme(name.encode()), proof="crc64nvme") for o in manifest.objects]
        version = self.store.commit(manifest, proofs, NOW)
        self.committed[manifest.digest] = (name, version)

    @rule(name=NAMES)
    def remove(self, name: str) -> None:
        digest = manifest_of(name).digest
        self.views.drop_version(digest)
        self.store.remove(digest)
        self.committed.pop(digest, None)
        self.shown.discard(digest)

    @rule(name=NAMES)
    def show(self, name: str) -> None:
        digest = manifest_of(name).digest
        if digest in self.committed:
            self.views.make(ENDPOINT, name, self.committed[digest][1], self.store.directory(digest))
            self.shown.add(digest)

    @rule(keep=st.sets(NAMES))
    def sweep(self, keep: set[str]) -> None:
        kept = {manifest_of(name).digest for name in keep}
        self.views.sweep({(ENDPOINT, d) for d in kept}, lambda _digest: False)
        self.shown &= kept

    @rule(name=NAMES)
    def harm(self, name: str) -> None:
        digest = manifest_of(name).digest
        if digest in self.committed:
            file = self.store.directory(digest) / "files/dir/one"
            file.chmod(0o644)
            file.write_bytes(b"")
            assert "has 0 bytes, was committed with 1" in self.store.prove(self.committed.pop(digest)[1])
            self.store.remove(digest)
            self.views.drop_version(digest)
            self.shown.discard(digest)

    @rule()
    def reopen(self) -> None:
        self.store = Store(self.root)
        found = self.store.open()
        assert found.broken == ()
        assert {v.digest: v for v in found.versions} == {d: v for d, (_, v) in self.committed.items()}
        assert list((self.root / "staging").iterdir()) == []  # nothing here has a journal

    @invariant()
    def what_is_committed_is_whole(self) -> None:
        assert {p.name for p in (self.root / "store").iterdir()} == set(self.committed)
        for digest, (name, version) in self.committed.items():
            assert self.store.prove(version) == ""
            assert (self.store.directory(digest) / "files/two").read_bytes() == name.encode()

    @invariant()
    def views_show_what_is_committed(self) -> None:
        assert {digest for _, digest, _ in self.views.existing()} == self.shown
        for digest in self.shown & set(self.committed):
            view = self.views.directory(ENDPOINT, digest)
            assert (view / "two").read_bytes() == self.committed[digest][0].encode()
            assert view.with_name(f"{digest}.json").exists()

    @invariant()
    def trash_is_empty(self) -> None:
        assert list((self.root / "trash").iterdir()) == []

    def teardown(self) -> None:
        shutil.rmtree(self.root)


TestStore = StoreMachine.TestCase
TestStore.settings = settings(max_examples=25, stateful_step_count=15, deadline=None)
