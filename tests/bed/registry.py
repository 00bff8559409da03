"""A client of the bed's registry that makes images: layers of a wanted size, compression and media type.

Run as `python -m tests.bed.registry HOST:PORT NAME:TAG --layers 50M,50M [--base NAME:TAG] [--compression zstd] ...`.
"""

from __future__ import annotations

import argparse
import hashlib
import http.client
import io
import json
import tempfile
import urllib.parse
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Literal

from tests.bed.layers import Blob, Compression, Layer, write_layer

Family = Literal["oci", "docker"]
Document = dict[str, Any]

OCI, DOCKER = "application/vnd.oci.image.", "application/vnd.docker."
MANIFEST = {"oci": f"{OCI}manifest.v1+json", "docker": f"{DOCKER}distribution.manifest.v2+json"}
INDEX = {"oci": f"{OCI}index.v1+json", "docker": f"{DOCKER}distribution.manifest.list.v2+json"}
CONFIG = {"oci": f"{OCI}config.v1+json", "docker": f"{DOCKER}container.image.v1+json"}
LAYER: dict[Family, dict[Compression, str]] = {
    "oci": {
        "none": f"{OCI}layer.v1.tar",
        "gzip": f"{OCI}layer.v1.tar+gzip",
        "zstd": f"{OCI}layer.v1.tar+zstd",
        "estargz": f"{OCI}layer.v1.tar+gzip",
    },
    "docker": {
        "none": f"{DOCKER}image.rootfs.diff.tar",
        "gzip": f"{DOCKER}image.rootfs.diff.tar.gzip",
        "zstd": f"{DOCKER}image.rootfs.diff.tar.zstd",
        "estargz": f"{DOCKER}image.rootfs.diff.tar.gzip",
    },
}
TIMEOUT_SECONDS = 120


class RegistryError(Exception):
    """The registry refused; the message has its status and answer."""


class Registry:
    """One registry, at `host:port` over plain HTTP."""

    def __init__(self, address: str) -> None:
        self.host, _, port = address.rpartition(":")
        self.port = int(port)

    def make_image(
        self,
        name: str,
        tag: str,
        layers: Sequence[Layer],
        *,
        base: str | None = None,
        family: Family = "oci",
        platforms: Sequence[str] = (),
        entrypoint: Sequence[str] = (),
    ) -> str:
        """Puts an image together, on `base` (`name:tag` in this registry) if given; returns the digest the tag has.

        With `platforms` (`linux/amd64`, ...) the tag names an index with one manifest each. `entrypoint` replaces the
        base's. A tag that exists is replaced.
        """
        config, descriptors = self._start_from(base, name, family)
        for layer in layers:
            blob = self._put_layer(name, layer)
            config["rootfs"]["diff_ids"].append(blob.diff_id)
            config["history"].append({"created_by": f"padding {layer.seed}"})
            descriptors.append(blob.descriptor(LAYER[family][layer.compression]))
        if entrypoint:
            config["config"] = {**config["config"], "Entrypoint": list(entrypoint), "Cmd": []}
        if not platforms:
            return self.put_manifest(name, tag, self._manifest(name, config, descriptors, family))
        entries = []
        for platform in platforms:
            system, _, architecture = platform.partition("/")
            own = {**config, "os": system, "architecture": architecture}
            document = self._manifest(name, own, descriptors, family)
            digest = self.put_manifest(name, None, document)
            entry = {"mediaType": MANIFEST[family], "digest": digest, "size": len(encode(document))}
            entries.append({**entry, "platform": {"os": system, "architecture": architecture}})
        index = {"schemaVersion": 2, "mediaType": INDEX[family], "manifests": entries}
        return self.put_manifest(name, tag, index)

    def manifest(self, name: str, reference: str) -> tuple[Document, str]:
        """A manifest or index by tag or digest, and its digest."""
        accept = ", ".join([*MANIFEST.values(), *INDEX.values()])
        body, _ = self._ask("GET", f"/v2/{name}/manifests/{reference}", headers={"Accept": accept})
        document: Document = json.loads(body)
        return document, digest_of(body)

    def put_manifest(self, name: str, tag: str | None, document: Document) -> str:
        """Uploads a manifest or index under its tag, or its digest only; returns the digest."""
        body = encode(document)
        headers = {"Content-Type": document["mediaType"]}
        self._ask("PUT", f"/v2/{name}/manifests/{tag or digest_of(body)}", io.BytesIO(body), headers)
        return digest_of(body)

    def tags(self, name: str) -> list[str]:
        """The tags of a repository."""
        body, _ = self._ask("GET", f"/v2/{name}/tags/list")
        return sorted(json.loads(body)["tags"] or [])

    def delete_tag(self, name: str, tag: str) -> None:
        """Deletes the manifest behind the tag, and with it every tag of it; the registry must allow deletion."""
        _, digest = self.manifest(name, tag)
        self._ask("DELETE", f"/v2/{name}/manifests/{digest}")

    def blob(self, name: str, digest: str) -> bytes:
        """A blob's content."""
        return self._ask("GET", f"/v2/{name}/blobs/{digest}")[0]

    def push_layout(self, layout: Path, name: str, tag: str) -> str:
        """Uploads the one image of an OCI layout on disk; returns its digest."""
        index = json.loads((layout / "index.json").read_bytes())
        manifest = json.loads(_in_layout(layout, index["manifests"][0]["digest"]).read_bytes())
        for descriptor in [manifest["config"], *manifest["layers"]]:
            with _in_layout(layout, descriptor["digest"]).open("rb") as content:
                self._put_blob(name, content, Blob(digest=descriptor["digest"], size=descriptor["size"]))
        return self.put_manifest(name, tag, {"mediaType": MANIFEST["oci"], **manifest})

    def _start_from(self, base: str | None, name: str, family: Family) -> tuple[Document, list[Document]]:
        """Config and layers of the base, its blobs made visible in repository `name`; or those of an empty image."""
        if base is None:
            rootfs = {"type": "layers", "diff_ids": []}
            empty = {"architecture": "amd64", "os": "linux", "config": {}, "rootfs": rootfs, "history": []}
            return empty, []
        repository, _, tag = base.rpartition(":")
        document, _ = self.manifest(repository, tag)
        if "manifests" in document:
            document, _ = self.manifest(repository, document["manifests"][0]["digest"])
        config: Document = json.loads(self.blob(repository, document["config"]["digest"]))
        config.setdefault("history", [])
        layers = []
        for layer in document["layers"]:
            blob = Blob(digest=layer["digest"], size=layer["size"], annotations=layer.get("annotations", {}))
            self._mount(name, repository, blob)
            layers.append(blob.descriptor(LAYER[family][_compression_of(layer["mediaType"])]))
        return config, layers

    def _manifest(self, name: str, config: Document, layers: list[Document], family: Family) -> Document:
        body = encode(config)
        blob = Blob(digest=digest_of(body), size=len(body))
        self._put_blob(name, io.BytesIO(body), blob)
        described = blob.descriptor(CONFIG[family])
        return {"schemaVersion": 2, "mediaType": MANIFEST[family], "config": described, "layers": layers}

    def _put_layer(self, name: str, layer: Layer) -> Blob:
        with tempfile.TemporaryFile() as content:
            blob = write_layer(layer, content)
            content.seek(0)
            self._put_blob(name, content, blob)
        return blob

    def _put_blob(self, name: str, content: IO[bytes], blob: Blob) -> None:
        if self._has(name, blob.digest):
            return
        _, upload = self._ask("POST", f"/v2/{name}/blobs/uploads/")
        headers = {"Content-Type": "application/octet-stream", "Content-Length": str(blob.size)}
        self._ask("PUT", _with_digest(upload, blob.digest), content, headers)

    def _mount(self, name: str, source: str, blob: Blob) -> None:
        if name != source:
            self._ask("POST", f"/v2/{name}/blobs/uploads/?mount={blob.digest}&from={source}")

    def _has(self, name: str, digest: str) -> bool:
        with self._connection() as connection:
            connection.request("HEAD", f"/v2/{name}/blobs/{digest}")
            return connection.getresponse().status == 200

    def _ask(
        self, method: str, path: str, body: IO[bytes] | None = None, headers: dict[str, str] | None = None
    ) -> tuple[bytes, str]:
        """Body and Location of a good answer.

        Raises:
            RegistryError: any other.
        """
        with self._connection() as connection:
            connection.request(method, path, body, headers or {})
            response = connection.getresponse()
            content = response.read()
            if response.status >= 300:
                raise RegistryError(f"{method} {path}: {response.status} {content[:500].decode(errors='replace')}")
            return content, response.headers.get("Location", "")

    @contextmanager
    def _connection(self) -> Iterator[http.client.HTTPConnection]:
        connection = http.client.HTTPConnection(self.host, self.port, timeout=TIMEOUT_SECONDS, blocksize=1 << 20)
        try:
            yield connection
        finally:
            connection.close()


