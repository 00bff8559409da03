"""What `prewarm doctor images` says of a containerd."""

from __future__ import annotations

from dataclasses import replace

import pytest

from agent.images.checks import check_daemon, check_disk, check_endpoint, check_image
from agent.images.daemon import Daemon, DaemonConfig
from agent.images.disk import Disk

GOOD = Daemon(version="v2.2.2", transfer=True, snapshotters={"overlayfs": ""}, config=DaemonConfig(roots=("/c",)))
LAZY = replace(
    GOOD,
    snapshotters={"overlayfs": "", "stargz": ""},
    config=DaemonConfig(
        snapshotter="stargz", annotates_snapshots=True, annotated=frozenset({"stargz"}), unpacks=frozenset({"stargz"})
    ),
)


def test_nothing_is_to_be_mended_where_all_is_well() -> None:
    assert [*check_daemon(GOOD, "overlayfs"), *check_daemon(LAZY, "stargz")] == []
    assert [*check_disk(None, 0.8), *check_disk(Disk(capacity_bytes=100, free_bytes=30), 0.8)] == []


@pytest.mark.parametrize(
    ("daemon", "snapshotter", "told"),
    [
        (replace(GOOD, version="1.6.20~ds1", transfer=False), "overlayfs", ["no transfer service", "ignores pins"]),
        (replace(GOOD, version="1.7.2"), "overlayfs", ["ignores pins"]),
        (replace(GOOD, config=None), "overlayfs", ["its configuration could not be read"]),
        (GOOD, "stargz", ["containerd has none of that name, but overlayfs", "the runtime unpacks into overlayfs", "fetched whole",
                          "cannot unpack into it"]),
        (replace(GOOD, snapshotters={"overlayfs": "no such module"}), "overlayfs", ["it did not load: no such module"]),
        (replace(GOOD, config=DaemonConfig(legacy_registries=True)), "overlayfs", ["mirrors, configs or auths"]),
        (replace(GOOD, config=DaemonConfig(roots=("/a", "/b"))), "overlayfs", ["several directories (/a, /b)"]),
        (replace(GOOD, config=DaemonConfig(discards_layers=True)), "overlayfs", ["discard_unpacked_layers is on"]),
    ],
)  # fmt: skip
def test_each_hindrance_is_told_with_its_cure(daemon: Daemon, snapshotter: str, told: list[str]) -> None:
    found = list(check_daemon(daemon, snapshotter))
    assert len(found) == len(told), found
    for check, part in zip(found, told, strict=True):
        assert part in check.message
        assert check.cure


def test_laziness_that_is_switched_off_names_the_switch() -> None:
    off = replace(LAZY, config=DaemonConfig(snapshotter="stargz", unpacks=frozenset({"stargz"})))
    (check,) = check_daemon(off, "stargz")
    assert "enable_remote_snapshot_annotations" in check.cure
    assert "disable_snapshot_annotations = false" in check.cure


def test_a_full_disk_is_told() -> None:
    (check,) = check_disk(Disk(capacity_bytes=100, free_bytes=10), 0.8)
    assert "90% of 100 B is used" in check.message


STARGZ = {"annotations": {"containerd.io/snapshot/stargz/toc.digest": "sha256:x"}}
SOCI = {"annotations": {"com.amazon.soci.index-digest": "sha256:x"}, "layers": [{}]}


@pytest.mark.parametrize(
    ("manifest", "daemon", "snapshotter", "told", "cure"),
    [
        ({"layers": [{}]}, LAZY, "stargz", "in no lazy format", ""),
        ({"layers": [STARGZ, STARGZ]}, LAZY, "stargz", "it is eStargz and will be lazy in stargz", ""),
        ({"layers": [STARGZ, {}]}, LAZY, "stargz", "1 of its layers are not in the eStargz format", "convert"),
        ({"layers": [STARGZ]}, GOOD, "overlayfs", "overlayfs does not serve that lazily", "stargz"),
        (SOCI, LAZY, "stargz", "stargz does not serve that lazily", "soci"),
        (SOCI, replace(LAZY, snapshotters={"soci": ""}, config=None), "soci", "will be lazy in soci, if its annotations", ""),
        ({"layers": [STARGZ]}, replace(LAZY, snapshotters={"stargz": "cannot dial"}), "stargz", "is not loaded", "proxy_plugins"),
        ({"layers": [STARGZ]}, replace(LAZY, config=DaemonConfig()), "stargz", "not told which layer", "enable_remote_snapshot"),
    ],
)  # fmt: skip
def test_of_an_image_it_is_told_whether_it_will_be_lazy_and_what_stops_it(
    manifest: dict[str, object], daemon: Daemon, snapshotter: str, told: str, cure: str
) -> None:
    (check,) = check_image("registry.test/x:1", manifest, daemon, snapshotter)
    assert told in check.message
    assert cure in check.cure
    assert bool(check.cure) == bool(cure)


def test_the_kubelets_image_endpoint_matters_to_lazy_images_only() -> None:
    here, other = "/run/containerd/containerd.sock", "/run/containerd-stargz-grpc/containerd-stargz-grpc.sock"
    assert not [*check_endpoint(other, here, "overlayfs"), *check_endpoint("", here, "stargz")]
    (same,) = check_endpoint(here, here, "stargz")
    (elsewhere,) = check_endpoint(other, here, "stargz")
    assert "learns no credentials" in same.message
    assert f"pulls through {other}" in elsewhere.message
