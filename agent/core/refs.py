"""References as typed values: endpoints, model URIs, image names. All of them arrive from outside and are parsed once."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import NewType
from urllib.parse import parse_qsl, quote, urlsplit

from agent.core.errors import Invalid, cut

Digest = NewType("Digest", str)  # "sha256:<64 hex>"

MAX_KEY = 63  # the name part of a label key
_NAMESPACE = re.compile(r"[a-z0-9]([a-z0-9\-]{0,61}[a-z0-9])?")
_ENDPOINT_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._\-]{0,251}[A-Za-z0-9])?")
_BUCKET = re.compile(r"[a-z0-9][a-z0-9.\-]{1,61}[a-z0-9]")
_MODEL_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._\-]{0,61}[A-Za-z0-9])?")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_REPOSITORY = re.compile(r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)*")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]{0,127}")
_DNS_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9\-]{0,61}[A-Za-z0-9])?"
_HOST = re.compile(rf"(?:{_DNS_LABEL}(?:\.{_DNS_LABEL})*|\[[0-9a-fA-F:]{{2,39}}\])(?::[0-9]{{1,5}})?")
_MAX_HOST = 259  # a DNS name of 253 and a port: it becomes a file name and is looked up
_MAX_URI_BYTES = 2048
_CREDENTIALS = re.compile(r"//[^/?#]*@")
_SIGNATURE = re.compile(r"(X-Amz-[A-Za-z-]+|AWSAccessKeyId|Signature)=[^&]*", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class EndpointKey:
    """What an endpoint is called: its namespace and name."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}.{self.name}"


def endpoint_key(namespace: str, name: str) -> EndpointKey:
    """Check and build a key: it becomes a node label's name, a metric label and two directory names.

    Raises:
        Invalid: quoting the part that cannot stand in a label or path.
    """
    if not _NAMESPACE.fullmatch(namespace):
        raise Invalid(f"namespace {cut(namespace, 80)!r} is not a Kubernetes namespace")
    if not _ENDPOINT_NAME.fullmatch(name):
        raise Invalid(
            f"endpoint name {cut(name, 80)!r}: letters, digits, '.', '_' or '-', a letter or digit at both ends"
        )
    key = EndpointKey(namespace=namespace, name=name)
    if len(str(key)) > MAX_KEY:
        raise Invalid(
            f"endpoint key {str(key)!r} has {len(str(key))} characters: <namespace>.<name> may have {MAX_KEY}"
        )
    return key


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class ModelUri:
    """One `s3://bucket/key-or-prefix/` with its filters; a key ending in `/` (or empty) is a prefix, else one object."""

    bucket: str
    key: str
    version_id: str = ""
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()

    @property
    def is_prefix(self) -> bool:
        """True if the URI names all objects under a prefix."""
        return self.key == "" or self.key.endswith("/")

    def wants(self, relative: str) -> bool:
        """Say whether the filters keep the object at `relative` (its key below the prefix)."""
        kept = not self.include or any(fnmatchcase(relative, g) for g in self.include)
        return kept and not any(fnmatchcase(relative, g) for g in self.exclude)

    def __str__(self) -> str:
        query = [("versionId", self.version_id)] if self.version_id else []
        query += [("include", g) for g in self.include] + [("exclude", g) for g in self.exclude]
        tail = "&".join(f"{k}={quote(v, safe='*')}" for k, v in query)
        return f"s3://{self.bucket}/{self.key}" + (f"?{tail}" if tail else "")


def parse_model_uri(text: str) -> ModelUri:
    """Parse a model URI.

    Raises:
        Invalid: quoting the text and saying what is accepted.
    """
    what = f"model uri {cut(_bare(text), 200)!r}"
    if not text.startswith("s3://"):
        raise Invalid(f"{what} does not start with s3://")
    if any(not c.isprintable() for c in text) or len(text.encode()) > _MAX_URI_BYTES:
        raise Invalid(f"{what} has control characters or is longer than {_MAX_URI_BYTES} bytes")
    try:
        parts = urlsplit(text)
    except ValueError as error:
        raise Invalid(f"{what} is malformed: {error}") from error
    bucket, key = parts.netloc, parts.path.removeprefix("/")
    if not _BUCKET.fullmatch(bucket):
        raise Invalid(f"{what} names no valid bucket: write s3://bucket/key-or-prefix/")
    if parts.fragment or "#" in text:
        raise Invalid(f"{what} has a '#': it is not part of any key prewarm accepts")
    if any(p in ("", ".", "..") for p in key.removesuffix("/").split("/") if key):
        raise Invalid(f"{what} has an empty, '.' or '..' path part")
    query: dict[str, list[str]] = {"versionId": [], "include": [], "exclude": []}
    for name, value in parse_qsl(parts.query, keep_blank_values=True):
        if name not in query or not value:
            raise Invalid(f"{what} has the query {name!r}: accepted are versionId=, include= and exclude=")
        query[name].append(value)
    uri = ModelUri(
        bucket=bucket,
        key=key,
        version_id="".join(query["versionId"][:1]),
        include=tuple(query["include"]),
        exclude=tuple(query["exclude"]),
    )
    if len(str(uri).encode()) > _MAX_URI_BYTES:  # what is stored must be read again
        raise Invalid(f"{what} is longer than {_MAX_URI_BYTES} bytes with its filters escaped")
    if len(query["versionId"]) > 1 or (uri.version_id and uri.is_prefix):
        raise Invalid(f"{what}: versionId= goes with one object, not with a prefix")
    return uri


