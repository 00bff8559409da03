"""The S3 adapter: credentials, region and endpoint as every AWS SDK finds them, listing, HEAD, and signing for threads.

The only importer of aiobotocore and botocore; they are imported when a source is opened, not before (35 MB). Bodies never
pass through here: `agent.models.wire` reads them with what `Bucket` and `sign` give. No secret reaches an error text.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import os
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import parse_qs, quote, urlsplit

from agent.core.errors import Permanent, PrewarmError, Transient, cut
from agent.core.refs import ModelUri
from agent.models.channel import Tls
from agent.models.checksum import part_count, stated_checksum
from agent.models.completeness import check_complete, named_files, names_files, refuse_large
from agent.models.dial import Proxy, proxy_for
from agent.models.manifest import COMPOSITE, MAX_OBJECTS, Listed, Manifest, ObjectEntry, choose
from agent.models.part_sizes import PartSizes
from agent.models.threads import in_thread
from agent.models.tls import load_tls

HEADS_AT_ONCE = 16
_DENIED = {"403", "AccessDenied", "AllAccessDisabled", "InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidToken"}
_EXPIRED = {"ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired", "RequestExpired"}
_ABSENT = {"404", "NoSuchKey", "NoSuchVersion", "NoSuchBucket", "MethodNotAllowed", "405"}
_BUSY = {"SlowDown", "RequestTimeout", "RequestTimeTooSkewed", "Throttling", "InternalError", "OperationAborted"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Bucket:
    """Where the bodies of one bucket's objects are read: `scheme://host:port` and the path before each key."""

    scheme: str
    host: str
    port: int
    base_path: str
    region: str
    proxy: Proxy | None = None

    def path(self, key: str, version_id: str = "") -> str:
        """Return path and query of an object, escaped as S3 signs it."""
        query = f"?versionId={quote(version_id, safe='')}" if version_id else ""
        return self.base_path + quote(key, safe="/-_.~") + query

    @property
    def netloc(self) -> str:
        """Return the host as the `Host` header has it: the port only where it is not the scheme's own."""
        usual = {"http": 80, "https": 443}[self.scheme]
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == usual else f"{host}:{self.port}"


