"""The API server over HTTP: typed reads, plain writes, every request with a deadline, every failure one of `errors`.

JSON is parsed once, here, by the parser of the `Resource`; nothing untyped leaves the package. There are no retries: every
caller is a level-triggered loop with a backoff of its own.
"""

from __future__ import annotations

import json
import socket
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager, contextmanager
from dataclasses import dataclass
from enum import StrEnum
from types import TracebackType
from typing import Any, Generic, TypeVar

import aiohttp

from agent.core.errors import PrewarmError, cut
from agent.kube.credentials import Credentials, find_credentials
from agent.kube.errors import Away, refusal

T = TypeVar("T")
Json = Mapping[str, Any]  # one decoded object; only this package looks inside

_REQUEST_SECONDS = 15.0
_LIST_SECONDS = 60.0  # 1,000 NodeWarmups took 2 s on two busy cores
_MAX_ANSWER = 64 << 20
_PAGE = 250  # of NodeWarmups with 256 KiB of status a page still fits; other people's objects may have 1.5 MiB each
_SMALLER = 16  # pages that do not fit are asked for with so many times fewer objects


class _TooLong(Away):
    """The answer does not fit: ask for less."""


class PatchKind(StrEnum):
    """Content types of a PATCH. Strategic works on built-in kinds only, and merges conditions by their type."""

    JSON = "application/json-patch+json"
    MERGE = "application/merge-patch+json"
    STRATEGIC = "application/strategic-merge-patch+json"
    APPLY = "application/apply-patch+yaml"


@dataclass(frozen=True, slots=True, kw_only=True)
class Resource(Generic[T]):
    """One kind: where it is served (`api/v1`, `nodes`) and how its objects become values."""

    group: str
    plural: str
    parse: Callable[[Json], T]
    namespaced: bool = True

    def path(self, name: str = "", *, namespace: str = "", subresource: str = "") -> str:
        """Return the path of an object, or of the collection without a name (all namespaces without one)."""
        middle = f"namespaces/{namespace}/" if self.namespaced and namespace else ""
        return "/".join(p for p in (f"/{self.group}/{middle}{self.plural}", name, subresource) if p)


@dataclass(frozen=True, slots=True, kw_only=True)
class Listed(Generic[T]):
    """A complete list, and the version from which a watch goes on."""

    items: tuple[T, ...]
    resource_version: str


