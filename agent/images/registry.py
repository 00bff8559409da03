"""A tag's digest, asked of the registry: what the planner resolves images with. Imports no grpc.

Registries are foreign: their answers are bounded in size, redirects and time, tokens go to https realms only (or where
the registry itself is plain http), and no secret reaches a message.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import partial
from pathlib import Path
from typing import TypeVar

import aiohttp

from agent.core.errors import Invalid, cut
from agent.core.refs import Digest, ImageRef, parse_digest
from agent.images.challenge import Challenge, Credentials, credentials_among, credentials_for, parse_challenge
from agent.images.faults import Fault, PermanentFault, TransientFault, without_query
from agent.images.hosts import RegistryHost, registry_hosts
from agent.images.layout import LIMIT_BYTES

T = TypeVar("T")
Secrets = Callable[[], Awaitable[Sequence[Mapping[str, object]]]]  # the `auths` of pull secrets

_ACCEPT = ", ".join(
    (
        "application/vnd.oci.image.index.v1+json",
        "application/vnd.docker.distribution.manifest.list.v2+json",
        "application/vnd.oci.image.manifest.v1+json",
        "application/vnd.docker.distribution.manifest.v2+json",
    )
)
_TIMEOUT = aiohttp.ClientTimeout(total=10, connect=5)
_TOKEN_BYTES = 64 << 10
_REDIRECTS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class _Answer:
    """What a request for a manifest came to; `digest` is "" where the header is missing."""

    status: int
    digest: str
    challenge: Challenge
    body: bytes = b""
    retry_after: str = ""


class RegistryResolver:
    """Resolves image references. Used inside one event loop; `close` it at the end.

    Args:
        directory: a hosts.toml directory, as containerd's config_path.
        auths: a Docker config file with `auths`, or None to ask anonymously.
        root: the other file system that the directory lies in, as seen from here; None for our own.
    """

    def __init__(self, directory: Path, auths: Path | None = None, root: Path | None = None) -> None:
        self._directory = directory
        self._root = root
        self._auths = auths
        self._session: aiohttp.ClientSession | None = None

    async def close(self) -> None:
        """Close all connections."""
        if self._session:
            await self._session.close()

    async def resolve(self, ref: ImageRef, secrets: Secrets | None = None) -> Digest:
        """Return the digest the reference has in its registry now: of the index where the tag names one.

        `secrets` are asked for where the registry would not tell whoever the Docker config file makes us.

        Raises:
            PermanentFault: every place to ask said that it does not exist, or that we may not see it.
            TransientFault: some place could not be asked.
        """
        try:
            return await self._at_first(ref, lambda host: self._resolve_at(host, ref))
        except PermanentFault as error:
            if error.fault is not Fault.AUTH or secrets is None:
                raise
            refused = error
        for credentials in [found for auths in await secrets() if (found := credentials_among(auths, ref))]:
            try:
                return await self._at_first(ref, partial(self._resolve_at, ref=ref, credentials=credentials))
            except PermanentFault as error:
                refused = error
        raise refused

    async def document(self, ref: ImageRef) -> bytes:
        """Return the manifest, or index, that the reference names, as the registry sends it; errors as `resolve`."""
        return await self._at_first(ref, lambda host: self._document_at(host, ref))

    async def _at_first(self, ref: ImageRef, ask: Callable[[RegistryHost], Awaitable[T]]) -> T:
        """Return the first good answer of the places to ask."""
        hosts = await asyncio.to_thread(registry_hosts, self._directory, ref.host, root=self._root)
        failures: list[TransientFault | PermanentFault] = []
        for host in hosts:
            try:
                return await ask(host)
            except (TransientFault, PermanentFault) as error:
                failures.append(_about(ref, error))
        if len(failures) == 1:
            raise failures[0]
        # The longest wait that anybody asked for holds for all.
        wait = max((f.retry_after_seconds for f in failures if isinstance(f, TransientFault)), default=0.0)
        worst = next((f for f in failures if isinstance(f, TransientFault)), failures[-1])
        text = "; ".join(map(str, failures))
        if isinstance(worst, TransientFault):
            raise TransientFault(text, worst.fault, wait)
        raise PermanentFault(text, worst.fault)

    async def _resolve_at(self, host: RegistryHost, ref: ImageRef, credentials: Credentials | None = None) -> Digest:
        credentials = credentials or await asyncio.to_thread(credentials_for, self._auths, host.name)
        url = _manifest_url(host, ref)
        answer, authorization = await self._ask_as("HEAD", url, ref, credentials)
        if answer.status == 405 or (answer.status == 200 and not answer.digest):
            answer = await self._ask("GET", url, authorization)
        if answer.status != 200:
            raise _refusal(url, ref, answer.status, anonymous=credentials is None, retry_after=answer.retry_after)
        digest = answer.digest or f"sha256:{hashlib.sha256(answer.body).hexdigest()}"
        try:
            found = parse_digest(digest)
        except Invalid as error:
            raise PermanentFault(f"cannot resolve {ref}: {url} answered with {error}", Fault.OTHER) from error
        if ref.digest and found != ref.digest:
            raise PermanentFault(f"cannot resolve {ref}: {url} answered with another digest, {found}", Fault.OTHER)
        return found

    async def _document_at(self, host: RegistryHost, ref: ImageRef) -> bytes:
        credentials = await asyncio.to_thread(credentials_for, self._auths, host.name)
        url = _manifest_url(host, ref)
        answer, _ = await self._ask_as("GET", url, ref, credentials)
        if answer.status != 200:
            raise _refusal(url, ref, answer.status, anonymous=credentials is None, retry_after=answer.retry_after)
        return answer.body

    async def _ask_as(
        self, method: str, url: str, ref: ImageRef, credentials: Credentials | None
    ) -> tuple[_Answer, str]:
        """Ask, and tell who we are where that is wanted; returns the authorization too."""
        answer = await self._ask(method, url, "")
        if answer.status != 401:
            return answer, ""
        authorization = await self._authorize(url, answer.challenge, ref, credentials)
        return await self._ask(method, url, authorization), authorization

    async def _ask(self, method: str, url: str, authorization: str) -> _Answer:
        headers = {"Accept": _ACCEPT} | ({"Authorization": authorization} if authorization else {})
        try:
            async with self._open().request(method, url, headers=headers, max_redirects=_REDIRECTS) as response:
                wanted = method == "GET" and response.status == 200
                return _Answer(
                    status=response.status,
                    digest=response.headers.get("Docker-Content-Digest", ""),
                    challenge=parse_challenge(response.headers.get("WWW-Authenticate", "")),
                    retry_after=response.headers.get("Retry-After", ""),
                    body=await _read(response, LIMIT_BYTES) if wanted else b"",
                )
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:  # ValueError: no name for DNS
            raise TransientFault(f"cannot reach {url}: {_why(error)}", Fault.REGISTRY) from error

    async def _authorize(self, url: str, asked: Challenge, ref: ImageRef, credentials: Credentials | None) -> str:
        """Answer a 401; returns the value of an Authorization header."""
        if asked.scheme == "basic" and credentials:
            return credentials.basic()
        if asked.scheme != "bearer" or not asked.realm:
            raise _refusal(url, ref, 401, anonymous=credentials is None)
        _check_secret_goes_to(asked.realm, url)
        query = {"service": asked.service, "scope": f"repository:{ref.repository}:pull"}
        headers = {"Authorization": credentials.basic()} if credentials else {}
        try:
            async with self._open().get(
                asked.realm, params=query, headers=headers, max_redirects=_REDIRECTS
            ) as response:
                if response.status != 200:
                    raise _refusal(asked.realm, ref, response.status, anonymous=credentials is None)
                return f"Bearer {_token(await _read(response, _TOKEN_BYTES), asked.realm)}"
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            raise TransientFault(f"cannot reach {asked.realm}: {_why(error)}", Fault.REGISTRY) from error

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            jar = aiohttp.DummyCookieJar()  # a registry could fill one without end
            self._session = aiohttp.ClientSession(timeout=_TIMEOUT, trust_env=True, cookie_jar=jar)
        return self._session


def _manifest_url(host: RegistryHost, ref: ImageRef) -> str:
    return f"{host.base}/{ref.repository}/manifests/{ref.digest or ref.tag}{host.query}"


async def _read(response: aiohttp.ClientResponse, limit_bytes: int) -> bytes:
    body = b""
    async for chunk in response.content.iter_chunked(1 << 16):
        body += chunk
        if len(body) > limit_bytes:
            raise PermanentFault(f"{response.url.host} answered with more than {limit_bytes} bytes", Fault.OTHER)
    return body


def _token(body: bytes, realm: str) -> str:
    try:
        document = json.loads(body)
        token = document.get("token") or document.get("access_token")
    except (ValueError, AttributeError, RecursionError) as error:
        raise PermanentFault(f"{cut(realm, 200)} answered without a token", Fault.AUTH) from error
    if not isinstance(token, str) or not token.isprintable():
        raise PermanentFault(f"{cut(realm, 200)} answered without a token", Fault.AUTH)
    return token


def _check_secret_goes_to(target: str, registry: str) -> None:
    """A secret may leave in the clear only where the operator configured the registry itself as plain http."""
    if not target.lower().startswith("https://") and not registry.startswith("http://"):
        raise PermanentFault(
            f"{cut(registry, 200)} asks for tokens from {cut(target, 200)}, not over https", Fault.AUTH
        )


def _refusal(
    url: str, ref: ImageRef, status: int, *, anonymous: bool, retry_after: str = ""
) -> TransientFault | PermanentFault:
    what = f"cannot resolve {ref}: {cut(url, 300)}"
    match status:
        case 404:
            return PermanentFault(f"{what} does not exist: check name and tag", Fault.NOT_FOUND)
        case 401 | 403:
            told = (
                "asked without credentials (`prewarm grant` lets imagePullSecrets count)"
                if anonymous
                else "the credentials were not enough"
            )
            return PermanentFault(f"{what}: access denied ({status}), {told}", Fault.AUTH)
        case 429:
            return TransientFault(f"{what}: too many requests (429)", Fault.RATE_LIMIT, _seconds(retry_after))
        case _ if status >= 500 or status == 408:
            return TransientFault(f"{what}: the registry answered {status}", Fault.REGISTRY)
        case _:
            return PermanentFault(f"{what}: the registry answered {status}", Fault.OTHER)


def _seconds(retry_after: str) -> float:
    """Return the seconds that a Retry-After header asks for (RFC 9110: seconds, or a date), 0 where it says nothing."""
    if retry_after.isascii() and retry_after.isdigit() and len(retry_after) < 9:
        return float(retry_after)
    try:
        at = parsedate_to_datetime(retry_after)
        wait = (at - datetime.now(UTC)).total_seconds() if at.tzinfo else 0.0
    except (ValueError, TypeError, OverflowError):
        return 0.0
    return max(0.0, wait)


def _about(ref: ImageRef, error: TransientFault | PermanentFault) -> TransientFault | PermanentFault:
    """Let an error name the image: it becomes an Event on a workload, and a URL alone says little there."""
    text = str(error)
    return error if text.startswith("cannot resolve") else type(error)(f"cannot resolve {ref}: {text}", error.fault)


def _why(error: BaseException) -> str:
    return cut(without_query(str(error))) or type(error).__name__
