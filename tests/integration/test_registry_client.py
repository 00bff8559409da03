"""Images made by the registry client, in a real docker-registry, read back byte by byte and by buildah."""

from __future__ import annotations

import gzip
import io
import json
import os
import re
import shutil
import subprocess
import tarfile
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.bed.layers import Compression, Layer
from tests.bed.registry import LAYER, MANIFEST, Family, Registry, RegistryError, digest_of, encode

pytestmark = pytest.mark.skipif(
    not shutil.which("docker-registry") or not shutil.which("zstd"), reason="docker-registry or zstd is not installed"
)

SIZE_BYTES = 1_000_001


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    work = tmp_path_factory.mktemp("registry")
    storage = f"storage: {{filesystem: {{rootdirectory: {work}/data}}, delete: {{enabled: true}}}}"
    (work / "registry.yml").write_text(f'version: 0.1\n{storage}\nhttp: {{addr: "127.0.0.1:0"}}\n')
    command = ["docker-registry", "serve", str(work / "registry.yml")]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as process:
        assert process.stderr is not None
        found = (re.search(r"listening on (127\.0\.0\.1:\d+)", line) for line in process.stderr)
        address = next(match[1] for match in found if match)
        rest = threading.Thread(target=process.stderr.read, name="registry log")  # a full pipe would stop it
        rest.start()
        yield Registry(address)
        process.kill()
        rest.join()


def layer(seed: str = "a", compression: Compression = "gzip", *, compressible: bool = False) -> Layer:
    return Layer(size_bytes=SIZE_BYTES, seed=seed, compression=compression, compressible=compressible)


def unpacked(compression: Compression, blob: bytes) -> bytes:
    if compression == "gzip":
        return gzip.decompress(blob)
    if compression == "zstd":
        return subprocess.run(["zstd", "-dc"], input=blob, capture_output=True, check=True).stdout
    return blob


@pytest.mark.parametrize("family", ["oci", "docker"])
@pytest.mark.parametrize("compression", ["gzip", "zstd", "none"])
def test_a_layer_is_what_manifest_and_config_say(registry: Registry, family: Family, compression: Compression) -> None:
    registry.make_image("shape", "1", [layer(compression=compression)], family=family, entrypoint=["/run-me"])
    manifest, _ = registry.manifest("shape", "1")
    config = json.loads(registry.blob("shape", manifest["config"]["digest"]))
    (descriptor,) = manifest["layers"]
    blob = registry.blob("shape", descriptor["digest"])
    plain = unpacked(compression, blob)
    assert manifest["mediaType"] == MANIFEST[family]
    assert descriptor == {"mediaType": LAYER[family][compression], "digest": digest_of(blob), "size": len(blob)}
    assert config["rootfs"]["diff_ids"] == [digest_of(plain)]
    assert config["config"]["Entrypoint"] == ["/run-me"]
    with tarfile.open(fileobj=io.BytesIO(plain)) as archive:
        assert sum(entry.size for entry in archive) == SIZE_BYTES


def test_layers_compress_only_when_told_to(registry: Registry) -> None:
    registry.make_image("ratio", "1", [layer(), layer("b", compressible=True), layer("b", "zstd", compressible=True)])
    sizes = [entry["size"] for entry in registry.manifest("ratio", "1")[0]["layers"]]
    assert sizes[0] > SIZE_BYTES
    assert all(0.4 * SIZE_BYTES < size < 0.6 * SIZE_BYTES for size in sizes[1:])


def test_the_same_layers_give_the_same_digest_and_another_seed_another(registry: Registry) -> None:
    first = registry.make_image("same", "1", [layer()])
    assert registry.make_image("same", "2", [layer()]) == first
    assert registry.make_image("same", "3", [layer("other")]) != first