class S3Source:
    """An open connection to S3's control side, and the credentials that worker threads sign with."""

    def __init__(self, session: Any, client: Any, frozen: Any) -> None:
        self._session, self._client = session, client
        self._credentials: Any = None
        self._frozen = frozen  # replaced as a whole: threads may read it at any time
        self._tls: Tls | None = None

    async def list_objects(self, uri: ModelUri) -> list[Listed]:
        """Return every object under the URI's prefix, or the one object it names.

        Raises:
            Permanent: denied, absent, or more than MAX_OBJECTS under the prefix.
            Transient: S3 is away or busy.
        """
        if not uri.is_prefix:
            return [await self._named(uri)]
        found: list[Listed] = []
        with _told(f"list {cut(uri, 200)}"):
            async for page in self._client.get_paginator("list_objects_v2").paginate(
                Bucket=uri.bucket, Prefix=uri.key, PaginationConfig={"PageSize": 1000}
            ):
                found += [
                    Listed(key=o["Key"], size=o["Size"], etag=_quoted(o["ETag"])) for o in page.get("Contents", ())
                ]
                if len(found) > MAX_OBJECTS:
                    raise Permanent(f"{cut(uri, 200)} has more than {MAX_OBJECTS} objects: name a longer prefix")
        return found

    async def _named(self, uri: ModelUri) -> Listed:
        head = await self._head(uri.bucket, uri.key, uri.version_id)
        return Listed(key=uri.key, size=head["ContentLength"], etag=_quoted(head["ETag"]))

    async def head(self, bucket: str, listed: Listed, path: str, version_id: str = "") -> ObjectEntry:
        """Return one listed object with its version and what S3 states to check it by.

        Raises:
            Transient: also if it is no longer the object that was listed.
            Permanent: denied or absent.
        """
        head = await self._head(bucket, listed.key, version_id)
        if head["ContentLength"] != listed.size or _quoted(head["ETag"]) != listed.etag:
            raise Transient(f"{cut(ascii(listed.key), 200)} changed while s3://{bucket} was listed")
        checksum, kind = stated_checksum(head, listed.etag)
        version = head.get("VersionId") or version_id
        parts: tuple[int, ...] = ()
        if kind == COMPOSITE:
            with _told(f"read s3://{bucket}/{cut(ascii(listed.key)[1:-1], 200)}"):
                parts = await PartSizes(self._client, bucket, listed, version_id).find(part_count(checksum))
        return ObjectEntry(
            key=listed.key,
            path=path,
            size=listed.size,
            etag=listed.etag,
            version_id="" if version == "null" else version,
            checksum=checksum,
            checksum_type=kind,
            part_sizes=parts,
        )

    async def read(self, bucket: str, listed: Listed, version_id: str = "") -> bytes:
        """Return the content of a small object as it was listed.

        Raises:
            Transient: also if it is no longer the object that was listed.
            Permanent: denied or absent.
        """
        version = {"VersionId": version_id} if version_id else {}
        content = bytearray()
        with _told(f"read s3://{bucket}/{cut(ascii(listed.key)[1:-1], 200)}"):
            answer = await self._client.get_object(Bucket=bucket, Key=listed.key, IfMatch=listed.etag, **version)
            async with answer["Body"] as body:
                while len(content) <= listed.size and (some := await body.read(1 << 20)):
                    content += some
        if len(content) != listed.size:
            raise Transient(f"{cut(ascii(listed.key), 200)} changed while s3://{bucket} was listed")
        return bytes(content)

    async def _head(self, bucket: str, key: str, version_id: str) -> Mapping[str, Any]:
        version = {"VersionId": version_id} if version_id else {}
        with _told(f"read s3://{bucket}/{cut(ascii(key)[1:-1], 200)}"):
            answer: Mapping[str, Any] = await self._client.head_object(
                Bucket=bucket, Key=key, ChecksumMode="ENABLED", **version
            )
            if not {"ContentLength", "ETag"} <= answer.keys():
                raise Transient(f"cannot read s3://{bucket}: an answer of S3 names no size or ETag")
            return answer

    async def bucket(self, name: str) -> Bucket:
        """Return where bodies of this bucket are read: a redirect to its region was learned by the listing before."""
        with _told(f"find s3://{name}"):
            url = await self._client.generate_presigned_url("get_object", Params={"Bucket": name, "Key": "k"})
        parts = urlsplit(url)
        scope = parse_qs(parts.query)["X-Amz-Credential"][0].split("/")
        return Bucket(
            scheme=parts.scheme,
            host=parts.hostname or "",
            port=parts.port or {"http": 80, "https": 443}[parts.scheme],
            base_path=parts.path[:-1],
            region=scope[2],
            proxy=proxy_for(parts.scheme, parts.netloc),
        )

    async def tls(self) -> Tls:
        """Return TLS for reading bodies, which trusts the certificate authorities that AWS SDKs would trust.

        Raises:
            Permanent: they cannot be read.
        """
        if self._tls is None:
            from botocore.httpsession import get_cert_path

            named = self._session.get_config_variable("ca_bundle") or os.environ.get("REQUESTS_CA_BUNDLE")
            self._tls = await asyncio.to_thread(load_tls, named or get_cert_path(True))
        return self._tls

    async def keep_fresh(self) -> None:
        """Renew credentials that are near their end; call it every few seconds while threads sign (never faster)."""
        with _told("renew the AWS credentials"):
            if self._credentials is None:
                self._credentials = await self._session.get_credentials()
            self._frozen = await self._credentials.get_frozen_credentials()

    async def renew(self) -> None:
        """Find credentials anew, from the start: files, environment and roles may have changed."""
        with _told("renew the AWS credentials"):
            fresh = await _session().get_credentials()
            if fresh is not None:
                self._credentials, self._frozen = fresh, await fresh.get_frozen_credentials()

    def sign(self, bucket: Bucket, path: str, headers: Mapping[str, str]) -> dict[str, str]:
        """Return `headers` with a signature for `GET path`; may be called from any thread (0.2 ms)."""
        from botocore.auth import S3SigV4Auth
        from botocore.awsrequest import AWSRequest

        request = AWSRequest("GET", f"{bucket.scheme}://{bucket.netloc}{path}", headers=dict(headers))
        request.context.update(payload_signing_enabled=False, client_config=None)
        S3SigV4Auth(self._frozen, "s3", bucket.region).add_auth(request)
        return dict(request.headers.items())


@contextlib.asynccontextmanager
async def open_source() -> AsyncIterator[S3Source]:
    """Open S3 with what the environment says.

    Raises:
        Permanent: no credentials.
        Transient: the credentials' own service is away.
    """
    await asyncio.to_thread(importlib.import_module, "aiobotocore.session")
    session = _session()
    with _told("find AWS credentials"):
        credentials = await session.get_credentials()
        if credentials is None:
            raise Permanent("no AWS credentials found: give them by environment, profile, role or pod identity")
        frozen = await credentials.get_frozen_credentials()
    async with contextlib.AsyncExitStack() as stack:
        client = await _client(session, stack, {})
        style = (client.meta.config.s3 or {}).get("addressing_style")
        if not style and ".amazonaws.com" not in client.meta.endpoint_url:
            # Servers other than AWS seldom have a DNS name for each bucket.
            client = await _client(session, stack, {"addressing_style": "path"})
        yield S3Source(session, client, frozen)


async def _client(session: Any, stack: contextlib.AsyncExitStack, s3: Mapping[str, str]) -> Any:
    with _told("set up the S3 client"):
        try:
            return await stack.enter_async_context(session.create_client("s3", config=_config(s3)))
        except ValueError as error:  # its text would quote the URL, in which there may be a password
            told = "the endpoint (AWS_ENDPOINT_URL) is not a URL such as https://host:port"
            raise Permanent(f"cannot set up the S3 client: {told}") from error


