"""The pause image, made from one static program and pushed to the bed's registry."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
from http.client import HTTPConnection
from pathlib import Path
from urllib.parse import urlsplit

from tests.bed.process import BedError

_CONFIG = "application/vnd.oci.image.config.v1+json"
_LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"
_MANIFEST = "application/vnd.oci.image.manifest.v1+json"


def push_program(registry: str, name: str, tag: str, program: Path) -> str:
    """Push an image whose only file and entry point is this static program; returns the manifest's digest.

    Args:
        registry: host:port of the registry.
        name: repository.
        tag: its tag.
        program: a static executable.

    Raises:
        BedError: the registry refused.
    """
    plain = _layer(program)
    layer = gzip.compress(plain, mtime=0)
    entry = {"Entrypoint": [f"/{name}"], "WorkingDir": "/"}
    root = {"type": "layers", "diff_ids": [_digest(plain)]}
    image = json.dumps({"architecture": "amd64", "os": "linux", "config": entry, "rootfs": root}).encode()
    for blob in (layer, image):
        _push_blob(registry, name, blob)
    manifest = {
        "schemaVersion": 2,
        "mediaType": _MANIFEST,
        "config": {"mediaType": _CONFIG, "digest": _digest(image), "size": len(image)},
        "layers": [{"mediaType": _LAYER, "digest": _digest(layer), "size": len(layer)}],
    }
    content = json.dumps(manifest).encode()
    _ask(registry, "PUT", f"/v2/{name}/manifests/{tag}", content, _MANIFEST)
    return _digest(content)


def _layer(program: Path) -> bytes:
    """A tar of that one file, the same bytes every time."""
    content = program.read_bytes()
    entry = tarfile.TarInfo(program.name.partition("-")[0])
    entry.size, entry.mode = len(content), 0o755
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        tar.addfile(entry, io.BytesIO(content))
    return file.getvalue()


def _push_blob(registry: str, name: str, blob: bytes) -> None:
    place = urlsplit(_ask(registry, "POST", f"/v2/{name}/blobs/uploads/"))
    path = f"{place.path}?{place.query}&digest={_digest(blob)}"
    _ask(registry, "PUT", path, blob, "application/octet-stream")


def _ask(registry: str, method: str, path: str, body: bytes = b"", kind: str = "") -> str:
    connection = HTTPConnection(registry, timeout=30)
    try:
        connection.request(method, path, body, {"Content-Type": kind} if kind else {})
        answer = connection.getresponse()
        said = answer.read()
    finally:
        connection.close()
    if answer.status >= 300:
        raise BedError(f"{method} {registry}{path}: {answer.status}: {said[:500].decode(errors='replace')}")
    return answer.getheader("Location", "")


def _digest(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"