def test_an_image_on_a_base_keeps_its_layers_and_entrypoint(registry: Registry) -> None:
    registry.make_image("base", "1", [layer("base")], family="docker", entrypoint=["/server"])
    registry.make_image("padded", "1", [layer("padding", "zstd")], base="base:1", family="oci")
    base, (padded, _) = registry.manifest("base", "1")[0], registry.manifest("padded", "1")
    config = json.loads(registry.blob("padded", padded["config"]["digest"]))
    assert padded["layers"][0]["digest"] == base["layers"][0]["digest"]
    assert [entry["mediaType"] for entry in padded["layers"]] == [LAYER["oci"]["gzip"], LAYER["oci"]["zstd"]]
    assert len(config["rootfs"]["diff_ids"]) == 2
    assert config["config"]["Entrypoint"] == ["/server"]


@pytest.mark.parametrize("family", ["oci", "docker"])
def test_an_index_names_one_manifest_for_each_platform(registry: Registry, family: Family) -> None:
    platforms = ["linux/amd64", "linux/arm64"]
    digest = registry.make_image("multi", family, [layer()], family=family, platforms=platforms)
    index, named = registry.manifest("multi", family)
    assert named == digest
    assert [entry["platform"]["architecture"] for entry in index["manifests"]] == ["amd64", "arm64"]
    for entry in index["manifests"]:
        manifest, _ = registry.manifest("multi", entry["digest"])
        config = json.loads(registry.blob("multi", manifest["config"]["digest"]))
        assert config["architecture"] == entry["platform"]["architecture"]
        assert entry["size"] == len(encode(manifest))


def test_a_tag_can_be_replaced_and_deleted(registry: Registry) -> None:
    old = registry.make_image("moving", "1", [layer("old")])
    new = registry.make_image("moving", "1", [layer("new")])
    assert registry.manifest("moving", "1")[1] == new != old
    registry.delete_tag("moving", "1")
    assert registry.tags("moving") == []
    with pytest.raises(RegistryError, match="404"):
        registry.manifest("moving", "1")


def test_a_layout_on_disk_is_pushed_as_it_is(registry: Registry, tmp_path: Path) -> None:
    def stored(content: bytes, media_type: str) -> dict[str, object]:
        path = tmp_path / "blobs" / digest_of(content).replace(":", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return {"mediaType": media_type, "digest": digest_of(content), "size": len(content)}

    config = stored(encode({"os": "linux", "architecture": "amd64"}), "application/vnd.oci.image.config.v1+json")
    data = stored(gzip.compress(b"layer"), LAYER["oci"]["gzip"])
    manifest = {"schemaVersion": 2, "mediaType": MANIFEST["oci"], "config": config, "layers": [data]}
    (tmp_path / "index.json").write_bytes(encode({"manifests": [stored(encode(manifest), MANIFEST["oci"])]}))
    digest = registry.push_layout(tmp_path, "layout", "1")
    assert digest == digest_of(encode(manifest))
    assert zlib.decompress(registry.blob("layout", str(data["digest"])), wbits=31) == b"layer"


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("buildah"), reason="needs root and buildah")
@pytest.mark.parametrize("compression", ["gzip", "zstd", "none"])
def test_another_client_can_pull_it(registry: Registry, tmp_path: Path, compression: Compression) -> None:
    registry.make_image("foreign", compression, [layer(compression=compression), layer("b", compression)])
    (tmp_path / "policy.json").write_text('{"default": [{"type": "insecureAcceptAnything"}]}')
    config = f'[storage]\ndriver = "vfs"\ngraphroot = "{tmp_path}/graph"\nrunroot = "{tmp_path}/run"\n'
    (tmp_path / "storage.conf").write_text(config)
    pull = ["buildah", "pull", "--quiet", "--tls-verify=false", "--signature-policy", str(tmp_path / "policy.json")]
    image = f"docker://{registry.host}:{registry.port}/foreign:{compression}"
    env = {**os.environ, "CONTAINERS_STORAGE_CONF": str(tmp_path / "storage.conf"), "TMPDIR": str(tmp_path)}
    subprocess.run([*pull, image], env=env, check=True, stdout=subprocess.DEVNULL)
    files = {path.parent.name: path.stat().st_size for path in (tmp_path / "graph").rglob("padding/*/0")}
    assert files == {"a": SIZE_BYTES, "b": SIZE_BYTES}