def encode(document: Document) -> bytes:
    """JSON, always the same for the same document."""
    return json.dumps(document, sort_keys=True, separators=(",", ":")).encode()


def digest_of(content: bytes) -> str:
    """As the registry names content."""
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def _with_digest(location: str, digest: str) -> str:
    """Path and query of an upload's Location, with the digest that ends it."""
    parts = urllib.parse.urlsplit(location)
    query = "&".join(filter(None, [parts.query, f"digest={digest}"]))
    return f"{parts.path}?{query}"


def _in_layout(layout: Path, digest: str) -> Path:
    return layout / "blobs" / digest.replace(":", "/")


def _compression_of(media_type: str) -> Compression:
    if media_type.endswith("gzip"):
        return "gzip"
    return "zstd" if media_type.endswith("zstd") else "none"


def _size(text: str) -> int:
    units = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
    return int(text[:-1]) * units[text[-1]] if text[-1] in units else int(text)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("registry", metavar="HOST:PORT")
    parser.add_argument("image", metavar="NAME:TAG")
    parser.add_argument("--layers", default="", help="sizes, such as 50M,1G")
    parser.add_argument("--compression", choices=["gzip", "zstd", "none", "estargz"], default="gzip")
    parser.add_argument("--compressible", action="store_true")
    parser.add_argument("--family", choices=["oci", "docker"], default="oci")
    parser.add_argument("--platforms", default="", help="such as linux/amd64,linux/arm64")
    parser.add_argument("--base", metavar="NAME:TAG")
    parser.add_argument("--seed", default="1")
    args = parser.parse_args()
    name, _, tag = args.image.rpartition(":")
    layers = [
        Layer(
            size_bytes=_size(size),
            seed=f"{args.seed}-{number}",
            compression=args.compression,
            compressible=args.compressible,
        )
        for number, size in enumerate(filter(None, args.layers.split(",")))
    ]
    platforms = list(filter(None, args.platforms.split(",")))
    registry = Registry(args.registry)
    print(registry.make_image(name, tag, layers, base=args.base, family=args.family, platforms=platforms))


if __name__ == "__main__":
    main()
