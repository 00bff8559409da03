"""The S3 adapter: credentials, region and endpoint as every AWS SDK finds them, listing, HEAD, and signing for threads.

The only importer of aiobotocore and botocore; they are imported when a source is opened, not before (35 MB). Bodies never
pass through here: `agent.models.wire` reads them with what `Bucket` and `sign` give. No secret reaches an error text.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import os
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any
from urllib.parse import parse_qs, urlsplit

from agent.core.errors import Permanent, PrewarmError, Transient, cut
from agent.core.refs import ModelUri
from agent.models.bucket import Bucket
from agent.models.channel import Tls
from agent.models.checksum import part_count, stated_checksum
from agent.models.dial import proxy_for
from agent.models.manifest import COMPOSITE, MAX_OBJECTS, Listed, ObjectEntry
from agent.models.part_sizes import PartSizes
from agent.models.signing import Signer
from agent.models.tls import load_tls

HEADS_AT_ONCE = 16
MOST_PAGES = 1000  # of a listing: S3's own have 1000 keys each, but for the last one
CLOCK_DIFFERS = "this machine's clock differs too much from S3's (RequestTimeTooSkewed): set it right"
_DENIED = {"403", "AccessDenied", "AllAccessDisabled", "InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidToken"}
_EXPIRED = {"ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired", "RequestExpired"}
# What botocore says of an outage, or of a body that was cut or altered on its way.
_PASSING = {"CredentialRetrievalError", "MetadataRetrievalError", "IncompleteReadError", "FlexibleChecksumError"}
_ABSENT = {"404", "NoSuchKey", "NoSuchVersion", "NoSuchBucket", "MethodNotAllowed", "405"}
_BUSY = {"SlowDown", "RequestTimeout", "Throttling", "InternalError", "OperationAborted"}


class S3Source:
    """An open connection to S3's control side, and the credentials that worker threads sign with."""

    def __init__(self, session: Any, client: Any, frozen: Any) -> None:
        self._session, self._client = session, client
        self._credentials: Any = None
        self._frozen = frozen  # replaced as a whole: threads may read it at any time
        self._signer: tuple[Any, str, Signer] | None = None  # of which credentials and region; replaced as a whole
        self._tls: Tls | None = None
        self._regions: dict[str, str] = {}  # of buckets, as requests to them were signed last

    async def list_objects(self, uri: ModelUri) -> list[Listed]:
        """Return every object under the URI's prefix, or the one object it names.

        Raises:
            Permanent: denied, absent, or more than MAX_OBJECTS under the prefix.
            Transient: S3 is away or busy.
        """
        if not uri.is_prefix:
            return [await self._named(uri)]
        found: list[Listed] = []
        pages = 0
        with _told(f"list {cut(uri, 200)}"):
            async for page in self._client.get_paginator("list_objects_v2").paginate(
                Bucket=uri.bucket, Prefix=uri.key, PaginationConfig={"PageSize": 1000}
            ):
                found += [
                    Listed(key=o["Key"], size=o["Size"], etag=_quoted(o["ETag"])) for o in page.get("Contents", ())
                ]
                pages += 1
                if pages > MOST_PAGES:
                    raise Permanent(f"cannot list {cut(uri, 200)}: after {MOST_PAGES} pages S3 still has more")
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
        if not agrees(head, listed):
            raise Transient(f"{cut(ascii(listed.key), 200)} changed while s3://{bucket} was listed")
        return await self.entry(bucket, listed, path, version_id, head)

    async def entry(
        self, bucket: str, listed: Listed, path: str, version_id: str, head: Mapping[str, Any]
    ) -> ObjectEntry:
        """Return one listed object as its HEAD describes it; asks for the sizes of its parts where they are needed.

        Raises:
            Transient: S3 is away.
        """
        entry = _entry(head, listed, path, version_id)
        if entry.checksum_type != COMPOSITE:
            return entry
        with _told(f"read s3://{bucket}/{cut(ascii(listed.key)[1:-1], 200)}"):
            parts = await PartSizes(self._client, bucket, listed, version_id).find(part_count(entry.checksum))
        return replace(entry, part_sizes=parts)

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

    def note_region(self, request: Any, **_: object) -> None:
        """Note in which region a request's bucket is taken to be; after a redirect it is the right one. An event's handler."""
        bucket = request.context.get("s3_redirect", {}).get("bucket")
        region = request.context.get("signing", {}).get("region")
        if isinstance(bucket, str) and isinstance(region, str):
            self._regions[bucket] = region

    async def bucket(self, name: str) -> Bucket:
        """Return where bodies of this bucket are read: in its own region, whatever the environment says."""
        if name not in self._regions and _is_aws(self._client):
            with contextlib.suppress(PrewarmError), _told(f"find s3://{name}"):
                await self._client.head_bucket(Bucket=name)  # a refusal, too, tells the region
        with _told(f"find s3://{name}"):
            url = await self._client.generate_presigned_url("get_object", Params={"Bucket": name, "Key": "k"})
        parts = urlsplit(url)
        scope = parse_qs(parts.query)["X-Amz-Credential"][0].split("/")
        return Bucket(
            scheme=parts.scheme,
            host=parts.hostname or "",
            port=parts.port or {"http": 80, "https": 443}[parts.scheme],
            base_path=parts.path[:-1],
            region=self._regions.get(name, scope[2]),
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

    def sign(self, bucket: Bucket, path: str, headers: Mapping[str, str], *, method: str = "GET") -> dict[str, str]:
        """Return `headers` with a signature for `path`; may be called from any thread."""
        frozen, signer = self._frozen, self._signer
        if signer is None or signer[0] is not frozen or signer[1] != bucket.region:
            made = Signer(frozen.access_key, frozen.secret_key, frozen.token, bucket.region)
            signer = self._signer = frozen, bucket.region, made
        return signer[2].sign(method, bucket.netloc, path, headers, datetime.now(UTC))


def agrees(head: Mapping[str, Any], listed: Listed) -> bool:
    """Say whether a HEAD is of the object that was listed."""
    return str(head.get("ContentLength")) == str(listed.size) and _quoted(head.get("ETag", "")) == listed.etag


def _entry(head: Mapping[str, Any], listed: Listed, path: str, version_id: str) -> ObjectEntry:
    checksum, kind = stated_checksum(head, listed.etag)
    version = head.get("VersionId") or version_id
    return ObjectEntry(
        key=listed.key,
        path=path,
        size=listed.size,
        etag=listed.etag,
        version_id="" if version == "null" else version,
        checksum=checksum,
        checksum_type=kind,
    )


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
        if not style and not _is_aws(client):
            # Servers other than AWS seldom have a DNS name for each bucket.
            client = await _client(session, stack, {"addressing_style": "path"})
        source = S3Source(session, client, frozen)
        client.meta.events.register("request-created.s3", source.note_region)
        yield source


def _is_aws(client: Any) -> bool:
    return ".amazonaws.com" in client.meta.endpoint_url


async def _client(session: Any, stack: contextlib.AsyncExitStack, s3: Mapping[str, str]) -> Any:
    with _told("set up the S3 client"):
        try:
            return await stack.enter_async_context(session.create_client("s3", config=_config(s3)))
        except ValueError as error:  # its text would quote the URL, in which there may be a password
            told = "the endpoint (AWS_ENDPOINT_URL) is not a URL such as https://host:port"
            raise Permanent(f"cannot set up the S3 client: {told}") from error


def _quoted(etag: str) -> str:
    """Return an ETag with the quotes that RFC 9110 gives it: some servers leave them out of listings."""
    return etag if etag.startswith(('"', "W/")) else f'"{etag}"'


def _session() -> Any:
    from aiobotocore.session import get_session

    session = get_session()
    session.get_component("response_parser_factory").set_parser_defaults(timestamp_parser=_time)
    return session


def _time(value: Any) -> datetime:
    """Read a time as botocore does, but S3's own form, of which a listing has thousands, at a hundredth of the CPU."""
    from botocore.utils import parse_timestamp

    try:
        return datetime.fromisoformat(value)
    except (TypeError, ValueError):
        return parse_timestamp(value)  # type: ignore[no-any-return]


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
        away = type(error).__name__ in _PASSING
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
    if code == "RequestTimeTooSkewed":
        return Transient(f"cannot {doing}: {CLOCK_DIFFERS}")
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
