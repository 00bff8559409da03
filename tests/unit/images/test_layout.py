"""Image documents come from registries: good ones are read, others are refused with a sentence."""

from __future__ import annotations

import pytest

from agent.core.errors import Permanent
from agent.core.refs import parse_image_ref
from agent.images.layout import chain_ids, entry_files, parse_document, parse_manifest, pick_manifest
from agent.images.prove import record_name

A, B = "sha256:" + "a" * 64, "sha256:" + "b" * 64
LAYER = {"digest": B, "size": 7}


def test_the_chain_is_the_oci_rule() -> None:
    first = "sha256:" + "1" * 64
    second = "sha256:" + "2" * 64
    joined = "sha256:9932074217c35353d2e03a3f5a86549f7c67bfeb0ba53e23d69f4d4c8f7958f5"  # sha256sum of "first second"
    assert chain_ids({"rootfs": {"diff_ids": [first, second]}}, A) == (first, joined)
    assert chain_ids({"rootfs": {"diff_ids": []}}, A) == ()


@pytest.mark.parametrize("config", [{}, {"rootfs": 1}, {"rootfs": {}}, {"rootfs": {"diff_ids": [1]}}])
def test_a_config_without_layers_is_refused(config: dict[str, object]) -> None:
    with pytest.raises(Permanent, match="names no layers"):
        chain_ids(config, A)


def test_the_index_entry_of_this_platform_is_picked() -> None:
    def entry(architecture: str, digest: str, system: str = "linux") -> dict[str, object]:
        return {"digest": digest, "platform": {"os": system, "architecture": architecture}}

    index: dict[str, object] = {"manifests": [entry("amd64", A, "windows"), entry("arm64", A), entry("amd64", B)]}
    assert pick_manifest(index, A, "amd64") == B
    assert pick_manifest({"layers": []}, A, "amd64") is None
    with pytest.raises(Permanent, match="no manifest for linux/s390x"):
        pick_manifest(index, A, "s390x")


@pytest.mark.parametrize(
    ("machine", "entries", "picked"),
    [
        ("amd64", ["amd64/v3", "amd64"], 1),
        ("amd64", ["amd64/v2", "amd64/v1"], 1),
        ("amd64", ["386", "x86_64"], 1),
        ("amd64", ["arm64", "386"], 1),
        ("amd64", ["amd64/v2", "amd64/v3"], None),
        ("arm64", ["arm64/v9", "arm64/v8", "arm64"], 1),
        ("arm64", ["arm/v6", "arm", "amd64"], 1),
        ("arm64", ["arm/v7", "arm64"], 1),
        ("s390x", ["s390x/z15", "s390x"], 1),
    ],
)
def test_of_several_entries_for_a_machine_the_one_is_picked_that_containerd_takes(
    machine: str, entries: list[str], picked: int | None
) -> None:
    made = []
    for n, each in enumerate(entries):
        architecture, _, variant = each.partition("/")
        on = {"os": "linux", "architecture": architecture} | ({"variant": variant} if variant else {})
        made.append({"digest": f"sha256:{n:064x}", "platform": on})
    index: dict[str, object] = {"manifests": made}
    if picked is None:
        with pytest.raises(Permanent, match=f"no manifest for linux/{machine}"):
            pick_manifest(index, A, machine)
    else:
        assert pick_manifest(index, A, machine) == made[picked]["digest"]


@pytest.mark.parametrize(
    "manifests",
    [{}, 3, [1], [{"platform": 1}], [{"platform": {"os": "linux", "architecture": "amd64", "variant": ["v1"]}}]],
)
def test_a_malformed_index_has_no_manifest(manifests: object) -> None:
    with pytest.raises(Permanent, match="no manifest for linux/amd64"):
        pick_manifest({"manifests": manifests}, A, "amd64")


def test_a_manifest_sums_its_layers() -> None:
    manifest = parse_manifest({"config": {"digest": A}, "layers": [LAYER, LAYER]}, A)
    assert (manifest.config, manifest.size_bytes) == (A, 14)


@pytest.mark.parametrize(
    "document",
    [
        {},
        {"config": {"digest": A}, "layers": "x"},
        {"config": {"digest": "sha256:../../x"}, "layers": []},
        {"config": 1, "layers": []},
        {"config": {"digest": A}, "layers": [{"digest": B}]},
        {"config": {"digest": A}, "layers": [{"digest": B, "size": -1}]},
        {"config": {"digest": A}, "layers": [{"digest": B, "size": 10**400}]},
        {"config": {"digest": A}, "layers": [LAYER] * 513},
    ],
)
def test_a_malformed_manifest_is_refused(document: dict[str, object]) -> None:
    with pytest.raises(Permanent):
        parse_manifest(document, A)


def test_paths_that_no_file_can_have_are_no_entry_points() -> None:
    words = ["/bin/a", "/b\0", "/\ud800", "/x/../y", "c"]
    assert entry_files({"config": {"Entrypoint": words}}) == ("/bin/a",)


@pytest.mark.parametrize("content", [b"", b"[]", b"\xff", b"[" * 100_000])
def test_what_is_no_json_object_is_refused(content: bytes) -> None:
    with pytest.raises(Permanent):
        parse_document(content, A)


@pytest.mark.parametrize(
    ("written", "recorded"),
    [
        ("nginx", "docker.io/library/nginx:latest"),
        ("r.io/a/b:1", "r.io/a/b:1"),
        (f"r.io/a/b@{A}", f"r.io/a/b@{A}"),
        (f"r.io/a/b:1@{A}", f"r.io/a/b@{A}"),
    ],
)
def test_records_are_named_as_the_cri_names_them(written: str, recorded: str) -> None:
    assert record_name(parse_image_ref(written)) == recorded