class KubeApi:
    """One API server. Use as an async context manager, or `close` it."""

    def __init__(self, credentials: Credentials) -> None:
        self._credentials = credentials
        self._session: aiohttp.ClientSession | None = None

    @classmethod
    async def connect(cls, kubeconfig: str = "") -> KubeApi:
        """Find credentials (`find_credentials`); no request is made yet.

        Raises:
            Invalid: there are none.
        """
        return cls(await find_credentials(kubeconfig))

    async def __aenter__(self) -> KubeApi:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        await self.close()

    async def close(self) -> None:
        """Close all connections."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def get(self, resource: Resource[T], name: str, *, namespace: str = "") -> T:
        """Return one object."""
        return resource.parse(await self._ask("GET", resource.path(name, namespace=namespace)))

    async def list(
        self, resource: Resource[T], *, namespace: str = "", label_selector: str = "", field_selector: str = ""
    ) -> Listed[T]:
        """Return all objects that match, read in pages.

        Raises:
            Gone: the pages went stale in between; start again.
        """
        selectors, limit = _selectors(label_selector, field_selector), _PAGE
        while True:
            try:
                return await self._list(resource, namespace, selectors | {"limit": str(limit)})
            except _TooLong:
                if limit == 1:
                    raise
                limit = max(1, limit // _SMALLER)

    async def _list(self, resource: Resource[T], namespace: str, query: dict[str, str]) -> Listed[T]:
        items: list[T] = []
        while True:
            page = await self._ask("GET", resource.path(namespace=namespace), query=query, seconds=_LIST_SECONDS)
            items += [resource.parse(item) for item in page.get("items") or ()]
            meta = page.get("metadata") or {}
            if not meta.get("continue"):
                return Listed(items=tuple(items), resource_version=str(meta.get("resourceVersion", "")))
            query["continue"] = str(meta["continue"])

    async def create(self, resource: Resource[T], body: Json, *, namespace: str = "") -> T:
        """Create an object and return it as stored.

        Raises:
            AlreadyExists: there is one of that name.
        """
        return resource.parse(await self._ask("POST", resource.path(namespace=namespace), body=body))

    async def patch(
        self,
        resource: Resource[T],
        name: str,
        body: Json | Sequence[Json],
        *,
        kind: PatchKind = PatchKind.MERGE,
        namespace: str = "",
        subresource: str = "",
    ) -> T:
        """Change an object and return it as stored.

        Raises:
            Rejected: a `test` of a JSON patch does not hold, or validation fails.
        """
        path = resource.path(name, namespace=namespace, subresource=subresource)
        return resource.parse(await self._ask("PATCH", path, body=body, content_type=kind))

    async def apply(
        self, resource: Resource[T], name: str, body: Json, *, manager: str, namespace: str = "", subresource: str = ""
    ) -> T:
        """Make `manager` own exactly the fields in `body` (server-side apply, never forced); what it owned and lets go is removed.

        Raises:
            Conflict: another manager has set one of them differently; the text says who.
        """
        path = resource.path(name, namespace=namespace, subresource=subresource)
        query = {"fieldManager": manager, "force": "false"}
        return resource.parse(await self._ask("PATCH", path, query=query, body=body, content_type=PatchKind.APPLY))

    async def replace(
        self, resource: Resource[T], name: str, body: Json, *, namespace: str = "", subresource: str = ""
    ) -> T:
        """Replace an object; with `metadata.resourceVersion` in the body only if it is still that version.

        Raises:
            Conflict: it is not.
        """
        path = resource.path(name, namespace=namespace, subresource=subresource)
        return resource.parse(await self._ask("PUT", path, body=body))

    async def delete(self, resource: Resource[T], name: str, *, namespace: str = "", uid: str = "") -> None:
        """Ask for deletion; with `uid` only of that very object."""
        body = {"preconditions": {"uid": uid}} if uid else None
        await self._ask("DELETE", resource.path(name, namespace=namespace), body=body)

    @asynccontextmanager
    async def stream(self, path: str, query: Mapping[str, str], seconds: float) -> AsyncIterator[AsyncIterator[bytes]]:
        """Open a long answer and yield its chunks; `seconds` bounds the silence between two of them.

        A server that vanishes without a word is noticed by TCP keepalive within a minute, at no cost in this process.
        """
        limits = aiohttp.ClientTimeout(total=None, sock_connect=_REQUEST_SECONDS, sock_read=seconds)
        async with (
            self._answer("GET", path, limits, query=query) as answer,
            aclosing(_chunks(answer, f"GET {path}")) as chunks,
        ):
            yield chunks

    async def _ask(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Json | Sequence[Json] | None = None,
        content_type: str = "application/json",
        seconds: float = _REQUEST_SECONDS,
    ) -> Json:
        limits = aiohttp.ClientTimeout(total=seconds)
        async with self._answer(method, path, limits, query=query, body=body, content_type=content_type) as answer:
            return _decode(await _read(answer, f"{method} {path}"), f"{method} {path}")

    @asynccontextmanager
    async def _answer(
        self,
        method: str,
        path: str,
        limits: aiohttp.ClientTimeout,
        *,
        query: Mapping[str, str] | None = None,
        body: Json | Sequence[Json] | None = None,
        content_type: str = "application/json",
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        what = f"{method} {path}"
        data = None if body is None else json.dumps(body, separators=(",", ":")).encode()
        answer = await self._send(method, path, limits, query, data, content_type)
        if answer.status == 401:
            answer.release()
            answer = await self._send(method, path, limits, query, data, content_type, renew=True)
        async with answer:
            if answer.status >= 300:
                raise await _refused(answer, what)
            yield answer

    async def _send(
        self,
        method: str,
        path: str,
        limits: aiohttp.ClientTimeout,
        query: Mapping[str, str] | None,
        data: bytes | None,
        content_type: str,
        *,
        renew: bool = False,
    ) -> aiohttp.ClientResponse:
        if self._session is None:
            self._session = _session(self._credentials)
        headers = {"Accept": "application/json", "Content-Type": content_type}
        headers |= await self._credentials.headers(renew=renew)
        with _translated(f"{method} {path}"):
            return await self._session.request(
                method,
                self._credentials.server + path,
                params=dict(query or {}),
                data=data,
                headers=headers,
                timeout=limits,
                allow_redirects=False,
            )


@contextmanager
def _translated(what: str) -> Iterator[None]:
    try:
        yield
    except TimeoutError as error:
        raise Away(f"{what}: no answer in time") from error
    except (aiohttp.ClientError, OSError) as error:
        raise Away(f"{what}: {cut(error) or type(error).__name__}") from error


def _session(credentials: Credentials) -> aiohttp.ClientSession:
    connector = aiohttp.TCPConnector(
        ssl=credentials.tls if credentials.tls is not None else True,
        limit=64,
        socket_factory=_keepalive_socket,
        keepalive_timeout=30,
    )
    return aiohttp.ClientSession(
        connector=connector, trust_env=False, headers={"User-Agent": "prewarm"}, cookie_jar=aiohttp.DummyCookieJar()
    )


def _keepalive_socket(address: tuple[Any, ...]) -> socket.socket:
    family, kind, protocol = address[0], address[1], address[2]
    made = socket.socket(family, kind, protocol)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, seconds in ((socket.TCP_KEEPIDLE, 20), (socket.TCP_KEEPINTVL, 10), (socket.TCP_KEEPCNT, 3)):
        made.setsockopt(socket.IPPROTO_TCP, option, seconds)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 30_000)
    return made


async def _refused(answer: aiohttp.ClientResponse, what: str) -> PrewarmError:
    try:
        text = (await answer.content.read(8192)).decode(errors="replace")
    except (aiohttp.ClientError, TimeoutError, OSError):
        text = ""
    try:
        status = json.loads(text)
        reason, message = str(status.get("reason", "")), str(status.get("message", ""))
    except (ValueError, AttributeError):
        reason, message = "", text
    return refusal(what, answer.status, reason, message)


async def _read(answer: aiohttp.ClientResponse, what: str) -> bytes:
    parts: list[bytes] = []
    size = 0
    async for chunk in _chunks(answer, what):
        parts.append(chunk)
        size += len(chunk)
        if size > _MAX_ANSWER:
            raise _TooLong(f"{what}: the answer is longer than {_MAX_ANSWER} bytes")
    return b"".join(parts)


async def _chunks(answer: aiohttp.ClientResponse, what: str) -> AsyncGenerator[bytes, None]:
    with _translated(what):
        async for chunk in answer.content.iter_any():
            yield chunk


def _decode(content: bytes, what: str) -> Json:
    try:
        found = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise Away(f"{what}: the answer is no JSON: {cut(content[:200].decode(errors='replace'))}") from error
    if not isinstance(found, dict):
        raise Away(f"{what}: the answer is no object")
    return found


def _selectors(label_selector: str, field_selector: str) -> dict[str, str]:
    pairs = (("labelSelector", label_selector), ("fieldSelector", field_selector))
    return {k: v for k, v in pairs if v}