async def resolve(uri: ModelUri, source: S3Source | None = None) -> Manifest:
    """Find the version that `uri` names now: list, HEAD each object, and refuse what cannot be a model on disk.

    Raises:
        Permanent: denied, absent, empty, incomplete by its own account, or an object that cannot be a file.
        Transient: S3 is away or busy, or the objects changed meanwhile.
    """
    if source is None:
        async with open_source() as opened:
            return await resolve(uri, opened)
    chosen = choose(uri, await source.list_objects(uri))
    digests = await _stated_digests(uri, source, chosen)
    gate = asyncio.Semaphore(HEADS_AT_ONCE)

    async def head(listed: Listed, path: str) -> ObjectEntry:
        async with gate:
            entry = await source.head(uri.bucket, listed, path, uri.version_id)
        return replace(entry, sha256=digests[path]) if path in digests else entry

    try:
        async with asyncio.TaskGroup() as heads:
            tasks = [heads.create_task(head(*each), name=f"head {n}") for n, each in enumerate(chosen)]
    except* PrewarmError as group:
        first: BaseException = group
        while isinstance(first, BaseExceptionGroup):
            first = first.exceptions[0]
        raise first from None
    return Manifest(uri=uri, objects=tuple(t.result() for t in tasks))


async def _stated_digests(uri: ModelUri, source: S3Source, chosen: Sequence[tuple[Listed, str]]) -> dict[str, str]:
    """Return the SHA-256 that the model's own files state for others, by path; one GET for each such file.

    Raises:
        Permanent: a file that one of them names is absent.
    """
    naming = [(listed, path) for listed, path in chosen if uri.is_prefix and names_files(path)]
    refuse_large({path: listed.size for listed, path in naming})
    named = {}
    for listed, path in naming:
        content = await source.read(uri.bucket, listed, uri.version_id)
        named[path] = await in_thread(named_files, path, content)
    return check_complete(uri, {path for _, path in chosen}, named)


def _quoted(etag: str) -> str:
    """Return an ETag with the quotes that RFC 9110 gives it: some servers leave them out of listings."""
    return etag if etag.startswith(('"', "W/")) else f'"{etag}"'


def _session() -> Any:
    from aiobotocore.session import get_session

    return get_session()


def _config(s3: Mapping[str, str]) -> Any:
    from aiobotocore.config import AioConfig

    return AioConfig(
        signature_version="s3v4",
        connect_timeout=5,
        read_timeout=20,
        max_pool_connections=HEADS_AT_ONCE,
        retries={"mode": "standard", "max_attempts": 3},
        **({"s3": dict(s3)} if s3 else {}),
    )


@contextlib.contextmanager
def _told(doing: str) -> Any:
    """Turn botocore's errors into ours, with `doing` in the sentence."""
    from botocore.exceptions import BotoCoreError, ClientError, HTTPClientError, NoCredentialsError
    from botocore.exceptions import ConnectionError as EndpointAway

    try:
        yield
    except ClientError as error:
        raise _client_error(doing, error.response) from error
    except NoCredentialsError as error:
        raise Permanent(f"cannot {doing}: no AWS credentials found") from error
    except (EndpointAway, HTTPClientError, TimeoutError, OSError) as error:
        raise Transient(f"cannot {doing}: S3 does not answer ({cut(type(error).__name__, 60)})") from error
    except BotoCoreError as error:
        away = type(error).__name__ in ("CredentialRetrievalError", "MetadataRetrievalError")
        kind = Transient if away else Permanent
        raise kind(f"cannot {doing}: {cut(type(error).__name__, 60)}") from error
    except PrewarmError:
        raise
    except Exception as error:
        # botocore reads foreign bytes with parsers that raise whatever comes: an answer without ETag is a KeyError, a redirect
        # to nowhere a RecursionError. That is this source's failure, never the end of the process.
        raise Transient(
            f"cannot {doing}: S3 gave an answer that makes no sense ({cut(type(error).__name__, 60)})"
        ) from error


def _client_error(doing: str, response: Mapping[str, Any]) -> PrewarmError:
    code = str(response.get("Error", {}).get("Code", ""))
    status = response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    shown = cut(code, 60)
    if code in _EXPIRED:
        return Transient(f"cannot {doing}: the AWS credentials have expired")
    if code in _BUSY or status >= 500 or status == 429:
        return Transient(f"cannot {doing}: S3 is busy ({status} {shown})")
    if code in _DENIED or status == 403:
        return Permanent(f"cannot {doing}: access denied ({shown}): check that these credentials may list and read it")
    if code == "NoSuchBucket":
        return Permanent(f"cannot {doing}: no such bucket")
    if status == 412:
        return Transient(f"cannot {doing}: it was replaced meanwhile")
    if code in _ABSENT or status == 404:
        return Permanent(f"cannot {doing}: no such key")
    return Permanent(f"cannot {doing}: S3 refused ({status} {shown})")