def _bare(text: str) -> str:
    """Return a URI without what may be a secret in it, to be quoted: credentials before the host, a signature."""
    return _SIGNATURE.sub(r"\1=…", _CREDENTIALS.sub("//…@", text))


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class ModelSource:
    """One entry of the `models` annotation: `[name=]uri`. The name is the directory under /models."""

    name: str
    uri: ModelUri


def parse_model_source(text: str) -> ModelSource:
    """Parse `[name=]s3://…`; the name defaults to the last path part, or the bucket.

    Raises:
        Invalid: quoting the text.
    """
    text = text.strip()
    name, given, rest = text.partition("=s3://")
    uri = parse_model_uri("s3://" + rest if given else text)
    if not given:
        name = uri.key.strip("/").rpartition("/")[2] or uri.bucket
    if not _MODEL_NAME.fullmatch(name):
        raise Invalid(f"model name {cut(name, 80)!r}: at most 63 letters, digits, '.', '_' or '-'; write name=s3://…")
    return ModelSource(name=name, uri=uri)


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class ImageRef:
    """A container image name, normalised as Docker and containerd do it: it has a tag or a digest, never both."""

    host: str
    repository: str
    tag: str = ""
    digest: str = ""

    def __str__(self) -> str:
        return (
            f"{self.host}/{self.repository}"
            + (f":{self.tag}" if self.tag else "")
            + (f"@{self.digest}" if self.digest else "")
        )


def parse_image_ref(text: str) -> ImageRef:
    """Parse and normalise an image reference (`nginx` is `docker.io/library/nginx:latest`).

    Raises:
        Invalid: quoting the text.
    """
    what = f"image {cut(text, 200)!r}"
    rest, _, digest = text.strip().partition("@")
    if "@" in text and not _DIGEST.fullmatch(digest):
        raise Invalid(f"{what}: the part after '@' must be sha256: and 64 hex digits")
    host, slash, remainder = rest.partition("/")
    if not slash or not ("." in host or ":" in host or host == "localhost"):
        host, remainder = "docker.io", rest
    if host in ("docker.io", "index.docker.io"):
        host, remainder = "docker.io", remainder if "/" in remainder else f"library/{remainder}"
    if not _HOST.fullmatch(host) or len(host) > _MAX_HOST or not _is_address(host):
        raise Invalid(f"{what} has no valid registry host")
    repository, colon, tag = remainder.partition(":")
    if not _REPOSITORY.fullmatch(repository) or len(repository) > 255:
        raise Invalid(f"{what} is not an image name")
    if colon and not _TAG.fullmatch(tag):
        raise Invalid(f"{what} has an invalid tag")
    if digest:
        tag = ""  # containerd stores a pull by tag and digest under the digest alone
    elif not tag:
        tag = "latest"
    return ImageRef(host=host, repository=repository, tag=tag, digest=digest)


def _is_address(host: str) -> bool:
    """Say whether a URL can name the host: its port and what stands in brackets."""
    try:
        port = urlsplit(f"//{host}").port
    except ValueError:
        return False
    return port is None or port > 0


def parse_digest(text: str) -> Digest:
    """Check that `text` is `sha256:<64 hex>`.

    Raises:
        Invalid: quoting the text.
    """
    if not _DIGEST.fullmatch(text):
        raise Invalid(f"digest {cut(text, 100)!r} is not sha256: and 64 hex digits")
    return Digest(text)


def is_digest(text: str) -> bool:
    """Say whether `text` is `sha256:<64 hex>`."""
    return _DIGEST.fullmatch(text) is not None
